"""RDDM: one diffusion process whose steps remove a residual and noise by schedules of their own, as a scheduler.

With the degraded picture ``I_in`` (0 where there is none), the clean one ``I_0`` and the residual ``I_res = I_in -
I_0``, timestep ``t`` holds ``I_t = I_0 + a_t I_res + b_t eps``: ``a_t``, the residual's share, and ``b_t``, the noise's
standard deviation, come from sums over the steps so far, not from products.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hadamard.diffusion.residual_process import (
    RDDMSchedulerOutput,
    read_prediction,
    same_shape,
    schedule_sums,
    single,
    sums_of_ddim,
)  # fmt: skip
from hadamard.validation import check_option, check_range, check_tensor

try:
    from diffusers import ConfigMixin, SchedulerMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise ImportError("this needs diffusers: pip install 'hadamard[diffusion]'") from error

__all__ = ["RDDMScheduler", "RDDMSchedulerOutput"]


class RDDMScheduler(SchedulerMixin, ConfigMixin):
    """Restore a degraded picture, or generate one, in a few steps: a scheduler of diffusers.

    Used as any other; ``step`` and ``add_noise`` take the degraded picture besides. Without one they generate.

    Parameters
    ----------
    num_train_timesteps
        T.
    alpha_schedule, beta_schedule
        How the residual and the noise's variance grow with the timestep: by ``"decreased"``, ``"increased"`` (linearly
        smaller or larger) or ``"average"`` shares.
    sum_scale
        Variance of the noise at the last timestep, in (0, 1]: the authors take 0.01 for restoration, 1 for generation.
    residual_cumsum, noise_cumsum
        ``a_t`` and ``b_t`` themselves, T numbers each in [0, 1] that do not fall, in place of the schedules.
    prediction_type
        What the network gives: ``"residual"`` (deterministic tasks), ``"epsilon"`` (generation), or both one after the
        other on the channels, ``"residual_epsilon"``; ``"sample_epsilon"`` has the clean picture first.
    eta
        Random part of a step, from 0 (none) to 1.
    variance_type
        ``"sum_constrained"``: at ``eta=1`` a step draws from the Gaussian posterior of the additive chain. ``"ddim"``:
        with the sums of :meth:`from_ddim`, the variance of diffusers' ``DDIMScheduler``, which is larger.
    clip_sample, clip_sample_range, clip_residual_range
        Keep the predicted clean picture and the predicted residual within these.
    time_input
        What the network is told: ``"timestep"``; or ``"cumsum"``, the residual's network ``T a_t`` and the noise's
        ``T b_t``, so that the schedules can be exchanged after training.

    Raises
    ------
    ValueError
        If an argument lies outside its range, or ``variance_type="ddim"`` is asked for with other sums than DDIM's.

    Notes
    -----
    The grid is the authors': from T - 1 down in equal steps, the last of which gives the clean estimate itself. Any
    timestep may be stepped from; the next is the nearest one of the grid below it. Sums are kept in double precision,
    and samples in half precision are computed in single.

    With ``"epsilon"`` and a degraded picture the first step has no trace of the clean one (``a_t`` = 1), and the
    estimate there is what clipping leaves; prefer another prediction for restoration.

    **When not to use it**: where only the mean error counts. A regression by the same network needs one call and was
    better in the claim; where the degradation is a known linear operator, :func:`hadamard.imaging.pnp_admm` needs no
    pairs.

    Departure from the authors' code: the residual, which reaches 2, is clipped there and not at 1.

    References
    ----------
    J. Liu, Q. Wang, H. Fan, Y. Wang, Y. Tang, L. Qu. Residual Denoising Diffusion Models. CVPR 2024, arXiv:2308.13712.

    Examples
    --------
    >>> scheduler = RDDMScheduler(prediction_type="residual")
    >>> scheduler.set_timesteps(5)
    >>> scheduler.timesteps
    tensor([999, 799, 599, 399, 199])
    >>> clean, degraded = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    >>> x = scheduler.start(degraded, generator=torch.Generator().manual_seed(0))
    >>> for t in scheduler.timesteps:
    ...     residual = degraded - clean                         # what a perfect network would give
    ...     x = scheduler.step(residual, t, x, degraded).prev_sample
    >>> bool((x == clean).all())
    True
    """

    order = 1
    init_noise_sigma = 1.0
    config: Any

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        alpha_schedule: str = "decreased",
        beta_schedule: str = "increased",
        sum_scale: float = 0.01,
        residual_cumsum: Sequence[float] | None = None,
        noise_cumsum: Sequence[float] | None = None,
        prediction_type: str = "residual",
        eta: float = 0.0,
        variance_type: str = "sum_constrained",
        clip_sample: bool = True,
        clip_sample_range: float = 1.0,
        clip_residual_range: float = 2.0,
        time_input: str = "timestep",
    ) -> None:
        T = check_range(num_train_timesteps, "num_train_timesteps", 1, integer=True)
        check_range(sum_scale, "sum_scale", 0, 1, closed="right")
        kinds = ("residual", "epsilon", "residual_epsilon", "sample_epsilon")
        check_option(prediction_type, "prediction_type", kinds)
        check_option(variance_type, "variance_type", ("sum_constrained", "ddim"))
        check_option(time_input, "time_input", ("timestep", "cumsum"))
        check_range(eta, "eta", 0, 1)
        check_range(clip_sample_range, "clip_sample_range", 0, closed="neither")
        check_range(clip_residual_range, "clip_residual_range", 0, closed="neither")
        shares = schedule_sums(T, alpha_schedule, "alpha_schedule")
        variances = sum_scale * schedule_sums(T, beta_schedule, "beta_schedule")
        given = residual_cumsum is not None, noise_cumsum is not None
        self.residual_cumsum = schedule_sums(T, residual_cumsum, "residual_cumsum") if given[0] else shares  # type: ignore[arg-type]
        self.noise_cumsum = schedule_sums(T, noise_cumsum, "noise_cumsum") if given[1] else variances.sqrt()  # type: ignore[arg-type]
        gap = self.noise_cumsum.square() - 1 + (1 - self.residual_cumsum).square()
        if variance_type == "ddim" and bool((gap.abs() > 1e-6).any()):
            raise ValueError("variance_type='ddim' needs the sums of RDDMScheduler.from_ddim, got other ones")
        self.num_inference_steps: int | None = None
        self._grid = list(range(T))
        self.timesteps = torch.arange(T - 1, -1, -1)

    @classmethod
    def from_ddim(cls, scheduler: Any, **options: Any) -> "RDDMScheduler":
        """Read a DDIM or DDPM scheduler of diffusers as one of residuals whose degraded picture is 0.

        Its network goes on unchanged. On equal timesteps (``set_timesteps(timesteps=...)``) and without clipping a step
        is that of ``DDIMScheduler`` with ``set_alpha_to_one``; with ``variance_type="ddim"`` for any ``eta``.

        Parameters
        ----------
        scheduler
            One that has ``alphas_cumprod`` and whose network predicts ``"epsilon"``.
        options
            Of :class:`RDDMScheduler`.

        Raises
        ------
        ValueError
            If it is another scheduler, or its network predicts something else.

        Examples
        --------
        >>> from diffusers import DDIMScheduler
        >>> RDDMScheduler.from_ddim(DDIMScheduler()).config.prediction_type
        'epsilon'
        """
        return cls(**{
            **sums_of_ddim(scheduler),
            "sum_scale": 1.0,
            "prediction_type": "epsilon",
            "clip_sample": bool(scheduler.config.get("clip_sample", True)),
            "clip_sample_range": scheduler.config.get("clip_sample_range", 1.0),
            **options,
        })  # fmt: skip

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | Int[Tensor, " steps"] | None = None,
    ) -> None:
        """Choose how many steps are taken, or which.

        Raises
        ------
        ValueError
            If there are more steps than T, or ``timesteps`` do not fall within [0, T).
        """
        T = len(self)
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("set_timesteps needs either num_inference_steps or timesteps, got both or none")
        if num_inference_steps is not None:
            check_range(num_inference_steps, "num_inference_steps", 1, T, integer=True)
            timesteps = torch.linspace(-1, T - 1, num_inference_steps + 1, dtype=torch.float64).int()[1:].flip(0)
        falling = [int(t) for t in timesteps]  # type: ignore[union-attr]
        if not falling or falling[0] >= T or falling[-1] < 0 or any(a <= b for a, b in pairwise(falling)):
            raise ValueError(f"timesteps must fall, from below {T} to at least 0, got {falling[:8]}")
        self._grid = falling[::-1]
        self.num_inference_steps = len(falling)
        self.timesteps = torch.tensor(falling, device=device)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the sample as it is."""
        return sample

    def start(self, input_image: Float[Tensor, "b c *hw"], generator: Any = None) -> Float[Tensor, "b c *hw"]:
        """Give the sample that sampling starts from: the degraded picture (0 to generate) and the largest noise."""
        check_tensor(input_image, "input_image", dtype="floating")
        noise = randn_tensor(input_image.shape, generator, device=input_image.device, dtype=input_image.dtype)
        return input_image + float(self.noise_cumsum[int(self.timesteps[0])]) * noise

    def add_noise(
        self,
        original_samples: Float[Tensor, "b *chw"],
        noise: Float[Tensor, "b *chw"],
        timesteps: Int[Tensor, " b"],
        input_image: Float[Tensor, "b *chw"] | None = None,
    ) -> Float[Tensor, "b *chw"]:
        """Go forward: degrade clean pictures and add noise to them, up to a timestep for each.

        Raises
        ------
        TypeError, ValueError
            If shapes or types differ, a value is not finite, or a timestep lies outside [0, T).
        """
        degraded = same_shape(original_samples, "original_samples", input_image, noise=noise)
        x = single(original_samples)
        t = check_range(timesteps, "timesteps", 0, len(self) - 1, elementwise=True).cpu()
        a, b = (s[t].to(x).reshape(-1, *[1] * (x.ndim - 1)) for s in (self.residual_cumsum, self.noise_cumsum))
        return (x + a * (degraded - x) + b * single(noise)).to(original_samples.dtype)

    def time_inputs(self, timesteps: int | Int[Tensor, "*b"]) -> tuple[Tensor, Tensor]:
        """Say what the residual's and the noise's network are told of timesteps."""
        t = torch.as_tensor(timesteps)
        if self.config.time_input == "timestep":
            return t, t
        a, b = (s[t.cpu()].mul(len(self)).float().to(t.device) for s in (self.residual_cumsum, self.noise_cumsum))
        return a, b

    def predict(
        self,
        model_output: Float[Tensor, "b d *hw"],
        timestep: int | Int[Tensor, ""],
        sample: Float[Tensor, "b c *hw"],
        input_image: Float[Tensor, "b c *hw"] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read the clean picture, the residual and the noise off the network's output; as for :meth:`step`."""
        kind, t = self.config.prediction_type, self._timestep(timestep)
        degraded = same_shape(sample, "sample", input_image)
        expected = (len(sample), sample.shape[1] * (1 + ("_" in kind)), *sample.shape[2:])
        check_tensor(model_output, "model_output", dtype=sample.dtype)
        if tuple(model_output.shape) != expected:
            raise ValueError(
                f"model_output must have shape {expected} for prediction_type {kind!r}, got {tuple(model_output.shape)}"
            )
        a, b = float(self.residual_cumsum[t]), float(self.noise_cumsum[t])
        most = (self.config.clip_sample_range, self.config.clip_residual_range) if self.config.clip_sample else None
        return read_prediction(kind, single(model_output), single(sample), degraded, a, b, most)

    def step(
        self,
        model_output: Float[Tensor, "b d *hw"],
        timestep: int | Int[Tensor, ""],
        sample: Float[Tensor, "b c *hw"],
        input_image: Float[Tensor, "b c *hw"] | None = None,
        eta: float | None = None,
        generator: Any = None,
        variance_noise: Float[Tensor, "b c *hw"] | None = None,
        return_dict: bool = True,
    ) -> RDDMSchedulerOutput | tuple[Tensor, ...]:
        """Go back from a timestep to the next one of the schedule.

        Parameters
        ----------
        model_output
            Of the network; two pictures on the channels where the prediction is of two.
        timestep
            Of ``sample``, in [0, T).
        sample
            The current one.
        input_image
            The degraded picture; ``None``: 0, to generate.
        eta
            Another one than the scheduler's.
        generator
            Of the random part; ``variance_noise`` takes its place.
        return_dict
            Return a :class:`RDDMSchedulerOutput`, or a tuple.

        Raises
        ------
        TypeError, ValueError
            If shapes or types differ, a value is not finite, or a number lies outside its range.
        """
        eta = self.config.eta if eta is None else check_range(eta, "eta", 0, 1)
        t = self._timestep(timestep)
        clean, residual, noise = self.predict(model_output, t, sample, input_image)
        below = bisect_left(self._grid, t) - 1
        if below < 0:
            previous = clean
        else:
            n = self._grid[below]
            variance = self._variance(t, n, eta)
            kept = (self.noise_cumsum[n].square() - variance).clamp(min=0).sqrt()
            a, b = float(self.residual_cumsum[t] - self.residual_cumsum[n]), float(self.noise_cumsum[t] - kept)
            previous = single(sample) - a * residual - b * noise
            if variance > 0:
                if variance_noise is None:
                    variance_noise = randn_tensor(previous.shape, generator, sample.device, previous.dtype)
                previous = previous + float(variance.sqrt()) * variance_noise
        found = tuple(v.to(sample.dtype) for v in (previous, clean, residual, noise))
        return RDDMSchedulerOutput(*found) if return_dict else found

    def _variance(self, t: int, n: int, eta: float) -> Tensor:
        before, after = self.noise_cumsum[t].square(), self.noise_cumsum[n].square()
        posterior = (before - after) * after / before.clamp(min=1e-300)
        if self.config.variance_type == "sum_constrained":
            return eta * posterior
        return eta**2 * posterior / (1 - self.residual_cumsum[n]).square()

    def _timestep(self, timestep: Any) -> int:
        t = int(timestep) if isinstance(timestep, Tensor) and not timestep.is_floating_point() else timestep
        return int(check_range(t, "timestep", 0, len(self) - 1, integer=True))
