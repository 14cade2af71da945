"""Kernelized attention with relative positions: against its quadratic form, and as a MultiheadAttention."""

import copy
import math

import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import nn

from hadamard.features import PositiveRandom, linear_attention
from hadamard.layers import ToeplitzAttention, toeplitz_attention, toeplitz_matmul

D = torch.float64


def tensors(*shapes, seed=0, dtype=D):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, dtype=D, generator=g).to(dtype) for shape in shapes]


def features(d=4, count=6, dtype=D):
    return PositiveRandom(d, count, generator=torch.Generator().manual_seed(9), dtype=dtype)


def literal(q, k, v, logits, phi, scale=1.0, mask=None):
    """The formula, letter by letter, with all weights; ``logits`` (..., n, m) is -inf where nothing is attended to."""
    q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    a = phi(q * scale**0.5) @ phi(k * scale**0.5).mT * logits.exp()
    if mask is not None:
        a = a * ~mask[..., None, :]
    return a @ v / a.sum(-1, keepdim=True)


def table(bias, n, m):
    """b_{j - i} as a matrix, by Python loops."""
    return torch.stack([torch.stack([bias[..., j - i + n - 1] for j in range(m)], -1) for i in range(n)], -2)


def grid_table(bias, h, w):
    n = h * w
    rows = []
    for i in range(n):
        row = [bias[..., j // w - i // w + h - 1, j % w - i % w + w - 1] for j in range(n)]
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2)


def causal(logits):
    n = logits.shape[-1]
    return logits.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -math.inf)


methods = pytest.mark.parametrize("method", ["fft", "dense"])


