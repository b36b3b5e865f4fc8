"""Request bodies and parameters, and the limits on a request's time."""
