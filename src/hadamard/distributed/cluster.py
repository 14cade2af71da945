"""Ray, started as this family uses it: embedded on this machine, or a cluster at an address."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["ray_session", "require_ray"]

_STORE = 200 * 2**20  # bytes of shared memory for messages on their way; buffers hold copies of their own


def require_ray() -> Any:
    """Import Ray, or say what to install."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ImportError("online training needs Ray: pip install 'hadamard[distributed]'") from error
    return ray


@contextmanager
def ray_session(num_cpus: int, address: str | None = None) -> Iterator[Any]:
    """Use the Ray session that there is, or start one and end it afterwards.

    Parameters
    ----------
    num_cpus
        Processes that are wanted at the same time, for a session that is started on this machine.
    address
        Of a cluster (``"auto"`` for the one that this machine belongs to); ``None``: this machine.

    Raises
    ------
    ImportError
        If Ray is missing.
    """
    ray = require_ray()
    if ray.is_initialized():
        yield ray
        return
    if address is not None:
        ray.init(address=address, log_to_driver=False)
    else:
        ray.init(
            address="local", num_cpus=num_cpus, include_dashboard=False, object_store_memory=_STORE,
            log_to_driver=False, logging_level="ERROR",
        )  # fmt: skip
    try:
        yield ray
    finally:
        ray.shutdown()
