"""Pictures from pictures through the door: sizes, what is said about them, making them again, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from studio.errors import BadConfig, BadFile, DoesNotFit, UnknownName
from studio.families.emoji_world import composite
from studio.pipelines import ImagePipeline, regenerate, save_png

FAST = {"steps": 4, "seeds": 3}


@pytest.fixture(scope="module")
def pipe() -> ImagePipeline:
    return ImagePipeline.open("emoji")


def off(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


def test_less_strength_keeps_more_of_the_picture(pipe):
    """The base draws a rocket in the middle; the given one is small and in a corner."""
    rocket = composite("rocket", "blue", 40, left=0, top=0)
    prompt = "rocket on a blue background"
    far = [off(pipe.generate(prompt, image=rocket, strength=s, steps=10, seeds=3)[0], rocket) for s in (0.1, 0.4, 1.0)]
    assert far[0] < 0.5 * far[2] and far[0] < far[1]


def test_a_mask_changes_its_part(pipe):
    rocket, mask = composite("rocket", "blue"), Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    (drawn,) = pipe.generate("pizza on a blue background", image=rocket, mask=mask, strength=1.0, **FAST)
    halves = [off(drawn.crop(box), rocket.crop(box)) for box in ((0, 0, 24, 64), (40, 0, 64, 64))]
    assert halves[0] < 12 and halves[1] > 1.5 * halves[0]


def test_the_size_follows_the_picture(pipe):
    wide = Image.new("RGB", (400, 100), "blue")
    assert pipe.generate("rocket", image=wide, **FAST)[0].size == (128, 32)
    assert pipe.generate("rocket", image=wide, width=64, height=64, **FAST)[0].size == (64, 64)


def test_it_says_what_it_started_from_and_is_made_again(pipe, tmp_path):
    rocket, mask = composite("rocket", "blue"), Image.new("L", (64, 64), 255)
    file = save_png(rocket, tmp_path / "rocket.png")
    (drawn,) = pipe.generate("pizza", image=file, mask=mask, strength=0.5, **FAST)
    said = json.loads(drawn.info["studio"])["start"]
    assert said["strength"] == 0.5 and len(said["image"]) == len(said["mask"]) == 64
    assert "Denoising strength: 0.5" in drawn.info["parameters"]
    assert regenerate(drawn, pipe=pipe, image=file, mask=mask).tobytes() == drawn.tobytes()
    with pytest.raises(UnknownName, match="made from another one; give it too: image="):
        regenerate(drawn, pipe=pipe)
    with pytest.raises(UnknownName, match="give it too: mask="):
        regenerate(drawn, pipe=pipe, image=file)
    with pytest.raises(DoesNotFit, match="another picture or mask"):
        regenerate(drawn, pipe=pipe, image=composite("pizza", "blue"), mask=mask)


def test_equal_rows_are_equal_bits_from_pictures_too(pipe):
    rocket = composite("rocket", "blue")
    together = pipe.generate(["pizza", "tiger"], image=rocket, steps=4, seeds=[1], batch_size=2)
    (alone,) = pipe.generate("tiger", image=rocket, steps=4, seeds=[1], batch_size=2)
    assert alone.tobytes() == together[1].tobytes()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"strength": 0.5}, BadConfig, "strength is given without a picture"),
        ({"mask": Image.new("L", (64, 64))}, BadConfig, "mask is given without a picture"),
        (
            {"image": Image.new("RGB", (64, 64)), "mask": Image.new("L", (9, 9))},
            BadConfig,
            "9 x 9 pixels and the picture",
        ),
        ({"image": Image.new("RGB", (64, 64)), "strength": 0}, BadConfig, "above 0 and at most 1"),
        ({"image": Image.new("RGB", (64, 64)), "strength": "much"}, BadConfig, "above 0 and at most 1"),
        ({"image": "nowhere.png"}, BadFile, "there is no picture nowhere.png"),
        ({"image": 5}, BadFile, "is no path"),
        ({"image": Image.new("RGB", (64, 64)), "width": -8}, BadConfig, "give whole numbers from 8 on"),
    ],
)
def test_impossible_starts_are_refused(pipe, change, error, message):
    with pytest.raises(error, match=message):
        pipe.generate("rocket", **FAST, **change)


def test_from_the_command_line(tmp_path):
    from click.testing import CliRunner

    from studio.cli import main

    file = save_png(composite("rocket", "blue"), tmp_path / "rocket.png")
    words = ["generate", "emoji", "pizza", "--image", str(file), "--strength", "0.5", "--steps", "2"]
    done = CliRunner().invoke(main, [*words, "-o", str(tmp_path / "out"), "--quiet"])
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "out" / "0000.png") as drawn:
        assert json.loads(drawn.text["studio"])["start"]["strength"] == 0.5
    refused = CliRunner().invoke(main, ["generate", "emoji", "pizza", "--strength", "0.5", "-o", str(tmp_path / "out")])
    assert refused.exit_code == 2 and "give image too" in refused.output


def test_sixteen_bits_and_transparency_are_seen_as_a_viewer_shows_them(pipe, tmp_path):
    """Pillow's own conversion makes the first white and shows what lies under the second."""
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    plain = Image.fromarray(np.round(ramp / 257).astype(np.uint8)).convert("RGB")
    made = [pipe.generate("rocket", image=start, **FAST)[0] for start in (tmp_path / "deep.png", plain)]
    assert made[0].tobytes() == made[1].tobytes()
    hidden = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    made = [pipe.generate("rocket", image=start, **FAST)[0] for start in (hidden, Image.new("RGB", (64, 64), "white"))]
    assert made[0].tobytes() == made[1].tobytes()


def test_numbers_of_numpy_and_sides_beyond_the_limit(pipe):
    rocket = composite("rocket", "blue")
    one = pipe.generate("rocket", image=rocket, strength=np.float32(0.5), width=np.int64(64), height=64, **FAST)[0]
    assert one.tobytes() == pipe.generate("rocket", image=rocket, strength=0.5, **FAST)[0].tobytes()
    with pytest.raises(BadConfig, match="side"):  # and no picture of that size is made first
        pipe.generate("rocket", image=rocket, width=10**9, height=64, **FAST)
