"""EvoNorm against BatchNorm, GroupNorm and timm's layers: batch independence, small batches, cost, depth."""

from collections.abc import Mapping
from typing import Any

from hadamard.claims import Bar, Claim, Contender, Measure, Results
from hadamard.claims.layers.evonorm_problems import (
    ALONE,
    B0,
    BN,
    COST,
    CUT,
    DEEP,
    EAGER,
    GN,
    GN_SILU,
    NONE,
    S0,
    S1,
    S2,
    TIMM,
    WHOLE,
    Cost,
    problem,
)
from hadamard.claims.plots import bars, lines

__all__ = ["claim"]


def _contender(kind: str, role: Any, *groups: str, **options: Any) -> Contender:
    """``kind`` in the cases whose name starts with one of ``groups``; only the cost is timed."""
    once = groups != (COST,)
    return Contender(kind, lambda case: case(kind), role, lambda name: name.startswith(groups), once=once, **options)


def _margin(r: Results) -> float:
    """The smallest lead of S0 over GroupNorm + ReLU over the batch sizes, in points."""
    cases = [c for c in r.cases if c.startswith("batch")]
    return min(r.value(c, S0, "accuracy") - r.value(c, GN, "accuracy") for c in cases)


def _measure(name: str, unit: str) -> Measure:
    return Measure(name, unit, lambda case, outcome: outcome.get(name))


def _agree(case: Any, outcomes: Mapping[str, Any]) -> str:
    if isinstance(case, Cost):
        for what in ("y", "dx"):
            difference = max(float(abs(outcomes[S0][what] - outcomes[other][what]).max()) for other in (EAGER, TIMM))
            if difference > 1e-4:
                return f"{S0} differs from the same layer of others by {difference:.2g} in {what}"
    return ""


def _plot(r: Results) -> list[dict[str, Any]]:
    trained = [c for c in r.cases if "batch" in c]
    accuracy = {
        k: {c: r.value(c, k, "accuracy") for c in trained if (c, k) in r.outcomes} for k in (S0, B0, BN, GN)
    }  # fmt: skip
    cost = {
        k: {"ms": 1e3 * r.value(COST, k, "seconds"), "MiB kept": r.value(COST, k, "saved")}
        for k in (S0, EAGER, TIMM, BN, GN_SILU)
    }
    losses = {k: r.outcomes[DEEP, k]["losses"] for k in (S0, NONE)}
    return [
        bars(
            accuracy, y="test accuracy on digits (%)",
            caption="Left three: plain network trained with that batch size. Right two: residual network, batch 32 cut "
            "into micro-batches for the statistics; EvoNorm-S0 does not notice, BatchNorm on 2 images collapses.",
        ),
        bars(cost, y="forward + backward, and memory kept", caption="The same layer in less time and memory."),
        lines(
            {k: (range(1, 1 + len(losses[k])), losses[k]) for k in (S0, NONE)},
            x="step", y="training loss (nats)", log="y", markers=False,
            caption="Twenty residual layers at rate 0.1: with EvoNorm-S0 the loss falls, without a norm it explodes.",
        ),
    ]  # fmt: skip


_COST = (32, 64, 32, 32)
_FULL = {"steps": (200, 600), "micro_steps": 200, "nets": (8, 3), "rates": (0.01, 0.03, 0.1), "deep": 100}
_C1 = "S0..S2 output of sample i identical (bitwise) whatever else is in the batch, train==eval; BN differs."
_C3 = (
    "custom-autograd S0 forward+backward <= 0.8x time and <= 0.7x saved bytes of eager composition (timm style) at "
    "(32,64,32,32) CPU; and <= 2.5x BN+ReLU."
)
_C4 = "20-layer plain residual net trains with S0 (loss falls) where no-norm ReLU at lr .1 diverges."

