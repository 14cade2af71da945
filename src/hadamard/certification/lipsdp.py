"""Guaranteed Lipschitz constants of trained networks, by semidefinite programming.

Let ``Dx`` be the difference of two inputs and ``Dd`` those of all units. Every activation leaves quadratic inequalities
``D^T K D >= 0`` between what its units read and give (see :mod:`hadamard.certification.quadratic_constraints`). If with
multipliers ``lambda >= 0`` the matrix

.. math:: \\rho\\, G^T G - F^T F - \\sum_k \\lambda_k S_k^T K_k S_k

is positive semidefinite, ``F`` being the output and ``G`` the input as linear maps of ``(Dx, Dd)``, then
:math:`|f(x) - f(y)| \\le \\sqrt\\rho\\, |x - y|` for all inputs. The least such ``rho`` is a semidefinite program.

References
----------
P. Pauli, A. Havens, A. Araujo, S. Garg, F. Khorrami, F. Allgöwer, B. Hu. Novel quadratic constraints for extending
LipSDP beyond slope-restricted activations. ICLR 2024, arXiv:2401.14033.
M. Fazlyab, A. Robey, H. Hassani, M. Morari, G. J. Pappas. Efficient and accurate estimation of Lipschitz constants for
deep neural networks. NeurIPS 2019, arXiv:1906.04893.
"""

import math
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from hadamard.certification.enclosure import Enclosed
from hadamard.certification.interior_point import barrier, by_cvxpy
from hadamard.certification.lmi import LMI, assemble, certify, feasible
from hadamard.certification.networks import Rules, Trace, flat, input_shape_of
from hadamard.certification.norm_product import norm_product, operator_norm_bound
from hadamard.results import Certificate, Solution, warn_short
from hadamard.validation import check_option, check_range

__all__ = ["LipschitzBound", "lipschitz_bound"]

METHODS = ("reduced", "nsr", "lambda", "residual", "layer", "recursion", "product")
_LARGEST = 3000  # side of the matrix
_LARGEST_CVXPY = 220


@dataclass(frozen=True, kw_only=True)
class LipschitzBound(Certificate):
    """A Lipschitz constant that was proved.

    Attributes
    ----------
    value
        What the solver gave, which may lie on either side of the least bound.
    bound
        What was proved; finite and ``verified`` always.
    norm, method, solver
        What it is of, and how it was found.
    multipliers
        For each part of the network (for ``"linf"``: and each output) those at which the inequality was proved: first
        the input's, then the units' in the order of the network.
    margin
        Least eigenvalue that was proved of the matrix as computed, its diagonal scaled to about 1, to cover rounding.
    size
        Side of the largest matrix.
    seconds
        Time taken.
    converged
        Whether the solver met its tolerance; where not, the bound holds but may not be the least.
    """

    norm: str = "l2"
    method: str = "reduced"
    solver: str = "barrier"
    multipliers: tuple[Tensor, ...] = field(default=(), repr=False)
    margin: float = 0.0
    size: int = 0
    seconds: float = 0.0
    converged: bool = True


