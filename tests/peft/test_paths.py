"""PEFT's module paths: each can be imported, under the name ``peft`` too, and is one module under both."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch

import studio.peft
from studio.adapters import METHODS
from studio.errors import UsageError
from studio.peft.configs.config import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig
from studio.peft.listed import LISTED
from studio.peft.model.tuner import PEFT_TYPE_TO_TUNER_MAPPING
from studio.peft.paths import PATHS


@pytest.mark.parametrize("package", sorted({path.partition(".")[0] for path in PATHS}))
def test_every_path_has_its_names(package):
    for path in (path for path in PATHS if path.partition(".")[0] == package):
        module = importlib.import_module(f"studio.peft.{path}")
        assert [name for name in LISTED[path] if not hasattr(module, name)] == [], path
        assert importlib.import_module(f"studio.peft.{path}") is module


def test_the_package_has_every_name_that_peft_has():
    theirs = pytest.importorskip("peft")
    assert [name for name in theirs.__all__ if not hasattr(studio.peft, name)] == []


@pytest.mark.parametrize("path", ["utils.constants", "utils", "tuners.tuners_utils"])
def test_constants_are_pefts(path):
    theirs = importlib.import_module(f"peft.{path}")
    ours = importlib.import_module(f"studio.peft.{path}")
    plain = {name: one for name, one in vars(theirs).items() if name.isupper() and name in LISTED[path]}
    plain = {name: one for name, one in plain.items() if not name.startswith(("TRANSFORMERS", "PEFT_TYPE"))}
    assert len(plain) >= 3 and {name: getattr(ours, name) for name in plain} == plain


def test_no_method_that_the_studio_has_is_listed_as_absent():
    from studio.peft.absent import ABSENT

    named = {config.adapter.peft.settings.name for config in METHODS.values()} - {""}
    assert named & set(ABSENT) == set()
    assert all(issubclass(getattr(studio.peft, name), PeftConfig) for name in named)


@pytest.mark.parametrize("word, tuner", PEFT_TYPE_TO_TUNER_MAPPING.items(), ids=lambda one: getattr(one, "value", ""))
def test_prefixes_are_pefts(word, tuner):
    assert tuner.prefix == pytest.importorskip("peft.mapping").PEFT_TYPE_TO_PREFIX_MAPPING[word.value]


USES = {
    "called": lambda one: one(3),
    "iterated": list,
    "indexed": lambda one: one["llama"],
    "asked": lambda one: one.from_pretrained,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize(
    "name",
    [
        "tuners.xlora.layer.XLoraLinearLayer",
        "tuners.lora.loraga.preprocess_loraga",
        "tuners.xlora.model.XLoraModel",
        "utils.merge_utils.ties",
    ],
)
def test_what_is_absent_says_so_when_it_is_used(name, use):
    path, _, last = name.rpartition(".")
    one = getattr(importlib.import_module(f"studio.peft.{path}"), last)
    assert not isinstance(studio.peft, one)
    with pytest.raises(UsageError, match=f"peft.{name} is a part of PEFT that the studio does not have") as caught:
        use(one)
    assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)


LAYERS = (torch.nn.Linear(2, 2), torch.nn.Embedding(3, 2), torch.nn.Conv1d(2, 2, 1), torch.nn.Conv2d(2, 2, 1))


@pytest.mark.parametrize("kind, layer", [(type(one).__name__, one) for one in LAYERS])
def test_the_layer_classes_say_of_which_kind_a_layer_is(kind, layer):
    from studio.peft.tuners import lora

    model = studio.peft.get_peft_model(torch.nn.Sequential(layer), studio.peft.LoraConfig(r=1, target_modules=["0"]))
    kinds = [
        one for one in ("Linear", "Embedding", "Conv1d", "Conv2d", "Conv3d") if isinstance(layer, getattr(lora, one))
    ]
    assert kinds == [kind] and isinstance(layer, lora.LoraLayer) and model.unload()[0] is layer


@pytest.mark.parametrize("word", PEFT_TYPE_TO_CONFIG_MAPPING)
def test_every_method_has_its_path(word):
    module = importlib.import_module(f"studio.peft.tuners.{word.value.lower()}")
    config = PEFT_TYPE_TO_CONFIG_MAPPING[word]
    assert getattr(module, config.__name__) is config


def test_a_path_that_peft_does_not_have_is_no_module():
    with pytest.raises(ModuleNotFoundError, match="studio.peft.tuners.lorra"):
        importlib.import_module("studio.peft.tuners.lorra")


SCRIPT = """
import sys, importlib, importlib.util
import studio.peft
sys.modules["peft"] = studio.peft
from studio.peft.paths import PATHS
for path in [*PATHS, "peft_model", "auto", "optimizers", "configs.config", "tuners.ia3"]:
    ours, theirs = (importlib.import_module(f"{root}.{path}") for root in ("studio.peft", "peft"))
    real = "configs.config" if path == "config" else path  # one module under both names
    assert ours is theirs and ours.__name__ == ours.__spec__.name == f"studio.peft.{real}", path
import peft.tuners.lora.layer
assert peft.tuners.lora.layer.LoraLayer is studio.peft.tuners.lora.LoraLayer
assert importlib.util.find_spec("peft.nothing") is None
print("done")
"""


def test_under_the_name_peft_there_is_no_second_copy():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr[-2000:]
