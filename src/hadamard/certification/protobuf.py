"""Protocol buffers, as far as ONNX files need them: fields with a number, a type and a payload.

Lengths are checked before anything is read or made.
"""

import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["fields", "node", "tensor", "value_info"]

_TYPES = {1: "<f4", 6: "<i4", 7: "<i8", 10: "<f2", 11: "<f8"}


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and payload of each field: an integer, or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value: Any
            value, at = _varint(data, at)
        elif wire in (1, 2, 5):
            length = 8 if wire == 1 else 4
            if wire == 2:
                length, at = _varint(data, at)
            if length > len(data) - at:
                raise ValueError("it is truncated")
            value, at = data[at : at + length], at + length
        else:
            raise ValueError("it is not in the format of protocol buffers")
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for k in range(10):
        if at >= len(data):
            raise ValueError("it is truncated")
        byte = data[at]
        value, at = value | (byte & 127) << 7 * k, at + 1
        if byte < 128:
            return value, at
    raise ValueError("it is not in the format of protocol buffers")


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


def _integers(payload: Any) -> list[int]:
    """A repeated integer, packed or one by one."""
    if isinstance(payload, int):
        return [_signed(payload)]
    found, at = [], 0
    while at < len(payload):
        value, at = _varint(payload, at)
        found.append(_signed(value))
    return found


def node(data: bytes) -> tuple[str, list[str], list[str], dict[str, Any]]:
    """Operator, inputs, outputs and attributes."""
    kind, reads, gives, options = "", [], [], {}
    for number, payload in fields(data):
        if number == 1:
            reads.append(payload.decode())
        elif number == 2:
            gives.append(payload.decode())
        elif number == 4:
            kind = payload.decode()
        elif number == 5:
            name, value = _attribute(payload)
            options[name] = value
    if not gives:
        raise ValueError(f"a node {kind!r} gives nothing")
    return kind, reads, gives, options


def _attribute(data: bytes) -> tuple[str, Any]:
    name, value, several = "", None, []
    for number, payload in fields(data):
        if number == 1:
            name = payload.decode()
        elif number == 2:
            value = struct.unpack("<f", payload)[0]
        elif number == 3:
            value = _signed(payload)
        elif number == 4:
            value = payload
        elif number == 5:
            value = tensor(payload)[1]
        elif number == 8:
            several += _integers(payload)
    return name, several if several else value


def tensor(data: bytes) -> tuple[str, np.ndarray]:
    """Name and values."""
    name, dims, kind, raw = "", [], 0, None
    for number, payload in fields(data):
        if number == 1:
            dims += _integers(payload)
        elif number == 2:
            kind = payload
        elif number in (4, 10):  # float_data, double_data
            raw = (raw or b"") + payload
        elif number == 7:
            raw = (raw or b"") + np.array(_integers(payload), dtype="<i8").tobytes()
        elif number == 8:
            name = payload.decode()
        elif number == 9:
            raw = payload
        elif number in (13, 14) and payload:
            raise ValueError("its weights lie in another file")
    if kind not in _TYPES:
        raise ValueError(f"a tensor of type {kind} is not known")
    if any(size < 0 for size in dims) or math.prod(dims) * np.dtype(_TYPES[kind]).itemsize != len(raw or b""):
        raise ValueError(f"the tensor {name!r} of shape {tuple(dims)} does not have as many bytes")
    return name, np.frombuffer(raw or b"", dtype=_TYPES[kind]).reshape(dims)


def value_info(data: bytes) -> tuple[str, list[int]]:
    """Name and shape; 0 where a size is open."""
    name, shape = "", []
    for number, payload in fields(data):
        if number == 1:
            name = payload.decode()
        elif number == 2:
            for inner in (p for n, p in fields(payload) if n == 1):
                for sizes in (p for n, p in fields(inner) if n == 2):
                    for size in (p for n, p in fields(sizes) if n == 1):
                        shape.append(next((_signed(v) for n, v in fields(size) if n == 1), 0))
    return name, shape