# -- products with Toeplitz matrices --


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 5), (8, 8), (7, 3), (3, 7), (1, 6), (6, 1)])
def test_matmul_is_scipys(n, m):
    c, x = tensors((n + m - 1,), (m, 4))
    wanted = scipy.linalg.matmul_toeplitz((c[:n].flip(0).numpy(), c[n - 1 :].numpy()), x.numpy())
    torch.testing.assert_close(toeplitz_matmul(c, x), torch.from_numpy(wanted), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grid", [(3, 4), (1, 5), (5, 1), (4, 4)])
def test_matmul_on_a_grid(grid):
    n = math.prod(grid)
    c, x = tensors((2, *(2 * s - 1 for s in grid)), (3, 2, n, 4))
    wanted = grid_table(c, *grid) @ x
    torch.testing.assert_close(toeplitz_matmul(c, x, grid=grid), wanted, rtol=1e-12, atol=1e-12)


def test_matmul_gradients_and_half_precision():
    c, x = (t.requires_grad_() for t in tensors((2, 6), (2, 4, 3)))
    assert torch.autograd.gradcheck(toeplitz_matmul, (c, x))
    y = toeplitz_matmul(c.bfloat16(), x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.to(D), toeplitz_matmul(c, x), rtol=0.05, atol=0.05)


# -- what attention computes --


@methods
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("n", [1, 2, 9, 16])
def test_is_the_literal_formula(method, is_causal, n):
    q, k, v, b = tensors((2, 3, n, 4), (2, 3, n, 4), (2, 3, n, 5), (3, 2 * n - 1))
    phi, logits = features(), table(b, n, n)
    wanted = literal(q, k, v, causal(logits) if is_causal else logits, phi)
    y = toeplitz_attention(q, k, v, b, features=phi, is_causal=is_causal, method=method, eps=0.0)
    torch.testing.assert_close(y, wanted, rtol=1e-10, atol=1e-10)


@methods
@pytest.mark.parametrize(("n", "m"), [(3, 8), (8, 3)])
def test_cross_attention(method, n, m):
    q, k, v, b = tensors((2, n, 4), (2, m, 4), (2, m, 5), (n + m - 1,))
    y = toeplitz_attention(q, k, v, b, features=features(), method=method, scale=2.0)
    torch.testing.assert_close(y, literal(q, k, v, table(b, n, m), features(), 2.0), rtol=1e-9, atol=1e-9)


@methods
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("grid", [(3, 4), (1, 6), (5, 2)])
def test_pictures(method, is_causal, grid):
    n = math.prod(grid)
    q, k, v, b = tensors((2, 3, n, 4), (2, 3, n, 4), (2, 3, n, 5), (3, *(2 * s - 1 for s in grid)))
    logits = grid_table(b, *grid)
    wanted = literal(q, k, v, causal(logits) if is_causal else logits, features())
    y = toeplitz_attention(q, k, v, b, features=features(), grid=grid, is_causal=is_causal, method=method, eps=0.0)
    torch.testing.assert_close(y, wanted, rtol=1e-10, atol=1e-10)


@methods
def test_key_padding(method):
    q, k, v, b = tensors((2, 3, 7, 4), (2, 3, 7, 4), (2, 3, 7, 5), (3, 13))
    mask = torch.zeros(2, 1, 7, dtype=torch.bool)
    mask[0, :, 5:] = True
    wanted = literal(q, k, v, table(b, 7, 7), features(), mask=mask)
    run = {"features": features(), "method": method, "eps": 0.0}
    torch.testing.assert_close(toeplitz_attention(q, k, v, b, key_padding_mask=mask, **run), wanted)
    added = torch.zeros(2, 1, 7, dtype=D).masked_fill(mask, -math.inf)
    torch.testing.assert_close(toeplitz_attention(q, k, v, b, key_padding_mask=added, **run), wanted)
    alone = toeplitz_attention(q[:1, :, :5], k[:1, :, :5], v[:1, :, :5], b[:, 2:-2], **run)
    torch.testing.assert_close(wanted[:1, :, :5], alone)
    nothing = toeplitz_attention(q, k, v, b, features=features(), key_padding_mask=torch.ones(7).bool(), method=method)
    assert nothing.eq(0).all()
    assert toeplitz_attention(q, k, v, features=features(), key_padding_mask=torch.ones(7).bool()).eq(0).all()


@methods
def test_without_a_bias_it_is_linear_attention(method):
    q, k, v = tensors((2, 9, 4), (2, 9, 4), (2, 9, 5))
    phi, unit = features(), torch.nn.functional.normalize
    wanted = linear_attention(phi(unit(q, dim=-1)), phi(unit(k, dim=-1)), v)
    for bias in (None, torch.zeros(17, dtype=D), torch.full((17,), 3.0, dtype=D)):
        y = toeplitz_attention(q, k, v, bias, features=phi, method=method)
        torch.testing.assert_close(y, wanted, rtol=1e-8, atol=1e-8)


@methods
@pytest.mark.parametrize("shift", [-3, -1, 0, 2])
def test_one_offset_picks_one_value(method, shift):
    q, k, v = tensors((8, 4), (8, 4), (8, 5))
    b = torch.full((15,), -math.inf, dtype=D)
    b[7 + shift] = 1.0
    y = toeplitz_attention(q, k, v, b, features=features(), method=method)
    for i in range(8):
        wanted = v[i + shift] if 0 <= i + shift < 8 else torch.zeros(5, dtype=D)
        torch.testing.assert_close(y[i], wanted, rtol=1e-8, atol=1e-8)


@methods
def test_invariances(method):
    q, k, v, b = tensors((8, 4), (8, 4), (8, 5), (15,))
    run = {"features": features(), "method": method, "eps": 0.0}
    y = toeplitz_attention(q, k, v, b, **run)
    torch.testing.assert_close(toeplitz_attention(q, k, v, b + 50.0, **run), y)
    torch.testing.assert_close(toeplitz_attention(7 * q, 0.1 * k, v, b, **run), y)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    flat = torch.zeros(15, dtype=D)
    mixed = toeplitz_attention(q[order], k[order], v[order], flat, **run)
    torch.testing.assert_close(mixed, toeplitz_attention(q, k, v, flat, **run)[order])
    with_b = toeplitz_attention(q[order], k[order], v[order], b, **run)
    assert (with_b - y[order]).abs().max() > 0.01


@methods
def test_the_future_does_not_matter(method):
    q, k, v, b = tensors((12, 4), (12, 4), (12, 5), (23,), dtype=torch.float32)
    run = {"features": features(dtype=torch.float32), "is_causal": True, "method": method}
    y = toeplitz_attention(q, k, v, b, **run)
    for x in (q, k, v):
        x[8:] = 5.0
    moved = (toeplitz_attention(q, k, v, b, **run) - y).abs().amax(-1)
    assert moved[:8].max() < 1e-5  # an FFT spreads round-off; the dense form does not
    assert moved[8:].min() > 1e-3


def test_approaches_softmax_with_a_bias():
    q, k, v, b = tensors((2, 40, 4), (2, 40, 4), (2, 40, 5), (79,))
    unit = torch.nn.functional.normalize
    wanted = F.scaled_dot_product_attention(unit(q, dim=-1), unit(k, dim=-1), v, attn_mask=table(b, 40, 40), scale=1.0)
    errors = []
    for count in (64, 4096):
        y = toeplitz_attention(q, k, v, b, features=features(4, count))
        errors.append(((y - wanted).norm() / wanted.norm()).item())
    assert errors[1] < errors[0] / 4
    assert errors[1] < 0.05


@methods
def test_without_normalisation(method):
    q, k, v, b = tensors((9, 4), (9, 4), (9, 5), (17,))
    q, k, phi = q / 2, k / 2, features(4, 20_000)
    y = toeplitz_attention(q, k, v, b, features=phi, normalize=False, method=method)
    wanted = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=table(b, 9, 9))[0]
    assert (y - wanted).norm() < 0.1 * wanted.norm()
    long = toeplitz_attention(1e3 * q, 1e3 * k, v, b, features=phi, normalize=False, method=method)
    assert long.isfinite().all()


