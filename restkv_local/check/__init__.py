"""Is a device right? Every stage of an eviction runs on it and on the CPU, on small random arrays of a fixed seed.

    from restkv_local.check import check_device, devices
    for device in devices():
        print(device.name, check_device(device.name).verdict)

`restkv-chat doctor` shows it; an engine runs the quick part when it meets a device for the first time.
"""

from __future__ import annotations

from .devices import Device, devices, find_device
from .result import DeviceCheck, DeviceSpeed, StageCheck, Verdict
from .speed import measure_device
from .stages import check_device, check_fused

__all__ = [
    "Device",
    "DeviceCheck",
    "DeviceSpeed",
    "StageCheck",
    "Verdict",
    "check_device",
    "check_fused",
    "devices",
    "find_device",
    "measure_device",
]
