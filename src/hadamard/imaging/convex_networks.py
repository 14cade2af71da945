"""Input-convex networks: functions with many parameters that are convex in their input, whatever was learned."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.fft import dct
from torch import Tensor, nn

from hadamard.validation import check_range, check_tensor

__all__ = ["ICNN", "PatchICNN"]


class ICNN(nn.Module):
    """A fully connected network whose output is a smooth convex function of its input.

    ``z_1 = act(A_0 y + b_0)``, ``z_k = act(W_k z_{k-1} + H_k y + b_k)`` and ``psi(y) = <w, z_K> + <a, y>``, where
    ``act`` is the softplus with sharpness ``beta``. It is convex because every entry of ``W_k`` and ``w`` is at least 0
    and the softplus is convex and increasing; it has derivatives of every order, so that its gradient is smooth. The
    other weights are free.

    Parameters
    ----------
    in_dim
        Size of the input vectors.
    hidden
        Widths of the hidden layers.
    beta
        Sharpness of ``act(x) = log(1 + exp(beta x)) / beta``, above 0; large values come close to a ReLU.
    squares
        Add ``<w', z_1> + <q, z_1^2> / 2`` with nonnegative ``w'`` and ``q``: what grows quadratically has a gradient
        that follows the input, which ``<w, z_K>`` can only imitate by many saturated units.
    generator
        Draws the initial weights.

    Raises
    ------
    ValueError
        If a size or ``beta`` is not positive, or loaded weights break convexity.

    References
    ----------
    B. Amos, L. Xu, J. Z. Kolter. Input Convex Neural Networks. ICML 2017, arXiv:1609.07152.

    Examples
    --------
    >>> psi = ICNN(2, (16, 16), generator=torch.Generator().manual_seed(0))
    >>> a, b = torch.zeros(1, 2), torch.ones(1, 2)
    >>> bool(psi((a + b) / 2) <= (psi(a) + psi(b)) / 2)
    True
    """

    def __init__(
        self,
        in_dim: int,
        hidden: Sequence[int] = (50, 50, 50, 50),
        *,
        beta: float = 10.0,
        squares: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("in_dim", in_dim), *(("hidden", width) for width in hidden)):
            check_range(value, name, 1, integer=True)
        if not hidden:
            raise ValueError("hidden must name at least one layer, got none")
        self.in_dim, self.beta = in_dim, float(check_range(beta, "beta", 0, closed="neither"))

        def uniform(*shape: int, low: float = 0.0, high: float) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(low, high, generator=generator))

        bound = in_dim**-0.5
        self.free = nn.ParameterList([uniform(width, in_dim, low=-bound, high=bound) for width in hidden])
        self.bias = nn.ParameterList([uniform(width, low=-bound, high=bound) for width in hidden])
        self.core = nn.ParameterList([uniform(n, m, high=2 / m) for m, n in pairwise(hidden)])
        self.head = uniform(hidden[-1], high=2 / hidden[-1])
        self.affine = nn.Parameter(torch.zeros(in_dim))
        self.first_head = nn.Parameter(torch.zeros(hidden[0])) if squares else None
        self.first_square = nn.Parameter(torch.zeros(hidden[0])) if squares else None
        self.register_load_state_dict_post_hook(_refuse_negative)

    def forward(self, y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Evaluate the function at each vector of a batch."""
        check_tensor(y, "y", dtype="floating", shape=(self.in_dim,), finite=False)
        z = self._act(F.linear(y, self.free[0], self.bias[0]))
        value = y @ self.affine
        if self.first_head is not None and self.first_square is not None:
            value = value + z @ self.first_head + z.square() @ self.first_square / 2
        for free, bias, core in zip(self.free[1:], self.bias[1:], self.core):
            z = self._act(F.linear(z, core) + F.linear(y, free, bias))
        return value + z @ self.head

    def nonnegative(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name the parameters on which convexity rests."""
        for name, parameter in self.named_parameters():
            if name.startswith(("core", "head", "first_")):
                yield name, parameter

    @torch.no_grad()
    def project_(self) -> "ICNN":
        """Set negative entries of the constrained weights to 0; to be called after each step of an optimizer."""
        for _, parameter in self.nonnegative():
            parameter.clamp_(min=0)
        return self

    def _act(self, x: Tensor) -> Tensor:
        return F.softplus(x, beta=self.beta)


class PatchICNN(nn.Module):
    """A convex function of grey pictures of any size: the sum of one small ICNN over overlapping patches.

    Before training its gradient shrinks the coefficients of every patch in the discrete cosine basis towards 0, which
    is a denoiser already; training moves the filters, the thresholds, and the second layer that couples them.

    Parameters
    ----------
    hidden
        Units of the second layer, which sees all coefficients of a patch.
    size, stride
        Side of the square patches in pixels and the distance between neighbours; ``stride`` is a power of two, divides
        ``size``, and their difference is even.
    beta
        Sharpness of the softplus.
    noise_level
        Standard deviation of the noise that the initial thresholds are made for.
    generator
        Draws the initial weights.

    Raises
    ------
    ValueError
        If a size does not fit, or a picture is not one grey channel of at least ``size`` by ``size`` pixels.

    Notes
    -----
    The picture is continued by reflection (the edge pixel is repeated), so that each pixel lies in
    ``(size / stride)^2`` patches. A side that ``stride`` does not divide is mirrored as a whole first, which doubles
    the work. The paper's networks are strided convolutions with a global mean, for one image size; the sum over patches
    is the same kind of network (one convolution, then 1x1 convolutions) with a gradient that does not depend on the
    size. The first layer enters with its squares (see :class:`ICNN`), and training starts from a known transform.

    Examples
    --------
    >>> psi = PatchICNN(8, generator=torch.Generator().manual_seed(0))
    >>> psi(torch.rand(3, 1, 17, 20)).shape
    torch.Size([3])
    """

    def __init__(
        self,
        hidden: int = 64,
        *,
        size: int = 8,
        stride: int = 2,
        beta: float = 100.0,
        noise_level: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_range(size, "size", 2, integer=True)
        check_range(stride, "stride", 1, size, integer=True)
        check_range(noise_level, "noise_level", 0, closed="neither")
        if size % stride or (size - stride) % 2 or stride & (stride - 1):
            raise ValueError(
                f"stride must be a power of two, divide size and leave an even difference, got {stride} for size {size}"
            )
        self.size, self.stride = size, stride
        self.network = ICNN(size * size, (2 * size * size, hidden), beta=beta, squares=True, generator=generator)
        self._start_as_shrinkage(noise_level)

    def forward(self, y: Float[Tensor, "batch 1 height width"]) -> Float[Tensor, " batch"]:
        """Evaluate the function at each picture."""
        check_tensor(y, "y", dtype="floating", ndim=4, shape=(1, None, None), finite=False)
        if min(y.shape[-2:]) < self.size:
            raise ValueError(f"y must be at least {self.size} by {self.size} pixels, got shape {tuple(y.shape)}")
        overlap, copies = (self.size - self.stride) // 2, 1
        for dim in (-2, -1):
            while y.shape[dim] % self.stride:
                y, copies = torch.cat([y, y.flip(dim)], dim), 2 * copies
            y = _reflect(y, dim, overlap)
        patches = F.unfold(y, self.size, stride=self.stride).transpose(1, 2)
        return self.network(patches.reshape(-1, self.size**2)).unflatten(0, (len(y), -1)).sum(1) / copies

    def project_(self) -> "PatchICNN":
        """Set negative entries of the constrained weights to 0; to be called after each step of an optimizer."""
        self.network.project_()
        return self

    def slow_parameters(self) -> list[nn.Parameter]:
        """List the weights that carry the scale of the picture, which want a tenth of the others' learning rate."""
        assert self.network.first_square is not None
        return [self.network.free[0], self.network.first_square]

    @torch.no_grad()
    def _start_as_shrinkage(self, noise_level: float) -> None:
        """Start as a threshold at twice the noise on both signs of each cosine coefficient but the mean."""
        net, scale = self.network, self.stride / self.size  # the patches then make up a tight frame
        basis = torch.from_numpy(_cosine_basis(self.size)).to(net.free[0]) * scale
        threshold = torch.full((len(basis),), 2 * noise_level * scale)
        threshold[0] = 0
        net.free[0].copy_(torch.cat([basis, -basis]))
        net.bias[0].copy_(-threshold.repeat(2))
        assert net.first_head is not None
        assert net.first_square is not None
        net.first_head.copy_(0.7 * threshold.repeat(2))
        net.first_square.fill_(1.0)
        net.free[1].mul_(0.1 * scale)
        net.bias[1].fill_(-0.2 * noise_level)
        net.core[0].mul_(10.0)
        net.head.fill_(0.02 * noise_level)


def _cosine_basis(size: int) -> Any:
    """Two-dimensional cosine basis, one flattened patch a row; the constant one first."""
    one = dct(np.eye(size), axis=0, norm="ortho")
    return np.kron(one, one)


def _reflect(y: Tensor, dim: int, reach: int) -> Tensor:
    """Continue a tensor at both ends of one dimension by its mirror image, the edge included."""
    n = y.shape[dim]
    return torch.cat([y.narrow(dim, 0, reach).flip(dim), y, y.narrow(dim, n - reach, reach).flip(dim)], dim)


def _refuse_negative(module: nn.Module, _: Any) -> None:
    assert isinstance(module, ICNN)
    for name, parameter in module.nonnegative():
        if bool((parameter < 0).any()):
            raise ValueError(
                f"{name} must be nonnegative for the network to be convex, got {float(parameter.detach().min()):.3g} "
                "in the loaded weights"
            )
