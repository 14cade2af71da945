"""Attention to tuples: against the sum over all of them, by the polynomial, and as a MultiheadAttention."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hadamard.layers import KroneckerAttention, kronecker_attention, polynomial_error

D = torch.float64


def tensors(*shapes, seed=0, dtype=D):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, dtype=D, generator=g).to(dtype) for shape in shapes]


def tuples(order, n=7, d=3, width=4, size=1.0, batch=2, lengths=None, dtype=D):
    """Query, keys and values of attention of some order, entries of the keys of about ``size``."""
    lengths = lengths or [n] * (order - 1)
    q, *rest = tensors(
        (batch, n, d), *((batch, m, d) for m in lengths), *((batch, m, width) for m in lengths), dtype=dtype
    )
    return size * q, [size * k for k in rest[: order - 1]], rest[order - 1 :]


def brute(q, keys, values, scale, is_causal=False, mask=None):
    """All tuples at once, by einsum and one softmax."""
    letters = "jlmn"[: len(keys)]
    terms = ",".join(f"b{c}a" for c in letters)
    logits = scale * torch.einsum(f"bia,{terms}->bi{letters}", q, *keys)
    for axis, k in enumerate(keys):
        later = [1] * (len(keys) - 1 - axis)
        if is_causal:
            ahead = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).triu(1)
            logits = logits.masked_fill(ahead.view(q.shape[1], *[1] * axis, k.shape[1], *later), -math.inf)
        if mask is not None:
            logits = logits.masked_fill(mask.view(len(mask), *[1] * (axis + 1), k.shape[1], *later), -math.inf)
    weights = logits.flatten(2).softmax(-1).view(logits.shape)
    return torch.einsum(f"bi{letters},{','.join(f'b{c}d' for c in letters)}->bid", weights, *values)


orders = pytest.mark.parametrize("order", [2, 3, 4])
methods = pytest.mark.parametrize("method", ["exact", "polynomial"])


def run(method, q, keys, values, **options):
    """Either method, the polynomial to a tolerance that rounding would hide."""
    return kronecker_attention(q, keys, values, method=method, tol=1e-11, **options)


@methods
@orders
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_is_the_sum_over_all_tuples(method, order, is_causal, masked):
    q, keys, values = tuples(order, n=6, d=2, size=0.6)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 4:] = masked
    options = {"is_causal": is_causal, "scale": 0.5}
    y = run(method, q, keys, values, key_padding_mask=mask if masked else None, **options)
    torch.testing.assert_close(y, brute(q, keys, values, mask=mask, **options), rtol=1e-9, atol=1e-9)
    if masked:
        added = torch.zeros(2, 6, dtype=D).masked_fill(mask, -math.inf)
        torch.testing.assert_close(run(method, q, keys, values, key_padding_mask=added, **options), y)


@methods
def test_pairs_of_different_lengths(method):
    q, keys, values = tuples(3, n=4, d=2, size=0.6, lengths=[5, 8])
    wanted = brute(q, keys, values, 1 / 2)
    torch.testing.assert_close(run(method, q, keys, values), wanted, rtol=1e-9, atol=1e-9)


@methods
@pytest.mark.parametrize("is_causal", [False, True])
def test_a_single_key_is_ordinary_attention(method, is_causal):
    q, keys, values = tuples(2, size=0.5)
    wanted = F.scaled_dot_product_attention(q, keys[0], values[0], is_causal=is_causal)
    torch.testing.assert_close(run(method, q, keys, values, is_causal=is_causal), wanted, rtol=1e-9, atol=1e-9)


@methods
def test_a_second_key_of_ones_changes_nothing(method):
    q, keys, values = tuples(3, size=0.5)
    ones = torch.ones_like(keys[1]), torch.ones_like(values[1])
    y = run(method, q, (keys[0], ones[0]), (values[0], ones[1]), scale=1.0)
    wanted = F.scaled_dot_product_attention(q, keys[0], values[0], scale=1.0)
    torch.testing.assert_close(y, wanted, rtol=1e-9, atol=1e-9)


@methods
def test_symmetries(method):
    q, keys, values = tuples(3, size=0.5)
    y = run(method, q, keys, values)
    torch.testing.assert_close(run(method, q, keys[::-1], values[::-1]), y)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    moved = run(method, q[:, order], [k[:, order] for k in keys], [v[:, order] for v in values])
    torch.testing.assert_close(moved, y[:, order])


@pytest.mark.parametrize("degree", [0, 4])
def test_equal_scores_give_the_mean(degree):
    q, keys, values = tuples(3)
    wanted = (values[0].mean(1) * values[1].mean(1))[:, None].expand(-1, 7, -1)
    torch.testing.assert_close(kronecker_attention(0 * q, keys, values, method="exact"), wanted)
    poly = kronecker_attention(q if degree == 0 else 0 * q, keys, values, method="polynomial", degree=degree, tol=None)
    torch.testing.assert_close(poly, wanted)


@methods
def test_nothing_to_attend_to(method):
    q, keys, values = tuples(3, size=0.5)
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[1] = True
    y = run(method, q, keys, values, key_padding_mask=mask)
    assert y[1].eq(0).all()
    torch.testing.assert_close(y[0], run(method, q, keys, values)[0])


@methods
@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients(method, is_causal):
    q, keys, values = tuples(3, n=4, d=2, width=2, size=0.5, batch=1)

    def call(q, k, l, v, w):
        return kronecker_attention(q, (k, l), (v, w), method=method, degree=4, tol=None, is_causal=is_causal)

    assert torch.autograd.gradcheck(call, [t.requires_grad_() for t in (q, *keys, *values)])


def test_gradient_through_a_mask():
    q, keys, values = tuples(3, n=4, d=2, width=2, size=0.5, batch=1)
    mask = torch.tensor([[False, False, False, True]])
    for method in ("exact", "polynomial"):
        inputs = [t.requires_grad_() for t in (q, *keys, *values)]

        def call(q, k, l, v, w, method=method):
            return kronecker_attention(q, (k, l), (v, w), method=method, degree=2, tol=None, key_padding_mask=mask)

        assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("is_causal", [False, True])
def test_blocks_do_not_matter(monkeypatch, is_causal):
    from hadamard.layers import kronecker_functional

    q, keys, values = tuples(3)
    inputs = [t.requires_grad_() for t in (q, *keys, *values)]
    results = []
    for block in (2**18, 1, 300):
        monkeypatch.setattr(kronecker_functional, "_BLOCK", block)
        monkeypatch.setattr(kronecker_functional, "_KEEP", block)
        y = kronecker_attention(q, keys, values, method="exact", is_causal=is_causal)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for other in results[1:]:
        for a, b in zip(results[0], other):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_large_scores_do_not_overflow():
    q, keys, values = tuples(3, size=100.0, dtype=torch.float32)
    y = kronecker_attention(q, keys, values, method="exact")
    assert y.isfinite().all()
    exact = brute(
        *(x.double() if isinstance(x, torch.Tensor) else [t.double() for t in x] for x in (q, keys, values)), 1 / 3
    )
    torch.testing.assert_close(y.double(), exact, rtol=1e-3, atol=1e-3)


# -- how good the polynomial is --


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("size", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("degree", [2, 4, 8])
def test_certificate_is_never_below_the_error(order, size, degree):
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        q, *rest = (2 * torch.rand(2 * order - 1, 2, 20, 3, generator=g, dtype=D) - 1).unbind()
        keys, values = [size * k for k in rest[: order - 1]], rest[order - 1 :]
        certificate = polynomial_error(size * q, keys, values, degree)
        y = kronecker_attention(size * q, keys, values, method="polynomial", degree=degree, tol=None)
        error = (y - kronecker_attention(size * q, keys, values, method="exact")).abs().max().item()
        assert error <= certificate.bound * (1 + 1e-9) + 1e-14
        assert certificate.verified or degree == 2


def test_certificate_abstains():
    x = torch.full((1, 3, 4), 3.0)
    certificate = polynomial_error(x, (x, x), (x, x), degree=2)
    assert certificate.value == pytest.approx(27)
    assert not certificate.verified
    assert "scores may reach 27, where degree 2 has a relative error of" in certificate.reason


def test_tolerance_chooses_the_degree():
    q, keys, values = tuples(3, n=20, size=0.6)
    exact, errors = kronecker_attention(q, keys, values, method="exact"), []
    largest = (values[0].abs().max() * values[1].abs().max()).item()
    for tol in (0.3, 1e-2, 1e-4):
        y = kronecker_attention(q, keys, values, method="polynomial", tol=tol)
        errors.append((y - exact).abs().max().item())
        assert errors[-1] <= 2 * tol / (1 - tol) * largest
    assert errors[0] > errors[1] > errors[2] > 1e-15
    with pytest.warns(UserWarning, match=r"degree 2 certifies a relative error of .* only, above tol=0.001"):
        kronecker_attention(q, keys, values, method="polynomial", degree=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kronecker_attention(q, keys, values, method="polynomial", degree=2, tol=None)


def test_auto_takes_the_cheaper_one():
    small = tuples(3, n=6, size=0.5)
    assert torch.equal(kronecker_attention(*small), kronecker_attention(*small, method="exact"))
    g = torch.Generator().manual_seed(0)
    q, k, l, v, w = (torch.rand(5, 1, 300, 2, generator=g) - 0.5).unbind()
    long = (q, (k, l), (v, w))
    assert torch.equal(kronecker_attention(*long), kronecker_attention(*long, method="polynomial"))
    wild = (40 * q, (40 * k, 40 * l), (v, w))
    assert torch.equal(kronecker_attention(*wild), kronecker_attention(*wild, method="exact"))


def test_many_positions_in_little_memory():
    """5,000 positions have 10^11 triples; nothing of size n times rank, or n^2, is kept for the backward pass."""
    g = torch.Generator().manual_seed(0)
    q, k, l, v, w = ((torch.rand(1, 5000, 4, generator=g) - 0.5).requires_grad_() for _ in range(5))
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = kronecker_attention(q, (k, l), (v, w), method="polynomial", degree=4, tol=None)
    y.sum().backward()
    assert sum(kept.values()) < 5000 * 70 * 4 / 2


# -- the module --


def make(embed_dim=8, num_heads=2, **options):
    torch.manual_seed(3)
    return KroneckerAttention(embed_dim, num_heads, **{"batch_first": True} | options)


def test_module_is_projections_and_function():
    layer = make().double()
    (x,) = tensors((3, 6, 8))
    parts = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(5, -1)
    q, k, l, v, w = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in parts)
    y = kronecker_attention(q, (k, l), (v, w), method="exact")
    torch.testing.assert_close(layer(x, x, x)[0], layer.out_proj(y.transpose(1, 2).flatten(2)))


def test_order_two_is_multihead_attention():
    theirs, ours = nn.MultiheadAttention(8, 2), make(order=2, batch_first=False, method="exact")
    ours.load_state_dict(theirs.state_dict())
    q, kv = torch.randn(5, 3, 8), torch.randn(7, 3, 8)
    mask = torch.arange(7).expand(3, 7) > 4
    torch.testing.assert_close(ours(q, kv, kv, mask)[0], theirs(q, kv, kv, mask)[0])
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    for options in ({}, {"attn_mask": causal, "is_causal": True}):
        torch.testing.assert_close(ours(q, q, q, **options)[0], theirs(q, q, q, **options)[0])
    torch.testing.assert_close(ours(q[:, 0], kv[:, 0], kv[:, 0])[0], theirs(q[:, 0], kv[:, 0], kv[:, 0])[0])


def test_stands_in_a_transformer_layer():
    """In evaluation, torch's fused softmax attention must not take over."""
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    block.self_attn = make()
    x, mask = torch.randn(2, 7, 8), torch.arange(7).expand(2, 7) > 4
    y = block.train()(x, src_key_padding_mask=mask)
    with torch.no_grad():
        torch.testing.assert_close(block.eval()(x, src_key_padding_mask=mask), y)


