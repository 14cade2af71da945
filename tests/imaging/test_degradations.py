"""Dusk and rain by their definitions."""

import pytest
import torch

from hadamard.imaging.degradations import darkened, rain


def test_darkened_is_gain_times_power():
    x = torch.linspace(0, 1, 11, dtype=torch.float64)[None]
    torch.testing.assert_close(darkened(x, 1.7, 0.3), 0.3 * x**1.7)
    assert torch.equal(darkened(x, 1, 1), x)


def test_a_streak_falls_from_where_it_begins():
    """One drop: rows below it, moved aside by the slant, all of one brightness."""
    for seed in range(200):
        streaks = rain(
            torch.zeros(1, 1, 24, 24, dtype=torch.float64), density=0.002, length=5, slant=0.5, strength=0.9,
            generator=torch.Generator().manual_seed(seed),
        )[0, 0]  # fmt: skip
        rows, columns = streaks.nonzero().T
        if len(rows) == 5:
            break
    assert (rows - rows[0]).tolist() == [0, 1, 2, 3, 4]
    assert (columns - columns[0]).tolist() == [0, 0, 1, 2, 2]  # halves are rounded to even
    assert 0.3 <= float(streaks.max()) <= 0.9
    assert torch.equal(streaks[rows, columns], streaks.max().expand(5))


def test_rain_is_the_same_in_all_channels_and_nowhere_darkens():
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wet = rain(x, generator=torch.Generator().manual_seed(1))
    assert bool((wet >= x).all())
    assert bool((wet <= 1).all())
    share = (wet - x) / (1 - x)
    torch.testing.assert_close(share[:, :1].expand(-1, 3, -1, -1), share)
    assert not torch.equal(share[0], share[1])
    assert torch.equal(rain(x, density=0.0), x)


@pytest.mark.parametrize(("call", "words"), [
    (lambda: darkened(torch.full((1, 1), 1.1), 2, 0.5), "x must be"),
    (lambda: darkened(torch.ones(1, 1), 0.5, 0.5), "gamma must be >= 1"),
    (lambda: darkened(torch.ones(1, 1), 2, 0.0), "gain must be"),
    (lambda: rain(torch.ones(1, 1, 4, 4) * 2), "x must be"),
    (lambda: rain(torch.ones(1, 1, 4, 4), slant=2), "slant must be"),
    (lambda: rain(torch.ones(1, 1, 4, 4), length=0), "length must be"),
    (lambda: rain(torch.ones(1, 1, 4, 4), density=-1), "density must be"),
])  # fmt: skip
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
