"""Transforms: the same values from fewer samples or fewer passes over memory."""
