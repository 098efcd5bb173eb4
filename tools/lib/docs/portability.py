"""Table of the backends: what was seen of each, from benchmarks/portability.json. What is not there was not seen."""

from __future__ import annotations

import re
from typing import Any

from .results import load
from .settings import SettingsError

# Columns: field of a backend -> heading.
_COLUMNS = {"compiled": "compiles", "software": "ran on a software device", "hardware": "ran on hardware"}
_FIELDS = {"date", "on", "what"}
_NOT_SEEN = "not seen"


def portability() -> str:
    """One row per backend of ggml, and under the table what each sighting was."""
    found = load("portability") or {"backends": []}
    rows, notes = [], []
    for backend in found["backends"]:
        cells = [_cell(backend, field) for field in _COLUMNS]
        rows.append(f"| {backend['backend']} | {' | '.join(cells)} |")
        for field, heading in _COLUMNS.items():
            if seen := backend.get(field):
                notes.append(f"- {backend['backend']}, {heading}: {seen['what']}")
    header = f"| backend | {' | '.join(_COLUMNS.values())} |"
    return "\n".join([header, "|---" * (len(_COLUMNS) + 1) + "|", *rows, "", *notes])


def _cell(backend: dict[str, Any], field: str) -> str:
    """Date and device of a sighting. Raises SettingsError for one that does not say what was seen, where and when."""
    unknown = set(backend) - {"backend", *_COLUMNS}
    if unknown:
        raise SettingsError(f"benchmarks/portability.json: {backend.get('backend')}: unknown {', '.join(unknown)}")
    seen = backend.get(field)
    if seen is None:
        return _NOT_SEEN
    if set(seen) != _FIELDS or not all(seen.values()) or not re.fullmatch(r"\d{4}-\d\d-\d\d", seen["date"]):
        raise SettingsError(
            f"benchmarks/portability.json: {backend['backend']}, {field}: a sighting has {', '.join(sorted(_FIELDS))}"
        )
    return f"{seen['date']}, {seen['on']}"
