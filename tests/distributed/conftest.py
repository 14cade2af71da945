"""Fixtures of this family."""

import pytest

from hadamard.distributed.cluster import ray_session
from tests.suites.two_ranks import two_ranks

__all__ = ["ray", "two_ranks"]


@pytest.fixture(scope="session")
def ray():
    """One Ray session for all tests."""
    with ray_session(num_cpus=8) as ray:
        yield ray
