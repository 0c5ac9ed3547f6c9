"""A pattern that names nothing is refused, whatever field it stands in; one that names two kinds of things says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import studio
from studio.errors import BadConfig, NoTargets
from tiny import shaken, unet


class Block(nn.Module):
    """A layer beside parameters that the module keeps itself."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.w = nn.Parameter(torch.eye(8))
        self.shift = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.q(x)) @ self.w + self.shift


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(), nn.Linear(8, 8))


FIELDS: dict[str, Callable[[str], Any]] = {
    "targets": lambda pattern: studio.LoRA(targets=("q", pattern)),
    "exclude": lambda pattern: studio.LoRA(targets=("q",), exclude=(pattern,)),
    "rank_pattern": lambda pattern: studio.LoRA(targets=("q",), rank_pattern={pattern: 2}),
    "alpha_pattern": lambda pattern: studio.LoHa(targets=("q",), alpha_pattern={pattern: 2}),
    "block_pattern": lambda pattern: studio.OFT(targets=("q",), block_size=4, block_pattern={pattern: 2}),
    "block_pattern of BOFT": lambda pattern: studio.BOFT(targets=("q",), block_size=4, block_pattern={pattern: 2}),
    "feedforward": lambda pattern: studio.IA3(targets=("q",), feedforward=("q", pattern)),
}


@pytest.mark.parametrize("pattern", ["qq", "1.q", "re:.*x", "block.*"])
@pytest.mark.parametrize("field", FIELDS)
def test_a_pattern_that_names_nothing_is_refused(field: str, pattern: str) -> None:
    model = net()
    with pytest.raises(NoTargets, match=r"matches no .*the nearest layers are: .*0\.q"):
        studio.attach(model, FIELDS[field](pattern))
    assert not studio.adapters(model)


@pytest.mark.parametrize("field", FIELDS)
def test_a_pattern_of_what_holds_layers_is_answered_with_a_glob(field: str) -> None:
    with pytest.raises(NoTargets, match=r"the layers inside it are named by '0\.\*'"):
        studio.attach(net(), FIELDS[field]("0"))


@pytest.mark.parametrize("pattern", ["1", "norm", "shift", "re:0\\.q|1"])
def test_what_is_there_may_be_excluded_though_it_is_no_target(pattern: str) -> None:
    assert studio.attach(net(), studio.LoRA(rank=1, targets=("q", "w"), exclude=(pattern,))).sites[-1] == "0.w"


BLOCKS: list[tuple[str, dict[str, Any], str]] = [
    ("a typing error", {"blocks": {"qq": 0.2}}, "the nearest layers are: 0.q"),
    ("a block, not its layers", {"blocks": {"0.*": 1.0, "0": 0.2}}, "named by '0.*'"),
    ("a layer without this adapter", {"blocks": {"1": 0.2}}, "the nearest layers are: 0.q"),
    ("a component", {"unt": 0.2}, "a model without components"),
]


@pytest.mark.parametrize(("fields", "hint"), [row[1:] for row in BLOCKS], ids=[row[0] for row in BLOCKS])
def test_a_strength_of_blocks_that_are_not_there_is_refused_where_it_is_set(
    tmp_path: Path, fields: dict[str, Any], hint: str
) -> None:
    model, wrong = net(), studio.Strength(1, **fields)
    studio.attach(model, studio.LoRA(rank=2, targets=("q",)))
    for use in (
        lambda: studio.blend(model, {"default": wrong}),
        lambda: studio.bake(model, {"default": wrong}),
        lambda: studio.load(net(), studio.save(shaken(model), tmp_path / "a.safetensors"), strength=wrong),
    ):
        with pytest.raises(BadConfig) as caught:
            use()
        assert hint in str(caught.value)
    assert studio.adapters(model)["default"].strength == 1.0


@pytest.mark.parametrize("pattern", ["re:.*", r"re:0\..*", r"re:(0\.q|0\.w|0\.shift|1)"])
def test_an_expression_names_layers_and_parameters_alike(pattern: str) -> None:
    sites = studio.attach(net(), studio.LoRA(rank=1, targets=(pattern,))).sites
    assert {"0.q", "0.w", "0.shift"} <= set(sites)


@pytest.mark.parametrize("targets", ["0.*", ("0.*", "0.w"), "*"])
def test_a_glob_says_which_parameters_it_leaves_as_they_are(targets: Any) -> None:
    report = studio.attach(net(), studio.LoRA(rank=1, targets=targets))
    (note,) = report.notes
    assert note.startswith(f"{'*' if targets == '*' else '0.*'!r} names layers, and also 0.")
    assert ("0.w" in report.sites) == (targets == ("0.*", "0.w"))


def test_parameters_that_are_excluded_need_no_word() -> None:
    assert studio.attach(net(), studio.LoRA(rank=1, targets="0.*", exclude=("w", "shift"))).notes == ()


def test_a_misspelt_block_is_answered_with_the_right_one() -> None:
    model = unet()
    studio.attach(model, studio.LoRA(rank=2, targets="attention"))
    with pytest.raises(BadConfig, match=r"'upblocks\.\*'.*the nearest is 'up_blocks\.\*'"):
        studio.blend(model, {"default": studio.Strength(1, blocks={"upblocks.*": 0.2})})
    with pytest.raises(NoTargets, match=r"the nearest is 'down_blocks\.0\.\*'"):
        studio.attach(model, studio.LoRA(rank=2, targets="down_block.0.*"), name="b")
