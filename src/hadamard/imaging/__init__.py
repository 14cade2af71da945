"""Reconstruction of images from fewer measurements."""

from hadamard.imaging.convex_networks import ICNN, PatchICNN
from hadamard.imaging.degradations import GaussianBlur, Inpainting
from hadamard.imaging.learned_proximal import LearnedProximal, pretrained
from hadamard.imaging.patches import PatchAverage
from hadamard.imaging.plug_and_play import Reconstruction, pnp_admm, pnp_pgd
from hadamard.imaging.proximal_matching import ProximalMatchingLoss, ProximalMatchingSchedule
from hadamard.imaging.rdledm import RDLEDM, CineReconstruction, LowRankPrior, TVPrior, rdledm

__all__ = [
    "ICNN",
    "RDLEDM",
    "CineReconstruction",
    "GaussianBlur",
    "Inpainting",
    "LearnedProximal",
    "LowRankPrior",
    "PatchAverage",
    "PatchICNN",
    "ProximalMatchingLoss",
    "ProximalMatchingSchedule",
    "Reconstruction",
    "TVPrior",
    "pnp_admm",
    "pnp_pgd",
    "pretrained",
    "rdledm",
]
