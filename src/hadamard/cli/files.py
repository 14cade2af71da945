"""Files in, arrays out, and back: what ``hadamard apply`` reads and writes.

Arrays live in ``.npy``, ``.npz``, ``.h5``, ``.mat``, NIfTI or DICOM files, pictures in whatever Pillow knows. Every
failure is one line that names the file and what is wrong with it.
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from hadamard.data.scans import read_dicom

__all__ = ["MissingKey", "existing", "guarded", "image_info", "read_array", "read_image", "write_array", "write_image"]

_ARRAYS = (".npy", ".npz", ".h5", ".hdf5", ".mat", ".nii", ".nii.gz", ".dcm")


def read_array(path: str | Path, key: str | None = None) -> np.ndarray:
    """Read one array from a ``.npy``, ``.npz``, ``.h5``/``.hdf5``, ``.mat``, NIfTI or DICOM file.

    Parameters
    ----------
    path
        The file; its ending says how it is read.
    key
        Name of the array in a ``.npz``, HDF5 (``"group/name"`` works) or MATLAB file (up to version 7.2); may be left
        out where the file holds only one. NIfTI (``.nii``, ``.nii.gz``) and DICOM (``.dcm``) values come scaled by
        the header's slope and intercept.

    Returns
    -------
    numpy.ndarray
        The array as stored (NIfTI axes are x, y, z, t).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the ending is not known, the file is empty, damaged or truncated, or it holds no array of that name.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_array(f"{folder}/scan.npz", {"kspace": np.ones((2, 3)), "mask": np.ones(3)})
    ...     read_array(f"{folder}/scan.npz", "kspace").shape
    (2, 3)
    """
    path = existing(path)
    ending = _ending(path, _ARRAYS)
    if ending == ".npy":
        return guarded(path, lambda: np.load(path, allow_pickle=False))
    if ending.startswith(".nii"):
        return guarded(path, lambda: _nifti(path))
    if ending == ".dcm":
        return guarded(path, lambda: read_dicom(path).numpy())
    archive = {".npz": _read_npz, ".mat": _read_mat}.get(ending, _read_hdf5)
    return guarded(path, lambda: archive(path, key))


def write_array(
    path: str | Path,
    arrays: np.ndarray | Mapping[str, np.ndarray],
    *,
    like: str | Path | None = None,
    affine: np.ndarray | None = None,
) -> None:
    """Write arrays to a ``.npy``, ``.npz``, ``.h5``/``.hdf5``, ``.mat``, NIfTI or DICOM file.

    Parameters
    ----------
    path
        The file; its ending says how it is written.
    arrays
        One array, or arrays by name. ``.npy``, NIfTI and DICOM files hold exactly one; a nameless one is called
        ``"array"`` in the others.
    like
        A NIfTI file whose affine and header a NIfTI output takes over; or a DICOM slice, all of whose header a DICOM
        output keeps but for the pixels' encoding.
    affine
        Of a NIfTI output in mm, where there is no such file; the identity by default.

    Raises
    ------
    ValueError
        If the ending is not known, or the format cannot hold what is given (such as several arrays).
    """
    path = Path(path)
    ending = _ending(path, _ARRAYS)
    named = {"array": arrays} if isinstance(arrays, np.ndarray) else dict(arrays)
    if ending in (".npy", ".nii", ".nii.gz", ".dcm") and len(named) != 1:
        raise ValueError(f"{path}: a {ending} file holds one array, got {', '.join(named)}; use .npz or .h5")
    only = next(iter(named.values()))
    _writable(path)
    if ending == ".npy":
        np.save(path, only)
    elif ending == ".npz":
        np.savez_compressed(path, **named)  # type: ignore[arg-type]
    elif ending == ".mat":
        from scipy.io import savemat

        savemat(path, named)
    elif ending in (".h5", ".hdf5"):
        with _need("h5py", "HDF5").File(path, "w") as file:
            for name, array in named.items():
                file.create_dataset(name, data=array, compression="gzip" if array.ndim else None)
    elif ending == ".dcm":
        _write_dicom(path, only, like)
    else:
        _write_nifti(path, only, like, affine)


def read_image(path: str | Path) -> np.ndarray:
    """Read a picture as float32 in [0, 1], shape (H, W) where it is grey and (H, W, 3) where it has colours.

    Parameters
    ----------
    path
        Any format that Pillow reads; 8 or 16 bits a channel. Transparency is dropped.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a picture, or damaged or truncated.
    """
    path = existing(path)
    return guarded(path, lambda: _read_image(path))


def image_info(path: str | Path) -> dict[str, Any]:
    """What goes with a picture: EXIF data, colour profile, resolution (``dpi``), and a PNG's texts."""
    path = existing(path)

    def read() -> dict[str, Any]:
        with _need("PIL.Image", "picture", "Pillow").open(path) as picture:
            kept = {name: picture.info[name] for name in ("exif", "icc_profile", "dpi") if picture.info.get(name)}
            return kept | {"text": dict(getattr(picture, "text", {}))}

    return guarded(path, read)


