"""The long-convolution block: causality, going on step by step, longer sequences, and that it learns."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hadamard.transforms import FlashFFTConv, LongConvBlock, extend_length

kinds = pytest.mark.parametrize("filters", ["explicit", "implicit"])


def make(filters="implicit", channels=6, length=20, dtype=torch.float64, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LongConvBlock(channels, length, filters=filters, dtype=dtype, **options)


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@kinds
@pytest.mark.parametrize("L", [20, 11, 1, 50])
def test_is_the_gated_sum(filters, L):
    block, x = make(filters), draw(2, L, 6)
    padded = F.pad(block.inputs(x).mT, (2, 0))
    q, k, v = F.conv1d(padded, block.mix.weight, block.mix.bias, groups=18).chunk(3, 1)
    taps = block.taps_now()
    y = torch.stack([sum(taps[:, t] * (k * v)[..., i - t] for t in range(min(i + 1, 20))) for i in range(L)], -1)
    wanted = block.output((q * (y + block.skip[:, None] * k * v)).mT)
    torch.testing.assert_close(block(x), wanted)


@kinds
def test_sees_no_future_and_no_further_than_its_filter(filters):
    block, x = make(filters), draw(1, 60, 6)
    y = block(x)
    later, earlier = x.clone(), x.clone()
    later[:, 31:] += 1
    earlier[:, :8] += 1
    torch.testing.assert_close(block(later)[:, :31], y[:, :31])
    reach = 8 + 2 + 20 - 1  # the short and the long filter
    torch.testing.assert_close(block(earlier)[:, reach:], y[:, reach:])
    assert not torch.allclose(block(earlier)[:, reach - 1], y[:, reach - 1], atol=1e-9)


@kinds
@pytest.mark.parametrize("pieces", [[1] * 30, [30], [10, 1, 15, 1, 3]])
def test_goes_on_where_it_stopped(filters, pieces):
    block, x = make(filters), draw(2, 30, 6)
    state, y = block.start(2), []
    for piece in x.split(pieces, 1):
        out, state = block.step(piece, state)
        y.append(out)
    torch.testing.assert_close(torch.cat(y, 1), block(x))
    assert state.past.shape == (2, 6, 19)


def test_extending_a_trained_model():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = FlashFFTConv(2 * 16)
            self.k = nn.Parameter(draw(3, 16))

        def forward(self, u):
            return self.conv(u, self.k)

    model, u = Mixer(), draw(1, 3, 3000)
    short = model(u[..., :16])
    with pytest.raises(ValueError, match="u must not be longer than seqlen = 32, got 3000"):
        model(u)
    assert extend_length(model, 3000) is model
    torch.testing.assert_close(model(u)[..., :16], short)
    wanted = F.conv1d(F.pad(u, (15, 0)), model.k[:, None].flip(-1), groups=3)
    torch.testing.assert_close(model(u), wanted)


@kinds
def test_state_dict_gradients_and_half_precision(filters):
    block, other, x = make(filters, 2, 5), LongConvBlock(2, 5, filters=filters, dtype=torch.float64), draw(1, 7, 2)
    other.load_state_dict(block.state_dict())
    torch.testing.assert_close(other(x), block(x))
    assert torch.autograd.gradcheck(block, x.requires_grad_())
    single = make(filters, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = single(draw(2, 20, 6, dtype=torch.float32))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), single(draw(2, 20, 6, dtype=torch.float32)), rtol=0.1, atol=0.02)


def test_learns_to_copy_from_far_away():
    """A token 6 steps back can be found only by the long filter."""
    block = make("implicit", 8, 8, dtype=torch.float32, decay=False)
    embed, head = draw(4, 8, dtype=torch.float32), nn.Linear(8, 4)
    optimizer = torch.optim.Adam([*block.parameters(), *head.parameters()], lr=0.02)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        tokens = torch.randint(4, (16, 16), generator=generator)
        loss = F.cross_entropy(head(block(embed[tokens]))[:, 6:].flatten(0, 1), tokens[:, :-6].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(ValueError, match="filters must be one of 'explicit', 'implicit', got 'rnn'"):
        LongConvBlock(4, 8, filters="rnn")
    with pytest.raises(ValueError, match=r"x must have shape \(..., 4\), got \(1, 8, 5\)"):
        LongConvBlock(4, 8)(torch.ones(1, 8, 5))
    with pytest.raises(ValueError, match="length must be >= 1, got 0"):
        extend_length(nn.Identity(), 0)
