"""Trains, evaluates and exports the networks of `model`."""
