"""Invertible layers for pictures: affine couplings whose shift and scale are small dense convolutional networks."""

from itertools import accumulate
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard.validation import check_range

__all__ = ["AffineCoupling", "Couplings", "DenseBlock"]


class DenseBlock(nn.Sequential):
    """Five 3x3 convolutions, each of which sees the input and the outputs of all before it; it begins as zero.

    Parameters
    ----------
    before, after
        Channels of input and output.
    growth
        Channels that each of the first four adds.
    generator
        Draws the initial weights, as suits the leaky ReLU; those of the last convolution are zero. (IRN's are ten times
        smaller.)
    """

    def __init__(self, before: int, after: int, growth: int, *, generator: torch.Generator | None = None) -> None:
        inputs = list(accumulate([before, *[growth] * 4]))
        super().__init__(*(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(inputs, [*[growth] * 4, after])))
        for layer in cast(list[nn.Conv2d], list(self)):
            nn.init.kaiming_normal_(layer.weight, 0.2, generator=generator)
            nn.init.zeros_(cast(Tensor, layer.bias))
        nn.init.zeros_(cast(Tensor, self[-1].weight))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Apply the convolutions."""
        *layers, last = self
        for layer in layers:
            x = torch.cat([x, F.leaky_relu(layer(x), 0.2)], 1)
        return last(x)


class AffineCoupling(nn.Module):
    """An invertible layer: ``y1 = x1 + F(x2)`` and ``y2 = x2 exp(s) + G(y1)``, ``s = clamp (2 sigmoid(H(y1)) - 1)``.

    Parameters
    ----------
    first, second
        Channels of ``x1``, which come first, and of ``x2``.
    growth
        Of the dense blocks F, G and H.
    clamp
        Bound on the logarithm of the scale.
    generator
        Draws the initial weights, with which the layer is the identity.

    Examples
    --------
    >>> layer = AffineCoupling(3, 9, growth=4)
    >>> x = torch.rand(1, 12, 8, 8)
    >>> torch.equal(layer(x), x)
    True
    """

    def __init__(
        self, first: int, second: int, growth: int = 32, clamp: float = 1.0, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        for name, value in {"first": first, "second": second, "growth": growth}.items():
            check_range(value, name, 1, integer=True)
        self.sizes, self.clamp = (first, second), float(check_range(clamp, "clamp", 0, closed="neither"))
        self.F = DenseBlock(second, first, growth, generator=generator)
        self.G = DenseBlock(first, second, growth, generator=generator)
        self.H = DenseBlock(first, second, growth, generator=generator)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Apply the layer."""
        x1, x2 = x.split(self.sizes, 1)
        y1 = x1 + self.F(x2)
        return torch.cat([y1, x2 * self.log_scale(y1).exp() + self.G(y1)], 1)

    def inverse(self, y: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Undo the layer, exactly but for rounding."""
        y1, y2 = y.split(self.sizes, 1)
        x2 = (y2 - self.G(y1)) * (-self.log_scale(y1)).exp()
        return torch.cat([y1 - self.F(x2), x2], 1)

    def log_scale(self, y1: Float[Tensor, "b first h w"]) -> Float[Tensor, "b second h w"]:
        """The logarithms s of the scales; their sum over a picture is the logarithm of the Jacobian's determinant."""
        return self.clamp * (2 * self.H(y1).sigmoid() - 1)


class Couplings(nn.Sequential):
    """Couplings one after the other, and back.

    Parameters
    ----------
    count
        How many.
    first, second, growth, clamp, generator
        As for :class:`AffineCoupling`.
    """

    def __init__(
        self,
        count: int,
        first: int,
        second: int,
        growth: int = 32,
        clamp: float = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        check_range(count, "count", 1, integer=True)
        super().__init__(*(AffineCoupling(first, second, growth, clamp, generator=generator) for _ in range(count)))

    @property
    def layers(self) -> list[AffineCoupling]:
        """The couplings in their order."""
        return [cast(AffineCoupling, layer) for layer in self]

    def inverse(self, y: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Undo all layers, the last one first."""
        for layer in reversed(self.layers):
            y = layer.inverse(y)
        return y

    def with_log_jacobian(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        """The output, and the logarithm of the Jacobian's determinant for each picture of the batch."""
        total = x.new_zeros(len(x))
        for layer in self.layers:
            x = layer(x)
            total = total + layer.log_scale(x[:, : layer.sizes[0]]).flatten(1).sum(1)
        return x, total
