"""Has a denoiser learnt its pictures by heart? Two of them, trained on disjoint pictures, tell."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.diffusion.score_sampler import ScoreSampler
from hadamard.images import psnr
from hadamard.validation import check_range, check_tensor

__all__ = ["GeneralisationReport", "generalisation_report"]

Denoise = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class GeneralisationReport:
    """Two denoisers on disjoint training pictures, compared; print it.

    Attributes
    ----------
    sigmas : tuple of float
        Levels of noise.
    train, test : tuple of float
        PSNR in dB on training and on test pictures at each level, the mean of both denoisers.
    variance : tuple of float
        ``E |D_a(y) - D_b(y)|^2 / 2`` a pixel on test pictures: zero for two that have learnt one density.
    pairs, nearest : float
        Median cosine similarity of samples of both from the same noise, and of samples to the nearest picture of
        their own training set, all without their means.
    diversity : float
        Mean cosine similarity between different samples of one denoiser. Where it is near 1, all samples look alike and
        ``pairs`` says nothing.
    samples_a, samples_b : Tensor
        The samples.
    """

    sigmas: tuple[float, ...]
    train: tuple[float, ...]
    test: tuple[float, ...]
    variance: tuple[float, ...]
    pairs: float
    nearest: float
    diversity: float
    samples_a: Tensor
    samples_b: Tensor

    @property
    def gap(self) -> tuple[float, ...]:
        """PSNR on training pictures above that on test pictures, in dB: memorised detail."""
        return tuple(a - b for a, b in zip(self.train, self.test))

    def __str__(self) -> str:
        rows = [
            f"sigma {s:g}: PSNR {a:.2f} dB (train), {b:.2f} dB (test); variance {v:.3g}"
            for s, a, b, v in zip(self.sigmas, self.train, self.test, self.variance)
        ]
        return "\n".join(rows + [
            f"cosine of samples: {self.pairs:.2f} with the other's, {self.nearest:.2f} with the nearest training "
            f"picture, {self.diversity:.2f} among themselves"
        ])  # fmt: skip


def generalisation_report(
    model_a: Denoise,
    model_b: Denoise,
    train_a: Float[Tensor, "n *shape"],
    train_b: Float[Tensor, "m *shape"],
    test: Float[Tensor, "k *shape"],
    sigmas: Sequence[float] = (0.05, 0.1, 0.2, 0.5),
    n_samples: int = 16,
    *,
    sampler: Callable[[Denoise], ScoreSampler] = ScoreSampler,
    most: int = 1000,
    generator: torch.Generator | None = None,
) -> GeneralisationReport:
    """Compare two denoisers that were trained on disjoint sets of pictures.

    Parameters
    ----------
    model_a, model_b
        ``D(x, sigma) -> x0`` on batches, as :func:`as_denoiser` makes it, in evaluation mode.
    train_a, train_b, test
        What each was trained on, and pictures that neither saw, in [0, 1].
    sigmas
        Levels of noise.
    n_samples
        Samples of each, at least 2; 0: none are drawn, and the cosines are NaN.
    sampler
        Makes a sampler of a denoiser.
    most
        Pictures of each set on which PSNR is measured: the first ones.
    generator
        Of the noise; ``None``: a fixed seed.

    Returns
    -------
    GeneralisationReport

    Raises
    ------
    ValueError
        If a picture is in two of the sets, or the shapes differ.

    Notes
    -----
    Equal pictures are found, near copies are not: remove them first, or they count as generalisation. Denoisers must
    have been trained by equally many steps before different sizes of training sets are compared.

    Examples
    --------
    Two that know one picture each:

    >>> one, other, test = torch.rand(3, 1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> models = [lambda x, sigma, known=known: known.expand_as(x) for known in (one, other)]
    >>> report = generalisation_report(*models, one, other, test, sigmas=[0.1])
    >>> report.gap[0] > 100, round(report.nearest, 3)
    (True, 1.0)
    """
    sets = {"train_a": train_a, "train_b": train_b, "test": test}
    for name, x in sets.items():
        check_tensor(x, name, dtype="floating", shape=tuple(test.shape[1:]))
    _disjoint(sets)
    if n_samples != 0:
        check_range(n_samples, "n_samples", 2, integer=True)
    check_range(most, "most", 1, integer=True)
    generator = generator or torch.Generator().manual_seed(0)
    seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
    rows = []
    for sigma in sigmas:
        errors = []
        for model, pictures in ((model_a, train_a), (model_b, train_b)):
            x, y = _noisy(pictures[:most], sigma, generator)
            errors.append(psnr(_denoise(model, y, sigma), x))
        x, y = _noisy(test[:most], sigma, generator)
        a, b = (_denoise(model, y, sigma) for model in (model_a, model_b))
        difference = float((a - b).square().mean()) / 2
        rows.append((sum(errors) / 2, (psnr(a, x) + psnr(b, x)) / 2, difference))
    made = []
    for model in (model_a, model_b):  # from the same noise
        same = torch.Generator(generator.device).manual_seed(seed)
        shape = (n_samples, *test.shape[1:])
        made.append(sampler(model)(shape, same, dtype=test.dtype, device=test.device) if n_samples else test[:0])
    levels, (train, held, variance) = tuple(map(float, sigmas)), zip(*rows)
    return GeneralisationReport(levels, train, held, variance, *_cosines(made, (train_a, train_b)), *made)


def _cosines(made: list[Tensor], known: tuple[Tensor, Tensor]) -> tuple[float, float, float]:
    """Of samples with the other's, with the nearest training picture, and among themselves."""
    n = len(made[0])
    if not n:
        return (float("nan"),) * 3
    unit = [_unit(x) for x in made]
    near = torch.cat([(u @ _unit(x).T).amax(1) for u, x in zip(unit, known)])
    others = sum(float((u @ u.T).sum()) - n for u in unit) / (2 * n * (n - 1))
    return float((unit[0] * unit[1]).sum(1).median()), float(near.median()), others


def _noisy(x: Tensor, sigma: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    noise = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)
    return x, x + sigma * noise


@torch.no_grad()
def _denoise(model: Denoise, y: Tensor, sigma: float) -> Tensor:
    return torch.cat([model(part, sigma) for part in y.split(250)])


def _unit(x: Tensor) -> Tensor:
    """Pictures without their means, of norm 1."""
    flat = x.flatten(1).double()
    flat = flat - flat.mean(1, keepdim=True)
    return flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _disjoint(sets: dict[str, Tensor]) -> None:
    rows = {name: {row.numpy().tobytes() for row in x.detach().cpu().float()} for name, x in sets.items()}
    for one, other in (("train_a", "train_b"), ("train_a", "test"), ("train_b", "test")):
        common = len(rows[one] & rows[other])
        if common:
            raise ValueError(f"{one} and {other} must have no picture in common, got {common}")
