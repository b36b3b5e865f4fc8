"""Readers of object-detection data sets: COCO, Pascal VOC and YOLO."""
