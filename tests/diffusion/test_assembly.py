"""Lighter UNets, their experts, their distillation and the switch between several."""

import copy

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DConditionModel, UNet2DModel
from torch import nn
from torch.nn import functional as F

from hadamard.diffusion import CondConv2d, Distillation, SwitchUNet, add_experts, assemble
from tests.diffusion.test_a_sdm import condition, stable

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def call(net, kind="sd", x=X, t=500):
    with torch.no_grad():
        return net(x, t, **condition(kind)).sample


def grey(layers=2):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=layers, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_all_layers_give_the_same_network(kind):
    net = stable(kind)
    made = assemble(net, {})
    assert torch.equal(call(made.unet, kind), call(net, kind))
    assert made.removed == ()
    assert all(new == old for new, old in made.origin.items())


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_what_stays_has_its_weights_and_what_it_is_saves_and_loads(kind, tmp_path):
    net, last = stable(kind), 3 if kind == "sd" else 2
    made = assemble(net, {"down_blocks.0": [0], f"up_blocks.{last}": [0, 2]})
    pruned = [
        f"{block}.{part}.1" for block in ("down_blocks.0", f"up_blocks.{last}") for part in ("resnets", "attentions")
    ]
    assert sorted(made.removed) == sorted(name for name, _ in net.named_modules() if name in pruned)
    for new, old in made.origin.items():
        for a, b in zip(made.unet.get_submodule(new).parameters(), net.get_submodule(old).parameters(), strict=True):
            assert torch.equal(a, b)
    assert made.origin[f"up_blocks.{last}.resnets.1"] == f"up_blocks.{last}.resnets.2"
    made.unet.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path)
    torch.testing.assert_close(call(again, kind), call(made.unet, kind))
    assert call(made.unet, kind).shape == X.shape


def test_layers_that_do_nothing_can_go():
    """A layer whose last convolution is zero is the identity; so is the network without it, where its skip is."""
    net = grey(2)
    for block, i in ((net.down_blocks[0], 1), (net.up_blocks[1], 1)):
        for parameter in block.resnets[i].conv2.parameters():
            nn.init.zeros_(parameter)
    first = net.down_blocks[0].resnets[1]
    x = torch.randn(1, 8, 8, 8)
    assert torch.equal(first(x, torch.zeros(1, 32)), x)
    made = assemble(net, {f"down_blocks.{i}": [0] for i in (0, 1)})
    assert made.unet.config.layers_per_block == 1
    assert torch.equal(made.unet.down_blocks[0].resnets[0].conv1.weight, net.down_blocks[0].resnets[0].conv1.weight)


def test_the_middle_can_go():
    net = stable()
    made = assemble(net, {"mid_block": []})
    assert made.unet.mid_block is None
    assert made.removed == ("mid_block",)
    assert call(made.unet).shape == X.shape


def test_it_stays_on_meta_and_leaves_randomness_alone():
    with torch.device("meta"):
        net = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    state = torch.get_rng_state()
    made = assemble(net, {"down_blocks.0": [0], "up_blocks.3": [0, 2], "down_blocks.1": [0]})
    assert made.unet.device.type == "meta"
    assert torch.equal(torch.get_rng_state(), state)
    assert made.unet.config.layers_per_block == (1, 1, 2, 2)
    half = assemble(grey().to(torch.bfloat16), {}).unet
    assert half.dtype == torch.bfloat16


def test_experts_change_nothing_at_first_and_hold_the_kernels_that_went():
    net = stable()
    made = assemble(net, {"down_blocks.0": [0], "down_blocks.1": [0], "down_blocks.2": [0]})
    before = call(made.unet)
    add_experts(made, net)
    torch.testing.assert_close(call(made.unet), before, rtol=0, atol=1e-5)
    conv = made.unet.down_blocks[0].resnets[0].conv1
    assert isinstance(conv, CondConv2d)
    assert torch.equal(conv.weight[1], net.down_blocks[0].resnets[1].conv1.weight)
    assert isinstance(made.unet.down_blocks[3].resnets[0].conv1, nn.Conv2d)  # lost nothing


@pytest.mark.parametrize(("groups", "stride", "experts"), [(1, 1, 4), (2, 2, 3), (1, 1, 1)])
def test_experts_against_one_sample_at_a_time(groups, stride, experts):
    torch.manual_seed(0)
    conv = CondConv2d(4, 6, (3, 5), stride, (1, 2), groups=groups, experts=experts, dtype=torch.float64)
    nn.init.normal_(conv.routing.weight)
    x = torch.randn(3, 4, 9, 8, dtype=torch.float64, requires_grad=True)
    out = conv(x)
    for row, made in zip(x, out):
        r = torch.softmax(conv.routing.weight @ row.mean((1, 2)) + conv.routing.bias, 0)
        kernel = sum(weight * kernel for weight, kernel in zip(r, conv.weight))
        torch.testing.assert_close(F.conv2d(row[None], kernel, conv.bias, stride, (1, 2), groups=groups)[0], made)
    if experts == 1:
        plain = nn.Conv2d(4, 6, (3, 5), stride, (1, 2), groups=groups, dtype=torch.float64)
        plain.load_state_dict({"weight": conv.weight[0], "bias": conv.bias})
        torch.testing.assert_close(plain(x), out)
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(conv, {"weight": w}, (x,)),
                                    (x[:2, :, :4, :5].detach().requires_grad_(), conv.weight))  # fmt: skip


