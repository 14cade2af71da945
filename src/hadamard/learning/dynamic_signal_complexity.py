"""How many samples a learner needs, measured: and those of networks that look for a dynamic signal."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from hadamard.learning.dynamic_signal_nets import PatchThresholdNet, train_patches
from hadamard.validation import check_range

_STRIDE = 3  # with sizes a factor of 1.5 apart no size above 3.4 times the answer is trained

__all__ = ["SampleComplexity", "sample_complexity", "signal_errors"]


@dataclass(frozen=True)
class SampleComplexity:
    """What :func:`sample_complexity` found.

    Attributes
    ----------
    n
        The smallest size tried whose mean error is at most the target; infinity if none is.
    curve
        The mean error at each size that was tried, in increasing order.
    """

    n: float
    curve: Mapping[int, float] = field(default_factory=dict)


def sample_complexity(
    errors: Callable[[int, Sequence[int]], Sequence[float]],
    sizes: Sequence[int],
    target: float,
    seeds: Sequence[int] = (0, 1, 2),
) -> SampleComplexity:
    """Find the smallest number of samples with which a learner reaches an error, by bisection.

    Parameters
    ----------
    errors
        ``errors(n, seeds)``: test errors of the learner from n samples, one for each seed. Called for few sizes.
    sizes
        Increasing sizes to choose among; a factor of 1.5 apart, say.
    target
        The mean error to be reached.
    seeds
        Handed on; the mean is over these.

    Returns
    -------
    SampleComplexity
        The size, and the errors on the way. Sizes are tried upwards in strides of 1, 2 and then 3, after which the gap
        is halved, so that no size far above the answer is trained; the error is taken to fall with n.

    Raises
    ------
    ValueError
        If ``sizes`` or ``seeds`` is empty, sizes do not increase, or ``target`` is negative.

    Examples
    --------
    >>> found = sample_complexity(lambda n, seeds: [1 / n for s in seeds], [2**i for i in range(12)], target=0.01)
    >>> found.n, len(found.curve)
    (128, 6)
    """
    check_range(target, "target", 0)
    sizes, seeds = list(sizes), list(seeds)
    if not sizes or any(b <= a for a, b in pairwise(sizes)):
        raise ValueError(f"sizes must increase, got {sizes}")
    if not seeds:
        raise ValueError("seeds must not be empty")
    curve: dict[int, float] = {}

    def reached(i: int) -> bool:
        values = [float(e) for e in errors(sizes[i], seeds)]
        curve[sizes[i]] = sum(values) / len(values)
        return curve[sizes[i]] <= target

    low, high, stride = -1, 0, 1  # low has failed
    while not reached(high):
        if high == len(sizes) - 1:
            return SampleComplexity(math.inf, dict(sorted(curve.items())))
        low, high, stride = high, min(high + stride, len(sizes) - 1), min(2 * stride, _STRIDE)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return SampleComplexity(sizes[high], dict(sorted(curve.items())))


def signal_errors(
    kind: str,
    n: int,
    seeds: Sequence[int],
    n_patches: int,
    patch_dim: int,
    noise: float,
    *,
    static: bool = False,
    n_test: int = 2000,
    dtype: torch.dtype = torch.float32,
    **training: float | int | str | bool,
) -> list[float]:
    """Test errors of networks that are trained on n images with a dynamic signal: one for each seed, side by side.

    Parameters
    ----------
    kind
        ``"conv"``, ``"local"`` or ``"full"``.
    n
        Images to train on.
    seeds
        Each draws a direction, its images, test images and first weights.
    n_patches, patch_dim, noise, static
        As in :func:`~hadamard.learning.make_dynamic_signal`.
    n_test
        Images to test on.
    dtype
        In which to compute.
    training
        Options of :func:`~hadamard.learning.train_patches`.

    Examples
    --------
    >>> conv, local = (sum(signal_errors(kind, 100, [0, 1], 8, 16, 0.25)) / 2 for kind in ("conv", "local"))
    >>> conv < local
    True
    """
    draws = [_draw(n, n_test, s, n_patches, patch_dim, noise, static, dtype) for s in seeds]
    x, y, x_test, y_test = (torch.stack(parts) for parts in zip(*draws, strict=True))
    generator = torch.Generator().manual_seed(next(iter(seeds)))
    net = PatchThresholdNet(kind, n_patches, patch_dim, nets=len(draws), generator=generator, dtype=dtype)
    train_patches(net, x, y, **training)  # type: ignore[arg-type]
    with torch.no_grad():
        return (net(x_test) * y_test <= 0).to(torch.float64).mean(-1).tolist()


def _draw(
    n: int, n_test: int, seed: int, k: int, d: int, noise: float, static: bool, dtype: torch.dtype
) -> tuple[Float[Tensor, "n width"], Float[Tensor, " n"], Float[Tensor, "test width"], Float[Tensor, " test"]]:
    """Training and test images with one direction, drawn by torch (NumPy takes as long as the training)."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(d, generator=g, dtype=dtype)
    w = w / w.norm()
    count = n + n_test
    y = 2 * torch.randint(2, (count,), generator=g).to(dtype) - 1
    place = torch.zeros(count, dtype=torch.int64) if static else torch.randint(k, (count,), generator=g)
    x = noise * torch.randn(count, k, d, generator=g, dtype=dtype)
    x[torch.arange(count), place] += y[:, None] * w
    x = x.flatten(1)
    return x[:n], y[:n], x[n:], y[n:]
