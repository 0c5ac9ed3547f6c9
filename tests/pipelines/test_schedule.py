"""Strengths that change while a picture is denoised: what they draw, alone and in a batch, in every family."""

from __future__ import annotations

import json

import pytest
import torch

import studio
from studio.adapters import Strength, When
from studio.adapters.contract.schedule import Schedule
from studio.adapters.contract.strength import as_strength
from studio.families import open_base
from studio.pipelines import ImagePipeline, Wanted, regenerate
from studio.pipelines.moment import Moment, moments
from studio.pipelines.request import Request
from studio.pipelines.sample import draw
from tests.support.tiny_pipelines import BUILDERS, build

SWAP = {
    "dog": Strength(schedule=[(0.5, 1.0), (0.5, 0.0)]),
    "ink": Strength(schedule=[(0.5, 0.0), (0.5, 1.0)]),
}


def adapted(pipe, parts=None):
    for seed, name in enumerate(("dog", "ink")):
        studio.attach(pipe, studio.LoRA(rank=4, targets="attention"), name=name, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for key, tensor in studio.state(pipe, name).items():
            if key.endswith("up"):  # away from the start, where it changes nothing
                tensor.data.normal_(0, 0.1, generator=generator)
    studio.blend(pipe, {})
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return ImagePipeline(open_base(adapted(ImagePipeline.open("emoji")).pipe))


def test_a_swap_at_half_is_each_alone_before_and_behind_it(pipe, monkeypatch):
    """Step by step: the first half is that of one adapter, the second goes on with the other."""
    base, seen = pipe.base, []
    predict = base.family.predict

    def watched(pipe_, noisy, timesteps, conditioning):
        then = When(len(seen) / 6, 0.0)
        seen.append([name for name, info in studio.adapters(pipe_).items() if as_strength(info.strength).then(then)])
        return predict(pipe_, noisy, timesteps, conditioning)

    family = type(base.family)(**{**vars(base.family), "predict": watched})
    monkeypatch.setitem(base.__dict__, "family", family)
    (swapped,) = pipe.generate("tiger", blend=SWAP, steps=6, seeds=3)
    assert seen == [["dog"]] * 3 + [["ink"]] * 3
    alone = [pipe.generate("tiger", blend={name: 1.0}, steps=6, seeds=3)[0] for name in ("dog", "ink")]
    assert swapped.tobytes() not in [one.tobytes() for one in alone]


def test_a_constant_schedule_is_the_number(pipe):
    (number,) = pipe.generate("tiger", blend={"dog": 0.6}, steps=3)
    (constant,) = pipe.generate("tiger", blend={"dog": Strength(1.2, schedule=[(0, 0.5)])}, steps=3)
    assert constant.tobytes() == number.tobytes()


def test_a_scheduled_picture_says_so_and_is_made_again(pipe):
    (picture,) = pipe.generate("tiger <ink:0.4>", blend=None, steps=4)
    (picture,) = pipe.generate("tiger", blend=SWAP, steps=4)
    told = {use["name"]: use["strength"] for use in json.loads(picture.info["studio"])["adapters"]}
    assert told["dog"] == {"value": 1.0, "schedule": {"over": "progress", "points": [[0.5, 1.0], [0.5, 0.0]]}}
    assert "<lora:dog:1@0.5,0@0.5:1@0.5,0@0.5>" in picture.info["parameters"]
    assert regenerate(picture, pipe=pipe).tobytes() == picture.tobytes()


@pytest.mark.parametrize(
    "schedule",
    [
        {"over": "progress", "points": []},
        {"over": "time", "points": [[0, 1]]},
        {"over": "progress", "points": [[0.5, 1], [0.1, 0]]},
        {"over": "noise", "points": [[0.1, 1], [0.5, 0]]},
        {"over": "progress", "points": [[0.5, "1"]]},
        {"over": "progress", "points": [[2, 1]]},
        7,
    ],
)
def test_a_damaged_schedule_is_no_schedule(pipe, schedule):
    (picture,) = pipe.generate("tiger", blend=SWAP, steps=1)
    content = json.loads(picture.info["studio"])
    content["adapters"][0]["strength"]["schedule"] = schedule
    picture.info["studio"] = json.dumps(content)
    with pytest.raises(studio.errors.BadFile, match="damaged"):
        regenerate(picture, pipe=pipe)


def test_noise_means_the_same_for_every_scheduler(pipe):
    """σ / (α + σ) of the base's own table; it falls from step to step."""
    alphas = pipe.pipe.scheduler.alphas_cumprod.double()
    times = torch.tensor([901, 500, 101])
    expected = [(1 / (1 + (alphas[t] / (1 - alphas[t])).sqrt())).item() for t in times]
    found = [moment for moment, _ in moments(pipe.base, times)]
    assert [one.noise for one in found] == pytest.approx(expected, abs=1e-6)
    assert [one.progress for one in found] == pytest.approx([0, 1 / 3, 2 / 3])
    assert found[0] == Moment(0, 3, found[0].noise)


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_family_draws_a_schedule_alike_alone_and_in_a_batch(kind):
    pipe = adapted(build(kind))
    base = open_base(pipe)
    schedule = Schedule(((0.2, 0.0), (0.8, 1.5)))
    side = 2 * base.multiple
    sizes = {"width": side, "height": side}
    blends = [{"dog": Strength(schedule=schedule)}, {"dog": Strength(schedule=schedule), "ink": 0.5}]
    asked = [
        Request(prompt="a dog", seed=n, steps=3, guidance=1.0, embedded=base.defaults.embedded, blend=blend, **sizes)
        for n, blend in enumerate(blends)
    ]
    alone = [draw(base, [one], rows=1)[0][0] for one in asked]
    fixed = draw(base, [Request(**{**vars(asked[0]), "blend": {"dog": 1.0}})], rows=1)[0][0]
    assert not torch.allclose(alone[0], fixed, atol=1e-3)  # it acts, and not as the whole of it
    made = ImagePipeline(base).make([Wanted(prompt="a dog", seed=n, steps=3, guidance=1.0, blend=b, width=side,
                                            height=side) for n, b in enumerate(blends)], batch_size=2)  # fmt: skip
    for picture in made:
        levels = torch.tensor(list(picture.image.tobytes())).float()
        pixels = ((alone[picture.index].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).flatten()
        assert (levels - pixels).abs().max() <= 1
