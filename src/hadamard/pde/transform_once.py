"""Transform Once: a neural operator whose layers all act on the few lowest coefficients of one transform.

A Fourier neural operator transforms there and back in each of its layers. T1 expands its input once, in cosines or in
waves, keeps the lowest coefficients ``z``, and learns on them: one layer is::

    z <- z + A_y A_x act(W z)

``W`` mixes the channels, with a matrix of its own for each coefficient; ``A_x`` and ``A_y`` mix the coefficients along
each axis, with matrices of their own for each channel. The loss can be taken there, too (:func:`coefficient_loss`):
then nothing is transformed back in training, and of the work only the one expansion grows with the grid.

References
----------
M. Poli, S. Massaroli, F. Berto, J. Park, T. Dao, C. Ré, S. Ermon, "Transform Once: Efficient Operator Learning in
Frequency Domain", NeurIPS 2022, arXiv:2211.14453.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Inexact
from torch import Tensor, nn

from hadamard.pde.expansions import check_modes, expansion
from hadamard.pde.spectral_conv import SpectralConv
from hadamard.pde.transform_once_layer import T1Layer, activate, parts
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["T1", "variance_preserving_"]

_NEAR_ZERO = 1e-8  # the last weights at the start, as in the paper's code


class T1(nn.Module):
    """A neural operator that transforms once: for regular grids in any number of dimensions, in place of an FNO.

    Parameters
    ----------
    n_modes
        Along each axis how many of the lowest coefficients to keep: cosines ``0, ..., n - 1`` (half periods), or waves
        ``0, ..., n - 1`` with their negatives. :func:`suggest_modes` reads them off data.
    in_channels, out_channels
        Of the fields.
    hidden_channels
        Width of the layers.
    n_layers
        Number of :class:`T1Layer`.
    transform
        ``"dct"``: cosines, real weights; grids are the midpoints of cells. ``"dft"``: waves, complex weights; for
        periodic fields, whose cosine coefficients fall off slowly as their slopes differ at the two ends.
    activation
        ``"gelu"``, ``"sin"``, ``"relu"`` or ``"tanh"``, in layers and head; of complex numbers on each part.
    projection_channels
        Width of the head.
    output
        ``"space"``: fields on the input's grid; ``"coefficients"``: the coefficients, for :func:`coefficient_loss`. It
        is an attribute, too: train with one, evaluate with the other.
    positional_embedding
        ``"grid"``: the coordinates (0 to 1) are further channels of the input; ``None``: they are not.
    resolution
        Grid of an input that is white noise, which the start then compensates for the loss of all but ``n_modes`` of
        its coefficients, as the paper does. ``None``: inputs whose energy lies in the modes that are kept.
    generator
        For the initial weights.
    device, dtype
        Of the parameters; complex ones are stored as real numbers, the two parts along the last dimension.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range; by the call, if the input is not real, floating and finite, does not fit, or its
        grid has fewer points than ``n_modes`` need.

    Notes
    -----
    Coefficients are those of functions (their squares sum to the mean square of the field), so that the same weights
    serve every grid. The lift to the hidden channels is linear and commutes with the transform: it acts on the kept
    coefficients, which saves transforming hidden channels.

    Departures from the paper's code: residual branches begin divided by ``sqrt(n_layers)``, and truncation is
    compensated once, in the lift, so that variances stay near 1 at any depth (there each layer multiplies by ``N / m``,
    and the residuals grow); each axis has its own number of modes; the head has the layers' activation, not a sine; the
    first of its two matrices does not begin near zero; complex activations are split, where a complex sine grows
    exponentially.

    When not to use it: where training samples are few. All coefficients are mixed with all others by weights of
    their own and no symmetry is built in, so it needs more data than an FNO, whose layers commute with shifts. Nor
    where details beyond ``n_modes`` matter: :func:`truncation_error` is a floor.

    References
    ----------
    M. Poli, S. Massaroli, F. Berto, J. Park, T. Dao, C. Ré, S. Ermon. Transform Once: Efficient Operator Learning in
    Frequency Domain. NeurIPS 2022. arXiv:2211.14453.

    Examples
    --------
    >>> net = T1((12, 12), in_channels=1, out_channels=1, hidden_channels=16, n_layers=4)
    >>> net(torch.randn(2, 1, 64, 64)).shape, net(torch.randn(2, 1, 96, 80)).shape
    (torch.Size([2, 1, 64, 64]), torch.Size([2, 1, 96, 80]))
    >>> net.output = "coefficients"
    >>> net(torch.randn(2, 1, 64, 64)).shape
    torch.Size([2, 1, 12, 12])
    """

    grid: Tensor | None

    def __init__(
        self,
        n_modes: Sequence[int],
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        n_layers: int = 8,
        *,
        transform: str = "dct",
        activation: str = "gelu",
        projection_channels: int = 128,
        output: str = "space",
        positional_embedding: str | None = "grid",
        resolution: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.basis = expansion(transform)
        self.transform, self.n_modes = transform, check_modes(n_modes)
        numbers = {"in_channels": in_channels, "out_channels": out_channels, "hidden_channels": hidden_channels}
        for name, number in (numbers | {"n_layers": n_layers, "projection_channels": projection_channels}).items():
            check_range(number, name, 1, integer=True)
        check_option(positional_embedding, "positional_embedding", ("grid", None))
        self.in_channels, self.out_channels, self.activation = in_channels, out_channels, activation
        self.output = check_option(output, "output", ("space", "coefficients"))
        self.resolution = None if resolution is None else tuple(resolution)
        if self.resolution is not None:
            if len(self.resolution) != len(self.n_modes):
                raise ValueError(f"resolution must have {len(self.n_modes)} entries, got {len(self.resolution)}")
            self.basis.check(self.resolution, self.n_modes)
        make: dict[str, Any] = {"device": device, "dtype": dtype}
        grid = self.basis.ramps(self.n_modes) if positional_embedding else None
        if grid is not None:
            grid = torch.view_as_real(grid) if grid.is_complex() else grid
            grid = grid.to(device=device, dtype=dtype or torch.get_default_dtype())
        self.register_buffer("grid", grid, persistent=False)
        lifted = in_channels + (len(self.n_modes) if positional_embedding else 0)
        self.lift = nn.Linear(lifted, hidden_channels, **make)
        self.layers = nn.ModuleList(
            [
                T1Layer(hidden_channels, self.n_modes, transform, activation, n_layers**-0.5, generator, **make)
                for _ in range(n_layers)
            ]
        )
        two = (2,) if self.basis.is_complex else ()
        self.head_in = nn.Parameter(torch.empty(hidden_channels, projection_channels, *two, **make))
        self.head_out = nn.Parameter(torch.empty(projection_channels, out_channels, *two, **make))
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew, so that variances are kept from layer to layer; the output begins near zero."""
        half = 0.5 if self.basis.is_complex else 1.0
        white = 1.0
        if self.resolution is not None:
            white = math.prod(self.resolution) / self.basis.degrees(self.n_modes)
        nn.init.normal_(self.lift.weight, std=math.sqrt(white / self.lift.in_features), generator=generator)
        nn.init.zeros_(self.lift.bias)
        for layer in self.layers:
            cast(T1Layer, layer).reset_parameters(generator)
        nn.init.normal_(self.head_in, std=math.sqrt(half / self.head_in.shape[0]), generator=generator)
        nn.init.normal_(self.head_out, std=_NEAR_ZERO, generator=generator)

    def forward(self, x: Float[Tensor, "batch channels *grid"]) -> Inexact[Tensor, "batch out *size"]:
        """Map fields to fields on the same grid, or to coefficients if that is the ``output``."""
        z = self.operate(self.analyse(x))
        return self.synthesise(z, x.shape[2:]).to(x.dtype) if self.output == "space" else z

    def analyse(self, x: Float[Tensor, "batch channels *grid"]) -> Inexact[Tensor, "batch channels *modes"]:
        """Expand fields (inputs or targets): their lowest coefficients."""
        check_tensor(x, "x", ndim=2 + len(self.n_modes), dtype="floating")
        self.basis.check(x.shape[2:], self.n_modes)
        with torch.autocast(x.device.type, enabled=False):
            return self.basis.analyse(x, self.n_modes)

    def operate(self, z: Inexact[Tensor, "batch channels *modes"]) -> Inexact[Tensor, "batch out *modes"]:
        """Map coefficients of inputs to coefficients of outputs: all that has weights."""
        if z.shape[1] != self.in_channels:
            raise ValueError(f"x must have {self.in_channels} channels, got {z.shape[1]}")
        scale = math.sqrt(self.basis.degrees(self.n_modes))  # mean square 1 a coefficient where that of the field is 1
        z = self._lift(z) * scale
        for layer in self.layers:
            z = layer(z)
        z = z.movedim(1, -1) @ parts(self.head_in, self.basis.is_complex)
        z = activate(self.activation, z) @ parts(self.head_out, self.basis.is_complex)
        return self.basis.project(z.movedim(-1, 1) / scale, len(self.n_modes))

    def synthesise(
        self, z: Inexact[Tensor, "batch channels *modes"], size: Sequence[int]
    ) -> Float[Tensor, "batch channels *grid"]:
        """Sum the expansion on a grid of any size that resolves it."""
        self.basis.check(size, self.n_modes)
        with torch.autocast(z.device.type, enabled=False):
            return self.basis.synthesise(z, size)

    def _lift(self, z: Tensor) -> Tensor:
        if self.grid is not None:
            grid = parts(self.grid, self.basis.is_complex)
            z = torch.cat([z, grid.to(z.dtype).expand(len(z), *grid.shape)], 1)
        lifted = z.movedim(1, -1) @ self.lift.weight.to(z.dtype).mT
        constant = torch.zeros_like(lifted[:1, ..., :1])
        constant[(0,) * constant.ndim] = 1  # the bias is a constant function
        return (lifted + constant * self.lift.bias).movedim(-1, 1)


