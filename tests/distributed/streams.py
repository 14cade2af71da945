"""A network that counts what it is trained on, and faults; in a module that Ray's processes can import."""

import os
import signal
import threading
import time
from functools import partial

import numpy as np
import torch
from torch import nn

from tests.distributed.solvers import STEPS, heat, simulations


class Counting(nn.Module):
    """A network whose weights also count, for each time step, the updates that it took part in.

    Its state takes a while to write, so that a fault can fall into the middle of a checkpoint.
    """

    def __init__(self, n, pause=0.0):
        super().__init__()
        self.counts = nn.Parameter(torch.zeros(n, STEPS))
        self.net = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 8))
        self.pause = pause

    def forward(self, x):
        scale = torch.tensor([1.0, 1.0, 1 / STEPS])
        return self.net(x[:, 1:] * scale), self.counts[x[:, 0].long(), x[:, 3].long()]

    def get_extra_state(self):
        time.sleep(self.pause)
        return self.pause

    def set_extra_state(self, state):
        self.pause = state


def counting_loss(model, x, y):
    prediction, counts = model(x)
    return (prediction - y).square().mean() + (counts - counts.detach()).mean()  # gradient without a value


class CountingSGD(torch.optim.Optimizer):
    """Momentum-free descent, but the counts go up by one wherever there is a gradient."""

    def __init__(self, params, shape, lr=0.1):
        super().__init__(params, {"lr": lr, "shape": shape})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad.sign() if p.shape == group["shape"] else -group["lr"] * p.grad)


def counting(n):
    """Arguments of a trainer whose weights count n simulations."""
    return {"optimizer": partial(CountingSGD, shape=(n, STEPS)), "loss": counting_loss}


def validation_error(run):
    """Mean squared error on simulations that nobody trained on."""
    rows = simulations(50, seed=99)
    x = np.array([[0, *row[1:], step] for row in rows for step, _ in heat(row)], dtype=np.float32)
    y = np.array([field for row in rows for _, field in heat(row)], dtype=np.float32)
    with torch.no_grad():
        return float((run.model(torch.tensor(x))[0] - torch.tensor(y)).square().mean())


class Faults:
    """Kills processes by SIGKILL, each when a given share of the time steps has been accepted.

    ``"checkpoint"`` waits until a checkpoint is half written, and kills a trainer or a buffer then.
    """

    def __init__(self, plan, total, folder, seed):
        self.plan = sorted(plan, key=lambda fault: fault[1])
        self.total, self.folder = total, folder
        self.random = np.random.default_rng(seed)
        self.done = []
        self.pids = {}
        threading.Thread(target=self._watch, daemon=True).start()

    def __call__(self, progress):
        self.pids = progress.pids
        while self.plan and self.plan[0][0] != "checkpoint" and progress.accepted >= self.plan[0][1] * self.total:
            role = self.plan[0][0]
            if not self._kill(role) or role != "client":
                return

    def _kill(self, role, where=""):
        pids = sorted(self.pids.get(role, {}).values())
        if not pids:
            return False
        try:
            os.kill(int(self.random.choice(pids)), signal.SIGKILL)
        except ProcessLookupError:  # it has ended since; another look will tell
            return False
        self.done.append(where or role)
        self.plan.pop(0)
        self.pids = {}
        return True

    def _watch(self):
        while self.plan:
            time.sleep(0.002)
            if self.plan and self.plan[0][0] == "checkpoint" and self.pids and self._half_written():
                self._kill(str(self.random.choice(["trainer", "buffer"])), "checkpoint")

    def _half_written(self):
        try:
            paths = list((self.folder / "checkpoints").iterdir())
            return any(not (path / ".metadata").exists() and any(path.iterdir()) for path in paths)
        except FileNotFoundError:
            return False
