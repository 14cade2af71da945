"""OmniSSR: a diffusion model of flat pictures enlarges panoramas, without training.

The panorama is seen through overlapping flat views, which a planar model samples together. At every step the clean
pictures that it predicts go through two operations, which need no gradient:

- information interaction: the views are merged into one panorama and taken from it again, so that they agree;
- gradient decomposition: with the known reduction A of the small picture y = A x, the panorama e becomes
  A^+ y + (I - A^+ A) e. It then reduces to y, and the model decides on what y does not say.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.diffusion.planar_engine import PlanarEngine
from hadamard.diffusion.tangent_sphere import TangentSphere, check_panorama, enlarge
from hadamard.operators import Separable, bicubic
from hadamard.validation import check_option, check_range

from diffusers import DiffusionPipeline  # isort: skip
from diffusers.utils import BaseOutput  # isort: skip
from diffusers.utils.torch_utils import randn_tensor  # isort: skip

__all__ = ["OmniSSROutput", "OmniSSRPipeline", "null_space_project"]

_RTOL = 3e-2  # singular values of the reduction below this share of the largest count as zero


@dataclass
class OmniSSROutput(BaseOutput):
    """What the pipeline returns.

    Attributes
    ----------
    images
        The large panoramas, as ``output_type`` asks for them.
    views
        The views that they were merged from, (B, 3, N, P, P) in [-1, 1].
    """

    images: Any
    views: Any


def null_space_project(
    x: Float[Tensor, "*batch h w"],
    y: Float[Tensor, "*batch m n"],
    operator: Separable,
    inverse: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "*batch h w"]:
    """Change a picture as little as possible such that ``operator`` makes ``y`` of it: x + A^+ (y - A x).

    If ``y = A truth``, the result is never further from the truth than ``x``: what changes is the part of the error
    that A sees, which becomes zero.

    Parameters
    ----------
    x
        The picture.
    y
        What the operator should make of it.
    operator
        With ``A`` and ``A_dagger``.
    inverse
        Another pseudo-inverse, computed before; ``None``: ``operator.A_dagger``.
    """
    return x + (inverse or operator.A_dagger)(y - operator.A(x))


class OmniSSRPipeline(DiffusionPipeline):
    """Enlarge panoramas by a super-resolution or image-to-image model of diffusers that knows flat pictures only.

    Saves and loads as any pipeline of diffusers.

    Parameters
    ----------
    unet
        A ``UNet2DModel`` or ``UNet2DConditionModel``. If it takes three channels more than the latents have, it is
        given the small picture, enlarged, beside them (super-resolution); if it takes as many, the picture comes in
        through the start only (image to image; see ``strength``).
    scheduler
        Any of diffusers that keeps the variance (DDPM, DDIM, DPM-Solver, UniPC, ...; not Euler's).
    vae
        ``AutoencoderKL`` or ``VQModel``; ``None``: the model works on pixels.

    Notes
    -----
    The paper's engine is StableSR, a fine-tuned Stable Diffusion 2.1 whose colours are corrected in the end; neither
    its encoder nor that correction is part of this pipeline, which takes the mean of the encoder's distribution. With
    ``num_inference_steps=200, fov=66.41, pre_upscale=4`` geometry and weights are the paper's. The pseudo-inverse is
    that of the whole picture, periodic in longitude, where the authors' code takes blocks of 256 x 256.

    **When not to use it**: where the reduction is not known, nearly; with a model trained on panoramas; where small
    size matters more than the seam, for it samples about 2.4 times as many pixels as the panorama has.

    References
    ----------
    R. Li, X. Sheng, W. Li, J. Zhang. OmniSSR: Zero-shot Omnidirectional Image Super-Resolution using Stable Diffusion
    Model. ECCV 2024, arXiv:2404.10312.

    Examples
    --------
    >>> from diffusers import DDIMScheduler, UNet2DModel
    >>> blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    >>> unet = UNet2DModel(8, 6, 3, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **blocks)
    >>> pipe = OmniSSRPipeline(unet, DDIMScheduler())
    >>> pipe.set_progress_bar_config(disable=True)
    >>> pipe(torch.zeros(1, 3, 16, 32), scale=2, num_inference_steps=2).images.shape
    torch.Size([1, 3, 32, 64])
    """

    model_cpu_offload_seq = "vae->unet->vae"
    _optional_components = ["vae"]

    def __init__(self, unet: Any, scheduler: Any, vae: Any = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)

    @classmethod
    def from_engine(cls, pipe: Any) -> "OmniSSRPipeline":
        """Take network, scheduler and autoencoder of another pipeline, such as ``LDMSuperResolutionPipeline``.

        Its texts stay behind: give ``prompt_embeds`` where the network takes them.
        """
        parts = pipe.components
        return cls(parts["unet"], parts["scheduler"], parts.get("vae") or parts.get("vqvae"))

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        scale: int = 4,
        num_inference_steps: int = 50,
        strength: float = 1.0,
        gamma_l: float = 0.5,
        gamma_e: float = 1.0,
        gamma_p: float = 1.0,
        otii_every: int = 1,
        layout: Sequence[int] = (3, 6, 6, 3),
        fov: float = 66.41,
        patch: int | None = None,
        pre_upscale: int = 2,
        boundary: str | Sequence[str] = ("symmetric", "circular"),
        view_batch: int | None = None,
        prompt_embeds: Tensor | None = None,
        class_label: int | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pt",
        return_dict: bool = True,
    ) -> Any:
        """Enlarge panoramas.

        Parameters
        ----------
        image
            Small panoramas (B, 3, h, 2 h) with values in [-1, 1], or a PIL image or a list of them.
        scale
            A whole number, of times.
        num_inference_steps
            Of the scheduler.
        strength
            The share of the steps that is taken, from the end; below 1 for image-to-image models.
        gamma_l
            Weight of the views as taken from the merged panorama against those that the model predicts; 0 samples every
            view for itself.
        gamma_e
            Weight of the panorama that reduces to ``image`` against the merged one; less than 1 for noisy pictures.
        gamma_p
            The same, once in the end.
        otii_every
            Let views interact at every so manyth step only, the last included.
        layout, fov, patch, pre_upscale
            Of the views, see :class:`TangentSphere`. ``patch`` is H / 2 by default, rounded up to what the model takes.
        boundary
            How the picture was continued where ``image`` was made of it, see :func:`~hadamard.operators.bicubic`; for
            pillow's and torch's antialiased reductions ``"truncate"``.
        view_batch
            Views that go through the model at a time; ``None``: all.
        prompt_embeds
            (1, n, d), for networks that take a text.
        class_label
            For networks that take a class, such as the noise level of Stable Diffusion's upscaler (0 is right here).
        generator
            Draws the noise.
        output_type
            ``"pt"`` (in [0, 1]), ``"np"`` or ``"pil"``.
        return_dict
            Return an :class:`OmniSSROutput`, or a tuple.

        Raises
        ------
        ValueError
            If the panorama is no panorama, has values out of range, or the engine or an argument does not fit.
        """
        check_option(output_type, "output_type", ("pt", "np", "pil"))
        check_range(scale, "scale", 2, integer=True)
        check_range(strength, "strength", 0, 1, closed="right")
        check_range(otii_every, "otii_every", 1, integer=True)
        for name, gamma in (("gamma_l", gamma_l), ("gamma_e", gamma_e), ("gamma_p", gamma_p)):
            check_range(gamma, name, 0, 1)
        y = _tensor(image).to(self._execution_device, torch.float32)
        size = (scale * y.shape[-2], scale * y.shape[-1])
        engine = PlanarEngine(self.unet, self.scheduler, self.vae, prompt_embeds, class_label, view_batch)
        sphere = self.sphere(size, engine.side(size[0] // 2, patch), layout, fov, pre_upscale).to(y.device)
        reduce = bicubic(scale, size, boundary=boundary, dtype=torch.float64)
        restore, reduce = reduce.pinv(_RTOL).to(y), reduce.to(y)

        def consistent(e: Tensor, gamma: float) -> Tensor:
            return torch.lerp(e, null_space_project(e, y, reduce, restore), gamma)

        def interact(x0: Tensor) -> Tensor:
            e = sphere.merge(_apart(engine.decode(x0), len(y))).clamp(-1, 1)
            return engine.encode(_together(sphere(consistent(e, gamma_e))))

        blurred = _together(sphere(enlarge(y, scale).clamp(-1, 1))).clamp(-1, 1)
        z = engine.encode(blurred)
        beside = engine.beside(blurred, z)
        timesteps = engine.timesteps(num_inference_steps, strength, y.device)
        x = self.scheduler.add_noise(z, randn_tensor(z.shape, generator, z.device, z.dtype), timesteps[:1])
        takes = inspect.signature(self.scheduler.step).parameters
        options = {"generator": generator} if "generator" in takes else {}
        for i, t in enumerate(self.progress_bar(timesteps)):
            output = engine.predict(x, t, beside)
            if gamma_l and (len(timesteps) - 1 - i) % otii_every == 0:
                x0 = engine.clean(x, output, t)
                output = engine.meaning(x, torch.lerp(x0, interact(x0), gamma_l), t)
            x = self.scheduler.step(output, t, x, **options).prev_sample

        views = _apart(engine.decode(x), len(y))
        e = consistent(sphere.merge(views), gamma_p)
        self.maybe_free_model_hooks()
        images: Any = (e / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).numpy()
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        return OmniSSROutput(images=images, views=views) if return_dict else (images, views)

    def sphere(self, size: Sequence[int], patch: int, layout: Sequence[int], fov: float, pre_upscale: int) -> Any:
        """Make the views; override it to look at the sphere in another way."""
        return TangentSphere(size, patch, layout, fov, pre_upscale)


def _tensor(image: Any) -> Tensor:
    """Small panoramas (B, 3, h, w) in [-1, 1]."""
    if not isinstance(image, Tensor):
        pictures = image if isinstance(image, list | tuple) else [image]
        arrays = [np.asarray(picture.convert("RGB"), dtype=np.float32) for picture in pictures]
        image = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"image must have shape (B, 3, h, 2 h), got {tuple(image.shape)}")
    check_panorama(image, "image")
    return check_range(image, "image", -1, 1, elementwise=True)


def _together(views: Tensor) -> Tensor:
    """(B, C, N, P, P) to (B N, C, P, P)."""
    return views.transpose(1, 2).flatten(0, 1)


def _apart(views: Tensor, batch: int) -> Tensor:
    """(B N, C, P, P) to (B, C, N, P, P)."""
    return views.unflatten(0, (batch, -1)).transpose(1, 2)
