"""How much boxes overlap. Free of torch."""

import numpy as np
from numpy.typing import NDArray


def box_iou(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Intersection over union of boxes: (N, 4), (M, 4), xyxy → (N, M)."""
    shared = _intersections(one, other)
    iou: NDArray[np.float64] = shared / (_areas(one)[:, None] + _areas(other) - shared).clip(min=1e-12)
    return iou


def box_coverage(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """The share of each of `one` that lies in each of `other`: (N, 4), (M, 4), xyxy → (N, M)."""
    coverage: NDArray[np.float64] = _intersections(one, other) / _areas(one)[:, None].clip(min=1e-12)
    return coverage


def _intersections(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    a, b = one.astype(np.float64)[:, None], other.astype(np.float64)
    sides: NDArray[np.float64] = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(min=0)
    return sides[..., 0] * sides[..., 1]


def _areas(boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
    areas: NDArray[np.float64] = sides[:, 0] * sides[:, 1]
    return areas
