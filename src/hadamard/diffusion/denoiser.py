"""One face for networks that predict noise, pictures or velocities: a picture and its noise level in, a clean one out.

A noisy picture is ``x = x0 + sigma z`` with standard normal ``z``. Diffusion models scale it, ``x_t = sqrt(a) x`` with
``a = 1 / (1 + sigma^2)`` the product of the schedule's alphas; the scaling stays inside.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["Denoiser", "DiffusersDenoiser", "as_denoiser", "convert", "noise_levels"]

PREDICTIONS = ("sample", "epsilon", "v_prediction", "noise", "score")


def convert(
    value: Float[Tensor, "b *shape"],
    x: Float[Tensor, "b *shape"],
    sigma: float | Float[Tensor, "..."],
    given: str,
    wanted: str,
) -> Float[Tensor, "b *shape"]:
    """Turn one prediction of a noisy picture into another.

    Parameters
    ----------
    value
        What was predicted.
    x
        The noisy picture ``x0 + sigma z``, not scaled.
    sigma
        Level of noise, positive: a number, or one for each picture, shape (B,).
    given, wanted
        ``"sample"``: the clean picture x0; ``"epsilon"``: the noise z of unit variance; ``"noise"``: sigma z;
        ``"v_prediction"``: ``(z - sigma x0) / sqrt(1 + sigma^2)``; ``"score"``: the gradient of the log-density of x,
        ``(x0 - x) / sigma^2``.

    Raises
    ------
    ValueError
        If there is no such prediction, or ``sigma`` is not positive.

    Examples
    --------
    >>> x0, z = torch.ones(1, 2), torch.tensor([[0.5, -0.5]])
    >>> convert(z, x0 + 2 * z, 2.0, "epsilon", "sample")
    tensor([[1., 1.]])
    """
    check_option(given, "given", PREDICTIONS)
    check_option(wanted, "wanted", PREDICTIONS)
    s = _levels(sigma, x)
    if given == wanted:
        return value
    scale = (1 + s.square()).sqrt()
    if given == "sample":
        clean = value
    elif given == "epsilon":
        clean = x - s * value
    elif given == "noise":
        clean = x - value
    elif given == "v_prediction":
        clean = x / scale.square() - s / scale * value
    else:
        clean = x + s.square() * value
    if wanted == "sample":
        return clean
    if wanted == "noise":
        return x - clean
    if wanted == "epsilon":
        return (x - clean) / s
    if wanted == "v_prediction":
        return ((x - clean) / s - s * clean) / scale
    return (clean - x) / s.square()


def noise_levels(schedule: Any) -> Float[Tensor, " t"]:
    """Levels of noise ``sqrt((1 - a) / a)`` of a schedule's timesteps, in double precision.

    Parameters
    ----------
    schedule
        A scheduler of diffusers with ``alphas_cumprod``, or that tensor of products a in (0, 1), decreasing.

    Raises
    ------
    TypeError, ValueError
        If it is neither.

    Examples
    --------
    >>> noise_levels(torch.tensor([0.8, 0.2]))
    tensor([0.5000, 2.0000], dtype=torch.float64)
    """
    kept = getattr(schedule, "alphas_cumprod", schedule)
    if not isinstance(kept, Tensor):
        raise TypeError(f"schedule must have alphas_cumprod or be a tensor of them, got {type(schedule).__name__}")
    kept = check_tensor(kept, "schedule", ndim=1, dtype="floating").double()
    check_range(kept, "schedule", 0, 1, closed="neither", elementwise=True)
    if bool((kept.diff() >= 0).any()):
        raise ValueError("schedule must decrease: products of alphas, the cleanest first")
    return ((1 - kept) / kept).sqrt()


class Denoiser(nn.Module):
    """A network as a map ``(x, sigma) -> x0``; made by :func:`as_denoiser`.

    Parameters
    ----------
    net, prediction, schedule, options
        As there.
    """

    levels: Tensor | None

    def __init__(
        self,
        net: Callable[..., Any],
        prediction: str = "epsilon",
        schedule: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not callable(net):
            raise TypeError(f"net must be callable, got {type(net).__name__}")
        self.net, self.options = net, options
        self.prediction = check_option(prediction, "prediction", PREDICTIONS)
        self.told = isinstance(schedule, str)
        if self.told:
            check_option(schedule, "schedule", ("sigma",))
        tabled = schedule is not None and not self.told
        self.register_buffer("levels", noise_levels(schedule) if tabled else None, persistent=False)
        self.train(isinstance(net, nn.Module) and net.training)

    def forward(self, x: Float[Tensor, "b *shape"], sigma: float | Float[Tensor, "..."]) -> Float[Tensor, "b *shape"]:
        """Take the noise away.

        Parameters
        ----------
        x
            Noisy pictures ``x0 + sigma z``.
        sigma
            Level of noise: a number, or one for each picture.

        Raises
        ------
        TypeError, ValueError
            If ``x`` is no floating tensor, or ``sigma`` is not positive or far outside the schedule.
        """
        check_tensor(x, "x", dtype="floating")
        s = _levels(sigma, x)
        if self.levels is not None:
            t = self.timestep(s.flatten()).expand(len(x))
            output = self.net(x / (1 + s.square()).sqrt(), t, **self.options)
        elif self.told:
            output = self.net(x, s.flatten().expand(len(x)), **self.options)
        else:
            output = self.net(x, **self.options)
        return convert(getattr(output, "sample", output), x, s, self.prediction, "sample")

    def timestep(self, sigma: float | Float[Tensor, " b"]) -> Tensor:
        """Find the timesteps whose noise is nearest, in the logarithm.

        Raises
        ------
        ValueError
            If there is no schedule, or a level lies outside it by more than a tenth.
        """
        if self.levels is None:
            raise ValueError("timestep needs a schedule with which the denoiser was made")
        s = torch.as_tensor(sigma, device=self.levels.device).detach().double().reshape(-1)
        low, high = float(self.levels[0]), float(self.levels[-1])
        check_range(s, "sigma", low / 1.1, high * 1.1, elementwise=True)
        return (s.log()[:, None] - self.levels.log()).abs().argmin(1)


class DiffusersDenoiser(Denoiser):
    """A UNet and a scheduler of diffusers as a denoiser, so that it can be analysed as any other.

    Parameters
    ----------
    unet
        Called as ``unet(x_t, timesteps, **condition)``.
    scheduler
        With ``alphas_cumprod`` and a ``prediction_type``: DDPM, DDIM, DPM-Solver and others.
    condition
        What else the network is called with: ``class_labels``, ``encoder_hidden_states``. They must fit the batch.

    Notes
    -----
    The timestep is the one of the schedule whose noise is nearest to ``sigma``; the scaling is exact. Pictures are in
    the network's own range, mostly [-1, 1], or latents. Its Jacobian is that at fixed ``sigma``; such networks have
    biases, so that ``J y`` is not what they return (``JacobianSpectrum.remainder`` says by how much).

    Examples
    --------
    >>> from diffusers import DDIMScheduler, UNet2DModel
    >>> blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    >>> unet = UNet2DModel(8, 1, 1, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **blocks)
    >>> DiffusersDenoiser(unet, DDIMScheduler())(torch.rand(2, 1, 8, 8), 0.5).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, unet: Callable[..., Any], scheduler: Any, **condition: Any) -> None:
        kind = getattr(getattr(scheduler, "config", None), "prediction_type", "epsilon")
        super().__init__(unet, kind, scheduler, **condition)


