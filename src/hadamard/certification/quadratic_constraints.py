"""What is known of an activation between any two inputs, as quadratic inequalities.

An activation is written as ``phi(z) = skip z + write d(read z)``. With ``w = read z``, each unit of it (a neuron, a
group) has differences ``D = (Dw, Dd)`` between any two inputs with ``D^T K D >= 0`` for each of its matrices ``K``;
where that form is zero, the multiplier of ``K`` may have either sign.

* Slopes in [a, b]: ``K = [[-2ab, a + b], [a + b, -2]]``.
* Sorting a group keeps its sum and does not increase its norm. With a basis ``U`` of the vectors of sum zero it is
  ``z + U d`` and ``K = [[0, -I], [-I, -U^T U]]`` says all of that, in one unit of ``g - 1`` entries (``"reduced"``).
  The paper says it on ``(Dz, Dphi)`` by four matrices, three of them with free multipliers (``"nsr"``).
* A Householder activation is ``z + 2 v relu(-v @ z)``: it keeps what is orthogonal to ``v``, and is one ReLU.

References
----------
P. Pauli, A. Havens, A. Araujo, S. Garg, F. Khorrami, F. Allgöwer, B. Hu. Novel quadratic constraints for extending
LipSDP beyond slope-restricted activations. ICLR 2024, arXiv:2401.14033.
M. Fazlyab, A. Robey, H. Hassani, M. Morari, G. J. Pappas. Efficient and accurate estimation of Lipschitz constants for
deep neural networks. NeurIPS 2019, arXiv:1906.04893.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from hadamard.certification.enclosure import Enclosed
from hadamard.validation import check_option

__all__ = ["QuadraticConstraint", "householder", "slope_restricted", "sorting"]

FORMS = ("reduced", "nsr", "lambda", "residual")


@dataclass(frozen=True)
class QuadraticConstraint:
    """An activation of one layer, as the module's docstring writes it.

    Attributes
    ----------
    skip, read, write
        Matrices of shapes (n, n), (units * p, n) and (n, units * q).
    kernels
        Pairs of an array (units, p + q, p + q) and whether its multipliers must not be negative.
    lipschitz
        Bounds on the activation's own Lipschitz constants in the norms 2 and infinity.
    """

    skip: Enclosed
    read: Enclosed
    write: Enclosed
    kernels: tuple[tuple[np.ndarray, bool], ...]
    lipschitz: tuple[float, float] = (1.0, 1.0)

    @property
    def units(self) -> int:
        """Number of neurons or groups."""
        return len(self.kernels[0][0])


def slope_restricted(low: np.ndarray | float, high: np.ndarray | float, width: int) -> QuadraticConstraint:
    """Neurons that act alone, with all difference quotients in [low, high].

    Parameters
    ----------
    low, high
        The slopes' ends, one for all or one for each neuron.
    width
        Number of neurons.

    Examples
    --------
    >>> slope_restricted(0.0, 1.0, 3).kernels[0][0][0]
    array([[ 0.,  1.],
           [ 1., -2.]])
    """
    a, b = np.broadcast_to(low, width).astype(float), np.broadcast_to(high, width).astype(float)
    K = np.empty((width, 2, 2))
    K[:, 0, 0], K[:, 1, 1] = -2 * a * b, -2.0
    K[:, 0, 1] = K[:, 1, 0] = a + b
    slack = np.where(a != 0, 8 * np.finfo(float).eps, 0.0)  # a + b and a b are rounded: add a definite matrix
    K[:, 0, 0] += slack * (a**2 + b**2)
    K[:, 1, 1] += slack
    steepest = float(np.maximum(np.abs(a), np.abs(b)).max())
    one = Enclosed(sparse.identity(width, format="csr"))
    return QuadraticConstraint(_zero(width), one, one, ((K, True),), (steepest, steepest))


def sorting(width: int, group_size: int, form: str = "reduced") -> QuadraticConstraint:
    """Groups of consecutive entries that are sorted, in either order.

    Parameters
    ----------
    width, group_size
        Size of the layer and of its groups, which must divide it.
    form
        ``"reduced"``, ``"nsr"`` (the paper's), ``"lambda"`` (nothing but that it is 1-Lipschitz) or ``"residual"``
        (a ReLU for each output; groups of two only).

    Examples
    --------
    >>> [sorting(8, 4, form).kernels[0][0].shape for form in ("reduced", "nsr")]
    [(2, 6, 6), (2, 8, 8)]
    """
    check_option(form, "form", FORMS)
    if width % group_size:
        raise ValueError(f"groups of {group_size} must divide the layer's width, got {width}")
    units, g = width // group_size, group_size
    if form == "lambda":
        return _one_lipschitz(units, g)
    if form == "nsr":
        return _preserving(np.ones((units, g, g)), (1.0, 1.0))
    if form == "residual":
        if g != 2:
            raise ValueError(f"the residual rewriting is of groups of 2 (MaxMin), got groups of {g}")
        return _relu_an_output(units)
    U = np.diff(np.eye(g), axis=0).T  # neighbours' differences: integers, so no rounding
    K = np.block([[np.zeros((g - 1, g - 1)), -np.eye(g - 1)], [-np.eye(g - 1), -U.T @ U]])
    write = sparse.kron(sparse.identity(units), U, format="csr")
    one = Enclosed(sparse.identity(width, format="csr"))
    return QuadraticConstraint(
        one, Enclosed(write.T.tocsr()), Enclosed(write), ((np.tile(K, (units, 1, 1)), True),), (1.0, 1.0)
    )


def householder(v: np.ndarray, form: str = "reduced") -> QuadraticConstraint:
    """Groups that are reflected where ``v @ z < 0``.

    Parameters
    ----------
    v
        Directions of shape (groups, group size), of any length.
    form
        As in :func:`sorting`.

    Examples
    --------
    >>> householder(np.array([[3.0, 4.0]])).kernels[0][0][0]
    array([[ 0.,  2.],
           [ 2., -4.]])
    """
    check_option(form, "form", FORMS)
    units, g = v.shape
    unit = v / np.abs(v).max(1, keepdims=True)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    error = 2.0**-50 * (g + 4)  # relative, of these few operations
    both = np.abs(np.eye(g) - 2 * unit[:, :, None] * unit[:, None, :]).sum(2).max()
    lipschitz = (1.0, float(max(1.0, both) * (1 + 8 * error)))
    if form == "lambda":
        return _one_lipschitz(units, g, lipschitz)
    if form == "nsr":
        return _preserving(np.eye(g) - unit[:, :, None] * unit[:, None, :], lipschitz)
    if form == "residual":
        raise ValueError("the residual rewriting is of MaxMin, got Householder; method='reduced' uses its one ReLU")
    direction = _blocks(unit)
    radius = error * np.abs(direction)
    read, write = Enclosed(-direction.T, radius.T), Enclosed(2 * direction, 2 * radius)
    one = Enclosed(sparse.identity(units * g, format="csr"))
    relu = slope_restricted(0, 1, units).kernels[0][0]
    return QuadraticConstraint(one, read, write, ((2 * relu, True),), lipschitz)


def _one_lipschitz(units: int, g: int, lipschitz: tuple[float, float] = (1.0, 1.0)) -> QuadraticConstraint:
    K = np.diag(np.r_[np.ones(g), -np.ones(g)])
    one = Enclosed(sparse.identity(units * g, format="csr"))
    return QuadraticConstraint(_zero(units * g), one, one, ((np.tile(K, (units, 1, 1)), True),), lipschitz)


def _preserving(e: np.ndarray, lipschitz: tuple[float, float]) -> QuadraticConstraint:
    """The paper's form: 1-Lipschitz, and ``E Dphi = E Dz`` by three equations (gamma, nu, tau), two independent.

    The rounding of ``E`` is not carried on: what is found so is certified in the reduced form, which has the same
    multipliers of the inequality.
    """
    units, g = e.shape[:2]
    zero = np.zeros((units, g, g))
    eye = np.tile(np.eye(g), (units, 1, 1))
    kernels = (
        (np.block([[eye, zero], [zero, -eye]]), True),
        (np.block([[e, zero], [zero, -e]]), False),
        (np.block([[-2 * e, e], [e, zero]]), False),
        (np.block([[zero, e], [e, -2 * e]]), False),
    )
    one = Enclosed(sparse.identity(units * g, format="csr"))
    return QuadraticConstraint(_zero(units * g), one, one, kernels, lipschitz)


def _relu_an_output(units: int) -> QuadraticConstraint:
    """``max(a, b) = b + relu(a - b)`` and ``min(a, b) = a - relu(a - b)``, as if these were two neurons."""
    eye = sparse.identity(units)
    skip, read, write = (
        Enclosed(sparse.kron(eye, np.array(pair), format="csr"))
        for pair in ([[0.0, 1.0], [1.0, 0.0]], [[1.0, -1.0], [1.0, -1.0]], [[1.0, 0.0], [0.0, -1.0]])
    )
    return QuadraticConstraint(skip, read, write, slope_restricted(0, 1, 2 * units).kernels)


def _blocks(v: np.ndarray) -> np.ndarray:
    """The directions as columns, each in its group's rows."""
    units, g = v.shape
    out = np.zeros((units * g, units))
    out[np.arange(units * g), np.repeat(np.arange(units), g)] = v.ravel()
    return out


def _zero(width: int) -> Enclosed:
    return Enclosed(sparse.csr_matrix((width, width)))
