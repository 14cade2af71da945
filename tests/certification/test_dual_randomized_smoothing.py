"""The radius from closed forms and brute force, the votes, the bounds, and what no certificate may be based on."""

import math
from statistics import NormalDist

import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from hadamard.certification import (
    DualSmooth,
    RandomizedSmoothing,
    SplitNoise,
    binomial_lower,
    dual_radius,
)
from hadamard.claims.layers.orthogonal_conv_training import pgd
from hadamard.results import Certificate

F64 = torch.float64
quantile = NormalDist().inv_cdf


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def score(p_l, p_r, d_l, d_r):
    """Least total share that two half-spaces leave the class after changes of these norms, at sigma 1."""
    ndtri, ndtr = torch.special.ndtri, torch.special.ndtr
    return ndtr(ndtri(p_l) - d_l) + ndtr(ndtri(p_r) - d_r)


def shares(count=300):
    p = torch.rand(4 * count, 2, dtype=F64, generator=seeded())
    return p[p.sum(1) > 1.02][:count].T


class Linear(nn.Module):
    """A half-space: class 1 where ``w.x`` exceeds ``t``."""

    def __init__(self, w, t=0.0):
        super().__init__()
        self.w, self.t = w, t

    def forward(self, x):
        s = (x * self.w).flatten(1).sum(1) - self.t
        return torch.stack([-s, s], 1)


# The radius


def test_equal_shares_give_sqrt_2_times_the_plain_radius():
    p = torch.linspace(0.51, 0.9999, 50, dtype=F64)
    assert torch.allclose(dual_radius(p, p, 0.3), math.sqrt(2) * 0.3 * torch.special.ndtri(p), rtol=1e-12)


