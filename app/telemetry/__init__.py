"""Metrics, stages, traces, logs and request ids."""
