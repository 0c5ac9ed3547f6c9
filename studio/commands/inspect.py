"""``studio inspect``: what is in an adapter file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from studio.commands.options import example, offline_option, output_options
from studio.commands.show import Show
from studio.errors import Refused, UsageError

if TYPE_CHECKING:
    from studio.files import AdapterFile
    from studio.files.magnitude import Magnitudes

__all__ = ["inspect"]

BAR: Final = 32  # letters of the longest bar


@click.command(
    short_help="Tell what is in an adapter file.",
    epilog=example(
        "studio inspect runs/robot",
        "studio inspect dog.safetensors --hashes",
        "studio inspect dog.safetensors --norms --picture dog.png",
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--values", is_flag=True, help="Read the tensors too, and name those that hold NaN or infinities.")
@click.option("--hashes", is_flag=True, help="Read the file, and tell its hashes and whether those that it states are "
              "right.")  # fmt: skip
@click.option("--norms", is_flag=True, help="Read the tensors, and tell how far they move each block of the base.")
@click.option("--picture", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw that as a heat map.")
@click.option("--family", metavar="NAME", help="With --norms: the family or public model that it is for; else told by "
              "its keys.")  # fmt: skip
@click.option("--base", metavar="BASE", help="With --norms: the base, where it is for none of the public models, or "
              "its own weights count (DoRA, OFT, IA3, ...).")  # fmt: skip
@offline_option
@output_options
@click.pass_context
def inspect(
    context: click.Context,
    file: Path,
    values: bool,
    hashes: bool,
    norms: bool,
    picture: Path | None,
    family: str | None,
    base: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Tell what is in an adapter file: method, rank, layers, base, trigger, where it comes from, what looks wrong.

    FILE is a safetensors file (of diffusers, kohya, A1111 or the studio), a folder of PEFT, the folder of a run, or a
    hub id (owner/name), which is downloaded once. Only its header and its alphas are read, so NaN in its tensors is
    found with --values alone. The exit code is 2 for a file that holds no adapter, 3 where parts of one cannot be read.
    """
    from studio.commands.inspected import content, rows
    from studio.files import inspect as read
    from studio.pipelines.naming import adapter_file

    norms = _wanted(norms, picture, family, base)
    file = adapter_file(file)
    found, show = read(file), Show(as_json, quiet)
    made = _hashes(file) if hashes and found.format else None
    if show.talks:
        show.table(rows(found, made))
    told = content(found, made)
    if norms and found.format:
        told["norms"] = _norms(found, family, base, picture, show)
    show.result(told)
    if not found.format:
        context.exit(UsageError.exit_code)
    if values:
        _check_values(file)
    if found.unread:
        context.exit(Refused.exit_code)


def _wanted(norms: bool, picture: Path | None, family: str | None, base: str | None) -> bool:
    """Whether norms are asked for, which a picture is."""
    if (family or base) and not (norms or picture):
        raise UsageError("--family and --base say on what --norms is measured: give --norms too")
    return norms or picture is not None


def _hashes(file: Path) -> Any:
    from studio.files.hashes import file_hashes
    from studio.files.source import tensor_file

    return file_hashes(tensor_file(file))


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


def _norms(
    found: AdapterFile, family: str | None, base: str | None, picture: Path | None, show: Show
) -> dict[str, Any]:
    """Says how far the adapter moves each block, and draws it where that is asked for."""
    from studio.files.magnitude import magnitudes

    report = magnitudes(found.file, family=family, base=base)
    if show.talks:
        show.say()
        _show_norms(report, show)
    if picture is not None:
        from studio.pipelines import save_png
        from studio.pipelines.strength_map import strength_map

        picture = picture.expanduser()
        named = found.name if found.name not in ("", "default") else ""
        save_png(strength_map(report, title=named), picture)
        show.say(f"picture: {picture}")
    return {
        "base": report.base, "whole": report.whole, "measures": list(report.measures), "picture": picture,
        "blocks": report.blocks, "kinds": {f"{kind.group}, {kind.part}": norm for kind, norm in report.kinds.items()},
        "layers": [
            {"layer": one.path, "block": one.block, "kind": list(one.kind), "norm": one.norm, "measure": one.measure}
            for one in report.layers
        ],
    }  # fmt: skip


def _show_norms(report: Magnitudes, show: Show) -> None:
    from studio.files.magnitude import MEASURES

    counts: dict[str, int] = {}
    for one in report.layers:
        counts[one.block] = counts.get(one.block, 0) + 1
    most = max(report.blocks.values(), default=0.0) or 1.0
    show.table([
        ("block", "layers", "norm"),
        *(
            (block, str(counts[block]), f"{norm:.4g}", "█" * round(BAR * norm / most))
            for block, norm in report.blocks.items()
        ),
        ("all", str(len(report.layers)), f"{report.whole:.4g}"),
    ])  # fmt: skip
    show.say()
    kinds = ", ".join(f"{kind.group} {kind.part} {norm:.3g}" for kind, norm in report.kinds.items())
    show.say(f"by kind: {kinds}")
    for measure in report.measures:
        show.say(f"norm: {MEASURES[measure]}")
