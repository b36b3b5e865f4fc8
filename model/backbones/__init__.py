"""Feature extractors: each returns the maps at strides 4, 8, 16 and 32 and knows its own pixel statistics."""
