"""The highest cells of their neighbourhoods: what stands for an object or a joint in a heatmap."""

import torch
import torch.nn.functional as F
from torch import Tensor


def keep_peaks(logits: Tensor) -> Tensor:
    """A heatmap's logits (B, C, h, w) where they are the highest of their 3x3 cells; elsewhere so low that p is 0.

    By arithmetic, which keeps a peak's logit as it is: ONNX Runtime takes half the time of a comparison and a choice.
    """
    below = logits - F.max_pool2d(logits, 3, stride=1, padding=1)
    return logits + below * torch.finfo(logits.dtype).max
