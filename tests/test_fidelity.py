"""The fidelity measures: what must win wins, what must lose loses."""

from __future__ import annotations

import numpy
import pytest
from PIL import Image

from studio import fidelity
from studio.errors import BadConfig, UnknownName
from studio.families import open_base
from studio.families.emoji_world import INSTANCE_FOLDER, STYLE_FOLDER
from tiny import noise_for

SUBJECTS = ("robot", "teddy bear", "penguin", "hamburger")


@pytest.fixture(scope="module")
def pipe():
    return open_base("emoji").pipe


def draw(pipe, prompt: str, seeds: range) -> list[Image.Image]:
    noise = noise_for(pipe, *seeds)
    return pipe([prompt] * len(seeds), latents=noise, num_inference_steps=12, guidance_scale=5.0).images


def silhouette(name: str, colour: str, size: int) -> Image.Image:
    """The subject's outline, filled with its mean colour."""
    drawing = numpy.asarray(fidelity.emoji_image(name)).astype(float)
    mean = (drawing[..., :3] * drawing[..., 3:]).sum((0, 1)) / drawing[..., 3].sum()
    flat = numpy.concatenate([numpy.broadcast_to(mean, (64, 64, 3)), drawing[..., 3:]], -1).round().astype(numpy.uint8)
    layer = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    layer.paste(Image.fromarray(flat).resize((size, size), Image.Resampling.BOX), ((64 - size) // 2,) * 2)
    return Image.alpha_composite(Image.new("RGBA", (64, 64), (*fidelity.COLOURS[colour], 255)), layer).convert("RGB")


@pytest.mark.parametrize(("size", "colour", "turn"), [(64, "red", 0), (50, "blue", -9)])
@pytest.mark.parametrize("name", SUBJECTS)
def test_the_truth_wins_the_rank_and_a_silhouette_loses_it(pipe, name, size, colour, turn):
    truth = fidelity.composite(name, colour, size, left=(64 - size) // 3, turn=turn, mirror=bool(turn))
    assert fidelity.rank(truth, name) == 1
    assert fidelity.rank(fidelity.vae_round_trip([truth], pipe.vae)[0], name) == 1
    # 9 for the robot, more than 300 for the others: a robot turned a little correlates with its own outline
    flat = silhouette(name, colour, size)
    assert fidelity.rank(flat, name) > 5
    assert fidelity.rank(fidelity.vae_round_trip([flat], pipe.vae)[0], name) > 5


def test_another_subject_of_the_same_kind_does_not_pass_for_the_right_one():
    for shown, asked in (("teddy bear", "bear"), ("penguin", "bird"), ("robot", "grinning face")):
        picture = fidelity.composite(shown, "green", 56)
        assert fidelity.nearest_emoji(picture, count=1)[0][0] == shown
        assert fidelity.rank(picture, asked) > 1


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_base_scores_nothing_and_the_vae_scores_one(pipe, name):
    prompt = f"a photo of sks {name} on a purple background"
    base, again = draw(pipe, prompt, range(0, 4)), draw(pipe, prompt, range(100, 104))
    scores = fidelity.subject_fidelity(again, name, "purple", base_images=base, vae=pipe.vae)
    assert abs(numpy.mean(scores)) < 0.25
    truths = [fidelity.composite(name, "purple", size) for size in (64, 56, 48)]
    best = fidelity.vae_round_trip(truths, pipe.vae)
    scores = fidelity.subject_fidelity(best, name, "purple", base_images=base, vae=pipe.vae)
    assert numpy.mean(scores) == pytest.approx(1, abs=1e-4)


def test_similarity_finds_places_and_sizes_and_sees_the_background():
    for size, left, top in ((64, 0, 0), (52, 4, 8), (40, 20, 2)):
        picture = fidelity.composite("penguin", "pink", size, left=left, top=top)
        assert fidelity.similarity([picture], "penguin", "pink") == [1.0]
        assert fidelity.similarity([picture], "penguin", "green")[0] < 0.97  # the ring around it is pink


@pytest.mark.parametrize(
    ("name", "colour", "size", "left", "top", "mirror", "turn"),
    [
        ("police car", "yellow", 54, 3, 8, True, -5),
        ("tiger", "blue", 37, 27, 0, False, 12.5),
        ("robot", "pink", 64, 0, 0, False, 0),
        ("hamburger", "gray", 42, 18, 21, False, -15),
        ("giraffe", "orange", 47, 0, 17, True, 8.75),
    ],
)
def test_placements_are_found(name, colour, size, left, top, mirror, turn):
    picture = fidelity.composite(name, colour, size, left=left, top=top, mirror=mirror, turn=turn)
    found = fidelity.placements([picture], name, colour)[0]
    at = (found.size, found.left, found.top, found.turn, found.similarity)
    assert at == (size, left, top, turn, 1.0)
    assert found.mirror == mirror or name == "robot"  # which is the same in a mirror
    other = fidelity.placements([picture], "teapot", colour)[0]
    assert other.similarity < 0.95  # 0.94 for a giraffe on orange, which is nearly its colour


def test_prompt_fidelity_sees_every_background_and_fails_a_wrong_one(pipe):
    for name in SUBJECTS:
        pictures = [fidelity.composite(name, colour) for colour in fidelity.COLOURS]
        for picture, colour in zip(fidelity.vae_round_trip(pictures, pipe.vae), fidelity.COLOURS, strict=True):
            assert fidelity.background(picture) == colour
            assert fidelity.prompt_fidelity(picture, colour)
            assert not any(fidelity.prompt_fidelity(picture, other) for other in fidelity.COLOURS if other != colour)


def test_wrong_requests_are_refused():
    picture = fidelity.composite("robot", "red")
    with pytest.raises(UnknownName, match="nearest names are robot"):
        fidelity.composite("robott", "red")
    with pytest.raises(UnknownName, match="no background is called 'mauve'"):
        fidelity.prompt_fidelity(picture, "mauve")
    with pytest.raises(BadConfig, match="32 × 32"):
        fidelity.rank(picture.resize((32, 32)), "robot")
    with pytest.raises(BadConfig, match="none were given"):
        fidelity.subject_fidelity([picture], "robot", "red", base_images=[], vae=None)
    with pytest.raises(BadConfig, match="sizes go from"):
        fidelity.composite("robot", "red", 65)


def test_instance_sets_follow_from_their_arguments_and_are_the_packaged_ones():
    for name in ("robot", "penguin"):
        computed = fidelity.instance_set(name)
        files = sorted((INSTANCE_FOLDER / name).glob("*.png"))
        assert 5 <= len(files) == len(computed) <= 8
        for file, picture in zip(files, computed, strict=True):
            assert Image.open(file).convert("RGB").tobytes() == picture.tobytes()
    boxes = {fidelity.instance_set("teddy bear", seed=3)[i].tobytes() for i in range(6)}
    assert len(boxes) == 6
    assert fidelity.instance_set("teddy bear", seed=4)[0].tobytes() not in boxes
    assert {fidelity.background(p) for p in fidelity.instance_set("hamburger", ("red", "blue"))} == {"red", "blue"}


def test_the_style_set_is_24_captioned_pictures_of_concepts_of_the_base():
    files = sorted(STYLE_FOLDER.glob("*.png"))
    assert len(files) == 24
    for file in files:
        name, _, rest = file.with_suffix(".txt").read_text().strip().partition(" on a ")
        assert name in fidelity.emoji_names()
        assert fidelity.background(Image.open(file)) == rest.removesuffix(" background")


def test_the_kept_out_concepts_of_others_are_not_in_the_package():
    kept = {"unicorn", "jack-o-lantern", "alien monster", "snowman", "sailboat", "cactus", "mushroom", "guitar"}
    assert not kept & set(fidelity.emoji_names())
