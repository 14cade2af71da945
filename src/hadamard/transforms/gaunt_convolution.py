"""Equivariant convolution: the Gaunt product of features with the spherical harmonics of edges.

The filter of an edge is a function of the angle to it alone, ``sum_l w_l c_l P_l(cos)``: at a point of the grid it
costs a Legendre sum of L terms instead of the (L+1)^2 of a general function, and no harmonics of the edge are made.
That is also what rotating every edge onto the polar axis is for (eSCN); here nothing has to be rotated, and nothing
is singular for an edge along that axis.
"""

from math import pi
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from hadamard.transforms._gaunt_backends import Grid
from hadamard.transforms._spherical import unit
from hadamard.transforms.gaunt_tensor_product import GauntTensorProduct
from hadamard.validation import check_option, check_range

__all__ = ["GauntConv"]


class GauntConv(GauntTensorProduct):
    """Convolve features with edge directions: ``GauntTensorProduct(x, spherical_harmonics(edge_vec), weight)`` in one.

    Takes the place of e3nn's ``o3.TensorProduct(irreps_in, irreps_sh, ..., "uvu")`` in a message: ``x`` are features
    gathered at one end of each edge, ``weight`` comes from a network of its length. At degree 1 e3nn's is faster.

    Parameters
    ----------
    irreps_in
        Irreps of the features, as for :class:`GauntTensorProduct`.
    lmax
        Largest degree of the filter.
    irreps_out, normalization, path_normalization, device, dtype
        As for :class:`GauntTensorProduct`.
    weights
        ``"degree"`` or ``None``, as for :class:`GauntTensorProduct`.
    internal_weights
        Whether the weights are parameters; otherwise they are given to every call, as is usual in a convolution.

    Attributes
    ----------
    irreps_in1, irreps_in2, irreps_out
        Of the features, the filter and the result, as ``e3nn.o3.Irreps``.
    weight_numel
        Number of weights: for each degree of the features, of the filter and of the output, ``channels`` each.

    Raises
    ------
    ValueError, ImportError
        As for :class:`GauntTensorProduct`.

    References
    ----------
    Luo, Chen, Krishnapriyan, ICLR 2024, arXiv:2401.10216, with the filter evaluated where the paper rotates.

    Examples
    --------
    >>> conv = GauntConv("8x0e + 8x1o", lmax=2, irreps_out=2)
    >>> edges, features = torch.randn(20, 3), torch.randn(20, 32)
    >>> conv(features, edges, torch.randn(20, conv.weight_numel)).shape
    torch.Size([20, 72])
    """

    _product: Grid
    _operand = "edge_vec"
    _whole = False

    def __init__(
        self,
        irreps_in: Any,
        lmax: int,
        irreps_out: Any = None,
        *,
        normalization: str = "component",
        path_normalization: str = "element",
        weights: str | None = "degree",
        internal_weights: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_range(lmax, "lmax", 0, integer=True)
        check_option(weights, "weights", ("degree", None))
        super().__init__(
            irreps_in, [(1, (l, (-1) ** l)) for l in range(lmax + 1)], irreps_out, normalization=normalization,
            path_normalization=path_normalization, weights=weights, internal_weights=internal_weights, backend="grid",
            device=device, dtype=dtype,
        )  # fmt: skip
        self._dims = (self._dims[0], 3, self._dims[2])
        sizes = unit(normalization, self._in2)
        self._zonal = [sizes[l] ** 2 * (2 * l + 1) / (4 * pi) for l in self._in2]  # sum_m Y_lm Y_lm' by P_l

    def forward(
        self,
        x: Float[Tensor, "*#batch in1"],
        edge_vec: Float[Tensor, "*#batch 3"],
        weight: Float[Tensor, "*#batch numel"] | None = None,
    ) -> Float[Tensor, "*batch out"]:
        """Convolve.

        Parameters
        ----------
        x
            Irreps in e3nn's layout, (..., irreps_in.dim).
        edge_vec
            Edges as (x, y, z), of any length; an edge of length 0 has degree 0 only.
        weight
            Weights of shape (weight_numel,) for all or (..., weight_numel) for each edge.

        Returns
        -------
        Tensor
            Irreps ``irreps_out``.

        Raises
        ------
        ValueError, TypeError
            As for :class:`GauntTensorProduct`.
        """
        return super().forward(x, edge_vec, weight)

    def _multiply(self, x: Tensor, edge_vec: Tensor, w: Tensor) -> Tensor:
        w1, w2, w3 = self._weights(w) or (None, None, None)
        zonal = self._legendre(edge_vec)
        even, odd = zonal[:, ::2], zonal[:, 1::2]
        if w2 is None:
            return self._product.multiply(x, (even.sum(1, keepdim=True), odd.sum(1, keepdim=True)), w1, w3)
        return self._product.multiply(x, (w2[:, ::2].mT @ even, w2[:, 1::2].mT @ odd), w1, w3)

    def _legendre(self, edge_vec: Tensor) -> Tensor:
        """The filter's degrees at the points, (rows, lmax + 1, P), by the recurrence of the Legendre polynomials.

        Each is r^l P_l(cos), a polynomial of the edge: without an edge, r = 0, only degree 0 is left.
        """
        unit_vec = normalize(edge_vec, dim=-1)
        cos, square = unit_vec @ self._product["points"], unit_vec.square().sum(-1, keepdim=True)
        terms = [torch.ones_like(cos), cos]
        for l in range(1, max(self._in2)):
            terms.append(((2 * l + 1) * cos * terms[l] - l * square * terms[l - 1]) / (l + 1))
        return torch.stack([size * term for size, term in zip(self._zonal, terms)], dim=1)
