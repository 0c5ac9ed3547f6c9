"""Under which names and in which number formats files are written, and that they are found again there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import studio
from studio.errors import BadConfig, UnknownName


@pytest.fixture
def net() -> nn.Module:
    net = nn.Sequential(nn.Linear(8, 8))
    studio.attach(net, studio.LoRA(rank=2, targets=("0",)))
    return net


@pytest.mark.parametrize("name", ["a.safetensors", "a.SAFETENSORS", "a.v2", "a", "a.b.safetensors"])
@pytest.mark.parametrize("format", [None, "diffusers", "kohya", "peft"])
def test_what_is_written_is_read_under_the_same_name(net: nn.Module, tmp_path: Path, name: str, format: Any) -> None:
    file = studio.save(net, tmp_path / name, format=format)
    studio.detach(net)
    assert not studio.load(net, file).ignored


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth", ".ckpt"])
@pytest.mark.parametrize("format", [None, "diffusers", "kohya"])
def test_a_name_that_loading_refuses_is_refused(net: nn.Module, tmp_path: Path, suffix: str, format: Any) -> None:
    with pytest.raises(BadConfig, match=r"has the suffix of a pickled file, and what is written is safetensors"):
        studio.save(net, tmp_path / f"a{suffix}", format=format)
    assert not list(tmp_path.iterdir())


def test_a_tilde_is_the_home_folder(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert studio.save(net, "~/a.safetensors") == tmp_path / "a.safetensors"
    studio.detach(net)
    assert studio.load(net, "~/a.safetensors").sites == ("0",)
    assert studio.inspect(Path("~/a.safetensors")).method == "lora"


@pytest.mark.parametrize("asked", ["bf16", "bfloat16", "torch.bfloat16", torch.bfloat16])
def test_number_formats_have_the_words_that_they_have_everywhere(net: nn.Module, tmp_path: Path, asked: Any) -> None:
    tensors = load_file(studio.save(net, tmp_path / "a.safetensors", dtype=asked))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


@pytest.mark.parametrize("asked", ["bf15", "int8x", 16])
def test_another_word_is_refused_with_the_nearest(net: nn.Module, tmp_path: Path, asked: Any) -> None:
    with pytest.raises(UnknownName, match="no number format is named .*; did you mean"):
        studio.save(net, tmp_path / "a.safetensors", dtype=asked)
