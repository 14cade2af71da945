"""The Radon transform as a sparse matrix: parallel and fan beam, exact adjoint, filtered back-projection."""

import math

import numpy as np
import torch
from jaxtyping import Float, Inexact
from scipy.sparse import coo_matrix, vstack
from torch import Tensor

from hadamard.operators.base import LinearOperator
from hadamard.operators.sparse import SparseMatrix, csr_tensor
from hadamard.spectral.convolution import convolve
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["Radon"]


class Radon(LinearOperator):
    """Line integrals of an image: its sinogram for a set of angles.

    Parameters
    ----------
    size
        Height and width of the image in pixels.
    angles
        Radians, shape (A,), in any order. At angle 0 rays run along the image's columns, upwards, and the detector
        along its rows, to the right; angles turn both counterclockwise.
    geometry
        ``"parallel"``: rays at right angles to the detector; or ``"fan"``: rays from a point to a flat detector on the
        other side of the image, with the angle 0 of the central ray as above.
    detectors
        Number of detector bins ``P``; ``None``: as many as see the whole image, even or odd as ``size`` is.
    pixel_size
        Side of a pixel, in a unit of length; values of the image are per that unit.
    spacing
        Width of a detector bin, in the same unit; ``None``: a pixel's, magnified to the detector for a fan.
    source_distance, detector_distance
        Of a fan: from the centre of the image to the source and to the detector.
    dtype
        ``torch.float32`` or ``torch.float64``, of the matrix.

    Raises
    ------
    TypeError
        If ``angles`` is not a floating tensor, or a number is expected.
    ValueError
        If a number is out of range, ``angles`` is empty or not finite, a fan has no distances or a parallel beam has,
        or the source stands inside the image.

    Notes
    -----
    Images have shape (..., size, size), usually (B, C, H, W), and sinograms (..., P, A). The image is one of square
    pixels, and a bin reads the mean over its width of the line integrals through them, for a parallel beam exactly:
    the shadow of a pixel is a trapezoid, which is integrated. So every parallel projection has the image's mass.
    (A fan's rays are taken as parallel within a pixel.) The matrix is built once, with its transpose: the adjoint, and
    with it the gradient, is exact. It has about ``2.3 * A * size**2`` entries of 20 bytes where bins are as wide as
    pixels; this suits images of up to about 512 pixels.

    ``A_dagger`` is filtered back-projection, which is no adjoint and no exact inverse.

    References
    ----------
    A. C. Kak, M. Slaney. Principles of Computerized Tomographic Imaging. IEEE Press 1988, chapter 3.

    Examples
    --------
    >>> op = Radon(8, torch.arange(4) * (torch.pi / 4))
    >>> sinogram = op(torch.ones(8, 8))
    >>> sinogram.shape, sinogram.sum(0).round()
    (torch.Size([12, 4]), tensor([64., 64., 64., 64.]))
    >>> disc = (torch.cartesian_prod(*[torch.arange(64.0) - 31.5] * 2).norm(dim=1) < 20).reshape(64, 64).float()
    >>> scan = Radon(64, torch.arange(90) * (torch.pi / 90))
    >>> bool((scan.A_dagger(scan(disc)) - disc).square().mean().sqrt() < 0.1)
    True
    """

    def __init__(
        self,
        size: int,
        angles: Float[Tensor, " A"],
        geometry: str = "parallel",
        *,
        detectors: int | None = None,
        pixel_size: float = 1.0,
        spacing: float | None = None,
        source_distance: float | None = None,
        detector_distance: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_range(size, "size", 1, integer=True)
        check_tensor(angles, "angles", ndim=1, dtype="floating")
        check_option(geometry, "geometry", ("parallel", "fan"))
        check_option(dtype, "dtype", (torch.float32, torch.float64))
        check_range(pixel_size, "pixel_size", 0, closed="neither")
        radius = pixel_size * size / math.sqrt(2)
        source, magnification = _distances(geometry, source_distance, detector_distance, radius)
        step = pixel_size * magnification if spacing is None else check_range(spacing, "spacing", 0, closed="neither")
        if detectors is None:
            reach = radius if source is None else radius * source / math.sqrt(source**2 - radius**2)
            detectors = math.ceil(2 * reach * magnification / step - 1e-9)
            detectors += (detectors - size) % 2
        check_range(detectors, "detectors", 1, integer=True)
        super().__init__((size, size), (detectors, len(angles)))
        self.pixel_size, self.source = float(pixel_size), source
        self.step = step / magnification  # of a bin, as it is seen at the centre of the image
        self.angles = angles.detach().to("cpu", torch.float64)
        self.matrix = SparseMatrix(self._matrix(dtype))
        self._back: list[SparseMatrix] = []  # of a fan, once it is asked for; in a list, as it is no part of the state

    def A(self, x: Inexact[Tensor, "*batch n n"]) -> Inexact[Tensor, "*batch P A"]:
        """Project: images (..., size, size) to sinograms (..., P, A)."""
        P, A = self.out_shape
        return self.matrix.A(self.check_in(x).flatten(-2)).unflatten(-1, (A, P)).mT

    def A_adjoint(self, y: Inexact[Tensor, "*batch P A"]) -> Inexact[Tensor, "*batch n n"]:
        """Smear sinograms back along their rays: (..., P, A) to (..., size, size)."""
        return self.matrix.A_adjoint(self.check_out(y).mT.flatten(-2)).unflatten(-1, self.in_shape)

    def A_dagger(self, y: Inexact[Tensor, "*batch P A"], filter: str = "ramp") -> Inexact[Tensor, "*batch n n"]:
        """Reconstruct by filtered back-projection: (..., P, A) to (..., size, size).

        Parameters
        ----------
        y
            Sinograms.
        filter
            ``"ramp"`` (Ram and Lak's, sharp), or ``"hann"``, which also damps high frequencies, and with them noise.

        Raises
        ------
        ValueError
            If ``filter`` is unknown, or the angles of a fan do not go all the way round.

        Notes
        -----
        The filter is sampled in space, so that it keeps the mean right, and applied without wrapping. Angles need not
        be equally far apart: each is weighted by the turn that it stands for, of half a turn altogether (a fan: of a
        whole one). Where a range of angles is missing, what lies in it is missing in the image.
        """
        self.check_out(y)
        check_option(filter, "filter", ("ramp", "hann"))
        if self.source is not None:
            s = self._bins().to(y)[:, None]
            y = y * (self.source / (self.source**2 + s**2).sqrt())
        kernel = _ramp(self.out_shape[0], filter).to(y) / self.step
        P = self.out_shape[0]
        filtered = convolve(y.mT, kernel, mode="full")[..., P : 2 * P] * self._turns().to(y)[:, None]
        return self._backproject(filtered).unflatten(-1, self.in_shape)

    def _backproject(self, q: Tensor) -> Tensor:
        """Add up filtered projections (..., A, P) at the pixels, each where its ray meets the detector."""
        if self.source is None:
            return self.matrix.A_adjoint(q.flatten(-2)) * (self.step / self.pixel_size**2)
        if not self._back:
            self._back.append(SparseMatrix(self._matrix(self.matrix.values.dtype, back=True)))
        return self._back[0].to(q.device).A_adjoint(q.flatten(-2))

    def _bins(self) -> Tensor:
        """Centres of the detector's bins, as they are seen at the centre of the image."""
        P = self.out_shape[0]
        return (torch.arange(P, dtype=torch.float64) - (P - 1) / 2) * self.step

    def _turns(self) -> Tensor:
        """The turn that each angle stands for: half the way to its neighbours, of a circle on which a scan repeats."""
        whole = math.pi if self.source is None else 2 * math.pi
        if len(self.angles) == 1:
            return torch.full((1,), math.pi, dtype=torch.float64)
        sorted_angles, order = (self.angles % whole).sort()
        gaps = torch.cat([sorted_angles.diff(), sorted_angles[:1] + whole - sorted_angles[-1:]])
        usual = gaps[gaps > 1e-9].median()
        if self.source is not None and float(gaps.max()) > 3 * float(usual):
            raise ValueError(
                f"angles must go all the way round for a fan's filtered back-projection, got a gap of {gaps.max():.3g}"
            )
        gaps = gaps.clamp(max=3 * float(usual))  # a missing range is nobody's turn
        turns = torch.empty_like(gaps).scatter(0, order, (gaps + gaps.roll(1)) / 2)
        return turns if self.source is None else turns / 2

    def _matrix(self, dtype: torch.dtype, back: bool = False) -> Tensor:
        """The matrix, angle by angle, of shape (A * P, size * size); ``back``: what adds up a fan's projections."""
        n, (P, A) = self.in_shape[0], self.out_shape
        line = (np.arange(n) - (n - 1) / 2) * self.pixel_size
        x, y = np.tile(line, n), np.repeat(-line, n)  # to the right and upwards
        edges = (np.arange(P + 1) - P / 2) * self.step
        blocks = []
        for angle in self.angles.tolist():
            s, t = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
            if self.source is None:
                direction, at, cuts, far, pull = np.full_like(s, angle), s, edges, np.ones_like(s), np.ones_like(s)
            else:
                turn = np.arctan2(s, self.source + t)
                direction, at, far = angle - turn, turn, np.hypot(s, self.source + t)
                pull = (self.source / (self.source + t)) ** 2
                cuts = np.arctan(edges / self.source)
            sides = np.abs([np.cos(direction), np.sin(direction)]) * self.pixel_size
            wide, narrow = sides.max(0), sides.min(0)
            reach = (wide + narrow) / (2 * far)
            first, last = np.searchsorted(cuts, at - reach, side="right") - 1, np.searchsorted(cuts, at + reach)
            area, entries = self.pixel_size**2, []
            before = _shadow((cuts[first.clip(0)] - at) * far, wide, narrow)
            for bins in (first + k for k in range(int((last - first).max()))):
                low, high = bins.clip(0, P), (bins + 1).clip(0, P)
                after = _shadow((cuts[high] - at) * far, wide, narrow)
                share, before = after - before, after
                width = np.where(high > low, cuts[high] - cuts[low], 1)
                weight = share * (pull if back else area / (far * width))
                keep = (share > 1e-12).nonzero()[0]
                entries.append((weight[keep], bins[keep], keep))
            values, rows, columns = (np.concatenate(parts) for parts in zip(*entries))
            blocks.append(coo_matrix((values, (rows, columns)), (P, n * n)).tocsr())
        matrix = vstack(blocks, format="csr")
        crow, col, data = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data))
        return csr_tensor(crow, col, data.to(dtype), (A * P, n * n))


