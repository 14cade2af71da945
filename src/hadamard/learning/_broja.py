"""The optimisation behind unique information, for whole batches of joint distributions at once.

Of all joints q(z, x, s) with the pairs' distributions P(z, x) and P(z, s), find the one that minimises

    f(q) = sum q log(q / r),   r(x, s) = sum_z q(z, x, s),

which is I_q(Z; X, S) - H(Z) in nats. Its dual is to maximise ``sum P(z, x) a(z, x) + sum P(z, s) b(z, s)`` subject to
``sum_z exp(a(z, x) + b(z, s)) <= 1`` for every x and s; any a and b become feasible by a common shift, so that every
solution comes with a proof of how far it is from the optimum.

References
----------
N. Bertschinger, J. Rauh, E. Olbrich, J. Jost and N. Ay, "Quantifying unique information", Entropy 16, 2014,
arXiv:1311.2852; J. Rauh, M. Schünemann and J. Jost, "Properties of unique information", Kybernetika 57, 2021,
arXiv:1912.12505.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import logsumexp, xlogy

_SHRINK = 0.1  # of the complementarity, at every step
_BOUNDARY = 0.99  # of the way to the boundary that a step may go
_JITTER = 1e-14  # on the unit diagonal of the linear systems
_CHUNK = 4_000_000  # numbers in the matrices of one call to the linear solver

Joint = Float[np.ndarray, "batch z x s"]


def objective(q: Joint) -> Float[np.ndarray, " batch"]:
    """The objective f(q), in nats."""
    return xlogy(q, q).sum((1, 2, 3)) - xlogy(r := q.sum(1), r).sum((1, 2))


def solve_binary(p: Float[np.ndarray, "batch 2 2 2"]) -> Float[np.ndarray, "batch 2 2 2"]:
    """The optimum where all variables are binary, in closed form.

    One number is free for each z: ``t_z = q(z, 1, 1)``, between bounds. Where q(z, x, s) goes to zero and r(x, s) does
    not, the derivative is infinite, so that the optimum lies inside, or where a whole cell (x, s) is empty: both t at
    their lower bounds or both at their upper ones. Inside, a vanishing derivative makes Z independent of one source
    given the other, which is a linear equation. The best of these four candidates is taken.
    """
    m, a, b = p.sum((2, 3)), p[:, :, 1].sum(2), p[:, :, :, 1].sum(2)
    low, high = np.maximum(0, a + b - m), np.minimum(a, b)
    candidates = [_independent(m, a, b), _independent(m, b, a), low, high]
    q = np.stack([_table(m, a, b, np.clip(t, low, high)) for t in candidates])
    best = np.argmin([objective(each) for each in q], axis=0)
    return q[best, np.arange(len(p))]


def _table(
    m: Float[np.ndarray, "batch 2"], a: Float[np.ndarray, "batch 2"], b: Float[np.ndarray, "batch 2"],
    t: Float[np.ndarray, "batch 2"],
) -> Float[np.ndarray, "batch 2 2 2"]:  # fmt: skip
    q = np.stack([m - a - b + t, b - t, a - t, t], -1)
    return np.maximum(q, 0).reshape(*m.shape, 2, 2)


def _independent(
    m: Float[np.ndarray, "batch 2"], a: Float[np.ndarray, "batch 2"], b: Float[np.ndarray, "batch 2"]
) -> Float[np.ndarray, "batch 2"]:
    """The free numbers where X depends on S alone: ``a_z = k0 (m_z - b_z) + k1 b_z`` for both z; NaN becomes 0."""
    c = m - b
    with np.errstate(divide="ignore", invalid="ignore"):
        k1 = (a[:, 0] * c[:, 1] - a[:, 1] * c[:, 0]) / (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
        return np.nan_to_num(b * np.clip(k1, 0, 1)[:, None])


def solve_interior(p: Joint, tol: float, max_iter: int) -> tuple[Joint, Float[np.ndarray, " batch"], int]:
    """The optimum for any alphabets, by a primal-dual interior-point method.

    Each step solves one linear system with as many unknowns as there are constraints, for all joints at once.

    Parameters
    ----------
    p
        Joint distributions.
    tol
        Distance from the optimum, in nats, at which to stop.
    max_iter
        Steps at most.

    Returns
    -------
    tuple
        The joints, how far each objective is from its optimum at most (proved by a dual point), and the number of
        steps.
    """
    size = p.shape[1] * (p.shape[2] + p.shape[3])
    chunk = max(1, _CHUNK // size**2)
    parts = [_interior(p[i : i + chunk], tol, max_iter) for i in range(0, len(p), chunk)]
    q, gap = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return q, gap, max(part[2] for part in parts)


def _interior(p: Joint, tol: float, max_iter: int) -> tuple[Joint, Float[np.ndarray, " batch"], int]:
    zx, zs = p.sum(3), p.sum(2)
    mass = p.sum((2, 3))
    there = (zx[..., None] * zs[:, :, None]) > 0
    q = np.where(there, zx[..., None] * zs[:, :, None] / np.where(mass > 0, mass, 1)[..., None, None], 0)
    slack = np.where(there, 0.1, 0)
    a, b = np.log(np.where(zx > 0, zx, 1)), np.zeros_like(zs)
    best, upper, lower = q.copy(), objective(q), _dual(zx, zs, a, b, there)
    step, active = 0, np.flatnonzero(upper - lower > tol)
    state = [each[active] for each in (zx, zs, there, q, slack, a, b)]
    while len(active) and step < max_iter:
        zx, zs, there, q, slack, a, b = state
        move = _newton(zx, zs, q, slack, a, b, there)
        length = np.minimum(_length(q, move[0], there), _length(slack, move[1], there))
        q, slack, a, b = (
            old + length.reshape(-1, *[1] * (old.ndim - 1)) * new
            for old, new in zip((q, slack, a, b), move, strict=True)
        )
        value, bound, step = objective(q), _dual(zx, zs, a, b, there), step + 1
        better = value < upper[active]
        best[active[better]] = q[better]
        upper[active], lower[active] = np.minimum(upper[active], value), np.maximum(lower[active], bound)
        going = upper[active] - lower[active] > tol
        state, active = [each[going] for each in (zx, zs, there, q, slack, a, b)], active[going]
    return best, np.maximum(upper - lower, 0), step


def _dual(
    zx: Float[np.ndarray, "batch z x"], zs: Float[np.ndarray, "batch z s"], a: Float[np.ndarray, "batch z x"],
    b: Float[np.ndarray, "batch z s"], there: Bool[np.ndarray, "batch z x s"],
) -> Float[np.ndarray, " batch"]:  # fmt: skip
    """A lower bound of the objective, from any multipliers."""
    with np.errstate(divide="ignore"):
        shift = logsumexp(np.where(there, a[..., None] + b[:, :, None], -np.inf), axis=1).max((1, 2))
    return (zx * a).sum((1, 2)) + (zs * b).sum((1, 2)) - shift * zx.sum((1, 2))


def _length(x: Joint, move: Joint, there: Bool[np.ndarray, "batch z x s"]) -> Float[np.ndarray, " batch"]:
    """How far ``x + length * move`` stays positive, at most 1."""
    falling = there & (move < 0)
    ratio = np.where(falling, -x / np.where(falling, move, -1), np.inf).min((1, 2, 3))
    return np.minimum(1, _BOUNDARY * ratio)


def _newton(
    zx: Float[np.ndarray, "batch z x"], zs: Float[np.ndarray, "batch z s"], q: Joint, slack: Joint,
    a: Float[np.ndarray, "batch z x"], b: Float[np.ndarray, "batch z s"], there: Bool[np.ndarray, "batch z x s"],
) -> tuple[Joint, Joint, Float[np.ndarray, "batch z x"], Float[np.ndarray, "batch z s"]]:  # fmt: skip
    """The Newton step of ``log(q / r) = a + b + slack``, ``q slack = target`` and the two marginals.

    The Hessian, diagonal but for rank one in each (x, s), is inverted in closed form.
    """
    count, nz, nx, ns = q.shape
    full, r = np.where(there, q, 1), q.sum(1, keepdims=True)
    target = _SHRINK * (q * slack).sum((1, 2, 3), keepdims=True) / there.sum((1, 2, 3), keepdims=True)
    d = q / (1 + slack)
    c = np.where(r > 0, 1 / np.where(r > 0, (d * slack).sum(1, keepdims=True), 1), 0)

    def invert(v: Joint) -> Joint:
        return d * (v + c * (d * v).sum(1, keepdims=True))

    right = np.where(there, a[..., None] + b[:, :, None] - np.log(full / np.where(r > 0, r, 1)) + target / full, 0)
    plain = invert(right)
    inverse = d[:, :, None] * d[:, None] * c[:, None]  # (batch, z, z', x, s), and the diagonal:
    inverse[:, range(nz), range(nz)] += d
    system = np.zeros((count, nz, nx + ns, nz, nx + ns))
    rows, columns = np.arange(nx), nx + np.arange(ns)
    # two index arrays apart move their axis to the front
    system[:, :, rows, :, rows] = inverse.sum(4).transpose(3, 0, 1, 2)
    system[:, :, columns, :, columns] = inverse.sum(3).transpose(3, 0, 1, 2)
    system[:, :, :nx, :, nx:] = inverse.transpose(0, 1, 3, 2, 4)
    system[:, :, nx:, :, :nx] = inverse.transpose(0, 1, 4, 2, 3)
    wanted = np.concatenate([zx - (q + plain).sum(3), zs - (q + plain).sum(2)], 2)
    y = _solve(system, wanted, np.concatenate([zx > 0, zs > 0], 2), nx)
    da, db = y[..., :nx], y[..., nx:]
    dq = plain + invert(np.where(there, da[..., None] + db[:, :, None], 0))
    dslack = np.where(there, target / full - slack - slack / full * dq, 0)
    return dq, dslack, da, db


def _solve(
    system: Float[np.ndarray, "batch z n z n"], right: Float[np.ndarray, "batch z n"],
    used: Bool[np.ndarray, "batch z n"], nx: int,
) -> Float[np.ndarray, "batch z n"]:  # fmt: skip
    """Solve for the multipliers, in units in which the diagonal is 1.

    The two marginals of a z have one sum, so that a direction for each z is free: it is fixed, and so are the
    multipliers of constraints that hold nothing.
    """
    count, nz, n = right.shape
    unit = np.sqrt(np.where(used, np.einsum("bznzn->bzn", system), 1))
    free = np.where(used, np.r_[np.ones(nx), -np.ones(n - nx)], 0) * unit
    free /= np.maximum(np.linalg.norm(free, axis=2, keepdims=True), np.finfo(float).tiny)
    system = system / (unit[..., None, None] * unit[:, None, None])
    for z in range(nz):
        system[:, z, :, z] += free[:, z, :, None] * free[:, z, None]
    system = system.reshape(count, nz * n, nz * n)
    system[:, range(nz * n), range(nz * n)] += np.where(used, _JITTER, 1).reshape(count, -1)
    solution = np.linalg.solve(system, (right / unit).reshape(count, -1, 1))
    return solution.reshape(count, nz, n) / unit
