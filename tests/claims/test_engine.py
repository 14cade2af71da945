"""The engine on small claims: verdicts, records, resuming, and what it refuses."""

import json
import math
import time
from dataclasses import replace

import pytest

from hadamard import catalog
from hadamard.claims import Bar, Claim, Contender, Interval, Measure, Results, engine, expected, page
from hadamard.claims.worker import Worker

KEY = "sinkhorn_newton_sparse"


def bar(value=2.0, bound=1.0, **kwargs):
    given = {"text": "value", "source": "card, claim 1", "original_bound": ">= 1", "sense": ">=", "bound": bound}
    return Bar(**(given | {"value": (lambda r: value) if not callable(value) else value} | kwargs))


def claim(**kwargs):
    """Adds numbers quickly, or slowly: two cases, three contenders."""
    order = kwargs.pop("order", [])

    def slow(case):
        order.append("slow")
        time.sleep(0.002)
        return sum(case)

    def quick(case):
        order.append("quick")
        return sum(case)

    given = {
        "key": KEY,
        "statement": "Quick is quicker.",
        "paper_figure": "2x",
        "sizes": {"quick": {"n": 3}, "full": {"n": 30}},
        "problem": lambda seed, n: {"small": list(range(n)), "large": list(range(2 * n))},
        "contenders": [
            Contender("quick", quick),
            Contender("slow", slow, role="baseline", cases=lambda case: case == "small"),
        ],
        "measures": [Measure("sum", "1", lambda case, outcome: outcome)],
        "bars": [bar()],
        "plot": lambda r: {"data": [], "layout": {}, "caption": "nothing"},
        "rounds": {"quick": 3},
    }
    return Claim(**(given | kwargs))


@pytest.fixture
def run(monkeypatch, tmp_path):
    def go(made, **kwargs):
        monkeypatch.setattr(engine, "load", lambda key: made)
        record = engine.run(KEY, "quick", tmp_path, **kwargs)
        assert json.loads((tmp_path / f"{KEY}.json").read_text()) == record
        return record

    return go


def test_a_record_holds_everything_that_was_measured(run):
    record = run(claim())
    assert record["verdict"] == "holds", record.get("traceback")
    assert record["environment"]["cores"] >= 1
    assert record["command"] == f"hadamard claims {KEY} --size quick"
    rows = {(m["case"], m["contender"], m["measure"]): m for m in record["measurements"]}
    assert rows["large", "quick", "sum"]["median"] == 15
    assert rows["small", "slow", "seconds"]["n"] == 3
    assert rows["small", "slow", "seconds"]["median"] >= 0.002
    assert ("large", "slow", "seconds") not in rows


def test_contenders_are_interleaved_by_round():
    order = []
    slow = Contender("slow", lambda case: order.append("slow") or time.sleep(0.51), role="baseline")
    quick = Contender("quick", lambda case: order.append("quick") or time.sleep(0.51))
    made = claim(contenders=[quick, slow], measures=[], problem=lambda seed, n: {"only": 0}, rounds={"quick": 3})
    engine.measure(made, "quick")
    assert order == ["quick", "slow"] * 3


def test_what_does_not_depend_on_time_runs_once():
    order = []
    slow = Contender("slow", lambda case: order.append("slow"), role="baseline", once=True)
    quick = Contender("quick", lambda case: order.append("quick") or time.sleep(0.51))
    made = claim(contenders=[quick, slow], measures=[], problem=lambda seed, n: {"only": 0}, rounds={"quick": 3})
    results = engine.measure(made, "quick")
    assert order.count("quick") == 3
    assert len(results.samples["only", "slow", "seconds"]) == 1


@pytest.mark.parametrize(
    ("bars", "verdict", "headline"),
    [
        ([bar()], "holds", "not tested"),
        ([bar(headline=True)], "holds", "reproduced"),
        ([bar(headline=True, weakened="smaller")], "holds_weaker", "not at this size"),
        ([bar(0.5, headline=True)], "fails", "not at this size"),
        ([bar(math.nan)], "fails", "not tested"),
        ([bar(lambda r: Interval(1.5, 0.9, 2.0), seconds=True)], "inconclusive", "not tested"),
        ([bar(lambda r: Interval(1.5, 1.1, 2.0), seconds=True)], "holds", "not tested"),
        ([bar(lambda r: Interval(0.5, 0.4, 0.9), seconds=True)], "fails", "not tested"),
        ([bar(lambda r: Interval(1.5, 0.9, 2.0))], "holds", "not tested"),
        ([bar(0.5, why="Too small."), bar(weakened="x")], "fails", "not tested"),
    ],
)
def test_verdicts(run, bars, verdict, headline):
    record = run(claim(bars=bars))
    assert (record["verdict"], record["paper_headline"]) == (verdict, headline)
    assert bool(record["cause"]) == (verdict in ("fails", "inconclusive"))


@pytest.mark.parametrize(
    ("sense", "value", "holds"), [("<=", 1, "yes"), ("<", 1, "no"), (">", 1, "no"), ("==", 1, "yes"), (">=", 0.9, "no")]
)
def test_senses(run, sense, value, holds):
    assert run(claim(bars=[bar(value, sense=sense)]))["bars"][0]["holds"] == holds


