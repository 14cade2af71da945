"""The linear matrix inequality of a network: assembled with the rounding known, solved, and proved."""

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
from scipy import sparse

from hadamard.certification.enclosure import Enclosed
from hadamard.certification.networks import Trace
from hadamard.solvers.conic import proved_above

__all__ = ["LMI", "Term", "assemble", "certify", "feasible"]


@dataclass(frozen=True)
class Term:
    """``rows^T (K o y) rows``: ``kernel`` is block diagonal, and each row belongs to one variable."""

    rows: Enclosed
    kernel: sparse.csr_matrix
    owner: np.ndarray


@dataclass(frozen=True)
class LMI:
    """Minimise ``cost @ y`` where ``constant + sum of terms`` is semidefinite and ``y[signed] >= 0``.

    Attributes
    ----------
    blocks
        Columns, in the order of the network, with the variables and the term that make them definite: the input first.
    """

    constant: Enclosed
    terms: tuple[Term, ...]
    cost: np.ndarray
    signed: np.ndarray
    blocks: tuple[tuple[slice, np.ndarray, int], ...]

    def at(self, y: np.ndarray) -> np.ndarray:
        """The matrix, in floating point."""
        M = self.constant.middle.copy()
        for t in self.terms:
            M += t.rows.middle.T @ (sparse.diags(y[t.owner]) @ t.kernel @ t.rows.middle)
        return (M + M.T) / 2

    def enclosed(self, y: np.ndarray) -> Enclosed:
        """The matrix and the error of its entries."""
        M = self.constant
        for t in self.terms:
            weighted = Enclosed((sparse.diags(y[t.owner]) @ t.kernel).tocsr())
            # an entry of the kernel times y is one rounding, paid by the products' own bound of (terms + 1) roundings
            M = M + t.rows.T @ (weighted @ t.rows)
        return M.symmetric()

    def compressed(self, inputs: int) -> "LMI":
        """The same for an l2 ball of inputs of which the rows see a subspace only: in coordinates of that subspace."""
        seen = [t.rows.middle[:, :inputs] for t in self.terms[1:]] + [self.constant.middle[:inputs, :].T]
        V, s, _ = np.linalg.svd(np.concatenate(seen).T, full_matrices=False)
        V = V[:, s > 1e-13 * s[0]] if len(s) and s[0] > 0 else V[:, :1]
        if V.shape[1] >= 0.8 * inputs:
            return self
        n, r = self.constant.shape[0], V.shape[1]
        turn = scipy.linalg.block_diag(V, np.eye(n - inputs))
        terms = [replace(t, rows=Enclosed(t.rows.middle @ turn)) for t in self.terms[1:]]
        ball = Term(Enclosed(np.eye(r, n - inputs + r)), sparse.identity(r, format="csr"), np.zeros(r, dtype=int))
        blocks = [(slice(0, r), *self.blocks[0][1:])]
        blocks += [(slice(c.start - inputs + r, c.stop - inputs + r), v, t) for c, v, t in self.blocks[1:]]
        constant = Enclosed(turn.T @ self.constant.middle @ turn)
        return replace(self, constant=constant, terms=(ball, *terms), blocks=tuple(blocks))


def assemble(trace: Trace, output: Enclosed, norm: str, shared: bool) -> LMI:
    """The inequality whose least ``cost @ y`` is the squared l2 bound, or the l_inf bound of a single output.

    Parameters
    ----------
    trace, output
        The network; ``output`` has one row where ``norm`` is ``"linf"``.
    norm
        ``"l2"`` or ``"linf"``.
    shared
        One multiplier a layer.
    """
    inputs, inner = trace.inputs, trace.columns
    n = inner + (norm == "linf")
    ball = np.zeros(inputs, dtype=int) if norm == "l2" else np.arange(inputs)
    count = int(ball[-1]) + 1
    cost = [1.0] if norm == "l2" else [0.5] * inputs
    terms = [Term(Enclosed(np.eye(inputs, n)), sparse.identity(inputs, format="csr"), ball)]
    signed, blocks = [True] * count, [(slice(0, inputs), np.arange(count), 0)]
    for layer in trace.layers:
        qc = layer.constraint
        rows, kernels = _rows(layer.read.padded(n), layer.columns, qc.units, n), qc.kernels
        for j, (K, positive) in enumerate(kernels):
            one = shared and positive
            variables = count + (np.zeros(qc.units, dtype=int) if one else np.arange(qc.units))
            size = K.shape[1]
            kernel = sparse.bsr_matrix((-K, np.arange(qc.units), np.arange(qc.units + 1))).tocsr()
            terms.append(Term(rows, kernel, np.repeat(variables, size)))
            if j == 0:
                blocks.append((layer.columns, np.unique(variables), len(terms) - 1))
            count = int(variables[-1]) + 1
            signed += [positive] * (count - len(signed))
    cost += [0.0] * (count - len(cost))
    if norm == "l2":
        constant = -(output.T @ output)
    else:
        row = output.padded(n)
        middle, radius = np.zeros((n, n)), np.zeros((n, n))
        middle[-1], radius[-1] = -row.middle[0], 0.0 if row.radius is None else row.radius[0]
        constant = Enclosed(middle + middle.T, radius + radius.T)
        terms.append(Term(Enclosed(np.eye(n)[-1:]), sparse.identity(1, format="csr"), np.array([count])))
        blocks.append((slice(n - 1, n), np.array([count]), len(terms) - 1))
        cost, signed = [*cost, 0.5], [*signed, True]
    return LMI(constant.symmetric(), tuple(terms), np.array(cost), np.array(signed), tuple(blocks))


