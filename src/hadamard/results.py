"""The few result types: what a solver returns, and what a certificate states."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Certificate", "Solution", "warn_short"]


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What an iterative solver found.

    Domain results are small frozen subclasses that add fields (a transport plan, a pair of factors).

    Attributes
    ----------
    value
        The solution: a tensor, or the optimal value where the subclass carries the solution in fields of its own.
    iterations
        Iterations that were run.
    residual
        The residual that the stopping rule looked at, as the solver's docstring defines it.
    converged
        Whether the residual met the tolerance.
    message
        Why it stopped; never empty where ``converged`` is false.
    extras
        Further diagnostics by name; read-only.

    Examples
    --------
    >>> Solution(value=1.0, iterations=3, residual=1e-12, converged=True)
    Solution(value=1.0, iterations=3, residual=1e-12, converged=True, message='', extras={})
    """

    value: Any
    iterations: int
    residual: float
    converged: bool
    message: str = ""
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.converged and not self.message:
            raise ValueError("message must say why a solver that did not converge stopped")
        object.__setattr__(self, "extras", _ReadOnly(self.extras))


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A statement about a value, and whether it was proved.

    Attributes
    ----------
    value
        The quantity that was computed (a label, a norm, an error).
    bound
        The bound that is certified for it.
    verified
        Whether the bound is proved; ``False`` means abstain.
    reason
        Why it could not be verified; empty otherwise.

    Examples
    --------
    >>> Certificate(value=0.9, bound=1.0, verified=True)
    Certificate(value=0.9, bound=1.0, verified=True, reason='')
    """

    value: Any
    bound: Any
    verified: bool
    reason: str = ""

    def __post_init__(self) -> None:
        if not self.verified and not self.reason:
            raise ValueError("reason must say why a certificate was not verified")


def warn_short(message: str) -> None:
    """Warn scikit-learn's ``ConvergenceWarning``, on behalf of a solver that stopped short of its tolerance.

    Parameters
    ----------
    message
        What stopped, after how much work, and how far from its tolerance.

    Examples
    --------
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn_short("cg stopped after 3 steps at residual 0.1, above tol=0.01")
    >>> caught[0].category.__name__
    'ConvergenceWarning'
    """
    from sklearn.exceptions import ConvergenceWarning

    warnings.warn(message, ConvergenceWarning, stacklevel=3)


class _ReadOnly(dict):
    """A dictionary that refuses to change (and, unlike ``MappingProxyType``, pickles and prints as one)."""

    def _refuse(self, *_: Any, **__: Any) -> None:
        raise TypeError("results are read-only")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type, tuple[dict]]:
        return (_ReadOnly, (dict(self),))
