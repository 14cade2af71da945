"""ONNX files read as networks that can be certified, without running anything and without further packages.

Only what a feed-forward network needs is read; shapes and references are checked before they are used.
"""

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hadamard.certification.networks import Residual
from hadamard.certification.protobuf import fields, node, tensor, value_info

__all__ = ["read_onnx"]

_MOST = 10_000
_SIMPLE: dict[str, Callable[[], nn.Module]] = {
    "Relu": nn.ReLU, "Tanh": nn.Tanh, "Sigmoid": nn.Sigmoid, "Softplus": nn.Softplus, "Identity": nn.Identity,
    "Dropout": nn.Identity, "Flatten": nn.Flatten,
}  # fmt: skip


def read_onnx(path: str | Path) -> tuple[nn.Sequential, tuple[int, ...]]:
    """Read a feed-forward or residual network.

    Parameters
    ----------
    path
        An ONNX file with one input and one output, whose weights it holds itself. Operators: Gemm, MatMul and Add,
        Conv, BatchNormalization, Relu, LeakyRelu, Tanh, Sigmoid, Softplus, Flatten, Reshape to one row an image,
        Identity, Dropout, and Add of two branches.

    Returns
    -------
    tuple
        The network, in evaluation mode, and the shape of one input.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no ONNX file, truncated, or holds anything else; one line that names the file.

    Examples
    --------
    >>> read_onnx("network.onnx")
    Traceback (most recent call last):
        ...
    FileNotFoundError: network.onnx: no such file
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        graph = next((payload for number, payload in fields(path.read_bytes()) if number == 7), None)
        if not isinstance(graph, bytes):
            raise ValueError("it holds no graph")
        network, shape = _network(graph)
        with torch.no_grad():
            network(torch.zeros(1, *shape, dtype=next(network.parameters(), torch.zeros(())).dtype))
    except (ValueError, RuntimeError, TypeError, IndexError, OverflowError, UnicodeDecodeError, struct.error) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: is not an ONNX network that can be certified ({reason})") from None
    return network, shape


def _network(graph: bytes) -> tuple[nn.Sequential, tuple[int, ...]]:
    constants: dict[str, np.ndarray] = {}
    nodes, inputs, outputs = [], [], []
    for number, payload in fields(graph):
        if number == 1:
            nodes.append(node(payload))
        elif number == 5:
            name, values = tensor(payload)
            constants[name] = values
        elif number == 11:
            inputs.append(value_info(payload))
        elif number == 12:
            outputs.append(value_info(payload)[0])
    inputs = [(name, shape) for name, shape in inputs if name not in constants]
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(f"expected one input and one output, got {len(inputs)} and {len(outputs)}")
    name, shape = inputs[0]
    if len(shape) < 2 or any(size <= 0 for size in shape[1:]) or math.prod(shape[1:]) > 1_000_000:
        raise ValueError(f"its input must have a known shape (batch, ...) of moderate size, got {shape}")
    chains: dict[str, list[nn.Module]] = {name: []}
    for kind, reads, gives, options in nodes:
        if kind == "Constant":
            constants[gives[0]] = options["value"]
            continue
        live = [r for r in reads if r in chains]
        if not live and all(r in constants for r in reads if r):
            if kind in ("Identity", "Transpose") and reads:
                constant = constants[reads[0]]
                constants[gives[0]] = np.transpose(constant, options.get("perm")) if kind == "Transpose" else constant
                continue
            raise ValueError(f"{kind} of constants is not known: export with constants folded")
        unknown = [r for r in reads if r and r not in chains and r not in constants]
        if unknown:
            raise ValueError(f"{kind} reads {unknown[0]!r}, which nothing gives before it")
        chains[gives[0]] = _append(kind, reads, options, chains, constants)
        if _length(chains[gives[0]]) > _MOST:
            raise ValueError("its branches are too entangled")
    if outputs[0] not in chains:
        raise ValueError(f"nothing gives its output {outputs[0]!r}")
    return nn.Sequential(*chains[outputs[0]]).eval(), tuple(shape[1:])


def _append(
    kind: str,
    reads: list[str],
    options: dict[str, Any],
    chains: dict[str, list[nn.Module]],
    held: dict[str, np.ndarray],
) -> list[nn.Module]:
    """The chain of modules up to and with this node."""
    if kind == "Add" and all(r in chains for r in reads):
        return _branches(chains[reads[0]], chains[reads[1]])
    if kind == "Add" and reads[0] in held:
        reads = reads[::-1]
    before = chains.get(reads[0])
    if before is None or any(r in chains for r in reads[1:]):
        raise ValueError(f"{kind} of these inputs is not known")
    weights = [held[r] for r in reads[1:] if r]
    if kind == "Add":
        last = before[-1] if before else None
        if not isinstance(last, nn.Linear) or last.bias is not None:
            raise ValueError("Add of a constant is known behind MatMul only")
        return [*before[:-1], _linear(last.weight.detach().numpy(), weights[0])]
    if kind == "MatMul":
        return [*before, _linear(weights[0].T)]
    if kind == "Gemm":
        if options.get("transA", 0) or options.get("alpha", 1.0) != 1 or options.get("beta", 1.0) != 1:
            raise ValueError("Gemm with transA, alpha or beta is not known")
        matrix = weights[0] if options.get("transB", 0) else weights[0].T
        return [*before, _linear(matrix, *weights[1:2])]
    if kind == "Conv":
        return [*before, _convolution(options, *weights)]
    if kind == "BatchNormalization":
        return [*before, _batch_norm(options.get("epsilon", 1e-5), *weights)]
    if kind == "LeakyRelu":
        return [*before, nn.LeakyReLU(options.get("alpha", 0.01))]
    if kind == "Reshape":
        if len(weights[0]) != 2:
            raise ValueError("Reshape is known to one row an image only")
        return [*before, nn.Flatten()]
    if kind == "Flatten" and options.get("axis", 1) != 1:
        raise ValueError("Flatten must keep the batch")
    if kind not in _SIMPLE:
        raise ValueError(f"the operator {kind} is not known")
    return [*before, _SIMPLE[kind]()]


def _branches(a: list[nn.Module], b: list[nn.Module]) -> list[nn.Module]:
    shared = next((i for i, (x, y) in enumerate(zip(a, b)) if x is not y), min(len(a), len(b)))
    joined = Residual(nn.Sequential(*a[shared:]), nn.Sequential(*b[shared:]))
    vars(joined)["length"] = _length(a[shared:]) + _length(b[shared:])
    return [*a[:shared], joined]


def _length(chain: list[nn.Module]) -> int:
    """Steps, those in branches counted as often as they are taken: a small file may ask for very many."""
    return sum(vars(module).get("length", 1) for module in chain)


def _linear(weight: np.ndarray, bias: np.ndarray | None = None) -> nn.Linear:
    if weight.ndim != 2 or (bias is not None and bias.size != len(weight)):
        raise ValueError(
            f"expected a matrix and as long a bias, got {weight.shape}{'' if bias is None else bias.shape}"
        )
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight = _parameter(weight)
    if bias is not None:
        layer.bias = _parameter(bias.reshape(-1))
    return layer


def _convolution(options: dict[str, Any], weight: np.ndarray, bias: np.ndarray | None = None) -> nn.Module:
    dims = weight.ndim - 2
    pads = options.get("pads", [0] * 2 * dims)
    if dims not in (1, 2) or pads[:dims] != pads[dims:] or options.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise ValueError("Conv is known in one and two dimensions, with equal padding at both ends")
    groups = options.get("group", 1)
    layer = (nn.Conv1d if dims == 1 else nn.Conv2d)(
        weight.shape[1] * groups, weight.shape[0], weight.shape[2:], tuple(options.get("strides", [1] * dims)),
        tuple(pads[:dims]), tuple(options.get("dilations", [1] * dims)), groups, bias is not None,
    )  # fmt: skip
    layer.weight = _parameter(weight)
    if bias is not None:
        layer.bias = _parameter(bias)
    return layer


def _batch_norm(eps: float, scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> nn.Module:
    layer = nn.BatchNorm2d(len(scale), eps)
    layer.weight, layer.bias = _parameter(scale), _parameter(bias)
    layer.running_mean, layer.running_var = _parameter(mean).data, _parameter(variance).data
    return layer


def _parameter(x: np.ndarray) -> nn.Parameter:
    if not np.issubdtype(x.dtype, np.floating) or not np.isfinite(x).all():
        raise ValueError(f"weights must be finite floating-point numbers, got {x.dtype}")
    return nn.Parameter(torch.from_numpy(np.array(x, dtype=x.dtype if x.dtype == np.float64 else np.float32)))
