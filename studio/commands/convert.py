"""``studio convert``: an adapter file in the format of another program."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

import click

from studio.commands.options import example, output_options
from studio.commands.show import Show
from studio.errors import UsageError

__all__ = ["convert"]

_FOR: Final = ("a1111", "comfyui", "diffusers", "peft")


@click.command(
    short_help="Write an adapter file in another program's format.",
    epilog=example(
        "studio convert dog.safetensors --format kohya -o dog-kohya.safetensors",
        "studio convert dog_lora.safetensors --for diffusers -o dog.safetensors",
        "studio convert robot.safetensors --base emoji --format peft -o robot/",
        "studio convert facts.gguf --base facts --format mlx -o facts-mlx/",
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", metavar="NAME", help="diffusers, kohya, native or peft; of a language model gguf or mlx.")
@click.option("--for", "program", type=click.Choice(_FOR), help="The program that shall read it, instead.")
@click.option("--family", metavar="NAME", help="The family or public model that it is for; else told by its keys.")
@click.option("--base", metavar="BASE", help="The base, where it is for none of the public models.")
@click.option("--dtype", metavar="T", help="What the tensors are stored in (fp32, bf16, fp16); else as they were.")
@click.option("--approximate", is_flag=True, help="Keep a file whose change is rounded; how far it is off is said.")
@click.option("--pickled", is_flag=True, help="Allow .pt and .bin files, whose tensors alone are read.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The new file.")
@output_options
def convert(
    file: Path,
    format: str | None,
    program: str | None,
    family: str | None,
    base: str | None,
    dtype: str | None,
    approximate: bool,
    pickled: bool,
    output: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write FILE in the format of another program: read whole, written, read back and compared.

    What the adapter changes stays what it was, or nothing is written. The base is told by the file's keys and needs not
    be there; only its names and sizes count.
    """
    from studio.files.convert import convert as make

    _check_target(format, program)
    show = Show(as_json, quiet)
    report = make(
        file.expanduser(), output.expanduser(), format=format, program=program, family=family, base=base,
        dtype=dtype, approximate=approximate, pickled=pickled,
    )  # fmt: skip
    for note in report.notes:
        show.note(note)
    show.say(str(report))
    show.result(dataclasses.asdict(report))


def _check_target(format: str | None, program: str | None) -> None:
    if (format is None) == (program is None):
        raise UsageError("say to what: --format NAME, or --for PROGRAM")
