"""OTT's own estimator of maps with the Monge gap, and its gap of a given map: the paper's authors' code, in JAX.

It takes part where it is installed (``hadamard[ott]``); JAX weighs several times as much as all other peers together.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from functools import lru_cache
from importlib.util import find_spec
from io import StringIO
from time import perf_counter
from typing import Any

import numpy as np
import torch

from hadamard.claims.transport.monge_gap_maps import Outcome, Populations, best, checked

__all__ = ["INSTALLED", "estimator", "gap"]

INSTALLED = find_spec("ott") is not None and find_spec("flax") is not None
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def gap(case: tuple[torch.Tensor, torch.Tensor, float]) -> Outcome:
    """The gap and its gradient in float64, to the same tolerance as ours."""
    jax = _jax()
    x, y, relative = case
    with jax.enable_x64(True):
        value, gradient = _compiled()(x.numpy(), y.numpy(), relative)
        return Outcome(gap=float(value), gradient=torch.from_numpy(np.array(gradient)))


def estimator(case: Populations) -> Outcome:
    """The map, with its weight and learning rate chosen as ours are."""
    return best(_trained(case, weight, rate) for weight in case.weights for rate in case.rates)


def _trained(case: Populations, weight: float, rate: float) -> Outcome:
    """A network of the same width from the same loss, batch size, schedule and number of steps."""
    jax = _jax()
    import optax
    from ott.geometry import pointcloud
    from ott.neural.methods.monge_gap import MongeGapEstimator, monge_gap_from_samples
    from ott.neural.networks.potentials import PotentialMLP
    from ott.tools.sinkhorn_divergence import sinkdiv

    steps, batch, seed = (case.training[name] for name in ("steps", "batch_size", "random_state"))

    def share(x: Any, y: Any, part: float) -> Any:
        return part * jax.lax.stop_gradient(pointcloud.PointCloud(x, y).mean_cost_matrix)

    def fit(z: Any, y: Any) -> tuple[Any, None]:
        return sinkdiv(z, y, epsilon=share(y, y, 0.1), solve_kwargs={"threshold": 1e-2})[0], None

    def regularizer(x: Any, z: Any) -> tuple[Any, None]:
        return monge_gap_from_samples(x, z, epsilon=share(x, z, 0.05), threshold=1e-2), None

    model = MongeGapEstimator(
        case.train[0].shape[1],
        PotentialMLP(dim_hidden=[64, 64], is_potential=False, act_fn=jax.nn.gelu),
        optax.adam(optax.cosine_decay_schedule(rate, steps)),
        fit,
        regularizer,
        regularizer_strength=weight,
        num_train_iters=steps,
        rng=jax.random.PRNGKey(seed),
    )
    rng = np.random.default_rng(seed)
    draws = [_batches(side, batch, rng) for side in case.train]
    model.step_fn(model.state_neural_net, model._generate_batch(*draws), None, False, 0)  # compiles
    start = perf_counter()
    with redirect_stderr(StringIO()):  # its progress bar
        state, _ = model.train_map_estimator(*draws, *draws)
    training = perf_counter() - start
    outcome = checked(case, lambda x: np.array(state.apply_fn({"params": state.params}, x)), weight)
    outcome.training = training
    return outcome


def _batches(x: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    while True:
        yield x[rng.permutation(len(x))[:size]]


def _jax() -> Any:
    """JAX on one thread, as everything else here."""
    os.environ.setdefault("XLA_FLAGS", _ONE_THREAD)
    import jax

    return jax


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    """Value and gradient by OTT; compiled at the first call for each size."""
    jax = _jax()
    from ott.geometry import pointcloud
    from ott.neural.methods.monge_gap import monge_gap_from_samples

    def value(y: Any, x: Any, relative: Any) -> Any:
        reg = relative * jax.lax.stop_gradient(pointcloud.PointCloud(x, y).mean_cost_matrix)
        return monge_gap_from_samples(x, y, epsilon=reg, threshold=1e-3)

    return jax.jit(lambda x, y, relative: jax.value_and_grad(value)(y, x, relative))
