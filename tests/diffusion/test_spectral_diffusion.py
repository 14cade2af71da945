"""Wavelet gates against PyWavelets and stock layers, the spectral loss against closed forms, the Wiener gain."""

import copy

import numpy as np
import pytest
import pywt
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DConditionModel, UNet2DModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional as F

from hadamard.diffusion import (
    SpectralDistillation,
    SpectralUNet2DConditionModel,
    SpectralUNet2DModel,
    WaveletGatingDown,
    WaveletGatingUp,
    make_spectral_unet,
    narrow,
    profile,
    sdxl_variant,
    spectral_weight,
    wiener_gain,
)
from hadamard.spectral import haar2d, ihaar2d

BLOCKS = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
LDM = {"_class_name": "UNet2DModel", "sample_size": 64, "block_out_channels": (224, 448, 672, 896),
       "layers_per_block": 2, "norm_num_groups": 32, "attention_head_dim": 32,
       "down_block_types": ("DownBlock2D", *["AttnDownBlock2D"] * 3),
       "up_block_types": (*["AttnUpBlock2D"] * 3, "UpBlock2D")}  # fmt: skip
SD = {"_class_name": "UNet2DConditionModel", "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280),
      "cross_attention_dim": 768, "norm_num_groups": 32, "attention_head_dim": 8,
      "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
      "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)}  # fmt: skip


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


def small(width=8, **more):
    return UNet2DModel(8, block_out_channels=(width, 2 * width), norm_num_groups=4, attention_head_dim=4,
                       layers_per_block=1, **BLOCKS, **more).eval()  # fmt: skip


def fixed(layer, logits, kernel):
    """The layer with gates of these logits whatever it sees, and this kernel."""
    nn.init.zeros_(layer.gate[2].weight)
    with torch.no_grad():
        layer.gate[2].bias.copy_(torch.tensor(logits).repeat_interleave(layer.gate[2].bias.numel() // 4))
        layer.conv.weight.copy_(kernel)
    nn.init.zeros_(layer.conv.bias)
    return layer


LL_ONLY = [40.0, -200.0, -200.0, -200.0]


def test_with_the_gate_of_the_means_open_down_is_pooling_and_up_is_repetition():
    x = torch.randn(2, 3, 6, 4)
    down = fixed(WaveletGatingDown(3, kernel_size=1), LL_ONLY, torch.eye(3)[..., None, None])
    torch.testing.assert_close(down(x), 2 * F.avg_pool2d(x, 2))
    up = fixed(WaveletGatingUp(3, kernel_size=1), LL_ONLY, torch.eye(3).repeat(4, 1)[..., None, None])
    torch.testing.assert_close(up(x), F.interpolate(x, scale_factor=2.0) / 2)


def test_bands_are_those_of_pywavelets_each_with_its_gate():
    x = torch.randn(1, 1, 8, 6, dtype=torch.float64)
    logits = [0.3, -1.0, 0.7, 2.0]
    ll, (lh, hl, hh) = pywt.dwt2(x[0, 0].numpy(), "haar")
    g = 1 / (1 + np.exp(-np.array(logits)))
    down = fixed(WaveletGatingDown(1, kernel_size=1, dtype=torch.float64), logits, torch.ones(1, 1, 1, 1))
    np.testing.assert_allclose(
        down(x)[0, 0].detach().numpy(), g[0] * ll + g[1] * lh + g[2] * hl + g[3] * hh, atol=1e-12
    )
    up = fixed(WaveletGatingUp(1, kernel_size=1, dtype=torch.float64), logits, torch.ones(4, 1, 1, 1))
    whole = pywt.idwt2((g[0] * x[0, 0], (g[1] * x[0, 0], g[2] * x[0, 0], g[3] * x[0, 0])), "haar")
    np.testing.assert_allclose(up(x)[0, 0].detach().numpy(), whole, atol=1e-12)


def test_gates_written_out():
    down = WaveletGatingDown(8, 4, reduction=2, kernel_size=1)
    x = torch.randn(2, 8, 4, 4)
    for sample in range(2):
        hidden = F.silu(down.gate[0].weight @ x[sample].mean((1, 2)) + down.gate[0].bias)
        g = (down.gate[2].weight @ hidden + down.gate[2].bias).sigmoid()
        a, b, c, d = x[sample, :, ::2, ::2], x[sample, :, ::2, 1::2], x[sample, :, 1::2, ::2], x[sample, :, 1::2, 1::2]
        bands = [(a + b + c + d) / 2, (a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2]
        mixed = sum(g[8 * i : 8 * i + 8, None, None] * band for i, band in enumerate(bands))
        torch.testing.assert_close(down(x)[sample], down.conv(mixed))


def test_undoes_what_it_did():
    x = torch.randn(2, 3, 8, 4, dtype=torch.float64)
    torch.testing.assert_close(ihaar2d(haar2d(x)), x, atol=1e-12, rtol=0)
    y = torch.randn(2, 4, 3, 4, 2, dtype=torch.float64)
    torch.testing.assert_close((haar2d(x) * y).sum(), (x * ihaar2d(y)).sum())


@pytest.mark.parametrize(("h", "w"), [(8, 8), (7, 8), (5, 7), (1, 2)])
def test_sizes_and_arguments_are_those_of_the_stock_layers(h, w):
    x = torch.randn(2, 8, h, w)
    stock, ours = Downsample2D(8, use_conv=True, out_channels=4), WaveletGatingDown(8, 4)
    assert ours(x).shape == stock(x).shape == (2, 4, (h + 1) // 2, (w + 1) // 2)
    stock, ours = Upsample2D(4, use_conv=True, out_channels=8), WaveletGatingUp(4, 8)
    half = torch.randn(2, 4, (h + 1) // 2, (w + 1) // 2)
    assert ours(half, (h, w)).shape == stock(half, (h, w)).shape == x.shape
    assert ours(half).shape == stock(half).shape


@pytest.mark.parametrize("kind", [WaveletGatingDown, WaveletGatingUp])
def test_a_layer(kind):
    layer = kind(4, 6, dtype=torch.float64)
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    other = kind(4, 6, dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    single = layer.float()
    torch.testing.assert_close(
        single(x.float().contiguous(memory_format=torch.channels_last)), layer.double()(x).float(), atol=1e-5, rtol=1e-4
    )
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x.float()).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x.float()[:1]), layer(x.float())[:1])
    with torch.device("meta"):
        assert kind(4, 6)(torch.empty(1, 4, 4, 4)).shape[1] == 6


@pytest.mark.bad_input  # the compiler cannot look through checks of annotations
def test_compiles():
    down, up = WaveletGatingDown(4), WaveletGatingUp(4)
    x = torch.randn(1, 4, 5, 4)
    whole = torch.compile(lambda x: up(down(x), (5, 4)), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(whole(x), up(down(x), (5, 4)))


def test_unets_save_and_load(tmp_path):
    unet = make_spectral_unet(small(), gate_kernel_size=1, gate_reduction=2).eval()
    x = torch.randn(2, 3, 8, 8)
    unet.save_pretrained(tmp_path / "unet")
    again = SpectralUNet2DModel.from_pretrained(tmp_path / "unet").eval()
    assert again.config.gate_kernel_size == 1
    assert again.config._class_name == "SpectralUNet2DModel"
    torch.testing.assert_close(again(x, 5).sample, unet(x, 5).sample)
    assert type(again.down_blocks[0].downsamplers[0]) is WaveletGatingDown
    assert type(again.up_blocks[0].upsamplers[0]) is WaveletGatingUp
    torch.testing.assert_close(copy.deepcopy(unet)(x, 5).sample, unet(x, 5).sample)
    pipe = DDIMPipeline(unet, DDIMScheduler())
    pipe.save_pretrained(tmp_path / "pipe")
    given = SpectralUNet2DModel.from_pretrained(tmp_path / "pipe" / "unet")
    loaded = [DDIMPipeline.from_pretrained(tmp_path / "pipe", **more) for more in ({}, {"unet": given})]
    made = []
    for p in (pipe, *loaded):
        p.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": 2, "output_type": "np"}
        made.append(p(generator=torch.Generator().manual_seed(0), **options).images)
    np.testing.assert_allclose(made[1], made[0], atol=1e-5)
    np.testing.assert_allclose(made[2], made[0], atol=1e-5)


def test_conditional_unets_save_and_load_and_take_any_size(tmp_path):
    config = narrow(SD, 8, sample_size=8, cross_attention_dim=8, attention_head_dim=2)
    unet = make_spectral_unet(config).eval()
    assert isinstance(unet, SpectralUNet2DConditionModel)
    unet.save_pretrained(tmp_path)
    again = SpectralUNet2DConditionModel.from_pretrained(tmp_path).eval()
    x, text = torch.randn(1, 4, 9, 13), torch.randn(1, 3, 8)
    torch.testing.assert_close(again(x, 5, text).sample, unet(x, 5, text).sample)
    assert again(x, 5, text).sample.shape == x.shape


def test_gradients_reach_every_weight():
    unet = make_spectral_unet(small())
    unet(torch.randn(2, 3, 8, 8), torch.tensor([3, 900])).sample.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unet.parameters())
    assert unet.down_blocks[0].downsamplers[0].gate[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    "config", [LDM, *(pytest.param(c, marks=pytest.mark.slow) for c in (SD, sdxl_variant(320, (0, 2, 10))))]
)
def test_costs_at_full_width_on_meta(config):
    with torch.device("meta"):
        gated, narrower = make_spectral_unet(config), make_spectral_unet(config, 64)
    plain, ours, less = (profile(one, 32) for one in (config, gated, narrower))
    assert plain.macs < ours.macs < 1.001 * plain.macs
    assert plain.macs > 8 * less.macs


def test_stable_diffusions_blocks():
    config = sdxl_variant(64, (0, 1))
    with torch.device("meta"):
        gated = make_spectral_unet(config)
    plain, ours = profile(config, 16), profile(gated, 16)
    assert plain.macs < ours.macs < 1.02 * plain.macs
    assert profile({**gated.config, "_class_name": type(gated).__name__}, 16) == ours


def test_narrow():
    assert narrow(sdxl_variant(320, (0, 2, 10)), 64)["attention_head_dim"] == (1, 2, 4)  # 64 channels each
    assert narrow(SD, 64)["attention_head_dim"] == 8
    made = narrow(small(), 6)
    assert (made["norm_num_groups"], made["attention_head_dim"], made["block_out_channels"]) == (3, 2, (6, 12))
    assert UNet2DModel.from_config(made)(torch.randn(1, 3, 8, 8), 1).sample.shape == (1, 3, 8, 8)
    assert narrow(small(), 8, dropout=0.5)["dropout"] == 0.5


def test_spectral_weight_is_the_power_of_the_amplitudes():
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    amplitude = torch.fft.fft2(x).abs().mean(1)
    w = amplitude.clamp_min(0.2 * amplitude.amax((1, 2), keepdim=True)) ** -1
    w = w / w.mean((1, 2), keepdim=True)
    torch.testing.assert_close(spectral_weight(x, floor=0.2)[:, 0], w[..., :5])
    torch.testing.assert_close(spectral_weight(x, alpha=0.0), torch.ones(2, 1, 6, 5, dtype=torch.float64))
    smaller = F.avg_pool2d(x, 2)
    torch.testing.assert_close(spectral_weight(x, (3, 4)), spectral_weight(smaller))
    scaled = spectral_weight(7 * x)
    torch.testing.assert_close(scaled, spectral_weight(x))


def test_spectral_weight_of_nothing_is_flat_and_of_a_constant_bounded():
    assert torch.equal(spectral_weight(torch.zeros(1, 1, 4, 4)), torch.ones(1, 1, 4, 3))
    w = spectral_weight(torch.ones(1, 1, 4, 4))
    assert w.isfinite().all()
    assert w[0, 0, 1, 1] / w[0, 0, 0, 0] == pytest.approx(1000)
    assert spectral_weight(torch.rand(1, 1, 4, 4).half()).dtype == torch.float32
    assert not spectral_weight(torch.rand(1, 1, 4, 4, requires_grad=True)).requires_grad


def batch():
    clean, noise = torch.rand(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    return clean, noise, (clean + noise, torch.tensor([10, 500]))


def test_the_losses_by_hand():
    teacher, student = small(16), make_spectral_unet(small(), 8)
    clean, noise, call = batch()
    compare = SpectralDistillation(teacher, student, ["mid_block"], alpha=-0.5, floor=0.01)
    kept = []
    for net in (teacher, student):
        hook = net.mid_block.register_forward_hook(lambda _, __, out: kept.append(out))
        kept.append(net(*call).sample)
        hook.remove()
    mid_t, out_t, mid_s, out_s = kept
    pairs = [(compare.align["mid_block"](mid_s), mid_t), (out_s, out_t)]
    spatial = sum((a - b).square().mean() / b.square().mean() for a, b in pairs)
    frequency = 0
    for (a, b), x0 in zip(pairs, (F.avg_pool2d(clean, 2), clean)):
        amplitude = torch.fft.fft2(x0).abs().mean(1, keepdim=True)
        w = amplitude.clamp_min(0.01 * amplitude.amax((2, 3), keepdim=True)) ** -0.5
        error = w / w.mean((2, 3), keepdim=True) * torch.fft.fft2(a - b, norm="ortho").abs().square()
        frequency = frequency + error.mean() / b.square().mean()
    found = compare(*call, target=noise, x0=clean)
    torch.testing.assert_close(found.task, F.mse_loss(out_s, noise))
    torch.testing.assert_close(found.spatial, spatial)
    torch.testing.assert_close(found.frequency, frequency)
    torch.testing.assert_close(found.loss, found.task + 0.1 * spatial + 0.1 * frequency)


def test_with_alpha_zero_space_and_frequencies_agree():
    teacher = small(16)
    clean, noise, call = batch()
    found = SpectralDistillation(teacher, make_spectral_unet(teacher, 8), alpha=0.0)(*call, target=noise, x0=clean)
    torch.testing.assert_close(found.frequency, found.spatial)


def test_the_teacher_itself_has_nothing_to_learn():
    teacher = small()
    clean, noise, call = batch()
    found = SpectralDistillation(teacher, copy.deepcopy(teacher))(*call, target=noise, x0=clean)
    assert found.spatial == found.frequency == 0
    assert found.loss == found.task


def test_distillation_leaves_the_teacher_alone_and_trains_the_rest():
    teacher = small(16)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    student = make_spectral_unet(teacher, 8)
    compare = SpectralDistillation(teacher, student)
    assert set(compare.state_dict()) == {f"align.{n}.{w}" for n in ("down_blocks-0", "down_blocks-1", "mid_block",
        "up_blocks-0", "up_blocks-1") for w in ("weight", "bias")}  # fmt: skip
    clean, noise, call = batch()
    optimizer = torch.optim.Adam([*student.parameters(), *compare.parameters()], 1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        found = compare(*call, target=noise, x0=clean)
        found.loss.backward()
        optimizer.step()
        losses.append(float(found.loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert not any(m._forward_hooks for net in (teacher, student) for m in net.modules())
    shared = compare.taught(*call)
    assert torch.equal(
        compare(*call, target=noise, x0=clean, taught=shared).loss, compare(*call, target=noise, x0=clean).loss
    )


def test_distils_in_half_precision_with_a_text():
    config = narrow(SD, 8, sample_size=8, cross_attention_dim=8, attention_head_dim=2)
    teacher, student = UNet2DConditionModel.from_config(config).eval(), make_spectral_unet(config, 4)
    compare = SpectralDistillation(teacher, student)
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = compare(x, torch.tensor([10]), text, target=torch.randn_like(x), x0=x)
    found.loss.backward()
    assert found.frequency.dtype == torch.float32
    assert found.loss.isfinite()


def test_taps_of_other_networks_need_inputs():
    teacher, student = (nn.Sequential(nn.Conv2d(1, n, 3), nn.Conv2d(n, 1, 3)) for n in (4, 2))
    compare = SpectralDistillation(teacher, student, ["0"], inputs=((torch.empty(1, 1, 8, 8, device="meta"),), {}))
    assert compare.align["0"].weight.shape == (4, 2, 1, 1)


def test_wiener_gain_is_the_least_squares_filter():
    """Against the projection of the signal on the noisy one: both by the covariance, in space."""
    n, a = 6, 0.3
    lags = (torch.arange(n, dtype=torch.float64)[:, None] - torch.arange(n)) % n
    C = torch.exp(-torch.minimum(lags, n - lags))
    W = a**0.5 * C @ torch.linalg.inv(a * C + (1 - a) * torch.eye(n, dtype=torch.float64))
    F_ = torch.fft.fft(torch.eye(n, dtype=torch.complex128), norm="ortho")
    power = (F_ @ C.to(F_.dtype) @ F_.mH).diagonal().real
    torch.testing.assert_close(wiener_gain(a, power), (F_ @ W.to(F_.dtype) @ F_.mH).diagonal().real)


def test_wiener_gain_at_the_ends():
    power = torch.tensor([0.0, 1.0, 4.0])
    gain = wiener_gain(torch.tensor([0.0, 0.5, 1.0]), power)
    torch.testing.assert_close(gain, torch.tensor([[0.0, 0, 0], [0, 0.5**0.5, 0.5**0.5 * 1.6], [0, 1, 1]]))
    levels = torch.tensor([0.2, 0.9], dtype=torch.float64)
    assert torch.autograd.gradcheck(wiener_gain, (levels, (power.double() + 1).requires_grad_()))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: WaveletGatingDown(0), "channels must be >= 1, got 0"),
        (lambda: WaveletGatingDown(4, kernel_size=5), "kernel_size must be one of 1, 3, got 5"),
        (lambda: WaveletGatingUp(4, reduction=0), "reduction must be >= 1, got 0"),
        (lambda: WaveletGatingUp(4, -1), "out_channels must be >= 1, got -1"),
        (lambda: WaveletGatingDown(4)(torch.ones(1, 3, 4, 4)), r"must have shape \(B, 4, H, W\), got \(1, 3, 4, 4\)"),
        (lambda: WaveletGatingUp(4)(torch.ones(4, 4, 4)), r"must have shape \(B, 4, H, W\), got \(4, 4, 4\)"),
        (lambda: WaveletGatingUp(4)(torch.ones(1, 4, 4, 4), (9, 8)), r"at most \(8, 8\), twice the input's"),
        (lambda: make_spectral_unet(nn.Linear(1, 1)), "unet must be a UNet2DModel or UNet2DConditionModel"),
        (lambda: make_spectral_unet({"_class_name": "UNet1DModel"}), "got UNet1DModel"),
        (lambda: make_spectral_unet(small(), 8, down_block_types=("ResnetDownsampleBlock2D", "DownBlock2D")),
            "got ResnetBlock2D in ResnetDownsampleBlock2D"),
        (lambda: SpectralUNet2DModel(8, block_out_channels=(8, 8), norm_num_groups=4,
            down_block_types=("SkipDownBlock2D",) * 2, up_block_types=("SkipUpBlock2D",) * 2), "got FirDownsample2D"),
        (lambda: narrow(LDM | {"block_out_channels": (2, 3)}, 3), r"levels. ratios of \(2, 3\) channels, got 3"),
        (lambda: narrow(LDM, 0), "width must be >= 1, got 0"),
        (lambda: narrow({"x": 1}, 8), "config must be a UNet or the configuration of one, got dict"),
        (lambda: spectral_weight(torch.full((1, 1, 4, 4), float("nan"))), "x0 must be finite"),
        (lambda: spectral_weight(torch.ones(1, 1, 4, 4), floor=0.0), "floor must be > 0"),
        (lambda: SpectralDistillation(small(), small(), ["nowhere"]), "taps must name modules of both"),
        (lambda: SpectralDistillation(small(), small(), frequency_weight=-1), "frequency_weight must be >= 0"),
        (lambda: SpectralDistillation(small(), small(), ["time_embedding"]), "got .* at time_embedding"),
        (lambda: wiener_gain(1.5, torch.ones(2)), "alpha_bar must be >= 0 and <= 1, got 1.5"),
        (lambda: wiener_gain(0.5, -torch.ones(2)), "power must be >= 0"),
    ],
)  # fmt: skip
def test_bad_input(act, message):
    with pytest.raises((ValueError, TypeError), match=message):
        act()


@pytest.mark.bad_input
def test_taps_of_other_sizes_are_listed():
    strided = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.Conv2d(2, 1, 3))
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 1, 3))
    with pytest.raises(ValueError, match=r"0: \(1, 2, 6, 6\) and \(1, 2, 3, 3\)"):
        SpectralDistillation(plain, strided, ["0"], inputs=((torch.empty(1, 1, 8, 8, device="meta"),), {}))
