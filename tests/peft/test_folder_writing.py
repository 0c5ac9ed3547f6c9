"""The folder of an adapter is new as a whole or old as a whole, and the same bytes each time."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from torch import nn

import studio
from studio.errors import BadFile
from studio.peft import LoraConfig, get_peft_model


def peft_model(alpha):
    torch.manual_seed(alpha)
    config = LoraConfig(r=2, lora_alpha=alpha, target_modules=["0"], init_lora_weights=False)
    return get_peft_model(nn.Sequential(nn.Linear(8, 8)), config)


def ours(alpha):
    model = nn.Sequential(nn.Linear(8, 8))
    studio.attach(model, studio.LoRA(rank=2, alpha=float(alpha), targets=("0",), init="orthogonal"), seed=alpha)
    return model


WRITERS = {
    "studio.peft": lambda folder, alpha: peft_model(alpha).save_pretrained(folder),
    "torch's file": lambda folder, alpha: peft_model(alpha).save_pretrained(folder, safe_serialization=False),
    "studio.save": lambda folder, alpha: studio.save(ours(alpha), folder),
}


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_two_saves_are_byte_identical(write, tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, 3)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_disk_that_fills_up_leaves_the_adapter_before(write, name, tmp_path, monkeypatch):
    """New tensors beside an old config would be of another alpha."""
    write(tmp_path / "adapter", 3)
    before, whole = contents(tmp_path / "adapter"), os.replace

    def replace(source, target, **more):
        if name in str(target):
            monkeypatch.setattr(os, "replace", whole)
            raise OSError(errno.ENOSPC, "full", str(target))
        whole(source, target, **more)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(BadFile, match="no space left on the device"):
        write(tmp_path / "adapter", 7)
    assert contents(tmp_path / "adapter") == before
    write(tmp_path / "adapter", 7)
    assert contents(tmp_path / "adapter") != before
