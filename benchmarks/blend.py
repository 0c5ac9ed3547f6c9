"""A subject and a style in one picture: ``python -m benchmarks.blend [--steps N] [--out FOLDER]``.

Teaches the embedded base a robot (six Noto drawings, with a prior that keeps the base's other things) and a style
(24 Twemoji drawings of things that the base draws in Noto's way), blends the two adapters at 0.8 and 0.6, and measures
what is left of each:

* *subject*: fidelity of "a photo of sks robot on a C background" to the true robot (:mod:`studio.fidelity`);
* *style*: ``(s(x) - s(base)) / (s(VAE(truth)) - s(base))`` where s is the similarity of "twemoji style, THING on a C
  background" to Twemoji's drawing of the thing, on colours that its training picture did not have;
* how far baked and live pictures are apart, per pixel.

Writes ``blend.png``: base, each adapter alone, both.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from studio import fidelity
from studio.families.emoji_world import COLOURS, INSTANCE_FOLDER, STYLE_FOLDER
from studio.pipelines import ImagePipeline, contact_sheet
from studio.trainers import DreamBooth, Style, train

SUBJECT = "robot"
TRIGGER = "twemoji style"
# what the subject's adapter shall leave alone (prior "self"): its class, and a few of the base's other things
KEPT = (
    f"a photo of {SUBJECT}",
    "a photo of tiger",
    "a photo of rocket on a green background",
    "a photo of banana on a purple background",
    "a photo of ghost on a red background",
    "a photo of umbrella on a blue background",
)
BLENDS = {
    "base": {},
    "subject 1.0": {"subject": 1.0},
    "style 1.0": {"style": 1.0},
    "subject 0.8, style 0.6": {"subject": 0.8, "style": 0.6},
}
UNSEEN = ("red", "blue", "green", "purple")
THINGS = ("cat face", "pizza", "house", "owl", "cupcake", "fox")


def drawing(thing: str) -> Image.Image:
    """Twemoji's drawing of a thing, cut out of its training picture: what differs from the background is opaque."""
    for caption in sorted(STYLE_FOLDER.glob("*.txt")):
        name, _, rest = caption.read_text().strip().partition(" on a ")
        if name == thing:
            picture = np.asarray(Image.open(caption.with_suffix(".png")).convert("RGB"))
            away = np.abs(picture.astype(int) - np.array(COLOURS[rest.removesuffix(" background")])).max(-1)
            return Image.fromarray(np.dstack([picture, np.where(away > 12, 255, 0).astype(np.uint8)]))
    raise SystemExit(f"the style set has no {thing}")


def trained_colour(thing: str) -> str:
    """The background of a thing's training picture."""
    captions = [file.read_text().strip().partition(" on a ") for file in STYLE_FOLDER.glob("*.txt")]
    return next(rest.removesuffix(" background") for name, _, rest in captions if name == thing)


def style_fidelity(
    pictures: list[Image.Image], base: list[Image.Image], prompts: list[tuple[str, str]], vae: Any
) -> float:
    """Mean over the pictures; 0 is the base, 1 Twemoji's own drawing through the autoencoder."""
    found = []
    for picture, before, (thing, colour) in zip(pictures, base, prompts, strict=True):
        cut = drawing(thing)
        truth = Image.alpha_composite(Image.new("RGBA", (64, 64), (*COLOURS[colour], 255)), cut).convert("RGB")
        images = [picture, before, fidelity.vae_round_trip([truth], vae)[0]]
        reached, low, high = fidelity.similarity(images, cut, colour)
        found.append((reached - low) / (high - low))
    return statistics.fmean(found)


def main() -> None:
    """Trains, blends, measures, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=None, help="None: the recipes'")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-blend"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    subject = DreamBooth(
        base="emoji", instance_images=INSTANCE_FOLDER / SUBJECT, instance_prompt=f"a photo of sks {SUBJECT}",
        class_prompt=KEPT, prior="self", prior_rows=2, preview_prompts=(),
    )  # fmt: skip
    style = Style(base="emoji", images=STYLE_FOLDER, trigger=TRIGGER, preview_prompts=())
    pipe = ImagePipeline.open("emoji")
    for name, task in {"subject": subject, "style": style}.items():
        run = train(task, steps=options.steps, seed=options.seed, output=options.out / name, quiet=False)
        pipe.load(run.adapter, name=name)

    robots = [f"a photo of sks {SUBJECT} on a {colour} background" for colour in UNSEEN]
    places = [(thing, next(c for c in UNSEEN if c != trained_colour(thing))) for thing in THINGS]
    things = [f"{TRIGGER}, {thing} on a {colour} background" for thing, colour in places]
    both = [f"{TRIGGER}, a photo of sks {SUBJECT} on a blue background"]
    drawn = {
        name: pipe.generate([*robots, *both, *things], blend=blend, seeds=[7], guidance=options.guidance, batch_size=4)
        for name, blend in BLENDS.items()
    }
    vae, count = pipe.pipe.vae, len(robots)
    for name, pictures in drawn.items():
        subject_score = statistics.fmean(
            fidelity.subject_fidelity([picture], SUBJECT, colour, base_images=[before], vae=vae)[0]
            for picture, before, colour in zip(pictures, drawn["base"], UNSEEN, strict=False)
        )
        style_score = style_fidelity(pictures[count + 1 :], drawn["base"][count + 1 :], places, vae)
        print(f"{name:24s} subject {subject_score:6.3f}   style {style_score:6.3f}")

    live = drawn["subject 0.8, style 0.6"]
    pipe.bake(BLENDS["subject 0.8, style 0.6"])
    baked = pipe.generate([*robots, *both, *things], seeds=[7], guidance=options.guidance, batch_size=4)
    pipe.unbake()
    apart = max(int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max()) for a, b in zip(live, baked, strict=True))
    print(f"baked and live pictures differ by at most {apart}/255 in any pixel")
    labels = [f"robot, {colour}" for colour in UNSEEN] + ["robot, styled"] + [f"{t}, {c}" for t, c in places]
    sheet = contact_sheet(
        [picture for pictures in drawn.values() for picture in pictures], columns=len(labels), column_labels=labels,
        row_labels=list(drawn), title="a subject and a style",
    )  # fmt: skip
    sheet.save(options.out / "blend.png")
    print(f"picture: {options.out / 'blend.png'}")


if __name__ == "__main__":
    main()
