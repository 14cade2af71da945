"""Linear attention against the dense kernel matrix."""

import math

import pytest
import torch

from hadamard.features import Monomials, PositiveRandom, heads, linear_attention, merge

D = torch.float64


def tensors(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(*shape, dtype=D, generator=g) for shape in shapes]


def dense(q, k, v, is_causal=False):
    a = q @ k.mT
    a = a.tril() if is_causal else a
    return a @ v / a.sum(-1, keepdim=True)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_is_the_dense_kernel_matrix(is_causal, chunk):
    q, k, v = tensors((2, 3, 11, 5), (2, 3, 11, 5), (2, 3, 11, 4))
    y = linear_attention(q, k, v, is_causal, chunk=chunk)
    torch.testing.assert_close(y, dense(q, k, v, is_causal), rtol=1e-12, atol=1e-12)


def test_cross_attention():
    q, k, v = tensors((7, 5), (11, 5), (11, 4))
    torch.testing.assert_close(linear_attention(q, k, v, chunk=3), dense(q, k, v), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("is_causal", [False, True])
def test_pairs_of_keys(is_causal):
    q, k1, k2, v1, v2 = tensors((2, 9, 5), (2, 9, 5), (2, 9, 5), (2, 9, 4), (2, 9, 4))
    a = torch.einsum("bir,bjr,blr->bijl", q, k1, k2)
    if is_causal:
        i, j = torch.arange(9)[:, None], torch.arange(9)
        past = (j <= i).to(D)
        a = a * past[:, :, None] * past[:, None, :]
    y = torch.einsum("bijl,bjd,bld->bid", a, v1, v2) / a.sum((-1, -2))[..., None]
    for chunk in (1, 16, 100):
        got = linear_attention(q, (k1, k2), (v1, v2), is_causal, chunk=chunk)
        torch.testing.assert_close(got, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("is_causal", [False, True])
def test_constant_values_come_back(is_causal):
    q, k = tensors((8, 5), (8, 5))
    v = torch.full((8, 3), 2.5, dtype=D)
    torch.testing.assert_close(linear_attention(q, k, v, is_causal), v)


@pytest.mark.parametrize("is_causal", [False, True])
def test_feature_map_in_chunks(is_causal):
    q, k, v = tensors((2, 10, 3), (2, 10, 3), (2, 10, 4))
    phi = Monomials(4)
    lazy = linear_attention(q, k, v, is_causal, feature_map=phi, chunk=3)
    torch.testing.assert_close(lazy, linear_attention(phi(q), phi(k), v, is_causal), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_gradients(is_causal, several):
    q, k, l, v, w = (x.requires_grad_() for x in tensors((5, 3), (5, 3), (5, 3), (5, 2), (5, 2)))

    def call(q, k, l, v, w):
        keys, values = ((k, l), (v, w)) if several else (k, v)
        return linear_attention(q, keys, values, is_causal, feature_map=Monomials(2), chunk=16 if several else 2)

    assert torch.autograd.gradcheck(call, (q, k, l, v, w))


def test_keeps_no_features_of_the_whole_sequence():
    """Between forward and backward only points, values and summaries are held."""
    q, k, v = (x.float().requires_grad_() for x in tensors((512, 4), (512, 4), (512, 4)))
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        linear_attention(q, k, v, feature_map=Monomials(4), chunk=64)
    assert sum(kept.values()) < 512 * 70 * 4 / 2  # half of the features of one side


def test_attention_of_random_features_approaches_softmax(generator):
    q, k, v = (torch.randn(2, 20, 4, generator=generator, dtype=D) / 2 for _ in range(3))
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    errors = []
    for count in (64, 4096):
        phi = PositiveRandom(4, count, generator=generator, dtype=D)
        errors.append((linear_attention(phi(q), phi(k), v) - wanted).norm().item())
    assert errors[1] < errors[0] / 4
    assert errors[1] < 0.05 * wanted.norm().item()


def test_denominators():
    q, k, v = tensors((3, 2), (3, 2), (3, 2))
    assert linear_attention(q, 0 * k, v).eq(0).all()
    assert linear_attention(q, 0 * k, v, eps=1e-6).eq(0).all()
    small = linear_attention(q, 1e-9 * k, v, eps=1e-6)
    assert small.abs().max() < 0.01
    assert math.isclose(linear_attention(q, 1e-9 * k, torch.ones_like(v)).min().item(), 1.0)


def test_heads_and_merge():
    x = torch.arange(24.0).view(1, 2, 12)
    assert heads(x, 3).shape == (1, 3, 2, 4)
    assert heads(x, 3)[0, 1, 0].tolist() == [4, 5, 6, 7]
    assert torch.equal(merge(heads(x, 3)), x)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": [torch.ones(4, 2), torch.ones(4, 2)]}, "phi_k and v must be equally many, got 1 and 2"),
        ({"v": torch.ones(3, 2)}, "phi_k and v must be equally long"),
        ({"phi_q": torch.ones(3, 5), "is_causal": True}, "phi_k and v must be equally long, with is_causal as phi_q"),
        ({"chunk": 0}, "chunk must be >= 1, got 0"),
        ({"eps": -1.0}, "eps must be >= 0, got -1.0"),
    ],
)
def test_bad_input(change, message):
    arguments = {"phi_q": torch.ones(4, 5), "phi_k": torch.ones(4, 5), "v": torch.ones(4, 2)}
    with pytest.raises(ValueError, match=message):
        linear_attention(**arguments | change)
