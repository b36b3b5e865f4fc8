"""`python -m app bench`: what a detection costs here, and what the server reaches."""
