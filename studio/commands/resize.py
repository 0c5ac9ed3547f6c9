"""``studio resize``: the best adapter of a lower rank."""

from __future__ import annotations

from pathlib import Path

import click

from studio.commands.options import example, output_options
from studio.commands.show import Show

__all__ = ["resize"]


@click.command(
    short_help="Bring a LoRA to lower ranks, with the error said.",
    epilog=example(
        "studio resize dog.safetensors --rank 4 -o dog-4.safetensors",
        "studio resize dog.safetensors --rank 32 --sv-fro 0.97 -o dog-small.safetensors",
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--rank", type=int, metavar="N", help="The largest rank.")
@click.option("--sv-ratio", type=float, metavar="X", help="Keep singular values above the largest / X.")
@click.option("--sv-fro", type=float, metavar="X", help="Keep this part of the change's length, such as 0.97.")
@click.option("--sv-cumulative", type=float, metavar="X", help="Keep this part of the sum of singular values.")
@click.option("--family", metavar="NAME", help="The family or public model that it is for; else told by its keys.")
@click.option("--base", metavar="BASE", help="The base, where it is for none of the public models.")
@click.option("--format", metavar="NAME", help="Of the new file; else that of the old one.")
@click.option("--dtype", metavar="T", help="What the tensors are stored in (fp32, bf16, fp16); else as they were.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The new file.")
@output_options
def resize(
    file: Path,
    rank: int | None,
    sv_ratio: float | None,
    sv_fro: float | None,
    sv_cumulative: float | None,
    family: str | None,
    base: str | None,
    format: str | None,
    dtype: str | None,
    output: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Bring the LoRA in FILE to lower ranks, each layer by the best approximation there is.

    Of --sv-ratio, --sv-fro and --sv-cumulative one finds the rank layer by layer; --rank is the most in any case.
    """
    from studio.files.resize import resize as make

    show = Show(as_json, quiet)
    report = make(
        file.expanduser(), output.expanduser(), rank=rank, sv_ratio=sv_ratio, sv_fro=sv_fro, family=family, base=base,
        sv_cumulative=sv_cumulative, format=format, dtype=dtype,
    )  # fmt: skip
    show.say(str(report))
    show.result({
        "file": report.file, "error": report.error, "worst": {"error": report.worst[0], "layer": report.worst[1]},
        "ranks": {str(one): count for one, count in sorted(report.ranks.items())},
        "before": {str(one): count for one, count in sorted(report.before.items())},
    })  # fmt: skip
