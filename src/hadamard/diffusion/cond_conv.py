"""Convolutions whose kernel is a mixture of several, weighed anew for each sample."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard.validation import check_range

__all__ = ["CondConv2d"]

_SHARE = 0.8  # of the first expert, before training


class CondConv2d(nn.Module):
    """A ``Conv2d`` that mixes its kernel out of several experts, for each sample by what its channels hold on average.

    The kernel is the sum of softmax(routing(mean of x)) times the experts' kernels. It costs one convolution and the
    mixing of kernels, whatever the number of experts.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        As for ``torch.nn.Conv2d``.
    experts
        Number of kernels.

    Raises
    ------
    ValueError
        If ``experts`` is not positive, or the convolutions of :meth:`of` do not fit each other.

    Notes
    -----
    Before training the routing gives every sample the same weights, 0.8 for the first expert where there are several.
    With one expert it is a ``Conv2d``. In a batch the samples have kernels of their own, which is done as one grouped
    convolution.

    **When not to use it.** Where a batch is large and the pictures small, the mixing of a kernel for each sample is no
    longer cheap beside the convolution.

    References
    ----------
    B. Yang, G. Bender, Q. V. Le, J. Ngiam. CondConv: Conditionally Parameterized Convolutions for Efficient Inference.
    NeurIPS 2019, arXiv:1904.04971. There the weights are sigmoids; a softmax keeps the scale of the kernel.
    J. Zhu et al. A-SDM: Accelerating Stable Diffusion through Model Assembly and Feature Inheritance Strategies.
    arXiv:2406.00210, 2024, which puts it into the layers that are left of a pruned network.

    Examples
    --------
    >>> conv = CondConv2d(4, 8, 3, padding=1, experts=4)
    >>> conv(torch.randn(2, 4, 16, 16)).shape
    torch.Size([2, 8, 16, 16])
    >>> kept, pruned = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    >>> conv, x = CondConv2d.of([kept, pruned]), torch.randn(1, 4, 5, 5)
    >>> torch.allclose(conv(x), kept(x), atol=1e-6)
    True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        experts: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_range(experts, "experts", 1, integer=True)
        convs = [
            nn.Conv2d(
                in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device=device,
                dtype=dtype,
            )
            for _ in range(experts)
        ]  # fmt: skip
        first = convs[0]
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, first.kernel_size
        self.stride, self.padding, self.dilation, self.groups = first.stride, first.padding, first.dilation, groups
        self.weight = nn.Parameter(torch.stack([conv.weight.detach() for conv in convs]))
        self.bias = nn.Parameter(first.bias.detach().clone()) if first.bias is not None else None
        self.routing = nn.Linear(in_channels, experts, device=device, dtype=dtype)
        nn.init.zeros_(self.routing.weight)
        with torch.no_grad():
            self.routing.bias.copy_(_shares(experts).log())

    @classmethod
    def of(cls, convs: Sequence[nn.Conv2d]) -> "CondConv2d":
        """Build one out of convolutions of the same shape; before training it gives what the first of them gives.

        The others' kernels are its other experts, and the first expert is chosen so that the mixture of all is the
        first kernel.
        """
        if not convs:
            raise ValueError("convs must hold at least one convolution, got none")
        first: Any = convs[0]
        if any(conv.padding_mode != "zeros" for conv in convs):
            raise ValueError("convs must pad with zeros, got another padding_mode")
        for i, conv in enumerate(convs):
            if conv.weight.shape != first.weight.shape:
                raise ValueError(
                    f"convs must have kernels of one shape, got {tuple(first.weight.shape)} and, in convs[{i}], "
                    f"{tuple(conv.weight.shape)}"
                )
        new = cls(
            first.in_channels, first.out_channels, first.kernel_size, first.stride, first.padding, first.dilation,
            first.groups, first.bias is not None, experts=len(convs), device=first.weight.device,
            dtype=first.weight.dtype,
        )  # fmt: skip
        kernels = torch.stack([conv.weight.detach() for conv in convs])
        shares = _shares(len(convs)).to(kernels)
        kernels[0] = (kernels[0] - torch.tensordot(shares[1:], kernels[1:], 1)) / shares[0]
        with torch.no_grad():
            new.weight.copy_(kernels)
            if new.bias is not None:
                new.bias.copy_(first.bias)
        return new

    def forward(self, x: Float[Tensor, "batch in_channels h w"]) -> Float[Tensor, "batch out_channels h2 w2"]:
        """Mix a kernel for each sample and convolve it."""
        weights = self.routing(x.mean((2, 3))).softmax(-1)
        kernels = (weights @ self.weight.flatten(1)).reshape(-1, *self.weight.shape[2:])
        rows, groups = x.reshape(1, -1, *x.shape[2:]), self.groups * len(x)
        out = F.conv2d(rows, kernels, None, self.stride, self.padding, self.dilation, groups)
        out = out.reshape(len(x), self.out_channels, *out.shape[2:])
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]

    def extra_repr(self) -> str:
        """Sizes, as ``Conv2d`` prints them."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, groups={self.groups}, experts={len(self.weight)}"
        )


def _shares(experts: int) -> Tensor:
    if experts == 1:
        return torch.ones(1)
    return torch.tensor([_SHARE] + [(1 - _SHARE) / (experts - 1)] * (experts - 1))
