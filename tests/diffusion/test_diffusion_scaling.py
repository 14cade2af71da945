"""Costs against hand-made formulas and published counts, laws against losses that follow one exactly."""

import numpy as np
import pytest
import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel, UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from torch import nn

from hadamard.diffusion import (
    ScalingLaw,
    design,
    extrapolation_error,
    pareto_front,
    pixart_variant,
    profile,
    sdxl_variant,
)

SIZES = np.geomspace(1e6, 1e9, 8)
SMALL = {"head_width": 8, "groups": 8, "text_width": 16, "pooled_width": 8}


def small_unet():
    return UNet2DConditionModel(**sdxl_variant(16, (0, 1), **SMALL))


def grid(n=6):
    return np.column_stack([a.ravel() for a in np.meshgrid(np.geomspace(1e6, 1e9, n), np.geomspace(1e8, 1e11, n))])


def two(x):
    return 1.7 + 400 * x[:, 0] ** -0.34 + 410 * x[:, 1] ** -0.28


class TestProfile:
    def test_layers_by_formula(self):
        conv = nn.Conv2d(3, 8, 3, padding=1)
        cost = profile(conv, inputs=((torch.empty(2, 3, 5, 7, device="meta"),), {}))
        assert (cost.parameters, cost.macs) == (3 * 8 * 9 + 8, 2 * 5 * 7 * 3 * 8 * 9)

    def test_attention_is_quadratic_in_tokens(self):
        class Attention(nn.Module):
            def forward(self, x):
                return nn.functional.scaled_dot_product_attention(x, x, x)

        for device in ("meta", "cpu"):
            x = [torch.zeros(1, 2, n, 4, device=device) for n in (8, 16)]
            counts = [profile(Attention(), inputs=((a,), {}), device=device).macs for a in x]
            assert counts == [2 * 2 * n * n * 4 for n in (8, 16)]

    def test_published_counts(self):
        sd = profile({"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768}, 64)
        assert round(sd.parameters / 1e6, 1) == 859.5
        assert round(sd.macs / 1e9, 1) == 401.6
        small, sdxl = (profile(sdxl_variant(320, depth), 32) for depth in ((0, 4, 4), (0, 2, 10)))
        assert [round(c.parameters / 1e6, 1) for c in (small, sdxl)] == [1416.3, 2567.5]
        assert [round(c.macs / 1e9, 1) for c in (small, sdxl)] == [152.6, 213.9]

    @pytest.mark.parametrize("batch", [1, 3])
    def test_meta_is_cpu(self, batch):
        for model in (
            small_unet(),
            PixArtTransformer2DModel(**pixart_variant(16, 2, head_width=8, text_width=8, sample_size=8)),
            UNet2DModel(16, block_out_channels=(8, 8), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                        up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=4, num_class_embeds=3),
        ):  # fmt: skip
            meta = profile(model, 16, 5, batch=batch)
            assert meta == profile(model, 16, 5, batch=batch, device="cpu")
            assert meta.macs == batch * profile(model, 16, 5).macs > 0
            own = sum(p.numel() for p in model.parameters(recurse=False))
            assert sum(p for p, _ in meta.blocks.values()) + own == meta.parameters
            assert sum(m for _, m in meta.blocks.values()) == meta.macs

    def test_the_model_stays_as_it_is(self):
        model = small_unet().train()
        before = {name: t.clone() for name, t in model.state_dict().items()}
        profile(model, 16)
        assert model.training
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())

    def test_a_table(self):
        assert str(profile(small_unet(), 16)).splitlines()[0].startswith("all ")

    @pytest.mark.parametrize(
        ("model", "latent", "error"),
        [
            ({"channels": 3}, 64, "model must be a module or a configuration"),
            ({"_class_name": "NoSuchModel"}, 64, "class of diffusers"),
            (nn.Linear(2, 2), 64, "come with inputs"),
            (sdxl_variant(64), 30, "latent must be a multiple of 4"),
            (sdxl_variant(64), (8, 8, 8), "latent must be one number or two"),
            (sdxl_variant(64), 0, "latent must be >= 1"),
        ],
    )
    def test_bad_input(self, model, latent, error):
        with pytest.raises((TypeError, ValueError), match=error):
            profile(model, latent)


class TestDesigns:
    def test_a_small_one_runs(self):
        out = small_unet()(
            torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 3, 16),
            added_cond_kwargs={"text_embeds": torch.zeros(1, 8), "time_ids": torch.zeros(1, 6)},
        ).sample  # fmt: skip
        assert out.shape == (1, 4, 8, 8)

    def test_design_keeps_to_the_budget(self):
        kinds = {"channels": (32, 64), "transformer_depths": [(0, 1), (0, 2)], "latent": 8}
        everything = design(**kinds)
        assert len(everything) == 4
        assert [d.cost.macs for d in everything] == sorted((d.cost.macs for d in everything), reverse=True)
        limit = everything[1].cost.parameters
        assert all(d.cost.parameters <= limit for d in design(parameters=limit, **kinds))
        assert design(macs=1, **kinds) == []

    @pytest.mark.parametrize(
        ("channels", "depth", "error"),
        [
            (320, (0, 4, 0), "transformer_depth must end"),
            (320, (), "transformer_depth must end"),
            (32, (1, 1), "got 32 in level 0"),
            (48, (0, 0, 1), "groups of a norm, got 48 in level 0"),
            (0, (0, 1), "channels must be >= 1"),
            (320, (0, -1), "transformer_depth must be >= 0"),
        ],
    )
    def test_bad_input(self, channels, depth, error):
        with pytest.raises(ValueError, match=error):
            sdxl_variant(channels, depth)
        with pytest.raises(ValueError, match="width must divide"):
            pixart_variant(100)


