"""What a convolution by FFT costs on a machine: which order of the Monarch transform, and whether it pays at all.

References
----------
D. Y. Fu, H. Kumbong, E. Nguyen, C. Re, "FlashFFTConv: Efficient Convolutions for Long Sequences with Tensor Cores",
ICLR 2024, arXiv:2311.05908.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2, prod

from hadamard.transforms.monarch import balanced_factors
from hadamard.validation import check_option, check_range

__all__ = ["HARDWARE", "ConvolutionCost", "Hardware", "cost_model"]


@dataclass(frozen=True)
class Hardware:
    """Rates of a machine.

    Attributes
    ----------
    matrix
        FLOP/s of products of matrices with sides of at least 16.
    general
        FLOP/s of smaller ones, and of everything else.
    near, far
        Bytes/s of the memory close to the arithmetic (a GPU's shared memory, a level-2 cache) and of the main one.
    near_bytes
        Size of the close one, for one program.
    """

    matrix: float
    general: float
    near: float
    far: float
    near_bytes: int


HARDWARE: Mapping[str, Hardware] = {
    "a100": Hardware(312e12, 19.5e12, 19.5e12, 1.55e12, 2**17),  # data sheets: half precision, 40 GB
    "h100": Hardware(989e12, 67e12, 30e12, 3.35e12, 2**17),  # data sheets: half precision, SXM
    "cpu": Hardware(50e9, 10e9, 50e9, 10e9, 2**20),  # one core with AVX2, in round numbers
}


@dataclass(frozen=True)
class ConvolutionCost:
    """Estimated times and the choice that they lead to.

    Attributes
    ----------
    seconds
        By what computes it: ``"fft"``, or ``"monarch 2"`` for order 2, and so on.
    backend
        ``"fft"`` or ``"monarch"``, whichever is less.
    order
        The best order of the Monarch transform, or 0 where the length has no two factors.
    """

    seconds: Mapping[str, float]
    backend: str
    order: int


def cost_model(
    seqlen: int,
    batch: int = 1,
    channels: int = 1,
    hardware: str | Hardware = "a100",
    orders: tuple[int, ...] = (2, 3, 4),
) -> ConvolutionCost:
    """Estimate the time of one convolution for each order of the Monarch transform, and for an unfused FFT.

    The paper's form: each of the p stages costs ``16 N N_i`` operations at the rate of products with N_i x N_i matrices
    and ``4 N`` bytes at the speed of the memory that holds its part of the sequence, for each sequence of a batch. To
    this the first read and the last write are added, and for comparison a real FFT whose steps (padding, transform,
    product, inverse, cut) each pass through main memory in float32.

    Parameters
    ----------
    seqlen
        Length of the transform, N.
    batch, channels
        Numbers of sequences.
    hardware
        ``"a100"``, ``"h100"``, ``"cpu"``, or rates of your own.
    orders
        Which orders to compare.

    Returns
    -------
    ConvolutionCost
        Times and the choice.

    Raises
    ------
    ValueError
        If a number is less than 1, or the hardware has no entry.

    Notes
    -----
    The presets are peaks out of data sheets, so the times are lower bounds; the choice rests on their ratios.

    Examples
    --------
    >>> [cost_model(n).order for n in (1024, 16384, 2**20)]
    [2, 3, 4]
    >>> cost_model(4096, hardware="cpu").backend
    'fft'
    """
    check_range(seqlen, "seqlen", 1, integer=True)
    sequences = check_range(batch, "batch", 1, integer=True) * check_range(channels, "channels", 1, integer=True)
    if not isinstance(hardware, Hardware):
        hardware = HARDWARE[check_option(hardware, "hardware", HARDWARE)]
    on_cpu = hardware.matrix / hardware.far < 20  # without matrix units a product is no cheaper than memory
    passes = 4 if on_cpu else 12
    fft = 5 * seqlen * log2(max(seqlen, 2)) / hardware.general + 4 * passes * seqlen / hardware.far
    seconds = {"fft": sequences * fft}
    for order in orders:
        try:
            factors = balanced_factors(seqlen, order)
        except ValueError:
            continue
        seconds[f"monarch {order}"] = sequences * _monarch(factors, hardware)
    products = {name: s for name, s in seconds.items() if name != "fft"}
    best = min(products, key=lambda name: products[name], default="monarch 0")
    backend = "monarch" if products and products[best] < seconds["fft"] else "fft"
    return ConvolutionCost(seconds, backend, int(best.split()[1]))


def _monarch(factors: tuple[int, ...], hardware: Hardware) -> float:
    n = prod(factors)
    total = 2 * 4 * n / hardware.far
    for i, size in enumerate(factors):
        rate = hardware.matrix if size >= 16 else hardware.general
        memory = hardware.near if 4 * prod(factors[i:]) <= hardware.near_bytes else hardware.far
        total += 16 * n * size / rate + 4 * n / memory
    return total
