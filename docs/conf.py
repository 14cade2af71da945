"""Sphinx configuration. `make docs` builds the site into docs/_build/html."""

import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import hadamard  # noqa: E402

project = "hadamard"
author = "The hadamard developers"
copyright = "The hadamard developers"
version = release = hadamard.__version__

extensions = [
    "methods",  # docs/_ext: the methods' pages and the API page, made from catalog, docstrings, claims and records
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "examples", "_ext", "**/GALLERY_HEADER.rst"]
html_extra_path = ["generated/extra"]

html_theme = "pydata_sphinx_theme"
html_title = "hadamard"
html_static_path = ["_static"]
html_css_files = ["docs.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "header_links_before_dropdown": 7,
    "show_prev_next": False,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {name: [] for name in ("index", "install", "claims", "adding-a-method", "generated/api")}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 100
add_module_names = False
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/\w+\.py$",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "matplotlib_animations": False,
    "abort_on_example_error": True,
}

warnings.filterwarnings("ignore", message="Matplotlib is currently using agg")