def test_a_wide_bias_is_transformed_in_float64():
    """Where all keys near a query are padding, only small weights are left, and they still count."""
    q, k, v = tensors((64, 4), (64, 4), (64, 5), dtype=torch.float32)
    b = -torch.arange(-63, 64, dtype=torch.float32).abs() * 0.5  # spans 31
    mask = torch.arange(64) < 48
    run = {"features": features(dtype=torch.float32), "key_padding_mask": mask, "eps": 0.0}
    fft = toeplitz_attention(q, k, v, b, method="fft", **run)
    torch.testing.assert_close(fft, toeplitz_attention(q, k, v, b, method="dense", **run), rtol=1e-4, atol=1e-4)


def test_blocks_do_not_matter(monkeypatch):
    from hadamard.layers import _toeplitz_sums

    q, k, v, b = (t.requires_grad_() for t in tensors((2, 9, 4), (2, 9, 4), (2, 9, 5), (2, 17)))

    def both():
        for method in ("fft", "dense"):
            y = toeplitz_attention(q, k, v, b, features=features(), method=method)
            yield [y, *torch.autograd.grad(y.square().sum(), (q, k, v, b))]

    whole = list(both())
    monkeypatch.setattr(_toeplitz_sums, "_KEEP", 1)
    monkeypatch.setattr(_toeplitz_sums, "_FFT_BLOCK", 1)
    monkeypatch.setattr(_toeplitz_sums, "_DENSE_BLOCK", 1)
    for one, other in zip(whole, both()):
        for a, b_ in zip(one, other):
            torch.testing.assert_close(a, b_, rtol=1e-10, atol=1e-10)


@methods
@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients(method, is_causal):
    q, k, v, b = (t.requires_grad_() for t in tensors((2, 5, 4), (2, 5, 4), (2, 5, 3), (2, 9)))

    def call(q, k, v, b):
        return toeplitz_attention(q, k, v, b, features=features(), is_causal=is_causal, method=method)

    assert torch.autograd.gradcheck(call, (q, k, v, b))


