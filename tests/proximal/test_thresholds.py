"""Thresholds: closed forms, ties, gradients, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hadamard.proximal import keep_top_k, soft, soft_group, top_k


def test_soft_of_a_complex_number_keeps_its_phase():
    x = torch.polar(torch.tensor([3.0, 0.5, 0.0]), torch.tensor([1.0, 2.0, 0.0]))
    torch.testing.assert_close(soft(x, 1.0), torch.polar(torch.tensor([2.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])))


def test_thresholds_broadcast():
    x = torch.tensor([[3.0, -3.0], [1.0, 5.0]])
    torch.testing.assert_close(soft(x, torch.tensor([[1.0], [4.0]])), torch.tensor([[2.0, -2.0], [0.0, 1.0]]))
    want = torch.stack([soft_group(x[0], 1.0), soft_group(x[1], 4.0)])
    torch.testing.assert_close(soft_group(x, torch.tensor([[1.0], [4.0]])), want)


def test_real_and_complex_agree():
    x = torch.randn(50, dtype=torch.float64)
    torch.testing.assert_close(soft(x.to(torch.complex128), 0.5).real, soft(x, 0.5))
    torch.testing.assert_close(soft(x, torch.tensor(0.5).double()), soft(x, 0.5))


def test_group_of_one_is_soft():
    x = torch.randn(50, 1, dtype=torch.complex128)
    torch.testing.assert_close(soft_group(x, 0.5), soft(x, 0.5))


def test_groups_over_several_dimensions():
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(soft_group(x, 0.5, dim=(1, 2)).flatten(1), soft_group(x.flatten(1), 0.5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("function", [soft, soft_group])
def test_gradient_in_both_arguments(function, dtype):
    x = torch.randn(3, 4, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()
    t = torch.tensor([[0.3], [1.0], [50.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, t))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradient_at_zero_is_finite(dtype):
    for function in (soft, soft_group):
        x = torch.zeros(3, dtype=dtype, requires_grad=True)
        function(x, 0.0).abs().sum().backward()
        assert torch.isfinite(torch.view_as_real(x.grad) if dtype.is_complex else x.grad).all()


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=12), k=st.integers(1, 14))
def test_ties_go_to_the_lowest_index(values, k):
    x = torch.tensor(values, dtype=torch.float64)
    want = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    got, indices = top_k(x, k)
    assert sorted(indices.tolist()) == sorted(want)
    assert got.tolist() == [values[i] for i in want]
    kept = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:k]
    assert keep_top_k(x, k).tolist() == [v if i in kept else 0 for i, v in enumerate(values)]


def test_top_k_along_a_dimension():
    x = torch.randn(5, 4, 3)
    got = keep_top_k(x, 2, dim=1)
    assert ((got != 0).sum(1) == 2).all()
    torch.testing.assert_close(got, keep_top_k(x.movedim(1, -1), 2).movedim(-1, 1))
    assert torch.equal(top_k(x, 2, dim=1)[0], torch.topk(x, 2, dim=1).values)


def test_top_k_of_integers_and_infinities():
    assert top_k(torch.tensor([1, 5, 5]), 1)[1].tolist() == [1]
    assert top_k(torch.tensor([-torch.inf, 1.0, -torch.inf]), 2)[1].tolist() == [1, 0]


def test_keep_top_k_passes_the_gradient_of_what_it_keeps():
    x = torch.tensor([1.0, -3.0, 2.0], requires_grad=True)
    keep_top_k(x, 2).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0]


@pytest.mark.bad_input  # torch.compile does not see through the checks of annotations
def test_top_k_while_compiling():
    x = torch.tensor([1.0, 3.0, 3.0, 3.0])
    compiled = torch.compile(lambda x: keep_top_k(x, 2), backend="eager", fullgraph=True)
    assert compiled(x).tolist() == [0.0, 3.0, 3.0, 0.0]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: soft([1.0], 1.0), TypeError, "x must be a torch.Tensor, got list"),
        (lambda: soft(torch.tensor([1]), 1.0), TypeError, "x must have a floating or complex dtype, got torch.int64"),
        (lambda: soft(torch.empty(0), 1.0), ValueError, r"x must not be empty, got shape \(0,\)"),
        (lambda: soft(torch.tensor([torch.nan]), 1.0), ValueError, "x must be finite, got 1 NaN or infinite value"),
        (lambda: soft(torch.ones(2), -0.5), ValueError, "t must be >= 0, got -0.5"),
        (lambda: soft(torch.ones(2), torch.tensor([1.0, -2.0])), ValueError, "t must be >= 0, got -2.0"),
        (lambda: soft(torch.ones(2), torch.tensor([1.0, torch.nan])), ValueError, "t must be >= 0, got nan"),
        (lambda: soft(torch.ones(2), "1"), TypeError, "t must be a number, got str"),
        (lambda: soft_group(torch.ones(2), -0.5), ValueError, "t must be >= 0, got -0.5"),
        (lambda: soft_group(torch.tensor([torch.inf]), 1.0), ValueError, "x must be finite"),
        (lambda: top_k(torch.ones(2), 0), ValueError, "k must be >= 1, got 0"),
        (lambda: top_k(torch.ones(2), 1.5), TypeError, "k must be an integer, got float 1.5"),
        (lambda: keep_top_k(torch.ones(2), -1), ValueError, "k must be >= 1, got -1"),
        (lambda: keep_top_k(torch.tensor([1.0, torch.nan]), 1), ValueError, "x must be finite"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