def test_law_of_the_dimension():
    """Noise of norm 1 in each space: twice the plain radius, both falling with the root of the number of pixels."""
    d = torch.tensor([64.0, 256, 4096], dtype=F64)
    dual = torch.stack([dual_radius(0.9, 0.9, 1 / math.sqrt(n / 2)) for n in d])
    assert torch.allclose(dual, 2 * quantile(0.9) / d.sqrt(), rtol=1e-12)
    m, n = 48, 16  # halves of unequal size
    expected = 2 * quantile(0.9) / math.sqrt(m + n)
    assert float(dual_radius(0.9, 0.9, m**-0.5, n**-0.5)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sigmas", [(1.0, 1.0), (0.5, 1.5)])
def test_radius_is_that_of_brute_force_over_the_angle(sigmas):
    """Half-spaces attain it: safe just inside at every angle, lost just outside at one."""
    p_l, p_r = shares()
    r = dual_radius(p_l, p_r, *sigmas)
    angles = torch.linspace(0, math.pi / 2, 2001, dtype=F64)[:, None]

    def least(scale):
        d_l, d_r = scale * r * angles.cos() / sigmas[0], scale * r * angles.sin() / sigmas[1]
        return score(p_l, p_r, d_l, d_r).amin(0)

    assert bool((least(0.999) > 1).all())
    assert bool((least(1.001) < 1).all())


@pytest.mark.parametrize(("p_l", "p_r", "sound", "published"), [(0.99, 0.60, 1.824, 2.340), (0.999, 0.5, 2.185, 3.090)])
def test_published_root_of_squares_is_not_sound(p_l, p_r, sound, published):
    """The radius of the paper's code for CIFAR-10 is broken by an equal change of both halves; ours is not."""
    quadrature = math.hypot(quantile(p_l), quantile(p_r))
    assert quadrature == pytest.approx(published, abs=1e-3)
    ours = float(dual_radius(p_l, p_r, 1.0))
    assert ours == pytest.approx(sound, abs=1e-3)
    p_l, p_r = torch.tensor(p_l, dtype=F64), torch.tensor(p_r, dtype=F64)
    assert score(p_l, p_r, *[0.999 * quadrature / math.sqrt(2)] * 2) < 1
    assert score(p_l, p_r, *[0.999 * ours / math.sqrt(2)] * 2) > 1


def test_published_clipping_at_one_half_is_not_sound():
    clipped = quantile(0.95) / math.sqrt(2)  # the other branch's share of 0.3 is counted as one half
    assert clipped == pytest.approx(1.163, abs=1e-3)
    ours = float(dual_radius(0.95, 0.3, 1.0))
    assert ours == pytest.approx(0.792, abs=1e-3)
    p = torch.tensor([0.95, 0.3], dtype=F64)
    assert score(*p, *[0.999 * clipped / math.sqrt(2)] * 2) < 1
    assert score(*p, *[0.999 * ours / math.sqrt(2)] * 2) > 1


def test_no_radius_without_a_majority_and_at_the_ends():
    p = torch.tensor([0.5, 0.4, 0.0, 1.0, 0.0, 1.0], dtype=F64)
    q = torch.tensor([0.5, 0.55, 1.0, 0.0, 0.9, 0.3], dtype=F64)
    assert dual_radius(p, q, 1.0).tolist() == [0, 0, 0, 0, 0, math.inf]


def test_bounds_on_other_classes_only_help():
    p_l, p_r = shares(40)
    plain = dual_radius(p_l, p_r, 1.0)
    all_left = dual_radius(p_l, p_r, 1.0, pB=(1 - p_l[:, None], 1 - p_r[:, None]))
    assert bool((all_left <= plain + 1e-12).all())
    assert torch.allclose(all_left, plain, rtol=4e-3)
    halved = torch.stack([(1 - p_l) / 2] * 2, -1), torch.stack([(1 - p_r) / 2] * 2, -1)
    assert bool((dual_radius(p_l, p_r, 1.0, pB=halved) > plain * 1.01).all())


def test_bounds_on_other_classes_against_brute_force():
    """Three half-spaces a branch: the class is ahead of both others at every angle, just inside."""
    p_l, p_r = torch.tensor(0.6, dtype=F64), torch.tensor(0.7, dtype=F64)
    q_l, q_r = torch.tensor([0.3, 0.1], dtype=F64), torch.tensor([0.05, 0.25], dtype=F64)
    r = dual_radius(p_l, p_r, 0.5, 1.0, pB=(q_l, q_r))
    angles = torch.linspace(0, math.pi / 2, 4001, dtype=F64)
    ndtri, ndtr = torch.special.ndtri, torch.special.ndtr

    def least(scale):
        u, v = scale * r * angles.cos() / 0.5, scale * r * angles.sin()
        others = ndtr(ndtri(q_l)[:, None] + u) + ndtr(ndtri(q_r)[:, None] + v)
        return float((ndtr(ndtri(p_l) - u) + ndtr(ndtri(p_r) - v) - others).min())

    assert least(0.9999) > 0
    assert least(1.004) < 0


# The bounds


@pytest.mark.parametrize(("k", "n"), [(0, 7), (7, 7), (5, 7), (990, 1000), (1, 100_000)])
def test_binomial_bound_is_clopper_pearson(k, n):
    expected = binomtest(k, n, alternative="greater").proportion_ci(0.999, method="exact").low
    assert float(binomial_lower(torch.tensor(k), n, 0.001)) == pytest.approx(expected, rel=1e-9)
    if k == n:
        assert float(binomial_lower(torch.tensor(k), n, 0.001)) == pytest.approx(0.001 ** (1 / n), rel=1e-12)


def test_plain_smoothing_is_that_of_cohen():
    """A constant classifier has all the votes: sigma times the quantile of alpha^(1/n)."""
    always = Linear(torch.zeros(1, 4, 4), t=-1.0)
    label, radius = RandomizedSmoothing(always, 2, 0.5).certify(torch.zeros(1, 4, 4), n=1000, alpha=0.01)
    assert (label, radius) == (1, pytest.approx(0.5 * quantile(0.01 ** (1 / 1000)), rel=1e-9))
    label, radius = DualSmooth(always, always, 2, 0.5).certify(torch.zeros(1, 4, 4), n=1000, alpha=0.01)
    assert (label, radius) == (1, pytest.approx(0.5 * math.sqrt(2) * quantile(0.005 ** (1 / 500)), rel=1e-9))


# The halves


@pytest.mark.parametrize("fill", ["nearest", "mean", "maxpool", lambda x, mask: x.mean((2, 3), keepdim=True) + 0 * x])
@pytest.mark.parametrize("split", ["checkerboard", "mask"])
def test_dropped_pixels_have_no_say(fill, split):
    mask = torch.rand(6, 8, generator=seeded(1)) < 0.4 if split == "mask" else split
    left, right = (SplitNoise(0.3, i, mask, fill) for i in (0, 1))
    assert bool((left.mask(6, 8) ^ right.mask(6, 8)).all())
    x, other = torch.rand(2, 4, 3, 6, 8, generator=seeded(2))
    for branch in (left, right):
        kept = branch.mask(6, 8)
        changed = torch.where(kept, x, other)
        assert torch.equal(branch(x, seeded(3)), branch(changed, seeded(3)))
        assert not torch.equal(branch(x, seeded(3)), branch(torch.where(kept, other, x), seeded(3)))


def test_checkerboard_takes_a_diagonal_of_each_block():
    mask = SplitNoise(1.0, 0).mask(4, 6)
    blocks = mask.unfold(0, 2, 2).unfold(1, 2, 2)
    assert bool((blocks == torch.eye(2, dtype=torch.bool)).all())
    assert int(SplitNoise(1.0, 1).mask(3, 3).sum()) == 4  # odd sizes are split, too


def test_holes_are_filled_from_the_noisy_pixels():
    x = torch.rand(1, 1, 4, 4, generator=seeded())
    mask = SplitNoise(1.0, 0).mask(4, 4)
    for fill in ("nearest", "mean", "maxpool"):
        noisy = SplitNoise(0.5, 0, fill=fill)(x, seeded())[0, 0]
        assert float((noisy - x[0, 0])[mask].abs().min()) > 1e-3
        for i, j in (~mask).nonzero().tolist():
            around = [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
            near = torch.stack([noisy[r, c] for r, c in around if 0 <= r < 4 and 0 <= c < 4])
            block = noisy[i // 2 * 2 :, j // 2 * 2 :][:2, :2][torch.eye(2, dtype=torch.bool)]
            expected = {"nearest": near, "mean": near.mean()[None], "maxpool": block.max()[None]}[fill]
            assert float((expected - noisy[i, j]).abs().min()) < 1e-6, (fill, i, j)


def test_noise_has_its_standard_deviation_and_the_images_dtype():
    x = torch.zeros(200, 2, 8, 8, dtype=F64)
    noisy = SplitNoise(0.7, 1)(x, seeded())
    assert noisy.dtype == F64
    assert float(noisy[..., SplitNoise(0.7, 1).mask(8, 8)].std()) == pytest.approx(0.7, rel=0.02)


def test_gradient_layout_and_compilation():
    x = torch.rand(2, 3, 4, 4, dtype=F64, generator=seeded(), requires_grad=True)
    for fill in ("nearest", "mean", "maxpool"):
        noise = SplitNoise(0.5, 0, fill=fill)
        assert torch.autograd.gradcheck(lambda z, noise=noise: noise(z, seeded(1)), x)
        assert torch.equal(noise(x, seeded(1)), noise(x.to(memory_format=torch.channels_last), seeded(1)))


@pytest.mark.slow
@pytest.mark.bad_input  # the compiler cannot look through checks of annotations
def test_compiled_noise_is_the_same():
    noise, x = SplitNoise(0.5, 0), torch.rand(2, 3, 4, 4)
    torch.manual_seed(0)
    expected = noise(x)
    torch.manual_seed(0)
    assert torch.allclose(torch.compile(noise, backend="aot_eager")(x), expected)


# The certificate


def half_spaces(sigma, p_l, p_r, size=4):
    """An image at 0 and two half-spaces that give class 1 these shares."""
    masks = [SplitNoise(1.0, i).mask(size, size) for i in (0, 1)]
    nets = [Linear(m / m.sum().sqrt(), -sigma * quantile(p)) for m, p in zip(masks, (p_l, p_r))]
    return torch.zeros(1, size, size), nets


def test_linear_classifiers_get_the_radius_that_theory_gives():
    x, nets = half_spaces(0.5, 0.95, 0.8)
    found = DualSmooth(*nets, 2, 0.5).certify_batch(x[None], n=200_000, batch_size=20_000, generator=seeded())
    exact = float(dual_radius(0.95, 0.8, 0.5))
    assert found.label.tolist() == [1]
    assert 0.97 * exact < float(found.radius) < exact
    assert torch.allclose(found.lower[:, 0], torch.tensor([0.95, 0.8], dtype=F64), atol=0.01)
    assert isinstance(found, Certificate)


def test_radius_exceeds_the_exact_one_no_more_often_than_alpha():
    """500 certificates of one image: failures at alpha = 0.1, that is at most 0.1 and three standard errors."""
    x, nets = half_spaces(0.5, 0.9, 0.7, size=2)
    exact, alpha, runs = float(dual_radius(0.9, 0.7, 0.5)), 0.1, 500
    many = x.expand(runs, *x.shape)
    for runner_up in (False, True):
        found = DualSmooth(*nets, 2, 0.5).certify_batch(
            many, n=200, alpha=alpha, batch_size=50_000, runner_up=runner_up, generator=seeded()
        )
        failed = float((found.radius > exact).double().mean())
        assert failed <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)
    assert float(found.radius.max()) > 0.7 * exact


def trained_like(seed):
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 3))
    for w in net.parameters():
        w.data = torch.randn(w.shape, generator=seeded(seed)) / w.shape[-1] ** 0.5
    return net


