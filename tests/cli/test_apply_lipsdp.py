"""``hadamard apply lipsdp``: ONNX files as torch exports them, weights with a factory, and files that are hostile."""

import contextlib
import csv
import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hadamard.certification import MaxMin, Residual, lipschitz_bound, read_onnx
from tests.cli.test_cli import command


def plain():
    torch.manual_seed(0)
    branch = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), Residual(branch), nn.LeakyReLU(0.25), nn.Linear(6, 2, bias=False), nn.Softplus(),
        nn.Linear(2, 2),
    ).eval()  # fmt: skip


def images():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, stride=2), nn.BatchNorm2d(3), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 4)
    ).eval()
    net[1].running_var += torch.rand(3)
    return net


@pytest.fixture
def export(tmp_path, monkeypatch):
    """Torch's own exporter; its last step, which adds nothing to these networks, would want the onnx package."""
    proto = pytest.importorskip("torch.onnx._internal.torchscript_exporter.onnx_proto_utils")
    monkeypatch.setattr(proto, "_add_onnxscript_fn", lambda model, *rest: model)
    monkeypatch.chdir(tmp_path)

    def go(net, shape, **options):
        torch.onnx.export(net, (torch.zeros(1, *shape),), "net.onnx", dynamo=False, **options)
        return tmp_path / "net.onnx"

    return go


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("make", "shape"), [(plain, (4,)), (images, (1, 4, 4))])
@pytest.mark.parametrize("keep", [True, False])
def test_torch_exports(export, make, shape, keep):
    net = make()
    mode = torch.onnx.TrainingMode.PRESERVE if keep else torch.onnx.TrainingMode.EVAL  # keeps batch normalisation apart
    read, found = read_onnx(export(net, shape, training=mode, do_constant_folding=not keep))
    x = torch.randn(3, *shape)
    assert found == shape
    torch.testing.assert_close(read(x), net(x))
    ours, theirs = (lipschitz_bound(n, input_shape=shape).bound for n in (read, net))
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_in_json_and_csv_out(export, monkeypatch, capsys):
    net = plain()
    path = export(net, (4,))
    code, out, error = command(
        monkeypatch, capsys, "apply", "lipsdp", path.name, "--out", "bound.json", "--samples", "50"
    )
    assert code == 0, error
    assert "at least (sampled)" in out
    found = json.loads((path.parent / "bound.json").read_text())
    assert found["bound"] == pytest.approx(lipschitz_bound(net).bound)
    assert found["lower_bound"] <= found["bound"] <= found["product_of_norms"]
    assert found["verified"]
    assert len(found["multipliers"]) == 1
    code, _, error = command(
        monkeypatch, capsys, "apply", "lipsdp", path.name, "-o", "b.csv", "--norm", "linf", "--samples", "0"
    )
    assert code == 0, error
    (row,) = csv.DictReader((path.parent / "b.csv").open())
    assert float(row["bound"]) == pytest.approx(lipschitz_bound(net, "linf").bound)


FACTORY = """
from torch import nn
from hadamard.certification import MaxMin

def make():
    return nn.Sequential(nn.Linear(4, 6), MaxMin(), nn.Linear(6, 2))

def wrong():
    return 3

def other():
    return nn.Sequential(nn.Linear(4, 4))
"""


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "factory_of_nets.py").write_text(FACTORY)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), MaxMin(), nn.Linear(6, 2))
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    torch.save(net, tmp_path / "net.pt")
    (tmp_path / "damaged.safetensors").write_bytes((tmp_path / "net.safetensors").read_bytes()[:-9])
    (tmp_path / "note.txt").write_text("x")
    return net


@pytest.mark.parametrize("model", ["factory_of_nets:make", "factory_of_nets.py:make"])
def test_weights_and_their_factory(weights, model, monkeypatch, capsys):
    code, out, error = command(monkeypatch, capsys, "apply", "lipsdp", "net.safetensors", "--model", model)
    assert code == 0, error
    assert f"{lipschitz_bound(weights).bound:.6g}" in out


def test_a_pickle_needs_the_flag(weights, monkeypatch, capsys):
    code, out, error = command(monkeypatch, capsys, "apply", "lipsdp", "net.pt")
    assert (code, error.count("\n")) == (2, 1)
    assert "a pickle can run any program" in error
    code, out, error = command(monkeypatch, capsys, "apply", "lipsdp", "net.pt", "--allow-pickle")
    assert code == 0, error
    assert f"{lipschitz_bound(weights).bound:.6g}" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["none.onnx"], "none.onnx: no such file"),
        (["note.txt"], "note.txt: expected .onnx, .safetensors or .pt"),
        (["net.safetensors"], "holds weights only, name the network by --model MODULE:FUNCTION"),
        (["damaged.safetensors", "--model", "factory_of_nets:make"], "cannot be read, it may be damaged or truncated"),
        (["net.safetensors", "--model", "factory_of_nets"], "--model must be MODULE:FUNCTION or FILE.py:FUNCTION"),
        (["net.safetensors", "--model", "none.py:make"], "none.py: no such file"),
        (["net.safetensors", "--model", "no_such_module:make"], "No module named 'no_such_module'"),
        (["net.safetensors", "--model", "factory_of_nets:none"], "factory_of_nets has no function none"),
        (["net.safetensors", "--model", "factory_of_nets:wrong"], "must return a torch.nn.Module, got int"),
        (["net.safetensors", "--model", "factory_of_nets:other"], "does not fit the network of"),
        (["net.safetensors", "-o", "x.txt"], "x.txt: the result must end in .json or .csv"),
        (["net.safetensors", "-o", "none/x.json"], "no folder none"),
        (["net.safetensors", "--samples", "-1"], "--samples must be >= 0, got -1"),
        (["net.safetensors", "--model", "factory_of_nets:make", "--input-shape", "axb"], "--input-shape must be like"),
    ],
)
def test_what_is_wrong_is_one_line(weights, options, message, monkeypatch, capsys):
    code, _, error = command(monkeypatch, capsys, "apply", "lipsdp", *options)
    assert code == 2
    assert error.count("\n") == 1
    assert message in error


