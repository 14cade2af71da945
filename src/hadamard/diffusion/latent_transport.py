"""Stored latents of a late level, and the optimal transport map from white noise onto them."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hadamard.transport.power_diagram import assign
from hadamard.transport.semi_discrete import semi_discrete_ot
from hadamard.validation import check_range, check_tensor

try:
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.utils import is_accelerate_available
except ImportError as error:
    raise ImportError("this needs diffusers: pip install 'hadamard[diffusion]'") from error

__all__ = ["LatentTransport"]


class LatentTransport(ModelMixin, ConfigMixin):
    """White noise in, a stored latent out: the semi-discrete optimal transport map onto noisy pictures.

    It is built by :meth:`fit`, and saved and loaded as any model of diffusers. With classes there is one map onto the
    latents of each class.

    Parameters
    ----------
    count
        Number of latents.
    shape
        Of one latent: channels, height, width.
    num_inference_steps, last_steps, timestep
        The latents lie where a schedule of so many steps has so many left, at this timestep.
    classes
        Number of classes; 0: none.

    Attributes
    ----------
    latents : Tensor
        Shape (count, C, H, W), in the scheduler's own scale.
    heights : Tensor
        Of the cells, float32, shape (count,).
    labels : Tensor
        Classes of the latents, shape (count,); 0 where there are none.

    Examples
    --------
    >>> from diffusers import DDIMScheduler
    >>> pictures = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    >>> transport = LatentTransport.fit(pictures, DDIMScheduler(), num_inference_steps=50, last_steps=10)
    >>> transport(torch.randn(3, 1, 4, 4)).shape, transport.config.timestep
    (torch.Size([3, 1, 4, 4]), 180.0)
    """

    _keep_in_fp32_modules = ["heights"] if is_accelerate_available() else None  # else ``_apply`` sees to it
    latents: Tensor
    heights: Tensor
    labels: Tensor
    config: Any

    @register_to_config
    def __init__(
        self,
        count: int,
        shape: Sequence[int] = (3, 32, 32),
        num_inference_steps: int = 50,
        last_steps: int = 10,
        timestep: float = 0,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.register_buffer("latents", torch.zeros(count, *shape))
        self.register_buffer("heights", torch.zeros(count, dtype=torch.float32))
        self.register_buffer("labels", torch.zeros(count, dtype=torch.int64))

    @classmethod
    def fit(
        cls,
        images: Float[Tensor, "n c h w"],
        scheduler: Any,
        num_inference_steps: int = 50,
        last_steps: int = 10,
        *,
        labels: Int64[Tensor, " n"] | None = None,
        tol: float = 0.1,
        max_iter: int = 5000,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> "LatentTransport":
        """Add noise to pictures, as far as the last steps of a schedule can take it away, and find the map.

        Parameters
        ----------
        images
            Training pictures as the network knows them: in [-1, 1], or a VAE's latents. Each is kept once.
        scheduler
            A scheduler of diffusers; its ``add_noise`` and its timesteps are used.
        num_inference_steps, last_steps
            The latents lie at the timestep at which ``last_steps`` of that many steps are left. Few: samples are copies
            of the pictures; many: they are new, and few evaluations do less well.
        labels
            The pictures' classes, from 0; a map is found for each class.
        tol, max_iter, progress
            Of :func:`~hadamard.transport.semi_discrete_ot`.
        generator
            Of the noise and of the samples; ``None``: a fixed seed.

        Raises
        ------
        TypeError, ValueError
            If an argument has another type or shape than is said here, or lies outside its range.
        """
        check_tensor(images, "images", ndim=4, dtype="floating")
        check_range(num_inference_steps, "num_inference_steps", 1, integer=True)
        check_range(last_steps, "last_steps", 1, integer=True)
        if labels is not None:
            check_tensor(labels, "labels", ndim=1, shape=(len(images),), dtype=torch.int64)
            check_range(labels, "labels", 0, elementwise=True)
        generator = generator or torch.Generator().manual_seed(0)
        t = level(scheduler, num_inference_steps, last_steps)
        noise = torch.randn(images.shape, generator=generator, device=generator.device, dtype=images.dtype)
        latents = scheduler.add_noise(images, noise.to(images.device), t.expand(len(images)))
        classes = 0 if labels is None else int(labels.max()) + 1
        model = cls(
            count=len(images), shape=tuple(images.shape[1:]), num_inference_steps=num_inference_steps,
            last_steps=last_steps, timestep=float(t), classes=classes,
        ).to(images.device)  # fmt: skip
        model.latents.copy_(latents)
        if labels is not None:
            model.labels.copy_(labels)
        for rows in model._rows():
            if len(rows):
                found = semi_discrete_ot(
                    model.latents[rows].flatten(1), tol=tol, max_iter=max_iter, generator=generator, progress=progress
                )
                model.heights[rows] = found.heights.to(model.heights)
        return model.eval()

    def forward(
        self, noise: Float[Tensor, "b c h w"], class_labels: Int64[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Transport noise, standard normal: each goes to a stored latent, of its class where there are classes."""
        return self.latents[self.assign(noise, class_labels)]

    @torch.no_grad()
    def assign(
        self, noise: Float[Tensor, "b c h w"], class_labels: Int64[Tensor, " b"] | None = None
    ) -> Int64[Tensor, " b"]:
        """Find the number of the stored latent that each noise goes to.

        Raises
        ------
        ValueError
            If the noise has another shape than the latents, classes are missing, or a class has no latents.
        """
        check_tensor(noise, "noise", ndim=4, shape=tuple(self.latents.shape[1:]), dtype="floating")
        z, classes = noise.flatten(1).float(), self.config.classes
        found = torch.empty(len(z), dtype=torch.int64, device=z.device)
        if not classes:
            return assign(z, *self._cells(slice(None)))[1]
        if class_labels is None:
            raise ValueError(f"class_labels must be given, below {classes}, since the latents have classes")
        check_tensor(class_labels, "class_labels", ndim=1, shape=(len(z),), dtype="integer")
        rows = self._rows()
        for c in class_labels.unique().tolist():
            if not 0 <= c < classes or not len(rows[c]):
                raise ValueError(f"class_labels must be classes that have latents, got {c}")
            here = class_labels == c
            found[here] = rows[c][assign(z[here], *self._cells(rows[c]))[1]]
        return found

    def _cells(self, rows: Any) -> tuple[Tensor, Tensor]:
        sites = self.latents[rows].flatten(1).float()
        return sites - sites.mean(0), self.heights[rows].float()

    def _rows(self) -> list[Tensor]:
        """The places of each class's latents; of all of them where there are no classes."""
        return [(self.labels == c).nonzero()[:, 0] for c in range(max(1, self.config.classes))]

    def _apply(self, fn: Any, recurse: bool = True) -> "LatentTransport":
        """Heights stay in single precision: their differences are what counts."""
        heights = self.heights
        super()._apply(fn, recurse)
        if heights.dtype != self.heights.dtype:
            self.heights = heights.to(self.latents.device)
        return self


def level(scheduler: Any, num_inference_steps: int, last_steps: int) -> Tensor:
    """Set the schedule; the timestep at which so many of its steps are left."""
    scheduler.set_timesteps(num_inference_steps)
    if last_steps > len(scheduler.timesteps):
        raise ValueError(f"last_steps must be <= the schedule's {len(scheduler.timesteps)} steps, got {last_steps}")
    return scheduler.timesteps[-last_steps]
