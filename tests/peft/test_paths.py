"""PEFT's module paths: each can be imported, under the name ``peft`` too, and is one module under both."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from studio.peft.configs.config import PEFT_TYPE_TO_CONFIG_MAPPING
from studio.peft.paths import PATHS


@pytest.mark.parametrize("path", PATHS)
def test_every_path_has_its_names(path):
    module = importlib.import_module(f"studio.peft.{path}")
    names = [name.partition("=")[0] for found in PATHS[path].values() for name in found.split()]
    assert set(names) <= set(module.__all__) and all(hasattr(module, name) for name in module.__all__)
    assert module.__doc__ == f"``peft.{path}``." and importlib.import_module(f"studio.peft.{path}") is module


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
    assert ours is theirs and ours.__name__ == ours.__spec__.name == f"studio.peft.{path}", path
import peft.tuners.lora.layer
assert peft.tuners.lora.layer.LoraLayer is studio.peft.tuners.lora.LoraLayer
assert importlib.util.find_spec("peft.nothing") is None
print("done")
"""


def test_under_the_name_peft_there_is_no_second_copy():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr[-2000:]
