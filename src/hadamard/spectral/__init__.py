"""Transforms with one set of conventions: torch's names for ``norm``, frequencies in cycles per unit length."""

from hadamard.spectral.convolution import Spectrum, convolve, convolve_backward, correlate, spectrum
from hadamard.spectral.dct import dct, idct
from hadamard.spectral.fft import fft_centred, frequencies, good_size, ifft_centred, radial_average
from hadamard.spectral.haar import haar2d, ihaar2d
from hadamard.spectral.modes import embed, irfftn_modes, resample, rfftn_modes, truncate
from hadamard.spectral.norms import half_spectrum_counts, sobolev_weight, weighted_norm
from hadamard.spectral.walsh import fwht

__all__ = [
    "Spectrum",
    "convolve",
    "convolve_backward",
    "correlate",
    "dct",
    "embed",
    "fft_centred",
    "frequencies",
    "fwht",
    "good_size",
    "haar2d",
    "half_spectrum_counts",
    "idct",
    "ifft_centred",
    "ihaar2d",
    "irfftn_modes",
    "radial_average",
    "resample",
    "rfftn_modes",
    "sobolev_weight",
    "spectrum",
    "truncate",
    "weighted_norm",
]
