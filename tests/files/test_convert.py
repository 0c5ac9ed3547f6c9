"""Conversions: every format to every other, on the shapes of public models and on tiny pipelines of every family."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import studio
from studio.adapters import adapters
from studio.errors import BadConfig, BadFile, DoesNotFit, Refused, UnknownName
from studio.families.shapes import SHAPES, outline
from studio.files import FORMATS, common_formats
from studio.files.convert import convert
from studio.files.loose import Loose, read_loose, write_loose
from studio.files.resize import resize
from tests.support.tiny_pipelines import build

QUICK = ("sdxl",)
SINGLE = [name for name in common_formats() if not FORMATS[name].folder]


def adapter_for(model, config, name="dog", format="diffusers"):
    """An adapter of random numbers, off the model."""
    studio.attach(model, config, name=name)
    generator = torch.Generator().manual_seed(0)
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in studio.state(model, name).items():
        path, _, part = key.rpartition(".")
        fresh = tensor.detach().clone() if tensor.device.type != "meta" else torch.zeros(tensor.shape)
        moved = fresh + 0.1 * torch.randn(tensor.shape, generator=generator) if fresh.is_floating_point() else fresh
        layers.setdefault(path, {})[part] = moved
    made = adapters(model)[name].config
    studio.detach(model, name)
    return Loose(file=Path("made"), model=model, base="made", name=name, format=format, config=made, layers=layers,
                 facts={})  # fmt: skip


def equal(one, other):
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first
    )


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SHAPES]
)
def test_a_public_model_is_known_by_its_keys_and_converted_both_ways(name, tmp_path):
    """No base is at hand: its layers' names and sizes are, and the file's keys tell which."""
    family, denoiser = SHAPES[name].family, next(iter(SHAPES[name].parts))
    model = outline(name, [denoiser])
    loose = adapter_for(model, studio.LoRA(rank=2, alpha=1.0, targets="attention"))
    files = {}
    for format in SINGLE:
        try:
            files[format] = write_loose(loose, tmp_path / f"{format}.safetensors", format=format, dtype="fp16")
        except DoesNotFit:
            assert format == "native" and family in ("sd1", "sd2", "qwen-image", "sana", "pixart-sigma", "sdxl")
    for source, file in files.items():
        for target in files:
            if target == source:
                continue
            there, back = tmp_path / f"{source}-{target}.safetensors", tmp_path / f"{source}-{target}-back.safetensors"
            report = convert(file, there, format=target)
            assert report.error == 0 and SHAPES[report.base].family == family
            assert convert(there, back, format=source).error == 0
            assert equal(file, back), (source, target)


def test_text_encoders_are_told_apart(tmp_path):
    """SDXL's two, in kohya's names; transformers' level text_model is there in files and not in the module."""
    loose = adapter_for(outline("sdxl"), studio.LoRA(rank=1, targets=("unet.*.attn2.to_k", "q_proj")))
    counts = {part: sum(path.startswith(f"{part}.") for path in loose.layers) for part in ("text_encoder", "unet")}
    # the last layer of the first encoder is read by nothing
    assert counts == {"text_encoder": 11, "unet": 70} and len(loose.layers) == 11 + 32 + 70
    file = write_loose(loose, tmp_path / "a.safetensors", format="kohya")
    assert sum(key.startswith("lora_te2_text_model_encoder_layers_") for key in load_file(file)) == 3 * 32
    report = convert(file, tmp_path / "b.safetensors", format="diffusers")
    assert (report.sites, report.error, report.base) == (113, 0, "sdxl")


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe():
    return build("sd1")


@pytest.fixture
def file(pipe, tmp_path):
    loose = adapter_for(pipe, studio.LoRA(rank=4, alpha=3.0, targets="attention"))
    return write_loose(loose, tmp_path / "a.safetensors", format="kohya")


