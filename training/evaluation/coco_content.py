"""Converts a data set to COCO's JSON format, for COCO evaluation."""

from typing import Any

from training.datasets.dataset import Dataset


def to_coco(dataset: Dataset) -> dict[str, Any]:
    """Returns the data set as COCO JSON; photos keep their ids, and annotations count from 1."""
    annotations = [
        {
            "id": 0,
            "image_id": photo.id,
            "category_id": dataset.label_ids[label],
            "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
            "area": float(area),
            "iscrowd": int(is_ignored),
            "keypoints": keypoints.astype(float).ravel().tolist(),
            "num_keypoints": int((keypoints[:, 2] > 0).sum()),
        }
        for photo in dataset.photos
        for (x0, y0, x1, y1), label, is_ignored, area, keypoints in zip(
            photo.boxes_xyxy, photo.labels, photo.is_ignored, photo.areas, photo.keypoints, strict=True
        )
    ]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    return {
        "images": [{"id": photo.id, "width": photo.width, "height": photo.height} for photo in dataset.photos],
        "annotations": annotations,
        "categories": [
            {"id": label_id, "name": label} for label_id, label in zip(dataset.label_ids, dataset.labels, strict=True)
        ],
    }
