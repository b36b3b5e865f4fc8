"""Feature extractors: each returns maps at several strides and knows its own pixel statistics."""
