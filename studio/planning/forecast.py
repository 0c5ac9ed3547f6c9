"""A forecast: what each phase of a run holds, by category, and what it leaves on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from studio.planning.devices import DEVICES, seconds
from studio.planning.measured import Correction
from studio.planning.sizes import in_words

__all__ = ["CATEGORIES", "PHASES", "Forecast", "Phase"]

PHASES: Final = ("load", "caching", "reference", "forward", "backward", "optimizer", "preview", "save")
"""The phases in the order of a run."""

CATEGORIES: Final = (
    "weights", "adapter", "gradients", "optimizer", "communication", "activations", "temporaries", "preview", "save",
)  # fmt: skip
"""What is held, from what is there all the time to what comes and goes."""


@dataclass(frozen=True)
class Phase:
    """A phase at the moment when it holds most.

    Args:
        name: one of :data:`PHASES`. by: category -> bytes.
    """

    name: str
    by: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.by.values())


@dataclass(frozen=True)
class Forecast:
    """What a training takes on the device of one process.

    Attributes:
        base: its name. settings: what was asked, but for defaults.
        phases: in the order of a run. host: category -> bytes of this process that rest in the CPU's memory.
        trained: numbers that are trained. weights: numbers of the base.
        flops: floating point operations of a step. half: whether they are done in bf16.
        disk: what is written, word -> bytes. sizes: of the samples: width, height, native; or length.
        assumptions: what was taken for granted, in sentences.
        correction: what the peak is multiplied by, from runs that were measured on this machine.
    """

    base: str
    settings: Mapping[str, Any]
    phases: tuple[Phase, ...]
    host: Mapping[str, int] = field(default_factory=dict)
    trained: int = 0
    weights: int = 0
    flops: float = 0.0
    half: bool = False
    disk: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    assumptions: tuple[str, ...] = ()
    correction: Correction = Correction()

    @property
    def worst(self) -> Phase:
        """The phase that holds most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def counted(self) -> int:
        """Bytes that tensors hold at the peak."""
        return self.worst.total

    @property
    def peak(self) -> int:
        """Bytes that a device must have for it."""
        return round(self.counted * self.correction.factor)

    @property
    def categories(self) -> Mapping[str, int]:
        """Category -> bytes at the peak."""
        return self.worst.by

    def seconds(self, device: str) -> float:
        """Returns about how long a step takes on a device.

        Args:
            device: a key of :data:`studio.planning.devices.DEVICES`.
        """
        return seconds(self.flops, DEVICES[device], half=self.half)

    def facts(self) -> dict[str, Any]:
        """Returns everything as plain values, for JSON."""
        return {
            "base": self.base, "settings": dict(self.settings), "peak": self.peak, "counted": self.counted,
            "corrected_by": self.correction.runs, "peak_phase": self.worst.name,
            "phases": {phase.name: {"total": phase.total, **phase.by} for phase in self.phases},
            "host": dict(self.host), "trained": self.trained, "weights": self.weights, "flops": self.flops,
            "seconds": {name: self.seconds(name) for name, one in DEVICES.items() if one.memory >= self.peak},
            "disk": dict(self.disk), "assumptions": list(self.assumptions),
        }  # fmt: skip

    def __str__(self) -> str:
        used = [name for name in CATEGORIES if any(phase.by.get(name) for phase in self.phases)]
        head = f"{'phase':<11}" + "".join(f"{name:>15}" for name in ("total", *used))
        lines = [
            f"{self.base}: {in_words(self.peak)} at the peak, while it computes {_while(self.worst.name)}",
            *([f"{self.correction} ({in_words(self.counted)} by the count below)"] if self.correction.runs else []),
            "",
            head,
        ]
        for phase in self.phases:
            cells = "".join(f"{in_words(phase.by[name]) if phase.by.get(name) else '':>15}" for name in used)
            mark = "  <- peak" if phase is self.worst else ""
            lines.append(f"{phase.name:<11}{in_words(phase.total):>15}{cells}{mark}")
        lines += ["", *self._rest()]
        return "\n".join(lines)

    def _rest(self) -> list[str]:
        """What stands below the table."""
        lines = [f"trained: {self.trained:,} numbers beside the base's {self.weights:,}"]
        if any(self.host.values()):
            lines.append("in the CPU's memory: " + ", ".join(f"{k} {in_words(v)}" for k, v in self.host.items() if v))
        roomy = [name for name, one in DEVICES.items() if one.memory >= self.peak][:4]
        if roomy and self.flops:
            times = ", ".join(f"{self.seconds(name):.2g} s on {DEVICES[name].title}" for name in roomy)
            lines.append(f"a step is {self.flops / 1e12:.3g} TFLOP: about {times}")
        if self.disk:
            lines.append("disk: " + ", ".join(f"{name} {in_words(size)}" for name, size in self.disk.items()))
        return [*lines, *(f"assumed: {line}" for line in self.assumptions)]


def _while(phase: str) -> str:
    return {"load": "nothing yet", "caching": "what is kept", "preview": "a preview"}.get(phase, f"the {phase} pass")
