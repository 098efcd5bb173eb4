"""The devices that ggml finds."""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import native
from ..errors import ConfigError

# Where Linux tells the version of a kernel driver, by ggml's name of the backend.
_DRIVERS = {
    "CUDA": ("/proc/driver/nvidia/version", r"Kernel Module(?: for \S+)?\s+(\S+)"),
    "ROCm": ("/sys/module/amdgpu/version", r"(\S+)"),
}


@dataclass(frozen=True)
class Device:
    """A device of ggml.

    name: as ggml names it ("CUDA0", "CPU"). description: what it is. backend: the part of ggml that drives it.
    kind: "cpu", "gpu", "igpu" (a GPU in the memory of the host), "accel" (helps the CPU, holds no cache) or "meta".
    bus: PCI address, or "". host_memory: the CPU can read its memory. memory_free, memory_total: bytes, 0 when unknown.
    driver: version of its driver where the system tells, else None.
    """

    name: str
    description: str
    backend: str
    kind: str
    bus: str
    host_memory: bool
    memory_free: int
    memory_total: int
    driver: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def devices() -> list[Device]:
    """Every device in ggml's order. Raises LibraryError when the library is missing."""
    library = native.lib()
    found = []
    for i in range(library.restkv_device_count()):
        raw = native.Device()
        native.check(library.restkv_get_device(i, ctypes.byref(raw)))
        backend = _text(raw.backend)
        found.append(
            Device(
                name=_text(raw.name),
                description=_text(raw.description),
                backend=backend,
                kind=native.DEVICE_KINDS[raw.kind],
                bus=_text(raw.bus),
                host_memory=bool(raw.host_memory),
                memory_free=raw.memory_free,
                memory_total=raw.memory_total,
                driver=driver_version(backend),
            )
        )
    return found


def find_device(name: str) -> Device:
    """The device of this name. Raises ConfigError with the names that there are."""
    known = devices()
    for device in known:
        if device.name == name:
            return device
    raise ConfigError(f"there is no device '{name}'; known are {', '.join(device.name for device in known)}")


def driver_version(backend: str) -> str | None:
    """Version of the driver under a backend, where the system tells it in a file or in its own version."""
    if backend == "MTL" or backend == "Metal":
        return f"macOS {platform.mac_ver()[0]}" if sys.platform == "darwin" else None
    path, pattern = _DRIVERS.get(backend, ("", ""))
    try:
        match = re.search(pattern, Path(path).read_text(encoding="utf-8", errors="replace")) if path else None
    except OSError:
        return None
    return match[1] if match else None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").strip()
