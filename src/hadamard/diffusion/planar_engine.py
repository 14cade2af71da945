"""One vocabulary for the diffusion models of flat pictures: pixels or latents, super-resolution or image to image."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hadamard.validation import check_option, check_range

__all__ = ["PlanarEngine"]

_PREDICTIONS = ("epsilon", "sample", "v_prediction")


class PlanarEngine:
    """Network, scheduler and autoencoder of a pipeline, asked for one picture's steps at a time.

    Parameters
    ----------
    unet, scheduler, vae
        Modules of diffusers; ``vae=None``: latents are pixels.
    prompt_embeds, class_label
        What the network is given besides, the same for every picture.
    batch
        Pictures that go through network and autoencoder at a time; ``None``: all.

    Raises
    ------
    ValueError
        If they do not fit each other, or the scheduler does not keep the variance.
    """

    def __init__(
        self, unet: Any, scheduler: Any, vae: Any, prompt_embeds: Tensor | None, class_label: int | None,
        batch: int | None,
    ) -> None:  # fmt: skip
        self.unet, self.scheduler, self.vae = unet, scheduler, vae
        self.prompt, self.label = prompt_embeds, class_label
        self.batch = batch if batch is None else check_range(batch, "view_batch", 1, integer=True)
        if not hasattr(scheduler, "alphas_cumprod") or float(scheduler.init_noise_sigma) != 1:
            name = type(scheduler).__name__
            raise ValueError(f"scheduler must keep the variance, as DDPM, DDIM and DPM-Solver do, got {name}")
        self.prediction = check_option(scheduler.config.prediction_type, "prediction_type", _PREDICTIONS)
        channels = 3 if vae is None else vae.config.latent_channels
        takes, gives = unet.config.in_channels, unet.config.out_channels
        if takes not in (channels, channels + 3) or gives != channels:
            raise ValueError(
                f"unet must take {channels} or {channels + 3} channels and give {channels}, got {takes} and {gives}"
            )
        self.conditioned = takes > channels
        texts = "encoder_hidden_states" in inspect.signature(unet.forward).parameters
        if texts != (prompt_embeds is not None):
            raise ValueError(f"unet takes {'a text, give' if texts else 'no text, got'} prompt_embeds")
        classes = any(unet.config.get(key) for key in ("num_class_embeds", "class_embed_type"))
        if classes != (class_label is not None):
            raise ValueError(f"unet takes {'a class, give' if classes else 'no class, got'} class_label")

    def side(self, at_least: int, given: int | None) -> int:
        """Side of pictures that network and autoencoder can halve as often as they do."""
        unit = 2 ** (len(self.unet.config.block_out_channels) - 1)
        unit *= 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)
        if given is not None and given % unit:
            raise ValueError(f"patch must be a multiple of {unit}, which the model can halve as often, got {given}")
        return -(-at_least // unit) * unit if given is None else given

    def timesteps(self, steps: int, strength: float, device: Any) -> Tensor:
        """The last share of the scheduler's timesteps."""
        check_range(steps, "num_inference_steps", 1, integer=True)
        self.scheduler.set_timesteps(steps, device=device)
        whole = self.scheduler.timesteps
        begin = len(whole) - max(1, round(len(whole) * strength))
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(begin)
        return whole[begin:]

    def encode(self, x: Tensor) -> Tensor:
        """Pictures in [-1, 1], which are cut off there, to latents."""
        return self._by_parts(self._encode, x.clamp(-1, 1).to(self.unet.dtype))

    def decode(self, z: Tensor) -> Tensor:
        """Latents to pictures in [-1, 1], in single precision."""
        return self._by_parts(self._decode, z).float().clamp(-1, 1)

    def beside(self, picture: Tensor, z: Tensor) -> Tensor:
        """What the network is given beside noisy latents: the picture at their size, or no channels."""
        if not self.conditioned:
            return z[:, :0]
        if picture.shape[-2:] != z.shape[-2:]:
            picture = F.interpolate(picture, z.shape[-2:], mode="bicubic", antialias=True)
        return picture.to(z.dtype)

    def predict(self, x: Tensor, t: Tensor, beside: Tensor) -> Tensor:
        """Run the network."""
        x = torch.cat([self.scheduler.scale_model_input(x, t), beside], 1)
        return self._by_parts(lambda part: self._predict(part, t), x)

    def clean(self, x: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The clean latents that a prediction means."""
        a, s = self._shares(x, t)
        if self.prediction == "epsilon":
            return (x - s * output) / a
        return output if self.prediction == "sample" else a * x - s * output

    def meaning(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The prediction that means these clean latents."""
        a, s = self._shares(x, t)
        if self.prediction == "epsilon":
            return (x - a * x0) / s
        return x0 if self.prediction == "sample" else (a * x - x0) / s

    def _shares(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Of picture and noise at a timestep."""
        kept = self.scheduler.alphas_cumprod.to(x.device, torch.float32)[t.long()]
        return kept.sqrt().to(x.dtype), (1 - kept).sqrt().to(x.dtype)

    def _predict(self, x: Tensor, t: Tensor) -> Tensor:
        condition: dict[str, Tensor] = {}
        if self.label is not None:
            condition["class_labels"] = torch.full((len(x),), self.label, device=x.device)
        if self.prompt is not None:
            condition["encoder_hidden_states"] = self.prompt.to(x).expand(len(x), -1, -1)
        return self.unet(x, t, **condition).sample

    def _encode(self, x: Tensor) -> Tensor:
        if self.vae is None:
            return x
        encoded = self.vae.encode(x)
        if hasattr(encoded, "latent_dist"):
            return encoded.latent_dist.mode() * self.vae.config.scaling_factor
        return encoded.latents

    def _decode(self, z: Tensor) -> Tensor:
        if self.vae is None:
            return z
        vector_quantised = hasattr(self.vae, "quantize")  # diffusers' pipelines do not scale those latents
        return self.vae.decode(z if vector_quantised else z / self.vae.config.scaling_factor).sample

    def _by_parts(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return run(x) if self.batch is None else torch.cat([run(part) for part in x.split(self.batch)])
