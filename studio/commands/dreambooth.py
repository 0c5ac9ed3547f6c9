"""``studio dreambooth``: one subject from a handful of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from studio.commands.options import example, output_options, training_options
from studio.commands.settings import setting
from studio.commands.training import PICTURES, run_training

__all__ = ["dreambooth"]


@click.command(
    short_help="Learn one subject from a handful of pictures.",
    epilog=example(
        'studio dreambooth emoji photos/ --instance-prompt "a photo of sks robot" -o runs/robot',
        'studio dreambooth sd15/ photos/ --instance-prompt "a photo of sks dog" --rank 32 --steps 1200 -o runs/dog',
    ),
)
@click.argument("base", required=False)
@click.argument("images", required=False)
@setting(
    "--instance-prompt", field="instance_prompt", metavar="TEXT",
    help='Names the subject by a rare word and its class: "a photo of sks dog".',
)  # fmt: skip
@setting(
    "--class-prompt", field="class_prompt", multiple=True, metavar="TEXT",
    help='The same without the rare word, "a photo of dog", for prior preservation; repeatable.',
)  # fmt: skip
@setting("--prior", field="prior", metavar="NAME", help="Prior preservation: none, self, generate, images.")
@setting("--class-images", field="class_images", metavar="FOLDER", help="Pictures of the class, for --prior images.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The run's folder.")
@training_options
@output_options
@click.pass_context
def dreambooth(context: click.Context, base: str | None, images: str | None, output: Path, **options: Any) -> None:
    """Learn one subject from a handful of pictures.

    BASE is an embedded base (emoji), a diffusers folder, a .safetensors checkpoint or a hub id, IMAGES a folder of
    pictures of the subject. These and the instance prompt suffice: everything else has a default for the size of the
    base, which the report states. The same command again goes on with an interrupted run, to the bit.
    """
    from studio.trainers import DreamBooth

    facts = {"base": base, "instance_images": images}
    run_training(DreamBooth, facts, context.ensure_object(dict), output, PICTURES, **options)
