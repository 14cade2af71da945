"""Activations that keep norms: they sort small groups, or reflect them into a half-space."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.certification.quadratic_constraints import QuadraticConstraint, householder, sorting
from hadamard.validation import check_range

__all__ = ["GroupSort", "Householder", "MaxMin"]


class GroupSort(nn.Module):
    """Sort each group of consecutive entries in descending order.

    Parameters
    ----------
    group_size
        Entries of a group; it must divide the size of ``dim``.
    dim
        Where the channels are: 1, behind the batch, as in torch's layers for images.

    References
    ----------
    C. Anil, J. Lucas, R. Grosse. Sorting out Lipschitz function approximation. ICML 2019, arXiv:1811.05381.

    Examples
    --------
    >>> GroupSort(3)(torch.tensor([[1.0, 3.0, 2.0, 4.0, 6.0, 5.0]]))
    tensor([[3., 2., 1., 6., 5., 4.]])
    """

    def __init__(self, group_size: int, dim: int = 1) -> None:
        super().__init__()
        self.group_size = check_range(group_size, "group_size", 2, integer=True)
        self.dim = dim

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Sort the groups."""
        groups, dim = _grouped(x, self.dim, self.group_size)
        return torch.sort(groups, dim + 1, descending=True).values.flatten(dim, dim + 1)

    def quadratic_constraint(self, width: int, form: str) -> QuadraticConstraint:
        """Return what :func:`hadamard.certification.lipschitz_bound` uses of it."""
        return sorting(width, self.group_size, form)

    def extra_repr(self) -> str:
        """Group size and dimension."""
        return f"{self.group_size}, dim={self.dim}"


class MaxMin(GroupSort):
    """Replace each pair of consecutive entries by its larger and its smaller one.

    Parameters
    ----------
    dim
        Where the channels are, of which there must be an even number.

    Examples
    --------
    >>> MaxMin()(torch.tensor([[1.0, 3.0, 5.0, 4.0]]))
    tensor([[3., 1., 5., 4.]])
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__(2, dim)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Order the pairs."""
        groups, dim = _grouped(x, self.dim, 2)
        a, b = groups.unbind(dim + 1)
        return torch.stack([torch.maximum(a, b), torch.minimum(a, b)], dim + 1).flatten(dim, dim + 1)

    def extra_repr(self) -> str:
        """Dimension."""
        return f"dim={self.dim}"


class Householder(nn.Module):
    """Keep a group ``z`` where ``v @ z > 0``, and reflect it, ``z - 2 v (v @ z)``, where not.

    Parameters
    ----------
    channels
        Size of ``dim``.
    group_size
        Entries of a group; it must divide ``channels``.
    dim
        Where the channels are.
    v
        Directions of shape (channels / group_size, group_size), of any lengths above 0; by default those that make it
        :class:`MaxMin`, or differences of the first two entries in larger groups. They are learned.

    References
    ----------
    S. Singla, S. Singla, S. Feizi. Improved deterministic l2 robustness on CIFAR-10 and CIFAR-100. ICLR 2022,
    arXiv:2108.04062.

    Examples
    --------
    >>> Householder(4)(torch.tensor([[1.0, 3.0, 5.0, 4.0]]))
    tensor([[3.0000, 1.0000, 5.0000, 4.0000]], grad_fn=<...>)
    """

    def __init__(self, channels: int, group_size: int = 2, dim: int = 1, v: Tensor | None = None) -> None:
        super().__init__()
        check_range(channels, "channels", 2, integer=True)
        self.group_size = check_range(group_size, "group_size", 2, integer=True)
        if channels % group_size:
            raise ValueError(f"group_size must divide channels, got {group_size} and {channels}")
        self.dim = dim
        shape = (channels // group_size, group_size)
        if v is None:
            v = torch.zeros(shape)
            v[:, 0], v[:, 1] = 1.0, -1.0
        if tuple(v.shape) != shape:
            raise ValueError(f"v must have shape {shape}, got {tuple(v.shape)}")
        if not bool((torch.linalg.vector_norm(v, dim=1) > 0).all()):
            raise ValueError("v must have directions of length above 0")
        self.v = nn.Parameter(v.detach().clone())

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Reflect the groups that lie on the far side."""
        groups, dim = _grouped(x, self.dim, self.group_size)
        if groups.shape[dim] != len(self.v):
            raise ValueError(f"x must have {self.v.numel()} channels in dimension {dim}, got shape {tuple(x.shape)}")
        v = nn.functional.normalize(self.v, dim=1).to(x.dtype)
        v = v.reshape(*v.shape, *[1] * (groups.ndim - dim - 2))
        side = (v * groups).sum(dim + 1, keepdim=True)
        return (groups + 2 * v * torch.relu(-side)).flatten(dim, dim + 1)

    def quadratic_constraint(self, width: int, form: str) -> QuadraticConstraint:
        """Return what :func:`hadamard.certification.lipschitz_bound` uses of it."""
        if width != self.v.numel():
            raise ValueError(f"Householder has {self.v.numel()} channels, the layer before it gives {width}")
        return householder(self.v.detach().double().cpu().numpy().astype(np.float64), form)

    def extra_repr(self) -> str:
        """Channels, group size and dimension."""
        return f"{self.v.numel()}, group_size={self.group_size}, dim={self.dim}"


def _grouped(x: Tensor, dim: int, size: int) -> tuple[Tensor, int]:
    """Channels as (groups, members), and which dimension that is, counted from the left."""
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"x must have a dimension {dim}, got shape {tuple(x.shape)}")
    dim %= x.ndim
    if x.shape[dim] % size:
        raise ValueError(f"groups of {size} must divide dimension {dim} of x, got shape {tuple(x.shape)}")
    return x.unflatten(dim, (-1, size)), dim
