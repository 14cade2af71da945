"""Finds and loads the compiled kernels, and says what runs where there are none.

The C++ files beside this module are compiled into one shared library when the package is installed. It knows
nothing of Python: it is loaded with :mod:`ctypes`, takes pointers to the tensors' memory (nothing is copied), and
runs without the interpreter's lock. On x86 its kernels use AVX2, FMA and F16C where the processor has them, which is
asked when they run; the same source is compiled for any other processor with the compiler's portable vectors. Where
no compiler was there at install time, plain PyTorch runs instead.
"""

import ctypes
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from hadamard.validation import check_option

__all__ = ["available", "instruction_set", "last_level_cache", "library", "using"]

_forced: ContextVar[str] = ContextVar("hadamard_kernels", default="auto")


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library, or ``None`` where it was not built; then it warns, once.

    Examples
    --------
    >>> library() is library()
    True
    """
    built = _built(Path(__file__).parent)
    if built is None:
        warnings.warn(
            "hadamard's compiled kernels were not built when it was installed (is there a C++17 compiler?): "
            "plain PyTorch runs instead and gives the same values",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return ctypes.CDLL(str(built))


def available() -> bool:
    """Whether compiled kernels run here and now.

    Examples
    --------
    >>> with using("torch"):
    ...     available()
    False
    """
    return instruction_set() != "torch"


def instruction_set() -> str:
    """What runs: ``"avx2"``, ``"portable"`` (compiled too), or ``"torch"`` where there is no compiled library.

    Examples
    --------
    >>> instruction_set() in ("avx2", "portable", "torch")
    True
    """
    forced = _forced.get()
    compiled = None if forced == "torch" else library()
    if compiled is None:
        return "torch"
    return "portable" if forced == "portable" or not compiled.hadamard_has_avx2() else "avx2"


@contextmanager
def using(path: str) -> Iterator[None]:
    """Inside of this context another path is taken; for tests and measurements.

    Parameters
    ----------
    path
        ``"auto"`` (the best that runs here), ``"portable"`` (the compiled kernels without AVX2) or ``"torch"``
        (plain PyTorch).

    Raises
    ------
    ValueError
        If ``path`` is none of these.

    Examples
    --------
    >>> with using("torch"):
    ...     instruction_set()
    'torch'
    """
    token = _forced.set(check_option(path, "path", ("auto", "portable", "torch")))
    try:
        yield
    finally:
        _forced.reset(token)


@cache
def last_level_cache() -> int:
    """Bytes of the last-level cache as Linux reports them, or 32 MiB where nothing does.

    Examples
    --------
    >>> last_level_cache() >= 2**16
    True
    """
    return _cache_size(Path("/sys/devices/system/cpu/cpu0/cache"))


def _built(folder: Path) -> Path | None:
    """The newest library in a folder: an installed one carries the interpreter's tag in its name."""
    found = [path for pattern in ("_kernels*.so", "_kernels*.pyd") for path in folder.glob(pattern)]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _cache_size(folder: Path) -> int:
    sizes = [path.read_text().strip() for path in folder.glob("index*/size")]
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}
    return max((int(s[:-1]) * unit[s[-1]] for s in sizes if s[:-1].isdigit() and s[-1] in unit), default=32 * 2**20)