@methods
def test_gradients_on_a_grid(method):
    q, k, v, b = (t.requires_grad_() for t in tensors((6, 4), (6, 4), (6, 2), (3, 5)))

    def call(q, k, v, b):
        return toeplitz_attention(q, k, v, b, features=features(), grid=(2, 3), method=method)

    assert torch.autograd.gradcheck(call, (q, k, v, b))


# -- the module --


def make(embed_dim=8, num_heads=2, max_len=16, **options):
    options.setdefault("batch_first", True)
    layer = ToeplitzAttention(embed_dim, num_heads, max_len, generator=torch.Generator().manual_seed(1), **options)
    with torch.no_grad():
        layer.rel_bias.normal_(generator=torch.Generator().manual_seed(2))
    return layer


def test_module_is_projection_and_function():
    layer = make(method="dense").double()
    (x,) = tensors((3, 10, 8))
    q, k, v = (
        t.unflatten(-1, (2, 4)).transpose(1, 2)
        for t in F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
    )
    y = toeplitz_attention(q, k, v, layer.rel_bias[:, 6:-6], features=layer.features)
    y = layer.out_proj(y.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, x, x)[0], y)


def test_shapes_are_those_of_multihead_attention():
    for batch_first in (False, True):
        ours = make(kdim=5, vdim=6, batch_first=batch_first)
        theirs = nn.MultiheadAttention(8, 2, kdim=5, vdim=6, batch_first=batch_first)
        q, k, v = tensors((3, 10, 8), (3, 7, 5), (3, 7, 6), dtype=torch.float32)
        args = (q, k, v) if batch_first else [t.transpose(0, 1) for t in (q, k, v)]
        mask = torch.arange(7) > 4
        for average in (True, False):
            options = {"key_padding_mask": mask.expand(3, 7), "need_weights": True, "average_attn_weights": average}
            (y, w), (z, u) = ours(*args, **options), theirs(*args, **options)
            assert y.shape == z.shape
            assert w.shape == u.shape
            torch.testing.assert_close(w.sum(-1), torch.ones_like(w.sum(-1)))
            assert w[..., 5:].eq(0).all()
        single = [t[0] if batch_first else t[:, 0] for t in args]
        y = ours(*single)[0]
        assert y.shape == theirs(*single)[0].shape
        torch.testing.assert_close(y, ours(*args)[0][0] if batch_first else ours(*args)[0][:, 0])
        assert ours(*args)[1] is None


def test_weights_give_the_output():
    layer = make().double()
    (x,) = tensors((2, 9, 8))
    y, w = layer(x, x, x, need_weights=True, average_attn_weights=False, is_causal=True)
    v = F.linear(x, layer.in_proj_weight[16:], layer.in_proj_bias[16:]).unflatten(-1, (2, 4)).transpose(1, 2)
    torch.testing.assert_close(layer.out_proj((w @ v).transpose(1, 2).flatten(2)), y)
    assert w.triu(1).eq(0).all()


def test_loads_the_weights_of_multihead_attention():
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    ours = make()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert sorted(missing) == ["features.projection", "rel_bias"]
    assert not unexpected
    twin = make()
    twin.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 8)
    assert torch.equal(twin(x, x, x)[0], ours(x, x, x)[0])


@pytest.mark.parametrize("training", [True, False])
def test_stands_in_a_transformer_layer(training):
    """In evaluation, torch's fused softmax attention must not take over."""
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    block.self_attn = make()
    block.train(training)
    x = torch.randn(2, 7, 8)
    mask = torch.arange(7).expand(2, 7) > 4
    causal_mask = nn.Transformer.generate_square_subsequent_mask(7)
    with torch.no_grad():
        for options in ({}, {"src_key_padding_mask": mask}, {"src_mask": causal_mask, "is_causal": True}):
            ours = {"key_padding_mask": options.get("src_key_padding_mask"), "is_causal": "src_mask" in options}
            h = block.norm1(x + block.self_attn(x, x, x, **ours)[0])
            wanted = block.norm2(h + block.linear2(block.linear1(h).relu()))
            torch.testing.assert_close(block(x, **options), wanted)


