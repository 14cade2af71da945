"""Feature inheritance: parts of a UNet hand on, at some steps of sampling, what they computed at an earlier one.

Blocks, layers or single units inherit, each by its own schedule. Encoder propagation (the encoder inherits) and deep
caching (all but the outermost parts inherit) are two of its settings.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hadamard.diffusion._accelerated import Accelerated, Keys, KeySteps, name_of
from hadamard.diffusion._inheritance import Inheritance
from hadamard.diffusion.inheritance_rules import PRESETS, Rule, parts_of, preset
from hadamard.validation import check_option, check_range

__all__ = ["FeatureInheritance", "disable", "enable"]


class FeatureInheritance(Accelerated):
    """Make a trained diffusion model sample faster, without training: parts of its UNet run at key steps only.

    At the others they give what they stored. With every step a key step the samples are those of the plain pipeline,
    bit for bit.

    Parameters
    ----------
    model
        A diffusers pipeline with a ``unet`` (and, for key steps that depend on the number of steps, a ``scheduler``),
        or a ``UNet2DModel`` or ``UNet2DConditionModel``.
    rules
        One rule, several, or the name of a preset. ``"deep"``: all blocks but the two outermost inherit.
        ``"deepcache"``: all but the first convolution and the last layer, as DeepCache's helper does by default.
        ``"encoder"``: encoder and middle, as :class:`EncoderPropagation`. ``"attention"``: every attention.
        ``"units"``: every resnet and transformer, as increments. ``"a_sdm"``: what inherits in ``"deepcache"``, with
        every second step a key step, and each of the first and the last 15 %.
    key_steps
        Of a preset; every second step if it is not given. Rules have their own.

    Raises
    ------
    TypeError
        If the model has no encoder and decoder of such a UNet.
    ValueError
        If a rule matches nothing or a part that another rule has, step 0 is no key step, or the scheduler calls the
        network more than once a step.

    Notes
    -----
    Calls of the network are counted, and a generation begins where the timestep does not fall, so state never leaks
    into the next one. A change of batch, size or type in the middle of a generation lets everything run. ControlNet
    runs at every step: its residuals are added outside the blocks. What an adapter adds inside a block is that of the
    key step. The paper gives levels and schedules; its formulas and tables were not used, and the presets are ours.

    **When not to use it.** Fewer plain steps are a strong baseline: compare at equal cost on your model, and keep the
    plain sampler where they win. Where the encoder alone inherits, :class:`EncoderPropagation` can decode several
    steps in one batch.

    References
    ----------
    J. Zhu, Y. Wang, H. Pan, P. Wan, D. Zhang, G. Huang. A-SDM: Accelerating Stable Diffusion through Model Assembly and
    Feature Inheritance Strategies. arXiv:2406.00210, 2024.
    X. Ma, G. Fang, X. Wang. DeepCache: Accelerating Diffusion Models for Free. CVPR 2024, arXiv:2312.00858.

    Examples
    --------
    >>> from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
    >>> small = dict(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1)
    >>> blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    >>> pipe = DDIMPipeline(UNet2DModel(**small, **blocks), DDIMScheduler())
    >>> pipe.set_progress_bar_config(disable=True)
    >>> with FeatureInheritance(pipe, Rule("*.resnets.*", "unit", key_steps=4)) as fast:
    ...     image = pipe(num_inference_steps=20, output_type="np").images
    >>> fast.calls, fast.key_calls
    (20, (5,))
    >>> share = fast.share(20, torch.zeros(1, 3, 8, 8), 0)  # of the operations
    >>> 0 < share < 1
    True
    """

    def __init__(
        self, model: Any, rules: str | Rule | Sequence[Rule] = "a_sdm", *, key_steps: Keys | None = None
    ) -> None:
        super().__init__(model)
        if isinstance(rules, str):
            rules = preset(check_option(rules, "rules", PRESETS), self.unet, key_steps)
        elif key_steps is not None:
            raise ValueError(f"key_steps belong to each rule, or to a preset, got {key_steps!r} beside rules")
        self.rules = (rules,) if isinstance(rules, Rule) else tuple(rules)
        self._parts = parts_of(self.unet, self.rules)
        self._keys = [KeySteps(rule.key_steps) for rule in self.rules]
        if self.scheduler is None and any(keys.need_steps for keys in self._keys):
            raise ValueError(
                "model must be a pipeline with a scheduler for key_steps that depend on the number of steps, got "
                f"{name_of(model)}"
            )
        self.key_calls = (0,) * len(self.rules)
        self._groups = [
            Inheritance(increments=(rule.keep or "increment") == "increment" and rule.level != "block", private=True)
            for rule in self.rules
        ]

    def disable(self) -> None:
        """Put the model back as it was."""
        super().disable()
        for group in self._groups:
            group.forget()

    @torch.no_grad()
    def share(self, steps: int, *inputs: Any, **more: Any) -> float:
        """Count the multiplications of a generation, over those of the plain UNet.

        Parameters
        ----------
        steps
            Steps of the generation.
        inputs, more
            What the UNet is called with, for its sizes; a UNet on the ``meta`` device takes no time.
        """
        check_range(steps, "steps", 1, integer=True)
        was, every = self.enabled, (True,) * len(self.rules)
        flags = [tuple(keys(step, steps) for keys in self._keys) for step in range(steps)]
        self.disable()
        for group, parts in zip(self._groups, self._parts):
            group.inherit(parts, self._patches)
        try:
            found: dict[tuple[bool, ...], float] = {}
            for fresh in dict.fromkeys([every, *flags]):  # what is inherited must have been computed once
                for group, now in zip(self._groups, fresh):
                    group.fresh = now
                with FlopCounterMode(display=False) as counter:
                    self.unet(*inputs, **more)
                found[fresh] = counter.get_total_flops()
        finally:
            self.disable()
            if was:
                self.enable()
        return sum(found[fresh] for fresh in flags) / (steps * found[every])

    def _exchange(self) -> None:
        self.key_calls = (0,) * len(self.rules)
        for group, parts in zip(self._groups, self._parts):
            group.inherit(parts, self._patches)

    def _wrapped(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(sample: Tensor, timestep: Tensor | float, *args: Any, **kwargs: Any) -> Any:
            step, fresh = self._began(sample, timestep)
            for group, keys in zip(self._groups, self._keys):
                group.fresh = fresh or keys(step, len(self._times))
            self.key_calls = tuple(n + group.fresh for n, group in zip(self.key_calls, self._groups))
            return run(sample, timestep, *args, **kwargs)

        forward.inheritance = self  # type: ignore[attr-defined]
        return forward


def enable(
    pipe: Any, rules: str | Rule | Sequence[Rule] = "a_sdm", *, key_steps: Keys | None = None
) -> FeatureInheritance:
    """Let parts of a pipeline's UNet inherit features until :func:`disable`; see :class:`FeatureInheritance`.

    Examples
    --------
    >>> from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
    >>> blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    >>> unet = UNet2DModel(8, block_out_channels=(8, 8), norm_num_groups=4, **blocks)
    >>> pipe = DDIMPipeline(unet, DDIMScheduler())
    >>> enable(pipe, "deep", key_steps=3).enabled
    True
    >>> disable(pipe)
    """
    disable(pipe)
    return FeatureInheritance(pipe, rules, key_steps=key_steps).enable()


def disable(pipe: Any) -> None:
    """Put a pipeline back as it was before :func:`enable`; where nothing is enabled, nothing happens."""
    inheritance = getattr(getattr(pipe, "unet", pipe).forward, "inheritance", None)
    if inheritance is not None:
        inheritance.disable()
