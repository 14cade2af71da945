"""Polynomial attention and its gradients against exact attention, and the report on a model's heads."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hadamard.compression import head_norms, norm_report, poly_attention, register_attention
from hadamard.compression.polynomial_attention import read_mask
from hadamard.features import rank, taylor_degree, taylor_error
from hadamard.layers.kronecker_functional import operations


@pytest.fixture
def qkv(generator):
    shape = (3, 2, 2, 40, 4)  # batch, heads, positions, channels
    return [x.requires_grad_() for x in (0.7 * torch.randn(shape, generator=generator, dtype=torch.float64)).unbind()]


def series(q, k, v, degree, scale, causal=False):
    """Attention by the Taylor polynomial of all scores, as it is written down."""
    scores = scale * q @ (k - k.mean(-2, keepdim=True)).mT
    weights = sum(scores**t / math.factorial(t) for t in range(degree + 1))
    weights = weights.tril() if causal else weights
    return weights @ v / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_the_truncated_series(qkv, causal):
    y = poly_attention(*qkv, degree=4, eps=None, method="polynomial", is_causal=causal, scale=0.3)
    torch.testing.assert_close(y, series(*qkv, 4, 0.3, causal), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("eps", [1e-2, 1e-5])
def test_the_error_is_what_eps_says(qkv, causal, eps):
    y = poly_attention(*qkv, eps=eps, method="polynomial", is_causal=causal)
    exact = F.scaled_dot_product_attention(*qkv, is_causal=causal)
    assert (y - exact).abs().max() <= 2 * eps / (1 - eps) * qkv[2].abs().max()
    assert (y - exact).abs().max() > 0


def test_small_scores_give_uniform_attention(qkv):
    q, k, v = qkv
    y = poly_attention(1e-8 * q, k, v, method="polynomial")
    torch.testing.assert_close(y, v.mean(-2, keepdim=True).expand_as(v), rtol=1e-6, atol=1e-7)


def test_a_constant_added_to_the_keys_changes_nothing_and_costs_nothing(qkv):
    q, k, v = qkv
    far = poly_attention(q, k + 30.0, v, method="polynomial")
    torch.testing.assert_close(far, poly_attention(q, k, v, method="polynomial"), rtol=1e-9, atol=1e-9)


def test_permuted_positions_give_permuted_outputs(qkv, generator):
    order = torch.randperm(40, generator=generator)
    y = poly_attention(*qkv, degree=4, eps=None, method="polynomial")
    other = poly_attention(*(x[..., order, :] for x in qkv), degree=4, eps=None, method="polynomial")
    torch.testing.assert_close(other, y[..., order, :], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["exact", "polynomial"])
@pytest.mark.parametrize("causal", [False, True])
def test_padding_is_as_if_it_were_not_there(qkv, method, causal):
    padding = torch.zeros(2, 1, 40, dtype=torch.bool)
    padding[1, :, 25:] = True
    q, k, v = qkv
    y = poly_attention(q, k / 2, v, key_padding_mask=padding, method=method, eps=1e-6, is_causal=causal)
    short = poly_attention(*(x[1:, :, :25] for x in (q, k / 2, v)), method=method, eps=1e-6, is_causal=causal)
    torch.testing.assert_close(y[1:, :, :25], short, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients(qkv, causal):
    few = [x[:1, :1, :6].detach().requires_grad_() for x in qkv]
    options = {"degree": 4, "eps": None, "method": "polynomial", "is_causal": causal}
    assert torch.autograd.gradcheck(lambda q, k, v: poly_attention(q, k, v, **options), few)


def adapter_gradients(method, degree=None, B=None, causal=False):
    """Gradients of the loss 0.5 |y - Y|^2 in the factors of one query adapter (alpha / r = 1)."""
    generator = torch.Generator().manual_seed(0)
    x, target = torch.randn(2, 1, 60, 4, generator=generator, dtype=torch.float64).unbind()
    A = 0.3 * torch.randn(2, 4, generator=generator, dtype=torch.float64)
    A, B = A.requires_grad_(), (torch.zeros(4, 2, dtype=torch.float64) if B is None else B).requires_grad_()
    q = x @ (torch.eye(4, dtype=torch.float64) + B @ A).T
    y = poly_attention(q / 2, x / 2, x, degree=degree, eps=None if degree else 1e-3, method=method, is_causal=causal)
    return torch.autograd.grad((y - target).square().sum() / 2, (A, B))


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_an_adapter_approach_those_of_exact_attention_geometrically(causal):
    B = 0.3 * torch.ones(4, 2, dtype=torch.float64)
    exact = adapter_gradients("exact", B=B, causal=causal)
    errors = []
    for degree in (2, 4, 6, 8, 10):
        found = adapter_gradients("polynomial", degree, B, causal)
        errors.append(max(float((f - e).norm() / e.norm()) for f, e in zip(found, exact)))
    assert all(b < 0.5 * a for a, b in pairwise(errors))
    assert errors[-1] < 1e-3


def test_at_the_start_of_lora_one_factor_has_no_gradient():
    dA, dB = adapter_gradients("polynomial", 4)
    assert not dA.any()
    assert dB.abs().min() > 0


def test_the_cheaper_method_is_taken(monkeypatch, generator):
    from hadamard.compression import polynomial_attention

    taken = []
    monkeypatch.setattr(polynomial_attention, "kronecker_attention", lambda q, *_, **__: taken.append(len(q)) or q)
    long, short = (0.1 * torch.randn(1, n, 4, generator=generator) for n in (8192, 8))
    poly_attention(short, short, short)
    assert not taken
    poly_attention(long, long, long)
    assert taken


def test_half_precision_and_autocast(qkv):
    q, k, v = (x.detach().float() for x in qkv)
    exact = F.scaled_dot_product_attention(q, k, v)
    y = poly_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), method="polynomial")
    assert y.dtype == torch.bfloat16
    assert (y.float() - exact).abs().max() < 0.03
    with torch.autocast("cpu", torch.bfloat16):
        inside = poly_attention(q, k, v, method="polynomial", eps=1e-5)
    assert (inside - exact).abs().max() < 1e-3


@pytest.mark.parametrize("bound", [0.3, 1.0, 2.5])
def test_the_degree_never_promises_too_much(bound, generator):
    u = bound * (2 * torch.rand(5000, generator=generator, dtype=torch.float64) - 1)
    for eps in (1e-1, 1e-3, 1e-6):
        degree = taylor_degree(bound, eps)
        polynomial = sum(u**t / math.factorial(t) for t in range(degree + 1))
        assert (polynomial / u.exp() - 1).abs().max() <= eps


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"degree": 3, "method": "polynomial"}, "degree must be even"),
        ({"method": "quick"}, "method must be one of 'auto', 'exact', 'polynomial', got 'quick'"),
        ({"scale": 0.0}, "scale must be > 0"),
        ({"eps": 0.0, "method": "polynomial"}, "tol must be > 0|eps must be > 0"),
        ({"query": torch.full((1, 5, 4), torch.nan)}, "query must be finite"),
        ({"key": torch.zeros(1, 5, 3)}, "key must have shape"),
        ({"value": torch.zeros(1, 6, 4)}, "value must have shape"),
        ({"query": 40 * torch.ones(1, 5, 4), "method": "polynomial"}, "smaller entries or fewer channels"),
    ],
)
def test_bad_input(change, message):
    x = torch.linspace(-1, 1, 20).view(1, 5, 4)
    with pytest.raises(ValueError, match=message):
        poly_attention(**({"query": x, "key": x, "value": x} | change))


# The report


def test_the_figures_of_a_head_are_their_definitions(generator):
    q, k = torch.randn(2, 3, 64, 4, generator=generator).unbind()
    centred = k - k.mean(1, keepdim=True)
    for head, found in enumerate(head_norms(q, k, eps=1e-2)):
        scores = (q[head] @ centred[head].mT / 2).abs().max()
        assert scores <= found.score
        assert found.entry == pytest.approx(float(max(q[head].abs().max(), centred[head].abs().max())) / 2**0.5)
        assert found.threshold == pytest.approx(math.log(64) ** 0.5)
        assert found.below == (found.entry < found.threshold)
        assert found.degree == taylor_degree(found.score, 1e-2)
        assert found.features == rank(4, found.degree)
        assert (found.exact, found.polynomial) == operations((64, 64), 4, 4, found.degree)


def test_the_polynomial_pays_from_the_length_that_is_said(generator):
    (found,) = head_norms(0.2 * torch.randn(1, 64, 4, generator=generator), torch.randn(1, 64, 4, generator=generator))
    for factor, cheaper in ((0.98, False), (1.02, True)):
        n = round(factor * found.pays_from)
        exact, polynomial = operations((n, n), 4, 4, found.degree)
        assert (polynomial < exact) == cheaper


def test_affordable_scores_are_those_at_which_it_still_pays():
    for length in (64, 1024, 8192):
        found = head_norms(torch.zeros(1, length, 4), torch.zeros(1, length, 4))[0]
        degree = taylor_degree(0.999 * found.affordable, 1e-3)
        exact, polynomial = operations((length, length), 4, 4, degree)
        assert polynomial < exact
        exact, polynomial = operations((length, length), 4, 4, taylor_degree(1.001 * found.affordable, 1e-3))
        assert polynomial >= exact
        assert taylor_error(found.affordable, degree) == pytest.approx(1e-3, rel=1e-3)


def test_the_report_of_multihead_attention(generator):
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double().train()
    x = torch.randn(1, 30, 8, generator=generator, dtype=torch.float64)
    q, k, _ = F.linear(x[0], attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
    wanted = head_norms(*(t.unflatten(-1, (2, 4)).transpose(0, 1).float() for t in (q, k)), layer="MultiheadAttention")
    assert list(norm_report(attention, x, key=x, value=x).heads) == wanted
    assert attention.training
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    report = norm_report(encoder, x.float())
    assert [h.layer for h in report.heads] == ["self_attn"] * 2
    assert not encoder.self_attn._forward_pre_hooks


def test_of_a_batch_the_worst_sequence_is_reported(generator):
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(3, 20, 8, generator=generator)
    x[1] *= 3
    report = norm_report(attention, x, x, x)
    assert report == norm_report(attention, *(x[1:2],) * 3)


# Models of transformers


def bert(**options):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertModel(BertConfig(**sizes, intermediate_size=16, **options)).eval()


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, num_key_value_heads=2, intermediate_size=16, pad_token_id=0)
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("build", [bert, llama])
def test_models_attend_by_the_polynomial(build, padded, monkeypatch):
    model = build()
    tokens, mask = torch.arange(1, 25).view(2, 12), torch.ones(2, 12, dtype=torch.int64)
    if padded:
        mask[1, 8:] = 0
    options = {"input_ids": tokens, "attention_mask": mask}
    exact = model(**options)[0]
    register_attention(method="polynomial", eps=1e-6)
    model.set_attn_implementation("polynomial")
    found = model(**options)[0]
    torch.testing.assert_close(found[mask.bool()], exact[mask.bool()], rtol=1e-4, atol=1e-5)
    register_attention(degree=0, eps=None, method="polynomial")  # uniform attention: the choice does matter
    assert (model(**options)[0] - exact)[mask.bool()].abs().max() > 1e-5


def test_generation_with_a_cache(generator):
    model = llama()
    tokens = torch.randint(1, 30, (1, 6), generator=generator)
    exact = model.generate(tokens, max_new_tokens=5, do_sample=False)
    register_attention(method="polynomial", eps=1e-6)
    model.set_attn_implementation("polynomial")
    assert torch.equal(model.generate(tokens, max_new_tokens=5, do_sample=False), exact)


def test_the_gradients_of_pefts_adapters():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(llama(), LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.1)
    tokens = torch.arange(1, 21)[None]

    def gradients():
        model.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    exact = gradients()
    register_attention(method="polynomial", eps=1e-6)
    model.set_attn_implementation("polynomial")
    for name, found in gradients().items():
        torch.testing.assert_close(found, exact[name], rtol=1e-3, atol=1e-6, msg=name)


def test_the_report_names_layers_and_sees_the_adapter():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(llama(), LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]))
    tokens = torch.arange(1, 21)[None]
    plain = norm_report(model, input_ids=tokens)
    assert len(plain.heads) == 8
    assert len(plain.layers()) == 2
    assert plain.heads[0].layer.endswith("layers.0.self_attn")
    assert all(h.adapter == 0 for h in plain.heads)
    assert model.config._attn_implementation == "sdpa"
    up = model.base_model.model.model.layers[1].self_attn.q_proj.lora_B["default"]
    nn.init.ones_(up.weight)
    changed = norm_report(model, input_ids=tokens)
    assert [h.adapter > 0 for h in changed.heads] == [False] * 4 + [True] * 4
    up.weight.data *= 2
    doubled = norm_report(model, input_ids=tokens)
    assert doubled.heads[-1].adapter == pytest.approx(2 * changed.heads[-1].adapter, rel=1e-5)


def test_masks_are_taken_apart():
    full, padding = torch.ones(2, 1, 5, 5, dtype=torch.bool), torch.zeros(2, 1, 5, dtype=torch.bool)
    padding[1, :, 3:] = True
    query, module = torch.zeros(2, 1, 5, 4), nn.Identity()
    for causal in (False, True):
        mask = (full.tril() if causal else full) & ~padding[:, :, None]
        found, left_out = read_mask(mask, module, query)
        assert found == causal
        assert torch.equal(left_out, padding)
        additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        assert read_mask(additive, module, query)[0] == causal
    with pytest.raises(ValueError, match="attention_mask must be causal"):
        read_mask(full.triu(), module, query)


def test_bad_models_and_options():
    with pytest.raises(ValueError, match="found none"):
        norm_report(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(TypeError, match="options must be eps, degree or method, got tol"):
        register_attention(tol=1e-3)
    register_attention()
    model = bert(attention_probs_dropout_prob=0.1).train()
    model.set_attn_implementation("polynomial")
    with pytest.raises(ValueError, match="dropout of the attention's weights must be 0, got 0.1"):
        model(torch.arange(5)[None])
