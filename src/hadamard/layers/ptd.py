"""Perturb-then-diagonalise: eigenvectors of a non-normal matrix that can be computed with, and HiPPO to use them on.

The HiPPO matrix ``A`` behind structured state-space models has eigenvectors ``V`` whose condition number grows
exponentially: ``eig`` returns noise from 30 states on. Diagonal models (S4D, S5) therefore diagonalise another matrix,
``A + P P^T`` with its rank-one term dropped, whose transfer function ``C (sI - A)^-1 B`` does not converge to HiPPO's:
lightly damped modes leave spikes. PTD diagonalises ``A + E = V diag(lam) V^-1`` for a small ``E`` instead. The backward
error is ``||E||``, the transfer function moves in proportion to it, and ``cond(V)`` falls as ``1 / ||E||``.

References
----------
A. Yu, A. Nigmetov, D. Morozov, M. W. Mahoney, N. B. Erichson, "Robustifying State-space Models for Long Sequences via
Approximate Diagonalization", ICLR 2024, arXiv:2310.01698.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, pi

import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor

from hadamard.solvers import minimize
from hadamard.validation import check_option, check_range, check_tensor

__all__ = ["PTD", "conjugate_half", "hippo", "normal_part", "ptd", "transfer"]


@dataclass(frozen=True)
class PTD:
    """An approximate diagonalisation, ``A + E = V diag(lam) V^-1``.

    Attributes
    ----------
    lam
        Eigenvalues (n,), complex128; those of a real ``A`` come in exact conjugate pairs or are exactly real.
    V
        Eigenvectors (n, n) in columns of norm 1, complex128.
    E
        The perturbation (n, n).
    cond
        Condition number of ``V`` in the 2-norm.
    backward_error
        ``||A - V diag(lam) V^-1||_2``, measured: ``||E||_2`` and what rounding adds.
    """

    lam: Complex[Tensor, " n"]
    V: Complex[Tensor, "n n"]
    E: Inexact[Tensor, "n n"]
    cond: float
    backward_error: float

    def inputs(self, B: Inexact[Tensor, "n m"]) -> Complex[Tensor, "n m"]:
        """``V^-1 B``: an input matrix in the basis of the eigenvectors."""
        return torch.linalg.solve(self.V, B.to(self.V))

    def outputs(self, C: Inexact[Tensor, "p n"]) -> Complex[Tensor, "p n"]:
        """``C V``: an output matrix in the basis of the eigenvectors."""
        return C.to(self.V) @ self.V


def hippo(n: int, kind: str = "legs") -> tuple[Float[Tensor, "n n"], Float[Tensor, "n 1"]]:
    """Make the system ``x' = A x + B u`` whose state holds ``n`` coefficients of the input's past.

    Parameters
    ----------
    n
        Number of states.
    kind
        ``"legs"``: Legendre polynomials in the exponentially warped past, state ``k`` is the integral of
        ``u(t - s) sqrt(2k+1) P_k(2 e^-s - 1) e^-s``. ``"legt"``: Legendre polynomials on the window ``[t - 1, t]``.
        ``"fout"``: Fourier series on that window, 1, cos, sin, cos, ...; ``n`` must be odd.

    Returns
    -------
    A, B
        In float64.

    Raises
    ------
    ValueError
        If ``n`` is less than 1, or even for ``"fout"``, or ``kind`` is unknown.

    References
    ----------
    A. Gu, T. Dao, S. Ermon, A. Rudra, C. Ré, "HiPPO: Recurrent Memory with Optimal Polynomial Projections", NeurIPS
    2020, arXiv:2008.07669.

    Examples
    --------
    >>> A, B = hippo(2)
    >>> A
    tensor([[-1.0000,  0.0000],
            [-1.7321, -2.0000]], dtype=torch.float64)
    """
    check_range(n, "n", 1, integer=True)
    check_option(kind, "kind", ("legs", "legt", "fout"))
    k = torch.arange(n, dtype=torch.float64)
    b = (2 * k + 1).sqrt()
    if kind == "legs":
        return torch.outer(-b, b).tril(-1) - torch.diag(k + 1), b[:, None]
    if kind == "legt":
        sign = 1 - 2 * ((k[:, None] - k) % 2)
        return -torch.outer(b, b) * torch.where(k[:, None] < k, sign, 1.0), b[:, None]
    if n % 2 == 0:
        raise ValueError(f"n must be odd for kind='fout': a constant and pairs of cosine and sine, got {n}")
    rotation = torch.zeros(n, n, dtype=torch.float64)
    for j in range(1, n // 2 + 1):
        rotation[2 * j - 1, 2 * j], rotation[2 * j, 2 * j - 1] = -2 * pi * j, 2 * pi * j
    at_ends = torch.tensor([1.0] + [2**0.5, 0.0] * (n // 2), dtype=torch.float64)
    return rotation - 2 * torch.outer(at_ends, at_ends), 2 * at_ends[:, None]


def normal_part(n: int) -> tuple[Complex[Tensor, " n"], Complex[Tensor, "n n"]]:
    """Eigenvalues ``-1/2 + i w`` and unitary eigenvectors of HiPPO-LegS plus ``P P^T``: what S4D and S5 start from.

    Parameters
    ----------
    n
        Number of states.

    Examples
    --------
    >>> lam, V = normal_part(4)
    >>> lam.real
    tensor([-0.5000, -0.5000, -0.5000, -0.5000], dtype=torch.float64)
    """
    A, B = hippo(n)
    skew = A + B @ B.mT / 2 + torch.eye(n, dtype=A.dtype) / 2
    w, V = torch.linalg.eigh(-1j * skew)
    w = (w - w.flip(0)) / 2  # pairs to the last bit, and an exact zero in the middle
    return torch.complex(torch.full_like(w, -0.5), w), V


def ptd(
    A: Inexact[Tensor, "n n"], eps: float = 1e-2, *, optimize: bool = False, gamma: float | None = None,
    relative: bool = False, unstable: str = "raise", max_iter: int = 60, generator: torch.Generator | None = None,
) -> PTD:  # fmt: skip
    """Diagonalise a matrix close to ``A`` whose eigenvectors are well conditioned; takes the place of ``eig``.

    Parameters
    ----------
    A
        Square matrix, real or complex; computed with in double precision.
    eps
        Size ``||E||_2`` of the perturbation: the error that is accepted in ``A``. 0 is plain ``eig``.
    optimize
        Minimise the condition number of ``V`` over all ``E`` of size ``eps``, from a random one on, instead of keeping
        the random one. For HiPPO this gains a factor of 5 to 30 in ``cond`` and takes a fraction of a second.
    gamma
        Minimise ``cond(V) + gamma ||E||_2`` over ``E`` of any size, from a random one of size ``eps`` on: the paper's
        objective.
    relative
        Take ``eps`` relative to ``||A||_2``. A trap with HiPPO, whose norm grows with n^2: 10 % of it makes the system
        unstable.
    unstable
        What to do where an eigenvalue has a real part >= 0: ``"raise"``, ``"shrink"`` (halve ``E`` until none has, at
        most 30 times) or ``"ignore"`` (for matrices that are no dynamical system).
    max_iter
        Of L-BFGS, where ``E`` is optimised; a minimum is not waited for.
    generator
        Draws ``E``, Gaussian.

    Returns
    -------
    PTD
        Eigenvalues, eigenvectors, their condition number and the backward error.

    Raises
    ------
    ValueError
        If ``A`` is not square or not finite, an option is out of range, the eigenvectors are those of a defective
        matrix as far as double precision tells, or the result is not stable.

    Notes
    -----
    The optimised quantity is ``||V||_F ||V^-1||_F`` with columns of norm 1, a smooth upper bound of ``cond(V)`` at most
    ``n`` times larger. The paper optimises ``cond(V)`` itself, by gradient descent.

    Do not use it for a normal matrix, whose eigenvectors are orthogonal already, nor where the exact eigenvalues are
    wanted: those of a non-normal matrix move much further than ``eps``, and only what they do together stays.

    References
    ----------
    Yu, Nigmetov, Morozov, Mahoney, Erichson, ICLR 2024, arXiv:2310.01698, sections 4 and 4.2.

    Examples
    --------
    >>> A, B = hippo(32)
    >>> d = ptd(A, 0.01, optimize=True, generator=torch.Generator().manual_seed(0))
    >>> d.cond < 1e4, abs(d.backward_error / 0.01 - 1) < 1e-4
    (True, True)
    """
    A, eps = _check(A, eps, gamma, relative, unstable)
    E = torch.zeros_like(A)
    if eps > 0:
        E = _scaled(torch.randn(A.shape, dtype=A.dtype, device=A.device, generator=generator), eps)
        if gamma is not None:
            E = _minimise(lambda X: _condition(A + X) + gamma * _norm(X), E, max_iter)
        elif optimize:
            E = _scaled(_minimise(lambda X: _condition(A + _scaled(X, eps)).log(), E / eps, max_iter), eps)
    for _ in range(31):
        lam, V = torch.linalg.eig(A + E)
        worst = float(lam.real.max())
        if worst < 0 or unstable == "ignore":
            return _result(A, E, lam, V)
        if unstable == "raise" or not E.any():
            break
        E = E / 2
    raise ValueError(
        f"eps must leave the matrix stable, got an eigenvalue with real part {worst:.3g} at eps={float(_norm(E)):.3g}; "
        "take a smaller one, unstable='shrink', or unstable='ignore' where the matrix is no dynamical system"
    )


def transfer(
    A: Inexact[Tensor, "*n"], B: Inexact[Tensor, "n m"], C: Inexact[Tensor, "p n"], omega: Float[Tensor, " w"],
    D: Inexact[Tensor, "p m"] | None = None,
) -> Complex[Tensor, "w p m"]:  # fmt: skip
    """Transfer function ``C (i omega - A)^-1 B + D`` of a continuous linear system.

    Parameters
    ----------
    A
        State matrix (n, n), or its diagonal (n,).
    B, C, D
        Input matrix, output matrix and feedthrough.
    omega
        Angular frequencies.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> one = torch.ones(1, 1)
    >>> transfer(-one, one, one, torch.tensor([0.0, 1.0])).flatten()
    tensor([1.0000+0.0000j, 0.5000-0.5000j])
    """
    check_tensor(A, "A", ndim=(1, 2))
    n = A.shape[-1]
    check_tensor(A, "A", shape=(n,) * A.ndim)
    check_tensor(B, "B", ndim=2, shape=(n, None))
    check_tensor(C, "C", ndim=2, shape=(None, n))
    check_tensor(omega, "omega", ndim=1, dtype="floating")
    dtype = torch.promote_types(torch.promote_types(A.dtype, omega.dtype), torch.complex64)
    s, B, C = 1j * omega.to(dtype), B.to(dtype), C.to(dtype)
    if A.ndim == 1:
        G = torch.einsum("pn,wn,nm->wpm", C, 1 / (s[:, None] - A), B)
    else:
        eye = torch.eye(n, dtype=dtype, device=A.device)
        G = torch.cat([C @ torch.linalg.solve(part[:, None, None] * eye - A, B) for part in s.split(256)])
    return G if D is None else G + D


def conjugate_half(
    lam: Complex[Tensor, " n"], B: Complex[Tensor, "n m"], C: Complex[Tensor, "p n"]
) -> tuple[Complex[Tensor, " k"], Complex[Tensor, "k m"], Complex[Tensor, "p k"]]:
    """Keep one of each conjugate pair and every real mode of a real system: its output is then the real part.

    Parameters
    ----------
    lam, B, C
        Diagonal system whose modes come in conjugate pairs or are real, as :func:`ptd` gives it for a real matrix.

    Returns
    -------
    lam, B, C
        The modes with ``imag >= 0``. Rows of ``C`` that stand for a pair are doubled, those of a real mode are not:
        dropping real modes, or doubling them too, is a mistake that shows at odd ``n`` only.

    Raises
    ------
    ValueError
        If there are not as many modes with ``imag < 0`` as with ``imag > 0``.

    Examples
    --------
    >>> lam, one = torch.tensor([-1 + 2j, -1 - 2j, -3 + 0j]), torch.ones(3, 1, dtype=torch.complex64)
    >>> conjugate_half(lam, one, one.T)[2]
    tensor([[2.+0.j, 1.+0.j]])
    """
    check_tensor(lam, "lam", ndim=1, dtype="complex")
    above, below = int((lam.imag > 0).sum()), int((lam.imag < 0).sum())
    if above != below:
        raise ValueError(f"lam must come in conjugate pairs or be real, got {above} with imag > 0 and {below} below")
    keep = lam.imag >= 0
    twice = 1 + (lam.imag > 0)[keep].to(C.real.dtype)
    return lam[keep], B[keep], C[:, keep] * twice


def _check(A: Tensor, eps: float, gamma: float | None, relative: bool, unstable: str) -> tuple[Tensor, float]:
    """The matrix in double precision, and the size of the perturbation."""
    check_tensor(A, "A", ndim=2)
    if A.shape[0] != A.shape[1]:
        raise ValueError(f"A must be square, got shape {tuple(A.shape)}")
    check_range(eps, "eps", 0, inf, closed="left")
    if gamma is not None:
        check_range(gamma, "gamma", 0, None, closed="neither")
        check_range(eps, "eps", 0, inf, closed="neither")
    check_option(unstable, "unstable", ("raise", "shrink", "ignore"))
    A = A.detach().to(torch.complex128 if A.is_complex() else torch.float64)
    return A, eps * float(_norm(A)) if relative else eps


def _result(A: Tensor, E: Tensor, lam: Tensor, V: Tensor) -> PTD:
    cond = float(torch.linalg.cond(V))
    if not cond * torch.finfo(torch.float64).eps < 1e-3:
        raise ValueError(
            f"A must have eigenvectors that double precision can tell apart, got cond(V) = {cond:.1e} at "
            f"||E|| = {float(_norm(E)):.3g}; take a larger eps"
        )
    again = torch.linalg.solve(V, V * lam, left=False)
    return PTD(lam, V, E, cond, float(_norm(A - again)))


def _norm(X: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(X, 2)


def _scaled(X: Tensor, eps: float) -> Tensor:
    return X * (eps / _norm(X))


def _minimise(objective: Callable[[Tensor], Tensor], X: Tensor, max_iter: int) -> Tensor:
    if not X.is_complex():
        return minimize(objective, X, max_iter=max_iter, warn=False).value
    real = _minimise(lambda parts: objective(torch.view_as_complex(parts)), torch.view_as_real(X), max_iter)
    return torch.view_as_complex(real)


def _condition(M: Tensor) -> Tensor:
    """``||V||_F ||V^-1||_F``: each row of ``V^-1`` has the condition number of an eigenvalue as its norm."""
    _, V = torch.linalg.eig(M)
    return len(M) ** 0.5 * torch.linalg.matrix_norm(torch.linalg.inv(V))
