"""A vote of classifiers under noise: counted, bounded by exact binomial intervals, turned into a certified radius."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.special import bdtrc, betaincinv
from torch import Tensor, nn

from hadamard.results import Certificate
from hadamard.validation import check_range, check_tensor

__all__ = ["SmoothedClassifier", "SmoothingCertificate", "binomial_lower"]

ABSTAIN = -1
Classifier = Callable[[Tensor], Tensor]
Noise = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class SmoothingCertificate(Certificate):
    """Labels of a batch, each with the radius within which it provably does not change.

    Attributes
    ----------
    value
        Labels of shape (B,), int64, -1 where it abstains; also called ``label``.
    bound
        l2 radii of shape (B,), float64, in the units of the image, 0 where it abstains; also called ``radius``.
    verified
        Whether every image has a certificate.
    lower
        Lower bounds of shape (K, B) on the share of each branch's votes for the class that leads.

    Examples
    --------
    >>> SmoothingCertificate(
    ...     value=torch.tensor([3]), bound=torch.tensor([0.5]), verified=True, lower=torch.tensor([[0.98]])
    ... ).radius
    tensor([0.5000])
    """

    lower: Float[Tensor, "k b"]

    @property
    def label(self) -> Int64[Tensor, " b"]:
        """The labels; -1 where it abstains."""
        return self.value

    @property
    def radius(self) -> Float[Tensor, " b"]:
        """The l2 radii."""
        return self.bound


def binomial_lower(successes: Int64[Tensor, "*batch"], n: int, alpha: float) -> Float[Tensor, "*batch"]:
    """Clopper-Pearson: below the true share of successes with confidence ``1 - alpha``, by the exact binomial law.

    Parameters
    ----------
    successes
        How many of ``n`` draws were successes, of any shape.
    n
        Draws, at least 1.
    alpha
        Probability, in (0, 1), with which the bound may exceed the true share.

    Returns
    -------
    Tensor
        Bounds in float64.

    Raises
    ------
    ValueError
        If ``alpha`` or ``n`` is out of range, or the successes are more than ``n`` or negative.

    Examples
    --------
    >>> binomial_lower(torch.tensor([0, 100]), 100, 0.001)
    tensor([0.0000, 0.9333], dtype=torch.float64)
    """
    check_tensor(successes, "successes", dtype="integer")
    check_range(n, "n", 1, integer=True)
    check_range(alpha, "alpha", 0, 1, "neither")
    check_range(successes, "successes", 0, n, elementwise=True)
    k = successes.detach().cpu().numpy()
    bound = np.where(k > 0, betaincinv(np.maximum(k, 1), n - k + 1.0, alpha), 0.0)
    return torch.from_numpy(np.asarray(bound)).to(successes.device)


class SmoothedClassifier(ABC):
    """A vote of classifiers, each asked about many noisy copies of an image: what all kinds of smoothing share.

    :class:`RandomizedSmoothing` and :class:`DualSmooth` say which noise, and which radius follows from the votes.

    Parameters
    ----------
    branches
        Pairs of a classifier, which maps images of shape (N, C, H, W) to scores of shape (N, num_classes), and its
        noise, ``noise(x, generator=...)``. Networks are asked in evaluation mode and without gradients.
    num_classes
        How many classes they know.
    """

    def __init__(self, branches: Sequence[tuple[Classifier, Noise]], num_classes: int) -> None:
        self.num_classes = check_range(num_classes, "num_classes", 2, integer=True)
        for net, _ in branches:
            if not callable(net):
                raise TypeError(f"a base classifier must be callable, got {type(net).__name__}")
        self._branches = list(branches)

    @abstractmethod
    def _radius(self, lower: Tensor, upper: Tensor | None) -> Tensor:
        """Radii of shape (B,) from bounds of shape (K, B) and, on the other classes, (K, B, C - 1)."""

    def certify(
        self,
        x: Float[Tensor, "c h w"],
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        batch_size: int = 200,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[int, float]:
        """Label of one image and its certified radius: :meth:`certify_batch` for a batch of one.

        Returns
        -------
        tuple of int and float
            -1 and 0.0 where it abstains.
        """
        check_tensor(x, "x", ndim=3, dtype="floating")
        found = self.certify_batch(x[None], n0, n, alpha, batch_size, generator=generator)
        return int(found.label), float(found.radius)

    def certify_batch(
        self,
        x: Float[Tensor, "b c h w"],
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        batch_size: int = 200,
        *,
        runner_up: bool = False,
        generator: torch.Generator | None = None,
    ) -> SmoothingCertificate:
        """Labels of a batch of images and their certified radii.

        Parameters
        ----------
        x
            Images, in the units that the classifiers expect.
        n0
            Noisy copies of an image, over all branches, by which its label is chosen.
        n
            Further ones by which its radius is certified; shared out equally among the branches (rounded down).
        alpha
            Probability, for each image, that its certificate is wrong.
        batch_size
            Noisy images that a classifier is given at a time.
        runner_up
            Bound every other class's share, too, instead of giving the others all that is left: larger radii where the
            votes against the label are spread over several classes, slightly smaller ones where they are few.
        generator
            Draws the noise, on the images' device; the same seed and ``batch_size`` give the same result.

        Returns
        -------
        SmoothingCertificate
            Labels, radii and the bounds behind them.

        Raises
        ------
        ValueError
            If a number is out of range, or a classifier's answer has another shape than (N, num_classes) or holds NaN.
        """
        check_tensor(x, "x", ndim=4, dtype="floating")
        k, c = len(self._branches), self.num_classes
        check_range(n0, "n0", k, integer=True)
        check_range(n, "n", k, integer=True)
        check_range(alpha, "alpha", 0, 1, "neither")
        label = self._count(x, n0 // k, batch_size, generator).sum(0).argmax(-1)
        counts = self._count(x, n // k, batch_size, generator)
        share = alpha / (k * (c if runner_up else 1))  # for each bound, so that all hold together
        mine = label.expand(k, -1)[..., None]
        lower = binomial_lower(counts.gather(-1, mine)[..., 0], n // k, share)
        upper = None
        if runner_up:
            others = torch.arange(c, device=x.device).expand(k, len(x), c) != mine
            against = counts[others].view(k, len(x), c - 1)
            upper = torch.minimum(1 - binomial_lower(n // k - against, n // k, share), 1 - lower[..., None])
        radius = self._radius(lower, upper)
        sure = radius > 0
        missed = int((~sure).sum())
        return SmoothingCertificate(
            value=label.where(sure, ABSTAIN),
            bound=radius,
            verified=missed == 0,
            reason=f"{missed} of {len(x)} images have no class that is sure to win" if missed else "",
            lower=lower,
        )

    def predict(
        self,
        x: Float[Tensor, "c h w"],
        n: int = 1000,
        alpha: float = 0.001,
        batch_size: int = 200,
        *,
        generator: torch.Generator | None = None,
    ) -> int:
        """Label of one image without a radius, or -1.

        The class with most of the ``n`` votes is returned where more than half of all votes are for it, by a two-sided
        binomial test at level ``alpha`` (for several branches with unequal shares it errs on the side of caution).
        Otherwise as :meth:`certify_batch`.
        """
        check_tensor(x, "x", ndim=3, dtype="floating")
        k = len(self._branches)
        check_range(n, "n", k, integer=True)
        check_range(alpha, "alpha", 0, 1, "neither")
        counts = self._count(x[None], n // k, batch_size, generator).sum((0, 1))
        won = int(counts.max())
        return int(counts.argmax()) if 2 * bdtrc(won - 1, n // k * k, 0.5) <= alpha else ABSTAIN

    @torch.no_grad()
    def _count(self, x: Tensor, n: int, batch_size: int, generator: torch.Generator | None) -> Int64[Tensor, "k b c"]:
        """Votes of ``n`` noisy copies of each image in each branch, copies of several images at a time."""
        check_range(batch_size, "batch_size", 1, integer=True)
        total, c = len(x) * n, self.num_classes
        counts = torch.zeros(len(self._branches), len(x) * c, dtype=torch.int64, device=x.device)
        with _evaluating([net for net, _ in self._branches]):
            for votes, (net, noise) in zip(counts, self._branches):
                for start in range(0, total, batch_size):
                    which = torch.arange(start, min(start + batch_size, total), device=x.device) // n
                    chosen = self._choose(net(noise(x[which], generator=generator)), len(which))
                    votes.index_add_(0, which * c + chosen, torch.ones_like(which))
        return counts.view(-1, len(x), c)

    def _choose(self, scores: Any, rows: int) -> Tensor:
        """The class of the highest score in each row."""
        if not isinstance(scores, Tensor) or scores.shape != (rows, self.num_classes):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"a base classifier must return scores of shape ({rows}, {self.num_classes}), got {got}")
        if bool(scores.isnan().any()):
            raise ValueError("a base classifier returned NaN, which has no largest class")
        return scores.argmax(-1)


@contextmanager
def _evaluating(nets: Sequence[Any]) -> Iterator[None]:
    """Put every part of the networks into evaluation mode, and back."""
    parts = [m for net in nets if isinstance(net, nn.Module) for m in net.modules()]
    modes = [m.training for m in parts]
    for m in parts:
        m.training = False
    try:
        yield
    finally:
        for m, mode in zip(parts, modes):
            m.training = mode
