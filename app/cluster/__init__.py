"""Scaling out with Ray: replicas of the server, and batch inference over many photos."""
