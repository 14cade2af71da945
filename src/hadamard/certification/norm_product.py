"""The bound that everybody uses: the norms of the layers, multiplied, each of them proved."""

import math

import numpy as np
from torch import nn

from hadamard.certification.enclosure import Enclosed
from hadamard.certification.networks import Residual, Rules, constraint_of, flat, linear_map
from hadamard.solvers.conic import proved_above

__all__ = ["norm_product", "operator_norm_bound"]

_PAY = 1 + 1e-12


def norm_product(
    steps: list[nn.Module], shape: tuple[int, ...], norm: str, rules: Rules
) -> tuple[float, tuple[int, ...]]:
    """The product over a chain (a sum over the branches of a Residual), and the shape behind it."""
    total = 1.0
    for step in steps:
        if isinstance(step, Residual):
            around, after = norm_product(flat(step.shortcut), shape, norm, rules)
            through, shape = norm_product(flat(step.inner), shape, norm, rules)
            if after != shape:
                raise ValueError(f"the branches of Residual must agree in shape, got {after} and {shape}")
            total *= (around + through) * _PAY
            continue
        matrix, after_step = linear_map(step, shape)
        if after_step is not None:
            shape = after_step
            total *= 1.0 if matrix is None else operator_norm_bound(matrix, norm)
        else:
            total *= constraint_of(step, shape, "reduced", rules)[0].lipschitz[norm == "linf"]
        total *= _PAY
    if math.isnan(total):
        raise ValueError("the product of the layers' norms is not a number")
    return total, shape


def operator_norm_bound(matrix: Enclosed, norm: str) -> float:
    """A proved bound on a matrix's largest singular value (``"l2"``) or largest row sum (``"linf"``)."""
    radius = 0.0 if matrix.radius is None else matrix.radius
    rows = float((np.abs(matrix.middle) + radius).sum(1).max()) * (1 + 1e-9)
    if norm == "linf" or rows == 0:
        return rows
    if rows > 1e150:  # its square overflows
        return math.inf
    gram = (matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix).symmetric()
    top = float(np.linalg.eigvalsh(gram.middle)[-1])
    eye, spread = np.eye(len(gram.middle)), gram.spread()
    for slack in 10.0 ** np.arange(-13, 0):
        square = max(top, 0.0) * (1 + slack) + spread
        if proved_above(square * eye - gram.middle, spread + 2.0**-52 * square):
            return math.sqrt(square) * _PAY
    columns = float((np.abs(matrix.middle) + radius).sum(0).max()) * (1 + 1e-9)
    return math.sqrt(rows * columns) * _PAY
