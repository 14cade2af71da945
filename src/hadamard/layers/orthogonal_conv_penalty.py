"""A penalty for the loss that makes the convolutions of a network orthogonal."""

import warnings
from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.layers.orthogonal_conv import lorth
from hadamard.layers.orthogonal_conv_exact import OrthogonalConv2d
from hadamard.layers.orthogonal_conv_existence import orthogonal_conv_exists
from hadamard.validation import check_range

__all__ = ["OrthogonalRegularizer"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class OrthogonalRegularizer:
    """The penalty that makes a network's convolutions orthogonal: ``loss + regularizer()``.

    Parameters
    ----------
    model
        Its convolutions, transposed ones too, are found once, here; the model is not changed.
    lam
        Weight of the penalty, at least 0. The paper sweeps it over several decades: a larger one gives more
        orthogonality and robustness, a smaller one accuracy.
    skip
        Names of modules that are left alone, as ``model.named_modules()`` gives them, and all inside them.
    linear
        Whether ``nn.Linear`` layers are penalised as well, as convolutions with one tap.

    Attributes
    ----------
    layers : dict
        The layers that are penalised, by name. Layers that are exactly orthogonal by construction
        (:class:`~hadamard.layers.OrthogonalConv2d`) are not among them.

    Raises
    ------
    ValueError
        If there is no layer to penalise, a layer's shape admits no orthogonal convolution (put it into ``skip``), or a
        layer has both a stride and a dilation.

    Warns
    -----
    UserWarning
        If layers pad with zeros. Their singular values are bounded from above as with circular padding, but near the
        border they are not isometric.

    Notes
    -----
    It costs as much for large images as for small ones, and nothing when the network is used. **Not for** layers that
    must be orthogonal to rounding: there :class:`~hadamard.layers.OrthogonalConv2d` is exact. Where only the largest
    singular value matters, ``torch.nn.utils.parametrizations.spectral_norm`` restricts less.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), nn.ReLU())
    >>> regularizer = OrthogonalRegularizer(net, lam=0.1)
    >>> list(regularizer.layers)
    ['0']
    >>> bool(regularizer() > 0)
    True
    """

    def __init__(self, model: nn.Module, lam: float, *, skip: Collection[str] = (), linear: bool = False) -> None:
        self.lam = check_range(lam, "lam", 0)
        kinds = (*_CONVOLUTIONS, nn.Linear) if linear else _CONVOLUTIONS
        skipped = [name + "." for name in skip]
        self.layers = {
            name: layer
            for name, layer in model.named_modules()
            if isinstance(layer, kinds)
            and not (isinstance(layer, OrthogonalConv2d) and nn.utils.parametrize.is_parametrized(layer, "weight"))
            and not any((name + ".").startswith(s) for s in skipped)
        }
        if not self.layers:
            raise ValueError(f"model must have a convolution to penalise, got none in {type(model).__name__}")
        for name, layer in self.layers.items():
            _check_layer(name, layer)
        bordered = [name for name, layer in self.layers.items() if _pads_with_zeros(layer)]
        if bordered:
            warnings.warn(
                f"{len(bordered)} layer(s) pad with zeros ({', '.join(bordered[:3])}{', ...' * (len(bordered) > 3)}) "
                "and cannot be isometric near the border; padding_mode='circular' can",
                stacklevel=2,
            )

    def __call__(self) -> Float[Tensor, ""]:
        """``lam`` times the sum of ``L_orth`` over the layers, for the loss."""
        return self.lam * torch.stack([_layer_lorth(layer) for layer in self.layers.values()]).sum()

    @torch.no_grad()
    def values(self) -> dict[str, float]:
        """``L_orth`` of each layer by its name, for a log."""
        return {name: float(_layer_lorth(layer)) for name, layer in self.layers.items()}


def _layer_lorth(layer: nn.Module) -> Tensor:
    if isinstance(layer, nn.Linear):
        return lorth(layer.weight[..., None])
    return lorth(layer.weight, layer.stride, layer.groups)  # type: ignore[arg-type]


def _check_layer(name: str, layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        return
    strided = [s > 1 and d > 1 for s, d in zip(layer.stride, layer.dilation)]  # type: ignore[arg-type]
    if any(strided):
        raise ValueError(f"{name} must not have both a stride and a dilation, got {layer.stride} and {layer.dilation}")
    weight, groups = layer.weight, layer.groups
    found = orthogonal_conv_exists(
        weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:]), layer.stride, groups=groups  # type: ignore
    )  # fmt: skip
    if not found:
        raise ValueError(f"{name} cannot be orthogonal ({found.reason}); put it into skip")


def _pads_with_zeros(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros":
        return False
    padding = layer.padding
    padded = padding == "same" or (not isinstance(padding, str) and any(padding))  # type: ignore[arg-type]
    return padded and any(k > 1 for k in layer.kernel_size)  # type: ignore[union-attr]
