"""Views of the sphere against rotations in space and bicubic interpolation written out."""

import math

import numpy as np
import pytest
import torch

from hadamard.diffusion import TangentSphere
from hadamard.diffusion.tangent_sphere import around, directions, enlarge, from_plane, to_plane
from tests.suites.operators import OperatorSuite


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth(height, seed=0):
    """A picture that is smooth on the sphere, poles and all: a quadratic polynomial of the direction."""
    lon, lat = directions((height, 2 * height))
    point = torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], -1)
    A, b = draw(3, 3, seed=seed), draw(3, seed=seed + 1)
    return torch.einsum("hwi,ij,hwj->hw", point, A, point) + point @ b


def keys(t, a=-0.75):
    t = abs(t)
    if t <= 1:
        return ((a + 2) * t - (a + 3)) * t * t + 1
    return a * (((t - 5) * t + 8) * t - 4) if t < 2 else 0.0


class TestViews(OperatorSuite):
    """Not enlarged first: every pixel by a rotation in space and sixteen taps."""

    dtypes = (torch.float64,)
    height, patch, layout, fov = 8, 3, (2, 4, 2), 110.0

    def operator(self):
        size = (self.height, 2 * self.height)
        return TangentSphere(size, self.patch, self.layout, self.fov, pre_upscale=1, dtype=torch.float64)

    def dense(self):
        H, W, P = self.height, 2 * self.height, self.patch
        extent, rows = math.tan(math.radians(self.fov) / 2), []
        for i, count in enumerate(self.layout):
            lat0 = math.pi * (0.5 - (i + 0.5) / len(self.layout))
            for j in range(count):
                lon0 = 2 * math.pi * (j + 0.5) / count - math.pi
                up = np.array([[math.cos(lat0), 0, -math.sin(lat0)], [0, 1, 0], [math.sin(lat0), 0, math.cos(lat0)]])
                turn = np.array([[math.cos(lon0), -math.sin(lon0), 0], [math.sin(lon0), math.cos(lon0), 0], [0, 0, 1]])
                for v in range(P):
                    for u in range(P):
                        plane = (2 * u / (P - 1) - 1) * extent, (1 - 2 * v / (P - 1)) * extent
                        x, y, z = turn @ up @ np.array([1.0, *plane])
                        column = (math.atan2(y, x) / (2 * math.pi) + 0.5) * W - 0.5
                        row = (0.5 - math.atan2(z, math.hypot(x, y)) / math.pi) * H - 0.5
                        rows.append(self.taps(row, column, H, W))
        return torch.tensor(np.stack(rows))

    def taps(self, row, column, H, W):
        weights = np.zeros((H, W))
        for r in range(math.floor(row) - 1, math.floor(row) + 3):
            for c in range(math.floor(column) - 1, math.floor(column) + 3):
                over = not 0 <= r < H
                inside = -1 - r if r < 0 else 2 * H - 1 - r if r >= H else r
                weights[inside, (c + over * W // 2) % W] += keys(row - r) * keys(column - c)
        return weights.reshape(-1)


def test_projection_there_and_back():
    centre = torch.tensor([0.3, -1.1], dtype=torch.float64)
    x, y = draw(50), draw(50, seed=1)
    again = to_plane(*from_plane(x, y, centre), centre)
    torch.testing.assert_close(torch.stack(again[:2]), torch.stack([x, y]), rtol=0, atol=1e-12)
    lon, lat = from_plane(torch.zeros(1).double(), torch.zeros(1).double(), centre)
    torch.testing.assert_close(torch.cat([lon, lat]), centre)
    assert not to_plane(centre[0] + math.pi, -centre[1], centre)[2]


def test_field_of_view_of_the_authors_code():
    """Half of 75 degrees in radians as the half extent of the plane."""
    assert math.degrees(2 * math.atan(math.pi * 75 / 360)) == pytest.approx(66.41, abs=5e-3)
    assert TangentSphere((8, 16)).extent == pytest.approx(math.pi * 75 / 360, rel=1e-4)


def test_every_direction_is_seen_almost_twice():
    """Area-weighted, over random directions; the figures of the paper's layout."""
    z, lon = torch.rand(2, 200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for fov, mean in ((66.41, 1.74), (75.0, 2.17)):
        sphere = TangentSphere((8, 16), fov=fov, dtype=torch.float64)
        seen = torch.zeros_like(z)
        for centre in sphere.centres:
            x, y, front = to_plane(lon * math.pi, z.asin(), centre)
            seen += front & (x.abs() <= sphere.extent) & (y.abs() <= sphere.extent)
        assert seen.min() >= 1
        assert float(seen.mean()) == pytest.approx(mean, abs=0.01)


@pytest.mark.parametrize("weights", ["gaussian", "uniform"])
def test_constants_stay(weights):
    sphere = TangentSphere((16, 32))
    views = sphere(torch.full((2, 3, 16, 32), 0.7))
    torch.testing.assert_close(views, torch.full((2, 3, 18, 8, 8), 0.7))
    torch.testing.assert_close(sphere.merge(views, weights), torch.full((2, 3, 16, 32), 0.7))
    assert float(sphere.disagreement(views).max()) < 1e-6


def test_turning_by_sixty_degrees_permutes_the_views_of_a_row():
    sphere = TangentSphere((24, 48), dtype=torch.float64)
    x = draw(24, 48)
    views, turned = sphere(x), sphere(x.roll(8, -1))
    for first, count, by in ((0, 3, None), (3, 6, 1), (9, 6, 1), (15, 3, None)):
        if by is not None:
            row = slice(first, first + count)
            torch.testing.assert_close(turned[row], views[row].roll(by, 0))
    third = sphere(x.roll(16, -1))
    torch.testing.assert_close(third[:3], views[:3].roll(1, 0))
    torch.testing.assert_close(sphere.merge(third), sphere.merge(views).roll(16, -1))


def test_seam_and_poles_are_as_good_as_the_rest():
    """Something smooth on the sphere comes back everywhere; the authors' border would leave errors there."""
    sphere, x = TangentSphere((64, 128), dtype=torch.float64), smooth(64)
    error = (sphere.merge(sphere(x)) - x).abs()
    middle = error[8:-8, 8:-8].max()
    assert middle < 2e-3 * (x.max() - x.min())
    assert error[:, [0, -1]].max() < 3 * middle
    assert error[[0, -1]].max() < 3 * middle
    wide = around(x, 4)
    torch.testing.assert_close(wide[4:-4, :4], x[:, -4:])
    torch.testing.assert_close(wide[3, 4:-4], x[0].roll(64))


def test_enlarging_first_loses_less():
    x = enlarge(smooth(16)[None], 4)
    lost = [float((s.merge(s(x)) - x).square().mean()) for s in (
        TangentSphere((64, 128), pre_upscale=k, dtype=torch.float64) for k in (1, 2, 4))]  # fmt: skip
    assert lost[0] > lost[1] > lost[2]


def test_disagreement_by_hand():
    """One view that is wrong by one: deviations from the mean of k views are 1/k, or 1 - 1/k for itself."""
    sphere = TangentSphere((16, 32), dtype=torch.float64)
    views = torch.zeros(18, 8, 8, dtype=torch.float64)
    views[4] = 1.0
    lon, lat = directions((16, 32))
    seen = torch.stack([
        f & (x.abs() <= sphere.extent) & (y.abs() <= sphere.extent)
        for x, y, f in (to_plane(lon, lat, c) for c in sphere.centres)
    ])  # fmt: skip
    values = views.amax((-2, -1))[:, None, None] * seen
    mean = values.sum(0) / seen.sum(0)
    several = seen & (seen.sum(0) > 1)
    want = ((values - mean)[several]).square().mean().sqrt()
    torch.testing.assert_close(sphere.disagreement(views), want)


def test_gradient_of_merge():
    sphere = TangentSphere((8, 16), 2, (2, 4, 2), 110.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(sphere.merge, (draw(8, 2, 2).requires_grad_(),), fast_mode=True)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TangentSphere((16, 30)), r"size must be \(H, 2 H\) .*, got \(16, 30\)"),
        (lambda: TangentSphere((16, 32), fov=180), "fov must be > 0 and < 180, got 180"),
        (lambda: TangentSphere((16, 32), fov=40), r"fov=40 leave out 2\d % of the panorama's pixels"),
        (lambda: TangentSphere((16, 32), layout=()), "layout must name at least one row"),
        (lambda: TangentSphere((16, 32), pre_upscale=0), "pre_upscale must be >= 1, got 0"),
        (lambda: TangentSphere((16, 32))(torch.ones(16, 16)), r"x must have shape \(..., 16, 32\)"),
        (lambda: TangentSphere((16, 32)).merge(torch.ones(18, 8, 8), "median"), "weights must be one of"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