def feasible(lmi: LMI, factor: float = 2.0) -> np.ndarray:
    """A strictly feasible point, in closed form: one multiplier a layer, from the last layer to the first.

    Given the later ones, a layer's multiplier must exceed an eigenvalue of a Schur complement; it is ``factor`` times
    that (compare ECLipsE, Y. Xu and S. Sivaranjani, NeurIPS 2024, arXiv:2404.04375).
    """
    y, M = np.zeros(len(lmi.cost)), lmi.constant.middle.copy()
    for columns, variables, at in reversed(lmi.blocks):
        term, later = lmi.terms[at], slice(columns.stop, len(M))
        B = term.rows.middle.T @ (term.kernel @ term.rows.middle)
        need = -M[columns, columns]
        if columns.stop < len(M):
            coupling = M[columns, later]
            need = need + coupling @ scipy.linalg.cho_solve(scipy.linalg.cho_factor(M[later, later]), coupling.T)
        least = float(scipy.linalg.eigh((need + need.T) / 2, B[columns, columns], eigvals_only=True)[-1])
        if least <= 1e-12 * float(np.abs(need).max(initial=0.0)):  # nothing behind it needs it, yet it must be above 0
            least = 1e-6 * max(1.0, float(y.max()))
        step = factor * least
        y[variables] = step
        M += step * B
    return y


def certify(lmi: LMI, y: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Prove the inequality at ``y``, or at a point between it and ``inside`` that costs as little more as possible.

    Returns
    -------
    tuple or None
        The multipliers and the margin that the rounding needed; ``None`` where nothing could be proved.
    """
    y = np.where(lmi.signed, np.maximum(y, 0.0), y)
    if not np.isfinite(y).all():
        return None
    for weight in (0.0, *10.0 ** np.arange(-13, -0.5, 0.5), 1.0):
        point = y + weight * (inside - y)
        point = np.where(np.abs(point) < 1e-200, 0.0, np.where(lmi.signed, np.maximum(point, 0.0), point))
        M = _balanced(lmi.enclosed(point))
        if M is not None and proved_above(M.middle, M.spread()):
            return point, M.spread()
    return None


def _balanced(M: Enclosed) -> Enclosed | None:
    """Rows and columns times powers of two, so that the diagonal is about 1; ``None`` where that is not possible."""
    diagonal = np.diagonal(M.middle)
    if not np.isfinite(M.middle).all() or not np.isfinite(M.spread()) or (diagonal <= 0).any():
        return None
    scale = np.exp2(-np.round(np.log2(diagonal) / 2))
    return Enclosed(M.middle * scale * scale[:, None], None if M.radius is None else M.radius * scale * scale[:, None])


def _rows(read: Enclosed, columns: slice, units: int, n: int) -> Enclosed:
    """For each unit what it reads, then what it gives."""
    p, q = read.shape[0] // units, (columns.stop - columns.start) // units
    own = np.zeros((columns.stop - columns.start, n))
    own[:, columns] = np.eye(len(own))
    middle = np.concatenate([read.middle.reshape(units, p, n), own.reshape(units, q, n)], 1).reshape(-1, n)
    if read.radius is None:
        return Enclosed(middle)
    radius = np.concatenate([read.radius.reshape(units, p, n), np.zeros((units, q, n))], 1).reshape(-1, n)
    return Enclosed(middle, radius)