def lipschitz_bound(
    model: nn.Module,
    norm: str = "l2",
    method: str = "reduced",
    *,
    split: int = 1,
    solver: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    rules: Rules | None = None,
    tol: float = 1e-6,
) -> LipschitzBound:
    """Bound the global Lipschitz constant of a network, with a proof that survives rounding.

    Parameters
    ----------
    model
        A ``Sequential`` (they nest) of ``Linear``, ``Conv1d``, ``Conv2d``, ``BatchNorm`` in evaluation, ``Flatten``,
        ``Dropout`` in evaluation, :class:`Residual`, and activations: :class:`MaxMin`, :class:`GroupSort`,
        :class:`Householder`, ReLU, LeakyReLU, PReLU, Tanh, Sigmoid, Softplus, SiLU and the like, or deel-torchlip's
        ``GroupSort`` and orthogonium's ``MaxMin``. Biases do not matter.
    norm
        ``"l2"``: Euclidean inputs and outputs. ``"linf"``: largest entry of both; one program an output.
    method
        ``"reduced"``: the paper's constraints, with what they force eliminated: the tightest, and the quickest of its
        kind. ``"nsr"``: as the paper writes it. ``"lambda"``: uses of a sorting activation only that it is 1-Lipschitz.
        ``"residual"``: sorted pairs as residual layers, a ReLU for each output. ``"layer"``: one multiplier a layer.
        ``"recursion"``: closed form, one eigenvalue a layer, or the product. ``"product"``: of the layers' norms.
    split
        Cut the network into so many chains of layers and multiply their bounds: quicker and looser.
    solver
        ``"barrier"`` (ours), ``"CLARABEL"`` or ``"SCS"`` (cvxpy's, at most about 200 units). By default ``"barrier"``,
        and ``"CLARABEL"`` for ``"nsr"``, whose free multipliers may grow without end.
    input_shape
        Shape of one input where the first layer does not tell it (convolutions): ``(channels, height, width)``.
    rules
        ``{module type: rule}`` for activations of your own: ``rule(module, width, form)`` returns their
        :class:`QuadraticConstraint`. A module may carry it as a method ``quadratic_constraint(width, form)`` instead.
    tol
        Relative gap at which the barrier method stops.

    Returns
    -------
    LipschitzBound
        A proved bound for the network with its stored weights in exact arithmetic. That is checked by a Cholesky
        factorisation with all rounding accounted for, whichever solver was used. Where a solver fails, the product of
        norms is returned, with a warning.

    Raises
    ------
    TypeError
        If ``model`` is no module, or an option has the wrong type.
    ValueError
        If a layer or an option is not known, weights are not finite, groups do not divide a layer, the network is in
        training mode, or the program is too large.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        If a solver stopped short: the bound holds and may not be the least.

    Notes
    -----
    Departures: the paper's four matrices a group become one smaller one (a MaxMin pair is one ReLU,
    ``z + (-1, 1) relu(b - a)``, exactly), which halves the matrix and drops all free multipliers at the same optimum;
    ``"nsr"`` keeps them, and is certified through the smaller one with the same ``lambda``. The ``l_inf`` program has
    one multiplier for each input and one for the output and is solved output by output.

    When not to use it: attention, softmax and normalisation by batch or layer have no global constant of this kind;
    for a bound near one input, a local method (auto_LiRPA) is tighter. Beyond some 1000 units use ``split``,
    ``"recursion"`` or ``"product"``.

    Examples
    --------
    >>> from hadamard.certification import MaxMin
    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), MaxMin(), nn.Linear(2, 1, bias=False))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.eye(2)), net[2].weight.copy_(torch.ones(1, 2))
    >>> found = lipschitz_bound(net)  # the sum of both entries: sqrt(2)
    >>> found.verified, round(found.bound, 4)
    (True, 1.4142)
    """
    began = time.perf_counter()
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_option(norm, "norm", ("l2", "linf"))
    check_option(method, "method", METHODS)
    solver = solver or ("CLARABEL" if method == "nsr" else "barrier")
    check_option(solver, "solver", ("barrier", "CLARABEL", "SCS"))
    check_range(split, "split", 1, integer=True)
    check_range(tol, "tol", 0, 1, closed="neither")
    steps = flat(model)
    if not steps:
        raise ValueError("model must have layers, got an empty Sequential")
    shape = input_shape_of(steps) if input_shape is None else tuple(input_shape)
    if shape is None:
        raise ValueError("input_shape must be given: the first layer does not tell it")
    bound, parts = 1.0, []
    for chain in _chains(steps, split):
        part, shape = _chain(chain, shape, norm, method, solver, rules or {}, tol)
        parts.append(part)
        bound = _up(bound * part.bound) if bound and part.bound else 0.0
    return LipschitzBound(
        value=math.prod(p.value for p in parts),
        bound=bound,
        verified=True,
        norm=norm,
        method=method,
        solver="" if method in ("product", "recursion") else solver,
        multipliers=tuple(m for p in parts for m in p.multipliers),
        margin=max(p.margin for p in parts),
        size=max(p.size for p in parts),
        seconds=time.perf_counter() - began,
        converged=all(p.converged for p in parts),
    )


@dataclass(frozen=True)
class _Part:
    value: float
    bound: float
    multipliers: tuple[Tensor, ...] = ()
    margin: float = 0.0
    size: int = 0
    converged: bool = True


