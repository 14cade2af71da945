"""Costs: every pair and paired points agree, gradients, digits of near points."""

import math

import pytest
import torch

from hadamard.transport import Cost, Euclidean, Manhattan, Sphere, SquaredEuclidean


@pytest.mark.parametrize(
    "cost", [SquaredEuclidean(), SquaredEuclidean(0.5), Euclidean(), Manhattan(), Sphere()], ids=repr
)
def test_costs(cost, generator):
    x, y = (torch.randn(2, 5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    if cost == Sphere():
        x, y = (torch.nn.functional.normalize(points, dim=-1) for points in (x, y))
    x.requires_grad_(), y.requires_grad_()
    every = cost.pairwise(x, y)
    torch.testing.assert_close(every.diagonal(dim1=1, dim2=2), cost.paired(x, y))
    assert torch.autograd.gradcheck(cost.pairwise, (x, y))
    assert torch.autograd.gradcheck(cost.paired, (x, y))


def test_squared_distance_of_near_points_keeps_its_digits():
    x = torch.full((40, 2), 1e4, dtype=torch.float64)
    y = x + 1e-4
    torch.testing.assert_close(SquaredEuclidean().pairwise(x, y)[0, 0], (y - x)[0].square().sum())


@pytest.mark.bad_input
def test_bad_scale():
    with pytest.raises(ValueError, match="scale must be > 0, got 0"):
        SquaredEuclidean(0)


def test_arcs():
    north = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    near = torch.tensor([[1e-9, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]], dtype=torch.float64)
    arcs = Sphere().pairwise(north, near)
    torch.testing.assert_close(arcs[0], torch.tensor([1e-9, math.pi / 2, math.pi], dtype=torch.float64))
    Sphere().paired(north, north.detach()).sum().backward()
    assert bool(torch.isfinite(north.grad).all())
    with pytest.raises(ValueError, match="y must hold points of the unit sphere, got a norm that differs from 1 by 1"):
        Sphere().paired(near, 2 * near)


def test_what_a_cost_is():
    assert isinstance(Manhattan(), Cost)
    assert not isinstance(torch.nn.Identity(), Cost)
