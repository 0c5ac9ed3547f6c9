"""``studio inspect``: what is in an adapter file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from studio.commands.options import example, offline_option, output_options
from studio.commands.show import Show
from studio.errors import Refused, UsageError

if TYPE_CHECKING:
    from studio.files import AdapterFile

__all__ = ["inspect"]

SHOWN = 8  # layers and foreign metadata that are listed by name
FACTS = tuple("trigger base base_hash task steps seed dataset images resolution licence parents".split())


@click.command(
    short_help="Tell what is in an adapter file.",
    epilog=example("studio inspect runs/robot", "studio inspect dog.safetensors"),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--values", is_flag=True, help="Read the tensors too, and name those that hold NaN or infinities.")
@offline_option
@output_options
@click.pass_context
def inspect(context: click.Context, file: Path, values: bool, as_json: bool, quiet: bool) -> None:
    """Tell what is in an adapter file: method, rank, layers, base, trigger, and where it comes from.

    FILE is a safetensors file (of diffusers, kohya, A1111 or the studio), a folder of PEFT, the folder of a run, or a
    hub id (owner/name), which is downloaded once. Only its header is read, so NaN in its tensors is found with --values
    alone. The exit code is 2 for a file that holds no adapter, 3 where parts of one cannot be read.
    """
    from studio.files import inspect as read
    from studio.pipelines.naming import adapter_file

    file = adapter_file(file)
    found = read(file)
    show = Show(as_json, quiet)
    if show.talks:
        show.table(_rows(found))
    show.result(_content(found))
    if not found.format:
        context.exit(UsageError.exit_code)
    if values:
        _check_values(file)
    if found.unread:
        context.exit(Refused.exit_code)


def _check_values(file: Path) -> None:
    """Reads the tensors.

    Raises:
        BadFile: they cannot be read.
        Refused: one holds NaN or infinities.
    """
    from studio.files.sound import check_finite
    from studio.files.source import open_source

    tensors = open_source(file).tensors
    check_finite(tensors, tensors, file)


def _rows(found: AdapterFile) -> list[tuple[str, str]]:
    dtypes = Counter(dtype for dtype, _ in found.tensors.values())
    ranks = ", ".join(f"{rank} ({count} layers)" for rank, count in found.ranks.items())
    rows = [
        ("file", str(found.file)),
        ("format", found.format or _nothing(found)),
        ("method", found.method or ("unknown" if found.format else "")),
        ("rank", ranks if len(found.ranks) > 1 else str(found.rank or "")),
        ("alpha", _alpha(found)),
        ("name", found.name),
        ("family", _family(found) if found.format else ""),
        ("layers", f"{len(found.sites)}: {_parts(found.sites)}" if found.sites else "none"),
        (
            "tensors",
            f"{len(found.tensors)}, {found.parameters:,} numbers, "
            f"{', '.join(f'{count} {dtype}' for dtype, count in sorted(dtypes.items()))}",
        ),
        *((name.replace("_", " "), _short(found.facts.get(name, ""))) for name in FACTS),
    ]
    others = [f"{name}={_short(value)}" for name, value in found.facts.items() if name not in FACTS]
    rows.append(("also", _some(others)))
    unread = [f"{key}: {reason}" for key, reason in found.unread.items()]
    rows += [("cannot read", line) for line in unread[:SHOWN]]
    if len(unread) > SHOWN:
        rows.append(("", f"and {len(unread) - SHOWN} more keys"))
    return [(name, value) for name, value in rows if value]


def _nothing(found: AdapterFile) -> str:
    """Says what a file is that holds no adapter that can be read."""
    from studio.files.checkpoint import checkpoint_title

    title = checkpoint_title({key: shape for key, (_, shape) in found.tensors.items()})
    if title is None:
        return "none: this file holds no adapter that can be read"
    what = f"{title} model" if title else "model"
    return f"none: this is a whole {what} (a checkpoint), not an adapter; open it as a base"


def _family(found: AdapterFile) -> str:
    from studio.families import FAMILIES

    if found.family in FAMILIES:
        return FAMILIES[found.family].title
    return found.family_title or found.family or "unknown"


def _alpha(found: AdapterFile) -> str:
    alpha = getattr(found.config, "alpha", None)
    return "" if alpha is None else f"{alpha:g}"


def _short(value: str) -> str:
    return f"{value[:60]}…" if len(value) > 64 else value


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _parts(sites: tuple[str, ...]) -> str:
    """Counts layers by component."""
    from studio.files.components import heading

    heads = Counter(heading(site) for site in sites)
    if set(heads) == {""}:
        return _some(sites)
    return ", ".join(f"{count} in {head or 'others'}" for head, count in sorted(heads.items()))


def _content(found: AdapterFile) -> dict[str, object]:
    from studio.config import plain

    return {
        "file": found.file, "format": found.format, "method": found.method, "name": found.name, "rank": found.rank,
        "ranks": {str(rank): count for rank, count in found.ranks.items()}, "family": found.family,
        "parameters": found.parameters, "config": None if found.config is None else plain(found.config),
        "sites": list(found.sites), "facts": dict(found.facts), "metadata": dict(found.metadata),
        "tensors": {key: {"dtype": dtype, "shape": list(shape)} for key, (dtype, shape) in found.tensors.items()},
        "unread": dict(found.unread),
    }  # fmt: skip