def test_experts_as_a_layer():
    conv = CondConv2d(4, 4, 3, padding="same", experts=3, bias=False)
    other = CondConv2d(4, 4, 3, padding="same", experts=3, bias=False)
    other.load_state_dict(conv.state_dict())
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(conv(x), other(x))
    assert conv(x.to(memory_format=torch.channels_last)).shape == x.shape
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    assert "experts=3" in repr(copy.deepcopy(conv))


@pytest.mark.bad_input  # the compiler cannot look through checks of annotations
def test_experts_compile():
    conv, x = CondConv2d(4, 4, 3, experts=3), torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(torch.compile(conv, fullgraph=True, backend="aot_eager")(x), conv(x))


def test_distillation_is_its_formula_and_leaves_the_teacher_alone():
    teacher, student = stable(), assemble(stable(), {"down_blocks.0": [0]}).unet
    noise = torch.randn_like(X)
    compare = Distillation(teacher, student, output_weight=0.5, features_weight=2.0)
    assert compare.taps == [*(f"down_blocks.{i}" for i in range(4)), "mid_block", *(f"up_blocks.{i}" for i in range(4))]
    found = compare(X, 500, target=noise, **condition("sd"))
    taught, made = call(teacher), call(student)
    torch.testing.assert_close(found.task, F.mse_loss(made, noise))
    torch.testing.assert_close(found.output, F.mse_loss(made, taught))
    torch.testing.assert_close(found.loss, found.task + 0.5 * found.output + 2 * found.features)
    found.loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert student.conv_in.weight.grad is not None
    assert not any(m._forward_hooks for net in (teacher, student) for m in net.modules())
    same = Distillation(teacher, copy.deepcopy(teacher))(X, 500, target=taught, **condition("sd"))
    assert float(same.loss) == 0


def test_features_count_relative_to_the_teachers():
    teacher, student = nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 3))
    x, y = torch.randn(5, 2), torch.randn(5, 3)
    found = Distillation(teacher, student, ["0"])(x, target=y)
    expected = (student(x) - teacher(x)).square().mean() / teacher(x).square().mean()
    torch.testing.assert_close(found.features, expected)


def test_a_switch_gives_each_timestep_to_one():
    light, whole = grey(1), grey(2)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for boundary, t, one in ((0, 0, light), (1000, 999, whole), (600, 600, light), (600, 599, whole)):
            unet = SwitchUNet([light, whole], [boundary])
            assert torch.equal(unet(x, t).sample, one(x, t).sample)
            assert torch.equal(unet(x, torch.tensor([t]), return_dict=False)[0], one(x, t).sample)
    three = SwitchUNet([light, whole, light], [700, 300])
    assert [three.at(t) is whole for t in (700, 699.5, 300, 299)] == [False, True, True, False]


def test_a_switch_stands_in_a_pipeline():
    pipe = DDIMPipeline(grey(2), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    draw = lambda: pipe(num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="np").images  # noqa: E731
    whole, plain = pipe.unet, draw()
    pipe.unet = SwitchUNet([grey(1), whole], [500])
    assert pipe.unet.config is whole.config
    assert pipe.unet.dtype == torch.float32
    assert (draw() != plain).any()
    pipe.unet = SwitchUNet([whole], [])
    assert (draw() == plain).all()
    again = copy.deepcopy(pipe.unet)
    assert again.boundaries == ()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: assemble(stable(), {"down_blocks.9": [0]}), "keep must name blocks of the UNet .*'down_blocks.9'"),
        (lambda: assemble(stable(), {"down_blocks.0": []}), r"keep\['down_blocks.0'\] must hold layers, rising, got"),
        (lambda: assemble(stable(), {"down_blocks.0": [2]}), r"keep\['down_blocks.0'\] must be >= 0 and <= 1, got 2"),
        (lambda: assemble(stable(), {"down_blocks.0": [1, 0]}), "must hold layers, rising"),
        (
            lambda: assemble(stable(), {"up_blocks.3": [0]}),
            "one layer more in up_blocks.3 than in down_blocks.0, got 1",
        ),
        (lambda: assemble(stable(), {"down_blocks.1": [1]}), "keep must leave the layers that change the number of"),
        (lambda: assemble(grey(), {"down_blocks.0": [0]}), "equally many layers in all blocks of a UNet2DModel"),
        (lambda: add_experts(assemble(stable(), {}), stable()), "assembled must have lost a resnet whose kernels"),
        (lambda: add_experts(assemble(stable(), {}), stable(), 1), "experts must be >= 2, got 1"),
        (lambda: CondConv2d(2, 2, 3, experts=0), "experts must be >= 1, got 0"),
        (lambda: CondConv2d.of([]), "convs must hold at least one convolution"),
        (lambda: CondConv2d.of([nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1)]), r"one shape, got .* and, in convs\[1\]"),
        (lambda: CondConv2d.of([nn.Conv2d(2, 2, 3, padding_mode="circular")]), "convs must pad with zeros"),
        (lambda: SwitchUNet([grey()], [3]), "boundaries must be one less than unets, got 1 and 1"),
        (lambda: SwitchUNet([grey()] * 3, [300, 700]), r"boundaries must fall, got \[300, 700\]"),
        (lambda: SwitchUNet([grey(), stable()], [300]), "unets must have the same in_channels"),
        (lambda: Distillation(grey(), grey(), ["none"]), "taps must name modules of both networks"),
        (lambda: Distillation(grey(), grey(), output_weight=-1), "output_weight must be >= 0, got -1"),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()
