"""Spectral Diffusion: UNets of diffusers whose changes of size are wavelet gates, narrow enough to be quick.

They are trained to follow a large UNet by :class:`~hadamard.diffusion.SpectralDistillation`.

References
----------
X. Yang, D. Zhou, J. Feng, X. Wang. Diffusion Probabilistic Model Made Slim. CVPR 2023, arXiv:2211.17106.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from hadamard.diffusion.designs import narrow
from hadamard.diffusion.wavelet_gating import WaveletGatingDown, WaveletGatingUp

from diffusers import UNet2DConditionModel, UNet2DModel  # isort: skip
from diffusers import ModelMixin  # noqa: F401  # isort: skip  (pipelines look it up here, to know how UNets are loaded)
from diffusers.models.downsampling import Downsample2D  # isort: skip
from diffusers.models.upsampling import Upsample2D  # isort: skip

__all__ = ["SpectralUNet2DConditionModel", "SpectralUNet2DModel", "make_spectral_unet"]


def _with_gates(base: Any) -> Callable[..., None]:
    """The constructor of ``base`` with two arguments more, which diffusers finds in its signature and saves."""

    def __init__(self: Any, *args: Any, gate_kernel_size: int = 3, gate_reduction: int = 4, **kwargs: Any) -> None:
        base.__init__(self, *args, **kwargs)
        self.register_to_config(gate_kernel_size=gate_kernel_size, gate_reduction=gate_reduction)
        _swap(self, kernel_size=gate_kernel_size, reduction=gate_reduction)

    own = inspect.signature(__init__).parameters
    taken = [*inspect.signature(base.__init__).parameters.values(), own["gate_kernel_size"], own["gate_reduction"]]
    __init__.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
    return __init__


def _without_self(function: Callable[..., None]) -> inspect.Signature:
    """The signature of a class with this constructor, as pages and prompts show it."""
    _, *rest = inspect.signature(function).parameters.values()
    return inspect.Signature(rest)


class SpectralUNet2DModel(UNet2DModel):
    """``diffusers.UNet2DModel`` that changes sizes by wavelet gates.

    Saves, loads and is called as its base is.

    Parameters
    ----------
    gate_kernel_size, gate_reduction
        ``kernel_size`` and ``reduction`` of :class:`WaveletGatingDown` and :class:`WaveletGatingUp`; by name only. All
        other parameters are those of the base.

    Raises
    ------
    ValueError
        If the blocks change sizes by anything but ``Downsample2D`` and ``Upsample2D``.

    Notes
    -----
    Pipelines save it, and load it once its class has been imported.

    The paper's models have the blocks of latent diffusion, 64 channels at the first level. Gates here depend on the
    features alone, to which each resnet has added the timestep.

    **When not to use it.** A trained UNet does not keep what it has learnt when its samplers are exchanged. And where a
    wide network is trained already, a few of its steps may give better samples than many of a narrow one at equal cost,
    as they do in this method's claim.

    References
    ----------
    X. Yang, D. Zhou, J. Feng, X. Wang. Diffusion Probabilistic Model Made Slim. CVPR 2023, arXiv:2211.17106.

    Examples
    --------
    >>> import torch
    >>> blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    >>> unet = SpectralUNet2DModel(16, block_out_channels=(8, 16), norm_num_groups=4, **blocks)
    >>> unet(torch.randn(1, 3, 16, 16), 10).sample.shape
    torch.Size([1, 3, 16, 16])
    """

    __init__ = _with_gates(UNet2DModel)
    __signature__ = _without_self(__init__)


class SpectralUNet2DConditionModel(UNet2DConditionModel):
    """``diffusers.UNet2DConditionModel``, the UNet of Stable Diffusion, that changes sizes by wavelet gates.

    Parameters, errors and notes are those of :class:`SpectralUNet2DModel`.

    Examples
    --------
    >>> import torch
    >>> blocks = dict(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"))
    >>> blocks |= dict(up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=8)
    >>> unet = SpectralUNet2DConditionModel(8, block_out_channels=(8, 16), norm_num_groups=4, **blocks)
    >>> unet(torch.randn(1, 4, 8, 8), 10, torch.randn(1, 5, 8)).sample.shape
    torch.Size([1, 4, 8, 8])
    """

    __init__ = _with_gates(UNet2DConditionModel)
    __signature__ = _without_self(__init__)


_KINDS = {"UNet2DModel": SpectralUNet2DModel, "UNet2DConditionModel": SpectralUNet2DConditionModel}


def make_spectral_unet(unet: Any, width: int | None = None, **changes: Any) -> Any:
    """A UNet with wavelet gates, of the same kinds of blocks as another, with new weights.

    Parameters
    ----------
    unet
        A ``UNet2DModel`` or ``UNet2DConditionModel``, or the configuration of one with its ``_class_name``.
    width
        Channels of the first level, as for :func:`narrow`; ``None``: those of ``unet``.
    changes
        Other values of the configuration, ``gate_kernel_size`` and ``gate_reduction`` among them.

    Returns
    -------
    SpectralUNet2DModel or SpectralUNet2DConditionModel
        On the CPU, or wherever ``torch.device`` says as a context.

    Raises
    ------
    TypeError
        If ``unet`` is neither.
    ValueError
        As for :func:`narrow` and :class:`SpectralUNet2DModel`.

    Examples
    --------
    >>> teacher = UNet2DModel(16, block_out_channels=(32, 64), norm_num_groups=8,
    ...                       down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    >>> make_spectral_unet(teacher, 8).config.block_out_channels
    (8, 16)
    """
    config: Any = getattr(unet, "config", unet)
    kind = config.get("_class_name", type(unet).__name__) if isinstance(config, Mapping) else type(unet).__name__
    name = kind.removeprefix("Spectral")
    if name not in _KINDS or not isinstance(config, Mapping):
        raise TypeError(f"unet must be a {' or '.join(_KINDS)} or the configuration of one, got {kind}")
    config = {**config, **changes} if width is None else narrow(config, width, **changes)
    return _KINDS[name].from_config({k: v for k, v in config.items() if not k.startswith("_")})


def _swap(unet: Any, **options: Any) -> None:
    """Put wavelet gates where the blocks change sizes, in place."""
    for blocks, attribute, stock, ours in (
        (unet.down_blocks, "downsamplers", Downsample2D, WaveletGatingDown),
        (unet.up_blocks, "upsamplers", Upsample2D, WaveletGatingUp),
    ):
        for block in blocks:
            layers = getattr(block, attribute, [block])  # blocks that skip have others
            if layers is None:
                continue
            for layer in layers:
                if type(layer) is not stock:
                    raise ValueError(
                        "the blocks must change sizes by Downsample2D and Upsample2D, got "
                        f"{type(layer).__name__} in {type(block).__name__}"
                    )
            made = [ours(layer.channels, layer.out_channels, **options) for layer in layers]
            setattr(block, attribute, nn.ModuleList(made))
