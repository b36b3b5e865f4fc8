"""Feature extractors, which return feature maps at several strides."""