def test_attack_within_the_radius_does_not_change_the_vote():
    """Projected gradient ascent on the expected loss under noise finds nothing inside; outside it does."""
    nets, sigma = [trained_like(s) for s in (1, 2)], 0.5
    smooth = DualSmooth(*nets, 3, sigma)
    x = torch.randn(12, 1, 6, 6, generator=seeded(3))
    found = smooth.certify_batch(x, n=20_000, batch_size=20_000, generator=seeded())
    sure = found.label >= 0
    assert int(sure.sum()) >= 3
    branches = [SplitNoise(sigma, i) for i in (0, 1)]

    def expected(z):
        many = z.repeat_interleave(100, 0)
        shares = sum(net(noise(many, seeded(4))).mul(3).softmax(-1) for net, noise in zip(nets, branches))
        return shares.view(len(z), 100, -1).mean(1).log()

    flips = {}
    for scale in (0.999, 6.0):
        flips[scale] = 0
        for image, label, radius in zip(x[sure], found.label[sure], found.radius[sure]):
            attacked = pgd(expected, image[None], label[None], scale * float(radius), 10).detach()
            voted = smooth.predict(attacked[0], 4000, batch_size=4000, generator=seeded(5))
            flips[scale] += voted not in (-1, int(label))
    assert flips[0.999] == 0
    assert flips[6.0] > 0


