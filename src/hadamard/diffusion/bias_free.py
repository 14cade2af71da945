"""Denoising networks without additive constants: scaling the picture and its noise scales what they return.

Every layer is homogeneous of degree one, ``net(c y) = c net(y)`` for ``c >= 0``, so that the denoised picture is the
Jacobian at ``y`` applied to ``y`` itself, and one network serves all levels of noise without being told which it is.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard.validation import check_range, check_tensor

__all__ = ["BFBatchNorm2d", "BiasFreeUNet"]


class BFBatchNorm2d(nn.Module):
    """Batch normalisation without a mean and without a shift: divide by the standard deviation, multiply by a gain.

    Parameters
    ----------
    num_features
        Channels C of the input (B, C, H, W).
    eps
        Added to the variance.
    momentum
        Weight of the new value in the running standard deviation.

    Attributes
    ----------
    weight : Parameter
        The gains, shape (C,), at first 1.
    running_sd : Tensor
        Running standard deviations (not variances), shape (C,): what evaluation divides by.

    Notes
    -----
    The deviation is taken about the mean, though the mean is not subtracted. The authors' code draws the first gains
    from a normal distribution clamped to 0.025; beginning at 1 trains faster where steps are few.

    Examples
    --------
    >>> BFBatchNorm2d(3).eval()(torch.ones(2, 3, 4, 4)).unique()
    tensor([1.], grad_fn=<Unique2Backward0>)
    """

    running_sd: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        check_range(num_features, "num_features", 1, integer=True)
        self.eps = check_range(eps, "eps", 0, closed="neither")
        self.momentum = check_range(momentum, "momentum", 0, 1)
        self.weight = nn.Parameter(torch.ones(num_features))
        self.register_buffer("running_sd", torch.ones(num_features))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalise; while training by the batch, which updates the running deviations, otherwise by these."""
        sd = self.running_sd
        if self.training:
            wide = x if x.dtype == torch.float64 else x.float()
            sd = (wide.var(dim=(0, 2, 3), unbiased=False) + self.eps).sqrt()
            with torch.no_grad():
                self.running_sd.lerp_(sd.to(self.running_sd), self.momentum)
        return x * (self.weight / sd).to(x.dtype)[:, None, None]


class BiasFreeUNet(nn.Module):
    """A U-Net without additive constants that returns the noise in a picture, at any level of noise.

    Parameters
    ----------
    in_channels
        Of the pictures.
    channels
        Of the finest level; each coarser one has twice as many.
    num_blocks
        Number of times that height and width are halved; both must be multiples of ``2 ** num_blocks``.
    convs
        Convolutions a block, at least 2.

    Notes
    -----
    ``y - net(y)`` is the denoised picture; :func:`~hadamard.diffusion.as_denoiser` makes a denoiser of it. In training
    mode the normalisation sees the batch; homogeneity is that of :meth:`~torch.nn.Module.eval`.

    **When not to use it**: on pictures that are centred, in [-1, 1]: without constants an even grey of zero is all that
    is left at high noise. Give it pictures in [0, 1].

    References
    ----------
    S. Mohan, Z. Kadkhodaie, E. P. Simoncelli, C. Fernandez-Granda. Robust and Interpretable Blind Image Denoising via
    Bias-Free Convolutional Neural Networks. ICLR 2020, arXiv:1906.05478.

    Examples
    --------
    >>> net = BiasFreeUNet(channels=8, num_blocks=2).eval()
    >>> y = torch.rand(1, 1, 16, 16)
    >>> torch.allclose(net(3 * y), 3 * net(y), rtol=1e-4, atol=1e-5)
    True
    """

    def __init__(self, in_channels: int = 1, channels: int = 64, num_blocks: int = 3, convs: int = 2) -> None:
        super().__init__()
        check_range(in_channels, "in_channels", 1, integer=True)
        check_range(channels, "channels", 1, integer=True)
        self.num_blocks = check_range(num_blocks, "num_blocks", 1, integer=True)
        check_range(convs, "convs", 2, integer=True)
        widths = [channels * 2**b for b in range(num_blocks + 1)]
        self.encoder = nn.ModuleList()
        for b in range(num_blocks):
            self.encoder.append(_block(widths[b - 1] if b else in_channels, widths[b], convs, plain_first=b == 0))
        self.mid_block = _block(widths[-2], widths[-1], convs)
        self.upsample = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for b in range(num_blocks):
            self.upsample.append(nn.ConvTranspose2d(widths[b + 1], widths[b], 2, stride=2, bias=False))
            self.decoder.append(_block(widths[b + 1], widths[b], convs - (b == 0)))
        last = self.decoder[0]
        assert isinstance(last, nn.Sequential)
        last.append(nn.Conv2d(channels, in_channels, 3, padding=1, bias=False))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor]) -> "BiasFreeUNet":
        """Build the network from weights of the authors' repository, whose sizes are read off them.

        Parameters
        ----------
        state_dict
            What ``torch.load`` gives for a ``model.pt`` of
            github.com/LabForComputationalVision/memorization_generalization_in_diffusion_models.

        Raises
        ------
        ValueError
            If it is not the state of such a network.
        """
        state = {name.removeprefix("module."): value for name, value in state_dict.items()}
        try:
            channels, in_channels = state["encoder.0.0.weight"].shape[:2]
        except KeyError as error:
            raise ValueError("state_dict must be that of the authors' UNet, got no encoder.0.0.weight") from error
        num_blocks = len({name.split(".")[1] for name in state if name.startswith("encoder.")})
        convs = sum(name.startswith("mid_block.") and value.ndim == 4 and "weight" in name
                    for name, value in state.items())  # fmt: skip
        ours = {}
        for name, value in state.items():
            if name.endswith((".gammas", ".running_sd")):
                name, value = name.replace(".gammas", ".weight"), value.flatten()
            ours[name] = value
        net = cls(in_channels, channels, num_blocks, convs)
        try:
            net.load_state_dict(ours)
        except RuntimeError as error:
            raise ValueError(f"state_dict must be that of the authors' UNet: {error}") from error
        return net.eval()

    def forward(self, y: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Estimate the noise in pictures.

        Raises
        ------
        ValueError
            If height or width is no multiple of ``2 ** num_blocks``.
        """
        check_tensor(y, "y", ndim=4, dtype="floating")
        step = 2**self.num_blocks
        if y.shape[-2] % step or y.shape[-1] % step:
            raise ValueError(f"y must have height and width that are multiples of {step}, got {tuple(y.shape)}")
        skips = []
        for block in self.encoder:
            y = block(y)
            skips.append(y)
            y = F.avg_pool2d(y, 2)
        y = self.mid_block(y)
        for up, block, skip in zip(reversed(self.upsample), reversed(self.decoder), reversed(skips)):
            y = block(torch.cat([up(y), skip], 1))
        return y


def _block(inputs: int, width: int, convs: int, plain_first: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(convs):
        layers.append(nn.Conv2d(width if i else inputs, width, 3, padding=1, bias=False))
        if i or not plain_first:
            layers.append(BFBatchNorm2d(width))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
