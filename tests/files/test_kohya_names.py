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


def _xl_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=(2, 2),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=56,
    )


def _xl_pipeline() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    text = CLIPTextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1,
        projection_dim=8, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=None, unet=_xl_unet(), text_encoder=CLIPTextModel(text), text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=None, tokenizer_2=None, scheduler=EulerDiscreteScheduler(),
    )  # fmt: skip


def _flux() -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip


UNKNOWN: dict[str, Callable[[], Any]] = {
    "StableDiffusionXLPipeline": _xl_pipeline,
    "UNet2DConditionModel": _xl_unet,
    "FluxTransformer2DModel": _flux,
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
