"""Which bars are expected to hold: the part of the verdicts that does not depend on seconds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hadamard.claims.engine import write_json

__all__ = ["differences", "write_expected"]


def write_expected(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Write what held in these records; keys that they do not mention keep what is there."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, known | {record["key"]: _held(record) for record in records})


def differences(records: Sequence[dict[str, Any]], path: Path) -> list[str]:
    """One line for each record whose bars hold otherwise than expected.

    Raises
    ------
    ValueError
        If the file is missing or is no JSON.
    """
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"expected verdicts cannot be read from {path}: {error}") from error
    lines = []
    for record in records:
        key, now = record["key"], _held(record)
        if key not in known:
            lines.append(f"{key}: no expected verdict; write it with 'make expected'")
            continue
        for text in sorted(set(now) | set(known[key])):
            then = known[key].get(text, "absent")
            if now.get(text, "absent") != then:
                lines.append(f"{key}: {text!r} was {then}, is {now.get(text, 'absent')}")
    return lines


def _held(record: dict[str, Any]) -> dict[str, str]:
    return {bar["text"]: bar["holds"] for bar in record.get("bars", []) if not bar["seconds"]}
