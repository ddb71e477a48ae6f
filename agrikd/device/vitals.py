"""How a board is: what its kernel says of heat, clocks, throttling, load and room. What it does not say is None."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from agrikd import device_report

_SYS, _PROC, _POWER = Path("/sys"), Path("/proc"), Path("/var/lib/nvpmodel/status")


def read(folder: Path) -> dict[str, Any]:
    """celsius: by thermal zone. mhz: by device, the processor's fastest core as "cpu". throttled: what slows the board
    now, or how often it was, by the kernel's names; all 0 is well. load: of one, five and fifteen minutes. disk: where
    `folder` lies."""
    board = device_report.state()
    cores = [
        int(text) for path in _found("devices/system/cpu/cpu*/cpufreq/scaling_cur_freq") if (text := _digits(path))
    ]
    memory = dict(line.split(":", 1) for line in device_report.lines_of(_PROC / "meminfo") if ":" in line)
    uptime = device_report.text_of(_PROC / "uptime").split()
    found = {
        "celsius": board["celsius"],
        "mhz": board["mhz"] | ({"cpu": max(cores) / 1000} if cores else {}),
        "throttled": _throttled(),
        "power_mode": device_report.text_of(_POWER).rpartition(":")[2],
        "load": None,
        "memory_mib": _mib(memory.get("MemTotal")),
        "memory_free_mib": _mib(memory.get("MemAvailable")),
        "disk_bytes": None,
        "disk_free_bytes": None,
        "uptime_s": float(uptime[0]) if uptime else None,
    }
    with contextlib.suppress(OSError):
        found["load"] = [round(one, 2) for one in os.getloadavg()]
    with contextlib.suppress(OSError):
        disk = shutil.disk_usage(folder)
        found |= {"disk_bytes": disk.total, "disk_free_bytes": disk.free}
    return {name: value if value or value == 0 else None for name, value in found.items()}


def _throttled() -> dict[str, int]:
    """A Jetson's alerts (1: now) and its over-current events since it started (NVIDIA's Jetson Linux Developer Guide,
    "Platform Power and Performance"), a Raspberry Pi's bits, an Intel's events."""
    found = {}
    for kind in _found("class/thermal/cooling_device*/type"):
        name = device_report.text_of(kind)
        if "throttle" in name and (state := _digits(kind.with_name("cur_state"))):
            found[name] = int(state)
    for path in (
        *_found("class/hwmon/hwmon*/oc*_event_cnt"),
        *_found("devices/system/cpu/cpu0/thermal_throttle/*_count"),
    ):
        if count := _digits(path):
            found[path.name] = int(count)
    for path in _found("devices/platform/soc/*firmware/get_throttled"):
        with contextlib.suppress(ValueError):
            found[path.name] = int(device_report.text_of(path), 16)
    return found


def _found(pattern: str) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(_SYS.glob(pattern))
    return []


def _digits(path: Path) -> str:
    text = device_report.text_of(path)
    return text if text.isdecimal() else ""


def _mib(text: str | None) -> int | None:
    """Of the kernel's "16384 kB"."""
    words = (text or "").split()
    return int(words[0]) // 1024 if words and words[0].isdecimal() else None
