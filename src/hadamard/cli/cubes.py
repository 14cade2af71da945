"""Image cubes with what goes with them: NumPy, HDF5, MATLAB and ENVI files in, the same format out.

Whatever else a file holds (wavelengths, geometry, attributes, header fields) is kept and written beside the results.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hadamard.cli.files import existing, guarded, read_array, write_array

__all__ = ["Cube", "check_out", "read_cube", "write_maps"]

_ENVI_TYPES = {1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 12: "u2", 13: "u4", 14: "i8", 15: "u8"}
_ENVI_DATA = ("", ".img", ".dat", ".raw", ".bsq", ".bil", ".bip")
_OF_BANDS = {"bbl", "fwhm", "wavelength", "wavelength units", "default bands", "band names", "data gain values",
             "data offset values"}  # fmt: skip


@dataclass(frozen=True)
class Cube:
    """An image cube and the rest of its file.

    Attributes
    ----------
    values
        Shape (H, W, bands), floating.
    ending
        The file's format: ``".npy"``, ``".npz"``, ``".h5"``, ``".mat"`` or ``".hdr"``.
    rest
        Other arrays by name, or the header's fields.
    attributes
        Attributes of an HDF5 file.
    """

    values: np.ndarray
    ending: str
    rest: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


def read_cube(path: Path, key: str | None = None) -> Cube:
    """Read a cube, bands last.

    Parameters
    ----------
    path
        ``.npy``, ``.npz``, ``.h5``/``.hdf5``, ``.mat`` (up to version 7.2), or the header (``.hdr``) of an ENVI file
        whose data lie beside it.
    key
        Name of the cube in the file; by default its only array of three dimensions.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or no data beside an ENVI header.
    ValueError
        If it is damaged or truncated, holds no such cube, or the cube has a value that is not finite.
    """
    existing(path)
    ending = path.suffix.lower()
    ending = ".h5" if ending == ".hdf5" else ending
    if ending not in (".npy", ".npz", ".h5", ".mat", ".hdr"):
        raise ValueError(f"{path}: unknown ending {path.suffix!r}, expected one of .npy, .npz, .h5, .mat, .hdr")
    attributes: dict[str, Any] = {}
    rest: Mapping[str, Any] = {}
    if ending == ".npy":
        values = read_array(path)
    elif ending == ".hdr":
        values, rest = _read_envi(path)
    else:
        read = {".npz": _all_npz, ".h5": _all_hdf5, ".mat": _all_mat}[ending]
        arrays, attributes = guarded(path, lambda: read(path))
        key = _the_cube(path, arrays, key)
        values, rest = arrays[key], {name: a for name, a in arrays.items() if name != key}
    if values.ndim != 3:
        raise ValueError(f"{path}: expected a cube of shape (height, width, bands), got {values.shape}")
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{path}: expected real numbers, got {values.dtype}")
    values = values.astype(np.float32 if values.dtype == np.float32 else np.float64)
    odd = ~np.isfinite(values)
    if odd.any():
        bands = np.flatnonzero(odd.any((0, 1)))
        named = ", ".join(map(str, bands[:5])) + (", ..." if len(bands) > 5 else "")
        raise ValueError(f"{path}: {int(odd.sum())} values are NaN or infinite, in band(s) {named} (counted from 0)")
    return Cube(values, ending, rest, attributes)


def write_maps(path: Path, maps: Mapping[str, np.ndarray], spectra: Mapping[str, np.ndarray], like: Cube) -> None:
    """Write maps of shape (H, W) or (H, W, n) and what belongs to the bands, in the format of ``like``.

    NumPy, HDF5 and MATLAB files hold all arrays by name, with the rest of ``like``; a ``.npy`` file holds the maps as
    one array (H, W, all). An ENVI file holds the maps as its bands, with the header of ``like``; the arrays of
    ``spectra`` that have a row a spectrum go into a spectral library beside it.
    """
    check_out(path, like)
    stacked = np.concatenate([m.reshape(*m.shape[:2], -1) for m in maps.values()], -1)
    named = {**like.rest, **maps, **spectra} if like.ending != ".hdr" else {}
    if like.ending == ".npy":
        write_array(path, stacked)
    elif like.ending == ".hdr":
        names = [f"{n} {i + 1}" if m.ndim == 3 else n for n, m in maps.items() for i in range(m[0, 0].size)]
        kept = {k: v for k, v in like.rest.items() if k not in _OF_BANDS}
        _write_envi(path, stacked, kept | {"band names": "{" + ", ".join(names) + "}"})
        rows = {n: s for n, s in spectra.items() if s.ndim == 2}
        of_bands = {k: v for k, v in like.rest.items() if k in ("wavelength", "wavelength units", "fwhm", "bbl")}
        for name, s in rows.items():
            header = of_bands | {"file type": "ENVI Spectral Library"}
            _write_envi(path.with_name(f"{path.stem}-{name}.hdr"), s[..., None], header)
    elif like.ending == ".mat":
        from scipy.io import savemat

        savemat(path, named)
    else:
        write_array(path, named)
        if like.attributes:
            import h5py

            with h5py.File(path, "a") as file:
                for name, value in like.attributes.items():
                    where, _, attribute = name.rpartition("@")
                    if where in file:
                        file[where].attrs[attribute] = value


def check_out(path: Path, like: Cube) -> None:
    """Refuse, before the work, a place where maps in the format of ``like`` cannot be written."""
    if path.suffix.lower().replace(".hdf5", ".h5") != like.ending:
        raise ValueError(f"{path}: the result has the format of the cube, expected the ending {like.ending}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: no folder {path.parent}")


def _the_cube(path: Path, arrays: Mapping[str, np.ndarray], key: str | None) -> str:
    cubes = [name for name, a in arrays.items() if a.ndim == 3]
    if key is None and len(cubes) == 1:
        return cubes[0]
    if key is None or key not in arrays:
        what = f"no array {key!r}" if key else f"{len(cubes) or 'no'} arrays of three dimensions, give --key"
        raise ValueError(f"{path}: holds {what}; it has {', '.join(arrays) or 'none'}")
    return key


def _all_npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}, {}


def _all_hdf5(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    import h5py

    arrays: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        attributes = {f"/@{name}": value for name, value in file.attrs.items()}

        def visit(name: str, item: Any) -> None:
            attributes.update({f"{name}@{a}": value for a, value in item.attrs.items()})
            if isinstance(item, h5py.Dataset):
                arrays[name] = np.asarray(item[()])

        file.visititems(visit)
    return arrays, attributes


def _all_mat(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    from scipy.io import loadmat

    return {name: a for name, a in loadmat(path).items() if not name.startswith("__")}, {}


def _read_envi(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    text = guarded(path, lambda: path.read_text(encoding="utf-8"))
    if not text.startswith("ENVI"):
        raise ValueError(f"{path}: is not an ENVI header")
    fields = {
        name.strip().lower(): value.strip()
        for name, value in re.findall(r"^([^=\n;]+)=\s*(\{[^}]*\}|[^\n]*)", text, re.M)
    }
    try:
        height, width, bands = (int(fields[name]) for name in ("lines", "samples", "bands"))
        kind = np.dtype(_ENVI_TYPES[int(fields["data type"])])
        skip, order = int(fields.get("header offset", 0)), fields["interleave"].lower()
        shape, axes = {
            "bsq": ((bands, height, width), (1, 2, 0)), "bil": ((height, bands, width), (0, 2, 1)),
            "bip": ((height, width, bands), (0, 1, 2)),
        }[order]  # fmt: skip
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: the header lacks or garbles a field, or the file is truncated ({error})") from None
    kind = kind.newbyteorder(">" if fields.get("byte order", "0") == "1" else "<")
    beside = [path.with_suffix(e) for e in _ENVI_DATA if path.with_suffix(e).is_file()]
    if not beside:
        raise FileNotFoundError(f"{path}: no data beside the header, such as {path.with_suffix('.img').name}")
    wanted, there = skip + height * width * bands * kind.itemsize, beside[0].stat().st_size
    if there < wanted:
        raise ValueError(f"{path}: {beside[0].name} is truncated: {there} bytes, expected {wanted}")
    data = np.fromfile(beside[0], dtype=kind, count=height * width * bands, offset=skip)
    return data.reshape(shape).transpose(axes).astype(kind.newbyteorder("=")), fields


def _write_envi(path: Path, image: np.ndarray, fields: Mapping[str, str]) -> None:
    height, width, bands = image.shape
    of_file = {
        "samples": str(width), "lines": str(height), "bands": str(bands), "header offset": "0", "data type": "4",
        "interleave": "bsq", "byte order": "0",
    }  # fmt: skip
    lines = [
        f"{name} = {value}" for name, value in (of_file | {k: v for k, v in fields.items() if k not in of_file}).items()
    ]
    path.write_text("ENVI\n" + "\n".join(lines) + "\n", encoding="utf-8")
    library = "spectral library" in fields.get("file type", "").lower()
    np.ascontiguousarray(np.moveaxis(image, -1, 0), dtype="<f4").tofile(path.with_suffix(".sli" if library else ".img"))
