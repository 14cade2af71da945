"""The hook of DistributedDataParallel gives what the function gives on the gradients of all ranks."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_wrapper
from torch.nn.parallel import DistributedDataParallel

from hadamard.distributed import FlagState, flag_aggregate, flag_hook
from tests.suites.two_ranks import Ranks


class _Net(nn.Module):
    """Sizes that no number of ranks divides, and a head that not every rank uses."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(7, 13), nn.Tanh(), nn.Linear(13, 11), nn.Tanh(), nn.Linear(11, 3))
        self.head = nn.Linear(7, 3)

    def forward(self, x, head):
        return self.body(x) + self.head(x) if head else self.body(x)


def _net():
    torch.manual_seed(0)
    return _Net()


def _data(rank, step):
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(100 * step + rank))


def _loss(net, rank, step, head):
    return net(_data(rank, step), head).square().sum()


def _train(rank, world_size, steps, m, heads, options, wrapped=False, faulty=None, accumulate=False):
    """Gradients after each step, last scores, and the numbers of buckets of the steps."""
    model = DistributedDataParallel(_net(), bucket_cap_mb=0.0001, **options)
    state, buckets = FlagState(m=m), []

    def hook(state, bucket):
        if bucket.index() == 0:
            buckets.append(0)
        buckets[-1] += 1
        if faulty is not None and rank == faulty[0]:
            bucket.buffer().fill_(faulty[1])
        return flag_hook(state, bucket)

    model.register_comm_hook(state, fp16_compress_wrapper(hook) if wrapped else hook)
    gradients = []
    for step in range(steps):
        model.zero_grad()
        if accumulate:
            with model.no_sync():
                _loss(model, rank, step + 50, heads[rank]).backward()
        _loss(model, rank, step, heads[rank]).backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    return gradients, state.last, buckets


def _expected(world_size, step, m, heads, accumulate=False):
    grads = []
    for rank in range(world_size):
        net = _net()
        for s in [step, step + 50] if accumulate else [step]:
            _loss(net, rank, s, heads[rank]).backward()
        grads.append([torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()])
    return flag_aggregate([torch.stack(g) for g in zip(*grads)], m)


@pytest.mark.parametrize(
    ("options", "accumulate"),
    [
        ({}, False),
        ({}, True),
        ({"gradient_as_bucket_view": True}, False),
        ({"gradient_as_bucket_view": True}, True),
        ({"static_graph": True}, False),
    ],
)
def test_equals_the_function(two_ranks, options, accumulate):
    ranks = two_ranks(partial(_train, accumulate=accumulate), 3, 1, (True, True), options)
    for gradients, last, buckets in ranks:
        assert buckets[-1] > 2
        for step, got in enumerate(gradients):
            expected = _expected(2, step, 1, (True, True), accumulate)
            torch.testing.assert_close(got, expected.value)
        torch.testing.assert_close(last.scores, expected.scores, rtol=1e-5, atol=0)
    assert all(torch.equal(a, b) for one, other in zip(ranks[0][0], ranks[1][0]) for a, b in zip(one, other))


@pytest.mark.parametrize("heads", [(True, False), (False, False)])
def test_parameters_that_are_not_used(two_ranks, heads):
    for gradients, _, _ in two_ranks(_train, 2, 1, heads, {"find_unused_parameters": True}):
        for step, got in enumerate(gradients):
            expected = _expected(2, step, 1, heads).value
            if heads == (False, False):
                assert got[-2:] == [None, None]
                got, expected = got[:-2], expected[:-2]
            torch.testing.assert_close(got, expected)


def test_inside_a_compression_hook(two_ranks):
    for gradients, _, _ in two_ranks(partial(_train, wrapped=True), 2, 1, (True, True), {}):
        for step, got in enumerate(gradients):
            torch.testing.assert_close(got, _expected(2, step, 1, (True, True)).value, rtol=0.05, atol=0.05)


def test_a_rank_that_is_not_finite_is_left_out(two_ranks):
    for gradients, last, _ in two_ranks(partial(_train, faulty=(1, float("nan"))), 1, None, (True, True), {}):
        net = _net()
        _loss(net, 0, 0, True).backward()
        torch.testing.assert_close(gradients[0], [p.grad for p in net.parameters()])
        assert last.scores.tolist() == pytest.approx([1, 0])


def _only_second_bucket(rank, world_size):
    class Bucket:
        def index(self):
            return 1

    with pytest.raises(RuntimeError, match="one FlagState for each model"):
        flag_hook(FlagState(), Bucket())


def test_two_models_do_not_share_a_state(two_ranks):
    two_ranks(_only_second_bucket)


def _saved(rank, world_size, folder):
    state = FlagState(dist.group.WORLD, m=1)
    torch.save(state, f"{folder}/{rank}")
    loaded = torch.load(f"{folder}/{rank}", weights_only=False)
    return loaded.options == state.options and loaded.process_group is None


def test_a_state_can_be_saved(two_ranks, tmp_path):
    assert two_ranks(_saved, str(tmp_path)) == [True, True]


@pytest.mark.bad_input
def test_bad_options():
    with pytest.raises(ValueError, match="m must be >= 1, got 0"):
        FlagState(m=0)
    with pytest.raises(ValueError, match="reg must be >= 0"):
        FlagState(reg=-1.0)


@pytest.mark.slow
def test_four_ranks_one_of_which_sends_the_opposite():
    ranks = Ranks(4)
    try:
        results = ranks(partial(_train, faulty=(2, 1e4)), 2, None, (True,) * 4, {}, timeout=120)
    finally:
        ranks.close()
    for gradients, last, _ in results:
        for step, got in enumerate(gradients):
            grads = []
            for rank in range(4):
                net = _net()
                _loss(net, rank, step, True).backward()
                grads.append([torch.full_like(p, 1e4) if rank == 2 else p.grad for p in net.parameters()])
            expected = flag_aggregate([torch.stack(g) for g in zip(*grads)])
            torch.testing.assert_close(got, expected.value)
        torch.testing.assert_close(last.scores, expected.scores, rtol=1e-5, atol=0)
