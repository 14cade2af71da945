"""Tests of the family diffusion."""
