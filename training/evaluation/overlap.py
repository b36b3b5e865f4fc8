"""IoU and coverage of boxes, in NumPy."""

import numpy as np
from numpy.typing import NDArray


def box_iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the IoU of all pairs of boxes: (N, 4), (M, 4), xyxy → (N, M)."""
    intersections = _intersections(a, b)
    iou: NDArray[np.float64] = intersections / (_areas(a)[:, None] + _areas(b) - intersections).clip(min=1e-12)
    return iou


def box_coverage(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the share of each box of `a` that each box of `b` covers: (N, 4), (M, 4), xyxy → (N, M)."""
    coverage: NDArray[np.float64] = _intersections(a, b) / _areas(a)[:, None].clip(min=1e-12)
    return coverage


def _intersections(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    rows, columns = a.astype(np.float64)[:, None], b.astype(np.float64)
    lows, highs = np.maximum(rows[..., :2], columns[..., :2]), np.minimum(rows[..., 2:], columns[..., 2:])
    sides: NDArray[np.float64] = (highs - lows).clip(min=0)
    return sides[..., 0] * sides[..., 1]


def _areas(boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
    areas: NDArray[np.float64] = sides[:, 0] * sides[:, 1]
    return areas
