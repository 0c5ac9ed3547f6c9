"""``studio check``: what is wrong with a data set, before it costs a night."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from studio.commands.options import example, offline_option, output_options
from studio.commands.show import Show
from studio.commands.words import HELD_OUT, SIZE
from studio.errors import BadConfig, UsageError

if TYPE_CHECKING:
    from studio.datasets.captions import Encoding
    from studio.datasets.findings import CheckReport
    from studio.datasets.folder import ImageItem
    from studio.datasets.text_check import TextReport

__all__ = ["check"]


@click.command(
    short_help="Tell what is wrong with a data set.",
    epilog=example(
        'studio check photos/ --instance-prompt "a photo of sks dog" --resolution 512',
        'studio check drawings/ --trigger "ink style" --base emoji',
        "studio check questions.jsonl --task causal-lm --base facts --held-out more.jsonl",
    ),
)
@click.argument("data", metavar="DATA", type=click.Path(path_type=Path))
@click.option("--instance-prompt", metavar="TEXT", help="The prompt that a subject will be trained with.")
@click.option("--trigger", metavar="TEXT", help="The phrase that a style will be trained with.")
@click.option("--resolution", type=SIZE, metavar="WxH", help="The size to train at, in pixels.")
@click.option("--base", metavar="NAME", help="The base that will be trained: tells what it would refuse or not draw.")
@click.option(
    "--caption-encoding", "encoding", type=click.Choice(["utf-8", "windows-1252"]), default="utf-8", show_default=True,
    help="What caption files without a mark are read as.",
)  # fmt: skip
@click.option("--task", metavar="NAME", help="What texts, sounds or captions are for; studio tune lists the tasks.")
@click.option("--held-out", type=HELD_OUT, metavar="FILE|SHARE", help="Of texts: what will be measured on, to find "
              "what both hold; a share is of DATA itself.")  # fmt: skip
@click.option("--max-length", type=int, metavar="N", help="Of texts: tokens of a sample at most.")
@offline_option
@output_options
@click.pass_context
def check(
    context: click.Context, data: Path, instance_prompt: str | None, trigger: str | None,
    resolution: tuple[int, int] | None, base: str | None, encoding: Encoding, task: str | None,
    held_out: str | float | None, max_length: int | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Tell what is wrong with a data set, before it costs a night.

    DATA is a folder of pictures; or, with --task, what studio tune takes: a file of samples or a folder. Of samples,
    those that cannot be used are named with the reason, and so are doubles, questions with two answers, what the
    held-out data shares, and with the base what is cut off or never ends; a histogram shows their lengths.

    Every file that cannot be used is named with the reason, and so is what would spoil a training: missing captions,
    duplicates, pictures that are too small or mostly cropped away. With the instance prompt or the trigger, captions
    are shown as they will be trained; with the base, what it would refuse is found. Nothing is trained or changed. The
    exit code is 2 where a training could not start.

    \f
    Raises:
        BadConfig: options of pictures and of texts together, or texts without a task.
    """
    from studio.datasets.check import check_folder

    if task is not None or data.is_file():
        pictures = {"--instance-prompt": instance_prompt, "--trigger": trigger, "--resolution": resolution}
        _finish(context, _of_texts(task, base, data, held_out, max_length, pictures), as_json, quiet)
        return
    if held_out is not None or max_length is not None:
        raise BadConfig("--held-out and --max-length are of texts: name their --task")
    asked: dict[str, Any] = {"instance_prompt": instance_prompt, "trigger": trigger, "encoding": encoding}
    if base is not None:
        asked |= _asked_of(base, resolution)
        resolution = asked.pop("resolution")
    _finish(context, check_folder(data, resolution=resolution, **asked), as_json, quiet)


def _finish(context: click.Context, report: CheckReport | TextReport, as_json: bool, quiet: bool) -> None:
    show = Show(as_json, quiet)
    show.say(str(report))
    show.result(report.as_dict())
    if not report.ok:
        context.exit(UsageError.exit_code)


def _of_texts(
    task: str | None, base: str | None, data: Path, held_out: str | float | None, max_length: int | None,
    pictures: Mapping[str, Any],
) -> TextReport:  # fmt: skip
    from studio.trainers import TEXT_TASKS

    given = next((name for name, value in pictures.items() if value is not None), None)
    if given is not None:
        raise BadConfig(f"{given} is of pictures, and {data} is checked as texts: leave it out")
    if task is None:
        known = ", ".join(TEXT_TASKS)
        raise BadConfig(f"{data} is no folder of pictures: name the --task that its samples are for ({known})")
    return TEXT_TASKS[task](base=base, data=data, held_out=held_out, max_length=max_length).check()


def _asked_of(name: str, resolution: tuple[int, int] | None) -> dict[str, Any]:
    """Opens a base; returns the size that it is trained at, and what it is asked about texts and pictures."""
    from studio.datasets.picture import fit_image, open_image, to_pixels
    from studio.families import open_base
    from studio.families.drawable import cannot_draw
    from studio.trainers.image.latents import picture_size

    base = open_base(name)
    size = picture_size(resolution, base)

    def keeps(items: Iterable[ImageItem]) -> str | None:
        if base.draws is None:
            return None
        return cannot_draw(base, [to_pixels(fit_image(open_image(item), *size)) for item in items])

    return {"resolution": size, "fits": lambda text: base.family.check_text(base.pipe, [text]), "keeps": keeps}