@pytest.mark.parametrize("is_causal", [False, True])
def test_bounded_scores(is_causal):
    """Whatever the input, the polynomial keeps to the tolerance."""
    quick = make(max_score=2.0, method="polynomial", tol=1e-6, is_causal=is_causal).double()
    exact = copy.deepcopy(quick)
    exact.method = "exact"
    x = 100 * tensors((2, 10, 8))[0]
    y = exact(x, x, x)[0]
    torch.testing.assert_close(quick(x, x, x)[0], y, rtol=1e-3, atol=1e-3)
    parts = F.linear(x, exact.in_proj_weight, exact.in_proj_bias).chunk(5, -1)
    q, k, l, v, w = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in parts)
    q, k, l = (F.normalize(t, dim=-1) for t in (q, k, l))
    wanted = kronecker_attention(q, (k, l), (v, w), scale=2.0, is_causal=is_causal, method="exact")
    torch.testing.assert_close(y, exact.out_proj(wanted.transpose(1, 2).flatten(2)))


def test_causal_layers_do_not_see_the_future():
    (x,) = tensors((2, 9, 8), dtype=torch.float32)
    for options in ({"method": "exact"}, {"method": "polynomial", "max_score": 1.0}, {"max_score": 1.0}):
        layer = make(is_causal=True, **options)
        y = layer(x, x, x)[0]
        z = x.clone()
        z[:, 6:] = 3.0
        moved = (layer(z, z, z)[0] - y).abs().amax((0, 2))
        assert moved[:6].max() < 1e-6
        assert moved[6:].min() > 1e-4


