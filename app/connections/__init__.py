"""The connections that clients hold, and the refusals that come before any route."""
