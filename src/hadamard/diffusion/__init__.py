"""Diffusion models: fewer operations for the samples of a network that is trained already.

Everything here speaks diffusers, which is imported by whoever builds the pipeline.
"""

from hadamard.diffusion.a_sdm import FeatureInheritance, disable, enable
from hadamard.diffusion.assembly import Assembled, SwitchUNet, add_experts, assemble
from hadamard.diffusion.cond_conv import CondConv2d
from hadamard.diffusion.designs import Design, design, pixart_variant, sdxl_variant
from hadamard.diffusion.diffusion_scaling import ScalingLaw, extrapolation_error, pareto_front
from hadamard.diffusion.distillation import Distillation, Distilled
from hadamard.diffusion.encoder_propagation import EncoderPropagation
from hadamard.diffusion.inheritance_rules import Rule, dense_ends, window
from hadamard.diffusion.profile import Profile, profile

__all__ = [
    "Assembled", "CondConv2d", "Design", "Distillation", "Distilled", "EncoderPropagation", "FeatureInheritance",
    "Profile", "Rule", "ScalingLaw", "SwitchUNet", "add_experts", "assemble", "dense_ends", "design", "disable",
    "enable", "extrapolation_error", "pareto_front", "pixart_variant", "profile", "sdxl_variant", "window",
]  # fmt: skip