def test_state_dict_and_precision():
    layer, twin = make(), make()
    nn.init.normal_(twin.in_proj_weight)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(2, 6, 8)
    wanted = layer(x, x, x)[0]
    assert torch.equal(twin(x, x, x)[0], wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x, x, x)[0]
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), wanted, rtol=0.05, atol=0.05)
    y = copy.deepcopy(layer).bfloat16()(*(x.bfloat16(),) * 3)[0]
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), wanted, rtol=0.05, atol=0.05)


@pytest.mark.bad_input  # the compiler cannot look through checks of annotations
@pytest.mark.parametrize("method", ["exact", pytest.param("polynomial", marks=pytest.mark.slow)])
def test_compiles(method):
    layer = make(method=method, max_score=1.0)
    x = torch.randn(2, 6, 8)
    compiled = torch.compile(layer, backend="aot_eager")
    torch.testing.assert_close(compiled(x, x, x)[0], layer(x, x, x)[0])
    grads = [torch.autograd.grad(f(x, x, x)[0].square().sum(), layer.in_proj_weight)[0] for f in (compiled, layer)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": (torch.ones(1, 5, 2),)}, "keys and values must be equally many, got 2 and 1"),
        ({"keys": (), "values": ()}, "keys and values must be equally many, got 0 and 0"),
        ({"values": (torch.ones(1, 5, 2), torch.ones(1, 4, 2))}, r"values\[1\] must have shape \(..., 1, 5, 2\)"),
        ({"keys": (torch.ones(1, 5, 3), torch.ones(1, 5, 2))}, r"keys\[1\] must have shape \(..., 1, \*, 3\)"),
        ({"query": torch.full((1, 5, 3), math.nan)}, "query must be finite"),
        ({"query": torch.ones(1, 0, 3)}, "query must not be empty"),
        ({"degree": 3}, "degree must be even, so that no weight is negative, got 3"),
        ({"degree": -2}, "degree must be >= 0, got -2"),
        ({"tol": 0.0}, "tol must be > 0, got 0.0"),
        ({"scale": -1.0}, "scale must be > 0, got -1.0"),
        ({"method": "fast"}, "method must be one of 'auto', 'exact', 'polynomial', got 'fast'"),
        ({"method": "polynomial", "tol": None}, "degree must be given where tol is None"),
        ({"method": "polynomial", "scale": 100.0}, "query and keys must have smaller entries or fewer channels"),
        ({"method": "polynomial", "scale": 1000.0}, "tol=0.001 needs degree above 1800 and, with d=3, more than 20000"),
        ({"method": "polynomial", "degree": 100}, "degree must leave at most 20000 features, got 100 with d=3"),
        ({"query": torch.ones(1, 4, 3), "is_causal": True}, r"keys\[0\] must have shape \(..., 1, 4, 3\)"),
    ],
)
def test_bad_input(change, message):
    x = torch.ones(1, 5, 3)
    arguments = {"query": x, "keys": (x, x), "values": (x[..., :2], x[..., :2])}
    with pytest.raises(ValueError, match=message):
        kronecker_attention(**arguments | change)


@pytest.mark.bad_input
def test_bad_input_of_the_module():
    x, layer = torch.ones(2, 5, 8), make()
    cases = [
        (lambda: KroneckerAttention(8, 3), "embed_dim must be divisible by num_heads, got 8 and 3"),
        (lambda: KroneckerAttention(8, 2, 1), "order must be >= 2, got 1"),
        (lambda: KroneckerAttention(8, 2, max_score=0.0), "max_score must be > 0"),
        (lambda: layer(x, x, x, need_weights=True), "need_weights must be False"),
        (lambda: layer(x, x, x, attn_mask=torch.zeros(5, 5)), "attn_mask must be None or, with is_causal=True"),
        (lambda: layer(x[..., :7], x, x), r"query must have shape \(..., \*, 8\)"),
        (
            lambda: layer(x, x, x, torch.zeros(2, 4).bool()),
            r"key_padding_mask must have shape \(..., 5\), got \(2, 4\)",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="query must have a floating dtype"):
        kronecker_attention(x.long(), (x, x), (x, x))