def test_predict_and_abstention():
    x, nets = half_spaces(0.5, 0.95, 0.8)
    smooth = DualSmooth(*nets, 2, 0.5)
    assert smooth.predict(x, generator=seeded()) == 1
    x, nets = half_spaces(0.5, 0.7, 0.3)
    smooth = DualSmooth(*nets, 2, 0.5)
    assert smooth.predict(x, generator=seeded()) == -1
    assert smooth.certify(x, n=1000, generator=seeded()) == (-1, 0.0)
    found = smooth.certify_batch(x[None], n=1000, generator=seeded())
    assert not found.verified
    assert found.reason == "1 of 1 images have no class that is sure to win"


def test_predict_is_a_two_sided_binomial_test():
    """60 and 61 of 100 votes: p = 0.057 and 0.035."""

    def votes(won):
        order = iter(torch.arange(100) < won)
        return lambda x: torch.stack([torch.zeros(len(x)), torch.stack([next(order) for _ in x]).float() - 0.5], 1)

    x = torch.zeros(1, 2, 2)
    assert RandomizedSmoothing(votes(60), 2, 1.0).predict(x, 100, 0.05) == -1
    assert RandomizedSmoothing(votes(61), 2, 1.0).predict(x, 100, 0.05) == 1
    assert binomtest(60, 100).pvalue > 0.05 > binomtest(61, 100).pvalue


