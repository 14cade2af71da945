import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hadamard.training import fit, load_checkpoint, provenance, save_checkpoint

ACCOUNT = {"command": "hadamard train x", "data": "made up", "seed": "0"}


class Interrupt(Exception):
    pass


def draw(generator):
    x = torch.rand(8, 1, generator=generator)
    return x, 3 * x


def square(module, batch, step):
    return (module(batch[0]) - batch[1]).square().mean()


def run(steps=30, state=None, stop=None, **options):
    module = nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.fill_(0.5)
        module.bias.fill_(0.0)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 / (1 + i))

    def loss(module, batch, step):
        if step == stop:
            raise Interrupt
        return square(module, batch, step)

    losses = fit(
        module, loss, draw, steps=steps, optimizer=optimizer, scheduler=scheduler, state=state, save_every=10, **options
    )
    return module, losses


class TestFit:
    def test_learns_and_reports_every_loss(self):
        module = nn.Linear(1, 1)
        losses = fit(module, square, draw, steps=200, optimizer=torch.optim.Adam(module.parameters(), lr=0.1))
        assert losses.shape == (200,)
        assert losses[-1] < 1e-3 * losses[0]

    def test_an_interrupted_run_ends_with_the_same_bits(self, tmp_path):
        whole, losses = run()
        with pytest.raises(Interrupt):
            run(state=tmp_path / "deep" / "run.state", stop=17)
        resumed, again = run(state=tmp_path / "deep" / "run.state")
        assert torch.equal(losses, again)
        assert torch.equal(whole.weight, resumed.weight)
        assert os.listdir(tmp_path / "deep") == ["run.state"]

    def test_a_finished_run_is_not_run_again(self, tmp_path):
        first, losses = run(state=tmp_path / "run.state")
        second, again = run(state=tmp_path / "run.state", stop=0)
        assert torch.equal(first.weight, second.weight)
        assert torch.equal(losses, again)

    def test_calls_after_step_and_restores_the_mode(self):
        module, calls = nn.Linear(1, 1).eval(), []
        fit(
            module,
            square,
            draw,
            steps=3,
            optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
            after_step=lambda: calls.append(module.training),
        )
        assert calls == [True] * 3
        assert not module.training

    def test_the_global_generator_is_untouched(self):
        module = nn.Linear(1, 1)
        before = torch.get_rng_state()
        fit(module, square, draw, steps=3, optimizer=torch.optim.SGD(module.parameters(), lr=0.1))
        assert torch.equal(before, torch.get_rng_state())

    def test_progress_bar(self, capsys):
        run(progress="learning")
        assert "learning" in capsys.readouterr().err

    @pytest.mark.bad_input
    @pytest.mark.parametrize(
        "options, message",
        [({"steps": 0}, "steps must be >= 1, got 0"), ({"save_every": 0}, "save_every must be >= 1, got 0")],
    )
    def test_bad_numbers(self, options, message):
        module = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        with pytest.raises(ValueError, match=message):
            fit(module, square, draw, **{"steps": 3, "optimizer": optimizer} | options)

    def test_a_loss_that_is_not_finite_stops(self):
        module = nn.Linear(1, 1)
        with pytest.raises(FloatingPointError, match="the loss is nan at step 0"):
            fit(
                module,
                lambda m, b, i: square(m, b, i) * torch.nan,
                draw,
                steps=3,
                optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
            )

    def test_a_damaged_or_foreign_state_is_refused(self, tmp_path):
        state = tmp_path / "run.state"
        run(state=state)
        with pytest.raises(ValueError, match="it has 30 steps, not 40"):
            run(steps=40, state=state)
        state.write_bytes(state.read_bytes()[:200])
        with pytest.raises(ValueError, match="is damaged or belongs to another training"):
            run(state=state)


class TestCheckpoints:
    def test_round_trip_with_provenance(self, tmp_path):
        module = nn.Linear(3, 2)
        path = save_checkpoint(tmp_path / "new" / "net.safetensors", module, ACCOUNT)
        other = load_checkpoint(path, nn.Linear(3, 2))
        assert torch.equal(module.weight, other.weight)
        account = provenance(path)
        assert account.items() >= ACCOUNT.items()
        assert account["torch"] == torch.__version__
        assert len(account["sha256"]) == 64
        assert account["date"]
        assert os.listdir(path.parent) == ["net.safetensors"]

    def test_keeps_the_dtype_of_the_module(self, tmp_path):
        path = save_checkpoint(tmp_path / "net.safetensors", nn.Linear(3, 2), ACCOUNT)
        assert load_checkpoint(path, nn.Linear(3, 2).double()).weight.dtype == torch.float64

    def test_shipped_weights_are_small_and_whole(self):
        account = provenance("learned_proximal_photographs")
        assert account["command"] == "hadamard train learned_proximal --size full"

    @pytest.mark.bad_input
    def test_bad_files(self, tmp_path):
        module = nn.Linear(3, 2)
        path = save_checkpoint(tmp_path / "net.safetensors", module, ACCOUNT)
        with pytest.raises(ValueError, match=r"path must end in .safetensors, got .*net.pt"):
            save_checkpoint(tmp_path / "net.pt", module, ACCOUNT)
        with pytest.raises(ValueError, match="provenance must name data, seed, got command"):
            save_checkpoint(path, module, {"command": "x"})
        with pytest.raises(FileNotFoundError, match="there is no file"):
            load_checkpoint(tmp_path / "none.safetensors", module)
        with pytest.raises(FileNotFoundError, match="no weights named nothing; there are: .*learned_proximal"):
            provenance("nothing")
        with pytest.raises(ValueError, match=r"another network than Linear: weight has shape \(2, 3\) in the file"):
            load_checkpoint(path, nn.Linear(4, 2))
        with pytest.raises(ValueError, match=r"bias has shape \(2,\) in the file and none in the module"):
            load_checkpoint(path, nn.Linear(3, 2, bias=False))
        (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-7])
        with pytest.raises(ValueError, match="is not a whole safetensors file"):
            load_checkpoint(tmp_path / "cut.safetensors", module)
        save_file({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, path, metadata=provenance(path))
        with pytest.raises(ValueError, match="their sha256 differs"):
            load_checkpoint(path, module)
