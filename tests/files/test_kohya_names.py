"""kohya's names: written where they are known, refused where no program would find a layer by them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import nn

import studio
from studio.errors import DoesNotFit
from tiny import llama, t5


def _auraflow() -> Any:
    from diffusers import AuraFlowTransformer2DModel

    return AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, pos_embed_max_size=64,
    )  # fmt: skip


UNKNOWN: dict[str, Callable[[], Any]] = {
    "AuraFlowTransformer2DModel": _auraflow,
    "LlamaForCausalLM": llama,
    "T5ForConditionalGeneration": t5,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_family_without_a_table_of_names_is_refused(tmp_path: Path, name: str) -> None:
    model = UNKNOWN[name]()
    studio.attach(model, studio.LoRA(rank=2, targets="attention"))
    with pytest.raises(DoesNotFit, match=rf"how kohya's tools name the layers of a {name} is not known here.*'diff"):
        studio.save(model, tmp_path / "a.safetensors", format="kohya")
    assert not list(tmp_path.iterdir())
    assert studio.save(model, tmp_path / "a.safetensors", format="diffusers").exists()


def test_a_model_of_ones_own_has_the_names_that_lycoris_gives_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    studio.attach(model, studio.LoRA(rank=2, targets=("0",)))
    keys = load_file(studio.save(model, tmp_path / "a.safetensors", format="kohya"))
    assert sorted(keys) == ["lycoris_0.alpha", "lycoris_0.lora_down.weight", "lycoris_0.lora_up.weight"]
