"""What was found in a folder of pictures: problems with their severity, and the report of them all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from studio.shown import shown

__all__ = ["CheckReport", "Problem", "Severity", "count"]

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Problem:
    """One finding.

    Args:
        severity: an ``error`` stops a training, a ``warning`` spoils it, a ``note`` is good to know.
        message: what was found, and what to do about it.
        files: the files that it is about, relative to the folder where they are inside it.
    """

    severity: Severity
    message: str
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.files:
            return self.message
        named = ", ".join(self.files[:4]) + (f" and {len(self.files) - 4} more" if len(self.files) > 4 else "")
        return f"{named}: {self.message}" if len(self.files) == 1 else f"{self.message}: {named}"


@dataclass(frozen=True)
class CheckReport:
    """The findings on one folder; ``str()`` of it is a readable report.

    Args:
        folder: the folder.
        images: how many pictures can be used.
        captions: how many of them have a caption.
        sizes: ``(width, height)`` in pixels of each picture.
        problems: the findings, errors first.
        digest: that of the folder, as :func:`studio.datasets.folder.read_folder` gives it.
        sent: for up to three pictures with a caption, the text that they would be trained with.
    """

    folder: Path
    images: int
    captions: int
    sizes: tuple[tuple[int, int], ...]
    problems: tuple[Problem, ...]
    digest: str
    sent: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether a training can start: nothing found is an error."""
        return not any(problem.severity == "error" for problem in self.problems)

    def as_dict(self) -> dict[str, object]:
        """The report as plain values, for JSON."""
        return {
            "folder": self.folder.as_posix(),
            "images": self.images,
            "captions": self.captions,
            "sizes": [list(size) for size in self.sizes],
            "digest": self.digest,
            "sent": list(self.sent),
            "ok": self.ok,
            "problems": [
                {"severity": problem.severity, "message": problem.message, "files": list(problem.files)}
                for problem in self.problems
            ],
        }

    def __str__(self) -> str:
        lines = [
            f"{shown(self.folder)}: {count(self.images, 'image')}, {self.captions} with a caption{_range(self.sizes)}"
        ]
        lines += [f'  reads "{shown(text)}"' for text in self.sent]
        for severity in ("error", "warning", "note"):
            lines += [f"  {severity:7}  {problem}" for problem in self.problems if problem.severity == severity]
        if not self.problems:
            lines.append("  nothing to mend")
        return "\n".join(lines)


def count(number: int, noun: str) -> str:
    """Returns a number with its noun.

    Example:
        >>> count(1, "image"), count(2, "image")
        ('1 image', '2 images')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _range(sizes: tuple[tuple[int, int], ...]) -> str:
    if not sizes:
        return ""
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    small, large = ordered[0], ordered[-1]
    if small == large:
        return f", {small[0]}x{small[1]} pixels"
    return f", {small[0]}x{small[1]} to {large[0]}x{large[1]} pixels"
