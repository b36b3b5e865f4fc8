"""Checkpoints: ours, the authors', mmdetection's and ImageNet's."""
