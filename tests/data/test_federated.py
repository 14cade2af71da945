"""Which client a row goes to."""

import numpy as np
import pytest

from hadamard.data import federated_split

LABEL, SEX = np.repeat([0, 1], 500), np.tile(["f", "m"], 500)


def share(rows, client):
    return (client[rows] == np.bincount(client[rows]).argmax()).mean()


def test_by_chance_and_of_equal_size():
    client = federated_split("iid", LABEL, SEX, 4, random_state=0)
    assert np.bincount(client).tolist() == [250] * 4
    assert abs(LABEL[client == 0].mean() - 0.5) < 0.1


@pytest.mark.parametrize("purity", [1.0, 0.9])
def test_by_what_is_in_a_row(purity):
    kinds = {"class": LABEL, "sensitive": SEX == "m", "mixed": (LABEL + (SEX == "m")) % 2}
    for by, kind in kinds.items():
        client = federated_split(by, LABEL, SEX, purity=purity, random_state=0)
        for k in range(2):
            assert (client[kind == k] == k).mean() == pytest.approx(purity)


def test_more_clients_than_kinds():
    client = federated_split("class", LABEL, SEX, 5, purity=0.8, random_state=0)
    home = client[LABEL == 0] % 2 == 0
    assert home.mean() == pytest.approx(0.8)
    assert len(set(client)) == 5


def test_a_seed_repeats():
    first, again = (federated_split("mixed", LABEL, SEX, random_state=3) for _ in range(2))
    assert (first == again).all()
    assert (federated_split("iid", LABEL, SEX, 1) == 0).all()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "change, message",
    [
        ({"by": "site"}, "by must be one of 'iid', 'class', 'sensitive', 'mixed', got 'site'"),
        ({"sensitive": ["f"]}, "label and sensitive must have as many rows, got 2 and 1"),
        ({"n_clients": 1}, "n_clients must be at least the number of kinds, 2, got 1"),
        ({"purity": 1.5}, "purity must be >= 0 and <= 1, got 1.5"),
        ({"label": [[0, 1]]}, r"label and sensitive must have shape \(n,\)"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        federated_split(**{"by": "class", "label": [0, 1], "sensitive": ["f", "m"]} | change)