def test_rounding_is_refused_or_said(pipe, file, tmp_path):
    out = tmp_path / "b.safetensors"
    with pytest.raises(Refused, match="off in what it changes, through rounding"):
        convert(file, out, format="diffusers", base=pipe, dtype="bf16")
    assert not out.exists()
    report = convert(file, out, format="diffusers", base=pipe, dtype="bf16", approximate=True)
    assert 1e-4 < report.error < 1e-2 and "with an error of" in str(report)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"format": "kohia"}, UnknownName, "kohya"),
        ({"format": "diffusers", "family": "sdx"}, BadConfig, "did you mean 'sdxl'"),
        ({"format": "diffusers", "family": "sdxl"}, DoesNotFit, "Stable Diffusion"),
        ({"format": "diffusers"}, DoesNotFit, "name its base"),  # it is of a tiny one
        ({"format": "diffusers", "base": "nowhere/at/all"}, (UnknownName, BadFile), "nowhere"),
    ],
)
def test_what_cannot_be_converted_leaves_nothing(file, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        convert(file, tmp_path / "b.safetensors", **options)
    assert not (tmp_path / "b.safetensors").exists()


def test_nothing_is_written_over(pipe, file):
    with pytest.raises(BadFile, match="is there already"):
        convert(file, file, format="diffusers", base=pipe)


def test_a_file_for_no_public_image_model(tmp_path):
    pair = {"lora_A.weight": torch.ones(2, 4), "lora_B.weight": torch.ones(4, 2)}
    layer = "model.layers.0.self_attn.q_proj"
    save_file({f"{layer}.{part}": tensor for part, tensor in pair.items()}, tmp_path / "a.safetensors")
    with pytest.raises(DoesNotFit, match="a language model.*name its base"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", format="kohya")


# -- resize --------------------------------------------------------------------------------------------------------


def changes(loose):
    """Path -> ΔW in float64."""
    found = {}
    for path, tensors in loose.layers.items():
        scale = loose.config.scale_at(path.partition(".")[2])
        found[path] = scale * tensors["up"].double() @ tensors["down"].double().flatten(1)
    return found


def _wanted(values, way, number):
    squares = values.square()
    if way == "rank":
        return number
    if way == "sv_ratio":
        return int((values > values[0] / number).sum())
    share = (squares if way == "sv_fro" else values).cumsum(0) / (squares if way == "sv_fro" else values).sum()
    return int((share < (number**2 if way == "sv_fro" else number) - 1e-12).sum()) + 1


@pytest.mark.parametrize(("way", "number"), [("rank", 2), ("sv_ratio", 1.5), ("sv_fro", 0.8), ("sv_cumulative", 0.7)])
def test_the_best_of_a_lower_rank(pipe, file, tmp_path, way, number):
    before = changes(read_loose(file, base=pipe))
    report = resize(file, tmp_path / "b.safetensors", base=pipe, **{way: number})
    low = read_loose(tmp_path / "b.safetensors", base=pipe)
    after = changes(low)
    lacking = whole = 0.0
    for path, matrix in before.items():
        values = torch.linalg.svdvals(matrix)[:4]
        kept = max(1, _wanted(values, way, number))
        assert len(low.layers[path]["down"]) == kept
        lacking, whole = lacking + values[kept:].square().sum().item(), whole + values.square().sum().item()
        assert (after[path] - matrix).square().sum().item() == pytest.approx(
            values[kept:].square().sum().item(), abs=1e-6
        )
    assert report.error == pytest.approx(math.sqrt(lacking / whole), rel=1e-4)
    assert sum(report.ranks.values()) == sum(report.before.values()) == len(before)
    assert low.format == "kohya" and low.config.scale_at("x") == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "resize to what"),
        ({"rank": 0}, "rank=0"),
        ({"sv_fro": 0.9, "sv_ratio": 3}, "different ways"),
        ({"sv_fro": 1.5}, "in .0, 1."),
        ({"sv_ratio": 0.5}, "above 1"),
    ],
)
def test_impossible_ranks(pipe, file, tmp_path, options, message):
    with pytest.raises(BadConfig, match=message):
        resize(file, tmp_path / "b.safetensors", base=pipe, **options)


def test_only_a_lora_has_a_rank_to_lower(pipe, tmp_path):
    loose = adapter_for(pipe, studio.LoHa(rank=2, targets="attention"))
    file = write_loose(loose, tmp_path / "a.safetensors")
    with pytest.raises(DoesNotFit, match="is of loha"):
        resize(file, tmp_path / "b.safetensors", rank=1, base=pipe)
