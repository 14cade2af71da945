import pytest
import torch

from hadamard.data import help_topics


def test_the_two_parts_are_one_text():
    half, tenth = help_topics(0.5), help_topics()
    assert torch.equal(torch.cat([half.train, half.test]), torch.cat([tenth.train, tenth.test]))
    assert abs(len(half.train) - len(half.test)) <= 1
    assert "".join(sorted(set(half.alphabet))) == half.alphabet
    whole = "".join(half.alphabet[i] for i in torch.cat([half.train, half.test]))
    assert 'The "for" statement' in whole


@pytest.mark.bad_input
@pytest.mark.parametrize("held_out", [0, 1, -0.1, float("nan")])
def test_bad_input(held_out):
    with pytest.raises(ValueError, match="held_out"):
        help_topics(held_out)
