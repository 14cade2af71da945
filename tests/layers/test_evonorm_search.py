"""The search space: graphs mean what they say, stay valid under mutation, and the two tests tell good from bad."""

import pytest
import torch
from sklearn.datasets import load_digits

from hadamard.layers import EvoNorm2dB0, EvoNorm2dS0, GraphLayer, LayerGraph, quality, stability
from hadamard.layers.evonorm_search import INPUTS, OPERATIONS

S0 = LayerGraph((("mul", 0, 3), ("sigmoid", 4), ("mul", 0, 5), ("std_whg", 0), ("div", 6, 7)))
B0 = LayerGraph((("std_wh", 0), ("mul", 3, 0), ("add", 4, 5), ("std_bwh", 0), ("max", 6, 7), ("div", 0, 8)))
BN_RELU = LayerGraph((("mean_bwh", 0), ("neg", 4), ("add", 0, 5), ("std_bwh", 0), ("div", 6, 7), ("max", 8, 1)))
CONSTANT = LayerGraph((("mul", 0, 1),))
CUBE = LayerGraph((("square", 0), ("mul", 0, 4)))


@pytest.fixture(scope="module")
def data():
    X, y = load_digits(return_X_y=True)
    return torch.tensor(X[:256], dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1, torch.tensor(y[:256])


@pytest.mark.parametrize(
    "graph, layer",
    [(S0, EvoNorm2dS0(8, groups=4)), (B0, EvoNorm2dB0(8))],
    ids=["S0", "B0"],
)
def test_graphs_of_the_found_layers_are_the_layers(graph, layer, generator):
    x = torch.randn(4, 8, 5, 5, generator=generator)
    torch.testing.assert_close(GraphLayer(graph, 8, groups=4)(x), layer(x), rtol=1e-4, atol=1e-4)


def test_batch_norm_and_relu_as_a_graph(generator):
    x = torch.randn(4, 8, 5, 5, generator=generator)
    wanted = torch.relu(torch.nn.BatchNorm2d(8)(x))
    torch.testing.assert_close(GraphLayer(BN_RELU, 8)(x), wanted, rtol=1e-4, atol=1e-4)


def test_which_graphs_look_at_the_batch():
    assert BN_RELU.uses_batch
    assert B0.uses_batch
    assert not S0.uses_batch
    unused = LayerGraph((("mean_bwh", 0), ("sigmoid", 0)))
    assert not unused.uses_batch  # a node that the output does not depend on


def test_random_graphs_and_their_mutants_are_valid_and_evaluate(generator):
    x, v0, v1 = torch.randn(2, 4, 3, 3, generator=generator), torch.zeros(4), torch.ones(4)
    seen = set()
    graph = LayerGraph.random(10, generator)
    for _ in range(60):
        mutant = graph.mutate(generator)
        assert len(mutant.nodes) == 10
        assert sum(a != b for a, b in zip(graph.nodes, mutant.nodes)) <= 1
        assert mutant(x, v0, v1, 2).shape == x.shape
        seen |= {node[0] for node in mutant.nodes}
        graph = mutant
    assert len(seen) > 0.7 * len(OPERATIONS)
    assert graph == LayerGraph(graph.nodes)
    assert any(name in str(graph) for name in INPUTS)


def test_same_generator_same_graph():
    first, second = (LayerGraph.random(6, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first == second


def test_quality_rejects_what_does_not_learn(data):
    good = quality(BN_RELU, *data, steps=40, generator=torch.Generator().manual_seed(0))
    bad = quality(CONSTANT, *data, steps=10, generator=torch.Generator().manual_seed(0))
    broken = quality(CUBE, *data, steps=10, generator=torch.Generator().manual_seed(0))
    assert good.verified
    assert good.value > 0.5
    assert not bad.verified
    assert "accuracy" in bad.reason
    assert broken.value == 0.0  # its scores overflow


def test_stability_rejects_exploding_gradients(data):
    images, labels = data[0][:16], data[1][:16]
    good = stability(S0, images, labels, steps=15, generator=torch.Generator().manual_seed(0))
    bad = stability(CUBE, images, labels, steps=15, generator=torch.Generator().manual_seed(0))
    assert good.verified
    assert 0 < good.value < good.bound == 1e8
    assert not bad.verified
    assert "gradient of norm" in bad.reason


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "nodes, message",
    [
        ((), "nodes must not be empty"),
        ((("sin", 0),), r"nodes\[0\] must be one of add, .* got 'sin'"),
        ((("add", 0),), r"nodes\[0\] \(add\) must name 2 earlier operand\(s\), got \[0\]"),
        ((("neg", 4),), r"nodes\[0\] \(neg\) must name 1 earlier operand\(s\), got \[4\]"),
    ],
)
def test_refuses_wrong_graphs(nodes, message):
    with pytest.raises(ValueError, match=message):
        LayerGraph(nodes)


@pytest.mark.bad_input
def test_refuses_wrong_groups_and_data(data):
    with pytest.raises(ValueError, match="groups must divide num_features, got 3 and 8"):
        GraphLayer(S0, 8, groups=3)
    with pytest.raises(ValueError, match=r"images must have 4 dimension\(s\)"):
        quality(S0, data[0][0], data[1], generator=torch.Generator())
    with pytest.raises(ValueError, match="threshold must be > 0"):
        stability(S0, *data, threshold=0.0, generator=torch.Generator())
