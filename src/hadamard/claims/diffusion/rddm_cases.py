"""What is measured of residual denoising: exactness, equality with DDIM, restoration, exchange of schedules, choice."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from hadamard.claims.diffusion import clothes as shared
from hadamard.claims.diffusion import rddm_problem as problem
from hadamard.claims.diffusion import rddm_training as training

from diffusers import DDIMScheduler  # isort: skip
from hadamard.diffusion import AutoObjective, RDDMPipeline, RDDMScheduler  # isort: skip

__all__ = ["Choice", "Clothes", "Converted", "Exact", "Photographs", "Restored"]

_SCHEDULES = ("decreased", "increased", "average")


@dataclass(frozen=True)
class Restored:
    """Pictures in [0, 1], and what they took."""

    images: Tensor
    psnr: float
    calls: int


@dataclass(frozen=True)
class Exact:
    """A residual and noise that are known: every schedule, noise and number of steps must give the clean picture."""

    T: int
    seed: int

    def errors(self) -> dict[int, float]:
        """Largest error for each number of steps."""
        generator = torch.Generator().manual_seed(self.seed)
        clean, degraded = torch.rand(2, 1, 3, 16, 16, generator=generator, dtype=torch.float64) * 2 - 1
        found = dict.fromkeys((1, 2, 5, 10, self.T), 0.0)
        for steps in found:
            for alpha in _SCHEDULES:
                for beta in _SCHEDULES:
                    for scale in (0.01, 1.0):
                        scheduler = RDDMScheduler(self.T, alpha, beta, scale, prediction_type="residual_epsilon")
                        scheduler.set_timesteps(steps)
                        x = scheduler.start(degraded, generator)
                        output = torch.cat([degraded - clean, (x - degraded) / scale**0.5], 1)
                        for t in scheduler.timesteps.tolist():
                            x = scheduler.step(output, t, x, degraded).prev_sample
                        found[steps] = max(found[steps], float((x - clean).abs().max()))
        return found


@dataclass(frozen=True)
class Converted:
    """The trained model of clothes, sampled by diffusers' DDIM and by the scheduler that it is converted to."""

    net: Any
    noise: Tensor
    labels: Tensor
    steps: int

    def compare(self) -> dict[str, Any]:
        """Largest difference of a step and of all of them, by the random part, in double precision."""
        net = self.net.double()
        found: dict[str, Any] = {}
        for eta in (0.0, 1.0):
            theirs = shared.scheduler(timestep_spacing="trailing")
            ours = RDDMScheduler.from_ddim(theirs, variance_type="ddim")
            theirs.set_timesteps(self.steps)
            ours.set_timesteps(self.steps)
            assert torch.equal(ours.timesteps, theirs.timesteps)
            generator = torch.Generator().manual_seed(0)
            x = y = self.noise.double()
            single = 0.0
            with torch.no_grad():
                for t in theirs.timesteps:
                    z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
                    output = net(x, t, self.labels).sample
                    one = ours.step(output, t, x, eta=eta, variance_noise=z).prev_sample
                    y = ours.step(net(y, t, self.labels).sample, t, y, eta=eta, variance_noise=z).prev_sample
                    x = theirs.step(output, t, x, eta=eta, variance_noise=z).prev_sample
                    single = max(single, float((one - x).abs().max()))
            found |= {f"step, eta {eta:g}": single, f"all, eta {eta:g}": float((y - x).abs().max())}
            found |= {f"DDIM, eta {eta:g}": x, f"ours, eta {eta:g}": y}
        return found


