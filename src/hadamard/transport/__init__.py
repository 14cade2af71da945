"""Optimal transport with POT's argument order."""
