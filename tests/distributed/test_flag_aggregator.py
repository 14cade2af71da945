"""The flag aggregator: in p dimensions what the decomposition of the gradients gives, and robust where it must be."""

import runpy
import sys
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from hadamard.distributed import flag_aggregate, flag_aggregator, flag_coefficients, flag_ddp
from hadamard.lowrank import gram


def _noisy(p=9, n=200, signal=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n, dtype=torch.float64, generator=generator)
    lengths = torch.rand(p, 1, dtype=torch.float64, generator=generator) + 0.5
    return lengths * (signal * common + torch.randn(p, n, dtype=torch.float64, generator=generator))


def _direct(G, m, iterations, reg=0.0, eps=1e-7):
    """The same on the n x p matrix itself, with a column for every worker and for every ordered pair."""
    X = (G / G.norm(dim=1, keepdim=True)).T
    p = X.shape[1]
    pairs = [(i, j) for i in range(p) for j in range(p) if i != j] if reg else []
    w, c = torch.ones(p, dtype=X.dtype), torch.zeros(len(pairs), dtype=X.dtype)
    losses = []
    for _ in range(iterations + 1):
        columns = [w[i].sqrt() * X[:, i] for i in range(p)]
        columns += [
            c[k].sqrt() * torch.nn.functional.normalize(X[:, i] - X[:, j], dim=0) for k, (i, j) in enumerate(pairs)
        ]
        Y = torch.linalg.svd(torch.stack(columns, 1), full_matrices=False)[0][:, :m]
        missed = (1 - (Y.T @ X).square().sum(0) + eps).sqrt()
        apart = torch.stack([(Y.T @ F.normalize(X[:, i] - X[:, j], dim=0)).norm() for i, j in pairs])\
            if reg else torch.zeros(0, dtype=X.dtype)  # fmt: skip
        missed_pairs = (1 - apart.square() + eps).sqrt()
        losses.append(float(missed.sum() + reg / (p * (p - 1)) * missed_pairs.sum()))
        w, c = 1 / missed, reg / (p * (p - 1)) / missed_pairs
    return Y @ (Y.T @ X.mean(1)), losses


# ---- what it computes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reg", [0.0, 2.0])
@pytest.mark.parametrize("m", [1, 3, 5, 9])
def test_equals_the_decomposition_of_the_gradients_themselves(m, reg):
    G = _noisy()
    result = flag_aggregate(G, m, reg, rescale="none", max_iter=100, tol=1e-12)
    value, losses = _direct(G, m, result.iterations, reg)
    torch.testing.assert_close(result.value, value, atol=1e-6, rtol=0)
    assert result.losses == pytest.approx(losses, rel=1e-6, abs=1e-3 if m == 9 else 0)
    assert result.rank == m


