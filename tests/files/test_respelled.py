"""Spellings that single tools have: each means the layer and the change that the usual spelling means."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import studio
from studio.adapters import adapters, blended
from studio.errors import DoesNotFit
from tests.support.tiny_pipelines import build


@pytest.fixture(scope="module")
def pipes():
    return {kind: build(kind) for kind in ("flux1", "sd1", "sdxl")}


def size(pipe, path):
    part, _, rest = path.partition(".")
    module = pipe.components[part].get_submodule(rest)
    return module.out_features, module.in_features


def pair(rows, cols, rank=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, cols, generator=generator), torch.randn(rows, rank, generator=generator)


BLOCK = "transformer.transformer_blocks.0.attn"
SINGLE = "transformer.single_transformer_blocks.0"
UNET = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CLIP = "text_encoder.encoder.layers.0.self_attn.q_proj"

CASES = {
    "xlabs, picture": (
        "flux1", "double_blocks.0.processor.qkv_lora1", (".down.weight", ".up.weight"),
        [f"{BLOCK}.to_q", f"{BLOCK}.to_k", f"{BLOCK}.to_v"],
    ),
    "xlabs, text": (
        "flux1", "double_blocks.0.processor.proj_lora2", (".down.weight", ".up.weight"), [f"{BLOCK}.to_add_out"],
    ),
    "xlabs, queries, keys and values of a layer with more": (
        "flux1", "single_blocks.0.processor.qkv_lora", (".down.weight", ".up.weight"),
        [f"{SINGLE}.attn.to_q", f"{SINGLE}.attn.to_k", f"{SINGLE}.attn.to_v"],
    ),
    "xlabs, output": (
        "flux1", "single_blocks.0.processor.proj_lora", (".down.weight", ".up.weight"), [f"{SINGLE}.proj_out"],
    ),
    "fal": (
        "flux1", "base_model.model.double_blocks.0.img_attn.qkv", (".lora_A.weight", ".lora_B.weight"),
        [f"{BLOCK}.to_q", f"{BLOCK}.to_k", f"{BLOCK}.to_v"],
    ),
    "wan-fun": (
        "flux1", "lora_unet__double_blocks_0_img_attn_proj", (".lora_down.weight", ".lora_up.weight"),
        [f"{BLOCK}.to_out.0"],
    ),
    "without endings": ("sd1", UNET, (".lora_A", ".lora_B"), [UNET]),
    "comfy, underscore": ("sd1", UNET, ("_lora.down.weight", "_lora.up.weight"), [UNET]),
    "comfy, encoder": (
        "sdxl", "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj",
        (".lora_A.weight", ".lora_B.weight"), [CLIP],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_means_what_the_usual_spelling_means(pipes, case, tmp_path):
    kind, module, ends, paths = CASES[case]
    pipe = pipes[kind]
    sizes = [size(pipe, path) for path in paths]
    down, up = pair(sum(rows for rows, _ in sizes), sizes[0][1])
    save_file({f"{module}{ends[0]}": down, f"{module}{ends[1]}": up}, tmp_path / "a.safetensors")
    report = studio.load(pipe, tmp_path / "a.safetensors", name="dog")
    try:
        assert sorted(report.sites) == sorted(paths)
        assert set(report.applied) == {f"{module}{ends[0]}", f"{module}{ends[1]}"}  # as the file has them
        first = 0
        for path, (rows, cols) in zip(paths, sizes, strict=True):
            part, _, rest = path.partition(".")
            layer = pipe.components[part].get_submodule(rest)
            x = torch.randn(3, cols, generator=torch.Generator().manual_seed(1))
            with torch.no_grad(), blended(pipe, "dog"):
                moved = layer(x)
            with torch.no_grad(), blended(pipe, {}):
                plain = layer(x)
            expected = x @ down.T @ up[first : first + rows].T  # without an alpha the scale is 1
            assert torch.allclose(moved - plain, expected, atol=1e-4), path
            first += rows
    finally:
        studio.detach(pipe)


def test_adaloras_own_names_stay_what_they_are(pipes, tmp_path):
    """They end so too, and have a third tensor."""
    rows, cols = size(pipes["sd1"], UNET)
    down, up = pair(rows, cols)
    tensors = {f"{UNET}.lora_A": down, f"{UNET}.lora_B": up, f"{UNET}.lora_E": torch.ones(2, 1)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert studio.load(pipes["sd1"], tmp_path / "a.safetensors", name="dog").method == "adalora"
    assert adapters(pipes["sd1"])["dog"].config.method == "adalora"
    studio.detach(pipes["sd1"])


def test_rows_that_are_not_there_are_refused(pipes, tmp_path):
    down, up = pair(7, 16)
    name = "single_blocks.0.processor.qkv_lora"
    save_file({f"{name}.down.weight": down, f"{name}.up.weight": up}, tmp_path / "a.safetensors")
    with pytest.raises(DoesNotFit, match="processor.qkv_lora"):
        studio.load(pipes["flux1"], tmp_path / "a.safetensors")
