"""How shipped weights are trained and kept."""

import pytest
import torch
from torch import nn

from hadamard.claims.shipping import one_cycle, shipping
from hadamard.training import provenance


def train(folder, steps, resume=True, fail=False):
    with shipping("line", "quick", folder, resume, seed=3, device="cuda") as shelf:
        module = nn.Linear(1, 1)
        torch.nn.init.zeros_(module.weight)
        losses = one_cycle(
            module,
            lambda module, x, step: (module(x) - 3 * x).square().mean(),
            lambda generator: torch.rand(8, 1, generator=generator),
            steps=steps,
            rate=0.1,
            seed=3,
            state=shelf.state("one"),
        )
        if fail:
            raise KeyboardInterrupt
        shelf.write("one", module, data="numbers", steps=str(steps))
    return shelf.paths, losses


def test_weights_carry_the_account_of_their_training(tmp_path):
    (path,), losses = train(tmp_path, 200)
    assert losses[-1] < 0.1 * losses[0]
    account = provenance(path)
    assert account["command"] == "hadamard train line --size quick --device cuda"
    assert (account["seed"], account["data"], account["steps"]) == ("3", "numbers", "200")
    assert [p.name for p in tmp_path.iterdir()] == ["one.safetensors"]


def test_an_interrupted_training_is_kept_unless_it_is_not_to_be_resumed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 20, fail=True)
    assert (tmp_path / ".line-quick-3" / "one.state").exists()
    with pytest.raises(ValueError, match="belongs to another training"):
        train(tmp_path, 30)
    (path,), _ = train(tmp_path, 30, resume=False)
    assert provenance(path)["steps"] == "30"
    assert not (tmp_path / ".line-quick-3").exists()
