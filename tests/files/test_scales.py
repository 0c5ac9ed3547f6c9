"""What files state about the scale ``s = alpha / r``, in every form, and what becomes of it in other formats."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import studio
from studio.adapters import adapters
from studio.errors import Refused
from studio.files.convert import convert
from tests.support.tiny_pipelines import build

UNET = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_"
FLUX = "transformer.transformer_blocks.0.attn.to_"


class Two(nn.Module):
    """Two layers, one of which has the other's name at the end of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.to_q, self.block = nn.Linear(8, 8), nn.ModuleDict({"to_q": nn.Linear(8, 8)})


def pair(rank, rows=8, cols=8, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(rank, cols, generator=draws), torch.randn(rows, rank, generator=draws)


def change(model, path):
    """ΔW of a LoRA at a layer, float64."""
    tensors, config = studio.state(model), next(iter(adapters(model).values())).config
    inner = path.partition(".")[2] if path.partition(".")[0] in ("unet", "transformer") else path
    return config.scale_at(inner) * tensors[f"{path}.up"].double() @ tensors[f"{path}.down"].double()


def apart(found, wanted) -> float:
    return float((found - wanted).norm() / wanted.norm())


ALPHAS = {
    "bf16": torch.tensor(4.0, dtype=torch.bfloat16),
    "fp16, on an axis": torch.tensor([4.0], dtype=torch.float16),
    "int64": torch.tensor(4),
    "fp32": torch.tensor(4.0),
    "fp64": torch.tensor(4.0, dtype=torch.float64),
}


@pytest.mark.parametrize("form", ALPHAS)
def test_alpha_is_read_in_every_form_and_written_in_the_one_it_had(form, tmp_path):
    """Check 6: 4 at rank 16 is a scale of 0.25; type and shape are kept by saving and by converting there and back."""
    down, up = pair(16)
    tensors = {
        "lycoris_to_q.lora_down.weight": down,
        "lycoris_to_q.lora_up.weight": up,
        "lycoris_to_q.alpha": ALPHAS[form],
    }
    save_file(tensors, tmp_path / "a.safetensors")
    net = Two()
    studio.load(net, tmp_path / "a.safetensors")
    assert adapters(net)["default"].config.scale_at("to_q") == 0.25
    assert apart(change(net, "to_q"), 0.25 * up.double() @ down.double()) < 1e-12
    saved = load_file(studio.save(net, tmp_path / "b.safetensors", format="kohya"))
    convert(tmp_path / "a.safetensors", tmp_path / "c.safetensors", format="kohya", base=Two())
    for again in (saved, load_file(tmp_path / "c.safetensors")):
        assert again.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert again[key].dtype == tensor.dtype and again[key].shape == tensor.shape, key
            assert torch.equal(again[key], tensor)


def test_alphas_that_their_type_cannot_hold_are_written_wider(tmp_path):
    """Of a file with whole numbers: after a change of the rank alpha is 1.5, and stays it."""
    down, up = pair(4)
    alpha = torch.tensor(3)
    save_file(
        {"lycoris_to_q.lora_down.weight": down, "lycoris_to_q.lora_up.weight": up, "lycoris_to_q.alpha": alpha},
        tmp_path / "a.safetensors",
    )
    from studio.files.resize import resize

    resize(tmp_path / "a.safetensors", tmp_path / "b.safetensors", rank=2, base=Two())
    assert load_file(tmp_path / "b.safetensors")["lycoris_to_q.alpha"].item() == 1.5


def test_without_alpha_the_scale_is_one_and_alpha_0_changes_nothing_with_a_note(tmp_path):
    """Check 7: in kohya's and ComfyUI's names alike; alpha 0 has one reading here, A1111's, ComfyUI's and PEFT's.

    sd-scripts alone takes alpha = rank for 0, which its own files never state; there is no profile for it.
    """
    down, up = pair(4)
    for lead, parts in (
        ("lycoris_to_q", ("lora_down.weight", "lora_up.weight")),
        ("to_q", ("lora_A.weight", "lora_B.weight")),
    ):
        tensors = {f"{lead}.{parts[0]}": down, f"{lead}.{parts[1]}": up}
        save_file(tensors, tmp_path / "a.safetensors")
        net = Two()
        assert not studio.load(net, tmp_path / "a.safetensors").notes
        assert apart(change(net, "to_q"), up.double() @ down.double()) < 1e-12
    zero = {
        "lycoris_to_q.lora_down.weight": down,
        "lycoris_to_q.lora_up.weight": up,
        "lycoris_to_q.alpha": torch.tensor(0.0),
    }
    save_file(zero, tmp_path / "b.safetensors")
    net = Two()
    base = net.to_q(torch.ones(1, 8))
    report = studio.load(net, tmp_path / "b.safetensors")
    assert any("alpha is 0 at to_q" in note for note in report.notes)
    assert torch.equal(net.to_q(torch.ones(1, 8)), base)


def test_the_root_of_the_rank_and_a_pattern_that_is_anchored(tmp_path):
    """Check 8: 32 / √8 = 11.3137085; ``^to_q`` is the layer that is named exactly so."""
    tensors = {}
    for layer in ("to_q", "block.to_q"):
        tensors |= {
            f"base_model.model.{layer}.lora_{side}.weight": one for side, one in zip("AB", pair(8), strict=True)
        }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 32, "use_rslora": True, "target_modules": ["to_q"]}
    for pattern, own in (({}, 32), ({"^to_q": 8}, 8)):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"alpha_pattern": pattern}))
        net = Two()
        studio.load(net, tmp_path)
        loaded = adapters(net)["default"].config
        assert loaded.scale_at("to_q") == pytest.approx(own / math.sqrt(8), rel=1e-12)
        assert loaded.scale_at("block.to_q") == pytest.approx(11.3137085, abs=1e-7)


