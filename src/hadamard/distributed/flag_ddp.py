"""The flag aggregator as a communication hook of DistributedDataParallel.

A rank is a worker. Each bucket of gradients is cut into as many shards as there are ranks, and rank r receives shard r
from all of them (all-to-all), so that it can add the shard's part of the p x p Gram matrix. After the last bucket the
parts are summed over the ranks (p^2 numbers), each rank combines its shards with the same coefficients, and all gather
the result. These are the bytes of averaging by a ring all-reduce, which is a reduce-scatter and the same gather.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hadamard.distributed.flag_aggregator import FlagAggregate, check_options, flag_coefficients
from hadamard.lowrank import combine, gram

__all__ = ["FlagState", "flag_hook"]


_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name since torch 2.13


class FlagState:
    """Options and last result of :func:`flag_hook`.

    Parameters
    ----------
    process_group
        The group that the model was wrapped with; the default group where it is ``None``.
    m, reg, rescale, max_iter, tol, eps
        As in :func:`flag_aggregate`; p is the number of ranks.

    Attributes
    ----------
    last
        What :func:`flag_coefficients` found in the last step, on every rank; ``None`` before the first. Scores, weights
        and coefficients are listed by rank.

    Raises
    ------
    TypeError, ValueError
        As in :func:`flag_aggregate`.

    Examples
    --------
    >>> FlagState(rescale="mean")
    Traceback (most recent call last):
        ...
    ValueError: rescale must be one of 'none', 'median_norm', got 'mean'
    """

    def __init__(
        self,
        process_group: dist.ProcessGroup | None = None,
        m: int | None = None,
        reg: float = 0.0,
        *,
        rescale: str = "median_norm",
        max_iter: int = 5,
        tol: float = 1e-4,
        eps: float = 1e-7,
    ) -> None:
        check_options(None, m, reg, rescale, max_iter, tol, eps)
        self.process_group = process_group
        self.options: dict[str, Any] = {
            "m": m, "reg": reg, "rescale": rescale, "max_iter": max_iter, "tol": tol, "eps": eps
        }  # fmt: skip
        self.last: FlagAggregate | None = None
        self._buckets: list[_Bucket] = []

    def __getstate__(self) -> dict[str, Any]:
        """For checkpoints: options and last result, without the process group and buckets on their way."""
        return self.__dict__ | {"process_group": None, "_buckets": []}


def flag_hook(state: FlagState, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Aggregate gradients by :func:`flag_aggregate` instead of averaging them; for ``register_comm_hook``.

    The result is that of :func:`flag_aggregate` on the gradients of all ranks, whatever the buckets: their Gram
    matrices are summed before anything is decided. As an average does, it comes out the same on all ranks.

    Parameters
    ----------
    state
        Options; the same on all ranks. One for each model.
    bucket
        Given by DistributedDataParallel.

    Returns
    -------
    torch.futures.Future
        Of the bucket's aggregated gradients. Those of all buckets are complete once the last bucket is.

    Notes
    -----
    What it protects against: gradients that are wrong on some ranks, because of their data, their augmentation, a
    defect of their memory or their processor. What it does not: a rank that stops, which stops the others as it does
    with averaging, and one that does not keep to the protocol. Each rank combines the shards of all, and nobody checks
    it; buffers and the optimizer's steps are each rank's own. Against malicious participants, collect the gradients
    where they cannot reach, and use :func:`flag_aggregate` there.

    Two ranks cannot tell which of them is wrong, and the default ``m`` is then 2: the mean of the directions.
    Robustness begins at three or four ranks.

    It needs memory for two more copies of the gradients. Buckets are exchanged while the
    backward pass goes on; they are combined and gathered after it.

    It works with ``no_sync`` (sums of several backward passes are aggregated), ``find_unused_parameters``,
    ``gradient_as_bucket_view``, and inside PyTorch's ``fp16_compress_wrapper``. With a ``GradScaler``, ranks whose
    gradients overflow are left out of the step, which is skipped only if all do. Tests run with gloo on CPUs;
    with NCCL on GPUs the same collectives are called, which no test has covered yet, and the coefficients are found on
    the CPU, which waits for the device once in each step.

    Examples
    --------
    In a script that ``torchrun`` starts::

        model = DistributedDataParallel(net)
        state = FlagState()
        model.register_comm_hook(state, flag_hook)     # the one line
        ...
        state.last.scores                              # by rank, after each backward pass
    """
    if bucket.index() == 0:
        state._buckets = []
    buckets = state._buckets
    if len(buckets) != bucket.index():
        raise RuntimeError(f"bucket {bucket.index()} came after {len(buckets)} others: one FlagState for each model")
    buckets.append(_Bucket.exchange(bucket.buffer(), state.process_group))
    future = buckets[-1].future
    if bucket.is_last():
        state._buckets = []
        for ready, value in zip(buckets, _aggregate(state, buckets)):
            ready.future.set_result(value)
    return future


@dataclass(frozen=True)
class _Bucket:
    """A bucket whose shards are on their way."""

    buffer: Tensor
    shards: Tensor  # (ranks, length / ranks), one row from each
    padded: Tensor  # what is sent, and in the end what is received
    work: dist.Work
    future: torch.futures.Future[Tensor]

    @classmethod
    def exchange(cls, buffer: Tensor, group: dist.ProcessGroup | None) -> "_Bucket":
        ranks, length = dist.get_world_size(group), len(buffer)
        padded = torch.nn.functional.pad(buffer, (0, -length % ranks))
        shards = torch.empty_like(padded)
        work = dist.all_to_all_single(shards, padded, group=group, async_op=True)
        devices: list[Any] = [] if buffer.device.type == "cpu" else [buffer.device]
        return cls(buffer, shards.view(ranks, -1), padded, work, torch.futures.Future(devices=devices))


def _aggregate(state: FlagState, buckets: list[_Bucket]) -> list[Tensor]:
    """The buckets' buffers, filled with the aggregate."""
    group, total = state.process_group, None
    for bucket in buckets:
        bucket.work.wait()
        K = gram(bucket.shards)
        total = K if total is None else total + K
    assert total is not None
    dist.all_reduce(total, group=group)
    state.last = flag_coefficients(total.cpu(), **state.options)
    gathered = []
    for bucket in buckets:
        combined = combine(state.last.coefficients.to(bucket.shards.device), bucket.shards)
        gathered.append((combined, _all_gather(bucket.padded, combined, group=group, async_op=True)))
    for bucket, (_, work) in zip(buckets, gathered):
        work.wait()
        bucket.buffer.copy_(bucket.padded[: len(bucket.buffer)])
    return [bucket.buffer for bucket in buckets]
