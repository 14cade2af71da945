"""The loss of Spectral Diffusion: a narrow denoiser follows a large one, the more strictly the rarer a frequency is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from hadamard.diffusion.distillation import matching, sample_of, watched
from hadamard.diffusion.profile import example_inputs
from hadamard.spectral import half_spectrum_counts, weighted_norm
from hadamard.validation import check_range, check_tensor

__all__ = ["SpectralDistillation", "SpectrallyDistilled", "spectral_weight"]

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def spectral_weight(
    x0: Float[Tensor, "b c h w"], size: Sequence[int] | None = None, alpha: float = -1.0, floor: float = 1e-3
) -> Float[Tensor, "b 1 H half"]:
    """How much each frequency of an error counts: a power of the clean picture's amplitude, with mean 1.

    Parameters
    ----------
    x0
        Clean pictures or latents.
    size
        Height and width to average them down to first; ``None``: their own.
    alpha
        The power; -1 stresses what is rare in the picture, 0 weighs all alike.
    floor
        Least amplitude, as a share of the picture's greatest: it bounds the weights.

    Returns
    -------
    Tensor
        On the frequencies of :func:`torch.fft.rfft2`, without gradient; amplitudes are averaged over the channels, and
        the mean is over all frequencies, so that a weighted norm with ``alpha = 0`` is the plain one.

    Raises
    ------
    ValueError
        If ``x0`` is not finite or ``floor`` not in (0, 1].

    Examples
    --------
    >>> flat = torch.ones(1, 3, 4, 4)                  # nothing but its mean
    >>> w = spectral_weight(flat, floor=0.5)[0, 0]
    >>> bool(w[0, 1] / w[0, 0] == 2)
    True
    """
    check_tensor(x0, "x0", ndim=4, dtype="floating")
    check_range(floor, "floor", 0, 1, "right")
    with torch.no_grad(), torch.autocast(x0.device.type, enabled=False):
        x = x0 if x0.dtype == torch.float64 else x0.float()
        if size is not None:
            x = F.interpolate(x, tuple(size), mode="area")
        height, width = x.shape[-2:]
        amplitude = torch.fft.rfft2(x).abs().mean(1, keepdim=True)
        peak = amplitude.amax((-2, -1), keepdim=True)
        weight = torch.where(peak > 0, amplitude / peak, 1).clamp_min(floor) ** alpha
        counts = half_spectrum_counts(width, dtype=x.dtype, device=x.device)
        return weight / ((weight * counts).sum((-2, -1), keepdim=True) / (height * width))


@dataclass(frozen=True)
class SpectrallyDistilled:
    """The loss of a batch and its three parts, before their weights.

    Attributes
    ----------
    loss
        What is to be lowered.
    task
        Mean squared error to the target.
    spatial
        Sum over the taps of the mean squared error to the teacher's features, relative to their mean square.
    frequency
        The same, with the frequencies of the error weighted by :func:`spectral_weight`.
    """

    loss: Tensor
    task: Tensor
    spatial: Tensor
    frequency: Tensor


class SpectralDistillation(nn.Module):
    """Compare a student with its target and, in space and by frequencies, with features of a wider teacher.

    The loss is that of denoising, plus 0.1 times the squared errors of features and output, plus 0.1 times those errors
    with frequency f weighted by ``|X0(f)|^alpha``. A convolution of kernel size 1, which is trained along, turns the
    student's channels into the teacher's: give the optimizer ``student.parameters()`` and those of this module.

    Parameters
    ----------
    teacher
        A trained network, of any width; it runs without gradients, and stays in whatever mode it is.
    student
        A network that is called like it and has modules of the same names, as :func:`make_spectral_unet` makes it.
    taps
        Patterns of module names whose outputs are compared, the first tensor of each; the output always is. Good taps
        have one size in both networks: the ends of blocks.
    alpha, floor
        As for :func:`spectral_weight`.
    spatial_weight, frequency_weight
        Weights of the two parts that come from the teacher; that of the task is 1. Zero leaves a part out.
    inputs
        Positional and named arguments of a call, of tensors on ``meta``, from which the channels are found without
        computing anything; ``None``: those of diffusers' UNets.

    Raises
    ------
    ValueError
        If no module of both has such a name, features differ in size, a weight is negative, or ``floor`` is not in
        (0, 1]; at a call, if the clean pictures are not finite.

    Notes
    -----
    Each error is a mean over channels and positions, divided by the mean square of the teacher's features, so that the
    weights mean the same at every size and no tap outweighs the others; the paper sums squares. With ``alpha = 0`` the
    two parts are equal (Parseval). Where a student has as many channels as its teacher, the convolution starts as the
    identity. The modules of both networks are not registered here: ``state_dict`` holds the convolutions.

    References
    ----------
    X. Yang, D. Zhou, J. Feng, X. Wang. Diffusion Probabilistic Model Made Slim. CVPR 2023, arXiv:2211.17106.

    Examples
    --------
    >>> from diffusers import UNet2DModel
    >>> from hadamard.diffusion import make_spectral_unet
    >>> teacher = UNet2DModel(16, block_out_channels=(16, 32), norm_num_groups=8,
    ...                       down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    >>> student = make_spectral_unet(teacher, 8)
    >>> compare = SpectralDistillation(teacher, student)
    >>> clean, noise = torch.rand(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    >>> found = compare(clean + noise, torch.tensor([10, 500]), target=noise, x0=clean)
    >>> found.loss.backward()
    >>> bool((found.loss - (found.task + 0.1 * found.spatial + 0.1 * found.frequency)).abs() < 1e-5)
    True
    """

    def __init__(
        self,
        teacher: Any,
        student: Any,
        taps: Sequence[str] = ("down_blocks.?", "mid_block", "up_blocks.?"),
        *,
        alpha: float = -1.0,
        floor: float = 1e-3,
        spatial_weight: float = 0.1,
        frequency_weight: float = 0.1,
        inputs: Inputs | None = None,
    ) -> None:
        super().__init__()
        self.alpha, self.floor = float(alpha), check_range(floor, "floor", 0, 1, "right")
        self.spatial_weight = check_range(spatial_weight, "spatial_weight", 0)
        self.frequency_weight = check_range(frequency_weight, "frequency_weight", 0)
        self._networks = (teacher, student)  # a tuple, so that neither is registered
        self.taps = matching(teacher, student, taps)
        wanted, found = _shapes(teacher, self.taps, inputs), _shapes(student, self.taps, inputs)
        if any(wanted[name][2:] != found[name][2:] for name in self.taps):
            pairs = ", ".join(f"{n}: {tuple(wanted[n])} and {tuple(found[n])}" for n in self.taps)
            raise ValueError(f"taps must have one size in teacher and student, got {pairs}")
        weight = next(student.parameters())
        self.align = nn.ModuleDict(
            {_key(name): _aligner(found[name][1], wanted[name][1]).to(weight) for name in self.taps}
        )

    @property
    def teacher(self) -> Any:
        """The network that is followed."""
        return self._networks[0]

    @property
    def student(self) -> Any:
        """The network that is trained."""
        return self._networks[1]

    def taught(self, *inputs: Any, **more: Any) -> dict[str, Tensor]:
        """What the teacher gives for a batch, by tap; students with the same taps may share it."""
        with torch.no_grad(), watched(self.teacher, self.taps) as seen:
            output = sample_of(self.teacher(*inputs, **more))
        return {**seen, "": output}

    def forward(
        self,
        *inputs: Any,
        target: Tensor,
        x0: Float[Tensor, "b c h w"],
        taught: Mapping[str, Tensor] | None = None,
        **more: Any,
    ) -> SpectrallyDistilled:
        """Run the networks on a batch and compare.

        Parameters
        ----------
        inputs, more
            What both networks are called with.
        target
            What the student should give: the noise, say.
        x0
            The clean pictures or latents of the batch.
        taught
            What :meth:`taught` gave for it; ``None``: the teacher runs.
        """
        wanted = self.taught(*inputs, **more) if taught is None else taught
        with watched(self.student, self.taps) as seen:
            made = sample_of(self.student(*inputs, **more))
        pairs = [(self.align[_key(name)](seen[name]), wanted[name]) for name in self.taps] + [(made, wanted[""])]
        task = F.mse_loss(made, target)
        spatial = frequency = torch.zeros_like(task)
        if self.spatial_weight:
            spatial = torch.stack([F.mse_loss(a, b) / b.square().mean() for a, b in pairs]).sum()
        if self.frequency_weight:
            sizes = {tuple(b.shape[-2:]) for _, b in pairs}
            weights = {size: spectral_weight(x0, size, self.alpha, self.floor) for size in sizes}
            frequency = torch.stack([_weighted(a, b, weights[tuple(b.shape[-2:])]) for a, b in pairs]).sum()
        loss = task + self.spatial_weight * spatial + self.frequency_weight * frequency
        return SpectrallyDistilled(loss, task, spatial, frequency)


def _weighted(made: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Mean square of the error with its frequencies weighted, relative to that of what is wanted."""
    with torch.autocast(made.device.type, enabled=False):
        made, wanted = made.to(weight.dtype), wanted.to(weight.dtype)
        return weighted_norm(made - wanted, weight, squared=True).mean() / wanted.square().mean()


def _shapes(network: Any, names: Sequence[str], inputs: Inputs | None) -> dict[str, torch.Size]:
    """Shapes of what modules give, from shapes alone."""
    if inputs is None:
        config = network.config
        size = config.sample_size or 2 ** len(config.block_out_channels)
        inputs = example_inputs(network, 1, (size, size) if isinstance(size, int) else tuple(size), 8, "meta")
    state = {name: t.to("meta") for name, t in [*network.named_parameters(), *network.named_buffers()]}
    with torch.no_grad(), watched(network, names) as seen:
        functional_call(network, state, *inputs)
    for name in names:
        if seen[name].ndim != 4:
            raise ValueError(f"taps must give features of shape (B, C, H, W), got {tuple(seen[name].shape)} at {name}")
    return {name: seen[name].shape for name in names}


def _aligner(found: int, wanted: int) -> nn.Conv2d:
    layer = nn.Conv2d(found, wanted, 1)
    if found == wanted:
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _key(name: str) -> str:
    return name.replace(".", "-")