def as_denoiser(net: Callable[..., Any], prediction: str = "epsilon", schedule: Any = None, **options: Any) -> Denoiser:
    """Make a denoiser ``D(x, sigma) -> x0`` of a network.

    Parameters
    ----------
    net
        The network. What it returns may have the prediction as its attribute ``sample``.
    prediction
        What it predicts: one of those of :func:`convert`.
    schedule
        How it is told the level of noise. ``None``: not at all, it is called with ``x`` alone (a blind denoiser);
        ``"sigma"``: it is called with ``x`` and the levels, shape (B,); a scheduler of diffusers or its
        ``alphas_cumprod``: with the scaled picture and the nearest timesteps.
    options
        Further keyword arguments of every call.

    Raises
    ------
    TypeError, ValueError
        If ``net`` cannot be called, or there is no such prediction or schedule.

    Examples
    --------
    The best denoiser of standard normal numbers, told the level of noise:

    >>> denoise = as_denoiser(lambda x, s: x / (1 + s[:, None] ** 2), "sample", "sigma")
    >>> denoise(torch.ones(1, 2), 1.0)
    tensor([[0.5000, 0.5000]])
    """
    return Denoiser(net, prediction, schedule, **options)


def _levels(sigma: float | Tensor, x: Tensor) -> Tensor:
    """Levels that broadcast over pictures, in their dtype."""
    s = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    check_range(s, "sigma", 0, None, closed="neither", elementwise=True)
    if s.numel() not in (1, len(x)):
        raise ValueError(f"sigma must be one number or {len(x)}, got {s.numel()}")
    return s.reshape(-1, *[1] * (x.ndim - 1))