def _chain(
    steps: list[nn.Module], shape: tuple[int, ...], norm: str, method: str, solver: str, rules: Rules, tol: float
) -> tuple[_Part, tuple[int, ...]]:
    """One part of the network, and the shape behind it."""
    product, after = norm_product(steps, shape, norm, rules)
    if not math.isfinite(product):
        raise ValueError("the product of the layers' norms overflows: weights this large cannot be certified")
    if method == "product" or product == 0:
        return _Part(product, product), after
    trace, output = Trace.of(steps, shape, method if method in ("nsr", "lambda", "residual") else "reduced", rules)
    if not trace.layers:  # linear
        norm_of_all = operator_norm_bound(output, norm)
        return _Part(norm_of_all, norm_of_all), after
    if trace.columns > _LARGEST:
        raise ValueError(
            f"the program would have a matrix of side {trace.columns}, above {_LARGEST}: use split, or method='product'"
        )
    # nsr is proved with the same multipliers of its inequalities in the form without equations
    proof = Trace.of(steps, shape, "reduced", rules) if method == "nsr" else (trace, output)
    outputs = [slice(None)] if norm == "l2" else [slice(i, i + 1) for i in range(output.shape[0])]
    found = []
    for rows in outputs:
        lmi = assemble(trace, output[rows], norm, method == "layer")
        check = lmi if method != "nsr" else assemble(proof[0], proof[1][rows], norm, False)
        if not np.any(lmi.constant.middle):  # a constant output, as far as is known
            found.append(_Part(0.0, 0.0) if lmi.constant.spread() < 1e-300 else _Part(product, product))
            continue
        part, message = _solve(lmi, check, norm, method, solver, tol, trace.inputs)
        if message:
            lost = "the bound is proved but may not be the least" if part else "the bound is the product of norms"
            warn_short(f"lipschitz_bound: {message}; {lost}")
        found.append(part or _Part(product, product, converged=False))
    multipliers = tuple(m for p in found for m in p.multipliers)
    value, bound, margin, size = (max(getattr(p, n) for p in found) for n in ("value", "bound", "margin", "size"))
    if method == "recursion" and product < bound:
        return _Part(product, product), after
    return _Part(value, bound, multipliers, margin, size, all(p.converged for p in found)), after


def _solve(
    lmi: LMI, check: LMI, norm: str, method: str, solver: str, tol: float, inputs: int
) -> tuple[_Part | None, str]:
    """Solve one program and prove what came out; what was not as it should be, in words."""
    unit = 2.0 ** round(math.log2(np.abs(lmi.constant.middle).sum(1).max()))
    small = replace(lmi, constant=Enclosed(lmi.constant.middle / unit))
    checked = replace(check, constant=_divided(check.constant, unit))
    if norm == "l2":
        small = small.compressed(inputs)
    side = len(small.constant.middle)
    if solver != "barrier" and side > _LARGEST_CVXPY:
        raise ValueError(f"{solver} takes a matrix of side {_LARGEST_CVXPY} at most, got {side}: use solver='barrier'")
    try:
        inside = feasible(checked)
        if method == "recursion":
            starts = [feasible(checked, factor) for factor in (1.02, 1.1, 1.3, 1.6, 2.0, 3.0, 5.0)]
            inside = min(starts, key=lambda y: float(checked.cost @ y))
            solution = Solution(value=inside, iterations=1, residual=0.0, converged=True)
        else:
            solution = barrier(small, feasible(small), tol=tol) if solver == "barrier" else by_cvxpy(small, solver)
    except np.linalg.LinAlgError:
        return None, f"{solver} met a matrix that is singular to rounding"
    said = "" if solution.converged else f"{solver}: {solution.message.removeprefix(f'{solver}: ')}"
    y = solution.value if check is lmi else solution.value[lmi.signed]
    proved = certify(checked, y, inside)
    if proved is None:
        return None, said or f"{solver}'s point could not be proved"
    point, margin = proved
    root = math.sqrt if norm == "l2" else float
    value = root(max(float(lmi.cost @ solution.value) * unit, 0.0))
    bound = _up(root(_up(math.fsum(checked.cost * point) * unit)))
    multipliers = (torch.from_numpy(point * unit),)
    return _Part(value, bound, multipliers, margin, len(checked.constant.middle), solution.converged), said


def _divided(x: Enclosed, unit: float) -> Enclosed:
    """By a power of two, which is exact."""
    return Enclosed(x.middle / unit, None if x.radius is None else x.radius / unit)


def _chains(steps: list[nn.Module], count: int) -> list[list[nn.Module]]:
    """About equally many weights' layers each, every chain but the first starting with one."""
    heavy = [
        i
        for i, step in enumerate(steps)
        if isinstance(step, nn.Linear | nn.Conv1d | nn.Conv2d) or hasattr(step, "inner")
    ]
    if count > max(len(heavy), 1):
        raise ValueError(f"split must be at most the number of layers with weights, {len(heavy)}, got {count}")
    cuts = [heavy[(k * len(heavy)) // count] for k in range(1, count)]
    edges = [0, *cuts, len(steps)]
    return [steps[a:b] for a, b in pairwise(edges)]


def _up(x: float) -> float:
    """Twice the next larger number: pays for one rounding, of a product, a root or a short sum."""
    return math.nextafter(math.nextafter(x, math.inf), math.inf)
