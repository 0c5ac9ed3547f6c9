"""``studio generate``: pictures from prompts, with any blend of adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from studio.commands.drawing import draw_to
from studio.commands.from_picture import as_recalled, base_of, load_recalled
from studio.commands.loading import load_adapter, open_pipeline
from studio.commands.numbered import check_numbers, places
from studio.commands.options import (
    adapter_option,
    config_option,
    example,
    memory_options,
    output_options,
    pipeline_options,
)
from studio.commands.picture_options import SHEET, given_options, picture_options, sheet_options
from studio.commands.regions import mask_adapters, mask_option, masks_given
from studio.commands.sheets import Asked, sheet_place
from studio.commands.show import Show
from studio.commands.words import SEEDS, AdapterWord

if TYPE_CHECKING:
    from studio.pipelines import ImagePipeline, Wanted
    from studio.pipelines.recalled import Recalled

__all__ = ["generate"]

SUFFIXES: Final = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


@click.command(
    short_help="Make pictures from prompts, with any blend of adapters.",
    epilog=example(
        'studio generate emoji "tiger on a blue background" --seeds 0..3 -o out',
        'studio generate emoji "a photo of sks robot" --adapter runs/robot:0.9 --grid sheet.png',
        'studio generate emoji "ink style, sks robot <robot:0.8> <ink>" --adapter robot=a.safetensors \\',
        "    --adapter ink=b.safetensors",
        'studio generate emoji "a photo of sks toy" --adapter a.safetensors --adapter b.safetensors \\',
        "    --mask-of a=left.png --mask-of b=right.png --resolution 128x64",
        'studio generate emoji "a photo of sks robot" --adapter runs/robot --x strength:robot=0,0.5,1 --y seed=0..3',
        "studio generate --from out/0003.png --seeds 1..8",
    ),
)
@click.argument("base", required=False)
@click.argument("prompts", nargs=-1, metavar="PROMPT...")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="PICTURE",
    help="Draw it again from what its file says (A1111's, ComfyUI's and InvokeAI's too); other options change that.",
)
@adapter_option
@mask_option
@click.option(
    "--seeds",
    type=SEEDS,
    metavar="LIST",
    help="Every prompt with each of these: 4, 0,3,5 or 0..7.  [default: 0]",
)
@click.option("--seed", "seeds", type=SEEDS, hidden=True, help="The same as --seeds.")
@picture_options
@click.option("--enumerate", "every", is_flag=True, help="Draw all prompts that {a|b} and __file__ stand for.")
@click.option("--batch-size", type=int, metavar="N", help="Pictures that are computed together.  [default: 1]")
@sheet_options
@click.option("--grid", type=click.Path(path_type=Path), metavar="FILE.png", help="Also write one sheet with them all.")
@click.option(
    "--image-format",
    type=click.Choice(["png", "jpeg", "webp"]),
    default="png",
    show_default=True,
    help="Of the pictures; PNG and WebP keep every pixel.",
)
@click.option("--preview-every", type=int, metavar="N", help="Write what they look like after each N steps: previews/.")
@config_option
@pipeline_options
@memory_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    default="out",
    show_default=True,
    help="Where the pictures go; numbers go on behind those that are there.",
)
@click.option("--overwrite", is_flag=True, help="Begin at 0000.png, over the pictures and the sheet that are there.")
@output_options
def generate(
    base: str | None,
    prompts: tuple[str, ...],
    source: Path | None,
    adapters: tuple[AdapterWord, ...],
    seeds: tuple[int, ...] | None,
    every: bool,
    batch_size: int | None,
    grid: Path | None,
    image_format: str,
    preview_every: int | None,
    config_of: str | None,
    allow_partial: bool,
    pickled: bool,
    device: str | None,
    dtype: str | None,
    output: Path,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make pictures from prompts: every PROMPT with every seed.

    BASE is the embedded base emoji, which draws emoji on a background of one colour, a diffusers folder, a checkpoint
    of one file (.safetensors), or a hub id (owner/name), which is downloaded once; an adapter may be a hub id too, and
    studio families lists the models. The pictures are numbered in that order in the output folder, each with the text
    from which it can be made again. A tag in a prompt, <robot:0.8>, says which adapters act on its pictures; without
    one, all act at the strength that --adapter gives them.
    """
    from studio.pipelines import save_png

    show = Show(as_json, quiet)
    asked, recalled = _asked(base, prompts, seeds, source, batch_size, every=every)
    place = output.expanduser()
    sheet = sheet_place(place, grid, asked.sheet, overwrite=overwrite)
    files = places(place, asked.count(), sheet, overwrite=overwrite, suffix=SUFFIXES[image_format])
    pipe = _opened(base, recalled, device=device, dtype=dtype, show=show, config_of=config_of)
    load = partial(load_adapter, pipe, show=show, allow_partial=allow_partial, pickled=pickled)
    used = (
        load_recalled(pipe, recalled, adapters, load, show, pickled=pickled)
        if recalled
        else [load(word) for word in adapters]
    )
    with _like(pipe, recalled, asked, show, named=base is not None) as like:
        listed = asked.listed(pipe, like)
        _note_triggers(pipe, list(dict.fromkeys(one.prompt for one in listed.wanted)), show)
        made = draw_to(
            pipe, listed.wanted, files, show, rows=batch_size or (recalled.rows if recalled else 1),
            overwrite=overwrite, keep=sheet is not None, preview_every=preview_every,
        )  # fmt: skip
    if sheet:
        save_png(listed.sheet([image for _, image in made if image is not None]), sheet)
    _say_where(show, [file for file, _ in made], sheet)
    said = [
        {"file": file, "prompt": one.prompt, "seed": one.seed}
        for (file, _), one in zip(made, listed.wanted, strict=True)
    ]
    show.result({"pictures": said, "sheet": sheet, "adapters": used})