@pytest.mark.parametrize("reg", [0.0, 5.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_loss_never_grows(seed, reg):
    losses = flag_aggregate(_noisy(signal=0.1, seed=seed), 4, reg, max_iter=200, tol=1e-9).losses
    assert len(losses) > 4
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(losses))


def test_with_all_dimensions_it_is_the_mean_of_the_directions():
    G = _noisy()
    directions = G / G.norm(dim=1, keepdim=True)
    result = flag_aggregate(G, m=9, rescale="none")
    torch.testing.assert_close(result.value, directions.mean(0))
    torch.testing.assert_close(flag_aggregate(G, m=9).value, directions.mean(0) * G.norm(dim=1).median())


def test_equal_gradients_come_back_unchanged():
    g = torch.randn(50, generator=torch.Generator().manual_seed(1))
    result = flag_aggregate(g.expand(6, 50))
    torch.testing.assert_close(result.value, g)
    assert result.rank == 1
    assert result.scores.min() == pytest.approx(1)


def test_without_reweighting_it_is_the_plain_decomposition():
    G = _noisy()
    result = flag_aggregate(G, 4, max_iter=0, rescale="none")
    torch.testing.assert_close(result.value, _direct(G, 4, 0)[0])
    assert (result.iterations, result.converged, len(result.losses)) == (0, True, 1)


# ---- what it is invariant under ------------------------------------------------------------------------------------


def test_the_order_of_the_workers_does_not_matter():
    G, order = _noisy(), torch.randperm(9, generator=torch.Generator().manual_seed(2))
    one, other = flag_aggregate(G, reg=1.0), flag_aggregate(G[order], reg=1.0)
    torch.testing.assert_close(one.value, other.value)
    torch.testing.assert_close(one.scores[order], other.scores)
    torch.testing.assert_close(one.weights[order], other.weights, rtol=1e-4, atol=0)


def test_the_length_of_a_gradient_does_not_matter():
    G = _noisy()
    scales = torch.logspace(-3, 3, 9, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        flag_aggregate(G * scales, rescale="none").value, flag_aggregate(G, rescale="none").value
    )


def test_it_turns_with_the_gradients():
    G = _noisy(n=40)
    Q = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    torch.testing.assert_close(flag_aggregate(G @ Q).value, flag_aggregate(G).value @ Q)


def test_scale_of_the_result_is_the_lower_median_of_the_lengths():
    g = torch.tensor([3.0, 4.0], dtype=torch.float64)
    result = flag_aggregate(torch.stack([0.1 * g, g, 2 * g, 1e6 * g]))
    torch.testing.assert_close(result.value, g)


# ---- robustness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faulty", [1, 2, 3])
def test_faulty_workers_outside_the_common_subspace_have_no_influence(faulty):
    """Twelve gradients in three dimensions, and others orthogonal to those: an optimum in closed form."""
    generator = torch.Generator().manual_seed(faulty)
    basis = torch.linalg.qr(torch.randn(100, 6, dtype=torch.float64, generator=generator))[0].T
    good = torch.randn(12, 3, dtype=torch.float64, generator=generator) @ basis[:3]
    bad = 100 * basis[3 : 3 + faulty]
    result = flag_aggregate(torch.cat([good, bad]), m=3)
    assert (result.value @ basis[3:].T).abs().max() <= 1e-3
    assert result.scores[12:].max() <= 1e-6
    assert result.scores[:12].min() >= 1 - 1e-6
    assert result.weights[12:].max() <= 1e-2 * result.weights[:12].min()
    directions = good / good.norm(dim=1, keepdim=True)
    expected = directions.sum(0) / (12 + faulty) * torch.cat([good, bad]).norm(dim=1).median()
    torch.testing.assert_close(result.value, expected)


def test_reweighting_frees_the_subspace_from_what_pulls_at_it():
    """Eight directions within a plane and three outside: the plain decomposition leans towards the three."""
    angles = torch.linspace(0, 0.4, 8, dtype=torch.float64)
    good = torch.stack([angles.cos(), angles.sin(), 0 * angles], 1)
    bad = torch.tensor([[0.6, 0.0, 0.8]], dtype=torch.float64).repeat(3, 1)
    plain = flag_aggregate(torch.cat([good, bad]), m=2, max_iter=0)
    ours = flag_aggregate(torch.cat([good, bad]), m=2, max_iter=500, tol=1e-12)
    assert ours.losses[-1] < plain.losses[-1]
    assert len(ours.losses) == ours.iterations + 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_worker_that_is_not_finite_is_left_out(bad):
    G = _noisy()
    with pytest.warns(RuntimeWarning, match=r"left out worker\(s\) 2, 5: gradients not finite"):
        result = flag_aggregate(G.index_put((torch.tensor([2, 5]), torch.tensor([7, 0])), torch.tensor(bad).double()))
    kept = [0, 1, 3, 4, 6, 7, 8]
    torch.testing.assert_close(result.value, flag_aggregate(G[kept]).value)
    assert result.rank == 4
    assert all(x[2] == x[5] == 0 for x in (result.scores, result.weights, result.coefficients))


def test_a_worker_without_gradient_is_left_out():
    G = _noisy()
    result = flag_aggregate(torch.cat([G, torch.zeros(2, 200)]))
    torch.testing.assert_close(result.value, flag_aggregate(G).value)
    assert result.scores[9:].tolist() == [0, 0]


def test_if_no_worker_is_left_the_result_is_that_of_a_mean():
    assert flag_aggregate(torch.zeros(3, 4)).value.tolist() == [0, 0, 0, 0]
    with pytest.warns(RuntimeWarning, match=r"worker\(s\) 0, 1"):
        result = flag_aggregate(torch.tensor([[1.0, torch.nan, 2.0], [1.0, 1.0, torch.inf]]))
    torch.testing.assert_close(result.value, torch.tensor([1.0, torch.nan, torch.inf]), equal_nan=True)
    assert result.rank == 0


def test_a_single_worker_comes_back():
    g = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(flag_aggregate(g, reg=1.0).value, g[0])
    torch.testing.assert_close(flag_aggregate(g, rescale="none").value, g[0] / 5)


# ---- layouts -------------------------------------------------------------------------------------------------------


def test_gram_matrices_of_pieces_add():
    G = _noisy()
    K = gram(G[:, :77]) + gram(G[:, 77:])
    found, whole = flag_coefficients(K, reg=1.0), flag_aggregate(G, reg=1.0)
    torch.testing.assert_close(found.value, whole.coefficients)
    torch.testing.assert_close(found.value @ G, whole.value)


def test_one_tensor_for_each_parameter():
    G = _noisy(n=24)
    flat = flag_aggregate(G).value
    parameters = {"w": G[:, :20].view(9, 5, 4), "b": G[:, 20:23], "s": G[:, 23]}
    result = flag_aggregate(parameters).value
    assert list(result) == ["w", "b", "s"]
    torch.testing.assert_close(torch.cat([x.flatten() for x in result.values()]), flat)
    assert result["w"].shape == (5, 4)
    assert result["s"].shape == ()
    listed = flag_aggregate([parameters["w"].float(), parameters["b"].bfloat16(), parameters["s"]]).value
    assert [x.dtype for x in listed] == [torch.float32, torch.bfloat16, torch.float64]
    torch.testing.assert_close(listed[0], flat[:20].view(5, 4).float(), atol=1e-2, rtol=0)


def test_gradients_of_torch_func():
    net = torch.nn.Linear(3, 2)
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(net, parameters, x).square().mean()

    x = torch.randn(5, 8, 3, generator=torch.Generator().manual_seed(0))
    grads = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    result = flag_aggregate(grads, m=5, rescale="none").value
    lengths = torch.cat([g.flatten(1) for g in grads.values()], 1).norm(dim=1)
    torch.testing.assert_close(result["weight"], (grads["weight"] / lengths[:, None, None]).mean(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_follows_the_gradients(dtype):
    G = _noisy()
    result = flag_aggregate(G.to(dtype))
    assert result.value.dtype == dtype
    torch.testing.assert_close(result.value.double(), flag_aggregate(G).value, atol=0.02, rtol=0)


def test_the_gradients_are_not_touched_and_no_graph_is_kept():
    G = _noisy().requires_grad_()
    before = G.detach().clone()
    assert not flag_aggregate(G).value.requires_grad
    assert torch.equal(G.detach(), before)


def test_ray_is_not_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for module in (flag_aggregator, flag_ddp):
        runpy.run_path(module.__file__)


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"m": 0}, ValueError, "m must be >= 1 and <= 4, got 0"),
        ({"m": 5}, ValueError, "m must be >= 1 and <= 4, got 5"),
        ({"m": 1.5}, TypeError, "m must be an integer"),
        ({"reg": -1.0}, ValueError, "reg must be >= 0"),
        ({"rescale": "mean"}, ValueError, "rescale must be one of 'none', 'median_norm', got 'mean'"),
        ({"max_iter": -1}, ValueError, "max_iter must be >= 0"),
        ({"tol": -1.0}, ValueError, "tol must be >= 0"),
        ({"eps": 0.0}, ValueError, "eps must be > 0"),
        ({"grads": torch.ones(4)}, ValueError, r"grads must have shape \(workers, ...\), got \(4,\)"),
        ({"grads": torch.ones(0, 4)}, ValueError, "grads must not be empty"),
        ({"grads": torch.ones(4, 2, dtype=torch.int64)}, TypeError, "grads must have a floating dtype"),
        ({"grads": []}, ValueError, "grads must not be empty"),
        ({"grads": 3}, TypeError, "grads must be a tensor, or a sequence or mapping of tensors, got int"),
        ({"grads": [torch.ones(7), torch.ones(7)]}, ValueError, "got vectors only: stack gradients of workers"),
        ({"grads": {"w": torch.ones(4, 2), "b": torch.ones(3)}}, ValueError, "same number of workers .* 'b': 3"),
        ({"grads": [torch.ones(4, 2), None]}, TypeError, r"grads\[1\] must be a torch.Tensor, got NoneType"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        flag_aggregate(**{"grads": torch.eye(4)} | change)


@pytest.mark.bad_input
def test_bad_gram_matrix():
    with pytest.raises(TypeError, match="K must have dtype torch.float64"):
        flag_coefficients(torch.eye(3))
    with pytest.raises(ValueError, match=r"K must have shape \(..., 2, 2\), got \(2, 3\)"):
        flag_coefficients(torch.ones(2, 3, dtype=torch.float64))


def test_a_short_stop_is_said():
    result = flag_aggregate(_noisy(signal=0.1), 4, max_iter=1)
    assert not result.converged
    assert "stopped after 1 reweightings" in result.message
    assert result.residual == pytest.approx(1 - result.losses[1] / result.losses[0])
    assert flag_aggregate(_noisy(signal=0.1), 4, max_iter=1, tol=1.0).converged
