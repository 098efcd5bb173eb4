"""Applies unified diffs exactly, with no tool installed: a hunk fits at its line, or nothing is written.

`git apply` does nothing, and reports success, in a folder inside another checkout; `patch` accepts a hunk that has
moved. A build must not go on after either, so this reader takes no fuzz and no offset.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_NO_NEWLINE = "\\ No newline at end of file"


class PatchError(Exception):
    """A patch cannot be read, or does not fit the source."""


@dataclass
class Hunk:
    """One change: `old` lines from line `old_start` (1 is the first) become `new` lines at `new_start`."""

    old_start: int
    new_start: int
    old: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    added: int = 0
    removed: int = 0


@dataclass
class FilePatch:
    """The hunks of one file. `created` is set when the file is new."""

    path: str
    created: bool
    hunks: list[Hunk] = field(default_factory=list)


def read_patch(text: str, name: str) -> list[FilePatch]:
    """File changes of a diff made by git. Deletions, renames and binary changes are refused: hooks need none."""
    lines = text.split("\n")
    files: list[FilePatch] = []
    i = 0
    while i < len(lines):
        line = lines[i]
        i += 1
        if line.startswith(("rename from ", "copy from ", "GIT binary patch", "deleted file mode", "old mode ")):
            raise PatchError(f"{name} holds '{line}'; a patch of the series may only change or add text files")
        if not line.startswith("--- ") or i >= len(lines) or not lines[i].startswith("+++ "):
            continue
        target = lines[i][4:].split("\t")[0]
        if not target.startswith("b/") or ".." in target.split("/"):
            raise PatchError(f"{name} names the file '{target}'; write the patch with `git format-patch`")
        files.append(FilePatch(target[2:], created=line[4:].startswith("/dev/null")))
        i += 1
        while i < len(lines) and lines[i].startswith("@@"):
            hunk, i = _read_hunk(lines, i, name)
            files[-1].hunks.append(hunk)
    if not files or not all(file.hunks for file in files):
        raise PatchError(f"{name} holds no change; write it again with `python3 tools/patches.py refresh`")
    return files


def _read_hunk(lines: list[str], i: int, name: str) -> tuple[Hunk, int]:
    """The hunk whose header is lines[i], and the index of the line after it."""
    match = _HUNK.match(lines[i])
    if match is None:
        raise PatchError(f"{name} has a damaged hunk header: {lines[i]}")
    n_old, n_new = (1 if match[k] is None else int(match[k]) for k in (2, 4))
    hunk = Hunk(int(match[1]), int(match[3]))
    i += 1
    while len(hunk.old) < n_old or len(hunk.new) < n_new:
        line = lines[i] if i < len(lines) else "end of file"
        sign, body = line[:1], line[1:]
        # Editors strip the one blank of an empty context line.
        if sign in (" ", ""):
            hunk.old.append(body)
            hunk.new.append(body)
        elif sign == "-":
            hunk.old.append(body)
            hunk.removed += 1
        elif sign == "+":
            hunk.new.append(body)
            hunk.added += 1
        else:
            raise PatchError(f"{name} ends inside the hunk {match[0]}, or a line of it is damaged: {line}")
        i += 1
        if i < len(lines) and lines[i] == _NO_NEWLINE:
            raise PatchError(f"{name} changes a last line without a newline; keep the newline")
    if len(hunk.old) != n_old or len(hunk.new) != n_new:
        raise PatchError(f"{name}: the hunk {match[0]} does not hold as many lines as its header says")
    return hunk, i


def apply_patch(text: str, name: str, root: Path) -> list[str]:
    """Apply one patch to the tree at root, all of it or nothing; returns the changed paths.

    Raises PatchError with the file and the line of the first hunk that does not fit.
    """
    results: dict[Path, list[str]] = {}
    files = read_patch(text, name)
    for file in files:
        path = root / file.path
        if file.created:
            if path.exists():
                raise PatchError(f"{name} creates {file.path}, which exists already")
            results[path] = [*file.hunks[0].new, ""]
            continue
        if not path.is_file():
            raise PatchError(f"{name} changes {file.path}, which the source does not have")
        lines = results[path] if path in results else path.read_text(encoding="utf-8").split("\n")
        shift = 0
        for hunk in file.hunks:
            # A hunk without old lines goes in after line old_start.
            start = hunk.old_start - (1 if hunk.old else 0) + shift
            if lines[start : start + len(hunk.old)] != hunk.old:
                raise PatchError(f"{name} does not fit {file.path} at line {hunk.old_start}")
            lines[start : start + len(hunk.old)] = hunk.new
            shift += len(hunk.new) - len(hunk.old)
        results[path] = lines
    for path, lines in results.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines), encoding="utf-8", newline="\n")
    return [file.path for file in files]


def added_lines(text: str, name: str) -> int:
    """How many lines a patch adds."""
    return sum(hunk.added for file in read_patch(text, name) for hunk in file.hunks)
