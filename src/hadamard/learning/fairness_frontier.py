"""The best accuracy that any classifier can have within budgets of global and local disparity.

Only the decision rates of each group in each client enter the disparities; which rows get a decision is then best
chosen so that as few labels as possible change. With v(z, s, y) the mass that is decided as y and P(z, s, y) the mass
whose label is y, the accuracy is ``sum min(v, P)``, which is concave, and both disparities are convex in v: a convex
program with as many unknowns as the table has cells.

References
----------
F. Hamman and S. Dutta, "Demystifying Local and Global Fairness Trade-offs in Federated Learning Using Partial
Information Decomposition", ICLR 2024, arXiv:2307.11333 (the accuracy and global-local fairness optimality problem).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from hadamard.learning.fairness_pid import codes, weights
from hadamard.learning.partial_information import mutual_information
from hadamard.results import Solution, warn_short
from hadamard.solvers.conic import solve
from hadamard.validation import check_range

__all__ = ["AGLFOP", "FairOptimum", "Frontier"]

_TOL = 1e-11  # asked of the solver; what it reached, the bound tells
_EQUAL = 1e-12  # bits that pass for no disparity
_GAP = 1e-6  # between the accuracy and its bound

Cells = Float[np.ndarray, "cells y"]


@dataclass(frozen=True, kw_only=True)
class FairOptimum(Solution):
    """The best accuracy within two budgets; ``value`` is the accuracy and ``residual`` its distance from the bound.

    Attributes
    ----------
    accuracy
        Of the decisions found, which keep to the budgets.
    bound
        No classifier within the budgets has a higher accuracy: proved by a dual point, whatever the solver did.
    global_, local
        Disparities of the decisions found, in bits.
    joint
        The joint distribution P(z, s, t, y) of group, client, label and decision.
    """

    accuracy: float
    bound: float
    global_: float
    local: float
    joint: Float[np.ndarray, "z s t y"]


@dataclass(frozen=True)
class Frontier:
    """The best accuracy over a grid of budgets.

    Attributes
    ----------
    eps_global, eps_local
        The budgets in bits.
    accuracy, bound
        Of shape (global, local), as in :class:`FairOptimum`.
    """

    eps_global: Float[np.ndarray, " g"]
    eps_local: Float[np.ndarray, " l"]
    accuracy: Float[np.ndarray, "g l"]
    bound: Float[np.ndarray, "g l"]

    def plot(self, ax: Any = None, models: Any = ()) -> Any:
        """Draw the accuracy over both budgets, by matplotlib.

        Parameters
        ----------
        ax
            Axes to draw into; new ones by default.
        models
            Points to mark: pairs of a name and an object with ``global_`` and ``local``, such as an audit.

        Returns
        -------
        matplotlib.axes.Axes
            The axes.
        """
        if ax is None:
            try:
                from matplotlib.figure import Figure
            except ImportError as error:
                raise ImportError("plots need matplotlib: pip install matplotlib") from error
            ax = Figure(layout="constrained").subplots()
        low, high = float(self.accuracy.min()), float(self.accuracy.max())
        levels = np.linspace(low, max(high, low + 1e-6), 21)
        filled = ax.contourf(self.eps_global, self.eps_local, self.accuracy.T, levels=levels, extend="min")
        ax.figure.colorbar(filled, label="best accuracy")
        for name, audit in models:
            ax.plot(audit.global_, audit.local, "o", color="white", markeredgecolor="black")
            ax.annotate(name, (audit.global_, audit.local), textcoords="offset points", xytext=(6, 4))
        ax.set(xlabel="global disparity I(Z; Y), bits", ylabel="local disparity I(Z; Y | S), bits")
        return ax


class AGLFOP:
    """The accuracy and global-local fairness optimality problem of a table of labels.

    Parameters
    ----------
    y_true
        Labels of shape (n,).
    sensitive_features, client, sample_weight
        As in :func:`~hadamard.learning.fairness_pid`.

    Notes
    -----
    The optimum may look at the label and at the client. It is a limit for every model on this table, and one that no
    model reaches where labels cannot be predicted perfectly. Departs from the paper, which has the four-way joint as
    unknowns and a local search (SLSQP) that calls a decomposition many times: here it is the smaller program above, by
    exponential cones, and each answer comes with a proof of how far it is from the optimum. Budgets between 0 and about
    1e-5 bits are hard for the solver, which the proof then shows; 0 itself is easy.

    Needs cvxpy: ``pip install 'hadamard[conic]'``.

    Examples
    --------
    >>> label, sex, site = [0, 0, 0, 1] + [0, 1, 1, 1], ["f"] * 4 + ["m"] * 4, [0, 1] * 4
    >>> limit = AGLFOP(label, sensitive_features=sex, client=site)
    >>> print(f"{limit.solve().accuracy:.3f} {limit.solve(0.0, 0.0).accuracy:.3f}")
    1.000 0.750
    """

    def __init__(
        self,
        y_true: ArrayLike,
        *,
        sensitive_features: ArrayLike,
        client: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> None:
        classes, t = codes(y_true, "y_true")
        if np.ndim(classes[0]):
            raise ValueError(f"y_true must have shape (n,), got rows such as {classes[0]}")
        groups, z = codes(sensitive_features, "sensitive_features", len(t))
        clients, s = codes(client, "client", len(t))
        shape = (len(groups), len(clients), len(classes))
        mass = np.bincount(np.ravel_multi_index((z, s, t), shape), weights(sample_weight, len(t)), math.prod(shape))
        self._set(mass.reshape(shape) / mass.sum(), classes)

    @classmethod
    def from_table(cls, table: ArrayLike) -> "AGLFOP":
        """The problem of a joint distribution P(z, s, t) of group, client and label, or of counts."""
        mass = np.asarray(table, dtype=float)
        if mass.ndim != 3 or mass.size == 0:
            raise ValueError(f"table must have shape (groups, clients, labels), got {mass.shape}")
        if not (np.isfinite(mass).all() and mass.min() >= 0 and mass.sum() > 0):
            raise ValueError("table must be finite, >= 0 and not all zero")
        problem = cls.__new__(cls)
        problem._set(mass / mass.sum(), list(range(mass.shape[2])))
        return problem

    def _set(self, table: Float[np.ndarray, "z s t"], classes: list[Any]) -> None:
        self.table, self.classes = table, classes
        self._z, self._s = np.nonzero(table.sum(2) > 0)
        self._labels = table[self._z, self._s]
        size = self._labels.sum(1)
        group, client = table.sum((1, 2)), table.sum((0, 2))
        # p(z, y) and P(z) p(y), then p(z, s, y) and P(z | s) p(s, y), as matrices times v
        total = (self._z == np.arange(len(group))[:, None]).astype(float)
        at_random = np.repeat(group[:, None], len(size), 1)
        together = (self._s == self._s[:, None]) * (size / client[self._s])[:, None]
        self._maps = [(total, at_random), (np.eye(len(size)), together)]
        self._compiled: dict[tuple[str, ...], Any] = {}

    def solve(self, eps_global: float = math.inf, eps_local: float = math.inf) -> FairOptimum:
        """The best accuracy within two budgets.

        Parameters
        ----------
        eps_global, eps_local
            The most I(Z; Y) and I(Z; Y | S) that are allowed, in bits; infinity for no limit.

        Raises
        ------
        ValueError
            If a budget is negative.

        Warns
        -----
        ConvergenceWarning
            If the accuracy found is more than 1e-6 below its bound.
        """
        budgets = [check_range(eps_global, "eps_global", 0), check_range(eps_local, "eps_local", 0)]
        kinds = tuple("free" if math.isinf(e) else "equal" if e == 0 else "cone" for e in budgets)
        if kinds not in self._compiled:
            self._compiled[kinds] = self._compile(kinds)
        problem, v, limits, duals = self._compiled[kinds]
        for limit, budget in zip(limits, budgets, strict=True):
            limit.value = 0.0 if math.isinf(budget) else budget * math.log(2)
        solved = solve(problem, warn=False, tol_gap_abs=_TOL, tol_gap_rel=_TOL, tol_feas=_TOL)
        found = v.value if v.value is not None else np.zeros_like(self._labels)
        found = self._repair(found, budgets)
        accuracy = float(np.minimum(found, self._labels).sum())
        bound = max(accuracy, self._bound(budgets, duals))
        converged = bound - accuracy <= _GAP
        message = "" if converged else f"accuracy {accuracy:.6f} found, {bound:.6f} not excluded ({solved.message})"
        if message:
            warn_short(f"AGLFOP: {message}")
        return FairOptimum(
            value=accuracy, iterations=solved.iterations, residual=bound - accuracy, converged=converged,
            message=message, accuracy=accuracy, bound=bound, global_=self._disparity(found, 0),
            local=self._disparity(found, 1), joint=self._joint(found),
        )  # fmt: skip

    def frontier(self, eps_global: ArrayLike, eps_local: ArrayLike) -> Frontier:
        """The best accuracy for every pair of budgets, in bits."""
        rows, columns = (np.atleast_1d(np.asarray(eps, dtype=float)) for eps in (eps_global, eps_local))
        found = [[self.solve(g, l) for l in columns.tolist()] for g in rows.tolist()]
        accuracy, bound = (
            np.array([[getattr(o, name) for o in row] for row in found]) for name in ("accuracy", "bound")
        )
        return Frontier(rows, columns, accuracy, bound)

    def _compile(self, kinds: tuple[str, ...]) -> Any:
        """The program, whose budgets may change; an infinite one is left out, and one of zero is linear."""
        try:
            import cvxpy
        except ImportError as error:
            raise ImportError("AGLFOP needs cvxpy: pip install 'hadamard[conic]'") from error
        v = cvxpy.Variable(self._labels.shape, nonneg=True)
        kept = cvxpy.Variable(self._labels.shape)
        rules = [cvxpy.sum(v, axis=1) == self._labels.sum(1), kept <= v, kept <= self._labels]
        limits = [cvxpy.Parameter(nonneg=True) for _ in kinds]
        duals: list[Any] = [None, None]  # the constraints whose multipliers prove the bound
        for i, (kind, (both, product), limit) in enumerate(zip(kinds, self._maps, limits, strict=True)):
            if kind == "equal":
                duals[i] = (both @ v == product @ v,)
            elif kind == "cone":
                x, y = (cvxpy.Variable((len(both), v.shape[1])) for _ in range(2))
                duals[i] = (cvxpy.sum(cvxpy.rel_entr(x, y)) <= limit, x == both @ v, y == product @ v)
            rules += duals[i] or ()
        return cvxpy.Problem(cvxpy.Maximize(cvxpy.sum(kept)), rules), v, limits, duals

    def _disparity(self, v: Cells, which: int) -> float:
        """Global (0) or local (1) disparity in bits."""
        if which == 0:
            return float(mutual_information(self._maps[0][0] @ v))
        return float(sum(mutual_information(v[self._s == s]) for s in np.unique(self._s)))

    def _repair(self, v: Cells, budgets: Sequence[float]) -> Cells:
        """Decisions that keep to the budgets: moved towards equal rates, where disparities fall at least linearly."""
        size = self._labels.sum(1, keepdims=True)
        v = np.maximum(v, 0)
        v = np.where(v.sum(1, keepdims=True) > 0, v, self._labels)
        v *= size / v.sum(1, keepdims=True)
        share = 0.0
        for which, budget in enumerate(budgets):
            found = self._disparity(v, which)
            if found > max(budget, _EQUAL):
                share = max(share, 1 - budget / found)
        return (1 - share) * v + share * size * v.sum(0)

    def _bound(self, budgets: Sequence[float], duals: Sequence[Any]) -> float:
        """An upper bound of the accuracy, from whatever multipliers the solver has left.

        Let a budget have the multiplier m. A term of its information is ``x log(x / y) >= w x - exp(w - 1) y`` for any
        w, which is linear. So the loss of a classifier within the budgets is at least its loss plus m times these,
        less m times the budget; at best each label is kept, or changed at the cost of 1, whichever is cheaper.
        """
        price, spent = np.zeros_like(self._labels), 0.0
        for (both, product), budget, rules in zip(self._maps, budgets, duals, strict=True):
            if rules is None or rules[0].dual_value is None:
                continue
            if len(rules) == 1:
                price += (both - product).T @ rules[0].dual_value
            elif (multiplier := float(rules[0].dual_value)) > _TOL:
                w = -rules[1].dual_value / multiplier
                price += multiplier * (both.T @ w - product.T @ np.exp(w - 1))
                spent += multiplier * budget * math.log(2)
        change = 1 - np.eye(price.shape[1])
        loss = float((self._labels * (price[:, None] + change).min(2)).sum()) - spent
        return 1 - loss if np.isfinite(loss) else 1.0

    def _joint(self, v: Cells) -> Float[np.ndarray, "z s t y"]:
        """The joint with these decisions in which the fewest labels change."""
        kept = np.minimum(v, self._labels)
        gone, come = self._labels - kept, v - kept
        moved = gone[:, :, None] * come[:, None] / np.maximum(gone.sum(1), np.finfo(float).tiny)[:, None, None]
        joint = np.zeros((*self.table.shape, v.shape[1]))
        joint[self._z, self._s] = moved + kept[:, :, None] * np.eye(v.shape[1])
        return joint
