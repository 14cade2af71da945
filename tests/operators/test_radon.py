"""The Radon transform against polygon areas, closed forms, and scikit-image."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hadamard.operators import Radon
from tests.suites.operators import OperatorSuite


def turn(count, whole=math.pi):
    return torch.arange(count, dtype=torch.float64) * (whole / count)


def disc(size, radius, x=0.0, y=0.0, fine=5):
    """A disc with its edge averaged over pixels."""
    line = (torch.arange(size * fine, dtype=torch.float64) + 0.5) / fine - size / 2
    inside = ((line - x) ** 2 + (-line[:, None] - y) ** 2 <= radius**2).double()
    return torch.nn.functional.avg_pool2d(inside[None], fine)[0]


def chords(op, radius, x=0.0, y=0.0):
    """Closed form of the line integrals through a disc of height one."""
    s = op._bins()[:, None]
    if op.source is None:
        offset = s - (x * op.angles.cos() + y * op.angles.sin())
    else:  # distance of the disc's centre to the ray from the source through s
        across, along = x * op.angles.cos() + y * op.angles.sin(), y * op.angles.cos() - x * op.angles.sin()
        offset = (across * op.source - s * (op.source + along)) / (op.source**2 + s**2).sqrt()
    return 2 * (radius**2 - offset**2).clamp(min=0).sqrt()


def clip(polygon, normal, level):
    """The part of a convex polygon where ``<normal, p> <= level``."""
    kept = []
    for p, q in zip(polygon, polygon[1:] + polygon[:1]):
        a, b = (normal[0] * v[0] + normal[1] * v[1] - level for v in (p, q))
        if a <= 0:
            kept.append(p)
        if a * b < 0:
            kept.append(tuple(u + a / (a - b) * (w - u) for u, w in zip(p, q)))
    return kept


def area(polygon):
    return abs(sum(p[0] * q[1] - q[0] * p[1] for p, q in zip(polygon, polygon[1:] + polygon[:1]))) / 2


def brute_force(op):
    """Areas of the strips that a bin cuts out of a pixel, over the bin's width."""
    n, (P, A) = op.in_shape[0], op.out_shape
    M, p = torch.zeros(P, A, n, n, dtype=torch.float64), op.pixel_size
    edges = [(i - P / 2) * op.step for i in range(P + 1)]
    for a, angle in enumerate(op.angles.tolist()):
        for i in range(n):
            for j in range(n):
                x, y = (j - (n - 1) / 2) * p, ((n - 1) / 2 - i) * p
                far, cuts, direction = 1.0, edges, angle
                at = x * math.cos(angle) + y * math.sin(angle)
                if op.source is not None:
                    depth = op.source + y * math.cos(angle) - x * math.sin(angle)
                    far, fan = math.hypot(at, depth), math.atan2(at, depth)
                    at, cuts, direction = fan, [math.atan(e / op.source) for e in edges], angle - fan
                normal = (math.cos(direction), math.sin(direction))
                square = [(-p / 2, -p / 2), (p / 2, -p / 2), (p / 2, p / 2), (-p / 2, p / 2)]
                below = [area(clip(square, normal, (cut - at) * far)) for cut in cuts]
                for b in range(P):
                    M[b, a, i, j] = (below[b + 1] - below[b]) / (far * (cuts[b + 1] - cuts[b]))
    return M.reshape(P * A, n * n)


class RadonSuite(OperatorSuite):
    def dense(self):
        return brute_force(self.operator())


class TestParallel(RadonSuite):
    def operator(self):
        return Radon(5, torch.tensor([0.0, 0.3, math.pi / 4, math.pi / 2, 4.0]).double(), dtype=torch.float64)


class TestNarrowParallel(RadonSuite):
    """Bins narrower than pixels, and a detector that sees only a part."""

    def operator(self):
        return Radon(4, turn(3), detectors=5, pixel_size=0.5, spacing=0.3, dtype=torch.float64)


class TestFan(RadonSuite):
    def operator(self):
        return Radon(
            4, turn(5, 2 * math.pi), "fan", source_distance=6.0, detector_distance=4.0, dtype=torch.float64
        )  # fmt: skip


class TestFlatFan(RadonSuite):
    def operator(self):
        return Radon(
            4, turn(3, 2 * math.pi), "fan", source_distance=20.0, detector_distance=0.0, detectors=4, spacing=1.7,
            dtype=torch.float64,
        )  # fmt: skip


