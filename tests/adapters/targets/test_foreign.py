"""Layers that PEFT has wrapped are not left out without a word."""

from __future__ import annotations

from typing import Any

import pytest

import studio
from studio.errors import UnsupportedLayer
from tiny import llama

peft = pytest.importorskip("peft")


def wrapped(*modules: str, config: str = "LoraConfig", **fields: Any) -> Any:
    return peft.inject_adapter_in_model(getattr(peft, config)(target_modules=list(modules), **fields), llama())


FIRST = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("targets", ["attention", "all-linear", ("k_proj", "q_proj"), "*.q_proj", "re:.*_proj"])
@pytest.mark.parametrize("fields", [{}, {"config": "LoHaConfig"}, {"config": "IA3Config", "feedforward_modules": []}])
def test_targets_that_would_leave_them_out_are_refused(targets: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedLayer, match=rf"{FIRST} is inside a layer of the package peft"):
        studio.attach(wrapped("q_proj", **fields), studio.LoRA(rank=2, targets=targets))


def test_one_wrapped_layer_among_many_is_seen() -> None:
    with pytest.raises(UnsupportedLayer, match=rf"{FIRST} is inside"):
        studio.attach(wrapped(FIRST), studio.LoRA(rank=2, targets=("q_proj",)))


def test_other_layers_can_be_named_and_the_inner_one_too() -> None:
    assert len(studio.attach(wrapped("q_proj"), studio.LoRA(rank=2, targets=("k_proj",))).sites) == 2
    inner = studio.attach(wrapped("q_proj"), studio.LoRA(rank=2, targets=(f"{FIRST}.base_layer",)))
    assert inner.sites == (f"{FIRST}.base_layer",)


def test_the_way_out_is_one() -> None:
    model = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"])).merge_and_unload()
    assert len(studio.attach(model, studio.LoRA(rank=2, targets="attention")).sites) == 8
