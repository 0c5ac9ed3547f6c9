"""``studio generate``: pictures from prompts, with any blend of adapters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from studio.commands.loading import load_adapter, open_pipeline
from studio.commands.numbered import check_numbers, places, save_next
from studio.commands.options import (
    adapter_option,
    config_option,
    example,
    memory_options,
    output_options,
    pipeline_options,
)
from studio.commands.regions import mask_adapters, mask_option
from studio.commands.show import Show
from studio.commands.words import SEEDS, SIZE, AdapterWord

if TYPE_CHECKING:
    from PIL.Image import Image

    from studio.pipelines import ImagePipeline

__all__ = ["generate"]


@click.command(
    short_help="Make pictures from prompts, with any blend of adapters.",
    epilog=example(
        'studio generate emoji "tiger on a blue background" --seeds 0..3 -o out',
        'studio generate emoji "a photo of sks robot" --adapter runs/robot:0.9 --grid sheet.png',
        'studio generate emoji "ink style, sks robot <robot:0.8> <ink>" --adapter robot=a.safetensors \\',
        "    --adapter ink=b.safetensors",
        'studio generate emoji "a photo of sks toy" --adapter a.safetensors --adapter b.safetensors \\',
        "    --mask-of a=left.png --mask-of b=right.png --resolution 128x64",
    ),
)
@click.argument("base")
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@adapter_option
@mask_option
@click.option("--normalize", is_flag=True, help="Lower strengths where adapters add up: 1.0 + 1.0 does not burn.")
@click.option(
    "--seeds",
    type=SEEDS,
    metavar="LIST",
    default="0",
    show_default=True,
    help="Every prompt with each of these: 4, 0,3,5 or 0..7.",
)
@click.option("--seed", type=SEEDS, hidden=True, help="The same as --seeds.")
@click.option("--steps", type=int, metavar="N", help="Denoising steps; else the base's own.")
@click.option("--sampling-steps", "steps", type=int, hidden=True, help="The same as --steps.")
@click.option("--guidance", type=float, metavar="X", help="Guidance scale, else the base's own; 1: the prompt alone.")
@click.option(
    "--embedded-guidance",
    type=float,
    metavar="X",
    help="Guidance that a distilled base (Flux dev) takes as a number instead; else the base's own.",
)
@click.option("--negative", metavar="TEXT", help="What guidance leads away from.")
@click.option("--resolution", type=SIZE, metavar="WxH", help="Size in pixels, 512x768 or 512; else the base's own.")
@click.option(
    "--image", type=click.Path(path_type=Path), metavar="FILE", help="A picture to start from instead of noise alone."
)
@click.option(
    "--strength", type=float, metavar="X", help="How much of it is drawn anew, above 0 and at most 1; 0.6 if not said."
)
@click.option(
    "--mask", type=click.Path(path_type=Path), metavar="FILE", help="Draw anew only where this picture is white."
)
@click.option("--scheduler", metavar="NAME", help="Sampler, such as euler-a or dpm++-2m-karras; else the base's own.")
@click.option(
    "--batch-size", type=int, metavar="N", default=1, show_default=True, help="Pictures that are computed together."
)
@click.option("--grid", type=click.Path(path_type=Path), metavar="FILE.png", help="Also write one sheet with them all.")
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
    base: str,
    prompts: tuple[str, ...],
    adapters: tuple[AdapterWord, ...],
    normalize: bool,
    seeds: tuple[int, ...],
    seed: tuple[int, ...] | None,
    steps: int | None,
    guidance: float | None,
    embedded_guidance: float | None,
    negative: str | None,
    resolution: tuple[int, int] | None,
    image: Path | None,
    strength: float | None,
    mask: Path | None,
    scheduler: str | None,
    batch_size: int,
    grid: Path | None,
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
    from studio.pipelines import ImagePipeline, save_png

    show = Show(as_json, quiet)
    seeds = seed if seed is not None else seeds
    check_numbers(1 if steps is None else steps, guidance, resolution, batch_size)
    grid = None if grid is None else grid.expanduser()
    files = places(output.expanduser(), len(prompts) * len(seeds), grid, overwrite=overwrite)
    pipe = open_pipeline(
        ImagePipeline, base, device=device, dtype=dtype, show=show, config_of=config_of,
        saving=click.get_current_context().obj,
    )  # fmt: skip
    used = [load_adapter(pipe, word, show, allow_partial=allow_partial, pickled=pickled) for word in adapters]
    _look_at(pipe, prompts, negative, guidance, None if normalize else steps or pipe.base.defaults.steps, show)
    width, height = resolution or (None, None)
    draw = partial(
        pipe.generate, steps=steps, guidance=guidance, embedded_guidance=embedded_guidance, negative=negative,
        width=width, height=height, batch_size=batch_size, scheduler=scheduler, image=image, strength=strength,
        mask=mask, normalize=normalize,
    )  # fmt: skip
    images, made = list[Any](), list[dict[str, Any]]()
    with _progress(show, len(files)) as advance:
        for prompt, picture, one in _drawn(draw, prompts, seeds, max(batch_size, 1)):
            place = save_next(picture, files[len(made)], overwrite=overwrite)
            made.append({"file": place, "prompt": prompt, "seed": one})
            images += [picture] if grid else []
            advance()
    if grid:
        save_png(_sheet(images, made, len(seeds)), grid)
    _say_where(show, [entry["file"] for entry in made], grid)
    show.result({"pictures": made, "sheet": grid, "adapters": used})


def _sheet(images: Sequence[Image], made: Sequence[Mapping[str, Any]], seeds: int) -> Image:
    """One sheet of them all, each with its prompt and seed."""
    from studio.pipelines import contact_sheet

    labels = [f"{entry['prompt']} · {entry['seed']}" for entry in made]
    return contact_sheet(images, columns=_columns(len(images), seeds), labels=labels)


def _say_where(show: Show, files: Sequence[Path], grid: Path | None) -> None:
    """Says what was written."""
    span = f"{files[0]} to {files[-1].name}" if len(files) > 1 else str(files[0])
    show.say(f"{len(files)} picture{'s' if len(files) > 1 else ''}: {span}" + (f"; sheet: {grid}" if grid else ""))


def _drawn(
    draw: Callable[..., list[Image]], prompts: Sequence[str], seeds: Sequence[int], rows: int
) -> Iterator[tuple[str, Image, int]]:
    """Draws every prompt with every seed, some together; yields prompt, picture and seed as they are done."""
    from studio.pipelines.remarks import Remark

    for prompt in prompts:
        for start in range(0, len(seeds), rows):
            some = seeds[start : start + rows]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Remark)  # was said as a note
                drawn = draw(prompt, seeds=some)
            for image, seed in zip(drawn, some, strict=True):
                yield prompt, image, seed


def _look_at(
    pipe: ImagePipeline,
    prompts: Sequence[str],
    negative: str | None,
    guidance: float | None,
    steps: int | None,
    show: Show,
) -> None:
    """Reads all tags before the first picture, so that a slip in the last costs nothing; says what has no effect.

    ``steps`` are those of raw blends, which may burn; None: they are normalized.
    """
    from studio.pipelines import parse_prompt
    from studio.pipelines.remarks import remarks

    mask_adapters(pipe, prompts)
    for prompt in prompts:
        parse_prompt(prompt, pipe.adapters, denoiser=pipe.base.family.denoiser, encoders=pipe.base.family.readers)
    _note_triggers(pipe, prompts, show)
    for remark in remarks(prompts, negative=negative, guidance=pipe.base.guidance if guidance is None else guidance):
        show.note(remark)
    if steps is not None:
        _note_burning(pipe, prompts, steps, show)


def _note_burning(pipe: ImagePipeline, prompts: Sequence[str], steps: int, show: Show) -> None:
    """Says which blends are predicted to spoil the pictures."""
    from studio.pipelines.burning import burn_remarks
    from studio.pipelines.making import read_tags

    for remark in burn_remarks(pipe.base, [read_tags(pipe.base, prompt).blend for prompt in prompts], steps=steps):
        show.note(remark)


def _note_triggers(pipe: ImagePipeline, prompts: Sequence[str], show: Show) -> None:
    """Says which prompts lack the words that an adapter answers to."""
    from studio.datasets.trigger import missing_words

    for name, info in pipe.adapters.items():
        trigger = info.metadata.get("trigger", "")
        without = [prompt for prompt in prompts if missing_words(trigger, prompt)]
        if without:
            more = f" and {len(without) - 1} more" if len(without) > 1 else ""
            show.note(f"{name} answers to {trigger!r}, which {without[0]!r}{more} does not say in full")


def _columns(count: int, seeds: int) -> int:
    return seeds if 1 < seeds <= 8 else min(count, 8 if count > 12 else 4)


@contextmanager
def _progress(show: Show, total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr where that is a terminal and there is something to wait for."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not show.talks or not console.is_terminal or total < 2:
        yield lambda: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("drawing", total=total)
        yield lambda: bar.advance(task)