def _shadow(v: np.ndarray, wide: np.ndarray, narrow: np.ndarray) -> np.ndarray:
    """The part of a pixel's shadow below ``v``: a trapezoid, the convolution of two boxes of these widths."""
    u = np.minimum(np.abs(v), (wide + narrow) / 2)
    tail = ((wide + narrow) / 2 - u) ** 2 / (2 * wide * np.maximum(narrow, 1e-300))
    above = np.where(u <= (wide - narrow) / 2, 0.5 - u / wide, tail)
    return np.where(v < 0, above, 1 - above)


def _ramp(bins: int, filter: str) -> Tensor:
    """The ramp filter's samples at distances ``-bins..bins``, for bins of width one."""
    n = torch.arange(-bins - 1, bins + 2, dtype=torch.float64)
    h = torch.where(n % 2 == 1, -1 / (math.pi * n) ** 2, torch.where(n == 0, 0.25, 0.0))
    if filter == "hann":
        h = h / 2 + (h.roll(1) + h.roll(-1)) / 4
    return h[1:-1]


def _distances(
    geometry: str, source: float | None, detector: float | None, radius: float
) -> tuple[float | None, float]:
    """A fan's distance to its source and its magnification; none and 1 of a parallel beam."""
    given = {"source_distance": source, "detector_distance": detector}
    if geometry == "parallel":
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name} must be None for a parallel beam, got {value}")
        return None, 1.0
    for name, value in given.items():
        if value is None:
            raise ValueError(f"{name} must be given for a fan")
    check_range(detector, "detector_distance", 0)
    if not source > radius:  # type: ignore[operator]
        raise ValueError(f"source_distance must exceed {radius:.4g}, half the image's diagonal, got {source}")
    return float(source), (source + detector) / source  # type: ignore[operator, arg-type]
