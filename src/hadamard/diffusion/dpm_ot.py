"""DPM-OT: sampling from stored latents of a late level, which optimal transport couples to white noise.

The long first part of the way back from noise is one map: noise ``z`` goes to the stored latent ``T(z)`` of a training
picture to which noise was added, and the last few ordinary steps take that noise away.
"""

import inspect
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hadamard.diffusion.latent_transport import LatentTransport, level
from hadamard.validation import check_option, check_range

from diffusers import DiffusionPipeline  # isort: skip
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput  # isort: skip
from diffusers.utils.torch_utils import randn_tensor  # isort: skip

__all__ = ["DPMOTPipeline"]


class DPMOTPipeline(DiffusionPipeline):
    """Pictures in about ten evaluations of a trained network: a transport map onto stored latents, then the last steps.

    Saves and loads as any pipeline of diffusers, with its latents.

    Parameters
    ----------
    unet
        A trained ``UNet2DModel``, with or without classes.
    scheduler
        Any scheduler of diffusers with which it samples.
    transport
        The latents and the map, from :meth:`LatentTransport.fit` with a scheduler of the same noise and timesteps.

    Notes
    -----
    What comes out is near to the training pictures by construction: with exact masses the latents have the law of
    stored latents taken at random, so that the few steps are paid for by the stored pictures, not by the transport
    (``coupling="random"`` shows it). The map adds a coupling that is deterministic, nearly as cheap as can be, and
    constant within cells, and it visits the latents evenly. Look at
    :func:`~hadamard.diffusion.memorisation_report` before you call samples new, and store latents of a noisier level
    where they are not.

    **When not to use it**: where training pictures must not come back, or where DPM-Solver++ with as many evaluations
    is good enough, which needs no stored pictures.

    Departures from the paper: any scheduler of diffusers in place of annealed Langevin steps; one map for each class;
    the source is normal, as the paper's text has it (the authors' code draws from the unit cube); no interpolation
    between neighbouring cells, which the code has but does not use.

    References
    ----------
    Z. Li, S. Li, Z. Wang, N. Lei, Z. Luo, X. Gu. DPM-OT: A New Diffusion Probabilistic Model Based on Optimal
    Transport. ICCV 2023, arXiv:2307.11308.

    Examples
    --------
    >>> from diffusers import DDIMScheduler, UNet2DModel
    >>> blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    >>> unet = UNet2DModel(8, 1, 1, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **blocks)
    >>> pictures = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    >>> transport = LatentTransport.fit(pictures, DDIMScheduler(), num_inference_steps=50, last_steps=10)
    >>> pipe = DPMOTPipeline(unet, DDIMScheduler(), transport)
    >>> pipe.set_progress_bar_config(disable=True)
    >>> pipe(batch_size=2, output_type="np").images.shape
    (2, 8, 8, 1)
    """

    model_cpu_offload_seq = "transport->unet"

    def __init__(self, unet: Any, scheduler: Any, transport: LatentTransport) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, transport=transport)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: int | list[int] | Int64[Tensor, " b"] | None = None,
        generator: Any = None,
        noise: Float[Tensor, "b c h w"] | None = None,
        num_inference_steps: int | None = None,
        last_steps: int | None = None,
        coupling: str = "optimal",
        eta: float = 0.0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw noise, transport it, and denoise.

        Parameters
        ----------
        batch_size
            Number of pictures; that of ``noise`` where it is given.
        class_labels
            Classes, one for each picture or one for all; ``None``: drawn as often as the latents have them.
        generator
            A ``torch.Generator``, or one for each picture, which then say the noise only.
        noise
            Standard normal, shape (B, C, H, W); ``None``: drawn.
        num_inference_steps, last_steps
            Another schedule, and how many of its steps are taken; its timestep must be that of the latents. ``None``:
            those of the latents.
        coupling
            ``"optimal"``: each noise goes where the map sends it; ``"random"``: to any latent of its class. The latter
            has the same law and costs no transport: what is better with the former is due to the coupling.
        eta
            Of schedulers that have it.
        output_type
            ``"pil"``, ``"np"``, ``"pt"`` (in [0, 1]) or ``"latent"`` (as the network gives it).
        return_dict
            Return an ``ImagePipelineOutput``, or a tuple.

        Raises
        ------
        ValueError
            If the schedule does not have the latents' timestep at its last steps, or an argument does not fit.
        """
        check_option(output_type, "output_type", ("pil", "np", "pt", "latent"))
        check_option(coupling, "coupling", ("optimal", "random"))
        stored, device = self.transport.config, self._execution_device
        steps = stored.num_inference_steps if num_inference_steps is None else num_inference_steps
        last = stored.last_steps if last_steps is None else last_steps
        check_range(steps, "num_inference_steps", 1, integer=True)
        t = float(level(self.scheduler, steps, check_range(last, "last_steps", 1, integer=True)))
        if abs(t - stored.timestep) > 0.5:
            raise ValueError(
                f"the schedule must have the latents' timestep, {stored.timestep:g}, at last_steps, got {t:g}"
            )
        if noise is None:
            check_range(batch_size, "batch_size", 1, integer=True)
            noise = randn_tensor((batch_size, *stored.shape), generator=generator, device=device, dtype=torch.float32)
        single = None if isinstance(generator, list) else generator
        labels = self._labels(class_labels, len(noise), device, single)
        indices = self.indices(noise.to(device), labels, coupling, single)
        x = self.transport.latents[indices].to(self.unet.dtype)
        condition = {} if getattr(self.unet.config, "num_class_embeds", None) is None else {"class_labels": labels}

        begin = len(self.scheduler.timesteps) - last
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(begin)
        accepted = inspect.signature(self.scheduler.step).parameters
        options = {name: v for name, v in (("eta", eta), ("generator", generator)) if name in accepted}
        for t in self.progress_bar(self.scheduler.timesteps[begin:]):
            output = self.unet(self.scheduler.scale_model_input(x, t), t, **condition).sample
            x = self.scheduler.step(output, t, x, **options).prev_sample
        self.maybe_free_model_hooks()
        images: Any = x
        if output_type != "latent":
            images = (x.float() / 2 + 0.5).clamp(0, 1)
            if output_type != "pt":
                images = images.cpu().permute(0, 2, 3, 1).numpy()
                images = self.numpy_to_pil(images) if output_type == "pil" else images
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def indices(
        self, noise: Tensor, labels: Tensor, coupling: str = "optimal", generator: torch.Generator | None = None
    ) -> Tensor:
        """Find the numbers of the stored latents that noise of these classes starts from."""
        classes = self.transport.config.classes
        if coupling == "optimal":
            return self.transport.assign(noise, labels if classes else None)
        chance = (self.transport.labels == labels.to(noise.device)[:, None]).float() if classes else None
        if chance is None:
            chance = torch.ones(len(noise), len(self.transport.latents), device=noise.device)
        where = generator.device if generator is not None else chance.device
        return torch.multinomial(chance.to(where), 1, generator=generator)[:, 0].to(noise.device)

    def _labels(self, given: Any, count: int, device: Any, generator: torch.Generator | None) -> Tensor:
        if given is None:
            where = generator.device if generator is not None else device
            rows = torch.randint(len(self.transport.labels), (count,), generator=generator, device=where)
            return self.transport.labels[rows.to(self.transport.labels.device)].to(device)
        labels = torch.as_tensor(given, device=device).long().reshape(-1)
        if len(labels) not in (1, count):
            raise ValueError(f"class_labels must be one or {count}, got {len(labels)}")
        return labels.expand(count)
