"""Whether a window of gradients fits into memory, asked before it is allocated."""

import os

import torch

__all__ = ["check_fits"]


def check_fits(m: int, d: int, dtype: torch.dtype, device: torch.device, name: str) -> None:
    """Raise ``MemoryError`` where m vectors of d numbers do not fit into the memory that is free.

    Parameters
    ----------
    m, d, dtype
        Shape and type of what is to be allocated.
    device
        Where. Where the free memory is not known, nothing is raised.
    name
        The argument to blame.
    """
    needed, free = m * d * dtype.itemsize, free_bytes(device)
    if free is not None and needed > free:
        raise MemoryError(
            f"{name} is too large: {m} vectors of {d} numbers in {dtype} need {_size(needed)}, "
            f"got {_size(free)} free on {device}"
        )


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device, in bytes; ``None`` where it is not known."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
