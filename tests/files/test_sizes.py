"""Sizes of well-known models' adapters: hand-written configs on the meta device, no weights of any base.

The configs are the published ones of the models; the expected numbers are those that PEFT prints or publishes, and
closed formulas.
"""

from __future__ import annotations

import pytest
import torch

import studio
from studio.peft import LoraConfig, PeftModelForCausalLM, get_peft_model

transformers = pytest.importorskip("transformers")


def on_meta(make):
    with torch.device("meta"):
        return make()


def qwen():
    """Qwen2.5-3B: 36 layers of 2048, 16 heads of 128, 2 of them for keys and values, tied embeddings."""
    config = transformers.Qwen2Config(
        vocab_size=151936, hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = on_meta(lambda: transformers.Qwen2ForCausalLM(config))
    model.tie_weights()
    return model


def mt0():
    """mt0-large: 24 + 24 layers of 1024, 16 heads of 64."""
    config = transformers.MT5Config(
        vocab_size=250112, d_model=1024, d_kv=64, d_ff=2816, num_layers=24, num_decoder_layers=24, num_heads=16,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return on_meta(lambda: transformers.MT5ForConditionalGeneration(config))


def t0():
    """T0_3B: 24 + 24 layers of 2048, 32 heads of 64."""
    config = transformers.T5Config(
        vocab_size=32128, d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_decoder_layers=24, num_heads=32,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return on_meta(lambda: transformers.T5ForConditionalGeneration(config))


def stable_diffusion():
    """Stable Diffusion v1-4: the UNet (860 M numbers) and CLIP ViT-L/14's text encoder (12 layers of 768)."""
    diffusers = pytest.importorskip("diffusers")
    unet = on_meta(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
        )
    )
    config = transformers.CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=77, projection_dim=768,
    )  # fmt: skip
    return unet, on_meta(lambda: transformers.CLIPTextModel(config))


def materialise(model):
    """Gives the adapters' tensors memory: zeros, which take as many bytes in a file as any other numbers."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.requires_grad and parameter.device.type == "meta":
                module._parameters[name] = torch.nn.Parameter(torch.zeros(parameter.shape))


def size_of(folder):
    return (folder / "adapter_model.safetensors").stat().st_size


def numbers(model):
    return sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())


def test_qwen_prints_what_peft_prints(capsys):
    model = get_peft_model(qwen(), LoraConfig(r=16, lora_alpha=32, task_type="CAUSAL_LM"))
    assert isinstance(model, PeftModelForCausalLM)
    model.print_trainable_parameters()
    wanted = "trainable params: 3,686,400 || all params: 3,089,625,088 || trainable%: 0.1193\n"  # PEFT's own README
    assert capsys.readouterr().out == wanted
    per_layer = 16 * (2048 + 2048) + 16 * (2048 + 256)  # q_proj and v_proj
    assert model.get_nb_trainable_parameters()[0] == 36 * per_layer


def test_mt0_large_trains_what_peft_trains():
    model = get_peft_model(mt0(), LoraConfig(r=8, lora_alpha=32, task_type="SEQ_2_SEQ_LM"))
    assert model.get_nb_trainable_parameters()[0] == 72 * 2 * 8 * (1024 + 1024) == 2_359_296


def test_t0_saves_nineteen_megabytes(tmp_path):
    """PEFT's documentation says 19 MB beside the 11 GB of the model."""
    base = t0()
    assert numbers(base) * 4 / 1e9 == pytest.approx(11.1, abs=0.1)  # transformers 5 ties the head
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=32, task_type="SEQ_2_SEQ_LM"))
    trained = model.get_nb_trainable_parameters()[0]
    assert trained == 72 * 2 * 8 * (2048 + 2048)
    materialise(base)
    model.save_pretrained(tmp_path)
    header = size_of(tmp_path) - 4 * trained
    assert 0 < header < 60_000  # names and places of 288 tensors
    assert size_of(tmp_path) / 1e6 == pytest.approx(18.9, abs=0.1)


def test_stable_diffusion_saves_nine_megabytes(tmp_path):
    """PEFT's documentation says 8.8 MB beside the 3.4 GB of the model, which are the UNet's."""
    unet, encoder = stable_diffusion()
    numbers_before = numbers(unet)
    assert numbers_before == 859_520_964 and numbers(encoder) == 123_060_480
    for module, targets in ((unet, ["to_q", "to_v"]), (encoder, ["q_proj", "v_proj"])):
        model = get_peft_model(module, LoraConfig(r=16, lora_alpha=16, target_modules=targets))
        materialise(module)
        model.save_pretrained(tmp_path / type(module).__name__)
        assert studio.trainable(module).trainable == model.get_nb_trainable_parameters()[0]
    total = sum(size_of(folder) for folder in tmp_path.iterdir())
    assert numbers_before * 4 / 1e9 == pytest.approx(3.4, abs=0.05)
    assert total / 1e6 == pytest.approx(8.8, abs=0.05)
