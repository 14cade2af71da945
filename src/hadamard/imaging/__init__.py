"""Reconstruction of images from fewer measurements."""
