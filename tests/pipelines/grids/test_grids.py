"""X/Y/Z grids: axes, what they change, and where each picture stands."""

from __future__ import annotations

import json

import numpy
import pytest
from PIL import Image

import studio
from studio.errors import BadConfig, UnknownName
from studio.pipelines import AXES, ImagePipeline, Wanted, prompt_matrix, strength_sweep, xyz_grid
from studio.pipelines.grids.axis import Axis, axis_of
from studio.pipelines.grids.kinds import changes_of
from studio.pipelines.grids.matrix import plan_matrix
from studio.pipelines.grids.plan import Plan
from studio.pipelines.grids.xyz import plan_grid


@pytest.fixture(scope="module")
def pipe():
    """The emoji base with two adapters that act."""
    pipe = ImagePipeline.open("emoji")
    for number, name in enumerate(("robot", "ink")):
        studio.attach(pipe.pipe, studio.LoRA(rank=2, init="gaussian"), name=name, seed=number)
        for tensor in studio.state(pipe.pipe, name).values():
            tensor.data.add_(0.05)
    return pipe


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("seed=0..3", Axis("seed", "", ("0", "1", "2", "3"))),
        ("seed=-1..1,7", Axis("seed", "", ("-1", "0", "1", "7"))),
        ("strength:robot=0, 0.5 ,1", Axis("strength", "robot", ("0", "0.5", "1"))),
        ("guidance=1..2:0.5,9", Axis("guidance", "", ("1", "1.5", "2", "9"))),
        ('prompt:tiger=tiger,"a fox, small",""', Axis("prompt", "tiger", ("tiger", "a fox, small", ""))),
        ("prompt:a=b=c,d=e", Axis("prompt", "a", ("b=c", "d=e"))),
        ("image_strength=0.5", Axis("image-strength", "", ("0.5",))),
        (("seed", range(2)), Axis("seed", "", (0, 1))),
        (("steps", numpy.array([4, 8])), Axis("steps", "", (4, 8))),
        (("scheduler", ["ddim"]), Axis("scheduler", "", ("ddim",))),
        (Axis("seed", "", (1,)), Axis("seed", "", (1,))),
    ],
)
def test_axes_are_read(text, axis):
    assert axis_of(text) == axis


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("seed", "is not of the form seed=0..3"),
        ("=1", "is not of the form"),
        ("Seed!=1", "is not of the form"),
        ("seed=", "has no values"),
        (("seed", []), "has no values"),
        ("seed=3..1", "runs backwards; write 1..3"),
        ("seed=0..99999999999", "100,000,000,000 values; give at most"),
        ("guidance=1..5:0", "goes nowhere"),
        ("guidance=1..1000000:0.001", "values; give at most"),
        ("guidance=1..2..3:1", "no value|no number|not of the form"),
        (7, "an axis is a text such as seed=0..3"),
        (("seed", 3), "an axis is a text"),
        (("seed",), "an axis is a text"),
    ],
)
def test_axes_that_are_none_are_refused(pipe, text, reason):
    with pytest.raises(BadConfig, match=reason):
        changes_of(pipe, axis_of(text))


@pytest.mark.parametrize(
    ("axis", "error", "reason"),
    [
        ("sead=1", UnknownName, "no axis is named 'sead'; did you mean 'seed'"),
        ("scheduler=eula", UnknownName, "no scheduler is named 'eula'"),
        ("strength:robt=1", UnknownName, r"no adapter is called 'robt'; did you mean 'robot'\? \(loaded: robot, ink\)"),
        ("strength=1", BadConfig, "is of one adapter: write strength:ADAPTER="),
        ("seed:robot=1", BadConfig, "seed is of nothing"),
        ("seed=1.5", BadConfig, "'1.5' is no value of the axis 'seed'"),
        ("steps=ten", BadConfig, "'ten' is no value of the axis 'steps'"),
        ("guidance=nan", BadConfig, "'nan' is no value"),
        ("strength:robot=inf", BadConfig, "'inf' is no value"),
        ("size=big", BadConfig, "'big' is no value of the axis 'size'"),
        ("adapters=maybe", BadConfig, "'maybe' is no value"),
        ("prompt:lion=a", BadConfig, "does not say 'lion', which an axis replaces"),
    ],
)
def test_values_that_cannot_be_are_refused_before_anything_is_drawn(pipe, axis, error, reason):
    with pytest.raises(error, match=reason):
        plan_grid(pipe, "tiger", x=axis)