claim = Claim(
    key="evonorm",
    statement="EvoNorm-S0 does not depend on what else is in the batch: cutting a batch into micro-batches changes "
    "nothing but rounding, where BatchNorm on 2 images at a time collapses on a residual network that ends on one "
    "pixel. It keeps pace with GroupNorm-ReLU at every batch size, trains 20 layers without BatchNorm, and takes less "
    "time and memory than the same layer written in torch operations. The paper's gap to BatchNorm on ImageNet is not "
    "tested: on a plain network for digits BatchNorm is ahead at batches of 64 and 4.",
    paper_figure="EvoNorm-S0 beats BatchNorm-ReLU by 7.8 points on ResNet-50 and 7.3 on MobileNetV2 (ImageNet) where "
    "few images fit on a worker; on 12 of 14 pairs of model and training setting EvoNorms win (authors' summary of the "
    "paper).",
    sizes={
        "quick": {"steps": (30, 60), "micro_steps": 30, "nets": (2, 1), "rates": (0.03,), "deep": 12, "cost": _COST},
        "full": {**_FULL, "cost": _COST},
        "gpu": {**_FULL, "cost": (128, 256, 56, 56)},
    },
    problem=problem,
    contenders=[
        _contender(S0, "method", ALONE, "batch", CUT, DEEP),
        _contender(S0, "method", COST),
        _contender(S1, "method", ALONE),
        _contender(S2, "method", ALONE),
        _contender(B0, "method", "batch"),
        _contender(EAGER, "baseline", COST),
        _contender(TIMM, "peer", COST, isolated=True),
        _contender(BN, "baseline", ALONE, "batch", WHOLE, CUT),
        _contender(BN, "baseline", COST),
        _contender(GN, "peer", ALONE, "batch"),
        _contender(GN_SILU, "peer", COST),
        _contender(NONE, "ablation", DEEP),
    ],
    measures=[
        _measure("accuracy", "%"), _measure("best rate", ""), _measure("influence", ""),
        _measure("gradient change", ""), _measure("last loss / first", ""), _measure("saved", "MiB"),
    ],
    bars=[
        Bar("The output of S0, S1 and S2 for an image is bitwise the same whatever else is in the batch, in training "
            "and evaluation", "card, claim C1", _C1, "==", 0.0,
            lambda r: max(r.series(S0, "influence") + r.series(S1, "influence") + r.series(S2, "influence"))),
        Bar("BatchNorm's output for an image changes with the rest of the batch", "card, claim C1", _C1, ">", 0.0,
            lambda r: r.value(ALONE, BN, "influence")),
        Bar("S0's gradient of a batch of 32 is that of 16 micro-batches of 2, to round-off in float64",
            "card, claim C2", "S0 be EXACTLY unchanged (micro-batch invariance to round-off: this is the executable, "
            "certain claim)", "<=", 1e-12, lambda r: r.value(ALONE, S0, "gradient change")),
        Bar("BatchNorm's accuracy falls when the batch of 32 is cut into micro-batches of 2", "card, claim C2",
            "then BN must degrade", ">", 0.0, lambda r: r.value(WHOLE, BN, "accuracy") - r.value(CUT, BN, "accuracy")),
        Bar("S0's accuracy stays within half a point of GroupNorm-ReLU's, or above, at every batch size",
            "card, claim C2; issue 2", "S0 >= GN-ReLU - 0.5 point at every batch size (measured -0.06, +2.4, +0.25). "
            "Do NOT claim S0 > BN here.", ">=", -0.5, _margin, headline=True,
            weakened="The paper's bound is +7.8 points over BatchNorm-ReLU on ImageNet; on digits with a plain network "
            "BatchNorm still sees many values a channel in small batches, so the comparison is with GroupNorm."),
        Bar("S0 forward and backward against the same layer in torch operations: time", "card, claim C3", _C3,
            "<=", 0.8, lambda r: r.ratio(COST, S0, EAGER), seconds=True),
        Bar("S0 against the same layer in torch operations: bytes kept for the backward pass", "card, claim C3", _C3,
            "<=", 0.7, lambda r: r.value(COST, S0, "saved") / r.value(COST, EAGER, "saved")),
        Bar("S0 forward and backward against BatchNorm + ReLU: time", "card, claim C3", _C3,
            "<=", 2.5, lambda r: r.ratio(COST, S0, BN), seconds=True),
        Bar("20 residual layers at rate 0.1: the loss with S0 falls", "card, claim C4", _C4, "<", 1.0,
            lambda r: r.value(DEEP, S0, "last loss / first")),
        Bar("20 residual layers at rate 0.1: without normalisation it diverges", "card, claim C4", _C4, ">", 1.0,
            lambda r: r.value(DEEP, NONE, "last loss / first")),
    ],
    plot=_plot,
    requires=["timm"],
    agree=_agree,
    threads=1,
    rounds={"quick": 3, "full": 9, "gpu": 9},
)  # fmt: skip
