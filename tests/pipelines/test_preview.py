"""What a picture looks like while it is drawn."""

from __future__ import annotations

import numpy
import pytest
import torch

from studio.errors import BadConfig
from studio.families import FAMILIES
from studio.families.process import PREDICTIONS, Diffusion, Flow
from studio.pipelines import ImagePipeline
from studio.pipelines.preview import colours_of
from tiny_pipelines import BUILDERS, build

STEPS = 6


@pytest.fixture(scope="module")
def emoji():
    return ImagePipeline.open("emoji")


def watched(pipe, *args, **options):
    seen = []
    images = pipe.generate(*args, on_preview=lambda *one: seen.append(one), **options)
    return images, seen


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_family_has_previews_that_change_no_bit(kind):
    pipe = ImagePipeline.open(build(kind))
    options = {"steps": 2, "seeds": [5], "width": 64, "height": 64}
    (plain,) = pipe.generate("a dog", **options)
    (image,), seen = watched(pipe, "a dog", **options)
    assert image.tobytes() == plain.tobytes() and image.info == plain.info
    assert [(done, total) for done, total, _ in seen] == [(1, 2), (2, 2)]
    assert all(one.size == (64, 64) and one.mode == "RGB" for *_, one in seen)
    assert len({one.tobytes() for *_, one in seen}) == 2, "it moves on"


def test_the_last_preview_is_like_the_picture(emoji):
    """As far as three colours per cell can show it: the picture, pooled to its cells."""
    prompts = ["tiger on a blue background", "rocket on a yellow background", "leaf on a red background"]
    images, seen = watched(emoji, prompts, seeds=3, steps=STEPS, batch_size=3)
    for place, image in enumerate(images):
        errors = [difference(one, image, 8) for *_, one in seen if one.info["index"] == place]
        others = [difference(images[other], image, 8) for other in range(3) if other != place]
        assert errors[-1] < 0.1 < errors[0]
        assert errors[-1] < min(others) / 2


def difference(one, other, cells: int) -> float:
    pooled = [numpy.asarray(picture.resize((cells, cells), 4), dtype=float) / 255 for picture in (one, other)]
    return float(abs(pooled[0] - pooled[1]).mean())


def test_each_picture_of_a_batch_is_shown_by_its_place(emoji):
    prompts = ["tiger on a blue background", "rocket on a yellow background"]
    images, seen = watched(emoji, prompts, seeds=[1, 2], steps=STEPS, batch_size=3, preview_every=4)
    assert [one.info["index"] for *_, one in seen] == [0, 1, 2, 0, 1, 2, 3, 3]
    assert [done for done, _, _ in seen] == [4] * 3 + [6] * 3 + [10, 12]
    assert {total for _, total, _ in seen} == {12}
    last = {one.info["index"]: one for *_, one in seen}
    for place in range(4):
        nearest = min(range(4), key=lambda other: difference(last[place], images[other], 8))
        assert nearest // 2 == place // 2, "it is of the same prompt"


def test_a_scheduler_of_second_order_shows_each_step_once(emoji):
    _, seen = watched(emoji, "tiger", steps=5, scheduler="heun")
    assert [done for done, _, _ in seen] == [1, 2, 3, 4, 5]


def test_the_map_is_fitted_once_and_its_own(emoji):
    first = colours_of(emoji.base)
    assert colours_of(emoji.base) is first
    again = colours_of(ImagePipeline.open("emoji").base)
    assert again is not first and torch.equal(again.weight, first.weight)
    assert first.weight.shape == (FAMILIES["sd1"].channels(emoji.pipe) + 1, 3)


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_a_right_prediction_implies_the_picture(predicts):
    """x = α x₀ + σ n and the target of the same row, by the formulas of the module's docstring."""
    generator = torch.Generator().manual_seed(0)
    x, n = (torch.randn(1, 4, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    alphas = torch.linspace(0.99, 0.02, 5, dtype=torch.float64)
    process = Flow(1000) if predicts == "flow_prediction" else Diffusion(alphas, predicts)
    for a in (0.9, 0.5, 0.2):
        s = 1 - a if predicts == "flow_prediction" else (1 - a * a) ** 0.5
        target = PREDICTIONS[predicts].target(x, n, torch.tensor(a), torch.tensor(s))
        assert torch.allclose(process.picture(a * x + s * n, target, s / (a + s)), x, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"on_preview": 3}, r"on_preview=3 is called as on_preview\(done, total, image\)"),
        ({"on_step": 3}, r"on_step=3 is called as on_step\(done, total\)"),
        ({"preview_every": 0}, "preview_every=0: give a whole number"),
        ({"preview_every": 1.5}, "preview_every=1.5: give a whole number"),
    ],
)
def test_what_cannot_be_called_is_refused(emoji, options, reason):
    with pytest.raises(BadConfig, match=reason):
        emoji.generate("tiger", **options)


def test_an_error_of_the_callers_comes_through_and_the_base_is_as_it_was(emoji):
    (before,) = emoji.generate("tiger", steps=2)
    with pytest.raises(ZeroDivisionError):
        emoji.generate("tiger", steps=2, on_preview=lambda done, total, image: 1 / 0)
    assert emoji.generate("tiger", steps=2)[0].tobytes() == before.tobytes()
