"""What the embedded base draws: ``python -m benchmarks.base [--base FOLDER] [--seeds 4] [--out FOLDER]``.

Four figures, each with a right answer (:mod:`studio.fidelity`), of prompts without any adapter:

* *nearest*: of every core concept on a colour, how many pictures' nearest emoji of all is the right one;
* *background*: how many of the same pictures have the colour that was asked for;
* *apart*: of 8 seeds of one prompt, how many differ visibly in place, size, mirror or turn (the fitted placement);
* *pairs*: of wide pictures of two things, how many halves show both.

Writes ``base.json`` and the sheets of all pictures into the output folder. Half an hour of one core; ``--concepts 40``
takes every fourth concept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from studio import fidelity
from studio.families.emoji_world import SIDE, core_names
from studio.fidelity import COLOURS, Placement
from studio.pipelines import ImagePipeline, contact_sheet

# things that no mirror and no turn leaves as they were
SIDED = ("tiger", "rocket", "banana", "dolphin", "pizza", "police car", "snail", "teapot")
PAIRS = (("cat", "pizza"), ("rocket", "red heart"), ("bus", "tulip"), ("owl", "strawberry"))
PAIRS += (("panda", "umbrella"), ("tiger", "soccer ball"), ("house", "fox"), ("lemon", "ghost"))
PLACE, SIZE, TURN = 5.0, 1.15, 8.0  # pixels, ratio, degrees from which a difference is visible


def visibly_apart(first: Placement, second: Placement) -> bool:
    """Whether two placements differ in place, size, mirror or turn so that one sees it.

    Example:
        >>> here = Placement(size=50, left=4, top=4, mirror=False, turn=0.0, similarity=1.0)
        >>> there = Placement(size=50, left=12, top=4, mirror=False, turn=0.0, similarity=1.0)
        >>> visibly_apart(here, there), visibly_apart(here, here)
        (True, False)
    """
    x, y = ((place.left + place.size / 2, place.top + place.size / 2) for place in (first, second))
    moved = max(abs(a - b) for a, b in zip(x, y, strict=True)) >= PLACE
    sizes = sorted((first.size, second.size))
    return (
        moved or sizes[1] >= SIZE * sizes[0] or first.mirror != second.mirror or abs(first.turn - second.turn) >= TURN
    )


def apart(placements: Sequence[Placement]) -> int:
    """How many of the placements are visibly apart from all that were counted before them."""
    counted: list[Placement] = []
    for placement in placements:
        if all(visibly_apart(placement, other) for other in counted):
            counted.append(placement)
    return len(counted)


def concepts(pipe: ImagePipeline, names: Sequence[str], seeds: list[int], options: dict[str, Any]) -> Iterator[Any]:
    """Draws every concept on a colour; yields name, colour and pictures."""
    for number, name in enumerate(names):
        colour = list(COLOURS)[number % len(COLOURS)]
        yield name, colour, pipe.generate(f"{name} on a {colour} background", seeds=seeds, **options)


def halves(picture: Image.Image) -> tuple[Image.Image, Image.Image]:
    """The left and the right square of a wide picture."""
    return picture.crop((0, 0, SIDE, SIDE)), picture.crop((SIDE, 0, 2 * SIDE, SIDE))


def single(pipe: ImagePipeline, names: Sequence[str], seeds: list[int], options: dict[str, Any], out: Path) -> Any:
    """Nearest and background of the core concepts, and which concepts are missed."""
    nearest, right, missed, drawn = [], [], {}, []
    for name, colour, pictures in concepts(pipe, names, seeds, options):
        ranks = [fidelity.rank(picture, name) for picture in pictures]
        nearest += [rank == 1 for rank in ranks]
        right += [fidelity.prompt_fidelity(picture, colour) for picture in pictures]
        if max(ranks) > 1:
            missed[name] = ranks
        drawn += pictures
    contact_sheet(drawn, columns=8 * len(seeds)).save(out / "concepts.png")
    return {"nearest": mean(nearest), "background": mean(right), "missed": missed}


def eight(pipe: ImagePipeline, options: dict[str, Any], out: Path) -> Any:
    """Of 8 seeds of each sided thing, how many are visibly apart."""
    found, drawn = {}, []
    for name in SIDED:
        pictures = pipe.generate(f"{name} on a blue background", seeds=list(range(8)), **options)
        found[name] = apart(fidelity.placements(pictures, name, "blue"))
        drawn += pictures
    contact_sheet(drawn, columns=8, row_labels=list(SIDED)).save(out / "eight.png")
    return {"apart": mean(found.values()), "least apart": min(found.values()), "apart of each": found}


def pairs(pipe: ImagePipeline, seeds: list[int], options: dict[str, Any], out: Path) -> Any:
    """How many wide pictures show both things, each in its half."""
    both, drawn = [], []
    for number, (left, right) in enumerate(PAIRS):
        colour = list(COLOURS)[number % len(COLOURS)]
        prompt = f"{left} and {right} on a {colour} background"
        pictures = pipe.generate(prompt, seeds=seeds, width=2 * SIDE, height=SIDE, **options)
        both += [
            [fidelity.rank(*pair) for pair in zip(halves(picture), (left, right), strict=True)] for picture in pictures
        ]
        drawn += pictures
    contact_sheet(drawn, columns=len(seeds), row_labels=[" and ".join(pair) for pair in PAIRS]).save(out / "pairs.png")
    return {"pairs": mean(ranks == [1, 1] for ranks in both)}


def mean(values: Any) -> float:
    """The mean of numbers or truths."""
    values = list(values)
    return sum(values) / len(values)


def main() -> None:
    """Draws, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="emoji", help="the packaged one, or a pipeline's folder")
    parser.add_argument("--seeds", type=int, default=4, help="of every concept and pair")
    parser.add_argument("--concepts", type=int, default=None, help="how many, evenly chosen; None: all")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-base"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    names = core_names()[:: max(1, len(core_names()) // given.concepts)] if given.concepts else core_names()
    pipe, begin, seeds = ImagePipeline.open(given.base), time.perf_counter(), list(range(given.seeds))
    options = {"guidance": given.guidance, "steps": given.steps, "batch_size": 8}
    figures = {"base": str(given.base), "concepts": len(names), "seeds": given.seeds, "guidance": given.guidance}
    for part in (
        single(pipe, names, seeds, options, given.out),
        eight(pipe, options, given.out),
        pairs(pipe, seeds, options, given.out),
    ):
        figures |= part
    figures["seconds"] = round(time.perf_counter() - begin)
    (given.out / "base.json").write_text(json.dumps(figures, indent=2))
    for name, value in figures.items():
        print(f"{name:14s} {value:.3f}" if isinstance(value, float) else f"{name:14s} {value}")


if __name__ == "__main__":
    main()
