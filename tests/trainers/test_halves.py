"""A base whose files are fp16 is trained in a type with enough range, and is known by what was read."""

from __future__ import annotations

import pytest
import torch

from studio.adapters import LoRA
from studio.device import DtypeChoice
from studio.families import open_base
from studio.families.opening import dtype as types
from studio.trainers import DreamBooth, Plan
from studio.trainers.forecast.before import asked_of
from studio.trainers.loop.mode import precise
from tiny_pipelines import build


def lesson_of(base, photos, said):
    task = DreamBooth(base=base, instance_images=photos, instance_prompt="a photo of sks dog", resolution=64)
    return task.open(LoRA(rank=2), Plan(device="cpu"), said.append)


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "flux1"])
def test_files_of_fp16_are_trained_in_bf16(kind, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(types, "SMALL", 0)  # as a base that is too large to be read in fp32
    build(kind).to(torch.float16).save_pretrained(tmp_path / "base")
    said = []
    lesson = lesson_of(tmp_path / "base", photos, said)
    denoiser = lesson.denoiser
    assert {p.dtype for p in denoiser.parameters()} <= {torch.bfloat16, torch.float32}
    assert torch.bfloat16 in {p.dtype for p in denoiser.parameters()}
    assert any("training in bf16 instead" in line for line in said)
    assert lesson.base.hash == open_base(tmp_path / "base").hash


def test_an_object_stays_as_it_is(photos):
    said = []
    lesson = lesson_of(build("flux1").to(torch.float16), photos, said)
    assert {p.dtype for p in lesson.denoiser.parameters()} == {torch.float16} and not any("bf16" in x for x in said)


def test_products_are_in_a_type_that_the_device_has(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    said = []
    plan = precise(Plan(precision="bf16"), torch.device("cuda"), said.append)
    assert plan.precision == "fp32" and said == ["cuda has no bf16: computing in fp32 instead"]


def test_a_run_and_its_forecast_compute_in_what_was_said(photos, monkeypatch):
    said = []
    monkeypatch.setattr(  # as of a card without bf16: a CPU keeps what it is told
        "studio.trainers.loop.mode.choose_dtype", lambda *of, training: DtypeChoice(torch.float32, "in fp32 instead")
    )
    task = DreamBooth(base="emoji", instance_images=photos, instance_prompt="a photo of sks dog")
    plan = Plan(device="cpu", precision="bf16")
    assert asked_of(task, LoRA(rank=2), plan).precision == "fp32"
    assert task.open(LoRA(rank=2), plan, said.append).plan.precision == "fp32" and said[0] == "in fp32 instead"


def test_products_that_the_cpu_emulates_are_told(cpu_has_bf16):
    said = []
    assert precise(Plan(precision="bf16"), torch.device("cpu"), said.append).precision == "bf16"
    assert bool(said) is not cpu_has_bf16
