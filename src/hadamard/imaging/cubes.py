"""Image cubes unmixed: maps in, maps out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from hadamard.imaging.robust_unmixing import RobustUnmixing
from hadamard.results import Solution

__all__ = ["Unmixing", "unmix_cube"]


@dataclass(frozen=True, kw_only=True)
class Unmixing(Solution):
    """What :func:`unmix_cube` found; ``value`` is the objective, ``residual`` its last relative change.

    Attributes
    ----------
    abundances
        Shares of the endmembers in each pixel, shape (H, W, K).
    guidance
        How pure each pixel is, from 0 to ``h_max``, shape (H, W).
    endmembers
        Spectra, shape (K, L).
    channel_weights, bad_bands
        Weight of each band and whether it was found broken, shape (L,).
    """

    abundances: Float[np.ndarray, "h w k"]
    guidance: Float[np.ndarray, "h w"]
    endmembers: Float[np.ndarray, "k bands"]
    channel_weights: Float[np.ndarray, " bands"]
    bad_bands: Bool[np.ndarray, " bands"]


def unmix_cube(cube: Any, n_endmembers: int, **options: Any) -> Unmixing:
    """Unmix an image cube: :class:`RobustUnmixing` with maps for its results.

    Parameters
    ----------
    cube
        Array of shape (H, W, L), bands last, finite; values below zero count as zero.
    n_endmembers
        Number of pure spectra.
    **options
        As in :class:`RobustUnmixing`.

    Returns
    -------
    Unmixing
        Abundance maps, guidance map, spectra, and what was found of the bands.

    Raises
    ------
    ValueError
        If the cube has another shape or a value is not finite.

    Examples
    --------
    >>> from hadamard.data import mixed_scene, smooth_spectra
    >>> result = unmix_cube(mixed_scene(smooth_spectra(3, 60), size=20).cube, 3)
    >>> result.abundances.shape, result.guidance.shape
    ((20, 20, 3), (20, 20))
    """
    cube = np.asarray(cube)
    if cube.ndim != 3:
        raise ValueError(f"cube must have shape (height, width, bands), got {cube.shape}")
    height, width, bands = cube.shape
    model = RobustUnmixing(n_endmembers, **options)
    shares = model.fit_transform(cube.reshape(-1, bands))
    converged = model._gap <= model.tol
    return Unmixing(
        value=float(model.objective_history_[-1]), iterations=model.n_iter_, residual=model._gap, converged=converged,
        message="" if converged else f"stopped after {model.n_iter_} iterations", extras={"reg": model.reg_},
        abundances=shares.reshape(height, width, -1), guidance=model.guidance_.reshape(height, width),
        endmembers=model.endmembers_, channel_weights=model.channel_weights_, bad_bands=model.bad_bands_,
    )  # fmt: skip