def write_image(path: str | Path, image: np.ndarray, info: Mapping[str, Any] | None = None) -> None:
    """Write a picture of shape (H, W) or (H, W, 3) with values in [0, 1] (clipped) at 8 bits a channel.

    Parameters
    ----------
    path
        Its ending says the format.
    image
        The picture.
    info
        What goes with it, as :func:`image_info` gives it; texts are kept in PNG files only.

    Raises
    ------
    ValueError
        If the shape is another one, or Pillow does not know the file's ending.
    """
    path = Path(path)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] != 3):
        raise ValueError(f"{path}: a picture must have shape (H, W) or (H, W, 3), got {image.shape}")
    pillow = _need("PIL.Image", "picture", "Pillow")
    if path.suffix.lower() not in pillow.registered_extensions():
        raise ValueError(f"{path}: Pillow does not know the ending {path.suffix!r}; try .png")
    _writable(path)
    options = {name: value for name, value in (info or {}).items() if name != "text"}
    if path.suffix.lower() == ".png" and info and info.get("text"):
        texts = _need("PIL.PngImagePlugin", "picture", "Pillow").PngInfo()
        for name, text in info["text"].items():
            texts.add_text(name, text)
        options["pnginfo"] = texts
    pillow.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8)).save(path, **options)


class MissingKey(ValueError):
    """The file is whole but has no array of that name."""


def existing(path: str | Path) -> Path:
    """The path of a file that is there and holds something."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected a file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    return path


def _writable(path: Path) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: no folder {path.parent}")


def _ending(path: Path, known: tuple[str, ...]) -> str:
    name = path.name.lower()
    for ending in sorted(known, key=len, reverse=True):
        if name.endswith(ending):
            return ending
    raise ValueError(f"{path}: unknown ending {path.suffix!r}, expected one of {', '.join(known)}")


def _need(module: str, what: str, name: str = "") -> ModuleType:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        name = name or module
        raise ImportError(f"{what} files need {name}: pip install 'hadamard[imaging]'") from error


def guarded(path: Path, read: Any) -> Any:
    """Run a reader; whatever it throws at a damaged file becomes one line that names the file."""
    try:
        return read()
    except (MissingKey, ImportError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: cannot be read, it may be damaged or truncated ({reason})") from error


def _pick(path: Path, names: list[str], key: str | None) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        wanted = "several arrays, say which" if key is None else f"no array {key!r}"
        raise MissingKey(f"{path}: holds {wanted}; it has {', '.join(names) or 'none'}")
    return key


def _read_npz(path: Path, key: str | None) -> np.ndarray:
    with np.load(path, allow_pickle=False) as archive:
        return archive[_pick(path, list(archive.files), key)]


def _read_mat(path: Path, key: str | None) -> np.ndarray:
    from scipy.io import loadmat

    arrays = {name: array for name, array in loadmat(path).items() if not name.startswith("__")}
    return arrays[_pick(path, list(arrays), key)]


def _read_hdf5(path: Path, key: str | None) -> np.ndarray:
    h5py = _need("h5py", "HDF5")
    with h5py.File(path, "r") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        return file[_pick(path, names, key)][()]


def _nifti(path: Path) -> np.ndarray:
    return np.asanyarray(_need("nibabel", "NIfTI").load(path).dataobj)


def _write_nifti(path: Path, array: np.ndarray, like: str | Path | None, affine: np.ndarray | None) -> None:
    nibabel = _need("nibabel", "NIfTI")
    array = array.astype({"float64": np.float32, "complex128": np.complex64}.get(array.dtype.name, array.dtype))
    header = None
    if like is not None:
        model = nibabel.load(like)
        affine, header = model.affine, model.header.copy()
        header.set_data_dtype(array.dtype)
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine, header)
    if header is None:
        image.header.set_xyzt_units("mm" if affine is not None else "unknown")
    nibabel.save(image, path)


def _write_dicom(path: Path, array: np.ndarray, like: str | Path | None) -> None:
    if like is None or _ending(Path(like), _ARRAYS) != ".dcm":
        raise ValueError(f"{path}: a DICOM file can only be written where one was read, use .npz or NIfTI")
    pydicom = _need("pydicom", "DICOM")
    file = pydicom.dcmread(like)
    if array.shape != (file.Rows, file.Columns):
        raise ValueError(
            f"{path}: the slice must have shape {(file.Rows, file.Columns)} as in {like}, got {array.shape}"
        )
    stored = (array - float(file.get("RescaleIntercept", 0))) / float(file.get("RescaleSlope", 1))
    signed = file.get("PixelRepresentation", 0) == 1
    limits = np.iinfo(np.int16 if signed else np.uint16)
    file.PixelData = np.clip(stored.round(), limits.min, limits.max).astype(limits.dtype).tobytes()
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.save_as(path, enforce_file_format=True)


def _read_image(path: Path) -> np.ndarray:
    pillow = _need("PIL.Image", "picture", "Pillow")
    with pillow.open(path) as picture:
        picture.load()
        if picture.mode.startswith(("I", "F")):
            values = np.asarray(picture, dtype=np.float32)
            return values if picture.mode == "F" else values / 65535
        grey = picture.mode in ("1", "L", "LA")
        return np.asarray(picture.convert("L" if grey else "RGB"), dtype=np.float32) / 255
