"""Feature maps ``phi`` with ``phi(x) . phi(y)`` equal to ``exp(x . y)``: in the mean over draws, or to a degree.

A map takes points of shape (..., n, d) to features of shape (..., n, r). With it, a sum over all pairs of points
becomes a product of two thin matrices.
"""

from functools import lru_cache
from itertools import chain
from math import comb, exp, lgamma, log

import torch
from jaxtyping import Float
from scipy.special import hyp1f1
from torch import Tensor, nn

from hadamard.validation import check_range

__all__ = ["Monomials", "PositiveRandom", "rank", "taylor_degree", "taylor_error"]


class PositiveRandom(nn.Module):
    """Positive random features: ``E[phi(x) . phi(y)] = exp(x . y)``, and no feature is ever negative.

    ``phi(x) = exp(w x - |x|^2 / 2) / sqrt(r)`` with one standard normal vector ``w`` a feature.

    Parameters
    ----------
    dim
        Dimension d of the points.
    num_features
        Number r of features. The relative error falls as ``1 / sqrt(r)`` and grows with
        ``exp(|x + y|^2 / 2)``: keep the points short.
    orthogonal
        Draw the vectors orthogonal to each other in blocks of d, each still standard normal by itself: less
        variance at the same cost.
    generator
        Source of the draw.
    device, dtype
        Of the buffer ``projection``, shape (r, d).

    References
    ----------
    K. Choromanski et al., "Rethinking Attention with Performers", ICLR 2021, arXiv:2009.14794.

    Examples
    --------
    >>> phi = PositiveRandom(4, 5000, generator=torch.Generator().manual_seed(0))
    >>> x = torch.full((1, 4), 0.25)
    >>> (phi(x) @ phi(-x).mT).item(), torch.exp(-x @ x.mT).item()
    (0.77..., 0.77...)
    """

    projection: Tensor

    def __init__(
        self,
        dim: int,
        num_features: int,
        *,
        orthogonal: bool = True,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = check_range(dim, "dim", 1, integer=True)
        self.num_features = check_range(num_features, "num_features", 1, integer=True)
        self.orthogonal = orthogonal
        self.register_buffer("projection", torch.empty(num_features, dim, device=device, dtype=dtype))
        self.redraw(generator)

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draw the vectors anew."""
        shape, source = (self.num_features, self.dim), generator.device if generator else "cpu"
        w = torch.randn(shape, generator=generator, dtype=torch.float64, device=source)
        if self.orthogonal:
            blocks = -(-self.num_features // self.dim)
            square = torch.randn(
                blocks, self.dim, self.dim, generator=generator, dtype=torch.float64, device=source
            )  # the lengths of w stay, its directions become rows of Haar matrices
            q, r = torch.linalg.qr(square)
            rows = (q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]).flatten(0, 1)[: self.num_features]
            w = w.norm(dim=-1, keepdim=True) * rows
        self.projection.copy_(w)

    def forward(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n r"]:
        """The features of ``x``; they overflow where ``|x|`` is large (:meth:`scaled` does not)."""
        features, log_scale = self.scaled(x)
        return features * log_scale.exp()[..., None]

    def scaled(self, x: Float[Tensor, "*batch n d"]) -> tuple[Float[Tensor, "*batch n r"], Float[Tensor, "*batch n"]]:
        """The features of each point over their largest, and the logarithm of what they were divided by.

        In attention the scale of a query cancels, and those of the keys matter only relative to each other, so
        that nothing overflows.
        """
        logits = x @ self.projection.to(x).mT
        largest = logits.detach().amax(-1)
        log_scale = largest - x.square().sum(-1) / 2 - log(self.num_features) / 2
        return (logits - largest[..., None]).exp(), log_scale

    def extra_repr(self) -> str:
        """The options that differ between instances."""
        return f"{self.dim}, {self.num_features}, orthogonal={self.orthogonal}"


class Monomials(nn.Module):
    """All monomials up to a degree, weighted so that products of features sum to the Taylor series of exp.

    With ``s`` maps of points ``x, y, ..., z``,
    ``sum_r phi(x)_r phi(y)_r ... phi(z)_r = P(sum_a x_a y_a ... z_a)``, where ``P(u) = sum_t u^t / t!`` up to
    ``degree``. An even degree keeps ``P`` positive everywhere.

    Parameters
    ----------
    degree
        Highest total degree, at least 0.
    factors
        Number ``s`` of maps that are multiplied; 2 for the ordinary inner product.

    Notes
    -----
    The number of features is :func:`rank` of the dimension and the degree: it explodes with both.

    Examples
    --------
    >>> phi, x, y = Monomials(2), torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.5]])
    >>> (phi(x) @ phi(y).mT).item(), 1 + 1.5 + 1.5**2 / 2
    (3.625, 3.625)
    >>> phi(x).shape
    torch.Size([1, 6])
    """

    def __init__(self, degree: int, factors: int = 2) -> None:
        super().__init__()
        self.degree = check_range(degree, "degree", 0, integer=True)
        self.factors = check_range(factors, "factors", 1, integer=True)

    def forward(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n r"]:
        """The weighted monomials of each point, by degree."""
        d = x.shape[-1]
        level, starts = torch.ones_like(x[..., :1]), [0] * d  # monomials of one degree, and where those in x_a.. start
        levels = [level]
        for _ in range(self.degree):
            parts = [x[..., a, None] * level[..., starts[a] :] for a in range(d)]
            level, starts = torch.cat(parts, -1), _starts([part.shape[-1] for part in parts])
            levels.append(level)
        weights = torch.tensor(_log_weights(d, self.degree), dtype=torch.float64, device=x.device) / self.factors
        return torch.cat(levels, -1) * weights.exp().to(x.dtype)

    def extra_repr(self) -> str:
        """The options that differ between instances."""
        return f"{self.degree}, factors={self.factors}"


def rank(d: int, degree: int) -> int:
    """Count the monomials in ``d`` variables up to ``degree``: the number of features of :class:`Monomials`.

    Examples
    --------
    >>> rank(4, 4), rank(8, 4), rank(16, 4)
    (70, 495, 4845)
    """
    check_range(d, "d", 1, integer=True)
    check_range(degree, "degree", 0, integer=True)
    return comb(d + degree, degree)


def taylor_error(bound: float, degree: int) -> float:
    """Bound the relative error of the Taylor polynomial of exp on ``[-bound, bound]``; for an even degree, sharply.

    The remainder at ``x``, divided by ``exp(x)``, is the integral of ``exp(-u) u^degree / degree!`` from 0 to ``x``,
    which is largest in size at ``-bound``. Lagrange's form of it, ``exp(bound) bound^(degree + 1) / (degree + 1)!``,
    is never smaller.

    Parameters
    ----------
    bound
        Largest ``|x|``, at least 0.
    degree
        Degree of the polynomial.

    Examples
    --------
    >>> round(taylor_error(1.0, 4), 6)  # exp(1) P(-1) - 1
    0.019356
    """
    check_range(bound, "bound", 0)
    check_range(degree, "degree", 0, integer=True)
    if bound == 0:
        return 0.0
    size = (degree + 1) * log(bound) - lgamma(degree + 2)
    growth = float(hyp1f1(degree + 1, degree + 2, bound)) if bound < 600 else float("inf")
    return exp(size) * growth if size < 700 else float("inf")


def taylor_degree(bound: float, eps: float) -> int:
    """The least even degree at which the Taylor polynomial of exp has a relative error of ``eps`` at most.

    Parameters
    ----------
    bound
        The polynomial is used on ``[-bound, bound]``.
    eps
        Relative error, above 0.

    Examples
    --------
    >>> [taylor_degree(bound, 1e-3) for bound in (0.1, 1.0, 4.0)]
    [2, 6, 18]
    """
    check_range(bound, "bound", 0, 500)
    check_range(eps, "eps", 0, closed="neither")
    degree = 0
    while taylor_error(bound, degree) > eps:
        degree += 2
    return degree


def _starts(sizes: list[int]) -> list[int]:
    return [sum(sizes[:a]) for a in range(len(sizes))]


@lru_cache(maxsize=64)
def _log_weights(d: int, degree: int) -> tuple[float, ...]:
    """``-log(alpha!)`` of every multi-index, in the order in which :class:`Monomials` lists them."""
    level: list[tuple[int, ...]] = [(0,) * d]
    starts, weights = [0] * d, [0.0]
    for _ in range(degree):
        parts = [[(*m[:a], m[a] + 1, *m[a + 1 :]) for m in level[starts[a] :]] for a in range(d)]
        level, starts = list(chain.from_iterable(parts)), _starts([len(part) for part in parts])
        weights += [-sum(lgamma(k + 1) for k in m) for m in level]
    return tuple(weights)
