"""Every bad input gets its exact message, and good input comes back unchanged."""

import numpy as np
import pytest
import torch

from hadamard.validation import check_option, check_range, check_same, check_tensor

pytestmark = pytest.mark.bad_input
nan, inf = float("nan"), float("inf")

TENSORS = [
    ([1.0], {}, TypeError, "x must be a torch.Tensor, got list"),
    (np.ones(2), {}, TypeError, "x must be a torch.Tensor, got ndarray"),
    (None, {}, TypeError, "x must be a torch.Tensor, got NoneType"),
    (torch.ones(2, dtype=torch.int64), {}, TypeError, "x must have a floating or complex dtype, got torch.int64"),
    (torch.ones(2, dtype=torch.bool), {}, TypeError, "x must have a floating or complex dtype, got torch.bool"),
    (torch.ones(2), {"dtype": "integer"}, TypeError, "x must have an integer dtype, got torch.float32"),
    (torch.ones(2) > 0, {"dtype": "integer"}, TypeError, "x must have an integer dtype, got torch.bool"),
    (torch.ones(2), {"dtype": "complex"}, TypeError, "x must have a complex dtype, got torch.float32"),
    (torch.ones(2) + 1j, {"dtype": "floating"}, TypeError, "x must have a floating dtype, got torch.complex64"),
    (torch.ones(2), {"dtype": torch.float64}, TypeError, "x must have dtype torch.float64, got torch.float32"),
    (torch.ones(2), {"ndim": 2}, ValueError, "x must have 2 dimension(s), got shape (2,)"),
    (torch.ones(2), {"ndim": (3, 2)}, ValueError, "x must have 2 or 3 dimension(s), got shape (2,)"),
    (torch.ones(2), {"ndim": 0}, ValueError, "x must have 0 dimension(s), got shape (2,)"),
    (torch.ones(2, 3), {"shape": (2,)}, ValueError, "x must have shape (..., 2), got (2, 3)"),
    (torch.ones(3), {"shape": (None, 3)}, ValueError, "x must have shape (..., *, 3), got (3,)"),
    (torch.ones(4, 2, 3), {"shape": (3, None)}, ValueError, "x must have shape (..., 3, *), got (4, 2, 3)"),
    (torch.ones(2, 0), {}, ValueError, "x must not be empty, got shape (2, 0)"),
    (
        torch.tensor([1.0, nan]),
        {},
        ValueError,
        "x must be finite, got 1 NaN or infinite value in a tensor of shape (2,)",
    ),
    (
        torch.tensor([inf, -inf]),
        {},
        ValueError,
        "x must be finite, got 2 NaN or infinite values in a tensor of shape (2,)",
    ),
    (
        torch.tensor([complex(0, inf)]),
        {},
        ValueError,
        "x must be finite, got 1 NaN or infinite value in a tensor of shape (1,)",
    ),
]


@pytest.mark.parametrize("x, options, error, message", TENSORS)
def test_bad_tensor(x, options, error, message):
    with pytest.raises(error) as caught:
        check_tensor(x, "x", **options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "x, options",
    [
        (torch.ones(2), {}),
        (torch.ones(()), {"ndim": 0}),
        (torch.ones(5, 2, 3), {"shape": (2, None)}),
        (torch.ones(2, 3), {"ndim": (1, 2), "shape": (2, 3)}),
        (torch.ones(2), {"shape": ()}),
        (torch.tensor([nan, inf]), {"finite": False}),
        (torch.tensor([1, 2], dtype=torch.uint8), {"dtype": "integer"}),
        (torch.tensor([True]), {"dtype": None}),
        (torch.ones(2) + 1j, {"dtype": "complex"}),
        (torch.full((10,), 3e38), {}),
        (torch.full((10,), 6e4, dtype=torch.float16), {}),
        (torch.ones(2, requires_grad=True), {}),
    ],
)
def test_good_tensor(x, options):
    assert check_tensor(x, "x", **options) is x


