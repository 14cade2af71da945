"""Convex functions, thresholds, projections and spectral sets."""
