"""Feature maps whose inner products are kernels, and the linear attention that rests on them."""

from hadamard.features.attention import heads, linear_attention, merge
from hadamard.features.maps import Monomials, PositiveRandom, rank, taylor_degree, taylor_error

__all__ = [
    "Monomials",
    "PositiveRandom",
    "heads",
    "linear_attention",
    "merge",
    "rank",
    "taylor_degree",
    "taylor_error",
]