@dataclass(frozen=True)
class Clothes:
    """Pictures that were darkened, rained on and blurred, and the networks that are to undo it."""

    clean: Float[Tensor, "n 1 32 32"]
    degraded: Float[Tensor, "n 1 32 32"]
    steps: tuple[int, ...]

    @classmethod
    def test(cls, count: int, steps: tuple[int, ...]) -> "Clothes":
        """The first test pictures, degraded like those of training."""
        clean, generator = problem.clothes("test")[:count], torch.Generator().manual_seed(1)
        degraded = torch.cat([problem.degraded_clothes(part, generator) for part in clean.split(16)])
        return cls(clean, degraded, steps)

    def rddm(self, steps: int) -> Restored:
        """Residual denoising by one network that predicts the residual."""
        pipe = RDDMPipeline(training.trained("rddm_residual"), training.schedule("rddm_residual"))
        return self._run(pipe, steps)

    def two(self, steps: int, **schedules: str) -> Restored:
        """By one network for the residual and one for the noise, on the schedules of training or on other ones."""
        scheduler = training.schedule("rddm_residual", prediction_type="residual_epsilon", **schedules)
        return self._run(
            RDDMPipeline(training.trained("rddm_residual"), scheduler, training.trained("rddm_noise")), steps
        )

    def ddim(self, steps: int) -> Restored:
        """Diffusers' DDIM with the degraded picture as its condition."""
        net, schedule = training.trained("rddm_ddim"), training.ddim()
        schedule.set_timesteps(steps)
        degraded = self.degraded * 2 - 1
        x = torch.randn(degraded.shape, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            for t in schedule.timesteps:
                x = schedule.step(net(torch.cat([x, degraded], 1), t).sample, t, x).prev_sample
        return self._result(x / 2 + 0.5, steps)

    def regression(self) -> Restored:
        """One call of a network that was trained to give the residual."""
        degraded = self.degraded * 2 - 1
        with torch.no_grad():
            x = degraded - training.trained("rddm_regression")(degraded, 0).sample
        return self._result(x / 2 + 0.5, 1)

    def _run(self, pipe: RDDMPipeline, steps: int) -> Restored:
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(2)
        calls = steps * (1 if pipe.unet_noise is None else 2)
        return self._result(pipe(self.degraded, steps, generator=generator, output_type="pt").images, calls)

    def _result(self, images: Tensor, calls: int) -> Restored:
        return Restored(images.clamp(0, 1), problem.psnr(images, self.clean), calls)


@dataclass(frozen=True)
class Photographs:
    """Parts of photographs that no network has seen, degraded in five ways."""

    clean: Float[Tensor, "n 3 h w"]
    degraded: dict[str, Float[Tensor, "n 3 h w"]]

    @classmethod
    def test(cls, side: int) -> "Photographs":
        """The middle of each test photograph."""
        pictures = problem.colours("test")
        corners = [[(n - side) // 2 for n in x.shape[-2:]] for x in pictures]
        clean = torch.stack([x[:, i : i + side, j : j + side] for x, (i, j) in zip(pictures, corners)])
        generator = torch.Generator().manual_seed(3)
        degraded = {
            task: torch.cat([problem.degraded_photographs(x[None], task, generator) for x in clean])
            for task in problem.TASKS
        }
        return cls(clean, degraded)

    def levels(self) -> dict[str, float]:
        """PSNR of what is to be restored."""
        return {task: problem.psnr(y, self.clean) for task, y in self.degraded.items()}

    def rddm(self, steps: int) -> dict[str, Restored]:
        """The restorer that ships; one step of it is a regression."""
        pipe = RDDMPipeline(training.trained("rddm_photographs"), training.schedule("rddm_photographs"))
        pipe.set_progress_bar_config(disable=True)
        found = {}
        for k, (task, y) in enumerate(self.degraded.items()):
            generator = torch.Generator().manual_seed(2)
            images = pipe(y, steps, class_labels=k, generator=generator, output_type="pt").images
            found[task] = Restored(images, problem.psnr(images, self.clean), steps)
        return found


@dataclass(frozen=True)
class Choice:
    """Pictures of clothes at 16 x 16, degraded and clean, from which training is to find its own objective."""

    seeds: int
    rate: float

    def choose(self) -> dict[str, list[str]]:
        """What was chosen, with each seed, to restore and to generate."""
        return {
            "restore": [self._chosen(seed, True) for seed in range(self.seeds)],
            "generate": [self._chosen(seed, False) for seed in range(self.seeds)],
        }

    def _chosen(self, seed: int, restore: bool) -> str:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            net = training.restorer(2 if restore else 1, 1, None)
        scheduler, auto = RDDMScheduler.from_ddim(DDIMScheduler()), AutoObjective()
        optimizer = torch.optim.Adam([*net.parameters(), *auto.parameters()], lr=self.rate, fused=True)
        images, generator = problem.clothes("train"), torch.Generator().manual_seed(seed)
        for _ in range(1000):
            clean = images[torch.randint(len(images), (8,), generator=generator)]
            seen = problem.degraded_clothes(clean, generator)
            clean, seen = (F.avg_pool2d(v, 2) * 2 - 1 for v in (clean, seen))
            optimizer.zero_grad()
            auto(net, scheduler, clean, seen if restore else None, generator=generator).backward()
            optimizer.step()
            if auto.choice is not None:
                return auto.choice
        return "open"
