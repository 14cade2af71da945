"""The Fourier neural operator that claims compare with, as neuraloperator's ``FNO`` builds it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard.pde import SpectralConv

__all__ = ["FNO"]


class FNO(nn.Module):
    """The usual contender: Fourier layers beside pointwise ones, on the grid's coordinates and the input.

    Parameters
    ----------
    modes, width, layers
        Frequencies an axis, channels, Fourier layers.
    head
        Channels between the two pointwise layers of the output.
    inputs, outputs
        Channels of the fields.
    lift
        Channels between two pointwise layers of the input; 0: there is one.
    """

    def __init__(
        self, modes: tuple[int, int], width: int = 12, layers: int = 4, head: int = 64, *, inputs: int = 1,
        outputs: int = 1, lift: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.lift: nn.Module = nn.Conv2d(inputs + 2, width, 1)
        if lift:
            self.lift = nn.Sequential(nn.Conv2d(inputs + 2, lift, 1), nn.GELU(), nn.Conv2d(lift, width, 1))
        self.spectral = nn.ModuleList([SpectralConv(width, width, modes) for _ in range(layers)])
        self.pointwise = nn.ModuleList([nn.Conv2d(width, width, 1) for _ in range(layers)])
        self.head = nn.Sequential(nn.Conv2d(width, head, 1), nn.GELU(), nn.Conv2d(head, outputs, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Map fields to fields."""
        h, w = x.shape[2:]
        rows, columns = (torch.arange(h).to(x) / h)[:, None].expand(h, w), (torch.arange(w).to(x) / w).expand(h, w)
        x = self.lift(torch.cat([x, torch.stack([rows, columns]).expand(len(x), 2, h, w)], 1))
        for i, (spectral, pointwise) in enumerate(zip(self.spectral, self.pointwise)):
            x = spectral(x) + pointwise(x)
            x = F.gelu(x) if i + 1 < len(self.spectral) else x
        return self.head(x)
