"""``studio check``: what is wrong with a data set, before it costs a night."""

from __future__ import annotations

from pathlib import Path

import click

from studio.commands.options import example, output_options
from studio.commands.show import Show
from studio.commands.words import SIZE
from studio.errors import UsageError

__all__ = ["check"]


@click.command(
    short_help="Tell what is wrong with a folder of pictures.",
    epilog=example(
        'studio check photos/ --instance-prompt "a photo of sks dog" --resolution 512',
        'studio check drawings/ --trigger "ink style"',
    ),
)
@click.argument("images", type=click.Path(path_type=Path))
@click.option("--instance-prompt", metavar="TEXT", help="The prompt that a subject will be trained with.")
@click.option("--trigger", metavar="TEXT", help="The phrase that a style will be trained with.")
@click.option("--resolution", type=SIZE, metavar="WxH", help="The size to train at, in pixels.")
@output_options
@click.pass_context
def check(
    context: click.Context, images: Path, instance_prompt: str | None, trigger: str | None,
    resolution: tuple[int, int] | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Tell what is wrong with a folder of pictures, before it costs a night.

    Every file that cannot be used is named with the reason, and so is what would spoil a training: missing captions,
    duplicates, pictures that are too small or mostly cropped away. With the instance prompt or the trigger, captions
    are shown as they will be trained. Nothing is trained or changed. The exit code is 2 where a training could not
    start.
    """
    from studio.datasets.check import check_folder

    report = check_folder(images, instance_prompt=instance_prompt, trigger=trigger, resolution=resolution)
    show = Show(as_json, quiet)
    show.say(str(report))
    show.result(report.as_dict())
    if not report.ok:
        context.exit(UsageError.exit_code)
