"""Strengths as values: they multiply, compare, print; schedules and masks refuse what is impossible."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import studio
from studio.adapters import When
from studio.adapters.contract.mask import as_mask
from studio.adapters.contract.schedule import Schedule
from studio.adapters.contract.strength import Strength
from studio.errors import BadConfig, BadFile, DoesNotFit, UnknownName

POINTS = [(0.0, 0.25), (0.4, 1.0), (0.4, 0.5), (0.8, -1.0)]


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.399, 0.4, 0.5, 0.75, 0.8, 1.0])
def test_a_schedule_is_linear_between_its_points(progress):
    jump = [0.4 - 1e-12 if n == 1 else place for n, (place, _) in enumerate(POINTS)]  # numpy knows no jumps
    expected = np.interp(progress, jump, [factor for _, factor in POINTS])
    assert Schedule(tuple(POINTS)).at(When(progress, 0.0)) == pytest.approx(expected, abs=1e-9)


def test_over_noise_places_fall():
    falling = Schedule(((0.9, 0.0), (0.1, 1.0)), over="noise")
    assert [round(falling.at(When(0.5, noise)), 12) for noise in (1.0, 0.9, 0.5, 0.1, 0.0)] == [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([(0.5, 1), (0.2, 0)], "goes backwards from 0.5 to 0.2"),
        (Schedule, "a list of pairs"),
        ([], "no point"),
        ([(0.5, float("nan"))], "a pair of finite numbers"),
        ([(1.5, 1)], "the place 1.5"),
        ([0.5], "a pair of finite numbers"),
        ("0@0", "a list of pairs"),
    ],
)
def test_impossible_schedules(schedule, message):
    with pytest.raises(BadConfig, match=message):
        Strength(schedule=schedule)


def test_noise_backwards():
    with pytest.raises(BadConfig, match="goes backwards from 0.1 to 0.9; its places fall"):
        Schedule(((0.1, 0), (0.9, 1)), over="noise")


def test_masks_are_values(tmp_path):
    picture = Image.new("L", (4, 2))
    picture.paste(255, (0, 0, 2, 2))
    picture.save(tmp_path / "left.png")
    array = np.zeros((2, 4), dtype=np.float64)
    array[:, :2] = 1
    same = [as_mask(one) for one in (picture, tmp_path / "left.png", array, torch.tensor(array), array.tolist())]
    assert len(set(same)) == 1 and same[0].tensor().tolist() == array.tolist()
    assert Strength(0.5, mask=array) == Strength(0.5, mask=picture) != Strength(0.5)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([[2.0]], BadConfig, "from 0 .outside. to 1"),
        ([[float("nan")]], BadConfig, "from 0 .outside. to 1"),
        ([[0.0, 0.0]], BadConfig, "0 everywhere"),
        ([1.0], BadConfig, r"rows and columns"),
        ("nowhere.png", BadFile, "there is no mask nowhere.png"),
        (object(), BadConfig, "a mask is a picture"),
    ],
)
def test_impossible_masks(mask, error, message):
    with pytest.raises(error, match=message):
        Strength(mask=mask)


def test_a_hostile_mask_is_refused(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 40)
    with pytest.raises(BadFile, match="bad.png cannot be read"):
        as_mask(tmp_path / "bad.png")


@pytest.mark.parametrize("number", [1e308, -1e39, float("inf"), float("nan"), "1", True, None])
def test_what_is_no_strength(number):
    with pytest.raises(BadConfig, match="a strength must be a finite number"):
        Strength(number)
    with pytest.raises(BadConfig, match="a strength must be a finite number"):
        Strength(blocks={"x": number})


def test_strengths_multiply_print_and_are_keys():
    one = Strength(0.5, unet=0.8, blocks={"up.*": 0.5}, schedule=[(0, 0), (0.5, 1)])
    assert (2 * one).value == 1.0 and (one * 2).schedule == one.schedule
    assert eval(repr(one), {"Strength": Strength}) == one
    assert {one: 1}[Strength(0.5, unet=0.8, blocks={"up.*": 0.5}, schedule=[(0, 0), (0.5, 1)])] == 1
    assert Strength(0.5, samples=[1, 3]).of_sample(1) == Strength(1.5)
    assert [s.constant for s in (one, Strength(2.0), Strength(mask=[[1]]), Strength(samples=[1]))] == [
        False, True, False, False,
    ]  # fmt: skip


class Net(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))


def scheduled_net():
    net = Net()
    studio.attach(net, studio.LoRA(rank=2, targets=("0", "2")), name="dog")
    for tensor in studio.state(net, "dog").values():
        torch.nn.init.normal_(tensor.data)
    return net


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.9])
def test_a_scheduled_strength_is_the_number_that_it_is_then(progress):
    net, x = scheduled_net(), torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    schedule = Schedule(((0.0, 0.2), (0.6, 1.4)))
    number = schedule.at(When(progress, 1 - progress))
    with studio.blended(net, {"dog": 0.5 * number}):
        expected = net(x)
    studio.blend(net, {"dog": Strength(0.5, schedule=schedule)})
    with studio.at_progress(net, progress):
        assert torch.allclose(net(x), expected, atol=1e-6) and not torch.allclose(expected, Net()(x), atol=1e-2)


def test_nobody_said_where_the_denoising_stands():
    net = scheduled_net()
    studio.blend(net, {"dog": Strength(schedule=[(0, 0), (1, 1)])})
    with pytest.raises(DoesNotFit, match="nobody said where"):
        net(torch.zeros(1, 8))
    with studio.at_progress(net, 0.5):
        net(torch.zeros(1, 8))
    with pytest.raises(DoesNotFit, match="nobody said where"):
        net(torch.zeros(1, 8))
    with pytest.raises(DoesNotFit, match="differs by moment of the denoising; weights can hold"):
        studio.bake(net)
    with pytest.raises(BadConfig, match="from 0 to 1"), studio.at_progress(net, 1.5):
        pass


def test_block_weights_need_an_adapter():
    with pytest.raises(UnknownName, match="cat"):
        studio.block_weights(scheduled_net(), "cat", "INS")
