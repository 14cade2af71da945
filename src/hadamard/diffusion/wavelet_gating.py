"""Changes of size by Haar bands, each weighed by a gate that sees the whole picture.

A picture ``X`` is split into the bands ``X_b``, b in {LL, LH, HL, HH}, of half its size, or put together from them. The
gates ``g_b = sigmoid(MLP(mean of X))`` lie in (0, 1), one for each band, channel and sample. A denoiser meets low
frequencies at its noisy steps and all of them at its last; with gates the same weights let through other bands at other
steps.

References
----------
X. Yang, D. Zhou, J. Feng, X. Wang. Diffusion Probabilistic Model Made Slim. CVPR 2023, arXiv:2211.17106.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.images import pad_to_multiple
from hadamard.spectral import haar2d, ihaar2d
from hadamard.validation import check_option, check_range

__all__ = ["WaveletGatingDown", "WaveletGatingUp"]

_DETAILS = -2.0  # logit of the gates of LH, HL and HH before training; that of LL is 0


class _Resize(nn.Module):
    """A convolution at the smaller size, and the gates of the bands."""

    _up = False

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        *,
        kernel_size: int = 3,
        reduction: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channels = check_range(channels, "channels", 1, integer=True)
        self.out_channels = check_range(out_channels or channels, "out_channels", 1, integer=True)
        check_option(kernel_size, "kernel_size", (1, 3))
        check_range(reduction, "reduction", 1, integer=True)
        bands, gated = (4, self.out_channels) if self._up else (1, channels)
        self.conv = nn.Conv2d(channels, bands * self.out_channels, kernel_size, padding=kernel_size // 2, **factory)
        hidden = max(channels // reduction, 4)
        last = nn.Linear(hidden, 4 * gated, **factory)
        self.gate = nn.Sequential(nn.Linear(channels, hidden, **factory), nn.SiLU(), last)
        with torch.no_grad():
            last.bias.view(4, gated)[0] = 0
            last.bias.view(4, gated)[1:] = _DETAILS

    def gates(self, hidden_states: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 4 d 1 1"]:
        """The gates of a batch, bands in the order LL, LH, HL, HH."""
        return self.gate(hidden_states.mean((2, 3))).sigmoid().unflatten(1, (4, -1))[..., None, None]

    def _check(self, x: Any) -> None:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"hidden_states must have shape (B, {self.channels}, H, W), got {tuple(x.shape)}")


class WaveletGatingDown(_Resize):
    """Half the size: the gated sum of the Haar bands, then a convolution. Stands where ``Downsample2D`` does.

    Parameters
    ----------
    channels
        Of the input.
    out_channels
        ``None``: as many.
    kernel_size
        Of the convolution, 3 or 1: 3 costs what ``Downsample2D`` costs.
    reduction
        By how much the gates' hidden layer is narrower than the input; it has 4 units at least.

    Raises
    ------
    ValueError
        If an argument lies outside its range; at a call, if the channels are others.

    Notes
    -----
    An odd height or width is enlarged by a repeated row or column, so that the result has the size that
    ``Downsample2D`` gives. Before training LL's gates are near 0.5, which averages squares of pixels, and those of the
    details near 0.12; how the paper starts is not known here.

    References
    ----------
    See :mod:`hadamard.diffusion.wavelet_gating`. That each channel has its gates, and the width of their hidden layer,
    are not verified in the paper.

    Examples
    --------
    >>> WaveletGatingDown(8)(torch.randn(2, 8, 16, 16)).shape
    torch.Size([2, 8, 8, 8])
    """

    def forward(
        self, hidden_states: Float[Tensor, "b c h w"], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "b d (h+1)//2 (w+1)//2"]:
        """Halve the size; further arguments are those of ``Downsample2D``, and ignored."""
        self._check(hidden_states)
        even, _ = pad_to_multiple(hidden_states, 2, "replicate")
        return self.conv((self.gates(hidden_states) * haar2d(even)).sum(1))


class WaveletGatingUp(_Resize):
    """Twice the size: a convolution to four gated Haar bands, put together. Stands where ``Upsample2D`` does.

    Parameters
    ----------
    channels
        Of the input.
    out_channels
        ``None``: as many.
    kernel_size
        Of the convolution to ``4 * out_channels`` at the smaller size, 3 or 1: 3 costs what ``Upsample2D`` costs.
    reduction
        As for :class:`WaveletGatingDown`.

    Raises
    ------
    ValueError
        As for :class:`WaveletGatingDown`, or if ``output_size`` is larger than twice the input.

    References
    ----------
    See :class:`WaveletGatingDown`.

    Examples
    --------
    >>> WaveletGatingUp(8)(torch.randn(2, 8, 4, 4)).shape
    torch.Size([2, 8, 8, 8])
    """

    _up = True

    def forward(
        self, hidden_states: Float[Tensor, "b c h w"], output_size: Sequence[int] | None = None, *args: Any, **kw: Any
    ) -> Float[Tensor, "b d H W"]:
        """Double the size, or give the first ``output_size`` rows and columns of that."""
        self._check(hidden_states)
        bands = self.conv(hidden_states).unflatten(1, (4, self.out_channels))
        large = ihaar2d(self.gates(hidden_states) * bands)
        if output_size is None:
            return large
        height, width = output_size
        if height > large.shape[-2] or width > large.shape[-1]:
            raise ValueError(
                f"output_size must be at most {tuple(large.shape[-2:])}, twice the input's, got {(height, width)}"
            )
        return large[..., :height, :width]
