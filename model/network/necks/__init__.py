"""Necks: merge the backbone's feature maps into one at stride 4 for the heads."""
