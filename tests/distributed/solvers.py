"""Solvers without torch, in a module that Ray's processes can import."""

import time

import numpy as np

STEPS = 20


def heat(parameters):
    """Sines that decay: parameter 0 is the number of the simulation, 1 the amplitude, 2 the rate."""
    _, amplitude, rate = parameters
    grid = np.linspace(0, np.pi, 8)
    for step in range(STEPS):
        yield step, amplitude * np.exp(-rate * step / STEPS) * np.sin(grid)


def slow_heat(parameters, pause=0.005):
    for item in heat(parameters):
        time.sleep(pause)
        yield item


def simulations(n, seed=0):
    rng = np.random.default_rng(seed)
    return np.column_stack([np.arange(n), rng.uniform(1, 2, n), rng.uniform(0.5, 2, n)])