def test_the_votes_that_choose_the_label_do_not_certify_it():
    """The first 10 votes are for class 0, all later ones for class 1: chosen is 0, for which nothing is certified."""
    asked = []

    def turncoat(x):
        asked.append(len(x))
        first = torch.arange(sum(asked) - len(x), sum(asked)) < 10
        return torch.stack([first.float(), 0.5 + 0 * first], 1)

    smooth = RandomizedSmoothing(turncoat, 2, 1.0)
    assert smooth.certify(torch.zeros(1, 2, 2), n0=10, n=1000) == (-1, 0.0)
    assert sum(asked) == 1010


def test_same_seed_same_answer_and_layout_does_not_matter():
    nets = [trained_like(s) for s in (1, 2)]
    smooth = DualSmooth(*nets, 3, 0.4)
    x = torch.randn(4, 1, 6, 6, generator=seeded(3))
    first = smooth.certify_batch(x, n=600, generator=seeded())
    state = torch.get_rng_state()
    again = smooth.certify_batch(x.transpose(2, 3).contiguous().transpose(2, 3), n=600, generator=seeded())
    assert torch.equal(first.radius, again.radius)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first.radius, smooth.certify_batch(x, n=600, generator=seeded(1)).radius)


def test_votes_of_one_image_do_not_mix_with_those_of_another():
    """Batches across images: each image gets all of its votes, whatever the batch size."""
    bright = Linear(torch.ones(1, 4, 4))
    x = torch.stack([torch.full((1, 4, 4), v) for v in (-5.0, 5.0, -5.0)])
    for batch in (1, 7, 1000):
        found = RandomizedSmoothing(bright, 2, 0.1).certify_batch(x, n0=3, n=50, batch_size=batch, generator=seeded())
        assert found.label.tolist() == [0, 1, 0]
        assert torch.allclose(found.lower, torch.full((1, 3), 0.001 ** (1 / 50), dtype=F64))


def test_networks_are_asked_in_evaluation_mode_and_left_as_they_were():
    net = nn.Sequential(nn.Dropout(0.99), nn.Flatten(), nn.Linear(16, 2)).train()
    net[2].eval()
    smooth = RandomizedSmoothing(net, 2, 0.1)
    seen = []
    net[0].register_forward_hook(lambda module, args, y: seen.append(module.training))
    smooth.predict(torch.zeros(1, 4, 4), 10)
    assert seen == [False]
    assert (net.training, net[0].training, net[2].training) == (True, True, False)
    with pytest.raises(RuntimeError):
        smooth.predict(torch.zeros(1, 5, 5), 10)
    assert net[0].training


