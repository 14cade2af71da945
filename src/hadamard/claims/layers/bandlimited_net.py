"""Networks with random hidden weights: a band that no width gets out of, and how to choose it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from hadamard.claims import Bar, Claim, Contender, Measure, Results
from hadamard.claims.plots import Figure, bars, lines
from hadamard.layers import BandlimitedRegressor

OURS, RIDGELET, UNIT = "hadamard, auto", "hadamard, ridgelet sampling", "weights in U(-1, 1)"
UNIFORM, GRID, RBF, MLP = "uniform weights", "best of nine bandwidths", "RBFSampler + Ridge", "scikit-learn MLP"
WIDE = 16.0  # the bandwidth that is too large, over the target's frequency
DIABETES = "diabetes"
Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Fixed:
    """A sine of one frequency on [-1, 1], and networks of fixed bandwidths and widths."""

    frequency: float
    activation: str
    bandwidths: tuple[float, ...]
    widths: tuple[int, ...]
    seeds: int
    points: int = 1001

    @property
    def data(self) -> Arrays:
        """Points and values."""
        x = np.linspace(-1, 1, self.points)
        return x[:, None], np.sin(2 * np.pi * self.frequency * x)


@dataclass(frozen=True)
class Learning:
    """Training and test data, a pair for each seed, for those who choose their own scale."""

    folds: tuple[tuple[Arrays, Arrays], ...]
    width: int
    standardize: bool
    grid: tuple[float, ...]


def _wave(f: Callable[[np.ndarray], np.ndarray], seed: int, width: int, draws: int) -> Learning:
    """Noisy training targets; test targets without noise."""
    folds = []
    for s in range(seed, seed + draws):
        rng = np.random.default_rng(s)
        x, new = rng.uniform(-1, 1, 4 * width), rng.uniform(-1, 1, 1000)
        folds.append(((x[:, None], f(x) + 0.1 * rng.normal(size=len(x))), (new[:, None], f(new))))
    return Learning(tuple(folds), width, False, tuple(2.0**k for k in range(9)))


def _diabetes(seed: int, width: int, splits: int) -> Learning:
    from sklearn.datasets import load_diabetes

    X, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    folds = []
    for s in range(seed, seed + splits):
        order = np.random.default_rng(s).permutation(len(y))
        train, test = order[:300], order[300:]
        folds.append(((X[train], y[train]), (X[test], y[test])))
    return Learning(tuple(folds), width, True, tuple(2.0**k for k in range(-7, 2)))


def problem(
    seed: int,
    frequencies: tuple[int, ...],
    factors: tuple[float, ...],
    seeds: tuple[int, int],
    widths: tuple[int, ...],
    ranks: int,
    width: int,
    draws: tuple[int, int],
) -> Mapping[str, Any]:
    """Walls, widths, ranks, waves and a table."""
    cases: dict[str, Any] = {}
    for f in frequencies:
        rate = 2 * np.pi * f
        cases[f"wall, F = {f}"] = Fixed(f, "cos", tuple(rate * q for q in factors), (400,), seeds[0])
        cases[f"too wide, F = {f}"] = Fixed(f, "cos", (rate * WIDE,), (400,), seeds[1])
    cases["width, tanh"] = Fixed(20, "tanh", (1.0, 50.0), widths, 1)
    cases["rank"] = Fixed(8, "cos", tuple(np.linspace(25, 200, ranks)), (400,), 1)
    for f in (2, 8, 20):
        cases[f"sine, F = {f}"] = _wave(lambda x, f=f: np.sin(2 * np.pi * f * x), seed, width, draws[0])  # type: ignore[misc]
    cases["chirp"] = _wave(lambda x: np.sin(2 * np.pi * 5 * (x + 1) ** 2), seed, width, draws[0])
    return cases | {DIABETES: _diabetes(seed, width, draws[1])}


def fixed(case: Fixed, sampling: str) -> dict[str, Any]:
    """Relative error, numerical rank and bound for each bandwidth and width: medians over the seeds."""
    X, y = case.data
    scale = math.sqrt(np.mean(y**2))
    outcome: dict[str, Any] = {"error": {}, "bound": {}, "rank": {}, "says": {}}
    for bandwidth in case.bandwidths:
        for m in case.widths:
            fits = [
                BandlimitedRegressor(
                    m, bandwidth=bandwidth, activation=case.activation, bias_range=bandwidth, alpha=0.0,
                    sampling=sampling, standardize=False, random_state=s,
                ).fit(X, y)
                for s in range(case.seeds)
            ]  # fmt: skip
            errors = [math.sqrt(np.mean((f.predict(X) - y) ** 2)) / scale for f in fits]
            key = (bandwidth, m)
            outcome["error"][key] = median(errors)
            outcome["bound"][key] = median(f.lower_bound_ / scale for f in fits)
            outcome["broken"] = outcome.get("broken", 0) + sum(
                f.lower_bound_ / scale > e * (1 + 1e-9) for f, e in zip(fits, errors)
            )
            outcome["rank"][key] = median(f.rank_ for f in fits)
            outcome["says"][key] = fits[0].diagnosis_
    return outcome


def _error(test: Arrays, predict: Callable[[np.ndarray], np.ndarray]) -> float:
    return float(np.sqrt(np.mean((predict(test[0]) - test[1]) ** 2) / np.var(test[1])))


def learned(case: Learning, **options: Any) -> dict[str, Any]:
    """Relative test error of our regressor, the mean over the folds."""
    errors, found = [], []
    for s, (train, test) in enumerate(case.folds):
        model = BandlimitedRegressor(case.width, standardize=case.standardize, random_state=s, **options).fit(*train)
        errors.append(_error(test, model.predict))
        found.append(model.bandwidth_)
    return {"error": float(np.mean(errors)), "bandwidth": median(found)}


def best_of_grid(case: Learning) -> dict[str, Any]:
    """The bandwidth with the least TEST error: what no rule that sees the training data only can rely on."""
    return min((learned(case, bandwidth=b) for b in case.grid), key=lambda outcome: outcome["error"])


def _validated(case: Learning, makers: list[Callable[[int], Any]]) -> dict[str, Any]:
    """Of several settings the one with the least error on a held-out fifth, refitted; mean over the folds."""
    errors = []
    for seed, ((X, y), test) in enumerate(case.folds):
        cut = len(y) * 4 // 5
        held = [np.mean((make(seed).fit(X[:cut], y[:cut]).predict(X[cut:]) - y[cut:]) ** 2) for make in makers]
        errors.append(_error(test, makers[int(np.argmin(held))](seed).fit(X, y).predict))
    return {"error": float(np.mean(errors))}


def rbf(case: Learning) -> dict[str, Any]:
    """Gaussian random Fourier features at the spreads that our nine bandwidths have, ridge penalty by leave-one-out."""
    from sklearn.kernel_approximation import RBFSampler
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def maker(bandwidth: float) -> Callable[[int], Any]:
        def make(seed: int) -> Any:
            sampler = RBFSampler(gamma=bandwidth**2 / 6, n_components=case.width, random_state=seed)
            return make_pipeline(
                StandardScaler() if case.standardize else "passthrough", sampler, RidgeCV(np.logspace(-10, 3, 27))
            )

        return make

    return _validated(case, [maker(b) for b in case.grid])


def mlp(case: Learning) -> dict[str, Any]:
    """One trained hidden layer of 100 units, three penalties, L-BFGS."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def maker(alpha: float) -> Callable[[int], Any]:
        return lambda seed: make_pipeline(
            StandardScaler(),
            MLPRegressor(
                hidden_layer_sizes=(100,),
                activation="tanh",
                alpha=alpha,
                solver="lbfgs",
                max_iter=100,
                random_state=seed,
            ),
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its budget, not its optimum
        return _validated(case, [maker(a) for a in (0.01, 1.0, 100.0)])


def _walls(r: Results) -> dict[str, Fixed]:
    return {name: case for name, case in r.cases.items() if name.startswith(("wall", "too wide"))}


def _wall(r: Results, factors: tuple[float, ...], by: str = UNIFORM) -> list[float]:
    """Errors at these multiples of the frequency, over all frequencies."""
    return [
        error
        for name, case in _walls(r).items()
        for (b, _), error in (r.outcomes[name, by]["error"].items() if (name, by) in r.outcomes else ())
        if any(math.isclose(b, 2 * np.pi * case.frequency * q) for q in factors)
    ]


def _too_wide(r: Results, frequency: int) -> float:
    (error,) = r.outcomes[f"too wide, F = {frequency}", UNIFORM]["error"].values()
    return error


def _width(r: Results, bandwidth: float) -> list[float]:
    case = r.cases["width, tanh"]
    return [r.outcomes["width, tanh", UNIFORM]["error"][bandwidth, m] for m in case.widths]


def _rank_slope(r: Results) -> float:
    case = r.cases["rank"]
    ranks = [r.outcomes["rank", UNIFORM]["rank"][b, 400] for b in case.bandwidths]
    return float(np.polyfit(case.bandwidths, ranks, 1)[0])


def _waves(r: Results) -> list[str]:
    return [name for name, case in r.cases.items() if isinstance(case, Learning) and name != DIABETES]


def _over(r: Results, case: str, under: str) -> float:
    return r.value(case, OURS, "error") / r.value(case, under, "error")


def _broken(r: Results) -> float:
    return sum(o["broken"] for (_, name), o in r.outcomes.items() if name == UNIFORM)


def _misjudged(r: Results) -> float:
    """Fits of the walls whose error is above one half, and that are not told to widen below, or to add width above."""
    wrong = 0
    for name, case in _walls(r).items():
        outcome, rate = r.outcomes[name, UNIFORM], 2 * np.pi * case.frequency
        for (b, m), error in outcome["error"].items():
            want = "bandwidth-limited" if b < rate else "width-limited"
            wrong += error > 0.5 and outcome["says"][b, m] != want
    return wrong


def plot(r: Results) -> list[Figure]:
    """The wall with its bound, what width does, and who finds the scale."""
    rate, wall, wide = 2 * np.pi * 16, "wall, F = 16", "too wide, F = 16"
    both = {k: {**r.outcomes[wall, UNIFORM][k], **r.outcomes[wide, UNIFORM][k]} for k in ("error", "bound")}
    shown = {k: ([b / rate for b, _ in v], [max(e, 1e-10) for e in v.values()]) for k, v in both.items()}
    curves = {"error": shown["error"], "lower bound for any width": shown["bound"]}
    curves["error, ridgelet sampling"] = ([WIDE], list(r.outcomes[wide, RIDGELET]["error"].values()))
    widths = r.cases["width, tanh"].widths
    by_width = {f"weights in U(-{b:g}, {b:g})": (widths, _width(r, b)) for b in (50.0, 1.0)}
    cases = [*_waves(r), DIABETES]
    errors = {k: {c: r.value(c, k, "error") for c in cases} for k in (OURS, GRID, RBF, MLP, UNIT)}
    return [
        lines(
            curves, x="bandwidth over the frequency of the target", y="relative error", log="xy",
            caption="F = 16: 400 cosines below the target's frequency fail whatever they are, and the bound says so; "
            "sixteen times above it uniform draws are too thin, and draws by the ridgelet transform are not.",
        ),
        lines(
            by_width, x="width", y="relative error", log="x",
            caption="tanh, a sine with F = 20: with weights in U(-1, 1) sixteen times the width changes nothing.",
        ),
        bars(
            errors, y="relative test error", log=True,
            caption="Noisy waves and a table: the bandwidth that is chosen from training data is near the best.",
        ),
    ]  # fmt: skip


_C1 = "error >= .5 at .5x, <= 1e-3 at 1x..2x, >= .5 at 16x for F>=8"
_C2 = "at lambda=1 err(800) >= .95 err(50); at 50 <= .05"
_C3 = "error <= 2x best of a 9-point grid, and <= 1/5 of the default U(-1,1)"
_LEARN = lambda case: case in ("chirp", DIABETES) or case.startswith("sine")  # noqa: E731

claim = Claim(
    key="bandlimited_net",
    statement="Random-feature networks whose hidden weights are drawn within too narrow a band do not fit a target of "
    "a higher frequency however wide they are, and a lower bound says so in advance. Far too wide a band fails, too; "
    "there, drawing weights by the target's ridgelet transform succeeds with as many. A bandwidth chosen from the "
    "training data is nearly the best one, on noisy waves and on real data.",
    paper_figure="a positive lower bound on the error of networks with weights from a bounded domain; in simulations "
    "the best domain grows with the complexity of the target (arXiv 2008.08427)",
    sizes={
        "quick": {
            "frequencies": (8, 16), "factors": (0.5, 1.0, 2.0), "seeds": (1, 3), "widths": (50, 200, 800),
            "ranks": 3, "width": 150, "draws": (1, 4),
        },
        "full": {
            "frequencies": (4, 8, 16), "factors": (0.1, 0.25, 0.5, 0.8, 1.0, 2.0, 4.0), "seeds": (5, 25),
            "widths": (50, 100, 200, 400, 800), "ranks": 9, "width": 250, "draws": (5, 12),
        },
    },
    problem=problem,
    contenders=[
        Contender(UNIFORM, lambda c: fixed(c, "uniform"), "baseline", lambda c: not _LEARN(c), once=True),
        Contender(RIDGELET, lambda c: fixed(c, "ridgelet"), "method", lambda c: c.startswith("too wide"), once=True),
        Contender(OURS, learned, "method", _LEARN, once=True),
        Contender(UNIT, lambda c: learned(c, bandwidth=1.0), "baseline", _LEARN, once=True),
        Contender(GRID, best_of_grid, "ablation", _LEARN, once=True),
        Contender(RBF, rbf, "peer", _LEARN, once=True),
        Contender(MLP, mlp, "peer", _LEARN, once=True),
    ],
    measures=[
        Measure("error", "of the target", lambda case, o: o["error"] if isinstance(case, Learning) else None),
        Measure("bandwidth", "rad", lambda case, o: o.get("bandwidth")),
    ],
    bars=[
        Bar("sine, 400 cosines within half of its frequency: error (least over the frequencies)", "card, claim 1",
            _C1, ">=", 0.5, lambda r: min(_wall(r, (0.5,))), headline=True),
        Bar("sine, 400 cosines within its frequency or twice it: error (largest)", "card, claim 1", _C1, "<=", 1e-3,
            lambda r: max(_wall(r, (1.0, 2.0)))),
        Bar("sine with F = 16, 400 cosines within sixteen times its frequency: error", "card, claim 1", _C1,
            ">=", 0.5, lambda r: _too_wide(r, 16)),
        Bar("sine with F = 8, 400 cosines within sixteen times its frequency: error", "card, claim 1", _C1,
            ">=", 0.5, lambda r: _too_wide(r, 8),
            why="400 features for the 512 directions that this band has on [-1, 1] are nearly enough: draws differ "
            "from 0.0005 to 0.95, and the card looked at one; with F = 16, and 1024 directions, the bound holds"),
        Bar("the same bands by ridgelet sampling: error where uniform draws within sixteen times the frequency fail "
            "(largest)", "card, claim 1", _C1, "<=", 1e-3, lambda r: max(_wall(r, (WIDE,), RIDGELET))),
        Bar("fits that beat the lower bound", "card, tests", "projection error >= lower bound for every seed and m",
            "==", 0, _broken),
        Bar("fits with an error above one half whose diagnosis names the wrong cause", "card, summary",
            "be TOLD when the scale rather than the width is the bottleneck", "==", 0, _misjudged),
        Bar("tanh in U(-1, 1): error at width 800 over that at width 50", "card, claim 2", _C2, ">=", 0.95,
            lambda r: _width(r, 1.0)[-1] / _width(r, 1.0)[0], headline=True),
        Bar("tanh in U(-50, 50): error at width 800", "card, claim 2", _C2, "<=", 0.05,
            lambda r: _width(r, 50.0)[-1]),
        Bar("noisy sines and chirp: error with the chosen bandwidth over the best of the grid (largest)",
            "card, claim 3", _C3, "<=", 2, lambda r: max(_over(r, c, GRID) for c in _waves(r))),
        Bar("noisy sines and chirp: error with the chosen bandwidth over that with U(-1, 1) (largest)",
            "card, claim 3", _C3, "<=", 0.2, lambda r: max(_over(r, c, UNIT) for c in _waves(r))),
        Bar("diabetes: error with the chosen bandwidth over the best of the grid", "card, claim 3",
            "real: load_diabetes: <= 1.02x of the grid best", "<=", 1.02, lambda r: _over(r, DIABETES, GRID)),
        Bar("directions that count, per unit of bandwidth: at least", "card, claim 4", "Bar .5-.8", ">=", 0.5,
            _rank_slope),
        Bar("directions that count, per unit of bandwidth: at most", "card, claim 4", "Bar .5-.8", "<=", 0.8,
            _rank_slope),
    ],
    plot=plot,
    rounds={"quick": 1, "full": 1},
    threads=1,
)  # fmt: skip
