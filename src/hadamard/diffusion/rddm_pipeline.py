"""Pictures in, restored pictures out, or new ones out of noise: the pipeline of residual denoising."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from hadamard.diffusion.rddm import RDDMScheduler
from hadamard.diffusion.rddm_objectives import rddm_output
from hadamard.images import pad_to_multiple
from hadamard.training import load_checkpoint
from hadamard.validation import check_option, check_range, check_tensor

from diffusers import DiffusionPipeline, UNet2DModel  # isort: skip
from diffusers.image_processor import VaeImageProcessor  # isort: skip
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput  # isort: skip

__all__ = ["RDDMPipeline"]

TASKS = ("noise", "blur", "dark", "rain", "holes")


class RDDMPipeline(DiffusionPipeline):
    """Restore degraded pictures of any size in a few calls of a network; or generate, where none is given.

    Saves and loads as any pipeline of diffusers.

    Parameters
    ----------
    unet
        A ``UNet2DModel`` trained by :func:`~hadamard.diffusion.rddm_loss`. To restore, it has the channels of the
        sample and of the degraded picture as input.
    scheduler
        The :class:`~hadamard.diffusion.RDDMScheduler` of that training.
    unet_noise
        A network for the noise alone, where it was trained apart.

    Examples
    --------
    >>> pipe = RDDMPipeline.pretrained()
    >>> pipe.set_progress_bar_config(disable=True)
    >>> dark = torch.rand(1, 3, 33, 50, generator=torch.Generator().manual_seed(0)) / 3
    >>> pipe(dark, class_labels=pipe.tasks.index("dark"), output_type="pt").images.shape
    torch.Size([1, 3, 33, 50])
    """

    model_cpu_offload_seq = "unet->unet_noise"
    _optional_components = ["unet_noise"]
    tasks: Sequence[str] = TASKS  # of the network that ships, in the order of its classes

    def __init__(self, unet: Any, scheduler: Any, unet_noise: Any = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, unet_noise=unet_noise)

    @classmethod
    def pretrained(cls) -> "RDDMPipeline":
        """Load the small restorer of photographs that ships: its class says what is to be undone.

        ``tasks`` lists the classes: ``"noise"`` (standard deviation 0.05 to 0.2 of white), ``"blur"`` (Gaussian, 0.8 to
        2 pixels), ``"dark"`` (gamma and gain), ``"rain"`` (bright streaks) and ``"holes"`` (black squares).
        """
        net = load_checkpoint("rddm_photographs", restorer()).eval()
        return cls(net, RDDMScheduler(prediction_type="residual"))

    @torch.no_grad()
    def __call__(
        self,
        image: Any = None,
        num_inference_steps: int = 5,
        class_labels: int | list[int] | Int64[Tensor, " b"] | None = None,
        generator: Any = None,
        eta: float | None = None,
        batch_size: int = 1,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], Any] | None = None,
    ) -> Any:
        """Restore, or generate.

        Parameters
        ----------
        image
            A PIL picture, an array (B, H, W, C) or a tensor (B, C, H, W) with values in [0, 1], or a list of them, of
            one size; ``None``: pictures are generated.
        num_inference_steps
            Steps, each of one call of the network.
        class_labels
            Classes, one for each picture or one for all, where the network takes them.
        generator
            A ``torch.Generator``, or one for each picture.
        eta
            Random part of the steps; ``None``: the scheduler's.
        batch_size
            Number of pictures to generate.
        output_type
            ``"pil"``, ``"np"``, ``"pt"`` (in [0, 1]) or ``"latent"`` (as the scheduler gives it, in [-1, 1]).
        return_dict
            Return an ``ImagePipelineOutput``, or a tuple.
        callback_on_step_end
            Called with the pipeline, the step, its timestep and ``{"latents": sample}`` after each step.

        Raises
        ------
        ValueError
            If a picture has values outside [0, 1] or not finite, the network does not fit, or there are more steps than
            the scheduler was trained with.
        """
        check_option(output_type, "output_type", ("pil", "np", "pt", "latent"))
        channels, device = self._channels(image is not None), self._execution_device
        processor = VaeImageProcessor(do_resize=False, do_convert_grayscale=channels == 1)
        crop: Callable[[Tensor], Tensor] = _whole
        if image is None:
            size = self.unet.config.sample_size
            if size is None:
                raise ValueError("image must be given: the network's config has no sample_size to generate at")
            check_range(batch_size, "batch_size", 1, integer=True)
            height, width = (size, size) if isinstance(size, int) else size
            begin = torch.zeros(batch_size, channels, height, width)
        else:
            begin = _pixels(image, processor, channels)
            begin, crop = pad_to_multiple(begin, 2 ** (len(self.unet.config.down_block_types) - 1))
        begin = begin.to(device, self.unet.dtype)
        condition = None if image is None else begin
        labels = self._labels(class_labels, len(begin), device)

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        x = self.scheduler.start(begin, generator)
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            output = rddm_output(
                self.unet, self.scheduler, x, t, condition, unet_noise=self.unet_noise, class_labels=labels
            )  # fmt: skip
            x = self.scheduler.step(output, t, x, condition, eta, generator).prev_sample
            if callback_on_step_end is not None:
                callback_on_step_end(self, i, t, {"latents": x})
        x = crop(x)
        self.maybe_free_model_hooks()
        images = x if output_type == "latent" else processor.postprocess(x.float(), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _channels(self, restore: bool) -> int:
        """Channels of a picture, which the network's input has once or twice."""
        inputs, outputs = self.unet.config.in_channels, self.unet.config.out_channels
        kind = self.scheduler.config.prediction_type
        pictures = 2 if "_" in kind and self.unet_noise is None else 1
        channels = outputs // pictures
        if outputs % pictures or inputs != (1 + restore) * channels:
            aim = "restore" if restore else "generate"
            raise ValueError(
                f"unet must have {1 + restore} pictures in and {pictures} out to {aim} by {kind!r}, got {inputs} and "
                f"{outputs} channels"
            )
        return int(channels)

    def _labels(self, given: Any, count: int, device: Any) -> Tensor | None:
        if given is None:
            return None
        labels = torch.as_tensor(given, device=device).long().reshape(-1)
        if len(labels) not in (1, count):
            raise ValueError(f"class_labels must be one or {count}, got {len(labels)}")
        return labels.expand(count)


def restorer(inputs: int = 6, outputs: int = 3, classes: int | None = len(TASKS)) -> UNet2DModel:
    """Build the restorer's network: three levels of 16 channels without attention, so that any size will do."""
    return UNet2DModel(
        in_channels=inputs, out_channels=outputs, block_out_channels=(16, 16, 16), layers_per_block=1,
        down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3, norm_num_groups=8,
        add_attention=False, num_class_embeds=classes,
    )  # fmt: skip


def _pixels(image: Any, processor: VaeImageProcessor, channels: int) -> Tensor:
    """Pictures in [-1, 1] of the network's number of channels."""
    for x in image if isinstance(image, list | tuple) else [image]:
        if isinstance(x, Tensor):
            check_tensor(x, "image", dtype="floating")
            check_range(x, "image", 0, 1, elementwise=True)
    x = processor.preprocess(image)
    if x.shape[1] == 1 and channels == 3:
        x = x.expand(-1, 3, -1, -1)
    check_tensor(x, "image", ndim=4)
    check_range(x, "image (after scaling)", -1, 1, elementwise=True)
    if x.shape[1] != channels:
        raise ValueError(f"image must have {channels} channels, got {x.shape[1]}")
    return x


def _whole(x: Tensor) -> Tensor:
    return x
