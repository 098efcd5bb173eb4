"""Before a device holds a cache for the first time it is checked; what was found is kept for later loads."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import native, paths
from .._version import __version__
from ..location import library_dir
from ..native import interrupts
from .devices import Device, devices
from .result import DeviceCheck
from .stages import check_device

LOGGER = logging.getLogger("restkv_local")
# Kinds of devices that layers are put on.
HOLD_LAYERS = ("gpu", "igpu")
WRONG = ("mismatch", "failed")


@dataclass(frozen=True)
class Known:
    """What a check found, as it is kept. reason: "" when the device is right."""

    verdict: str
    reason: str
    quick: bool


def trust_devices() -> list[str]:
    """Make sure that every device that may hold layers was checked in this version; run the quick check where not.

    Evictions of contexts that are made from now on go through the host where a device was found wrong. Returns a
    sentence for each of those. Raises LibraryError when the library is missing.
    """
    sentences = []
    for device in devices():
        if device.kind not in HOLD_LAYERS:
            continue
        interrupts.check()
        known = recall(device) or remember(check_device(device.name, quick=True))
        sentence = distrust(device, known)
        if sentence:
            LOGGER.warning("%s", sentence)
            sentences.append(sentence)
    return sentences


def distrust(device: Device, known: Known) -> str:
    """Let evictions on a device go through the host when it was found wrong, else where its cache lives; returns why,
    or ""."""
    sentence = ""
    if known.verdict in WRONG:
        what = "gives wrong results" if known.verdict == "mismatch" else "failed its check"
        sentence = f"{device.name} {what} ({known.reason}), so its layers go through the host"
    native.check(native.lib().restkv_distrust(device.name.encode(), sentence.encode()))
    return sentence


def remember(check: DeviceCheck) -> Known:
    """Keep what a check found, for later loads of this version. A failure is not kept: the next load tries again."""
    known = Known(check.verdict, check.reason if check.verdict in WRONG else "", check.quick)
    path = _path(check.device)
    if path is None or known.verdict == "failed":
        return known
    entry = {"key": _key(check.device), "verdict": known.verdict, "reason": known.reason, "quick": known.quick}
    entry["date"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    part = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):  # a folder that cannot be written: checked again next time
        part.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
        os.replace(part, path)
    return known


def recall(device: Device) -> Known | None:
    """What an earlier check found; None when there was none of this device, driver and library, or its file is
    damaged."""
    path = _path(device)
    try:
        entry = json.loads(path.read_text(encoding="utf-8")) if path is not None else None
        if not isinstance(entry, dict) or entry["key"] != _key(device):
            return None
        known = Known(entry["verdict"], entry["reason"], entry["quick"])
    except (OSError, ValueError, KeyError):
        return None
    right = known.verdict in ("ok", "unsupported", "mismatch") and isinstance(known.reason, str)
    return known if right else None


def _key(device: Device) -> dict[str, Any]:
    """What a verdict belongs to: the device, its driver, this version, and the library's files."""
    files = sorted(path for path in library_dir().iterdir() if path.suffix in (".so", ".dylib", ".dll"))
    return {
        "name": device.name,
        "description": device.description,
        "driver": device.driver,
        "version": __version__,
        "abi": native.ABI_VERSION,
        "library": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files],
    }


def _path(device: Device) -> Path | None:
    """File of a device's verdict; None when there is no place for it."""
    folder = paths.cache_folder("devices")
    if folder is None:
        return None
    name = hashlib.sha256(f"{device.name}\0{device.description}".encode()).hexdigest()[:16]
    return folder / f"{name}.json"