GEOMETRIES = {
    "parallel": {},
    "fan": {"geometry": "fan", "source_distance": 200.0, "detector_distance": 100.0},
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_disc(geometry):
    op = Radon(96, turn(7, 2 * math.pi), dtype=torch.float64, **GEOMETRIES[geometry])
    for x, y in ((0.0, 0.0), (14.0, 9.0)):
        exact = chords(op, 25, x, y)
        assert (op(disc(96, 25, x, y)) - exact).norm() < 0.02 * exact.norm()


@settings(max_examples=20, deadline=None)
@given(angle=st.floats(-10, 10), size=st.integers(1, 9), spacing=st.floats(0.2, 3), pixel=st.floats(0.1, 4))
def test_every_projection_has_the_mass_of_the_image(angle, size, spacing, pixel):
    op = Radon(
        size, torch.tensor([angle]), pixel_size=pixel, spacing=spacing * pixel, dtype=torch.float64
    )  # fmt: skip
    x = torch.rand(size, size, dtype=torch.float64)
    torch.testing.assert_close(op(x).sum() * spacing * pixel, x.sum() * pixel**2)


def test_default_detector_sees_everything_from_everywhere():
    ones = torch.ones(9, 9, dtype=torch.float64)
    op = Radon(9, turn(64, 2 * math.pi), dtype=torch.float64, **GEOMETRIES["fan"])
    wide = Radon(9, turn(64, 2 * math.pi), detectors=99, dtype=torch.float64, **GEOMETRIES["fan"])
    torch.testing.assert_close(op(ones).sum(), wide(ones).sum())
    assert op.out_shape[0] % 2 == 1


def test_distant_source_is_a_parallel_beam():
    x = torch.rand(8, 8, dtype=torch.float64)
    far = Radon(
        8, turn(6), "fan", source_distance=1e9, detector_distance=0.0, detectors=12, dtype=torch.float64
    )  # fmt: skip
    torch.testing.assert_close(far(x), Radon(8, turn(6), detectors=12, dtype=torch.float64)(x), rtol=0, atol=1e-5)


def test_lengths_scale():
    x = torch.rand(8, 8, dtype=torch.float64)
    one = Radon(8, turn(5), dtype=torch.float64)
    other = Radon(8, turn(5), pixel_size=0.1, dtype=torch.float64)
    torch.testing.assert_close(other(x), 0.1 * one(x))
    torch.testing.assert_close(other.A_dagger(other(x)), one.A_dagger(one(x)))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_filtered_back_projection(geometry):
    """A smooth image comes back with either filter, an edge with the sharp one."""
    op = Radon(96, turn(180, math.pi if geometry == "parallel" else 2 * math.pi), **GEOMETRIES[geometry])
    line = torch.linspace(-4, 4, 96).double()
    smooth = torch.exp(-((line - 0.5) ** 2) - (line[:, None] + 0.3) ** 2)
    for x, filter, least in ((smooth, "ramp", 50), (smooth, "hann", 45), (disc(96, 30, 4, -8), "ramp", 30)):
        found = op.A_dagger(op(x), filter)
        assert -10 * ((found - x) ** 2).mean().log10() > least
    assert abs(found[45:65, 40:60].mean() - 1) < 1e-3


def test_hann_lets_less_noise_through():
    op = Radon(64, turn(90))
    noise = torch.randn(op.out_shape, generator=torch.Generator().manual_seed(0))
    assert op.A_dagger(noise, "hann").std() < 0.5 * op.A_dagger(noise).std()


def test_angles_are_weighted_by_the_turn_that_they_stand_for():
    op, twice = Radon(48, turn(60), dtype=torch.float64), Radon(48, turn(120, 2 * math.pi), dtype=torch.float64)
    x = disc(48, 12, 5, 3)
    torch.testing.assert_close(op.A_dagger(op(x)), twice.A_dagger(twice(x)))
    g = torch.Generator().manual_seed(0)
    shuffled = Radon(48, (turn(60) + 0.02 * torch.rand(60, generator=g))[torch.randperm(60, generator=g)])
    assert (shuffled.A_dagger(shuffled(x)) - x).square().mean() < 1.1 * (op.A_dagger(op(x)) - x).square().mean()


def test_fourier_slice():
    """The transform of a projection is the image's along a line."""
    op = Radon(64, torch.tensor([0.4]), dtype=torch.float64)
    line = torch.linspace(-32, 32, 64).double()
    x = torch.exp(-((line - 3) ** 2 + (line[:, None] + 5) ** 2) / 40)
    at = (torch.arange(64) - 31.5).double()
    for k in (0.0, 0.02, 0.05, 0.1):
        wave = torch.exp(-2j * math.pi * k * (at * math.cos(0.4) + -at[:, None] * math.sin(0.4)))
        slice_ = (op(x)[:, 0] * torch.exp(-2j * math.pi * k * op._bins())).sum()
        assert (slice_ - (x * wave).sum()).abs() < 2e-2 * x.sum()


def test_against_scikit_image():
    from skimage.transform import iradon, radon

    x = disc(65, 10, 6, -9) + 0.5 * disc(65, 20, -4, 5)  # odd: where the centres are the same pixel
    op = Radon(65, turn(60), detectors=65, dtype=torch.float64)
    degrees = torch.rad2deg(turn(60)).numpy()
    theirs = torch.from_numpy(radon(x.numpy(), degrees, circle=True))
    assert (op(x) - theirs).norm() < 0.02 * theirs.norm()
    back = torch.from_numpy(iradon(theirs.numpy(), degrees, circle=True))
    inside = disc(65, 30) == 1
    assert (op.A_dagger(theirs) - back)[inside].norm() < 0.05 * back[inside].norm()


def test_single_precision_dot():
    op = Radon(64, turn(24))
    x, y = torch.rand(64, 64), torch.rand(op.out_shape)
    assert abs((op(x) * y).sum() / (x * op.A_adjoint(y)).sum() - 1) < 1e-5


def test_gradient_passes_through_the_reconstruction():
    op = Radon(6, turn(4), dtype=torch.float64)
    fan = Radon(
        6, turn(9, 2 * math.pi), "fan", source_distance=9.0, detector_distance=3.0, dtype=torch.float64
    )  # fmt: skip
    for each in (op, fan):
        y = torch.randn(each.out_shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(each.A_dagger, (y,), fast_mode=True)


def test_state_is_the_same_after_a_reconstruction():
    op = Radon(6, turn(9, 2 * math.pi), "fan", source_distance=9.0, detector_distance=3.0)
    before = set(op.state_dict())
    op.A_dagger(op(torch.ones(6, 6)))
    assert set(op.state_dict()) == before


FAN = {"geometry": "fan", "source_distance": 20.0, "detector_distance": 10.0}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"size": 0}, ValueError, "size must be >= 1, got 0"),
        ({"size": 8.5}, TypeError, "size must be an integer"),
        ({"angles": torch.arange(3)}, TypeError, "angles must have a floating dtype, got torch.int64"),
        ({"angles": torch.zeros(0)}, ValueError, "angles must not be empty"),
        ({"angles": torch.tensor([float("nan")])}, ValueError, "angles must be finite"),
        ({"geometry": "cone"}, ValueError, "geometry must be one of"),
        ({"detectors": 0}, ValueError, "detectors must be >= 1, got 0"),
        ({"pixel_size": 0.0}, ValueError, "pixel_size must be > 0"),
        ({"spacing": -1.0}, ValueError, "spacing must be > 0"),
        ({"dtype": torch.float16}, ValueError, "dtype must be one of"),
        ({"source_distance": 20.0}, ValueError, "source_distance must be None for a parallel beam, got 20.0"),
        ({"geometry": "fan", "source_distance": 20.0}, ValueError, "detector_distance must be given for a fan"),
        ({**FAN, "source_distance": 4.0}, ValueError, "source_distance must exceed 5.657, half the image's diagonal"),
        ({**FAN, "detector_distance": -1.0}, ValueError, "detector_distance must be >= 0"),
    ],
)
def test_bad_geometry(change, error, message):
    with pytest.raises(error, match=message):
        Radon(**{"size": 8, "angles": turn(3)} | change)


@pytest.mark.bad_input
def test_bad_data():
    op = Radon(8, turn(3))
    with pytest.raises(ValueError, match=r"x must have shape \(..., 8, 8\), got \(8, 7\)"):
        op.A(torch.ones(8, 7))
    with pytest.raises(ValueError, match=r"y must have shape \(..., 12, 3\), got \(3, 12\)"):
        op.A_adjoint(torch.ones(3, 12))
    with pytest.raises(ValueError, match="filter must be one of"):
        op.A_dagger(torch.ones(12, 3), "cosine")
    half = Radon(8, turn(10), **FAN)
    with pytest.raises(ValueError, match="angles must go all the way round for a fan"):
        half.A_dagger(half(torch.ones(8, 8)))
