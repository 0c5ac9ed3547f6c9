"""Pictures one by one as they come, seeds that are drawn, a negative prompt for each prompt, and mixed wishes."""

from __future__ import annotations

import json

import pytest

from studio.errors import BadConfig
from studio.pipelines import ImagePipeline, Wanted, regenerate


@pytest.fixture(scope="module")
def pipe():
    return ImagePipeline.open("emoji")


def told(image):
    return json.loads(image.info["studio"])


@pytest.mark.parametrize("none", [None, -1])
def test_a_seed_that_is_not_given_is_drawn_and_told(pipe, none):
    first, second = (pipe.generate("tiger", seeds=none, steps=1)[0] for _ in range(2))
    assert told(first)["seed"] != told(second)["seed"]
    assert f"Seed: {told(first)['seed']}" in first.info["parameters"]
    assert regenerate(first, pipe=pipe).tobytes() == first.tobytes()


def test_one_negative_prompt_for_each_prompt(pipe):
    both = pipe.generate(["tiger", "rocket"], negative=["blue", None], seeds=[0, 1], steps=2)
    assert [told(one)["negative"] for one in both] == ["blue", "blue", "", ""]
    assert both[1].tobytes() == pipe.generate("tiger", negative="blue", seeds=1, steps=2)[0].tobytes()
    assert both[3].tobytes() == pipe.generate("rocket", seeds=1, steps=2)[0].tobytes()
    with pytest.raises(BadConfig, match="3 negative prompts for 2 prompts"):
        pipe.generate(["tiger", "rocket"], negative=["a", "b", "c"], steps=1)


def test_pictures_come_one_by_one_and_all_is_checked_before_the_first(pipe):
    seen = []
    coming = pipe.generate_iter("tiger", seeds=[0, 1], steps=2, on_step=lambda done, total: seen.append(done))
    first = next(coming)
    assert (first.index, seen) == (0, [1, 2])
    assert [one.index for one in coming] == [1]
    with pytest.raises(BadConfig, match="steps"):
        pipe.generate_iter("tiger", seeds=[0], steps=0)  # no picture is asked of it


def test_wishes_that_differ_in_everything_are_drawn_as_each_alone(pipe):
    wanted = [
        Wanted(prompt="tiger", seed=3, steps=2, guidance=1.0),
        Wanted(prompt="rocket", seed=4, steps=3, scheduler="euler", negative="red"),
        Wanted(prompt="tiger", seed=5, steps=2, guidance=1.0, width=96),
    ]
    mixed = {made.index: made.image for made in pipe.make(wanted)}
    for index, one in enumerate(wanted):
        (alone,) = pipe.make([one])
        assert alone.image.tobytes() == mixed[index].tobytes()
        assert alone.image.info == mixed[index].info
    assert mixed[2].size == (96, 64)
