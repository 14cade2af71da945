"""EvoNorm: normalisation and activation in one layer, in place of BatchNorm followed by ReLU.

The B series divides by the larger of a batch statistic and a statistic of the single image; the S series looks at
the single image only, so that its output does not depend on what else is in the batch. Nothing is centred: the mean
of ``x`` is never subtracted. With gamma, beta and v one number a channel, var and ms the variance and the mean square
over the dimensions named in brackets, and ``eps`` added under every root::

    B0   x / max( sqrt var[batch, space], v x + sqrt var[space] )       gamma + beta
    B1   x / max( sqrt var[batch, space], (x + 1) sqrt ms[space] )      gamma + beta
    B2   x / max( sqrt var[batch, space], sqrt ms[space] - x )          gamma + beta
    S0   x sigmoid(v x) / sqrt var[group of channels, space]            gamma + beta
    S1   x sigmoid(x) / sqrt var[group of channels, space]              gamma + beta
    S2   x sigmoid(x) / sqrt ms[group of channels, space]               gamma + beta

Attribute names and state dicts are those of timm's layers of the same names. Between forward and backward only ``x``
and the statistics are kept; everything else is made again.

References
----------
H. Liu, A. Brock, K. Simonyan, Q. V. Le, "Evolving Normalization-Activation Layers", NeurIPS 2020, arXiv:2004.02967.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.layers.evonorm_autograd import batch_evonorm, batch_variance, channels, sample_evonorm
from hadamard.validation import check_option, check_range

__all__ = ["EvoNorm2dB0", "EvoNorm2dB1", "EvoNorm2dB2", "EvoNorm2dS0", "EvoNorm2dS1", "EvoNorm2dS2", "evonorm"]


class _EvoNorm(nn.Module):
    """Parameters, checks and the linear mode that all six layers share."""

    has_v = False
    v: nn.Parameter | None

    def __init__(self, num_features: int, apply_act: bool, eps: float, device: Any, dtype: Any) -> None:
        super().__init__()
        if not isinstance(num_features, int) or num_features < 1:
            raise ValueError(f"num_features must be a positive integer, got {num_features!r}")
        self.num_features = num_features
        self.apply_act = apply_act
        self.eps = check_range(eps, "eps", 0, None, closed="neither")
        self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        v = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype)) if self.has_v and apply_act else None
        self.register_parameter("v", v)

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
        """Normalise and activate ``x`` of shape (N, C, ...), with at least one trailing dimension."""
        if x.ndim < 3:
            raise ValueError(
                f"x must have shape (N, C, ...) with at least one trailing dimension, got {tuple(x.shape)}"
            )
        if x.shape[1] != self.num_features:
            raise ValueError(f"x must have {self.num_features} channels in dimension 1, got shape {tuple(x.shape)}")
        if not self.apply_act or x.numel() == 0:
            return torch.addcmul(channels(self.bias, x), x, channels(self.weight, x))
        with torch.autocast(x.device.type, enabled=False):
            return self._activate(x)

    def _activate(self, x: Tensor) -> Tensor:
        raise AssertionError

    def extra_repr(self) -> str:
        """The options that differ between instances."""
        return f"{self.num_features}, apply_act={self.apply_act}, eps={self.eps}"


class _EvoNormB(_EvoNorm):
    """What B0, B1 and B2 share: the batch variance and its running average."""

    running_var: Tensor
    _kind: str

    def __init__(
        self,
        num_features: int,
        apply_act: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
        *,
        unbiased: bool = False,
        sync: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, apply_act, eps, device, dtype)
        self.momentum = check_range(momentum, "momentum", 0, 1)
        self.unbiased = unbiased
        self.sync = sync
        self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=dtype))

    def _activate(self, x: Tensor) -> Tensor:
        if self.training:
            var, count = batch_variance(x, self.sync)
            self._update(var.detach(), count)
        else:
            var = self.running_var
        return batch_evonorm(x, var, self.v, self.weight, self.bias, self._kind, self.eps)

    def _update(self, var: Tensor, count: Tensor) -> None:
        if self.unbiased:
            var = var * (count / (count - 1).clamp(min=1))
        new = torch.lerp(self.running_var, var.to(self.running_var.dtype), self.momentum)
        self.running_var.copy_(torch.where(new.isfinite(), new, self.running_var))

    def extra_repr(self) -> str:
        """The options that differ between instances."""
        return f"{super().extra_repr()}, momentum={self.momentum}, unbiased={self.unbiased}, sync={self.sync}"


class EvoNorm2dB0(_EvoNormB):
    """Batch statistics, with a learned slope ``v`` against the spread of the single image; replaces BatchNorm + ReLU.

    Parameters
    ----------
    num_features
        Number of channels C.
    apply_act
        ``False``: linear mode, just ``x * weight + bias``, for the places where a BatchNorm has no activation.
    momentum
        Weight of the new batch's variance in ``running_var``, as in ``torch.nn.BatchNorm2d``.
    eps
        Added to every variance under the root. The paper's code has 1e-5 everywhere, timm 1e-3 here.
    unbiased
        Store ``n / (n - 1)`` times the batch variance in ``running_var``, as timm and BatchNorm do; the paper's code
        stores the biased one. Both normalise by the biased one.
    sync
        In training, take the batch variance over all processes of ``torch.distributed`` (like ``SyncBatchNorm``);
        every process must then run the layer equally often.
    device, dtype
        Of parameters and buffer.

    Raises
    ------
    ValueError
        If the input has fewer than three dimensions or another number of channels.

    Notes
    -----
    Any number of trailing dimensions; half precision takes its statistics in float32. A batch without elements leaves
    ``running_var`` alone, and so does a channel with NaN or infinite values (BatchNorm would store the NaN).

    Examples
    --------
    >>> layer = EvoNorm2dB0(8)
    >>> layer(torch.randn(4, 8, 16, 16)).shape
    torch.Size([4, 8, 16, 16])
    >>> sorted(layer.state_dict())
    ['bias', 'running_var', 'v', 'weight']
    """

    has_v, _kind = True, "B0"


class EvoNorm2dB1(_EvoNormB):
    """Batch statistics against the image's root mean square times ``x + 1``; parameters as :class:`EvoNorm2dB0`.

    Examples
    --------
    >>> EvoNorm2dB1(8)(torch.randn(4, 8, 16, 16)).shape
    torch.Size([4, 8, 16, 16])
    """

    _kind = "B1"


class EvoNorm2dB2(_EvoNormB):
    """Batch statistics against the image's root mean square minus ``x``; parameters as :class:`EvoNorm2dB0`.

    Examples
    --------
    >>> EvoNorm2dB2(8)(torch.randn(4, 8, 16, 16)).shape
    torch.Size([4, 8, 16, 16])
    """

    _kind = "B2"


class _EvoNormS(_EvoNorm):
    """What S0, S1 and S2 share: groups of channels."""

    _centred = True

    def __init__(
        self,
        num_features: int,
        groups: int = 32,
        group_size: int | None = None,
        apply_act: bool = True,
        eps: float = 1e-5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, apply_act, eps, device, dtype)
        if group_size is not None:
            if group_size < 1 or num_features % group_size:
                raise ValueError(f"group_size must divide num_features, got {group_size} and {num_features}")
            groups = num_features // group_size
        if not isinstance(groups, int) or groups < 1:
            raise ValueError(f"groups must be a positive integer, got {groups!r}")
        groups = min(groups, num_features)
        while num_features % groups:
            groups -= 1
        self.groups = groups

    def _activate(self, x: Tensor) -> Tensor:
        return sample_evonorm(x, self.v, self.weight, self.bias, self.groups, self._centred, self.eps)

    def extra_repr(self) -> str:
        """The options that differ between instances."""
        return f"{super().extra_repr()}, groups={self.groups}"


class EvoNorm2dS0(_EvoNormS):
    """Group statistics of the single image, with a learned slope ``v`` in the gate; replaces BatchNorm + ReLU.

    Parameters
    ----------
    num_features
        Number of channels C.
    groups
        Groups of channels; lowered to the next number that divides ``num_features``, as in the paper's code.
    group_size
        Channels in a group, instead of ``groups``; must divide ``num_features``.
    apply_act
        ``False``: linear mode, just ``x * weight + bias``, for the places where a BatchNorm has no activation.
    eps
        Added to the variance under the root.
    device, dtype
        Of the parameters.

    Raises
    ------
    ValueError
        If ``group_size`` does not divide ``num_features``, or the input has fewer than three dimensions or another
        number of channels.

    Notes
    -----
    Training and evaluation are the same function. Any number of trailing dimensions; half precision takes its
    statistics in float32. A group of a single value (1 x 1 images with one channel a group) has variance 0 and is
    divided by ``sqrt(eps)``: after global pooling use fewer groups than channels.

    Examples
    --------
    >>> layer = EvoNorm2dS0(8, groups=4)
    >>> layer(torch.randn(4, 8, 16, 16)).shape
    torch.Size([4, 8, 16, 16])
    >>> sorted(layer.state_dict())
    ['bias', 'v', 'weight']
    """

    has_v = True


class EvoNorm2dS1(_EvoNormS):
    """SiLU divided by the standard deviation of its group of channels; parameters as :class:`EvoNorm2dS0`.

    Examples
    --------
    >>> EvoNorm2dS1(8, groups=4)(torch.randn(4, 8, 16, 16)).shape
    torch.Size([4, 8, 16, 16])
    """


class EvoNorm2dS2(_EvoNormS):
    """SiLU divided by the root mean square of its group of channels; parameters as :class:`EvoNorm2dS0`.

    Examples
    --------
    >>> EvoNorm2dS2(8, groups=4)(torch.randn(4, 8, 16, 16)).shape
    torch.Size([4, 8, 16, 16])
    """

    _centred = False


_LAYERS: dict[str, type[_EvoNorm]] = {
    f"evonorm_{layer.__name__[-2:].lower()}": layer
    for layer in (EvoNorm2dB0, EvoNorm2dB1, EvoNorm2dB2, EvoNorm2dS0, EvoNorm2dS1, EvoNorm2dS2)
}


def evonorm(name: str, num_features: int, **options: Any) -> nn.Module:
    """Make the layer that a configuration names.

    Parameters
    ----------
    name
        ``"evonorm_b0"``, ``"evonorm_b1"``, ``"evonorm_b2"``, ``"evonorm_s0"``, ``"evonorm_s1"`` or ``"evonorm_s2"``;
        timm's spelling without the underscore is understood too.
    num_features
        Number of channels.
    options
        Keyword arguments of the layer.

    Raises
    ------
    ValueError
        If no layer has this name.

    Examples
    --------
    >>> evonorm("evonorm_s0", 8, groups=4)
    EvoNorm2dS0(8, apply_act=True, eps=1e-05, groups=4)
    """
    key = name.replace("evonorm_", "evonorm").replace("evonorm", "evonorm_") if isinstance(name, str) else name
    return _LAYERS[check_option(key, "name", tuple(_LAYERS))](num_features, **options)