# ---- hostile files --------------------------------------------------------------------------------------------------


def field(number, payload):
    """One field of protocol buffers."""
    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    data = payload.encode() if isinstance(payload, str) else payload
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(x):
    out = b""
    while x > 127:
        out, x = out + bytes([x & 127 | 128]), x >> 7
    return out + bytes([x])


def node(kind, reads, gives):
    return field(1, b"".join(field(1, r) for r in reads) + b"".join(field(2, g) for g in gives) + field(4, kind))


def weight(name, dims, data, kind=1):
    return field(5, b"".join(field(1, d) for d in dims) + field(2, kind) + field(8, name) + field(9, data))


def ends(*shape):
    dims = b"".join(field(1, field(1, d)) for d in shape)
    return field(11, field(1, "x") + field(2, field(1, field(2, dims)))) + field(12, field(1, "y"))


def model(*parts):
    return field(1, 8) + field(7, b"".join(parts))


GOOD = weight("W", (3, 2), np.ones((3, 2), dtype="<f4").tobytes())
LONE = node("MatMul", ["x", "W"], ["y"])


def test_a_file_by_hand_is_read(tmp_path):
    (tmp_path / "a.onnx").write_bytes(model(ends(1, 3), GOOD, LONE))
    net, shape = read_onnx(tmp_path / "a.onnx")
    assert shape == (3,)
    assert lipschitz_bound(net).bound == pytest.approx(6**0.5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it holds no graph"),
        (b"\x00" * 50, "it holds no graph"),
        (b"PK\x03\x04 not at all", "it is not in the format|truncated"),
        (b"\xff" * 40, "not in the format of protocol buffers"),
        (model(ends(1, 3), GOOD, LONE)[:-5], "it is truncated"),
        (model(ends(1, 3), weight("W", (2**40, 2**40), b"\x00" * 8), LONE), "does not have as many bytes"),
        (model(ends(1, 3), weight("W", (3, 2), struct.pack("<6f", *[float("nan")] * 6)), LONE), "must be finite"),
        (model(ends(1, 3), weight("W", (3, 2), b"", kind=8), LONE), "a tensor of type 8 is not known"),
        (model(ends(1, 3), weight("W", (4, 2), b"\x00" * 32), LONE), "mat1 and mat2 shapes"),
        (model(ends(1, 2**31), GOOD, LONE), "of moderate size"),
        (model(ends(1, 3), GOOD, node("Loop", ["x", "W"], ["y"])), "the operator Loop is not known"),
        (model(ends(1, 3), GOOD, node("Relu", ["z"], ["y"])), "reads 'z', which nothing gives before it"),
        (model(ends(1, 3), GOOD, node("Relu", ["y"], ["y"])), "reads 'y', which nothing gives before it"),
        (model(ends(1, 3), GOOD, node("Relu", ["x"], ["z"])), "nothing gives its output 'y'"),
        (model(ends(1, 3), GOOD, node("MatMul", ["x"], ["y"])), "is not an ONNX network"),
        (model(GOOD, LONE), "expected one input and one output, got 0 and 0"),
        (model(ends(1, 3), field(5, field(2, 1) + field(8, "W") + field(13, "path")), LONE), "lie in another file"),
        (
            model(ends(1, 3), *(node("Add", [f"v{i}", f"v{i + 1}"], [f"v{i + 2}"]) for i in range(1, 60)),
                  node("Relu", ["x"], ["v1"]), node("Tanh", ["v1"], ["v2"])),
            "which nothing gives before it",
        ),
        (
            model(ends(1, 3), node("Relu", ["x"], ["v1"]), node("Tanh", ["v1"], ["v2"]),
                  *(node("Add", [f"v{i}", f"v{i + 1}"], [f"v{i + 2}"]) for i in range(1, 60))),
            "too entangled",
        ),
    ],
)  # fmt: skip
def test_hostile_onnx_files(data, message, tmp_path):
    path = tmp_path / "hostile.onnx"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_onnx(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path}: ")


def test_random_damage_raises_nothing_else(tmp_path):
    rng, good, path = np.random.default_rng(0), model(ends(1, 3), GOOD, LONE), tmp_path / "d.onnx"
    for _ in range(300):
        data = np.frombuffer(good, dtype=np.uint8).copy()
        data[rng.integers(len(data), size=rng.integers(1, 4))] = rng.integers(256)
        path.write_bytes(data.tobytes())
        with contextlib.suppress(ValueError):  # and nothing else
            read_onnx(path)
