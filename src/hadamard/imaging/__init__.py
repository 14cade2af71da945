"""Reconstruction of images from fewer measurements."""

from hadamard.imaging.complex_layers import ComplexBatchNorm2d, ComplexConv2d, CReLU, ModReLU
from hadamard.imaging.convex_networks import ICNN, PatchICNN
from hadamard.imaging.cubes import Unmixing, unmix_cube
from hadamard.imaging.degradations import GaussianBlur, Inpainting, photon_noise
from hadamard.imaging.distillation import BandPassContrastive, DirectionalDistillation
from hadamard.imaging.dual_latent_rescaling import DualLatentRescaler, PictureAndLatent
from hadamard.imaging.endmembers import fcls, noisy_bands, spa, vca
from hadamard.imaging.fast_fourier_conv import FastFourierConv2d, FourierUnit
from hadamard.imaging.fourier_pd import FourierPrimalDual
from hadamard.imaging.glore_distiller import GloReDistiller
from hadamard.imaging.gloredi import GloReNet
from hadamard.imaging.hounsfield import attenuation, hounsfield, unwindow, window
from hadamard.imaging.image_hiding import DualLatentHider, Hidden, Revealed
from hadamard.imaging.learned_proximal import LearnedProximal, pretrained
from hadamard.imaging.patches import PatchAverage
from hadamard.imaging.plug_and_play import Reconstruction, pnp_admm, pnp_pgd
from hadamard.imaging.primal_dual_unet import PrimalDualUNet, RadialMRI, upsample_sinogram
from hadamard.imaging.proximal_matching import ProximalMatchingLoss, ProximalMatchingSchedule
from hadamard.imaging.rdledm import RDLEDM, CineReconstruction, LowRankPrior, TVPrior, rdledm
from hadamard.imaging.rescaling_loss import RescalingCycle, rescaling_loss
from hadamard.imaging.robust_unmixing import RobustUnmixing
from hadamard.imaging.thermometry import prf_temperature
from hadamard.imaging.unet import UNet
from hadamard.imaging.unrolled import LearnedPrimalDual

__all__ = [
    "ICNN",
    "RDLEDM",
    "BandPassContrastive",
    "CReLU",
    "CineReconstruction",
    "ComplexBatchNorm2d",
    "ComplexConv2d",
    "DirectionalDistillation",
    "DualLatentHider",
    "DualLatentRescaler",
    "FastFourierConv2d",
    "FourierPrimalDual",
    "FourierUnit",
    "GaussianBlur",
    "GloReDistiller",
    "GloReNet",
    "Hidden",
    "Inpainting",
    "LearnedPrimalDual",
    "LearnedProximal",
    "LowRankPrior",
    "ModReLU",
    "PatchAverage",
    "PatchICNN",
    "PictureAndLatent",
    "PrimalDualUNet",
    "ProximalMatchingLoss",
    "ProximalMatchingSchedule",
    "RadialMRI",
    "Reconstruction",
    "RescalingCycle",
    "Revealed",
    "RobustUnmixing",
    "TVPrior",
    "UNet",
    "Unmixing",
    "attenuation",
    "fcls",
    "hounsfield",
    "noisy_bands",
    "photon_noise",
    "pnp_admm",
    "pnp_pgd",
    "pretrained",
    "prf_temperature",
    "rdledm",
    "rescaling_loss",
    "spa",
    "unmix_cube",
    "unwindow",
    "upsample_sinogram",
    "vca",
    "window",
]
