"""``studio style``: how things are drawn, from captioned pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from studio.commands.options import example, output_options, training_options
from studio.commands.settings import setting
from studio.commands.training import PICTURES, run_training

__all__ = ["style"]


@click.command(
    short_help="Learn a way of drawing from captioned pictures.",
    epilog=example('studio style emoji drawings/ --trigger "ink style" -o runs/ink'),
)
@click.argument("base", required=False)
@click.argument("images", required=False)
@setting("--trigger", field="trigger", metavar="TEXT", help='The phrase that calls the style up: "ink style".')
@setting(
    "--caption-dropout", field="caption_dropout", type=float, metavar="P",
    help="Share of the samples that have the trigger alone.",
)  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The run's folder.")
@training_options
@output_options
@click.pass_context
def style(context: click.Context, base: str | None, images: str | None, output: Path, **options: Any) -> None:
    """Learn a way of drawing from captioned pictures.

    BASE is an embedded base (emoji), a diffusers folder, a .safetensors checkpoint or a hub id, IMAGES a folder of
    pictures with captions beside them (cat.png and cat.txt) that say what is drawn, so that the trigger is left to mean
    how. The same command again goes on with an interrupted run, to the bit.
    """
    from studio.trainers import Style

    facts = {"base": base, "images": images}
    run_training(Style, facts, context.ensure_object(dict), output, PICTURES, **options)