def test_stands_in_a_stack():
    """Which must not hand over nested tensors when padding is masked in evaluation."""
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    block.self_attn = make()
    stack = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    x, mask = torch.randn(2, 7, 8), torch.arange(7).expand(2, 7) > torch.tensor([[4], [6]])
    y = stack.train()(x, src_key_padding_mask=mask)
    with torch.no_grad():
        torch.testing.assert_close(stack.eval()(x, src_key_padding_mask=mask), y)
    decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
    decoder.self_attn, decoder.multihead_attn = make(), make()
    causal_mask = nn.Transformer.generate_square_subsequent_mask(7)
    assert decoder(x, torch.randn(2, 9, 8), tgt_mask=causal_mask, tgt_is_causal=True).shape == (2, 7, 8)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("prompt", [1, 5])
def test_decoding_equals_the_parallel_form(normalize, prompt):
    layer = make(is_causal=True, normalize=normalize).double()
    (x,) = tensors((2, 16, 8))
    y, _ = layer(x, x, x)
    part, cache = layer.step(x[:, :prompt])
    parts = [part]
    for t in range(prompt, 16):
        part, cache = layer.step(x[:, t : t + 1], cache)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), y, rtol=1e-8, atol=1e-8)
    assert cache.values.shape == (2, 2, 16, 4)
    with pytest.raises(ValueError, match=r"max_len must be at least the sequence's size \(17,\), got \(16,\)"):
        layer.step(x[:, :1], cache)


def test_decoding_in_parts_and_layouts():
    layer = make(is_causal=True, batch_first=False).double()
    (x,) = tensors((12, 2, 8))
    y, _ = layer(x, x, x)
    first, cache = layer.step(x[:5])
    second, _ = layer.step(x[5:], cache)
    torch.testing.assert_close(torch.cat([first, second]), y, rtol=1e-8, atol=1e-8)
    single, _ = layer.step(x[:, 0])
    torch.testing.assert_close(single, y[:, 0], rtol=1e-8, atol=1e-8)


def test_pictures_of_several_sizes():
    layer = make(max_len=(4, 5)).double()
    (x,) = tensors((2, 20, 8))
    y, _ = layer(x, x, x)
    torch.testing.assert_close(layer(x, x, x, grid=(4, 5))[0], y)
    small, _ = layer(x[:, :6], x[:, :6], x[:, :6], grid=(2, 3))
    assert small.shape == (2, 6, 8)
    twin = make(max_len=(2, 3)).double()
    state = layer.state_dict()
    state["rel_bias"] = state["rel_bias"][:, 2:-2, 2:-2]
    twin.load_state_dict(state)
    torch.testing.assert_close(twin(x[:, :6], x[:, :6], x[:, :6])[0], small)


def test_half_precision_and_autocast():
    layer = make()
    x = torch.randn(2, 12, 8)
    wanted = layer(x, x, x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x, x, x)[0]
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), wanted, rtol=0.05, atol=0.05)
    low = copy.deepcopy(layer).bfloat16()
    y = low(*(x.bfloat16(),) * 3)[0]
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), wanted, rtol=0.05, atol=0.05)