# axis -> field of what is wanted, and its values
SETS = {
    "seed=1,2": ("seed", [1, 2]),
    "steps=1,2": ("steps", [1, 2]),
    "guidance=1,2.5": ("guidance", [1.0, 2.5]),
    "embedded-guidance=3.5": ("embedded_guidance", [3.5]),
    "width=64,72": ("width", [64, 72]),
    "height=64,72": ("height", [64, 72]),
    "scheduler=DPM++ 2M Karras,euler_ancestral": ("scheduler", ["dpm++-2m-karras", "euler-a"]),
    'negative=red,""': ("negative", ["red", ""]),
    "prompt=a fox,an owl": ("prompt", ["a fox", "an owl"]),
    "prompt:tiger=owl,fox": ("prompt", ["owl on red", "fox on red"]),
    "image-strength=0.5": ("strength", [0.5]),
    "upscale=1.5,2": ("upscale", [1.5, 2.0]),
    "upscale-strength=0.3": ("upscale_strength", [0.3]),
}


@pytest.mark.parametrize("axis", SETS)
def test_an_axis_changes_its_field_alone(pipe, axis):
    field, values = SETS[axis]
    wanted = Wanted(prompt="tiger on red", seed=5)
    plan = plan_grid(pipe, wanted, x=axis)
    assert [getattr(one, field) for one in plan.wanted] == values
    assert {name for one in plan.wanted for name in vars(one) if getattr(one, name) != getattr(wanted, name)} <= {field}
    assert len(set(plan.columns)) == len(values) and all(plan.columns)


def test_every_axis_is_tried_here():
    tried = {axis.partition("=")[0].partition(":")[0] for axis in SETS} | {"size", "strength", "adapters"}
    assert tried == set(AXES)


@pytest.mark.parametrize(
    ("prompt", "blend", "prompts", "blends"),
    [
        ("a dog", None, ["a dog"] * 2, [{"robot": 0.25, "ink": 1.0}, {"robot": 1.0, "ink": 1.0}]),
        ("a dog", {"ink": 0.5}, ["a dog"] * 2, [{"ink": 0.5, "robot": 0.25}, {"ink": 0.5, "robot": 1.0}]),
        ("a dog", "ink", ["a dog"] * 2, [{"ink": 1.0, "robot": 0.25}, {"ink": 1.0, "robot": 1.0}]),
        ("a <robot:0.8> dog", None, ["a <robot:0.25> dog", "a <robot:1> dog"], [None] * 2),
        ("a dog <lora:robot:1:0.5>", None, ["a dog <robot:0.25>", "a dog <robot:1>"], [None] * 2),
        ("a dog <ink>", None, ["a dog <ink> <robot:0.25>", "a dog <ink> <robot:1>"], [None] * 2),
    ],
)
def test_a_strength_is_set_where_the_others_stand(pipe, prompt, blend, prompts, blends):
    plan = plan_grid(pipe, Wanted(prompt=prompt, blend=blend), x="strength:robot=0.25,1")
    assert [one.prompt for one in plan.wanted] == prompts
    numbers = [one.blend and {name: getattr(s, "value", s) for name, s in one.blend.items()} for one in plan.wanted]
    assert numbers == blends


def test_a_strength_keeps_its_blocks(pipe):
    own = studio.Strength(0.5, blocks={"up_blocks.*": 0.5}, schedule=[(0, 0), (1, 1)])
    plan = plan_grid(pipe, Wanted(prompt="a", blend={"robot": own}), x="strength:robot=0,0.25")
    assert [one.blend["robot"] for one in plan.wanted] == [own * 0, own * 0.5]


def test_axes_change_in_their_turn_whatever_their_place(pipe):
    """A whole prompt comes before a word of it, a strength behind both, and all adapters off at last."""
    plan = plan_grid(
        pipe, "x", x="strength:robot=0.5", y="prompt:fox=owl", z=("prompt", ["a fox", "a fox <robot:0.9>"])
    )  # fmt: skip
    assert [one.prompt for one in plan.wanted] == ["a owl", "a owl <robot:0.5>"]
    plan = plan_grid(pipe, "a fox <robot:0.9>", x="adapters=off,on", y="strength:robot=0.5")
    assert [(one.prompt, one.blend) for one in plan.wanted] == [("a fox", {}), ("a fox <robot:0.5>", None)]


def test_one_thing_on_two_axes_and_grids_without_end_are_refused(pipe):
    with pytest.raises(BadConfig, match="two axes change 'seed'"):
        plan_grid(pipe, "x", x="seed=1", y="seed=2")
    plan_grid(pipe, "x", x="strength:robot=1", y="strength:ink=1")
    with pytest.raises(BadConfig, match="the axes make 1,000,000 pictures"):
        plan_grid(pipe, "x", x="seed=1..1000", y="steps=1..1000")


