"""A Fourier neural operator from trajectory to trajectory: all later slices of a flow in one evaluation.

References
----------
S. Cao, F. Brarda, R. Li, Y. Xi, "Spectral-Refiner: Accurate Fine-Tuning of Spatiotemporal Fourier Neural Operator for
Turbulent Flows", ICLR 2025, arXiv:2405.17211.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard.pde.grids import grid_points
from hadamard.pde.spectral_conv import SpectralConv
from hadamard.validation import check_range, check_tensor

__all__ = ["STFNO"]


class STFNO(nn.Module):
    """Predict the slices of a periodic field over a span of time from the slices before it, on any grid.

    Parameters
    ----------
    modes_x, modes_y, modes_t
        Frequencies kept along each axis, counted from 0 on one side (:class:`SpectralConv`).
    width
        Number of channels.
    num_spectral_layers
        Spectral convolutions, the last one (``output``) included.
    latent_steps
        Steps of time inside the network, at least ``modes_t``; also the number of slices that it predicts unless asked
        for others.
    channel_expansion
        Width of the pointwise networks in the blocks, in units of ``width``.
    generator
        For the initial weights.

    Raises
    ------
    ValueError
        If a number is out of range; by the call, if the grid is too coarse for the modes.

    Notes
    -----
    The span of time that is predicted is that of the training data, whatever ``out_steps``: asking for twice as many
    slices halves the distance between them. Also the input may have any number of slices over its span.

    A block computes ``v <- relu(MLP(S(v)) + C(v))`` with a spectral convolution S and pointwise C; the first S
    resamples the input's slices to ``latent_steps``. The output is the last input slice plus a spectral convolution of
    one channel with a bias spectrum; in time its Fourier series has twice the period of the span, and the latent field
    is continued by zeros over the other half. That layer's bias is what :class:`~hadamard.pde.SpectralRefiner` refines.

    Departures from the paper's code: places enter as sines and cosines, so that the torus has no seam; fields are
    (batch, t, x, y) with time in front of space; slices of a finer output lie among those of a coarser one.

    Examples
    --------
    >>> net = STFNO(4, 4, 3, width=8, latent_steps=6)
    >>> w = torch.randn(2, 3, 16, 16)
    >>> net(w).shape, net(w, out_steps=12).shape
    (torch.Size([2, 6, 16, 16]), torch.Size([2, 12, 16, 16]))
    """

    def __init__(
        self,
        modes_x: int,
        modes_y: int,
        modes_t: int,
        width: int = 20,
        *,
        num_spectral_layers: int = 4,
        latent_steps: int = 10,
        channel_expansion: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_range(num_spectral_layers, "num_spectral_layers", 2, integer=True)
        check_range(width, "width", 1, integer=True)
        check_range(channel_expansion, "channel_expansion", 1, integer=True)
        check_range(modes_t, "modes_t", 1, integer=True)
        self.latent_steps = check_range(latent_steps, "latent_steps", max(2, 2 * modes_t - 1), integer=True)
        modes = (modes_t, modes_x, modes_y)
        self.lift = _Pointwise(1 + _PLACES, width, generator)
        self.norm = nn.GroupNorm(1, width)
        count = num_spectral_layers - 1
        convs = [SpectralConv(width, width, modes, generator=generator) for _ in range(count)]
        self.spectral = nn.ModuleList(convs)
        self.mixing = nn.ModuleList(_mlp(width, channel_expansion, generator) for _ in range(count))
        self.skip = nn.ModuleList(_Pointwise(width, width, generator) for _ in range(count))
        self.reduction = _Pointwise(width, 1, generator)
        self.output = SpectralConv(1, 1, modes, bias=True, generator=generator)

    def forward(
        self, w: Float[Tensor, "batch t_in nx ny"], out_steps: int | None = None
    ) -> Float[Tensor, "batch t_out nx ny"]:
        """Predict ``out_steps`` slices (``None``: ``latent_steps``) that follow the slices ``w``."""
        return self.decode(self.latent(w), w[:, -1], out_steps)

    def latent(self, w: Float[Tensor, "batch t_in nx ny"]) -> Float[Tensor, "batch latent nx ny"]:
        """Everything up to the output's spectral convolution."""
        check_tensor(w, "w", ndim=4, dtype="floating")
        modes_t, *modes = self.output.modes
        if any(n + 1 < 2 * m for n, m in zip(w.shape[-2:], modes)):
            raise ValueError(f"w must have at least {[2 * m - 1 for m in modes]} points, got shape {tuple(w.shape)}")
        x = w.unsqueeze(1)
        if x.shape[2] < 2 * modes_t - 1:  # the first transform in time wants as many points as it keeps frequencies
            x = x.repeat_interleave(-(-(2 * modes_t - 1) // x.shape[2]), 2)
        v = self.norm(self.lift(torch.cat([x, _places(x)], 1)))
        for number, (spectral, mixing, skip) in enumerate(zip(self.spectral, self.mixing, self.skip)):
            direct = skip(v)
            if number == 0:
                direct = F.interpolate(
                    direct.flatten(3), (self.latent_steps, direct[0, 0, 0].numel()), mode="bilinear"
                ).unflatten(3, direct.shape[3:])
            v = F.relu(mixing(spectral(v, (self.latent_steps, *v.shape[3:]))) + direct)
        return self.reduction(v)[:, 0]

    def decode(
        self,
        v: Float[Tensor, "batch latent nx ny"],
        last: Float[Tensor, "batch nx ny"],
        out_steps: int | None = None,
    ) -> Float[Tensor, "batch t_out nx ny"]:
        """Apply the output's spectral convolution to a latent field, and add it to the last known slice."""
        steps = self.latent_steps if out_steps is None else out_steps
        check_range(steps, "out_steps", max(1, self.output.modes[0]), integer=True)
        padded = F.pad(v, (0, 0, 0, 0, 1, v.shape[1] - 1))  # v's slices are at times 1/n, ..., n/n of the span
        y = self.output(padded.unsqueeze(1), (2 * steps, *v.shape[2:]))[:, 0, 1 : steps + 1]
        return last.unsqueeze(1) + y


_PLACES = 8


def _places(x: Tensor) -> Tensor:
    """Sines and cosines of the place, and functions of the time that is left, as channels."""
    t, nx, ny = x.shape[2:]
    px, py = grid_points((nx, ny), 2 * math.pi, x)
    time = torch.arange(1, t + 1, device=x.device, dtype=x.dtype).reshape(-1, 1, 1) / t
    waves = [torch.sin(px), torch.cos(px), torch.sin(py), torch.cos(py), time]
    waves += [torch.cos(math.pi * k * time) for k in (1, 2, 3)]
    fields = torch.stack([wave.expand(t, nx, ny) for wave in waves])
    return fields.expand(x.shape[0], *fields.shape)


class _Pointwise(nn.Module):
    """A linear map of the channels, dimension 1, at each point: a convolution of size 1, which is slow on a CPU."""

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator | None) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(nn.init.uniform_(torch.empty(outputs, inputs), -bound, bound, generator))
        self.bias = nn.Parameter(nn.init.uniform_(torch.empty(outputs, 1), -bound, bound, generator))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.expand(x.shape[0], *self.weight.shape)
        return torch.baddbmm(self.bias, weight, x.flatten(2)).unflatten(2, x.shape[2:])


def _mlp(width: int, expansion: int, generator: torch.Generator | None) -> nn.Module:
    hidden = expansion * width
    return nn.Sequential(_Pointwise(width, hidden, generator), nn.ReLU(), _Pointwise(hidden, width, generator))