@pytest.mark.parametrize(("alpha", "error"), [(3.0, (1e-4, 1e-2)), (0.5, (0.0, 1e-15))], ids=["s = 0.75", "s = 0.125"])
def test_a_scale_that_is_worked_into_the_factors_is_exact_or_its_error_is_said(alpha, error, tmp_path):
    """Check 10: q and k of Flux share one alpha in kohya's file; 0.75 rounds in bf16, 0.125 does not."""
    pipe, tensors = build("flux1"), {}
    for index, layer in enumerate("qk"):
        down, up = (one.bfloat16() for one in pair(4, 32, 32, seed=index))
        tensors |= {f"{FLUX}{layer}.lora_A.weight": down, f"{FLUX}{layer}.lora_B.weight": up}
    fields = {"transformer.r": 4, "transformer.lora_alpha": 4, "transformer.alpha_pattern": {"to_k": alpha}}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(fields)})
    there = tmp_path / "b.safetensors"
    if alpha == 3.0:
        with pytest.raises(Refused, match="off in what it changes, through rounding"):
            convert(tmp_path / "a.safetensors", there, format="kohya", base=pipe)
        assert not there.exists()
    report = convert(tmp_path / "a.safetensors", there, format="kohya", base=pipe, approximate=True)
    assert error[0] <= report.error <= error[1]
    up = load_file(there)["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"]
    assert up.dtype == torch.bfloat16
    exact = torch.equal(up[32:64, 4:].double(), alpha / 4 * tensors[f"{FLUX}k.lora_B.weight"].double())
    assert exact == (alpha == 0.5)


def test_alpha_in_diffusers_metadata_counts(tmp_path):
    """Check 11: alpha 8 at rank 2 acts four times as strongly as the same tensors without metadata."""
    pipe, found = build("sd1"), {}
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = pair(2)
    tensors = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    fields = {"unet.r": 2, "unet.lora_alpha": 8, "unet.target_modules": ["to_q"]}
    for name, metadata in (("stated", {"lora_adapter_metadata": json.dumps(fields)}), ("left out", None)):
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata=metadata)
        studio.load(pipe, tmp_path / f"{name}.safetensors")
        found[name] = change(pipe, layer)
        studio.detach(pipe)
    assert apart(found["stated"], 4 * found["left out"]) < 1e-12
    assert apart(found["left out"], up.double() @ down.double()) < 1e-12


def test_alphas_of_each_layer_are_kept_and_brought_to_one_where_layers_are_one(tmp_path):
    """Check 12: 1, 4 and 16 at rank 16; the same ΔW in a config's patterns, and in Flux' one alpha for q, k and v."""
    scales = dict(zip("qkv", (1 / 16, 4 / 16, 16 / 16), strict=True))
    wanted, tensors = {}, {}
    for index, (layer, scale) in enumerate(scales.items()):
        down, up = pair(16, 32, 32, seed=index)
        tensors |= {f"{FLUX}{layer}.lora_down.weight": down, f"{FLUX}{layer}.lora_up.weight": up}
        tensors[f"{FLUX}{layer}.alpha"] = torch.tensor(16 * scale)
        wanted[f"{FLUX}{layer}"] = scale * up.double() @ down.double()
    save_file(tensors, tmp_path / "a.safetensors")
    for format in ("", "diffusers", "peft", "kohya", "native"):
        file: Path = tmp_path / "a.safetensors"
        if format:
            file = tmp_path / (format if format == "peft" else f"{format}.safetensors")
            assert convert(tmp_path / "a.safetensors", file, format=format, base=build("flux1")).error < 1e-6
        pipe = build("flux1")
        studio.load(pipe, file)
        assert all(apart(change(pipe, path), one) < 1e-6 for path, one in wanted.items()), format
    fused = load_file(tmp_path / "kohya.safetensors")
    assert sum(key.endswith("alpha") for key in fused) == 1
