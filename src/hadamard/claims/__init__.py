"""Claims: each method beside its paper's baseline and today's best peer, on the same data, in one run."""

from hadamard.claims.claim import Bar, Claim, Contender, Interval, Measure, Results

__all__ = ["Bar", "Claim", "Contender", "Interval", "Measure", "Results"]
