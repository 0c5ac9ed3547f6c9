"""Extraction: what was baked into a model comes out of it again, and what a rank leaves out is said."""

from __future__ import annotations

import math

import pytest
import torch
from click.testing import CliRunner

import studio
from studio.adapters import bake, blended, unbake
from studio.cli import main
from studio.errors import BadConfig, BadFile, DoesNotFit, NoEffect, NoTargets
from studio.files.extract import _best, extract
from tests.support.tiny_pipelines import build


def tuned(method, kind="sd1", norm=0.0, **options):
    """A pipeline with a change in its weights, and the change as it was attached."""
    pipe = build(kind)
    studio.attach(pipe, method(targets="all-linear", **options), name="dog")
    generator = torch.Generator().manual_seed(1)
    for tensor in studio.state(pipe, "dog").values():
        tensor.data += 0.1 * torch.randn(tensor.shape, generator=generator)
    bake(pipe, {"dog": 1.0})
    other = build(kind)
    denoiser = next(name for name in ("unet", "transformer") if name in pipe.components)
    weights = {key: one for key, one in pipe.components[denoiser].state_dict().items() if ".adapters." not in key}
    other.components[denoiser].load_state_dict(weights)
    unbake(pipe)
    if norm:
        next(module for module in other.unet.modules() if isinstance(module, torch.nn.GroupNorm)).weight.data += norm
    return pipe, other


@pytest.mark.parametrize("kind", ["sd1", "flux1"])
@pytest.mark.parametrize("rank", [3, None])
def test_a_lora_of_that_rank_comes_out_again(kind, rank, tmp_path):
    pipe, other = tuned(studio.LoRA, kind, rank=3)
    report = extract(other, build(kind), tmp_path / "a.safetensors", rank=rank)
    assert report.error < 1e-3 and report.method == ("lora" if rank else "full") and not report.left
    studio.load(pipe, tmp_path / "a.safetensors", name="again")
    denoiser = next(name for name in ("unet", "transformer") if name in pipe.components)
    for path in ("again", "dog"):
        with blended(pipe, {path: 1.0}):
            bake(pipe)
            mine = pipe.components[denoiser].state_dict()
            same = [
                torch.allclose(mine[key], one, atol=1e-5)
                for key, one in other.components[denoiser].state_dict().items()
            ]
            unbake(pipe)
        assert all(same)


def test_below_its_rank_the_error_is_that_of_the_svd(tmp_path):
    _, other = tuned(studio.LoHa, rank=4)
    base = build("sd1")
    report = extract(other, base, tmp_path / "a.safetensors", rank=2)
    lacking = whole = 0.0
    for place, error in report.errors.items():
        path = place.partition(".")[2]
        delta = other.unet.get_submodule(path).weight.detach() - base.unet.get_submodule(path).weight.detach()
        squares = torch.linalg.svdvals(delta.double().flatten(1)).square()
        assert error == pytest.approx(math.sqrt(squares[2:].sum() / squares.sum()), rel=1e-3)
        lacking, whole = lacking + squares[2:].sum().item(), whole + squares.sum().item()
    assert report.error == pytest.approx(math.sqrt(lacking / whole), rel=1e-3)
    assert f"{report.error:.2%}" in str(report)


def test_large_matrices_by_a_sketch_are_near_the_best():
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(300, 40, generator=generator) @ torch.randn(40, 500, generator=generator)
    delta += 0.01 * torch.randn(300, 500, generator=generator)
    squares = torch.linalg.svdvals(delta.double()).square()
    (down, up), lacking, whole = _best(delta, 20)
    assert whole == pytest.approx(squares.sum().item(), rel=1e-6)
    assert lacking == pytest.approx(squares[20:].sum().item(), rel=1e-3)
    assert (delta - up @ down).double().square().sum().item() == pytest.approx(lacking, rel=1e-3)


def test_what_differs_beside_the_layers_is_said(tmp_path):
    _, other = tuned(studio.LoRA, norm=0.5, rank=2)
    report = extract(other, build("sd1"), tmp_path / "a.safetensors", rank=2)
    assert len(report.left) == 1 and "norm" in report.left[0] and "1 other tensors differ too" in str(report)


def test_refusals(tmp_path):
    out = tmp_path / "a.safetensors"
    for tuned_, base, options, error, message in (
        (build("sd1"), build("sd1"), {}, NoEffect, "do not differ"),
        (build("sd2"), build("sd1"), {}, DoesNotFit, "not the same size|other layers"),
        (build("flux1"), build("sd1"), {}, DoesNotFit, "has no unet"),
        (build("sd1"), build("sd1"), {"rank": 0}, BadConfig, "rank=0"),
        (build("sd1"), build("sd1"), {"targets": ("nothing",)}, NoTargets, "nothing"),
    ):
        with pytest.raises(error, match=message):
            extract(tuned_, base, out, **options)
        assert not out.exists()
    out.touch()
    with pytest.raises(BadFile, match="is there already"):
        extract(build("sd1"), build("sd1"), out)


def test_the_command(tmp_path):
    pipe, other = tuned(studio.LoRA, rank=2)
    for name, one in (("base", build("sd1")), ("tuned", other)):
        one.save_pretrained(tmp_path / name)
    words = ["extract", tmp_path / "tuned", tmp_path / "base", "--rank", 2, "-o", tmp_path / "a.safetensors"]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0 and "rank 2" in result.stdout, result.output
