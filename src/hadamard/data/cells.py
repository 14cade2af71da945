"""Single cells: blood, by gene expression."""

from dataclasses import dataclass

import numpy as np

from hadamard.data.fetch import fetch, sources

__all__ = ["Cells", "blood_cells"]


@dataclass(frozen=True)
class Cells:
    """Cells in the principal components of their gene expression.

    Attributes
    ----------
    components
        Array of shape (cells, 50), float32.
    kinds
        The kind of each cell, by the sorted population that it resembles most: shape (cells,).
    provenance
        Where the data comes from and under which terms.
    """

    components: np.ndarray
    kinds: np.ndarray
    provenance: str

    def of(self, kind: str) -> np.ndarray:
        """The cells of one kind, shape (n, 50)."""
        rows = self.kinds == kind
        if not rows.any():
            raise ValueError(f"kind must be one of {', '.join(sorted(set(self.kinds)))}, got {kind!r}")
        return self.components[rows]


def blood_cells() -> Cells:
    """700 mononuclear cells of human blood (a subset of 10x Genomics' PBMC 68k, 765 genes) and what they are.

    Fetched on first use (2 MB).

    Raises
    ------
    DataUnavailable
        If it is not in the cache and cannot be fetched.
    ImportError
        If h5py is missing.

    References
    ----------
    G. X. Y. Zheng et al. Massively parallel digital transcriptional profiling of single cells. Nature Communications 8,
    2017. doi:10.1038/ncomms14049
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError("the blood cells lie in an HDF5 file: pip install 'hadamard[data]'") from error

    with h5py.File(fetch("blood_cells")["10x_pbmc68k_reduced.h5ad"]) as file:
        names = np.char.decode(file["uns/bulk_labels_categories"][()])
        components, kinds = file["obsm"]["X_pca"], names[file["obs"]["bulk_labels"]]
    source = sources()["blood_cells"]
    return Cells(components, kinds, f"{source.what}; from {source.package} {source.version}; {source.licence}")