def test_side_by_side_nothing_is_timed(run):
    record = run(claim(bars=[bar(seconds=True)]), timed=False)
    assert record["timings"] == "not measured"
    assert record["bars"][0]["holds"] == "inconclusive"
    assert record["bars"][0]["value"] is None
    assert "seconds" not in {m["measure"] for m in record["measurements"]}


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"agree": lambda case, outcomes: "sums differ"}, "DisagreementError: case small: sums differ"),
        ({"requires": ("no_such_peer",)}, "ImportError: .* compares with no_such_peer, which is not installed"),
        ({"plot": lambda r: 1 / 0}, "ZeroDivisionError"),
        ({"sizes": {"full": {}}}, "ValueError: .* has no size 'quick'; it has full"),
    ],
)
def test_what_goes_wrong_is_an_error_with_its_traceback(run, change, cause):
    record = run(claim(**change))
    assert record["verdict"] == "error"
    assert pytest.importorskip("re").match(cause, record["cause"]), record["cause"]
    assert "Traceback" in record["traceback"]


def test_resume_keeps_what_reached_a_verdict(monkeypatch, tmp_path):
    order = []
    monkeypatch.setattr(engine, "load", lambda key: claim(order=order))
    engine.run_all([KEY], "quick", tmp_path)
    ran = len(order)
    engine.run_all([KEY], "quick", tmp_path, resume=True)
    assert len(order) == ran
    engine.run_all([KEY], "quick", tmp_path)
    assert len(order) > ran
    monkeypatch.setattr(engine, "load", lambda key: claim(plot=lambda r: 1 / 0, order=order))
    engine.run_all([KEY], "quick", tmp_path)
    ran = len(order)
    (record,) = engine.run_all([KEY], "quick", tmp_path, resume=True)
    assert record["verdict"] == "error"
    assert len(order) > ran


def test_an_interrupted_run_leaves_finished_results_whole(monkeypatch, tmp_path):
    def interrupt(case):
        raise KeyboardInterrupt

    keys = list(catalog.methods())[:1]
    monkeypatch.setattr(engine, "load", lambda key: claim())
    engine.run_all(keys, "quick", tmp_path)
    before = (tmp_path / f"{KEY}.json").read_text()
    monkeypatch.setattr(engine, "load", lambda key: claim(contenders=[Contender("quick", interrupt)]))
    with pytest.raises(KeyboardInterrupt):
        engine.run_all(keys, "quick", tmp_path)
    assert (tmp_path / f"{KEY}.json").read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == [f"{KEY}.json"]


def test_interval_is_the_order_statistic_interval():
    assert Interval.of([3.0, 1.0, 2.0]) == Interval(2.0, 1.0, 3.0)
    assert Interval.of([float(i) for i in range(1, 12)]) == Interval(6.0, 3.0, 9.0)


def test_results_ratio_slope_and_series():
    r = Results(cases={"1": None, "10": None})
    r.samples = {("1", "a", "t"): [2.0, 4.0], ("10", "a", "t"): [20.0, 40.0], ("1", "b", "t"): [1.0, 1.0]}
    assert r.ratio("1", "a", "b", "t") == Interval(3.0, 2.0, 4.0)
    assert r.slope([1, 10], "a", "t").value == pytest.approx(1)
    assert r.series("a", "t") == [3.0, 30.0]
    assert r.series("b", "t") == [1.0]


def test_expected_verdicts_ignore_seconds(tmp_path, run):
    record = run(claim(bars=[bar(text="exact"), bar(0.5, text="fast", seconds=True)]))
    path = tmp_path / "expected.json"
    expected.write_expected([record], path)
    assert json.loads(path.read_text()) == {KEY: {"exact": "yes"}}
    assert expected.differences([record], path) == []
    changed = run(claim(bars=[bar(0.5, text="exact")]))
    assert expected.differences([changed], path) == [f"{KEY}: 'exact' was yes, is no"]
    assert expected.differences([record | {"key": "new"}], path) == [
        "new: no expected verdict; write it with 'make expected'"
    ]
    with pytest.raises(ValueError, match="expected verdicts cannot be read"):
        expected.differences([record], tmp_path / "missing.json")


def test_a_process_of_its_own_gives_the_same_outcome_and_its_peak_memory():
    made = engine.load(KEY)
    case = next(iter(made.problem(seed=made.seed, **made.sizes["quick"])))
    method = next(k for k in made.contenders if k.role == "method")
    worker = Worker(KEY, "quick")
    try:
        assert worker.peak_memory(case, method.name) > 0
        outcome, seconds = worker.run(case, method.name)
        assert seconds > 0
        assert type(outcome).__name__ != "NoneType"
        with pytest.raises(RuntimeError, match="failed in its own process"):
            worker.run("no such case", method.name)
    finally:
        worker.close()


def test_replace_keeps_claims_frozen():
    made = claim()
    with pytest.raises(AttributeError):
        made.key = "other"
    assert replace(made, key="other").key == "other"


def test_page_is_built_from_records(run, tmp_path):
    run(claim())
    assert KEY in page.build(tmp_path, total=1).read_text(encoding="utf-8")
