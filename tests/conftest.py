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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One worker runs all tests that need Ray, in one session. (xdist 3.8 ignores its groups on pytest 9.2.)"""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class OneSession(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return "ray" if nodeid.partition("::")[0].endswith("online_training.py") else nodeid

    return OneSession(config, log)
