"""A gated long-convolution block for language or DNA models, and how to take a trained model to longer sequences.

The block mixes a sequence as attention would, causally, but by ``q * (h conv (k * v))`` with filters h as long as the
context: O(L log L), and a model that is trained at one length reads longer sequences with the same filters.

References
----------
D. Y. Fu, T. Dao, K. K. Saab, A. W. Thomas, A. Rudra, C. Re, "Hungry Hungry Hippos: Towards Language Modeling with State
Space Models", ICLR 2023, arXiv:2212.14052.
M. Poli et al., "Hyena Hierarchy: Towards Larger Convolutional Language Models", ICML 2023, arXiv:2302.10866.
"""

from dataclasses import dataclass
from math import log, pi
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.spectral import good_size
from hadamard.transforms.flash_fft_conv import FlashFFTConv, fft_conv
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["LongConvBlock", "LongConvState", "extend_length"]


@dataclass(frozen=True)
class LongConvState:
    """What a :class:`LongConvBlock` must remember of a sequence that goes on.

    Attributes
    ----------
    short
        Last inputs of the short convolution, (B, 3 channels, short - 1).
    past
        Last ``length - 1`` inputs of the long one, (B, channels, length - 1).
    """

    short: Tensor
    past: Tensor


class LongConvBlock(nn.Module):
    """Mix a sequence causally by a gated long convolution; takes the place of self-attention in a language model.

    Parameters
    ----------
    channels
        Width of the model.
    length
        Taps of the filters: how far back the block looks. Sequences may be shorter, or longer (partial convolution).
    filters
        ``"explicit"``: the taps are parameters. ``"implicit"``: a small network of the position makes them (Hyena),
        whatever the length.
    decay
        Whether filters fall off exponentially: to 1 % within ``length`` steps for the first channel, ``length / 32``
        for the last one.
    short
        Taps of the short convolution of queries, keys and values.
    hidden
        Width of the network that makes implicit filters.
    backend
        As for :class:`FlashFFTConv`.
    device, dtype
        Of the parameters.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> block = LongConvBlock(16, length=64)
    >>> x = torch.randn(2, 64, 16)
    >>> y = block(x)
    >>> first, state = block.step(x[:, :40], block.start(2))
    >>> rest, state = block.step(x[:, 40:], state)
    >>> torch.allclose(torch.cat([first, rest], 1), y, atol=1e-5)
    True
    """

    rates: Tensor

    def __init__(
        self,
        channels: int,
        length: int,
        *,
        filters: str = "implicit",
        decay: bool = True,
        short: int = 3,
        hidden: int = 32,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channels = check_range(channels, "channels", 1, integer=True)
        self.length = check_range(length, "length", 1, integer=True)
        self.filters = check_option(filters, "filters", ("explicit", "implicit"))
        self.short = check_range(short, "short", 1, integer=True)
        self.backend = check_option(backend, "backend", ("auto", "fft", "monarch", "triton"))
        self.inputs = nn.Linear(channels, 3 * channels, **made)
        self.mix = nn.Conv1d(3 * channels, 3 * channels, short, groups=3 * channels, **made)
        self.output = nn.Linear(channels, channels, **made)
        self.skip = nn.Parameter(torch.ones(channels, **made))
        if filters == "explicit":
            self.taps = nn.Parameter(torch.randn(channels, length, **made) / length**0.5)
        else:
            self.network = nn.Sequential(
                nn.Linear(_FEATURES, hidden, **made), _Sine(), nn.Linear(hidden, hidden, **made), _Sine(),
                nn.Linear(hidden, channels, bias=False, **made),
            )  # fmt: skip
        fastest = 32 ** (torch.arange(channels) / max(channels - 1, 1))
        rates = log(100) / length * fastest if decay else torch.zeros(channels)
        self.register_buffer("rates", rates.to(self.skip))

    def taps_now(self) -> Float[Tensor, "channels length"]:
        """The filters."""
        position = torch.arange(self.length, device=self.rates.device, dtype=self.rates.dtype)
        if self.filters == "explicit":
            taps = self.taps
        else:
            turns = 2 * pi * position[:, None] / self.length * torch.arange(1, _FEATURES // 2 + 1).to(position)
            features = torch.cat([position[:, None] / self.length, turns.sin(), turns.cos()], 1)
            taps = self.network(features).mT
        return taps * torch.exp(-self.rates[:, None] * position)

    def forward(self, x: Float[Tensor, "B L channels"]) -> Float[Tensor, "B L channels"]:
        """Mix.

        Parameters
        ----------
        x
            Sequences of any length.

        Raises
        ------
        ValueError
            If the last dimension is not ``channels``.
        """
        check_tensor(x, "x", ndim=3, shape=(self.channels,), dtype="floating", finite=False)
        q, k, v = self.mix(F.pad(self.inputs(x).mT, (self.short - 1, 0))).chunk(3, 1)
        taps = self.taps_now().float() if q.dtype != torch.float64 else self.taps_now()
        delta = F.pad(self.skip[:, None].to(taps), (0, taps.shape[1] - 1))  # the skip connection is one more tap
        return self.output(fft_conv(v, taps + delta, pregate=k, postgate=q, backend=self.backend).mT)

    def start(self, batch: int) -> LongConvState:
        """The state before a sequence.

        Parameters
        ----------
        batch
            Number of sequences.
        """
        new = self.skip.new_zeros
        return LongConvState(
            new(batch, 3 * self.channels, self.short - 1), new(batch, self.channels, self.length - 1)
        )  # fmt: skip

    def step(
        self, x: Float[Tensor, "B T channels"], state: LongConvState
    ) -> tuple[Float[Tensor, "B T channels"], LongConvState]:
        """Continue a sequence by one step or by many; what comes out is what :meth:`forward` gives of the whole.

        A single step costs ``length`` multiplications a channel, and ``T`` steps at once one convolution.

        Parameters
        ----------
        x
            What comes next.
        state
            From :meth:`start` or the step before.

        Returns
        -------
        y, state
            What comes out, and the state after it.

        Raises
        ------
        ValueError
            If the last dimension is not ``channels``.
        """
        check_tensor(x, "x", ndim=3, shape=(self.channels,), dtype="floating", finite=False)
        new = torch.cat([state.short, self.inputs(x).mT], -1)
        q, k, v = self.mix(new).chunk(3, 1)
        product = torch.cat([state.past, k * v], -1)
        taps = self.taps_now()
        if x.shape[1] == 1:
            y = (product[..., -self.length :] * taps.flip(-1)).sum(-1, keepdim=True)
        else:
            y = fft_conv(product, taps, backend=self.backend)[..., -x.shape[1] :]
        y = q * (y + self.skip[:, None] * product[..., -x.shape[1] :])
        kept = (new[..., new.shape[-1] - self.short + 1 :], product[..., product.shape[-1] - self.length + 1 :])
        return self.output(y.mT), LongConvState(*kept)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return f"{self.channels}, length={self.length}, filters={self.filters!r}, backend={self.backend!r}"


def extend_length(model: nn.Module, length: int) -> nn.Module:
    """Let a trained model take longer sequences: its filters stay as they are and slide along (partial convolution).

    Every :class:`FlashFFTConv` in the model gets room for ``length`` steps (a :class:`LongConvBlock` takes any length
    as it is). What a filter does not reach back to is forgotten, as it was where the model was trained. Short filters
    are applied in overlapping windows, so that transforms stay as long as four filters, whatever the sequence.

    Parameters
    ----------
    model
        Changed in place. Its convolutions must be causal; a circular one would become causal.
    length
        Longest sequence to expect.

    Returns
    -------
    Module
        The model.

    Raises
    ------
    ValueError
        If ``length`` is less than 1, or a convolution has a sparsity, whose frequencies belong to its length.

    Examples
    --------
    >>> conv = extend_length(FlashFFTConv(2 * 64), 1000)
    >>> conv(torch.randn(1, 2, 1000), torch.randn(2, 64)).shape
    torch.Size([1, 2, 1000])
    """
    check_range(length, "length", 1, integer=True)
    for name, module in model.named_modules():
        if isinstance(module, FlashFFTConv):
            if module.sparsity is not None:
                raise ValueError(f"model must have no frequency-sparse convolution to be extended, got {name!r}")
            n = good_size(length + module.seqlen - 1)
            module.seqlen = n if module.backend == "fft" else 1 << (n - 1).bit_length()
    return model


_FEATURES = 9  # of a position: itself, and four sines and cosines


class _Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)
