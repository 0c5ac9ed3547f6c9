"""Upscale and redraw: the second pass is a picture drawn from a picture."""

from __future__ import annotations

import json

import numpy
import pytest
from PIL import Image

from studio.errors import BadConfig, BadFile
from studio.pipelines import ImagePipeline, Wanted, regenerate
from studio.pipelines.parameters import read_parameters
from studio.pipelines.request import Request
from studio.pipelines.second_pass import second_request
from studio.pipelines.start import first_step
from studio.pipelines.upscale import Upscale
from tiny_pipelines import BUILDERS, build

TWICE = {"upscale": 2.0, "upscale_strength": 0.5}
FAST = {"steps": 3}


@pytest.fixture(scope="module")
def emoji():
    return ImagePipeline.open("emoji")


ALWAYS = ("sd1", "sd3", "flux1", "sana")  # each process and layout of latents; the others are like one of them
KINDS = [kind if kind in ALWAYS else pytest.param(kind, marks=pytest.mark.slow) for kind in BUILDERS]


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_draws_twice_and_again_from_its_text(kind):
    pipe = ImagePipeline.open(build(kind))
    options = {"steps": 2, "seeds": [5], "width": 64, "height": 64, "upscale": 1.5, "upscale_strength": 0.6}
    (image,) = pipe.generate("a dog", **options)
    assert image.size == (96, 96)
    again = regenerate(image, pipe=pipe)
    assert again.tobytes() == image.tobytes() and again.info == image.info


def test_it_is_the_picture_scaled_and_drawn_from(emoji):
    """As by hand: 3 steps of the second pass are the last half of 6."""
    (first,) = emoji.generate("tiger", seeds=4, **FAST)
    larger = Image.Image.resize(first, (128, 128), Image.Resampling.LANCZOS)
    (by_hand,) = emoji.generate("tiger", seeds=4, steps=6, image=larger, strength=0.5, width=128, height=128)
    (image,) = emoji.generate("tiger", seeds=4, **FAST, **TWICE)
    assert image.tobytes() == by_hand.tobytes()
    assert image.tobytes() == emoji.generate("tiger", seeds=4, **FAST, upscale=2, upscale_steps=3)[0].tobytes()
    (other,) = emoji.generate("tiger", seeds=4, **FAST, **TWICE, upscale_steps=2)
    assert other.tobytes() != image.tobytes()


@pytest.mark.parametrize("kind", ["sd1", "flux1"])  # ε rounds the steps that are done, a flow those that are not
def test_it_does_as_many_steps_as_are_asked_for_near_its_strength(kind):
    pipe = ImagePipeline.open(build(kind))
    for strength in (0.05, 0.1, 0.3, 0.45, 0.5, 0.77, 0.999, 1):
        for steps in (1, 2, 3, 7, 20):
            upscale = Upscale(factor=2.0, strength=strength, steps=steps)
            request = Request(prompt="a", width=64, height=64, steps=9, upscale=upscale)
            second = second_request(pipe.base, request)
            assert second.steps - first_step(pipe.base, second.given, second.steps) == steps
            assert abs(second.steps - steps / strength) <= max(1, 0.5 / strength)


def test_its_texts_say_so(emoji):
    (image,) = emoji.generate("tiger", seeds=4, **FAST, upscale=1.5, upscale_strength=0.4, upscale_steps=2)
    content = json.loads(image.info["studio"])
    assert content["upscale"] == {"factor": 1.5, "strength": 0.4, "steps": 2}
    assert (content["width"], content["height"], image.size) == (64, 64, (96, 96))
    fields = read_parameters(image.info["parameters"]).fields
    said = {name: fields[name] for name in ("Size", "Denoising strength", "Hires upscale", "Hires steps")}
    assert said == {"Size": "64x64", "Denoising strength": "0.4", "Hires upscale": "1.5", "Hires steps": "2"}
    assert fields["Hires upscaler"] == "Lanczos"
    assert regenerate(image).tobytes() == image.tobytes()


