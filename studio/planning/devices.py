"""What devices compute and hold, by their makers' data sheets, for an estimate of the time of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["DEVICES", "EFFICIENCY", "Device", "seconds"]

EFFICIENCY: Final = 0.35
"""Which share of a data sheet's figure a training step of this sort reaches; between 0.2 and 0.5 is usual."""


@dataclass(frozen=True)
class Device:
    """An accelerator.

    Args:
        title: its name. memory: bytes. half: dense operations per second in bf16 or fp16. single: in fp32 (tensor cores
            in TF32 where it has them).
    """

    title: str
    memory: int
    half: float
    single: float


_GB: Final = 10**9
_T: Final = 1e12

DEVICES: Final[Mapping[str, Device]] = {
    "t4": Device("T4", 16 * _GB, 65 * _T, 8.1 * _T),
    "rtx-3060": Device("RTX 3060", 12 * _GB, 51 * _T, 25 * _T),
    "rtx-3090": Device("RTX 3090", 24 * _GB, 71 * _T, 36 * _T),
    "rtx-4090": Device("RTX 4090", 24 * _GB, 165 * _T, 83 * _T),
    "l4": Device("L4", 24 * _GB, 121 * _T, 60 * _T),
    "a100-40": Device("A100 40 GB", 40 * _GB, 312 * _T, 156 * _T),
    "a100": Device("A100 80 GB", 80 * _GB, 312 * _T, 156 * _T),
    "h100": Device("H100", 80 * _GB, 989 * _T, 494 * _T),
    "h200": Device("H200", 141 * _GB, 989 * _T, 494 * _T),
}
"""Name -> device, by memory."""


def seconds(flops: float, device: Device, *, half: bool) -> float:
    """Returns the time that so many operations take.

    Args:
        flops: floating point operations. device: where. half: whether products are in bf16 or fp16.

    Example:
        >>> round(seconds(2.4e12, DEVICES["a100"], half=True), 3)
        0.022
    """
    return flops / ((device.half if half else device.single) * EFFICIENCY)
