"""Fixtures and the one switch that every test file shares."""

import jaxtyping
import pytest
import torch


@pytest.fixture(autouse=True)
def _annotations(request):
    """Shapes in annotations are enforced, except where a test looks at our own messages for bad input."""
    jaxtyping.config.update("jaxtyping_disable", request.node.get_closest_marker("bad_input") is not None)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _compiler(request):
    """The compiler forgets what it gave up on: all annotated functions share one wrapper, which it would then skip."""
    if "compile" in request.node.name:
        torch.compiler.reset()


@pytest.fixture
def generator():
    """A seeded generator."""
    return torch.Generator().manual_seed(0)
