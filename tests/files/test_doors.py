"""Every public function that takes a file says in one sentence that what it was given is no path."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import studio
from studio.datasets.chat import read_samples
from studio.datasets.check import check_folder
from studio.datasets.folder import read_folder
from studio.errors import UsageError
from studio.families import open_base
from studio.families.language import open_language_base
from studio.pipelines import ImagePipeline, TextPipeline, read_metadata, regenerate, save_png
from studio.trainers import CausalLM, DreamBooth, Style, train

WRONG = [5, None, b"bytes", "", "a\0b"]


def net() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    studio.attach(model, studio.LoRA(rank=2, targets=("0",)))
    return model


@functools.cache
def pictures() -> ImagePipeline:
    return ImagePipeline.open("emoji")


@functools.cache
def texts() -> TextPipeline:
    return TextPipeline.open("facts")


DOORS: dict[str, Any] = {
    "load": lambda file: studio.load(net(), file, name="other"),
    "load, pickled": lambda file: studio.load(net(), file, name="other", pickled=True),
    "inspect": studio.inspect,
    "save": lambda file: studio.save(net(), file),
    "save, peft": lambda file: studio.save(net(), file, format="peft"),
    "open_base": open_base,
    "open_language_base": open_language_base,
    "ImagePipeline.open": ImagePipeline.open,
    "TextPipeline.open": TextPipeline.open,
    "ImagePipeline.load": lambda file: pictures().load(file),
    "TextPipeline.load": lambda file: texts().load(file),
    "save_png": lambda file: save_png(Image.new("RGB", (8, 8)), file),
    "read_metadata": read_metadata,
    "regenerate": regenerate,
    "read_folder": read_folder,
    "check_folder": check_folder,
    "read_samples": read_samples,
    "train": lambda file: train(CausalLM(base="facts", data=Path("none.jsonl")), output=file),
    "CausalLM": lambda file: train(CausalLM(base="facts", data=file), output="run"),
    "DreamBooth": lambda file: train(DreamBooth(base="emoji", instance_images=file, instance_prompt="a"), output="run"),
    "Style": lambda file: train(Style(base="emoji", images=file, trigger="zwx style"), output="run"),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("given", WRONG, ids=lambda given: repr(given)[:20])
@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_path_is_refused_in_one_sentence(door: str, given: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        DOORS[door](given)
    assert "\n" not in str(caught.value) and str(caught.value).strip()
    assert not list(tmp_path.iterdir())
