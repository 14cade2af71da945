"""RDLEDM: dynamic MRI from few samples, without training, with a component that takes up errors in the image domain.

The series X and the error E are found together as the minimiser of

    1/2 ||M F S (X + E) - y||^2  +  a TV_space(X) + b TV_time(X)  +  sum_k c_k ||unfold_k(X)||_*  +  r ||E||_1

with the sampling mask M, the Fourier transform F of each frame, the coil sensitivities S, total variation in space and
in time, nuclear norms of unfoldings of X (by default that of the matrix whose rows are the frames), and moduli of
complex numbers throughout. A primal-dual iteration needs one Fourier transform and one inverse each time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Complex, Shaped
from torch import Tensor, nn

from hadamard.imaging._inputs import Physics, Weights, check_weights, measurements
from hadamard.imaging._operators import Part, Total, Unfold
from hadamard.imaging._primal_dual import Term, condat_vu
from hadamard.imaging._priors import LowRankPrior, TVPrior
from hadamard.operators import Coils, Fourier, LinearOperator, Masked, operator_norm
from hadamard.progress import progress_bar
from hadamard.proximal import soft
from hadamard.results import Solution, warn_short
from hadamard.spectral.fft import ifft_centred
from hadamard.validation import check_range, check_tensor

__all__ = ["RDLEDM", "CineReconstruction", "LowRankPrior", "TVPrior", "rdledm"]

Callback = Callable[[int, Tensor, float], None]

TV: Weights = MappingProxyType({"space": 6e-4, "time": 4e-3})
NUCLEAR: Weights = MappingProxyType({"casorati": 2e-4})
ERROR: Weights = MappingProxyType({"l1": 1e-2})

_RELAXATION = 1.8


@dataclass(frozen=True, kw_only=True)
class CineReconstruction(Solution):
    """A reconstructed series, and what was found to be error.

    Attributes
    ----------
    image
        The series X, with the rank of the measurements and one channel in the place of the coils.
    error
        The error component E of the same shape; zero where none was asked for.
    objective
        The objective after every tenth iteration and at the end, in units in which the adjoint reconstruction has
        largest modulus 1 (summed over a batch). ``value`` is the last one.
    """

    image: Tensor
    error: Tensor
    objective: tuple[float, ...]


def rdledm(
    y: Complex[Tensor, "..."],
    mask: Shaped[Tensor, "..."],
    sens: Complex[Tensor, "*batch c h w"] | None = None,
    *,
    tv: Weights = TV,
    nuclear: Weights = NUCLEAR,
    error: Weights = ERROR,
    max_iter: int = 200,
    tol: float = 1e-5,
    centred: bool = True,
    callback: Callback | None = None,
    progress: bool = False,
) -> CineReconstruction:
    """Reconstruct a dynamic MRI series from undersampled k-space.

    Parameters
    ----------
    y
        k-space of shape (B, C, T, H, W), (C, T, H, W) or (T, H, W): batch (for example slices), coils, frames, height,
        width. Complex; what ``mask`` leaves out is ignored.
    mask
        Zeros and ones, or booleans: (H, W) for all frames, (T, H, W), or (B, 1, T, H, W).
    sens
        Coil sensitivities of shape (C, H, W) or (B, C, H, W); needed where there is more than one coil.
    tv
        Weights of total variation by direction: ``"space"`` (isotropic), ``"time"``. ``None``: none.
    nuclear
        Weights of nuclear norms by unfolding: ``"casorati"`` (T x HW), ``"mode-h"`` (H x TW), ``"mode-w"`` (W x TH), in
        units of the expected norm of a matrix of that shape with independent entries of variance 1, so that a weight
        does not depend on the size. ``None``: none.
    error
        Weights of what the error component costs: ``"l1"`` (sparse errors), ``"fro"`` (half the squared norm), ``"tv"``
        (in space), ``"nuclear"`` (Casorati). ``None``: no error component, as in FTVNNR.
    max_iter
        Greatest number of iterations.
    tol
        Relative change of X and E together at which the iteration stops.
    centred
        Whether the zero frequency of ``y`` and ``mask`` and the origin of the image lie at index ``n // 2`` (as
        scanners' data usually have it) or at 0. The data never guesses.
    callback
        ``callback(iteration, image, objective)`` after every tenth iteration; ``image`` has shape (B, 1, T, H, W).
    progress
        Show a progress bar.

    Returns
    -------
    CineReconstruction
        ``image`` and ``error`` with the rank of ``y`` and one channel in the place of the coils, on the device and in
        the precision of ``y``. Differentiable in ``y``.

    Raises
    ------
    TypeError
        If ``y`` or ``sens`` is not complex.
    ValueError
        If shapes do not fit, a value is not finite, ``y`` is zero everywhere, a weight is negative or its name unknown.

    Warns
    -----
    UserWarning
        If a frame has no samples: it is then made up from its neighbours.
    sklearn.exceptions.ConvergenceWarning
        If ``max_iter`` iterations did not reach ``tol``.

    Notes
    -----
    Measurements are scaled so that the adjoint reconstruction has largest modulus 1 and the operator norm 1; weights
    are in these units and the result is scaled back: weights need no change from one scanner to the next. With one
    frame the terms that need several (``"time"``, ``"casorati"``) are dropped.

    The model family is that of Tan et al.: an error component in the image domain, total variation and nuclear norm
    each in two complementary dimensions, solved in primal-dual form. Only the paper's abstract could be read: the
    formulation, the scaling, the default weights and the iteration are this package's own. Without the error
    component, with space total variation and Casorati nuclear norm only, it is the model of Yao et al. (FTVNNR).
    A second unfolding (``"mode-h"``, ``"mode-w"``) has no weight by default: on the series that the defaults were
    tuned on, total variation left it nothing to add.

    The data term is one of the dual terms of Chambolle and Pock's iteration (over-relaxed, with a primal step that
    shrinks from 4 to 1/4) rather than a smooth term with a gradient step: the primal step is then free of the
    operator's norm, and a fraction of the iterations suffices.

    References
    ----------
    Junpeng Tan, Chunmei Qing, Xiangmin Xu, "Robust Depth Linear Error Decomposition with Double Total Variation and
    Nuclear Norm for Dynamic MRI Reconstruction", 2023, arXiv 2310.14934. Jiawen Yao, Zheng Xu, Xiaolei Huang, Junzhou
    Huang, "An efficient algorithm for dynamic MRI using low-rank and total variation regularizations", Medical Image
    Analysis, 2018.

    Examples
    --------
    >>> from hadamard.data.cine import acquire, beating_heart, kt_mask
    >>> series, mask = beating_heart(8, 32), kt_mask(8, 32, 32, acceleration=3)
    >>> result = rdledm(acquire(series, mask), mask)
    >>> result.image.shape, result.converged
    (torch.Size([8, 32, 32]), True)
    >>> bool((result.image - series).norm() < 0.15 * series.norm())
    True
    """
    kspace, sampled = measurements(y, mask, sens)
    dims = (-2, -1)
    if centred:  # the same measurements with the zero frequency at index 0: no shifts inside the iteration
        kspace = torch.fft.fft2(ifft_centred(kspace, dims), norm="ortho")
        sampled = torch.fft.ifftshift(sampled, dims)
    op: LinearOperator = Masked(Fourier(kspace.shape[1:], dims, centred=False), sampled)
    norm = 1.0
    if sens is not None:
        op = op @ Coils(sens, frames=kspace.shape[2])
        norm = float(sens.detach().abs().square().sum(-3).max().sqrt())
    model = RDLEDM(tv=tv, nuclear=nuclear, error=error, max_iter=max_iter, tol=tol)
    return _with_rank(model._solve(kspace * sampled, op, norm, callback, progress), y.ndim)


class RDLEDM(nn.Module):
    """RDLEDM for any linear physics: a reconstructor that is called with measurements and the operator that made them.

    Parameters
    ----------
    tv, nuclear, error, max_iter, tol
        As in :func:`rdledm`.

    Examples
    --------
    >>> from hadamard.imaging import RDLEDM
    >>> class Fade:
    ...     def A(self, x):
    ...         return 0.5 * x
    ...
    ...     A_adjoint = A
    >>> series = torch.ones(1, 1, 2, 4, 4, dtype=torch.complex64)
    >>> RDLEDM(error=None, nuclear=None)(0.5 * series, Fade()).shape
    torch.Size([1, 1, 2, 4, 4])
    """

    def __init__(
        self,
        *,
        tv: Weights = TV,
        nuclear: Weights = NUCLEAR,
        error: Weights = ERROR,
        max_iter: int = 200,
        tol: float = 1e-5,
    ) -> None:
        super().__init__()
        self.tv = check_weights(tv, "tv", ("space", "time"))
        self.nuclear = check_weights(nuclear, "nuclear", ("casorati", "mode-h", "mode-w"))
        self.error = check_weights(error, "error", ("l1", "fro", "tv", "nuclear"))
        if error and not self.error:
            raise ValueError("error must have a positive weight, or be None for no error component, got zeros only")
        self.max_iter = check_range(max_iter, "max_iter", 1)
        self.tol = check_range(tol, "tol", 0)

    def forward(self, y: Shaped[Tensor, "..."], physics: Any) -> Shaped[Tensor, "b c t h w"]:
        """Reconstruct the series that ``physics`` measured.

        Parameters
        ----------
        y
            Measurements, batch first.
        physics
            Has ``A`` and ``A_adjoint``, as deepinv's linear physics do; ``A_adjoint(y)`` is a complex series of shape
            (B, 1, T, H, W), or a real one of shape (B, 2, T, H, W) whose channels are real and imaginary part, as
            ``deepinv.physics.DynamicMRI`` has it (``y`` then has such channels too). Its norm is estimated.

        Returns
        -------
        Tensor
            The series without the error component, in the layout of ``A_adjoint(y)``.
        """
        image = self.solve(y, physics).image
        return image if y.is_complex() else torch.cat([image.real, image.imag], dim=1)

    def solve(
        self, y: Shaped[Tensor, "..."], physics: Any, *, callback: Callback | None = None, progress: bool = False
    ) -> CineReconstruction:
        """Reconstruct, and return the (complex) error component and the objective as well; see :func:`rdledm`."""
        check_tensor(y, "y")
        op = Physics(physics, y)
        kspace = y if y.is_complex() else torch.complex(y[:, 0], y[:, 1])
        return self._solve(kspace, op, 1.01 * operator_norm(op), callback, progress)

    def _solve(
        self, y: Tensor, op: LinearOperator, norm: float, callback: Callback | None, progress: bool
    ) -> CineReconstruction:
        """Scale, set up the terms, iterate, scale back; ``op`` maps (B, 1, T, H, W) to the shape of ``y``."""
        adjoint = op.A_adjoint(y) / norm**2
        scale = adjoint.abs().amax((1, 2, 3, 4), keepdim=True)
        if not scale.any():
            raise ValueError("y must not be zero everywhere: nothing was measured")
        scale = torch.where(scale > 0, scale, 1)
        y = y / (norm * scale.reshape(-1, *(1,) * (y.ndim - 1)))
        start = adjoint / scale
        parts = 2 if self.error else 1
        priors = self._priors(adjoint.shape[-4:])  # type: ignore[arg-type]
        shape = (parts, *adjoint.shape[2:])
        total = Total((*op.in_shape[:-4], *shape))
        data = (op if norm == 1 else (1 / norm) * op) @ total
        terms = [Term(lambda p, s: (p - s * y) / (1 + s), data, float(parts))]
        for part, prior in priors:
            measured = prior.operator((1, *shape[1:])) @ Part(shape, part)
            terms.append(Term(_dual_projection(prior), measured, prior.norm_squared))
        trace: list[float] = []
        with progress_bar("rdledm", self.max_iter, progress) as advance:

            def watch(iteration: int, x: Tensor, change: float) -> None:
                trace.append(self._objective(x, data, y, priors))
                advance(iteration, trace[-1])
                if callback is not None:
                    callback(iteration, x[:, :1] * scale, trace[-1])

            solution = condat_vu(
                None, 0.0, self._prox, terms, torch.cat([start, torch.zeros_like(start)], 1)[:, :parts],
                step=_step, relaxation=_RELAXATION, tol=self.tol, max_iter=self.max_iter, callback=watch,
            )  # fmt: skip
        if not solution.converged:
            warn_short(f"rdledm {solution.message}")
        found = solution.value * scale
        return CineReconstruction(
            value=trace[-1], iterations=solution.iterations, residual=solution.residual, converged=solution.converged,
            message=solution.message, image=found[:, :1], objective=tuple(trace),
            error=found[:, 1:] if self.error else torch.zeros_like(found),
        )  # fmt: skip

    def _priors(self, shape: tuple[int, int, int, int]) -> list[tuple[int, TVPrior | LowRankPrior]]:
        """The priors, each with the part (0: series, 1: error) that it concerns."""
        several = shape[1] > 1
        tv = [(0, d, w) for d, w in self.tv.items() if several or d != "time"]
        nuclear = [(0, d, w) for d, w in self.nuclear.items() if several or d != "casorati"]
        if "tv" in self.error:
            tv.append((1, "space", self.error["tv"]))
        if "nuclear" in self.error:
            nuclear.append((1, "casorati", self.error["nuclear"]))
        norms = {mode: sum(n**0.5 for n in Unfold(shape, mode).out_shape) for _, mode, _ in nuclear}
        return [(part, TVPrior(along, weight)) for part, along, weight in tv] + [
            (part, LowRankPrior(mode, weight * norms[mode])) for part, mode, weight in nuclear
        ]

    def _prox(self, x: Tensor, step: float) -> Tensor:
        """The proximal map of what the error costs by itself; the series is left as it is."""
        l1, fro = self.error.get("l1", 0.0), self.error.get("fro", 0.0)
        if not (l1 or fro):
            return x
        image, error = x.split(1, dim=1)
        return torch.cat([image, soft(error, step * l1) / (1 + step * fro)], dim=1)

    @torch.no_grad()
    def _objective(
        self, x: Tensor, data: LinearOperator, y: Tensor, priors: list[tuple[int, TVPrior | LowRankPrior]]
    ) -> float:
        total = 0.5 * torch.linalg.vector_norm(data.A(x) - y) ** 2
        for part, prior in priors:
            total = total + prior.value(x[:, part : part + 1]).sum()
        if self.error:
            error = x[:, 1:]
            total = total + self.error.get("l1", 0.0) * error.abs().sum()
            total = total + 0.5 * self.error.get("fro", 0.0) * torch.linalg.vector_norm(error) ** 2
        return float(total)


def _dual_projection(prior: TVPrior | LowRankPrior) -> Callable[[Tensor, float], Tensor]:
    return lambda p, _: prior.project_dual(p)


def _step(iteration: int) -> float:
    """Large steps find the image, small ones then settle the edges; constant from iteration 190 on."""
    return max(4 * 0.5 ** (max(iteration - 30, 0) / 40), 0.25)


def _with_rank(result: CineReconstruction, ndim: int) -> CineReconstruction:
    """Drop the leading dimensions that the measurements did not have."""
    from dataclasses import replace

    lead = (0,) * (5 - ndim)
    return replace(result, image=result.image[lead], error=result.error[lead])
