"""How networks for residual denoising are asked and trained, and how one finds out what it should predict."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from hadamard.diffusion.rddm import RDDMScheduler
from hadamard.diffusion.residual_process import clean_from_noise, noise_from_residual
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["AutoObjective", "rddm_loss", "rddm_output"]


def rddm_output(
    unet: nn.Module,
    scheduler: RDDMScheduler,
    sample: Float[Tensor, "b c h w"],
    timesteps: int | Int64[Tensor, "*b"],
    input_image: Float[Tensor, "b c h w"] | None = None,
    *,
    unet_noise: nn.Module | None = None,
    class_labels: Int64[Tensor, " b"] | None = None,
) -> Float[Tensor, "b d h w"]:
    """Ask the network or the two networks, and return what the scheduler's ``step`` takes.

    Parameters
    ----------
    unet
        A ``UNet2DModel`` whose input is the sample, followed by the degraded picture on the channels where there is
        one. It gives what ``scheduler.config.prediction_type`` says.
    scheduler
        It knows what a network is told of the timestep.
    sample
        Pictures on their way, in [-1, 1] but for noise.
    timesteps
        One, or one for each.
    input_image
        Degraded pictures.
    unet_noise
        A network for the noise alone; then ``unet`` gives the other half of ``"residual_epsilon"`` or
        ``"sample_epsilon"``.
    class_labels
        Classes, where the networks take them.

    Raises
    ------
    ValueError
        If there is a second network, and the scheduler's prediction is not of two pictures.
    """
    kind = scheduler.config.prediction_type
    if unet_noise is not None and "_" not in kind:
        raise ValueError(f"unet_noise goes with a prediction_type of two pictures, got {kind!r}")
    x = sample if input_image is None else torch.cat([sample, input_image], 1)
    more = {} if class_labels is None else {"class_labels": class_labels}
    of_residual, of_noise = (t.to(x.device) for t in scheduler.time_inputs(timesteps))
    first = unet(x, of_noise if kind == "epsilon" else of_residual, **more).sample
    return first if unet_noise is None else torch.cat([first, unet_noise(x, of_noise, **more).sample], 1)


def rddm_loss(
    unet: nn.Module,
    scheduler: RDDMScheduler,
    clean: Float[Tensor, "b c h w"],
    input_image: Float[Tensor, "b c h w"] | None = None,
    *,
    unet_noise: nn.Module | None = None,
    class_labels: Int64[Tensor, " b"] | None = None,
    loss: str = "l1",
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Draw timesteps and noise, and say how far what the networks predict is from the truth.

    Parameters
    ----------
    clean
        Pictures in [-1, 1].
    input_image
        The same, degraded; ``None``: to learn to generate.
    loss
        ``"l1"`` (the authors') or ``"l2"``: the mean over the pixels, added up over the pictures that are predicted.
    generator
        Of the timesteps and the noise, on its own device.
    unet, scheduler, unet_noise, class_labels
        As for :func:`rddm_output`.

    Raises
    ------
    ValueError
        If shapes differ, a value is not finite, or the network gives another number of channels than the prediction
        has.

    Examples
    --------
    >>> from diffusers import UNet2DModel
    >>> blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    >>> unet = UNet2DModel(8, 6, 3, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **blocks)
    >>> clean, degraded = torch.rand(2, 4, 3, 8, 8) * 2 - 1
    >>> rddm_loss(unet, RDDMScheduler(prediction_type="residual"), clean, degraded).backward()
    """
    check_option(loss, "loss", ("l1", "l2"))
    x, timesteps, noise, residual = _drawn(scheduler, clean, input_image, generator)
    output = rddm_output(
        unet, scheduler, x, timesteps, input_image, unet_noise=unet_noise, class_labels=class_labels
    )  # fmt: skip
    targets = {"residual": residual, "epsilon": noise, "sample": clean}
    parts = [targets[name] for name in scheduler.config.prediction_type.split("_")]
    wanted = torch.cat(parts, 1)
    if output.shape != wanted.shape:
        raise ValueError(
            f"the network must give {wanted.shape[1]} channels for {scheduler.config.prediction_type!r}, got "
            f"{output.shape[1]}"
        )
    distance = F.l1_loss if loss == "l1" else F.mse_loss
    return len(parts) * distance(output, wanted)


