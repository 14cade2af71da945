"""The rules that the claim compares with, by their definitions word for word; and the claim's hand-made gradients."""

import numpy as np
import pytest
import scipy.optimize
import torch

from hadamard.claims.distributed import flag_aggregator_problem as problem
from hadamard.claims.distributed import flag_aggregator_rules as rules
from hadamard.distributed import flag_aggregate


def _draw(p=11, n=6, seed=0):
    return torch.randn(p, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _krum_order(rows, f):
    """Positions in the order of the sums of squared distances to the p - f - 2 nearest others."""
    sums = []
    for i, x in enumerate(rows):
        distances = sorted(float(((x - y) ** 2).sum()) for j, y in enumerate(rows) if j != i)
        sums.append(sum(distances[: max(len(rows) - f - 2, 1)]))
    return sorted(range(len(rows)), key=lambda i: sums[i])


@pytest.mark.parametrize("p", [4, 11])
def test_median_and_trimmed_mean(p):
    G = _draw(p)
    np.testing.assert_allclose(rules.median(G), np.median(G.numpy(), 0))
    columns = [sorted(column.tolist())[1:-1] for column in G.T]
    np.testing.assert_allclose(rules.trimmed_mean(G, 1), [sum(c) / len(c) for c in columns])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("f", [1, 2])
def test_krum_and_its_kin(f, seed):
    G = _draw(seed=seed)
    rows = list(G)
    order = _krum_order(rows, f)
    torch.testing.assert_close(rules.multi_krum(G, f), G[order[: 11 - f]].mean(0))
    picked, left = [], list(rows)
    while len(picked) < 11 - 2 * f:
        picked.append(left.pop(_krum_order(left, f)[0]) if len(left) > 1 else left.pop())
    expected = []
    for column in torch.stack(picked).T.tolist():
        middle = float(np.median(column))
        expected.append(np.mean(sorted(column, key=lambda x: abs(x - middle))[: 11 - 4 * f]))
    np.testing.assert_allclose(rules.bulyan(G, f), expected)


def test_geometric_median():
    G = _draw()
    best = scipy.optimize.minimize(lambda z: np.linalg.norm(G.numpy() - z, axis=1).sum(), G.mean(0).numpy(), tol=1e-10)
    np.testing.assert_allclose(rules.geometric_median(G, iterations=200), best.x, atol=1e-4)


def test_the_decomposition_of_the_gradients_gives_what_the_gram_matrix_gives():
    G = _draw(9, 80) + 0.5
    torch.testing.assert_close(rules.decomposed(G, 5, 3), flag_aggregate(G, 5, max_iter=3, tol=0.0).value)


def test_the_gradients_of_the_workers_are_those_of_autograd():
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(*s, generator=generator) for s in ((5, 64), (5,), (10, 5), (10,))]
    x, y = torch.randn(3, 4, 64, generator=generator), torch.randint(10, (3, 4), generator=generator)
    got = problem._gradients(params, x, y)
    for worker in range(3):
        W, b, V, c = leaves = [p.clone().requires_grad_() for p in params]
        loss = torch.nn.functional.cross_entropy((x[worker] @ W.T + b).relu() @ V.T + c, y[worker])
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves)])
        torch.testing.assert_close(got[worker], expected)
