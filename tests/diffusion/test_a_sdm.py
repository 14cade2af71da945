"""Feature inheritance against the plain sampler and against networks written out by hand."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, HeunDiscreteScheduler, UNet2DConditionModel
from torch import nn

from hadamard.diffusion import (
    EncoderPropagation,
    FeatureInheritance,
    Rule,
    dense_ends,
    disable,
    enable,
    window,
)
from hadamard.diffusion.inheritance_rules import PRESETS, parts_of
from tests.diffusion.test_encoder_propagation import SCHEDULERS, TEXT, pipeline, plain_unet, sample, text_unet

ALL_UNITS = Rule("*.resnets.*|*.attentions.*", "unit", 2)
STABLE = {"sd": {}, "sdxl": {"transformer_layers_per_block": (1, 2, 3), "use_linear_projection": True,
          "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
          "projection_class_embeddings_input_dim": 64}}  # fmt: skip


@pytest.fixture(scope="module")
def unet():
    return plain_unet()


def stable(kind="sd", width=8):
    """The blocks of Stable Diffusion 1.5 or XL, narrower."""
    torch.manual_seed(0)
    if kind == "sd":
        widths, sides = (width, 2 * width, 4 * width, 4 * width), ("CrossAttn", "CrossAttn", "CrossAttn", "")
    else:
        widths, sides = (width, 2 * width, 4 * width), ("", "CrossAttn", "CrossAttn")
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=widths, cross_attention_dim=8, attention_head_dim=2, norm_num_groups=4,
        down_block_types=[f"{side}DownBlock2D" for side in sides],
        up_block_types=[f"{side}UpBlock2D" for side in reversed(sides)], **STABLE[kind],
    ).eval()  # fmt: skip


def condition(kind):
    text = {"encoder_hidden_states": TEXT}
    added = {"text_embeds": torch.ones(2, 16), "time_ids": torch.ones(2, 6)}
    return text if kind == "sd" else text | {"added_cond_kwargs": added}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_with_every_step_a_key_step_nothing_changes(unet, scheduler):
    pipe = pipeline(unet, scheduler)
    plain = sample(pipe, 6)
    few = (Rule("*", "unit", 1), Rule("*", "layer", 1), Rule("*", "block", 1), *PRESETS)
    for rules in few if scheduler is DDIMScheduler else few[:1]:
        with FeatureInheritance(pipe, rules, key_steps=1 if isinstance(rules, str) else None) as fast:
            assert torch.equal(sample(pipe, 6), plain)
        assert all(n == 6 for n in (fast.calls, *fast.key_calls))


@pytest.mark.parametrize("kind", STABLE)
def test_stable_diffusions_blocks(kind):
    pipe = pipeline(stable(kind))
    plain = sample(pipe, 3, **condition(kind))
    for rules in (*PRESETS, Rule("*.ff|*.attn?", "unit", 1)):
        preset = isinstance(rules, str)
        with FeatureInheritance(pipe, rules, key_steps=1 if preset else None):
            assert torch.equal(sample(pipe, 3, **condition(kind)), plain)
        if preset:
            with FeatureInheritance(pipe, rules, key_steps=2):
                assert not torch.equal(sample(pipe, 3, **condition(kind)), plain)


def test_the_encoder_preset_is_encoder_propagation(unet):
    for net, more in ((unet, {}), (text_unet(), {"encoder_hidden_states": TEXT})):
        pipe = pipeline(net)
        for keys in (3, "50ls", [0, 1, 5]):
            with EncoderPropagation(pipe, keys):
                expected = sample(pipe, **more)
            with FeatureInheritance(pipe, "encoder", key_steps=keys):
                assert torch.equal(sample(pipe, **more), expected)


def test_units_add_what_they_stored_to_what_is_there(unet):
    """At other than key steps every resnet and attention is its path and a stored increment, written out by hand."""
    pipe = pipeline(unet)
    stored = {}

    def resnet(name, module, x, emb, fresh):
        h = module.conv1(module.nonlinearity(module.norm1(x)))
        h = h + module.time_emb_proj(module.nonlinearity(emb))[:, :, None, None]
        h = module.conv2(module.nonlinearity(module.norm2(h)))
        if fresh:
            stored[name] = h
        return (x if module.conv_shortcut is None else module.conv_shortcut(x)) + stored[name]

    def attention(name, module, x, fresh):
        if fresh:
            stored[name] = module(x) - x / module.rescale_output_factor
        return stored[name] + x / module.rescale_output_factor

    @torch.no_grad()
    def by_hand():
        pipe.scheduler.set_timesteps(8)
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        for i, t in enumerate(pipe.scheduler.timesteps):
            emb = unet.time_embedding(unet.time_proj(t.expand(2)))
            h, fresh = unet.conv_in(x), i % 2 == 0
            skips = [h]
            for b, block in enumerate(unet.down_blocks):
                h = resnet(("d", b), block.resnets[0], h, emb, fresh)
                h = attention(("da", b), block.attentions[0], h, fresh) if hasattr(block, "attentions") else h
                skips.append(h)
                if block.downsamplers:
                    h = block.downsamplers[0](h)
                    skips.append(h)
            middle = unet.mid_block
            h = resnet("m0", middle.resnets[0], h, emb, fresh)
            h = attention("ma", middle.attentions[0], h, fresh)
            h = resnet("m1", middle.resnets[1], h, emb, fresh)
            for b, block in enumerate(unet.up_blocks):
                for j, module in enumerate(block.resnets):
                    h = resnet(("u", b, j), module, torch.cat([h, skips.pop()], 1), emb, fresh)
                    h = attention(("ua", b, j), block.attentions[j], h, fresh) if hasattr(block, "attentions") else h
                h = block.upsamplers[0](h) if block.upsamplers else h
            noise = unet.conv_out(unet.conv_act(unet.conv_norm_out(h)))
            x = pipe.scheduler.step(noise, t, x).prev_sample
        return x

    expected = by_hand()
    with FeatureInheritance(pipe, ALL_UNITS):
        torch.testing.assert_close(sample(pipe, 8), expected, rtol=0, atol=1e-5)
    with FeatureInheritance(pipe, Rule(ALL_UNITS.match, "unit", 2, "output")):
        assert not torch.allclose(sample(pipe, 8), expected, atol=1e-3)


def test_layers_are_their_units(unet):
    pipe = pipeline(unet)
    for keep in ("increment", "output"):
        with FeatureInheritance(pipe, Rule("up_blocks.*.layers.*|mid_block.layers.1", "layer", 3, keep)):
            layers = sample(pipe)
        units = "up_blocks.*.resnets.*|up_blocks.*.attentions.*|mid_block.resnets.1|mid_block.attentions.0"
        with FeatureInheritance(pipe, Rule(units, "unit", 3, keep)):
            assert torch.equal(sample(pipe), layers)


@pytest.mark.parametrize("kind", STABLE)
def test_increments_of_transformers_and_of_what_is_in_them(kind):
    """Where nothing before them changes, what they give is what they gave; where it does, the present input counts."""
    net = stable(kind).double()
    x, y = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    more = {k: v.double() if torch.is_tensor(v) else v for k, v in condition(kind).items()}
    if "added_cond_kwargs" in more:
        more["added_cond_kwargs"] = {k: v.double() for k, v in more["added_cond_kwargs"].items()}
    for rule in (Rule("*.attentions.*", "unit", 2), Rule("*.attn1|*.attn2|*.ff", "unit", 2)):
        block, runs = net.up_blocks[-1 if kind == "sd" else 0].attentions[0], []
        hook = block.register_forward_hook(lambda _, args, out, runs=runs: runs.append((args[0], out[0])))
        with torch.no_grad(), FeatureInheritance(net, rule):
            net(x, 9, **more)
            net(y, 8, **more)
        hook.remove()
        (before, was), (after, is_now) = runs
        if rule.match == "*.attentions.*":
            torch.testing.assert_close(is_now - after, was - before)
        assert not torch.allclose(is_now, was)


def test_rules_have_schedules_of_their_own(unet):
    runs = dict.fromkeys(("down", "middle", "up"), 0)
    modules = {"down": unet.down_blocks[0].resnets[0].conv1, "middle": unet.mid_block.resnets[0].conv1,
               "up": unet.up_blocks[-1].resnets[0].conv1}  # fmt: skip
    hooks = [
        module.register_forward_hook(lambda *_, name=name: runs.update({name: runs[name] + 1}))
        for name, module in modules.items()
    ]
    rules = [Rule("mid_block", "block", 4), Rule("down_blocks.0.resnets.0", "unit", [0, 3])]
    with FeatureInheritance(pipeline(unet), rules) as fast:
        sample(pipeline(unet), 12)
    for hook in hooks:
        hook.remove()
    assert runs == {"down": 2, "middle": 3, "up": 12}
    assert (fast.calls, fast.key_calls) == (12, (3, 2))


def test_schedules():
    keys = window(2, 8, 3)
    assert [i for i in range(10) if keys(i, 10)] == [0, 1, 2, 5, 8, 9]
    keys = dense_ends(4, 0.2)
    assert [i for i in range(20) if keys(i, 20)] == [0, 1, 2, 3, 4, 8, 12, 16, 17, 18, 19]


def test_what_changes_features_in_place_changes_nothing_stored(unet):
    """FreeU and adapters write into features; what is stored stays as it was."""
    x, outputs = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), []
    for change in (lambda _, __, out: out * 2, lambda _, __, out: out.mul_(2)):
        hook = unet.up_blocks[0].register_forward_hook(change)
        with torch.no_grad(), FeatureInheritance(unet, "deep", key_steps=9):
            outputs.append([unet(x, t).sample for t in (9, 8, 7)])
        hook.remove()
    assert all(torch.equal(a, b) for a, b in zip(*outputs))


def test_a_change_of_batch_or_type_lets_everything_run(unet):
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = unet(x[:1], 8).sample
        with FeatureInheritance(unet, ALL_UNITS) as fast:
            unet(x, 9)
            assert torch.equal(unet(x[:1], 8).sample, plain)
            with torch.autocast("cpu", torch.bfloat16):
                unet(x[:1], 7)
            unet(x[:1], 6)
        assert fast.key_calls == (4,)
        with FeatureInheritance(unet, ALL_UNITS):
            first = unet(x, 9).sample
            assert torch.equal(unet(x, 9).sample, first)  # a new generation


def test_one_call_on_a_pipeline_and_one_to_undo_it(unet):
    pipe = DDIMPipeline(copy.deepcopy(unet), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    draw = lambda: pipe(num_inference_steps=6, generator=torch.Generator().manual_seed(0), output_type="np").images  # noqa: E731
    plain = draw()
    disable(pipe)  # nothing is enabled yet
    first = enable(pipe, "deep", key_steps=3)
    assert (draw() != plain).any()
    second = enable(pipe, Rule("*", "unit", 1))
    assert (draw() == plain).all()
    assert (first.enabled, second.enabled) == (False, True)
    disable(pipe)
    assert not second.enabled
    assert not any("forward" in module.__dict__ for module in pipe.unet.modules())
    assert (draw() == plain).all()


def test_its_state_does_not_reach_files_or_copies(unet, tmp_path):
    pipe = DDIMPipeline(copy.deepcopy(unet), DDIMScheduler())
    with enable(pipe, "units"):
        keys = set(pipe.unet.state_dict())
        pipe.save_pretrained(tmp_path)
    assert keys == set(unet.state_dict())
    again = DDIMPipeline.from_pretrained(tmp_path).unet
    assert all(torch.equal(value, unet.state_dict()[name]) for name, value in again.state_dict().items())


def test_operations_are_those_that_are_left(unet):
    inputs = (torch.zeros(1, 3, 8, 8), 0)
    assert FeatureInheritance(unet, "deep", key_steps=1).share(10, *inputs) == 1
    half, third = (FeatureInheritance(unet, "deep", key_steps=m).share(12, *inputs) for m in (2, 3))
    rest = 2 * half - 1  # a call at which they inherit
    assert third == pytest.approx((1 + 2 * rest) / 3)
    fast = FeatureInheritance(unet, "deep").enable()
    assert fast.share(12, *inputs) == half
    assert fast.enabled
    fast.disable()


def test_stable_diffusion_at_full_width():
    with torch.device("meta"):
        net = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        inputs = torch.zeros(1, 4, 64, 64), torch.tensor(0), torch.zeros(1, 77, 768)
    pipe = SimpleNamespace(unet=net, scheduler=DDIMScheduler())
    deep = FeatureInheritance(pipe, "deep", key_steps=2).share(50, *inputs)
    assert deep == pytest.approx((1 + 0.38) / 2, abs=0.01)  # the outermost blocks take 38 %
    assert FeatureInheritance(pipe, "a_sdm").share(50, *inputs) < 1 / 1.4  # 40 % faster


@pytest.mark.slow
def test_one_true_step_of_stable_diffusion():
    torch.manual_seed(0)
    net = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval()
    x, text = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 768)
    with torch.no_grad():
        plain = net(x, 500, text).sample
        with FeatureInheritance(net, "deepcache", key_steps=2):
            assert torch.equal(net(x, 500, text).sample, plain)
            torch.testing.assert_close(net(x, 499, text).sample, plain, rtol=0.2, atol=0.2)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("best", "rules must be one of 'a_sdm', 'encoder', .*, got 'best'"),
        ([], "rules must hold at least one rule, got none"),
        (Rule("down"), r"match must name a block of the UNet \(conv_in, down_blocks.0, .*up_blocks.1\), got 'down'"),
        (Rule("*.ff", "unit"), "match must name a unit of the UNet .*, got '.*ff'"),
        ([Rule("mid_block"), Rule("*.resnets.0", "unit")], "rules must not overlap, got mid_block.resnets.0 by"),
        ([Rule("*.resnets.0", "unit"), Rule("mid_block")], "rules must not overlap, got mid_block by"),
        ([Rule("*", "layer"), Rule("*", "unit")], "rules must not overlap"),
        (Rule("mid_block", key_steps=dense_ends(2)), "model must be a pipeline with a scheduler for key_steps that"),
    ],
)
def test_bad_rules(unet, rules, message):
    with pytest.raises(ValueError, match=message):
        FeatureInheritance(unet, rules)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Rule("*", "part"), "level must be one of 'block', 'layer', 'unit', got 'part'"),
        (lambda: Rule("*", "unit", keep="sum"), "keep must be one of 'increment', 'output', got 'sum'"),
        (lambda: Rule("*", keep="increment"), "keep must be 'output' at level 'block'"),
        (lambda: Rule("*", key_steps=[1, 2]), r"key_steps must hold step 0, got \[1, 2\]"),
        (lambda: Rule("*", key_steps=0), "key_steps must be >= 1, got 0"),
        (lambda: window(3, 2, 1), "last must be >= 3, got 2"),
        (lambda: dense_ends(2, 0.7), "share must be >= 0 and <= 0.5, got 0.7"),
        (lambda: FeatureInheritance(plain_unet(), Rule("*"), key_steps=2), "key_steps belong to each rule"),
    ],
)
def test_bad_parameters(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.bad_input
def test_bad_models_and_uses(unet):
    with pytest.raises(TypeError, match="model must be, or have as unet, a UNet with conv_in.*, got Linear"):
        FeatureInheritance(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="must call the network once a step, got HeunDiscreteScheduler of order 2"):
        enable(pipeline(unet, HeunDiscreteScheduler))
    pipe = pipeline(unet)
    late = FeatureInheritance(pipe, "deep", key_steps=[0, 7])
    with late, pytest.raises(ValueError, match="below the number of steps, 5, got 7"):
        sample(pipe, 5)
    net = copy.deepcopy(unet).train()
    with pytest.raises(RuntimeError, match="cannot be trained"), FeatureInheritance(net, "deep", key_steps=2):
        net(torch.zeros(1, 3, 8, 8), 5)


def test_of_units_within_each_other_the_outer_inherits():
    net = stable()
    (both,) = parts_of(net, [Rule("*.attentions.*|*.attn1", "unit")])
    (outer,) = parts_of(net, [Rule("*.attentions.?", "unit")])
    assert both == outer
