"""The convolution of Fourier neural operators: one matrix of channels for each of the lowest frequencies."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.spectral.modes import embed, irfftn_modes, rfftn_modes
from hadamard.validation import check_range, check_tensor

__all__ = ["SpectralConv"]


class SpectralConv(nn.Module):
    """Convolve periodic fields with kernels that are given, and learned, by their lowest Fourier coefficients.

    Each frequency up to ``modes`` has a complex matrix ``W(k)`` that mixes the channels, all others are dropped:
    ``y^(k) = W(k) x^(k) + b(k)``. The same weights serve every grid, and the output may be evaluated on another grid
    than the input's.

    Parameters
    ----------
    in_channels, out_channels
        Numbers of channels.
    modes
        For each dimension of space how many frequencies ``0, 1, ..., modes - 1`` to keep (with their negatives); at
        most half the points, rounded up.
    bias
        Learn ``b(k)`` too, a source that does not depend on the input; it begins at zero.
    generator
        For the initial weights, which are complex normal of variance ``2 / (in_channels + out_channels)``.
    device, dtype
        Of the parameters, which are stored as real numbers: the real and the imaginary part along the last dimension.

    Raises
    ------
    ValueError
        If a number is not positive; by the call, if the grid has too few points.

    Notes
    -----
    ``modes`` counts one side; neuraloperator's ``n_modes`` counts both, so ``n_modes=16`` there is about ``modes=8``
    here. There and in the original code the lowest negative frequency has no positive partner; here the kept set is
    symmetric. Half precision is transformed in float32.

    References
    ----------
    Z. Li, N. Kovachki, K. Azizzadenesheli, B. Liu, K. Bhattacharya, A. Stuart, A. Anandkumar. Fourier Neural Operator
    for Parametric Partial Differential Equations. ICLR 2021. arXiv:2010.08895.

    Examples
    --------
    >>> conv = SpectralConv(3, 5, modes=(4, 4))
    >>> conv(torch.randn(2, 3, 16, 16)).shape
    torch.Size([2, 5, 16, 16])
    >>> conv(torch.randn(2, 3, 16, 16), shape=(32, 32)).shape
    torch.Size([2, 5, 32, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        modes: Sequence[int],
        *,
        bias: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_range(in_channels, "in_channels", 1, integer=True)
        self.out_channels = check_range(out_channels, "out_channels", 1, integer=True)
        self.modes = tuple(check_range(m, "modes", 1, integer=True) for m in modes)
        if not self.modes:
            raise ValueError("modes must have one entry for each dimension of space, got none")
        kept = (*(2 * m - 1 for m in self.modes[:-1]), self.modes[-1])
        weight = torch.empty((in_channels, out_channels, *kept, 2), device=device, dtype=dtype)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros_like(weight[0])) if bias else None
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew and set the bias to zero."""
        nn.init.normal_(self.weight, std=(self.in_channels + self.out_channels) ** -0.5, generator=generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(
        self, x: Float[Tensor, "batch channels *space"], shape: Sequence[int] | None = None
    ) -> Float[Tensor, "batch out *grid"]:
        """Convolve ``x``; ``shape`` is the grid of the result, ``None`` that of ``x``."""
        check_tensor(x, "x", ndim=2 + len(self.modes), dtype="floating", finite=False)
        if x.shape[1] != self.in_channels:
            raise ValueError(f"x must have {self.in_channels} channels, got shape {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            X = rfftn_modes(x.to(self.weight.dtype), self.modes)
            Y = torch.einsum("bi...,io...->bo...", X, torch.view_as_complex(self.weight))
            if self.bias is not None:
                Y = Y + torch.view_as_complex(self.bias)
            y = irfftn_modes(Y, x.shape[2:] if shape is None else shape)
        return y.to(x.dtype)

    def enlarged(self, modes: Sequence[int], bias: bool | None = None) -> "SpectralConv":
        """Copy the convolution into one with more modes, whose weights are zero: it computes the same.

        Parameters
        ----------
        modes
            At least the present ones.
        bias
            Whether the copy has a bias; ``None``: as here. A bias that is added is zero.

        Raises
        ------
        ValueError
            If there are fewer modes, or a bias would be dropped.
        """
        bias = (self.bias is not None) if bias is None else bias
        if self.bias is not None and not bias:
            raise ValueError("bias must be True for a convolution that has one")
        if len(modes) != len(self.modes) or any(m < own for m, own in zip(modes, self.modes)):
            raise ValueError(f"modes must be at least {self.modes}, got {tuple(modes)}")
        larger = SpectralConv(self.in_channels, self.out_channels, modes, bias=bias).to(self.weight)
        nn.init.zeros_(larger.weight)
        with torch.no_grad():
            for old, new in ((self.weight, larger.weight), (self.bias, larger.bias)):
                if old is not None and new is not None:
                    values = torch.view_as_complex(old)
                    new.copy_(torch.view_as_real(embed(values, new.shape[-1 - len(modes) : -1])))
        return larger

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{self.in_channels}, {self.out_channels}, modes={self.modes}, bias={self.bias is not None}"