class TestScalingLaw:
    @settings(deadline=None, max_examples=20)
    @given(st.floats(0.05, 1.5), st.floats(0.01, 3), st.floats(-2, 2))
    def test_a_power_law_is_found_again(self, a, E, log_A):
        y = E + 10**log_A * (SIZES / 1e7) ** -a
        law = ScalingLaw(bootstrap=0).fit(SIZES, y)
        assert np.allclose(law.predict(SIZES), y, rtol=1e-6)
        pure = ScalingLaw(offset=False, bootstrap=0).fit(SIZES, y - E)
        assert abs(pure.exponents_[0] - a) < 1e-6
        assert pure.offset_ == 0

    def test_parts_of_a_law(self):
        law = ScalingLaw(bootstrap=0).fit(grid(), two(grid()))
        found = [law.offset_, *law.scales_, *law.exponents_]
        assert np.allclose(found, [1.7, 400, 410, 0.34, 0.28], rtol=1e-6)
        assert law.error_ < 1e-8

    def test_a_run_that_went_wrong_does_not_bend_it(self):
        y = 0.5 + 30 * SIZES**-0.3
        y[2] *= 1.5
        law = ScalingLaw(bootstrap=0).fit(SIZES, y)
        assert abs(law.predict([1e10])[0] / (0.5 + 30 * 1e10**-0.3) - 1) < 0.01
        ordinary = ScalingLaw(bootstrap=0, delta=1e3).fit(SIZES, y)
        assert abs(ordinary.predict([1e10])[0] / (0.5 + 30 * 1e10**-0.3) - 1) > 0.05

    def test_intervals_hold_the_truth(self):
        rng = np.random.default_rng(0)
        held = 0
        for trial in range(6):
            y = two(grid()) * np.exp(0.01 * rng.standard_normal(36))
            law = ScalingLaw(bootstrap=40, random_state=trial).fit(grid(), y)
            low, high = law.intervals(0.9)["a0"]
            held += low <= 0.34 <= high
            assert abs(law.exponents_[0] / 0.34 - 1) < 0.15
        assert held >= 4

    def test_interval_of_a_forecast(self):
        rng = np.random.default_rng(1)
        law = ScalingLaw(random_state=0).fit(SIZES, (0.5 + 30 * SIZES**-0.3) * np.exp(0.01 * rng.standard_normal(8)))
        x = np.array([1e8, 1e12])
        low, high = law.predict_interval(x)
        assert (low <= law.predict(x)).all()
        assert (law.predict(x) <= high).all()
        assert high[1] - low[1] > high[0] - low[0]
        again = clone(law).fit(SIZES, law.predict(SIZES))
        assert again.replicates_.shape == (200, 3)

    def test_same_seed_same_intervals(self):
        y = two(grid()) * np.exp(0.01 * np.random.default_rng(2).standard_normal(36))
        a, b = (ScalingLaw(bootstrap=5, random_state=3).fit(grid(), y).replicates_ for _ in range(2))
        assert np.array_equal(a, b)

    def test_auto_finds_whether_there_is_a_floor(self):
        y = 30 * SIZES**-0.3
        noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(8))
        law = ScalingLaw("auto", bootstrap=0)
        assert law.fit(SIZES, y * noise).offset_ < 0.02 * y.min()
        assert abs(law.fit(SIZES, (y + 0.5) * noise).offset_ - 0.5) < 0.05

    def test_extrapolation_error(self):
        y = 0.5 + 30 * SIZES**-0.3
        assert extrapolation_error(ScalingLaw(), SIZES, y) < 1e-6
        assert extrapolation_error(ScalingLaw(offset=False), SIZES, y) > 0.01
        shuffled = np.random.default_rng(0).permutation(8)
        assert extrapolation_error(ScalingLaw(), SIZES[shuffled], y[shuffled]) < 1e-6

    def test_best_split(self):
        law = ScalingLaw(bootstrap=0).fit(grid(), two(grid()))
        N, D = law.optimal_split(1e20)
        assert np.isclose(6 * N * D, 1e20)
        near = np.array([[N * s, D / s] for s in (0.9, 1.0, 1.1)])
        assert law.predict(near).argmin() == 1
        assert np.isclose(*(e * A * x**-e for e, A, x in zip(law.exponents_, law.scales_, (N, D))))  # first order

    def test_scale_of_the_sizes_does_not_matter(self):
        y = two(grid()) * np.exp(0.01 * np.random.default_rng(2).standard_normal(36))
        a, b = (ScalingLaw(bootstrap=0).fit(grid() * unit, y) for unit in (1, 1e-9))
        assert np.allclose(a.exponents_, b.exponents_, rtol=1e-5)
        assert np.isclose(a.offset_, b.offset_, rtol=1e-5)

    @pytest.mark.parametrize(
        ("options", "X", "y", "error"),
        [
            ({"offset": "maybe"}, SIZES, SIZES, "offset must be"),
            ({"delta": 0}, SIZES, SIZES, "delta must be > 0"),
            ({"bootstrap": -1}, SIZES, SIZES, "bootstrap must be >= 0"),
            ({}, -SIZES, SIZES, "X must be positive and finite, got -1000000"),
            ({}, SIZES * np.nan, SIZES, "X must be positive and finite, got nan"),
            ({}, SIZES, SIZES * 0, "y must be positive and finite, got 0"),
            ({}, SIZES, SIZES[:-1], "y must have one loss for each of the 8 runs"),
            ({}, SIZES * 0 + 3, SIZES, "X must hold different sizes, got 3 everywhere in column 0"),
            ({}, SIZES[:2], SIZES[:2], "at least 3 runs"),
            ({}, np.ones((8, 4)), SIZES, "at most 3 columns"),
            ({}, np.ones((8, 1, 1)), SIZES, "X must have 1 or 2 dimension"),
            ({}, SIZES, SIZES[:, None], "y must have 1 dimension"),
        ],
    )
    def test_bad_input(self, options, X, y, error):
        with pytest.raises(ValueError, match=error):
            ScalingLaw(**options).fit(X, y)

    def test_bad_questions(self):
        law = ScalingLaw(bootstrap=0).fit(SIZES, 1 / SIZES)
        for ask, error in (
            (lambda: law.predict(np.ones((2, 2))), "must have 1 column"),
            (lambda: law.predict_interval(SIZES), "bootstrap must be positive"),
            (lambda: law.optimal_split(1e3), "needs a law of two columns"),
            (lambda: ScalingLaw(bootstrap=2).fit(SIZES, 1 / SIZES).intervals(1.0), "level must be"),
            (lambda: extrapolation_error(law, SIZES, SIZES, 1.0), "share must be"),
            (lambda: pareto_front([1, 2], [1.0]), "one for each of the 2 runs"),
        ):
            with pytest.raises(ValueError, match=error):
                ask()


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(-5, 5)), min_size=1, max_size=20))
def test_pareto_front(runs):
    compute, loss = map(np.array, zip(*runs))
    front = pareto_front(compute, loss)
    dominated = [any(c <= compute[i] and v <= loss[i] and (c < compute[i] or v < loss[i]) for c, v in runs)
                 for i in range(len(runs))]  # fmt: skip
    assert {(compute[i], loss[i]) for i in front} == {runs[i] for i in range(len(runs)) if not dominated[i]}
    assert (np.diff(compute[front]) > 0).all()
    assert (np.diff(loss[front]) < 0).all()
