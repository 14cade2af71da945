"""Clothes from stored latents: distances to real pictures and to the training pictures, by level and sampler."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hadamard.claims.diffusion import clothes
from hadamard.diffusion import (
    DPMOTPipeline,
    LatentTransport,
    MemorisationReport,
    memorisation_report,
    mode_mixture_ratio,
)  # fmt: skip

clothes.torchvision_shim.install()
from diffusers import DPMSolverMultistepScheduler  # noqa: E402

__all__ = ["EVALUATIONS", "Sampled", "StoredClothes"]

EVALUATIONS = 10


@dataclass(frozen=True)
class Sampled:
    """Pictures and what was measured on them; ``moved`` is the mean squared distance from noise to latent, a pixel."""

    images: Tensor
    frechet: float
    mixed: float
    report: MemorisationReport
    moved: float = float("nan")


@dataclass(frozen=True)
class StoredClothes:
    """The trained network, training pictures whose latents are stored, and noise that every sampler starts from."""

    net: Any
    stored: int
    noise: Tensor
    labels: Tensor
    levels: tuple[int, ...]

    def plain(self, multistep: bool) -> Sampled:
        """Ten steps from noise: of DDIM, or of DPM-Solver++."""
        schedule = DPMSolverMultistepScheduler(timestep_spacing="trailing") if multistep else None
        return self._measured(clothes.sample(self.net, self.noise, self.labels, EVALUATIONS, schedule))

    def real(self) -> Sampled:
        """As many pictures of the training set, none of those that are stored."""
        return self._measured(clothes.clothes("train")[0][-len(self.noise) :])

    def express(self, coupling: str) -> dict[int, Sampled]:
        """Samples by level, the timestep that is left for the ten evaluations."""
        found = {}
        for pipe in self.pipelines:
            generator = torch.Generator().manual_seed(1)
            at = pipe.indices(self.noise, self.labels, coupling, torch.Generator().manual_seed(1))
            x = pipe(
                noise=self.noise, class_labels=self.labels, coupling=coupling, generator=generator, output_type="latent"
            ).images
            moved = float((self.noise - pipe.transport.latents[at]).square().mean())
            found[int(pipe.transport.config.timestep) + 1] = self._measured(x, moved)
        return found

    @cached_property
    def pipelines(self) -> list[DPMOTPipeline]:
        """One for each level."""
        images, labels = (x[: self.stored] for x in clothes.clothes("train"))
        made = []
        for level in self.levels:
            schedule = clothes.scheduler(timestep_spacing="trailing")
            steps = EVALUATIONS * 1000 // level
            transport = LatentTransport.fit(images, schedule, steps, EVALUATIONS, labels=labels)
            made.append(DPMOTPipeline(self.net, schedule, transport))
            made[-1].set_progress_bar_config(disable=True)
        return made

    @cached_property
    def classifier(self) -> Any:
        """A logistic regression on the pixels of other training pictures."""
        from sklearn.linear_model import LogisticRegression

        images, labels = (x[20_000:22_000] for x in clothes.clothes("train"))
        return LogisticRegression(C=0.01, max_iter=200).fit(images.flatten(1).numpy(), labels.numpy())

    def nearest(self, x: Tensor) -> Tensor:
        """The stored training pictures that are nearest."""
        train = clothes.clothes("train")[0][: self.stored]
        return train[torch.cdist(x.flatten(1), train.flatten(1)).argmin(1)]

    def _measured(self, x: Tensor, moved: float = float("nan")) -> Sampled:
        train, test = clothes.clothes("train")[0][: self.stored], clothes.clothes("test")[0]
        probabilities = torch.from_numpy(self.classifier.predict_proba(x.flatten(1).numpy()))
        return Sampled(
            x, clothes.frechet(x, test), mode_mixture_ratio(probabilities), memorisation_report(x, train, test[:2000]),
            moved,
        )  # fmt: skip
