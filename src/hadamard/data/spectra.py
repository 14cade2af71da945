"""Reflectance spectra of soils and leaves, and scenes that are mixed from spectra."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.special import exp1

from hadamard.data.fetch import fetch, sources
from hadamard.validation import check_range

__all__ = ["MixedScene", "Spectra", "leaves_and_soils", "mixed_scene", "smooth_spectra"]

# Structure, chlorophyll, carotenoids, anthocyanins (ug/cm2), brown pigments, water and dry matter (cm, g/cm2).
_LEAVES = {
    "green leaf": (1.5, 45.0, 9.0, 0.0, 0.0, 0.015, 0.005),
    "yellow leaf": (1.8, 4.0, 12.0, 1.0, 0.1, 0.008, 0.006),
    "red leaf": (1.6, 8.0, 6.0, 12.0, 0.0, 0.020, 0.004),
    "dry leaf": (2.2, 1.0, 2.0, 0.0, 0.9, 0.0005, 0.009),
}


@dataclass(frozen=True)
class Spectra:
    """A small spectral library.

    Attributes
    ----------
    names
        One name a spectrum.
    wavelengths
        In nanometres, shape (bands,).
    values
        Reflectance in [0, 1], shape (spectra, bands).
    provenance
        Where the data comes from and under which terms.
    """

    names: tuple[str, ...]
    wavelengths: np.ndarray
    values: np.ndarray
    provenance: str


@dataclass(frozen=True)
class MixedScene:
    """A cube that was mixed from known spectra.

    Attributes
    ----------
    cube
        Non-negative values, shape (H, W, bands).
    abundances
        Shares of the spectra in each pixel, shape (H, W, K); they sum to one.
    endmembers
        The spectra, shape (K, bands).
    bad_bands
        Which bands are broken, bool, shape (bands,).
    """

    cube: np.ndarray
    abundances: np.ndarray
    endmembers: np.ndarray
    bad_bands: np.ndarray


def leaves_and_soils(bands: int = 120) -> Spectra:
    """Reflectance of a dry soil, a wet soil and a green, a yellow, a red and a dry leaf (fetched on first use, 0.2 MB).

    The soils were measured. The leaves come from the measured absorption and refraction of what leaves consist of, by
    the plate model PROSPECT-D.

    Parameters
    ----------
    bands
        Number of bands, 2 to 2101, spread evenly over 400 to 2500 nm.

    Raises
    ------
    DataUnavailable
        If it is not in the cache and cannot be fetched.

    References
    ----------
    J.-B. Feret, A. A. Gitelson, S. D. Noble, S. Jacquemoud. PROSPECT-D: Towards modeling leaf optical properties
    through a complete lifecycle. Remote Sensing of Environment 193, 2017. doi:10.1016/j.rse.2017.03.004
    """
    check_range(bands, "bands", 2, 2101, integer=True)
    files = fetch("leaves_and_soils")
    at = np.linspace(0, 2100, bands).round().astype(int)
    table = np.loadtxt(files["prospect_d_spectra.txt"])[at]
    soils = np.loadtxt(files["soil_reflectance.txt"])[at].T
    wavelengths, refraction, absorption = table[:, 0], table[:, 1], table[:, 2:]
    leaves = [_leaf(first, refraction, absorption @ np.array(rest)) for first, *rest in _LEAVES.values()]
    source = sources()["leaves_and_soils"]
    provenance = f"{source.what}; from {source.package} {source.version}; {source.licence}"
    return Spectra(("dry soil", "wet soil", *_LEAVES), wavelengths, np.vstack([soils, leaves]), provenance)


def smooth_spectra(count: int, bands: int, *, random_state: int = 0) -> np.ndarray:
    """Invented spectra in [0.05, 0.95]: each a sum of four Gaussians over the bands, shape (count, bands).

    Parameters
    ----------
    count, bands
        Numbers of spectra and of bands.
    random_state
        Seed of the places, widths and heights of the Gaussians.
    """
    check_range(count, "count", 1, integer=True)
    check_range(bands, "bands", 2, integer=True)
    rng = np.random.default_rng(random_state)
    t = np.linspace(0, 1, bands)
    place, width = rng.random((count, 4, 1)), rng.uniform(0.05, 0.25, (count, 4, 1))
    values = (rng.uniform(0.3, 1, (count, 4, 1)) * np.exp(-((t - place) ** 2) / (2 * width**2))).sum(1)
    return 0.05 + 0.9 * (values - values.min(1, keepdims=True)) / np.ptp(values, axis=1, keepdims=True)


def mixed_scene(
    endmembers: np.ndarray,
    size: int = 64,
    *,
    blur: float = 2.0,
    snr: float = 30.0,
    bad: float = 0.0,
    bad_std: float = 0.5,
    random_state: int = 0,
) -> MixedScene:
    """Mix a scene from spectra: regions of one material with blurred borders, noise, and some broken bands.

    Parameters
    ----------
    endmembers
        Spectra, shape (K, bands).
    size
        Height and width in pixels.
    blur
        Standard deviation in pixels of the Gaussian that mixes neighbouring regions.
    snr
        Signal over noise in decibels, over all bands; the noise is white and Gaussian.
    bad
        Share of the bands that are broken, spread at random.
    bad_std
        Standard deviation of the noise that is added to a broken band.
    random_state
        Seed; scenes that differ in ``bad`` only have the same materials and the same noise, and more broken bands
        include the fewer.

    Returns
    -------
    MixedScene
        Values below zero are set to zero, as in reflectance products.

    Examples
    --------
    >>> scene = mixed_scene(smooth_spectra(4, 60), size=16, bad=0.1)
    >>> scene.cube.shape, scene.abundances.shape, int(scene.bad_bands.sum())
    ((16, 16, 60), (16, 16, 4), 6)
    """
    check_range(size, "size", 2, integer=True)
    check_range(bad, "bad", 0, 1)
    rng = np.random.default_rng(random_state)
    count, bands = endmembers.shape
    fields = np.stack(
        [gaussian_filter(rng.standard_normal((size, size)), size / 10, mode="wrap") for _ in range(count)]
    )
    fields /= fields.std(axis=(1, 2), keepdims=True)
    regions = np.eye(count)[fields.argmax(0)]
    abundances = np.stack([gaussian_filter(r, blur, mode="nearest") for r in np.moveaxis(regions, -1, 0)], -1)
    abundances = np.clip(abundances, 0, None)
    abundances /= abundances.sum(-1, keepdims=True)
    clean = abundances @ endmembers
    std = np.sqrt(np.square(clean).mean()) * 10 ** (-snr / 20)
    noise = std * rng.standard_normal(clean.shape)
    broken = rng.permutation(bands)[: round(bad * bands)]
    noise[..., broken] += bad_std * np.random.default_rng((random_state, 1)).standard_normal(clean.shape)[..., broken]
    mask = np.zeros(bands, dtype=bool)
    mask[broken] = True
    return MixedScene(np.clip(clean + noise, 0, None), abundances, endmembers, mask)


def _leaf(layers: float, refraction: np.ndarray, absorption: np.ndarray) -> np.ndarray:
    """Reflectance of a pile of plates whose absorption is spread over them."""
    k = absorption / layers
    passed = (1 - k) * np.exp(-k) + k**2 * exp1(np.maximum(k, 1e-12))
    into, diffuse = _transmissivity(refraction, 40.0), _transmissivity(refraction, 90.0)
    out = diffuse / refraction**2
    back = 1 - out
    again = 1 - (back * passed) ** 2
    first_t = into * passed * out / again
    first_r = 1 - into + back * passed * first_t
    t = diffuse * passed * out / again
    r = 1 - diffuse + back * passed * t
    root = np.sqrt((1 + r + t) * (1 + r - t) * (1 - r + t) * (1 - r - t))
    a, b = (1 + r**2 - t**2 + root) / (2 * r), ((1 - r**2 + t**2 + root) / (2 * t)) ** (layers - 1)
    rest = a * (b**2 - 1) / (a**2 * b**2 - 1)  # reflectance of the other layers (Stokes)
    return first_r + first_t * rest * t / (1 - rest * r)


def _transmissivity(n: np.ndarray, cone: float) -> np.ndarray:
    """Fresnel's transmissivity of an interface, averaged over the directions of a cone (degrees)."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    top = np.sin(np.deg2rad(cone)) ** 2
    u = (top * (nodes + 1) / 2)[:, None]  # sin^2 of the angle of incidence
    inside, outside = np.sqrt(n**2 - u), np.sqrt(1 - u)
    across = ((outside - inside) / (outside + inside)) ** 2
    along = ((n**2 * outside - inside) / (n**2 * outside + inside)) ** 2
    return 1 - (weights / 2) @ ((across + along) / 2)