class AutoObjective(nn.Module):
    """Let training choose between predicting the residual and predicting the noise.

    The network's one output is read as both. A learnable weight, at first 1/2, mixes each reading with what follows
    from the other one, and the two losses; as soon as it leaves 1/2 by the threshold, the choice is made. Then begin
    again with new weights and a scheduler of that ``prediction_type``.

    Parameters
    ----------
    threshold
        How far from 1/2, in (0, 1/2).

    Attributes
    ----------
    weight : nn.Parameter
        Of the residual.

    References
    ----------
    J. Liu, Q. Wang, H. Fan, Y. Wang, Y. Tang, L. Qu. Residual Denoising Diffusion Models. CVPR 2024, arXiv:2308.13712:
    automatic objective selection.

    Examples
    --------
    >>> auto = AutoObjective()
    >>> auto.choice is None                 # train ``auto(unet, scheduler, clean, degraded)`` with both's parameters
    True
    >>> with torch.no_grad():
    ...     auto.weight += 0.02
    >>> auto.choice
    'residual'
    """

    def __init__(self, threshold: float = 0.01) -> None:
        super().__init__()
        self.threshold = check_range(threshold, "threshold", 0, 0.5, closed="neither")
        self.weight = nn.Parameter(torch.tensor(0.5))

    @property
    def choice(self) -> str | None:
        """``"residual"``, ``"epsilon"``, or ``None`` as long as it is open."""
        distance = float(self.weight.detach()) - 0.5
        if abs(distance) <= self.threshold:
            return None
        return "residual" if distance > 0 else "epsilon"

    def forward(
        self,
        unet: nn.Module,
        scheduler: RDDMScheduler,
        clean: Float[Tensor, "b c h w"],
        input_image: Float[Tensor, "b c h w"] | None = None,
        *,
        class_labels: Int64[Tensor, " b"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """Draw timesteps and noise, and return the loss of both readings; arguments as for :func:`rddm_loss`.

        Raises
        ------
        ValueError
            If shapes differ, or a value is not finite.
        """
        x, timesteps, noise, residual = _drawn(scheduler, clean, input_image, generator)
        output = rddm_output(unet, scheduler, x, timesteps, input_image, class_labels=class_labels)
        degraded = torch.zeros_like(clean) if input_image is None else input_image
        a, b = (
            s[timesteps.cpu()].to(clean).reshape(-1, 1, 1, 1)
            for s in (scheduler.residual_cumsum, scheduler.noise_cumsum)
        )
        from_noise = degraded - clean_from_noise(x, degraded, output, a, b).clamp(-1, 1)
        from_residual = noise_from_residual(x, degraded, output, a, b)
        w = self.weight
        of_residual = F.l1_loss(w * output + (1 - w) * from_noise, residual)
        of_noise = F.l1_loss(w * from_residual + (1 - w) * output, noise)
        return w * of_residual + (1 - w) * of_noise


def _drawn(
    scheduler: RDDMScheduler, clean: Tensor, input_image: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy samples, their timesteps, their noise and their residual."""
    check_tensor(clean, "clean", ndim=4, dtype="floating")
    where = generator.device if generator is not None else clean.device
    timesteps = torch.randint(len(scheduler), (len(clean),), generator=generator, device=where).to(clean.device)
    noise = torch.randn(clean.shape, generator=generator, device=where, dtype=clean.dtype).to(clean.device)
    x = scheduler.add_noise(clean, noise, timesteps, input_image)
    return x, timesteps, noise, -clean if input_image is None else input_image - clean