@pytest.mark.bad_input  # the compiler cannot look through checks of annotations
@pytest.mark.parametrize("method", ["dense", pytest.param("fft", marks=pytest.mark.slow)])
def test_compiles(method):
    layer = make(method=method, is_causal=True)
    x = torch.randn(2, 12, 8)
    compiled = torch.compile(layer, backend="aot_eager")
    torch.testing.assert_close(compiled(x, x, x)[0], layer(x, x, x)[0])
    grads = [torch.autograd.grad(f(x, x, x)[0].square().sum(), layer.rel_bias)[0] for f in (compiled, layer)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_defaults():
    layer = ToeplitzAttention(64, 4, 32)
    assert layer.features.num_features == 44  # 16 log 16
    assert layer.rel_bias.eq(0).all()
    assert layer.rel_bias.shape == (4, 63)
    assert repr(layer).startswith("ToeplitzAttention(\n  64, 4, max_len=32, is_causal=False")
    x = torch.zeros(5, 2, 64)  # vectors of length zero cannot be scaled to one
    assert layer(x, x, x)[0].isfinite().all()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": torch.zeros(8)}, r"bias must have 9 offsets in its last dimension, got shape \(8,\)"),
        ({"bias": torch.full((9,), math.nan)}, "bias must be finite"),
        ({"bias": torch.full((9,), math.inf)}, "bias must be finite"),
        ({"query": torch.full((5, 4), math.nan)}, "query must be finite"),
        ({"query": torch.zeros(0, 4)}, "query must not be empty"),
        ({"value": torch.zeros(5, 0)}, "value must not be empty"),
        ({"query": torch.zeros(5, 3)}, r"query must have shape \(..., \*, 4\), got \(5, 3\)"),
        ({"value": torch.zeros(4, 3)}, r"value must have shape \(..., 5, \*\), got \(4, 3\)"),
        ({"key": torch.zeros(5, 4, dtype=D)}, "query and key must have the same dtype"),
        ({"query": torch.zeros(3, 4), "bias": torch.zeros(7), "is_causal": True}, "query and key must be equally long"),
        ({"method": "flash"}, "method must be one of 'auto', 'fft', 'dense', got 'flash'"),
        ({"scale": 0.0}, "scale must be > 0, got 0.0"),
        ({"grid": (2, 3)}, r"grid must have as many points as there are positions, got \(2, 3\) for 5"),
        ({"grid": (1, 5), "bias": torch.zeros(9)}, r"bias must have shape \(..., 1, 9\), got \(9,\)"),
    ],
)
def test_bad_input(change, message):
    arguments = {"query": torch.ones(5, 4), "key": torch.ones(5, 4), "value": torch.ones(5, 3), "bias": torch.zeros(9)}
    with pytest.raises(ValueError, match=message):
        toeplitz_attention(**arguments | {"features": features(dtype=torch.float32)} | change)


@pytest.mark.bad_input
def test_nested_tensors_are_refused():
    stack = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
    stack.layers[0].self_attn = make()
    x, mask = torch.randn(2, 7, 8), torch.arange(7).expand(2, 7) > torch.tensor([[4], [6]])
    with torch.no_grad(), pytest.raises(ValueError, match="query must not be nested: build nn.TransformerEncoder from"):
        stack.eval()(x, src_key_padding_mask=mask)


@pytest.mark.bad_input
def test_bad_input_of_the_module():
    x = torch.ones(2, 5, 8)
    layer = make()
    cases = [
        (lambda: ToeplitzAttention(8, 3, 16), "embed_dim must be divisible by num_heads, got 8 and 3"),
        (lambda: ToeplitzAttention(8, 2, 0), "max_len must be >= 1, got 0"),
        (lambda: layer(x, x, x, attn_mask=torch.zeros(5, 5)), "attn_mask must be None or, with is_causal=True"),
        (lambda: layer(x, x[:1], x[:1]), "key must have shape"),
        (
            lambda: layer(x, x, x, torch.zeros(2, 4).bool()),
            r"key_padding_mask must have shape \(..., 5\), got \(2, 4\)",
        ),
        (lambda: layer(x[..., :7], x, x), "query must have shape"),
        (lambda: layer(*(torch.ones(2, 17, 8),) * 3), r"max_len must be at least the sequence's size \(17,\)"),
        (lambda: make(max_len=(4, 5)).step(x), r"max_len must be one number for decoding step by step, got \(4, 5\)"),
        (lambda: make(max_len=(4, 5))(x, x, x, grid=(5, 1)), r"max_len must be at least the sequence's size \(5, 1\)"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="query must have a floating dtype"):
        layer(x.long(), x, x)
