"""The pair of ranks that the tests of this family stand on."""

import pytest
import torch
import torch.distributed as dist


def _sum(rank, world_size, value):
    total = torch.tensor(value * (rank + 1))
    dist.all_reduce(total)
    return int(total), world_size


def _fail_on_one(rank, world_size):
    if rank == 1:
        raise ValueError("rank 1 does not like this")
    dist.barrier()


def test_both_ranks_run_the_function_together(two_ranks):
    assert two_ranks(_sum, 5) == [(15, 2), (15, 2)]


def test_an_error_on_one_rank_is_raised_here_and_the_next_call_works(two_ranks):
    with pytest.raises(ValueError, match="rank 1 does not like this"):
        two_ranks(_fail_on_one)
    assert two_ranks(_sum, 1) == [(3, 2), (3, 2)]
