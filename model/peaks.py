"""The highest cells of their neighbourhoods: what stands for an object or a joint in a heatmap."""

import torch
import torch.nn.functional as F
from torch import Tensor

REPEAT_IOU = 0.6


def keep_peaks(logits: Tensor) -> Tensor:
    """A heatmap's logits (B, C, h, w) where they are the highest of their 3x3 cells; elsewhere so low that p is 0.

    By arithmetic, which keeps a peak's logit as it is: ONNX Runtime takes half the time of a comparison and a choice.
    """
    below = logits - F.max_pool2d(logits, 3, stride=1, padding=1)
    return logits + below * torch.finfo(logits.dtype).max


def drop_repeats(boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """Logits (B, K), falling, so low that p is 0 where an earlier box of the same class is mostly the same.

    Boxes are (B, K, 4), xyxy, labels (B, K). Source: "Fast NMS" (arXiv 1904.02689, section 3.3), all at once, as boxes
    that are dropped count too.
    """
    one, other = boxes[:, :, None], boxes[:, None]
    sides = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp(min=0)
    shared = sides[..., 0] * sides[..., 1]  # (B, K, K)
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    is_same = shared > REPEAT_IOU * (areas[:, :, None] + areas[:, None] - shared)
    order = torch.arange(scores.shape[1], device=scores.device)
    is_repeat = is_same & (labels[:, :, None] == labels[:, None]) & (order[:, None] < order)
    return scores.masked_fill(is_repeat.any(1), torch.finfo(scores.dtype).min)