def variance_preserving_(
    module: nn.Module, resolution: Sequence[int], generator: torch.Generator | None = None
) -> nn.Module:
    """Draw the weights of all :class:`SpectralConv` in a network anew, so that white noise keeps its variance.

    A spectral convolution drops all but ``m`` of the ``N`` coefficients, and with them all but ``m / N`` of the
    variance of white noise; the usual start ``1 / (channels^2)`` loses more with every layer. Here each weight has
    variance ``N / (m c)``, c the channels, m the number of signed frequencies.

    Parameters
    ----------
    module
        For example a Fourier neural operator; changed in place and returned. :class:`T1` begins so by itself.
    resolution
        Grid that it is to be trained on.
    generator
        For the weights.

    Raises
    ------
    ValueError
        If it has no spectral convolution, or the grid has too few points.

    Examples
    --------
    >>> conv = variance_preserving_(SpectralConv(16, 16, modes=(4, 4)), (32, 32))
    >>> 0.5 < conv(torch.randn(8, 16, 32, 32)).var().item() < 1.5
    True
    """
    waves, found = expansion("dft"), [m for m in module.modules() if isinstance(m, SpectralConv)]
    if not found:
        raise ValueError("module must have at least one SpectralConv, got none")
    for conv in found:
        if len(resolution) != len(conv.modes):
            raise ValueError(f"resolution must have {len(conv.modes)} entries, got {len(resolution)}")
        waves.check(resolution, conv.modes)
        share = waves.degrees(conv.modes) / math.prod(resolution)
        nn.init.normal_(conv.weight, std=math.sqrt(0.5 / (share * conv.in_channels)), generator=generator)
    return module
