"""Diffusion models: fewer operations for the samples of a network that is trained already.

Everything here speaks diffusers, which is imported on first use of what builds on its classes.
"""

from importlib import import_module
from typing import Any

from hadamard.diffusion.a_sdm import FeatureInheritance, disable, enable
from hadamard.diffusion.assembly import Assembled, SwitchUNet, add_experts, assemble
from hadamard.diffusion.bias_free import BFBatchNorm2d, BiasFreeUNet
from hadamard.diffusion.cond_conv import CondConv2d
from hadamard.diffusion.denoiser import Denoiser, DiffusersDenoiser, as_denoiser, convert, noise_levels
from hadamard.diffusion.designs import Design, design, narrow, pixart_variant, sdxl_variant
from hadamard.diffusion.diffusion_scaling import ScalingLaw, extrapolation_error, pareto_front
from hadamard.diffusion.distillation import Distillation, Distilled
from hadamard.diffusion.encoder_propagation import EncoderPropagation
from hadamard.diffusion.generalisation import GeneralisationReport, generalisation_report
from hadamard.diffusion.harmonic_denoiser import JacobianSpectrum, denoiser_jacobian, effective_dimension, sure
from hadamard.diffusion.inheritance_rules import Rule, dense_ends, window
from hadamard.diffusion.panorama_quality import ws_psnr, ws_ssim
from hadamard.diffusion.profile import Profile, profile
from hadamard.diffusion.sample_checks import MemorisationReport, memorisation_report, mode_mixture_ratio
from hadamard.diffusion.score_sampler import ScoreSampler
from hadamard.diffusion.spectral_distillation import SpectralDistillation, SpectrallyDistilled, spectral_weight
from hadamard.diffusion.tangent_sphere import TangentSphere
from hadamard.diffusion.wavelet_gating import WaveletGatingDown, WaveletGatingUp
from hadamard.diffusion.wiener import wiener_gain

__all__ = [
    "Assembled", "AutoObjective", "BFBatchNorm2d", "BiasFreeUNet", "CondConv2d", "DPMOTPipeline", "Denoiser", "Design",
    "DiffusersDenoiser", "Distillation", "Distilled", "EncoderPropagation", "FeatureInheritance",
    "GeneralisationReport", "JacobianSpectrum", "LatentTransport", "MemorisationReport", "OmniSSROutput",
    "OmniSSRPipeline", "Profile", "RDDMPipeline", "RDDMScheduler", "RDDMSchedulerOutput", "Rule", "ScalingLaw",
    "ScoreSampler", "SpectralDistillation", "SpectralUNet2DConditionModel", "SpectralUNet2DModel",
    "SpectrallyDistilled", "SwitchUNet", "TangentSphere", "WaveletGatingDown", "WaveletGatingUp", "add_experts",
    "as_denoiser", "assemble", "convert", "denoiser_jacobian", "dense_ends", "design", "disable",
    "effective_dimension", "enable", "extrapolation_error", "generalisation_report", "make_spectral_unet",
    "memorisation_report", "mode_mixture_ratio", "narrow", "noise_levels", "null_space_project", "pareto_front",
    "pixart_variant", "profile", "rddm_loss", "rddm_output", "sdxl_variant", "spectral_weight", "sure",
    "wiener_gain", "window", "ws_psnr", "ws_ssim",
]  # fmt: skip

_LATER = {
    "AutoObjective": "rddm_objectives", "DPMOTPipeline": "dpm_ot", "LatentTransport": "latent_transport",
    "OmniSSROutput": "omnissr", "OmniSSRPipeline": "omnissr", "RDDMPipeline": "rddm_pipeline", "RDDMScheduler": "rddm",
    "RDDMSchedulerOutput": "rddm", "SpectralUNet2DConditionModel": "spectral_diffusion",
    "SpectralUNet2DModel": "spectral_diffusion", "make_spectral_unet": "spectral_diffusion",
    "null_space_project": "omnissr", "rddm_loss": "rddm_objectives", "rddm_output": "rddm_objectives",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
