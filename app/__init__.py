"""The object-detection server."""

__version__ = "0.1.0"
