"""Diffusion models: fewer operations for the samples of a network that is trained already.

Everything here speaks diffusers, which is imported by whoever builds the pipeline.
"""

from hadamard.diffusion.designs import Design, design, pixart_variant, sdxl_variant
from hadamard.diffusion.diffusion_scaling import ScalingLaw, extrapolation_error, pareto_front
from hadamard.diffusion.encoder_propagation import EncoderPropagation
from hadamard.diffusion.profile import Profile, profile

__all__ = [
    "Design", "EncoderPropagation", "Profile", "ScalingLaw", "design", "extrapolation_error", "pareto_front",
    "pixart_variant", "profile", "sdxl_variant",
]  # fmt: skip