def test_autocast():
    net = trained_like(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = DualSmooth(net, net, 3, 0.3).certify_batch(torch.zeros(1, 1, 6, 6), n=200, generator=seeded())
    assert found.radius.dtype == F64


# What is refused


IMAGE, NET = torch.zeros(1, 4, 4), Linear(torch.ones(1, 4, 4))
NAN = lambda x: torch.full((len(x), 2), math.nan)  # noqa: E731


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DualSmooth(NET, NET, 2, 0.0), "sigma must be > 0, got 0.0"),
        (lambda: DualSmooth(NET, NET, 1, 0.5), "num_classes must be >= 2, got 1"),
        (lambda: RandomizedSmoothing(NET, 2, -1.0), "sigma must be > 0, got -1.0"),
        (lambda: DualSmooth(NET, NET, 2, 0.5, split="rows"), "split must be one of 'checkerboard', got 'rows'"),
        (lambda: DualSmooth(NET, NET, 2, 0.5, split=torch.ones(4, 4) > 0), "split must leave pixels to both branches"),
        (lambda: DualSmooth(NET, NET, 2, 0.5, fill="zero"), "fill must be one of 'nearest', 'mean', 'maxpool'"),
        (lambda: SplitNoise(1.0, 2), "branch must be one of 0, 1, got 2"),
        (lambda: SplitNoise(1.0, 0, torch.eye(3) > 0)(IMAGE[None]), r"image's size, 4 by 4, got \(3, 3\)"),
        (lambda: SplitNoise(1.0, 0, fill="maxpool")(torch.zeros(1, 1, 3, 4)), "even height and width .* got 3 by 4"),
        (lambda: SplitNoise(1.0, 0, fill=lambda x, m: x[..., :2])(IMAGE[None]), "fill must return a tensor of shape"),
        (lambda: SplitNoise(1.0, 0)(torch.zeros(1, 1, 1, 1)), "at least two pixels"),
        (lambda: DualSmooth(NET, NET, 2, 0.5).certify(IMAGE, n0=1), "n0 must be >= 2, got 1"),
        (lambda: DualSmooth(NET, NET, 2, 0.5).certify(IMAGE, n=0), "n must be >= 2, got 0"),
        (lambda: DualSmooth(NET, NET, 2, 0.5).certify(IMAGE, alpha=1.0), "alpha must be > 0 and < 1, got 1.0"),
        (lambda: DualSmooth(NET, NET, 2, 0.5).certify(IMAGE, batch_size=0), "batch_size must be >= 1, got 0"),
        (lambda: DualSmooth(NET, NET, 2, 0.5).certify(IMAGE[None]), r"x must have 3 dimension\(s\)"),
        (lambda: DualSmooth(NET, NET, 2, 0.5).certify_batch(IMAGE), r"x must have 4 dimension\(s\)"),
        (lambda: DualSmooth(NET, NET, 2, 0.5).certify(IMAGE / 0), "x must be finite"),
        (lambda: DualSmooth(NET, NET, 3, 0.5).certify(IMAGE), r"scores of shape \(50, 3\), got \(50, 2\)"),
        (lambda: DualSmooth(NET, NAN, 2, 0.5).certify(IMAGE), "returned NaN"),
        (lambda: dual_radius(1.1, 0.5, 1.0), "p_l must be >= 0 and <= 1, got 1.1"),
        (lambda: dual_radius(0.9, math.nan, 1.0), "p_r must be >= 0 and <= 1, got nan"),
        (lambda: dual_radius(0.9, 0.9, 1.0, 0.0), "sigma_r must be > 0, got 0.0"),
        (lambda: dual_radius(0.9, 0.9, 1.0, pB=(torch.zeros(2), torch.zeros(3))), "pB must be two tensors"),
        (lambda: binomial_lower(torch.tensor(5), 4, 0.1), "successes must be >= 0 and <= 4"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.bad_input
def test_wrong_types():
    with pytest.raises(TypeError, match=r"x must have a floating dtype, got torch.uint8"):
        DualSmooth(NET, NET, 2, 0.5).certify(IMAGE.byte())
    with pytest.raises(TypeError, match="a base classifier must be callable, got str"):
        RandomizedSmoothing("net", 2, 0.5)