def _asked(
    base: str | None,
    prompts: Sequence[str],
    seeds: Sequence[int] | None,
    source: Path | None,
    batch_size: int | None,
    *,
    every: bool,
) -> tuple[Asked, Recalled | None]:
    """What is asked for, and what the picture says that it begins with; what no base can do is refused."""
    from studio.pipelines import every_prompt
    from studio.pipelines.recalled import recall

    for name, given in (("BASE", base), ("PROMPT...", prompts)):
        if not given and source is None:
            raise click.MissingParameter(param_type="argument", param_hint=f"'{name}'")
    picture = given_options()
    resolution = picture.pop("resolution", None)
    check_numbers(
        picture.get("steps", 1), picture.get("guidance"), resolution,
        1 if batch_size is None else batch_size,
    )  # fmt: skip
    if resolution is not None:
        picture |= {"width": resolution[0], "height": resolution[1]}
    if every:
        prompts = [one for prompt in prompts for one in every_prompt(prompt, picture.get("wildcards"))]
    own: tuple[int, ...] = () if source else (0,)
    asked = Asked(tuple(prompts), own if seeds is None else tuple(seeds), given_options(SHEET), picture)
    return asked, None if source is None else recall(source)


def _opened(base: str | None, recalled: Recalled | None, *, dtype: str | None, **options: Any) -> ImagePipeline:
    """The base that was named, or the picture's own, in the number format that it was drawn in."""
    from studio.pipelines import ImagePipeline

    name = base_of(recalled, base) if recalled else base or ""
    own = recalled.content["base"] if recalled and recalled.content else {}
    saving = {"quantize": own.get("quantize"), **(click.get_current_context().obj or {})}
    return open_pipeline(ImagePipeline, name, dtype=dtype or own.get("dtype"), saving=saving, **options)


@contextmanager
def _like(
    pipe: ImagePipeline, recalled: Recalled | None, asked: Asked, show: Show, *, named: bool
) -> Iterator[Wanted | None]:
    """The picture that those of this call are like; None: there is none."""
    if recalled is None or recalled.content is None:
        mask_adapters(pipe, asked.prompts)
    if recalled is None:
        yield None
        return
    with as_recalled(pipe, recalled, dict(asked.picture), masks_given(), show, named=named) as wanted:
        yield wanted


def _say_where(show: Show, files: Sequence[Path], grid: Path | None) -> None:
    """Says what was written."""
    span = f"{files[0]} to {files[-1].name}" if len(files) > 1 else str(files[0])
    show.say(f"{len(files)} picture{'s' if len(files) > 1 else ''}: {span}" + (f"; sheet: {grid}" if grid else ""))


def _note_triggers(pipe: ImagePipeline, prompts: Sequence[str], show: Show) -> None:
    """Says which prompts lack the words that an adapter answers to."""
    from studio.datasets.trigger import missing_words

    for name, info in pipe.adapters.items():
        trigger = info.metadata.get("trigger", "")
        without = [prompt for prompt in prompts if missing_words(trigger, prompt)]
        if without:
            more = f" and {len(without) - 1} more" if len(without) > 1 else ""
            show.note(f"{name} answers to {trigger!r}, which {without[0]!r}{more} does not say in full")
