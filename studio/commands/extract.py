"""``studio extract``: the difference of two models as an adapter."""

from __future__ import annotations

from pathlib import Path

import click

from studio.commands.options import example, output_options
from studio.commands.show import Show

__all__ = ["extract"]


@click.command(
    short_help="Make an adapter of what a tuned model differs in from its base.",
    epilog=example(
        "studio extract robot-model emoji --rank 16 -o robot.safetensors",
        "studio extract tuned/ sdxl/ --targets attention+mlp --format kohya --dtype fp16 -o tuned.safetensors",
    ),
)
@click.argument("tuned")
@click.argument("base")
@click.option("--rank", type=int, default=32, show_default=True, metavar="N", help="Of each layer, at most.")
@click.option("--whole", is_flag=True, help="Keep the whole difference instead, exactly; as large as the layers.")
@click.option("--targets", default="all-linear", show_default=True, metavar="WHICH", help="A preset, or patterns.")
@click.option("--format", metavar="NAME", help="Of the file: diffusers, kohya, native; else diffusers.")
@click.option("--dtype", metavar="T", help="What its tensors are stored in: fp32, bf16, fp16.")
@click.option("--name", default="default", metavar="NAME", help="What tags call it.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The new file.")
@output_options
def extract(
    tuned: str,
    base: str,
    rank: int,
    whole: bool,
    targets: str,
    format: str | None,
    dtype: str | None,
    name: str,
    output: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make an adapter of what TUNED differs in from BASE, layer by layer, and say what it leaves out."""
    from studio.adapters.targets.presets import PRESETS
    from studio.files.extract import extract as make

    show = Show(as_json, quiet)
    report = make(
        tuned, base, output.expanduser(), rank=None if whole else rank, format=format, dtype=dtype, name=name,
        targets=targets if targets in PRESETS else tuple(targets.split(",")),
    )  # fmt: skip
    show.say(str(report))
    show.result({
        "file": report.file, "method": report.method, "error": report.error, "errors": dict(report.errors),
        "ranks": {str(one): count for one, count in sorted(report.ranks.items())}, "left": list(report.left),
    })  # fmt: skip
