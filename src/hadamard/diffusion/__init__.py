"""Diffusion models: fewer operations for the samples of a network that is trained already.

Everything here speaks diffusers, which is imported by whoever builds the pipeline.
"""

from hadamard.diffusion.encoder_propagation import EncoderPropagation

__all__ = ["EncoderPropagation"]
