"""Put the catalog's table into the README."""

import re
from pathlib import Path

from hadamard import catalog

readme = Path(__file__).parents[1] / "README.md"
text = readme.read_text(encoding="utf-8")
start, end = "<!-- catalog: made by `make catalog` -->", "<!-- end of catalog -->"
table = f"{start}\n{catalog.markdown()}\n{end}"
readme.write_text(re.sub(f"{re.escape(start)}.*?{re.escape(end)}", lambda _: table, text, flags=re.S), encoding="utf-8")
