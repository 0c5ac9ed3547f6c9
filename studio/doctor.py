"""What works on this machine, what does not, and what each missing extra would add."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from studio.packages import EXTRAS, version_of

__all__ = ["Row", "diagnose"]

State = Literal["ok", "missing", "problem"]

_REQUIRED = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "pillow", "click", "rich")
_HIDDEN_EXTRAS = ("test", "dev", "bench")  # for those who work on the studio, not with it
_ROOM = 2 * 2**30  # bytes; less than that fills up during an evening of training


@dataclass(frozen=True)
class Row:
    """One line of the diagnosis.

    Args:
        group: what it belongs to: "system", "packages", "devices", "extras", "disk" or "base".
        name: what was looked at.
        state: ``ok``; ``missing`` for something optional; ``problem`` for something to mend.
        text: what was found, and for a problem what to do.
    """

    group: str
    name: str
    state: State
    text: str


def diagnose(folder: str | Path = ".", *, open_the_base: bool = True) -> list[Row]:
    """Looks at Python, packages, devices, disk and the embedded base.

    Args:
        folder: where runs would be written.
        open_the_base: also open the embedded base, which imports diffusers and takes some seconds.

    Returns:
        The rows in the order in which to show them; problems are rows, nothing is raised.

    Example:
        >>> rows = diagnose(open_the_base=False)
        >>> rows[0].name, rows[0].state
        ('python', 'ok')
    """
    rows = [*_system(), *_packages(), *_devices(), *_extras(), *_disk(Path(folder))]
    return [*rows, _image_base(), _language_base()] if open_the_base else rows


def _system() -> list[Row]:
    python = f"{platform.python_version()} ({platform.python_implementation()}, {sys.prefix})"
    good = sys.version_info >= (3, 10)
    text = python if good else f"{python}: 3.10 or newer is needed"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [
        Row("system", "python", "ok" if good else "problem", text),
        Row("system", "machine", "ok", f"{platform.system()} {platform.machine()}, {cores} cores to use"),
    ]


def _packages() -> list[Row]:
    rows = []
    own = version_of("adapter-studio")
    rows.append(Row("packages", "adapter-studio", "ok", own or "from a checkout that is not installed"))
    for name in _REQUIRED:
        version = version_of(name)
        text = version or "not installed: install the studio again (README.md, Install)"
        rows.append(Row("packages", name, "ok" if version else "problem", text))
    return rows


def _devices() -> list[Row]:
    try:
        from studio.device import choose_device, device_rows
    except (ImportError, OSError) as error:  # a torch whose libraries do not load raises OSError
        return [Row("devices", "torch", "problem", f"torch cannot be imported ({error}): install it again")]
    chosen = str(choose_device())
    rows = []
    for row in device_rows():
        memory = f", {row.memory / 2**30:.1f} GiB" if row.memory else ""
        default = " (the default)" if row.device.startswith(chosen) else ""
        rows.append(Row("devices", row.device, "ok", f"{row.title}{memory}, {' '.join(row.dtypes)}{default}"))
    return rows


def _extras() -> list[Row]:
    rows = []
    for name, extra in EXTRAS.items():
        if name in _HIDDEN_EXTRAS:
            continue
        versions = {package: version_of(package) for package in extra.packages}
        there = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
        if all(versions.values()):
            rows.append(Row("extras", name, "ok", f"{there}: {extra.adds}"))
        else:
            found = f" (there: {there})" if there else ""
            text = f"{extra.command} adds {extra.adds}{found}"
            rows.append(Row("extras", name, "missing", text))
    return rows


def _disk(folder: Path) -> list[Row]:
    shown = Path(os.path.realpath(folder))
    place = shown
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        return [Row("disk", str(shown), "problem", "is not writable for you: choose another folder with -o")]
    free = shutil.disk_usage(place).free
    text = f"{free / 2**30:.1f} GiB free"
    if free < _ROOM:
        return [Row("disk", str(shown), "problem", f"{text}: runs with checkpoints need more, free some")]
    return [Row("disk", str(shown), "ok", text)]


def _image_base() -> Row:
    try:
        from studio.families import open_base

        base = open_base("emoji")
        parts = (base.pipe.unet, base.pipe.text_encoder, base.pipe.vae)
        parameters = sum(parameter.numel() for part in parts for parameter in part.parameters())
    except Exception as error:  # the doctor tells what is wrong, whatever it is
        return Row("base", "emoji", "problem", f"cannot be opened: {type(error).__name__}: {error}")
    width, height = base.native
    text = f"{base.family.title}, {width}x{height} pixels, {parameters / 1e6:.1f} M parameters; draws {base.draws}"
    return Row("base", "emoji", "ok", text)


def _language_base() -> Row:
    try:
        from studio.families.language import open_language_base

        model = open_language_base("facts").model
        parameters = sum(parameter.numel() for parameter in model.parameters())
    except Exception as error:  # as above
        return Row("base", "facts", "problem", f"cannot be opened: {type(error).__name__}: {error}")
    return Row(
        "base", "facts", "ok", f"{type(model).__name__}, {parameters / 1e6:.1f} M parameters; has read statements"
    )
