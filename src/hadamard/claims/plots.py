"""Figures of a claim: plain Plotly dictionaries without colours, which the page gives its theme.

A claim's ``plot`` returns one of these or a list of them; each has a caption that says what to look at.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["bars", "lines", "pictures"]

Figure = dict[str, Any]


def _axis(title: str, log: bool) -> dict[str, Any]:
    return {"title": {"text": title}, "type": "log" if log else "linear"}


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    log: str = "",
    markers: bool = True,
    reference: Mapping[str, float] | None = None,
    caption: str = "",
) -> Figure:
    """Lines over a common axis, ours first.

    Parameters
    ----------
    series
        ``{name: (xs, ys)}``; the first is drawn strongest.
    x, y
        Axis titles with units.
    log
        Which axes are logarithmic: ``""``, ``"x"``, ``"y"`` or ``"xy"``.
    markers
        Whether the points are marked.
    reference
        Horizontal dashed lines by name (a bound, an exact value).
    caption
        One sentence that says what to look at.
    """
    mode = "lines+markers" if markers else "lines"
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": mode, "name": name, "x": _numbers(xs), "y": _numbers(ys)}
        for name, (xs, ys) in series.items()
    ]
    every = [v for xs, _ in series.values() for v in _numbers(xs) if v is not None]
    for name, level in (reference or {}).items():
        ends = [min(every), max(every)]
        line = {"dash": "dash", "width": 1}
        data.append({"type": "scatter", "mode": "lines", "name": name, "x": ends, "y": [level] * 2, "line": line})
    return {"data": data, "layout": {"xaxis": _axis(x, "x" in log), "yaxis": _axis(y, "y" in log)}, "caption": caption}


def bars(
    groups: Mapping[str, Mapping[str, float]], *, y: str, log: bool = False, errors: Any = None, caption: str = ""
) -> Figure:
    """Grouped bars: ``{contender: {category: height}}``, ours first.

    Parameters
    ----------
    groups
        Heights by contender and category.
    y
        Title of the vertical axis with its unit.
    log
        Whether that axis is logarithmic.
    errors
        Half-widths of error bars in the same layout as ``groups``, or ``None``.
    caption
        One sentence that says what to look at.
    """
    data = []
    for name, heights in groups.items():
        trace: dict[str, Any] = {
            "type": "bar", "name": name, "x": list(heights), "y": _numbers(list(heights.values()))
        }  # fmt: skip
        if errors is not None:
            trace["error_y"] = {"type": "data", "array": [errors[name][c] for c in heights], "visible": True}
        data.append(trace)
    return {"data": data, "layout": {"barmode": "group", "yaxis": _axis(y, log)}, "caption": caption}


def pictures(images: Mapping[str, Any], *, limits: tuple[float, float] | None = None, caption: str = "") -> Figure:
    """Images side by side under their titles, on one grey scale (or in colour where they have three channels).

    Parameters
    ----------
    images
        ``{title: array}``; arrays or tensors of shape (H, W), (H, W, 3) or (3, H, W).
    limits
        Values shown as black and white; by default the range of the first image.
    caption
        One sentence that says what to look at.
    """
    arrays = {title: _picture(image) for title, image in images.items()}
    first = next(iter(arrays.values()))
    low, high = limits if limits is not None else (float(first.min()), float(first.max()))
    span = (high - low) or 1.0
    sources = {t: _png(np.clip((a - low) / span, 0, 1)) for t, a in arrays.items()}
    return {"pictures": sources, "caption": caption}


def _picture(image: Any) -> np.ndarray:
    a = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image, dtype=np.float64)
    if a.ndim == 3 and a.shape[0] == 3 and a.shape[-1] != 3:
        a = np.moveaxis(a, 0, -1)
    if a.ndim not in (2, 3):
        raise ValueError(f"a picture must have shape (H, W), (H, W, 3) or (3, H, W), got {a.shape}")
    return a


def _png(unit: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((unit * 255).round().astype(np.uint8)).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _numbers(values: Sequence[float]) -> list[float | None]:
    """Floats for JSON: infinities and NaN become gaps, six significant digits are plenty for a picture."""
    return [float(f"{float(v):.6g}") if np.isfinite(float(v)) else None for v in values]
