"""What a caller writes into a method's config or a strength is a value of the right type, or refused by its field."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import studio
from studio.adapters.contract.adapter import METHODS
from studio.adapters.contract.strength import Strength, as_strength
from studio.errors import BadConfig

FIELDS = [(name, one.name) for name, config in METHODS.items() for one in dataclasses.fields(config)]
# annotation -> values that a caller may well write there and that are none of its kind
WRONG: dict[str, list[Any]] = {
    "bool": ["no", "false", 0, None],
    "int": ["8", 2.5, True, None, [8]],
    "float": ["1", True, None, (1.0,)],
    "str": [5, True, None, ["random"]],
    "tuple[str, ...]": [5, (5,), {"a": 1}],
    "tuple[int, ...]": [5, "12", (1.5,), None],
    "str | tuple[str, ...]": [5, None, True, (5,), {"a": 1}],
    "tuple[str, ...] | None": [5, (5,)],
    "int | None": ["8", 2.5, True],
    "float | None": ["1", True, [1.0]],
    "Mapping[str, int]": [[4], "a=4", {"a": "4"}, {"a": 4.5}, {1: 4}],
    "Mapping[str, float]": [[4], 1.0, {"a": "4"}, {"a": True}],
}


@pytest.mark.parametrize(("method", "field"), FIELDS)
def test_a_value_of_another_type_is_refused_by_its_field(method: str, field: str) -> None:
    config = METHODS[method]
    annotation = next(str(one.type) for one in dataclasses.fields(config) if one.name == field)
    for wrong in WRONG[annotation]:
        with pytest.raises(BadConfig, match=rf"{config.__name__}\.{field} must be .*, not "):
            config.example(**{field: wrong})


def test_numbers_of_numpy_and_torch_become_pythons_own() -> None:
    given = studio.LoRA(
        rank=np.int64(4), alpha=torch.tensor(2.0), dropout=np.float32(0.5), use_bias=np.bool_(True),
        rank_pattern={"a": torch.tensor(2)},
    )  # fmt: skip
    assert given == studio.LoRA(rank=4, alpha=2.0, dropout=0.5, use_bias=True, rank_pattern={"a": 2})
    assert [type(value) for value in (given.rank, given.alpha, given.use_bias)] == [int, float, bool]
    assert type(given.rank_pattern["a"]) is int


@pytest.mark.parametrize("tokens", [[3, 1], np.array([3, 1]), torch.tensor([3, 1]), range(3, 0, -2)], ids=repr)
def test_rows_of_numbers_are_taken_whoever_made_them(tokens: Any) -> None:
    assert studio.TokenEmbedding(tokens=tokens).tokens == (3, 1)


def test_one_pattern_is_a_list_of_one_and_sets_have_an_order() -> None:
    assert studio.LoRA(exclude="to_q").exclude == ("to_q",)
    assert studio.IA3(feedforward="fc2").feedforward == ("fc2",)
    assert studio.LoRA(targets={"to_v", "to_k", "to_q"}).targets == ("to_k", "to_q", "to_v")


@pytest.mark.parametrize("half", [0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5)], ids=repr)
def test_a_strength_takes_any_number(half: Any) -> None:
    wanted = Strength(0.5, blocks={"a": 0.5}, unet=0.5)
    assert as_strength(half) == Strength(0.5)
    assert Strength(half, blocks={"a": half}, unet=half) == wanted
    assert as_strength([half, half]).samples == as_strength(np.array([0.5, 0.5])).samples == (0.5, 0.5)


@pytest.mark.parametrize(
    "wrong", ["1", None, True, float("nan"), torch.ones(2, 2), {"a": 1}, [True], np.array([np.inf])]
)
def test_a_strength_that_is_no_number_is_refused(wrong: Any) -> None:
    with pytest.raises(BadConfig, match="a strength must be a finite number"):
        as_strength(wrong)


@pytest.mark.parametrize("three", [3, np.int64(3), torch.tensor(3)], ids=repr)
def test_a_seed_is_the_number_that_it_is(three: Any) -> None:
    drawn = []
    for seed in (3, three):
        model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        studio.attach(model, studio.LoRA(rank=2, targets=("0",)), seed=seed)
        studio.grow(model, "default", three, seed=seed)
        drawn.append(studio.state(model)["0.down"])
    assert torch.equal(*drawn)


@pytest.mark.parametrize("seed", ["3", 3.0, True, None, np.float32(3)], ids=repr)
def test_a_seed_that_is_no_whole_number_is_refused(seed: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    with pytest.raises(BadConfig, match="a seed is a whole number"):
        studio.attach(model, studio.LoRA(rank=2, targets=("0",)), seed=seed)
    assert not studio.adapters(model)
