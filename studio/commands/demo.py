"""``studio demo``: the whole main job on the embedded base."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from studio.atomic import atomic_write
from studio.commands.options import example, output_options
from studio.commands.show import Show, shell
from studio.commands.training import run_facts
from studio.errors import BadFile

if TYPE_CHECKING:
    from PIL.Image import Image

    from studio.pipelines import ImagePipeline
    from studio.trainers import Run

__all__ = ["demo"]

SUBJECT: Final = "robot"
PROMPT: Final = f"a photo of sks {SUBJECT}"
COLOURS: Final = ("pink", "red", "green", "blue", "purple")  # the instance pictures lie on white and yellow
SEEDS: Final = (0, 1, 2)  # every colour is drawn with each; the picture shows the first
TITLE: Final = "a robot that the base had never seen"


@dataclass(frozen=True)
class Fidelity:
    """How well the subject was learned, as means over all pictures that were drawn.

    Args:
        subject: 0 is the base, 1 the truth through the base's own autoencoder.
        nearest: share of the pictures whose nearest emoji, of all, is the right one.
        prompt: share of the pictures on the background that was asked for.
    """

    subject: float
    nearest: float
    prompt: float


@click.command(
    short_help="The whole job on the embedded base: train, draw, before/after.",
    epilog=example("studio demo", "studio demo --steps 200 -o demo-short", "studio demo --photos photos/"),
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default="demo", show_default=True, help="The run's folder."
)
@click.option("--steps", type=int, metavar="N", help="Optimizer steps; the recipe's if left out.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides everything that is drawn.")
@click.option("--device", metavar="NAME", help="Where to compute: auto, cpu, ...")
@click.option(
    "--photos", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Only copy the six pictures of the robot there, to try the other commands with.",
)  # fmt: skip
@output_options
def demo(
    output: Path, steps: int | None, seed: int, device: str | None, photos: Path | None, as_json: bool, quiet: bool
) -> None:
    """Show the whole job on the embedded base: train, draw, before and after.

    A small diffusion model that has never seen a robot learns one from six pictures on white and yellow, and draws it
    on pink, red, green, blue and purple; since the true pictures are known, how well it did is measured. It takes about
    two minutes on two cores and no network. Called again, it goes on where it was interrupted, or draws again.
    """
    from studio.families.emoji_world import INSTANCE_FOLDER

    show, given = Show(as_json, quiet), INSTANCE_FOLDER / SUBJECT
    if photos is not None:
        _copy(given, photos.expanduser(), show)
    else:
        _run(given, output, steps, seed, device, show)


def _copy(given: Path, folder: Path, show: Show) -> None:
    """Copies the packaged pictures into a folder, over nothing.

    Raises:
        BadFile: another file of such a name is there.
    """
    files = {folder / file.name: file.read_bytes() for file in sorted(given.glob("*.png"))}
    other = next((file for file, data in files.items() if file.exists() and file.read_bytes() != data), None)
    if other is not None:
        raise BadFile(f"{other} is there already and is another picture: choose another folder")
    for file, data in files.items():
        atomic_write(file, data)
    command = shell("studio", "dreambooth", "emoji", folder, "--instance-prompt", PROMPT, "-o", f"runs/{SUBJECT}")
    show.say(f"{len(files)} pictures of a {SUBJECT} in {folder}\nyour turn: {command}")
    show.result({"photos": list(files)})


def _run(photos: Path, output: Path, steps: int | None, seed: int, device: str | None, show: Show) -> None:
    from studio.device import choose_device
    from studio.families import open_base
    from studio.pipelines import ImagePipeline
    from studio.trainers import DreamBooth, train

    begin = time.perf_counter()
    _greet(show, photos)
    base = open_base("emoji", device=choose_device(device))
    task = DreamBooth(base=base, instance_images=photos, instance_prompt=PROMPT)
    run = train(task, output=output, steps=steps, seed=seed, device=device, quiet=show.quiet)
    seconds = time.perf_counter() - begin
    pipe = ImagePipeline(base)
    before = _draw(pipe)
    pipe.load(run.adapter, name=SUBJECT)
    after = _draw(pipe)
    reached = _measure(before, after, base.pipe.vae)
    picture = _picture(photos, before, after, output / "before-after.png")
    _close(show, run, picture, reached, seconds)
    measured = {name: round(value, 4) for name, value in vars(reached).items()}
    show.result({**run_facts(run), "picture": picture, "fidelity": measured, "seconds": round(seconds, 1)})


def _draw(pipe: ImagePipeline) -> dict[str, list[Image]]:
    """Draws the subject on every colour with every seed, by the current blend."""
    prompts = [f"{PROMPT} on a {colour} background" for colour in COLOURS]
    images = pipe.generate(prompts, seeds=SEEDS, batch_size=len(SEEDS))
    return {colour: images[index * len(SEEDS) :][: len(SEEDS)] for index, colour in enumerate(COLOURS)}


def _measure(before: dict[str, list[Image]], after: dict[str, list[Image]], vae: Any) -> Fidelity:
    from studio import fidelity

    subject: list[float] = []
    nearest: list[bool] = []
    prompt: list[bool] = []
    for colour, images in after.items():
        subject += fidelity.subject_fidelity(images, SUBJECT, colour, base_images=before[colour], vae=vae)
        nearest += [fidelity.rank(image, SUBJECT, colour) == 1 for image in images]
        prompt += [fidelity.prompt_fidelity(image, colour) for image in images]
    return Fidelity(statistics.fmean(subject), statistics.fmean(nearest), statistics.fmean(prompt))


def _picture(photos: Path, before: dict[str, list[Image]], after: dict[str, list[Image]], file: Path) -> Path:
    """Puts what was learned from above what came of it."""
    from PIL import Image

    from studio.datasets.picture import open_image
    from studio.pipelines import before_after, contact_sheet, save_png

    given = [open_image(photo) for photo in sorted(photos.glob("*.png"))]
    head = contact_sheet(
        given,
        columns=len(given),
        row_labels=("learned from",),
        title=TITLE,
        subtitle=f"all that was said: “{PROMPT}”",
        enlarge=False,
    )
    body = before_after(
        [images[0] for images in before.values()],
        [images[0] for images in after.values()],
        [f"… on a {colour} background" for colour in before],
        row_labels=("before", "after"),
    )
    top = head.height - 20  # each brings a margin
    sheet = Image.new("RGB", (max(head.width, body.width), top + body.height), head.getpixel((0, 0)))
    sheet.paste(head, (0, 0))
    sheet.paste(body, (0, top))
    sheet.info.update(body.info)  # what it is
    return save_png(sheet, file)


def _greet(show: Show, photos: Path) -> None:
    show.console.print(
        f"[bold]studio demo[/bold]  teaches the base [cyan]emoji[/cyan] a {SUBJECT}, which it has never seen,\n"
        f"from six pictures on white and yellow, and draws it on {', '.join(COLOURS[:-1])} and {COLOURS[-1]}.\n"
    )


def _close(show: Show, run: Run, picture: Path, reached: Fidelity, seconds: float) -> None:
    count = len(COLOURS) * len(SEEDS)
    trained = "trained before" if run.already else f"{len(run.losses)} steps in {seconds:.0f} s"
    show.say()
    show.table(
        [
            ("before/after", str(picture)),
            ("report", str(run.report)),
            ("adapter", f"{run.adapter}  ({run.adapter.stat().st_size / 2**20:.1f} MiB, {trained})"),
        ]
    )
    show.say(f"\nfidelity, measured on {count} pictures against the truth")
    rows = (
        ("subject", reached.subject, f"{reached.subject:.2f}", "0 is the base, 1 the best its autoencoder allows"),
        ("nearest", reached.nearest, f"{reached.nearest:.0%}", "look most like it, of all 1,628 emoji"),
        ("prompt", reached.prompt, f"{reached.prompt:.0%}", "are on the background that was asked for"),
    )
    show.table((name, f"{_bar(share)} {figure}", meaning) for name, share, figure, meaning in rows)
    words = ("studio", "generate", "emoji", f"{PROMPT} on a pink background", "--adapter", run.adapter, "-o", "out")
    show.say(f"\nyour turn: {shell(*words)}")


def _bar(share: float, width: int = 12) -> str:
    filled = round(max(0.0, min(1.0, share)) * width)
    return "█" * filled + "░" * (width - filled)
