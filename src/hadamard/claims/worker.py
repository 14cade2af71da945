"""A process of its own for what must not run in ours: peers that need torchvision, and peak memory.

The process makes the claim's cases again from the same seed, so that only names travel to it and outcomes back.
"""

import ctypes
import traceback
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch.utils.benchmark import timer

__all__ = ["Worker"]


class Worker:
    """A spawned process that runs contenders of one claim by name, and gets ready for it while others go on.

    Parameters
    ----------
    key, size
        The claim and its size.
    torchvision
        Define the operators that torchvision needs, so that peers built on it can be imported there, and import them.
    """

    def __init__(self, key: str, size: str, *, torchvision: bool = False) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, key, size, torchvision, torch.get_num_threads())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        self._ready = False
        theirs.close()

    def wait(self) -> None:
        """Wait until the process is ready: it takes no more of the processor until it is asked."""
        if not self._ready:
            self._ready = True
            self._answer("an isolated contender")

    def run(self, case: str, contender: str) -> tuple[Any, float]:
        """The outcome of one run and its seconds, measured inside the process."""
        return self._ask("run", case, contender)

    def peak_memory(self, case: str, contender: str) -> float:
        """Bytes by which one run raises the process's resident memory above where it started (Linux only)."""
        return self._ask("peak_memory", case, contender)

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()

    def _ask(self, *question: str) -> Any:
        self.wait()
        self._pipe.send(question)
        return self._answer(question[2])

    def _answer(self, whose: str) -> Any:
        try:
            answer, error = self._pipe.recv()
        except EOFError:
            self._process.join(5)
            raise RuntimeError(f"the process of {whose} ended with exit code {self._process.exitcode}") from None
        if error:
            raise RuntimeError(f"{whose} failed in its own process:\n{error}")
        return answer


def _serve(pipe: Connection, key: str, size: str, torchvision: bool, threads: int) -> None:
    """Get ready, and then: one question, one ``(answer, error)``."""
    threadpool_limits(threads)
    torch.set_num_threads(threads)
    try:
        if torchvision:
            import_module("hadamard.claims.torchvision_shim").install()
        claim = import_module("hadamard.claims.engine").load(key)
        if torchvision:
            for name in claim.requires:
                import_module(name)
        cases = claim.problem(seed=claim.seed, **claim.sizes[size])
        contenders = {contender.name: contender for contender in claim.contenders}
        pipe.send((None, ""))
    except Exception:
        pipe.send((None, traceback.format_exc()))
        return
    while True:
        try:
            what, case_name, contender_name = pipe.recv()
        except EOFError:
            return
        try:
            run, case = contenders[contender_name].run, cases[case_name]
            if what == "run":
                start = timer()
                outcome = run(case)
                pipe.send(((outcome, timer() - start), ""))
                continue
            _trim()
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            before = _status("VmRSS")
            outcome = run(case)
            pipe.send((float(max(_status("VmHWM") - before, 0)), ""))
        except Exception:
            pipe.send((None, traceback.format_exc()))


def _trim() -> None:
    """Give back what earlier runs left to the C library, which would hide in the memory at the start."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _status(field: str) -> int:
    """One line of the kernel's account of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
