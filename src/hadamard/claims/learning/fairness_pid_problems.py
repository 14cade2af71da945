"""Census tables and models for the claim of ``fairness_pid``, and what its authors and others compute with."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from hadamard.data import adult, federated_split
from hadamard.learning import GlobalLocalPenalty, fairness_pid
from hadamard.learning.partial_information import mutual_information

NODES = {"unique_1": ((1,),), "unique_2": ((2,),), "redundant": ((1,), (2,)), "synergy": ((1, 2),)}


@dataclass(frozen=True)
class Census:
    """Adult, without people of whom something is not known: attributes but sex, income, and sex."""

    X: torch.Tensor
    income: np.ndarray
    sex: np.ndarray


@dataclass(frozen=True)
class Model:
    """Decisions of a trained classifier on the rows that it was trained on."""

    decisions: np.ndarray
    accuracy: float


@cache
def census() -> Census:
    """The table, one-hot and standardised."""
    import pandas

    table = adult()
    table = table[~table.isin(["?"]).any(axis=1)]
    income, sex = (table[name] == value for name, value in (("income", ">50K"), ("gender", "Male")))
    X = pandas.get_dummies(table.drop(columns=["income", "gender", "fnlwgt", "education"])).to_numpy(np.float32)
    X = (X - X.mean(0)) / X.std(0).clip(1e-6)
    return Census(torch.from_numpy(X), income.to_numpy(int), sex.to_numpy(int))


def train(
    hidden: int = 0, weight: float = 0.0, client: np.ndarray | None = None, rounds: int = 0, epochs: int = 5,
    seed: int = 0,
) -> Model:  # fmt: skip
    """Train logistic regression or a network with one hidden layer, penalised or not.

    With ``rounds``, by federated averaging: in each round every client trains a copy for an epoch, and copies are
    averaged with the clients' sizes.
    """
    data = census()
    y, z = torch.from_numpy(data.income), torch.from_numpy(data.sex)
    s = torch.zeros_like(y) if client is None else torch.from_numpy(client)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        width = data.X.shape[1]
        net: nn.Module = nn.Linear(width, 2)
        if hidden:
            net = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 2))
        penalty = GlobalLocalPenalty(2, int(s.max()) + 1, weight, weight) if weight else None
        if rounds:
            parts = [torch.nonzero(s == c)[:, 0] for c in range(int(s.max()) + 1)]
            for _ in range(rounds):
                start = {k: v.clone() for k, v in net.state_dict().items()}
                mean: dict[str, torch.Tensor] = {}
                for rows in parts:
                    net.load_state_dict(start)
                    _epochs(net, data.X[rows], y[rows], z[rows], s[rows], None, 1)
                    for k, v in net.state_dict().items():
                        mean[k] = mean.get(k, 0) + v * (len(rows) / len(y))
                net.load_state_dict(mean)
        else:
            _epochs(net, data.X, y, z, s, penalty, epochs)
        with torch.no_grad():
            decisions = net(data.X).argmax(1).numpy()
    return Model(decisions, float((decisions == data.income).mean()))


def _epochs(
    net: nn.Module, X: torch.Tensor, y: torch.Tensor, z: torch.Tensor, s: torch.Tensor,
    penalty: GlobalLocalPenalty | None, epochs: int,
) -> None:  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(1000):
            out = net(X[rows])
            loss = nn.functional.cross_entropy(out, y[rows])
            if penalty is not None:
                loss = loss + penalty(out.softmax(-1), z[rows], s[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@dataclass(frozen=True)
class Audit:
    """A trained model's decisions, and a split among clients."""

    decisions: np.ndarray
    sex: np.ndarray
    client: np.ndarray

    @property
    def joint(self) -> Float[np.ndarray, "z y s"]:
        """The table of group, decision and client."""
        counts = np.zeros((2, 2, int(self.client.max()) + 1))
        np.add.at(counts, (self.sex, self.decisions, self.client), 1)
        return counts / counts.sum()


@dataclass(frozen=True)
class Joints:
    """Random joint distributions, uniform on the simplex."""

    p: Float[np.ndarray, "n z x s"]


@dataclass(frozen=True)
class Limit:
    """Labels of the census among clients, and a grid of budgets at which the best accuracy is asked for."""

    table: Float[np.ndarray, "z s t"]
    eps_global: Sequence[float]
    eps_local: Sequence[float]
    disparities: str = "numpy"  # how a local search computes them


@dataclass(frozen=True)
class Models:
    """Trained models by name, and the table that they were trained on."""

    models: Mapping[str, Model]
    client: np.ndarray


def split(by: str, purity: float, seed: int, n_clients: int = 2) -> np.ndarray:
    """The census among clients."""
    data = census()
    return federated_split(by, data.income, data.sex, n_clients, purity=purity, random_state=seed)


