import pytest
import torch

from hadamard.solvers import hutchinson, hvp


def _matrix(n=12):
    return torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_hutchinson_is_unbiased_and_knows_its_error():
    A = _matrix()
    truth = float(A.trace())
    value, error = hutchinson(lambda v: A @ v, (12,), 2000, dtype=torch.float64)
    symmetric = (A + A.T) / 2
    spread = 2 * float(symmetric.square().sum() - symmetric.diagonal().square().sum()) / 2000
    assert abs(value - truth) < 4 * error
    assert error == pytest.approx(spread**0.5, rel=0.1)  # the variance in closed form


def test_hutchinson_averages_to_the_trace_over_all_signs():
    A = _matrix(4)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4)
    assert float((signs @ A * signs).sum(1).mean()) == pytest.approx(float(A.trace()))


def test_hutchinson_stops_early_and_repeats_itself():
    calls = []

    def matvec(v):
        calls.append(1)
        return 3 * v

    assert hutchinson(matvec, (2, 5), 100, 0.01) == (30.0, 0.0)
    assert len(calls) == 8
    A = _matrix().float()
    one, other = (hutchinson(lambda v: A @ v, (12,), 5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert one == other


def test_hvp_of_a_quadratic_and_of_a_quartic():
    A = _matrix()
    H = A @ A.T
    w, u = (torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    w.requires_grad_()
    unused = torch.ones(3, dtype=torch.float64, requires_grad=True)
    found = hvp(lambda: w @ H @ w / 2, [w, unused], [u, torch.ones(3, dtype=torch.float64)])
    torch.testing.assert_close(found[0], H @ u)
    assert float(found[1].abs().sum()) == 0
    torch.testing.assert_close(hvp((w**4).sum(), [w], [u])[0], (12 * w**2 * u).detach())
    assert float(hvp(lambda: w.sum(), [w], [u])[0].abs().sum()) == 0  # linear


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(ValueError, match="probes must be >= 2, got 1"):
        hutchinson(lambda v: v, (2,), 1)
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="v must have the shapes of params"):
        hvp(w.sum(), [w], [torch.ones(3)])
