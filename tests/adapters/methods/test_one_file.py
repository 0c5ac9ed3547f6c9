"""One file is the whole price of a method: nothing outside it knows a method by name, and everything finds it there."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any

import pytest
from torch import nn

import studio
import studio.peft
from product import ROOT, SOURCES, TREES
from studio.adapters import METHODS
from studio.files import elsewhere, spelling

NAMED: dict[str, tuple[set[str], str]] = {
    "studio/families/recipe.py": ({"lora"}, "the method of the recipes, whose rates all others are multiples of"),
    "pipelines/prompting/tags.py": ({"lora"}, "A1111's tag, <lora:name:weight>"),
    "pipelines/foreign/invokeai.py": ({"lora"}, "InvokeAI's word for the entry of an adapter in its metadata"),
    "pipelines/recalled.py": ({"lora"}, "A1111's tag, as other pictures have it"),
    "studio/files/embedding_formats.py": ({"lora"}, "a word that no learned word's key has"),
    "studio/files/gguf.py": ({"lora"}, "llama.cpp's word for its adapters, which are of this method alone"),
    "studio/files/gguf_container.py": ({"lora"}, "llama.cpp's word for its adapters"),
    "studio/files/mlx.py": ({"lora", "dora"}, "MLX's words for its adapters, which are of these methods alone"),
    "trainers/grpo.py": ({"full"}, "the way to divide a base among processes"),
    "trainers/loop/sharding.py": ({"full"}, "the way to divide a base among processes"),
    "studio/planning/published.py": ({"LoRA", "full"}, "rows of PEFT's published table"),
    "trainers/forecast/table.py": ({"lora"}, "what the rows of PEFT's published table train"),
    "studio/commands/options.py": ({"full"}, "the way to divide a base among processes"),
    "studio/planning/sharding.py": ({"full"}, "the way to divide a base among processes"),
    "trainers/loop/plan.py": ({"full"}, "the way to divide a base among processes"),
    "trainers/loop/training.py": ({"full"}, "the way to divide a base among processes"),
    "studio/peft/files/card.py": ({"lora"}, "a tag of model cards"),
    "studio/peft/files/folder.py": ({"ADALORA"}, "ranks that went while it was trained are those of its folder"),
    "studio/peft/files/tensors.py": ({"TRAINABLE_TOKENS"}, "PEFT keeps no embedding beside single rows of it"),
    "studio/peft/hotswap.py": ({"LORA"}, "PEFT swaps adapters of this type alone"),
    "studio/peft/listed.py": ({"lora"}, "a name of PEFT's own modules"),
    "studio/peft/model/kinds.py": ({"ADALORA", "TRAINABLE_TOKENS"}, "PEFT's classes of layers"),
    "studio/peft/model/layers.py": ({"LORA", "ADALORA", "LOHA", "LOKR", "IA3"}, "PEFT's classes of layers"),
    "studio/peft/model/tokens.py": ({"tokenembedding"}, "what PEFT's trainable_token_indices is in the studio"),
    "studio/peft/model/tuner.py": ({"LORA", "ADALORA"}, "PEFT's classes of tuners"),
    "studio/peft/model/weighted.py": ({"LORA", "IA3"}, "PEFT combines adapters of these types"),
}
"""File -> the names of methods in it, and why they stand there."""
LISTS = {"studio/files/elsewhere.py", "studio/peft/absent.py", "studio/peft/terms/types.py"}
"""Lists of what other programs have, which are asked after the registered methods."""


def words() -> set[str]:
    found = set(METHODS)
    for config in METHODS.values():
        peft = config.adapter.peft
        found |= {config.__name__, config.adapter.__name__, peft.type, peft.settings.name}
    return found - {""}


FILES = {SOURCES[module].relative_to(ROOT).as_posix(): tree for module, tree in TREES.items()}
OUTSIDE = {name: tree for name, tree in FILES.items() if not name.startswith("studio/adapters/methods/")}


@pytest.mark.parametrize("name", sorted(OUTSIDE.keys() - LISTS))
def test_no_method_is_named_outside_its_file(name: str) -> None:
    texts = {
        node.value for node in ast.walk(OUTSIDE[name]) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert texts & words() == NAMED.get(name, (set(), ""))[0]


def test_what_is_named_has_a_reason() -> None:
    assert OUTSIDE.keys() >= {*NAMED, *LISTS}
    assert all(len(reason) > 10 for _, reason in NAMED.values())


@pytest.mark.parametrize("method", METHODS)
def test_its_name_is_public(method: str) -> None:
    config = METHODS[method]
    assert getattr(studio, config.__name__) is config and config.method == method
    assert config.adapter.__name__ == f"{config.__name__}Adapter"


@pytest.mark.parametrize("method", [name for name, config in METHODS.items() if config.adapter.peft.type])
def test_its_config_in_peft_has_the_names_and_defaults_of_peft(method: str) -> None:
    peft = pytest.importorskip("peft")
    name = METHODS[method].adapter.peft.settings.name
    ours, theirs = defaults(getattr(studio.peft, name)), defaults(getattr(peft, name))
    assert {field: str(ours.get(field, "missing")) for field in theirs} == {k: str(v) for k, v in theirs.items()}
    config = getattr(studio.peft, name)
    assert studio.peft.PEFT_TYPE_TO_CONFIG_MAPPING[config.word] is config and name in studio.peft.__all__


def defaults(config: Any) -> dict[str, Any]:
    return {
        one.name: one.default_factory() if one.default is dataclasses.MISSING else one.default
        for one in dataclasses.fields(config)
    }


@pytest.mark.parametrize("method", [name for name, config in METHODS.items() if "model" not in config.adapter.kinds])
def test_its_example_fits_small_layers(method: str) -> None:
    model = nn.ModuleDict({"lin": nn.Linear(8, 12), "emb": nn.Embedding(8, 8), "norm": nn.LayerNorm(8)})
    kinds = METHODS[method].adapter.kinds
    at = "lin" if "linear" in kinds else "norm" if "norm" in kinds else "emb"
    config = METHODS[method].example(targets=(at,))
    assert studio.attach(model, config).sites == (at,)
    assert config.rate > 0


def test_a_method_that_is_registered_is_read_whatever_the_list_of_others_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spelling, "ELSEWHERE", {**elsewhere.ELSEWHERE, "hra_u": "a method of others"})
    spelling._recognise.cache_clear()
    found = spelling.recognise(["hra_u"])
    assert isinstance(found, spelling.Spelling) and found.method == "hra"
    assert "of another method, a method of others" not in str(spelling.recognise(["hra_u", "diff"]))
    spelling._recognise.cache_clear()