def test_every_picture_stands_in_its_place(pipe):
    grid = xyz_grid(
        pipe, Wanted(prompt="tiger on a red background", seed=4), x="strength:robot=0,1", y="steps=1,2",
        z="guidance=1,3", batch_size=2,
    )  # fmt: skip
    assert (grid.columns, grid.rows) == (("robot 0", "robot 1"), ("steps 1", "steps 2"))
    assert grid.panels == ("guidance 1", "guidance 3")
    for x, strength in enumerate((0.0, 1.0)):
        for y, steps in enumerate((1, 2)):
            for z, guidance in enumerate((1.0, 3.0)):
                content = json.loads(grid.at(x, y, z).info["studio"])
                used = {use["name"]: use["strength"] for use in content["adapters"]}
                assert (content["steps"], content["guidance"], used.get("robot", 0.0)) == (steps, guidance, strength)
    alone = pipe.generate("tiger on a red background", seeds=4, steps=2, guidance=3.0, blend={"robot": 1, "ink": 1},
                          batch_size=2)  # fmt: skip
    assert grid.at(1, 1, 1).tobytes() == alone[0].tobytes()
    assert json.loads(grid.sheet.info["studio"])["kind"] == "sheet"
    for place in ((2, 0, 0), (0, 2, 0), (0, 0, 2), (-1, 0, 0)):
        with pytest.raises(BadConfig, match="2 x 2 x 2 places"):
            grid.at(*place)


def test_seeds_that_are_drawn_are_one_for_the_grid(pipe):
    plan = plan_grid(pipe, Wanted(prompt="x", seed=None), x="steps=1,2")
    assert len({one.seed for one in plan.wanted}) == 1 and plan.wanted[0].seed is not None
    assert plan_grid(pipe, Wanted(prompt="x", seed=-1), x="steps=1,2").wanted[0].seed >= 0


def test_a_sweep_is_a_grid_of_strengths(pipe):
    grid = strength_sweep(pipe, Wanted(prompt="tiger", steps=1), "ink", strengths=[0, 1], seeds=[1, 2])
    assert (grid.columns, grid.rows) == (("ink 0", "ink 1"), ("seed 1", "seed 2"))
    assert strength_sweep(pipe, Wanted(prompt="tiger", steps=1), "ink", strengths=[1]).rows == ()


# what A1111 makes of the parts: prompt n has part k + 1 where bit k of n is set
MATRICES = {
    "a|b": ["a", "a, b"],
    "a | b | c": ["a", "a, b", "a, c", "a, b, c"],
    "a|b|c|d": ["a", "a, b", "a, c", "a, b, c", "a, d", "a, b, d", "a, c, d", "a, b, c, d"],
    "|b|c": ["", "b", "c", "b, c"],
    "[x|y] {1|2} (p|q) | b": ["[x|y] {1|2} (p|q)", "[x|y] {1|2} (p|q), b"],
    "i <3 you | <robot:0.5>": ["i <3 you", "i <3 you, <robot:0.5>"],
}


@pytest.mark.parametrize("prompt", MATRICES)
def test_a_matrix_has_a1111s_prompts(prompt):
    plan = plan_matrix(prompt)
    assert [one.prompt for one in plan.wanted] == MATRICES[prompt]
    assert len(plan.columns) * max(1, len(plan.rows)) == len(plan.wanted)


def test_a_matrix_is_drawn(pipe):
    grid = prompt_matrix(pipe, Wanted(prompt="tiger | on a red background | rocket", seed=1, steps=1))
    assert (grid.columns, grid.rows) == (("-", "on a red background"), ("-", "rocket"))
    prompts = [json.loads(image.info["studio"])["prompt"] for image in grid.images]
    assert prompts == ["tiger", "tiger, on a red background", "tiger, rocket", "tiger, on a red background, rocket"]


@pytest.mark.parametrize(
    ("prompt", "reason"), [("a dog", "has no parts"), ("|".join("abcdefghijkl"), "2\\^11 pictures")]
)
def test_no_matrix(prompt, reason):
    with pytest.raises(BadConfig, match=reason):
        plan_matrix(prompt)


def test_a_sheet_of_large_pictures_is_one_that_can_be_opened(monkeypatch):
    monkeypatch.setenv("STUDIO_LIMITS", "picture-pixels=200000")
    plan = Plan(wanted=(Wanted(prompt="x"),) * 8, columns=("a", "b", "c", "d"), rows=("e", "f"))
    sheet = plan.grid([Image.new("RGB", (512, 512), "red")] * 8).sheet
    assert sheet.width * sheet.height < 600_000
    with pytest.raises(BadConfig, match="7 pictures for a grid of 8"):
        plan.grid([Image.new("RGB", (8, 8))] * 7)
