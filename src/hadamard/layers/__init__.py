"""Layers that take the place of those in ``torch.nn``."""