def label_table(client: np.ndarray) -> Float[np.ndarray, "z s t"]:
    """The distribution of sex, client and income."""
    data = census()
    return Audit(data.income, data.sex, client).joint.transpose(0, 2, 1)


def audit_of(model: Model, client: np.ndarray) -> Any:
    """The audit of a model on the census."""
    return fairness_pid(model.decisions, sensitive_features=census().sex, client=client, n_bootstrap=0)


def by_dit(p: Float[np.ndarray, "z x s"], method: str = "auto") -> dict[str, float]:
    """The decomposition by dit: by default a local search, which is what the authors' code calls."""
    import dit

    cells = ["".join(map(str, cell)) for cell in np.ndindex(p.shape)]
    found = dit.pid.PID_BROJA(dit.Distribution(cells, p.ravel().tolist()), [[1], [2]], [0], method=method)
    return {name: float(found[node]) for name, node in NODES.items()}


def by_cone(p: Float[np.ndarray, "z x s"]) -> dict[str, float]:
    """The decomposition by a general cone solver, through cvxpy."""
    import cvxpy

    q = [cvxpy.Variable(p.shape[1:], nonneg=True) for _ in p]
    rules = [cvxpy.sum(each, axis) == p[z].sum(axis) for z, each in enumerate(q) for axis in (0, 1)]
    loss = sum(cvxpy.sum(cvxpy.rel_entr(each, sum(q))) for each in q)
    problem = cvxpy.Problem(cvxpy.Minimize(loss), rules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem.solve(solver="CLARABEL")
    group = p.sum((1, 2))
    first, second = mutual_information(p.sum(2)), mutual_information(p.sum(1))
    both = (problem.value - (group * np.log(group)).sum()) / np.log(2)
    total = mutual_information(p.reshape(len(p), -1))
    return {
        "unique_1": float(both - second), "unique_2": float(both - first),
        "redundant": float(first + second - both), "synergy": float(total - both),
    }  # fmt: skip


def _numpy_disparities(v: Float[np.ndarray, "z s y"]) -> tuple[float, float]:
    return float(mutual_information(v.sum(1))), float(mutual_information(v.transpose(1, 0, 2)).sum())


def _dit_disparities(v: Float[np.ndarray, "z s y"]) -> tuple[float, float]:
    import dit

    cells = ["".join(map(str, cell)) for cell in np.ndindex(v.shape)]
    p = dit.Distribution(cells, (v / v.sum()).ravel().tolist())
    p.set_rv_names("ZSY")
    of_all = dit.shannon.mutual_information(p, ["Z"], ["Y"])
    return float(of_all), float(dit.multivariate.coinformation(p, "ZY", "S"))


def _decomposed_disparities(v: Float[np.ndarray, "z s y"]) -> tuple[float, float]:
    """As in the authors' code, where every evaluation of a constraint computes the decomposition too."""
    by_dit((v / v.sum()).transpose(0, 2, 1))
    return _dit_disparities(v)


DISPARITIES: Mapping[str, Callable] = {
    "numpy": _numpy_disparities, "dit": _dit_disparities, "decomposed": _decomposed_disparities,
}  # fmt: skip


@dataclass(frozen=True)
class Descent:
    """Where a local search ended: accuracy, disparities, whether it met its tolerance."""

    accuracy: float
    global_: float
    local: float
    success: bool


def by_slsqp(
    table: Float[np.ndarray, "z s t"], budget: tuple[float, float], disparities: str, starts: int = 1,
    max_iter: int = 100, seed: int = 0,
) -> list[Descent]:  # fmt: skip
    """The paper's problem by its authors' recipe: the four-way joint as unknowns, SLSQP from random starts."""
    from scipy.optimize import minimize

    z, s, t = table.shape
    wrong = np.broadcast_to(1 - np.eye(t), (z, s, t, t)).ravel()
    sums = np.kron(np.eye(table.size), np.ones(t))
    measure = DISPARITIES[disparities]

    def of(x: np.ndarray) -> tuple[float, float]:
        return measure(np.maximum(x.reshape(z, s, t, t), 0).sum(2))

    rules = [
        {"type": "eq", "fun": lambda x: sums @ x - table.ravel()},
        {"type": "ineq", "fun": lambda x: budget[0] - of(x)[0]},
        {"type": "ineq", "fun": lambda x: budget[1] - of(x)[1]},
    ]
    random, found = np.random.default_rng(seed), []
    for _ in range(starts):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            r = minimize(
                lambda x: wrong @ x, random.random(wrong.size), method="SLSQP", bounds=[(0, 1)] * wrong.size,
                constraints=rules, options={"maxiter": max_iter},
            )  # fmt: skip
        x = np.maximum(r.x.reshape(z, s, t, t), 0)
        legal = r.success and np.abs(sums @ r.x - table.ravel()).max() < 1e-6
        found.append(Descent(float(1 - wrong @ r.x), *_numpy_disparities(x.sum(2)), bool(legal)))
    return found
