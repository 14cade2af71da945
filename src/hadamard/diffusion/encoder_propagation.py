"""Encoder propagation: a UNet's encoder runs at a few key steps of sampling, its decoder at all of them.

What the encoder computes changes little from step to step. Between two key steps the decoder works on the encoder's
stored features and the new time embedding alone; it never sees the current sample, so all the steps up to the next key
step can be decoded as one batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from hadamard.diffusion._accelerated import Accelerated, KeySteps, name_of
from hadamard.diffusion._inheritance import Inheritance, repeated
from hadamard.validation import check_range

__all__ = ["EncoderPropagation"]


class EncoderPropagation(Accelerated):
    """Make a trained diffusion model sample faster, without training, by running its encoder at key steps only.

    Convolution in, down blocks and middle block run at the key steps; the up blocks run at every step. With every step
    a key step the samples are those of the plain pipeline, bit for bit.

    Parameters
    ----------
    model
        A diffusers pipeline with a ``unet`` (and, for the key steps that depend on the number of steps, a
        ``scheduler``), or a ``UNet2DModel`` or ``UNet2DConditionModel``.
    key_steps
        Which steps run the encoder, counted from 0 at the noisiest: ``"50ls"`` or ``"50if"`` (the authors' for Stable
        Diffusion and for DeepFloyd IF, positions out of 50 that are scaled to the number of steps), a whole number m
        (every m-th), the steps themselves, or a function of the step and the number of steps. Step 0 must be among
        them.
    parallel
        Decode all steps up to the next key step in one batch when the first of them is asked for. The samples are the
        same but for rounding; it pays while one sample does not fill the device, and needs a pipeline, whose scheduler
        knows the timesteps ahead.
    max_parallel
        Most steps in one such batch.
    noise_injection
        alpha: the starting noise, times alpha, is added to the sample before each late step, which repairs smoothed
        texture (the authors use 0.003); needs a pipeline.
    injection_tau
        Late are the timesteps below this share of the training steps.

    Raises
    ------
    TypeError
        If the model has no encoder and decoder of such a UNet.
    ValueError
        If a parameter lies outside its range, step 0 is no key step, or the scheduler calls the network more than once
        a step.

    Notes
    -----
    Calls of the network are counted, and a generation begins where the timestep does not fall, so state never leaks
    into the next one. A change of batch, size or type in the middle of a generation runs the encoder again. A
    ControlNet of the pipeline runs at key steps only, as in the paper, and an adapter's residuals are those of the key
    step. Solvers of several steps (DPM-Solver++, UniPC) work: their history is of outputs. Gradients do not flow
    through stored features.

    Of the operations of Stable Diffusion 1.5 the encoder and the middle take 32.5 %, so that nine key steps of 50 save
    27 %; what the paper reports beyond that comes from filling a GPU by ``parallel``. Fewer plain steps are a strong
    baseline: compare at equal cost on your model, and keep the plain sampler where they win.

    References
    ----------
    S. Li, T. Hu, J. van de Weijer, F. S. Khan, T. Liu, L. Li, S. Yang, Y. Wang, M.-M. Cheng, J. Yang. Faster Diffusion:
    Rethinking the Role of the Encoder for Diffusion Model Inference. NeurIPS 2024, arXiv:2312.09608. The authors' code
    leaves the scheduler's scaling of the input out in its parallel variant; here it happens as in any pipeline.

    Examples
    --------
    >>> from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
    >>> small = dict(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1)
    >>> blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    >>> pipe = DDIMPipeline(UNet2DModel(**small, **blocks), DDIMScheduler())
    >>> pipe.set_progress_bar_config(disable=True)
    >>> with EncoderPropagation(pipe, key_steps=4) as fast:
    ...     image = pipe(num_inference_steps=20, output_type="np").images
    >>> fast.calls, fast.key_calls
    (20, 5)
    """

    def __init__(
        self,
        model: Any,
        key_steps: str | int | Sequence[int] | Callable[[int, int], bool] = "50ls",
        *,
        parallel: bool = False,
        max_parallel: int = 8,
        noise_injection: float = 0.0,
        injection_tau: float = 0.5,
    ) -> None:
        super().__init__(model)
        self.controlnet = getattr(model, "controlnet", None)
        self.key_steps = KeySteps(key_steps)
        self.max_parallel = check_range(max_parallel, "max_parallel", 1, integer=True) if parallel else 1
        self.noise_injection = check_range(noise_injection, "noise_injection", 0)
        self.injection_tau = check_range(injection_tau, "injection_tau", 0, 1)
        if self.scheduler is None and (parallel or noise_injection or self.key_steps.need_steps):
            raise ValueError(
                "model must be a pipeline with a scheduler for parallel, noise_injection, and key_steps that depend on "
                f"the number of steps, got {name_of(model)}"
            )
        self.key_calls = 0
        self._inheritance = Inheritance()
        self._ahead: list[Any] = []

    def _exchange(self) -> None:
        self.key_calls = 0
        self._ahead.clear()
        middle = [self.unet.mid_block] if self.unet.mid_block is not None else []
        self._inheritance.inherit([self.unet.conv_in, *self.unet.down_blocks, *middle], self._patches)
        if isinstance(self.controlnet, nn.Module):
            self._patches.patch(self.controlnet, self._wrapped_controlnet(self.controlnet.forward))
        if self.noise_injection:
            self._patches.patch(self.scheduler, self._wrapped_step(self.scheduler.step), "step")

    def disable(self) -> None:
        """Put the model back as it was."""
        super().disable()
        self._inheritance.forget()
        self._ahead.clear()

    def _wrapped(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(sample: Tensor, timestep: Tensor | float, *args: Any, **kwargs: Any) -> Any:
            step, fresh = self._began(sample, timestep)
            fresh = fresh or self.key_steps(step, len(self._times))
            self._inheritance.fresh, self.key_calls = fresh, self.key_calls + fresh
            ahead = [] if fresh else self._ahead
            times = self._times[step : self._end(step)]
            self._ahead = ahead or (self._decoded(run, sample, times, args, kwargs) if len(times) > 1 else [])
            if self._ahead:
                return self._ahead.pop(0)
            if not fresh and kwargs.get("mid_block_additional_residual") is None:
                kwargs = {k: v for k, v in kwargs.items() if k not in _ADAPTERS}  # they are in what is stored
            return run(sample, timestep, *args, **kwargs)

        return forward

    def _end(self, step: int) -> int:
        """Where the batch that begins at a step ends: before the next key step."""
        end, steps = step + 1, len(self._times)
        while end < min(step + self.max_parallel, steps) and not self.key_steps(end, steps):
            end += 1
        return end

    def _decoded(
        self, run: Callable[..., Any], sample: Tensor, times: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Any]:
        """Encode once, decode at several timesteps in one batch, and give one output for each."""
        rows, copies = len(sample), len(times)
        self._inheritance.copies, self._inheritance.rows = copies, rows
        try:
            args, kwargs = repeated((args, kwargs), copies, rows)
            out = run(sample.repeat_interleave(copies, 0), times.to(sample.device).repeat(rows), *args, **kwargs)
        finally:
            self._inheritance.copies = 1
        parts = [out[0][j::copies] for j in range(copies)]
        return [(part,) if isinstance(out, tuple) else type(out)(sample=part) for part in parts]

    def _wrapped_controlnet(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Run a ControlNet, which diffusers calls before the UNet, at key steps only."""
        stored: list[Any] = []

        def forward(sample: Tensor, timestep: Tensor | float, *args: Any, **kwargs: Any) -> Any:
            step = self._clock.peek(timestep)
            times = self._times_from(timestep) if step == 0 else self._times
            if step == 0 or not stored or self.key_steps(step, len(times)):
                stored[:] = [run(sample, timestep, *args, **kwargs)]
            return stored[0]

        return forward

    def _wrapped_step(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Add the starting noise to each late sample that is still to be denoised."""
        limit = self.injection_tau * self.scheduler.config.num_train_timesteps
        noise: list[Tensor] = []

        def step(model_output: Tensor, timestep: Tensor | float, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._clock.call == 0:
                noise[:] = [sample / self.scheduler.init_noise_sigma]
            out = run(model_output, timestep, sample, *args, **kwargs)
            left = self._times[self._clock.call + 1 :]
            if len(left) == 0 or float(left[0]) >= limit:
                return out
            late = out[0] + self.noise_injection * noise[0]
            if isinstance(out, tuple):
                return (late, *out[1:])
            out.prev_sample = late
            return out

        return step


_ADAPTERS = ("down_intrablock_additional_residuals", "down_block_additional_residuals")