RANGES = [
    ("1", {}, TypeError, "a must be a number, got str"),
    (None, {}, TypeError, "a must be a number, got NoneType"),
    (True, {}, TypeError, "a must be a number, got bool"),
    (1j, {}, TypeError, "a must be a number, got complex"),
    ([1.0], {}, TypeError, "a must be a number, got list"),
    (torch.ones(2), {}, TypeError, "a must be a number, got Tensor"),
    (np.ones(2), {}, TypeError, "a must be a number, got ndarray"),
    (torch.tensor(True), {}, TypeError, "a must be a number, got Tensor"),
    (torch.tensor(1j), {}, TypeError, "a must be a number, got Tensor"),
    (nan, {}, ValueError, "a must be a number, got nan"),
    (nan, {"low": 0}, ValueError, "a must be >= 0, got nan"),
    (-1, {"low": 0}, ValueError, "a must be >= 0, got -1"),
    (0, {"low": 0, "closed": "neither"}, ValueError, "a must be > 0, got 0"),
    (0.0, {"low": 0, "high": 1, "closed": "right"}, ValueError, "a must be > 0 and <= 1, got 0.0"),
    (1.0, {"low": 0, "high": 1, "closed": "left"}, ValueError, "a must be >= 0 and < 1, got 1.0"),
    (2, {"high": 1}, ValueError, "a must be <= 1, got 2"),
    (inf, {"high": 1, "closed": "neither"}, ValueError, "a must be < 1, got inf"),
    (1.0, {"integer": True}, TypeError, "a must be an integer, got float 1.0"),
    (torch.ones(2), {"low": 2, "elementwise": True}, ValueError, "a must be >= 2, got 1.0"),
    (
        torch.tensor([1.0, 5.0]),
        {"low": 0, "high": 4, "elementwise": True},
        ValueError,
        "a must be >= 0 and <= 4, got 5.0",
    ),
    (torch.tensor([1.0, nan]), {"low": 0, "elementwise": True}, ValueError, "a must be >= 0, got nan"),
    (torch.ones(0), {"low": 0, "elementwise": True}, ValueError, "a must not be empty, got shape (0,)"),
    (torch.ones(2) + 1j, {"low": 0, "elementwise": True}, TypeError, "a must have a real dtype, got torch.complex64"),
]


@pytest.mark.parametrize("value, options, error, message", RANGES)
def test_bad_range(value, options, error, message):
    with pytest.raises(error) as caught:
        check_range(value, "a", **options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "value, options",
    [
        (0, {"low": 0}),
        (1, {"low": 0, "high": 1}),
        (0.5, {"low": 0, "high": 1, "closed": "neither"}),
        (inf, {"low": 0}),
        (-5.0, {}),
        (np.float32(0.5), {"low": 0}),
        (np.int64(3), {"low": 0, "integer": True}),
        (torch.tensor(0.5), {"low": 0}),
        (torch.tensor([[0.0, 1.0]]), {"low": 0, "high": 1, "elementwise": True}),
        (0.5, {"low": 0, "elementwise": True}),
    ],
)
def test_good_range(value, options):
    assert check_range(value, "a", **options) is value


def test_option():
    assert check_option("a", "how", ("a", "b")) == "a"
    with pytest.raises(ValueError) as caught:
        check_option("c", "how", ("a", "b"))
    assert str(caught.value) == "how must be one of 'a', 'b', got 'c'"
    with pytest.raises(ValueError) as caught:
        check_option(["a"], "how", {"a": 1, "b": 2})
    assert str(caught.value) == "how must be one of 'a', 'b', got ['a']"


def test_same():
    check_same()
    check_same(a=torch.ones(2), b=None, c=torch.ones(3))
    with pytest.raises(ValueError) as caught:
        check_same(a=None, b=torch.ones(2), c=torch.ones(2).double())
    assert str(caught.value) == "b and c must have the same dtype, got torch.float32 and torch.float64"
    with pytest.raises(ValueError) as caught:
        check_same(b=torch.ones(2), c=torch.ones(2, device="meta"))
    assert str(caught.value) == "b and c must have the same device, got cpu and meta"