@pytest.mark.parametrize("scheduler", ["dpm++ 2m sde karras", "heun"])
def test_stochastic_ones_and_those_of_second_order_are_made_again_and_together(emoji, scheduler):
    options = {"steps": 2, "scheduler": scheduler, "upscale": 1.25}
    images = emoji.generate("tiger", seeds=[1, 2, 3], batch_size=2, **options)
    assert regenerate(images[1], pipe=emoji).tobytes() == images[1].tobytes()
    assert emoji.generate("tiger", seeds=3, batch_size=2, **options)[0].tobytes() == images[2].tobytes()


def test_some_of_a_list_are_drawn_twice_and_all_know_their_places(emoji):
    told, shown = [], []
    wanted = [
        Wanted(prompt="tiger", seed=1, steps=2),
        Wanted(prompt="rocket", seed=2, steps=2, upscale=1.25),
        Wanted(prompt="rocket", seed=3, steps=2),
        Wanted(prompt="rocket", seed=4, steps=2, upscale=1.25),
    ]
    made = list(
        emoji.make(
            wanted, on_step=lambda *one: told.append(one), on_preview=lambda *one: shown.append(one), batch_size=2
        )
    )
    assert {one.index: one.image.size[0] for one in made} == {0: 64, 1: 80, 2: 64, 3: 80}
    assert [one.index for one in made[:2]] == [0, 2]
    for one in made:
        alone = next(emoji.make([wanted[one.index]], batch_size=2)).image
        assert alone.tobytes() == one.image.tobytes() and alone.info == one.image.info
    assert told == sorted(told) and {total for _, total in told} == {told[-1][0]}
    assert [image.info["index"] for *_, image in shown if image.size[0] == 80] == [1, 3] * 2


def test_a_mask_holds_in_the_second_pass(emoji):
    given, mask = Image.new("RGB", (64, 64), (0, 90, 200)), Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    (image,) = emoji.generate("tiger", seeds=1, steps=4, image=given, mask=mask, strength=1.0, **TWICE)
    drawn, kept = (numpy.asarray(image, dtype=float)[:, part] - (0, 90, 200) for part in (slice(40), slice(88, 128)))
    assert 2 * abs(kept).mean() < abs(drawn).mean()
    assert regenerate(image, pipe=emoji, image=given, mask=mask).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"upscale": 1.0}, "upscale=1.0: how much larger"),
        ({"upscale": float("nan")}, "upscale=nan: how much larger"),
        ({"upscale": "2"}, "upscale='2': how much larger"),
        ({"upscale": 17}, "upscale=17: how much larger"),
        ({"upscale": True}, "upscale=True: how much larger"),
        ({"upscale": 16, "width": 1024}, "makes 16384 x 1024 pixels"),
        ({"upscale": 2, "upscale_strength": 0}, "upscale_strength=0: "),
        ({"upscale": 2, "upscale_strength": 1.1}, "upscale_strength=1.1: "),
        ({"upscale": 2, "upscale_steps": 0}, "upscale_steps=0: "),
        ({"upscale": 2, "upscale_steps": 2.5}, "upscale_steps=2.5: "),
        ({"upscale_steps": 2}, "upscale_steps is given without a second pass"),
        ({"upscale_strength": 0.5}, "upscale_strength is given without a second pass"),
        ({"upscale": 2, "width": "64"}, "width='64'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_drawn(emoji, options, reason):
    def never(done, total):
        raise AssertionError("it draws")

    with pytest.raises(BadConfig, match=reason):
        emoji.generate("tiger", on_step=never, **options)


def test_more_steps_than_a_scheduler_has_are_refused(emoji):
    with pytest.raises(BadConfig, match="number of steps must be a whole number from 1 to 1000"):
        emoji.generate("tiger", steps=2, upscale=2, upscale_strength=0.001)


@pytest.mark.parametrize(
    "change", ['{"factor": 1}', '{"factor": 2}', "7", '{"factor": 2, "strength": 0.5, "steps": 0}']
)
def test_a_damaged_text_is_a_sentence(emoji, change):
    (image,) = emoji.generate("tiger", steps=1)
    image.info["studio"] = json.dumps(json.loads(image.info["studio"]) | {"upscale": json.loads(change)})
    with pytest.raises(BadFile, match="the 'studio' text of the picture is damaged"):
        regenerate(image, pipe=emoji)
