"""Presets by structure: the same words for every architecture, without a list of its names."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

import studio
from studio.adapters.contract.pattern import matches
from studio.adapters.targets.find import find_targets
from studio.adapters.targets.presets import PRESETS, resolve
from studio.adapters.targets.structure import ends_of, read_structure
from studio.errors import NoTargets, UnsupportedLayer
from tiny import llama

LLAMA = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"
BART = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj"
BERT = "attention.self.query attention.self.key attention.self.value attention.output.dense"
GATED = "mlp.gate_proj mlp.up_proj mlp.down_proj"
MLA = "self_attn.q_a_proj self_attn.q_b_proj self_attn.kv_a_proj_with_mqa self_attn.kv_b_proj self_attn.o_proj"
NONE = ""

# model type -> (the projections of one attention, those of one feed-forward), read in the models' own source
LANGUAGE = {
    "bert": (BERT, "intermediate.dense output.dense"),
    "gpt2": ("attn.c_attn attn.c_proj", "mlp.c_fc mlp.c_proj"),
    "llama": (LLAMA, GATED),
    "qwen2": (LLAMA, GATED),
    "mistral": (LLAMA, GATED),
    "gemma": (LLAMA, GATED),
    "falcon": ("self_attention.query_key_value self_attention.dense", "mlp.dense_h_to_4h mlp.dense_4h_to_h"),
    "bloom": ("self_attention.query_key_value self_attention.dense", "mlp.dense_h_to_4h mlp.dense_4h_to_h"),
    "mpt": ("attn.Wqkv attn.out_proj", "ffn.up_proj ffn.down_proj"),
    "phi": ("self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.dense", "mlp.fc1 mlp.fc2"),
    "phi3": ("self_attn.qkv_proj self_attn.o_proj", "mlp.gate_up_proj mlp.down_proj"),
    "gpt_neox": ("attention.query_key_value attention.dense", "mlp.dense_h_to_4h mlp.dense_4h_to_h"),
    "opt": (BART, "fc1 fc2"),
    "clip_text_model": (BART, "mlp.fc1 mlp.fc2"),
    "vit": ("attention.q_proj attention.k_proj attention.v_proj attention.o_proj", "mlp.fc1 mlp.fc2"),
    "wav2vec2": (
        "attention.q_proj attention.k_proj attention.v_proj attention.out_proj",
        "feed_forward.intermediate_dense feed_forward.output_dense",
    ),
    "deberta": ("attention.self.in_proj attention.output.dense", "intermediate.dense output.dense"),
    "deberta-v2": (
        "attention.self.query_proj attention.self.key_proj attention.self.value_proj attention.output.dense",
        "intermediate.dense output.dense",
    ),
    "mixtral": (LLAMA, NONE),
    "qwen3_moe": (LLAMA, NONE),
    "gpt_oss": (LLAMA, NONE),
    "deepseek_v3": (MLA, GATED),
    "gpt_bigcode": ("attn.c_attn attn.c_proj", "mlp.c_fc mlp.c_proj"),
    "modernbert": ("attn.Wqkv attn.Wo", "mlp.Wi mlp.Wo"),
}


def built(model_type: str) -> nn.Module:
    """A model of the type's own default sizes, with the head that it is usually used with, without weights."""
    config = CONFIG_MAPPING[model_type]()
    for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"):
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, min(2, getattr(config, name)))
    for name in {"layer_types", "mlp_layer_types"} & vars(config).keys():
        setattr(config, name, getattr(config, name) and getattr(config, name)[:2])
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for maker in (AutoModelForCausalLM, AutoModelForSeq2SeqLM):
            if type(config) in maker._model_mapping.keys():  # noqa: SIM118  (a lazy table)
                return maker.from_config(config)
        return AutoModel.from_config(config)


def ends(paths: list[str]) -> set[str]:
    """Paths inside one layer: what follows the first number."""
    found = set()
    for path in paths:
        parts = path.split(".")
        number = next(at for at, part in enumerate(parts) if part.isdigit())
        found.add(".".join(parts[number + 1 :]))
    return found


@pytest.mark.parametrize("model_type", LANGUAGE)
def test_attention_and_feed_forward_of(model_type: str) -> None:
    model = built(model_type)
    attention, feed_forward = (set(text.split()) for text in LANGUAGE[model_type])
    assert ends(resolve("attention", model)) == attention
    structure = read_structure(model)
    inner = [path for block in structure.feed_forwards for path in (*block.inner, *block.out)]
    extra = {path for path in ends(inner) if "shared_expert" in path}
    assert ends(inner) - extra == feed_forward
    blocks = sum(type(module).__name__.endswith(("Layer", "Block", "Attention")) for module in model.modules())
    assert 1 <= len(structure.attentions) <= blocks


def test_encoder_decoders_have_both_kinds_of_attention() -> None:
    for model_type, roles in (
        ("t5", "q k v o"),
        ("bart", "q_proj k_proj v_proj out_proj"),
        ("whisper", "q_proj k_proj v_proj out_proj"),
    ):
        model = built(model_type)
        found = resolve("attention", model)
        assert {path.rpartition(".")[2] for path in found} == set(roles.split())
        blocks = {path.rpartition(".")[0] for path in found}
        names = {block.rpartition(".")[2] for block in blocks}
        assert names in ({"SelfAttention", "EncDecAttention"}, {"self_attn", "encoder_attn"})
        assert len(found) == 4 * len(blocks)


def test_embeddings_that_only_stand_in_for_tied_ones_are_left_out() -> None:
    assert resolve("embeddings", built("t5")) == ["encoder.embed_tokens", "decoder.embed_tokens"]
    assert resolve("embeddings", built("gpt2")) == ["transformer.wte"]
    assert resolve("embeddings", built("bert")) == ["bert.embeddings.word_embeddings"]


def _diffusers(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return getattr(importlib.import_module("diffusers"), name)(**options)


DIFFUSERS: Mapping[str, tuple[dict[str, Any], str, str]] = {
    "SD3Transformer2DModel": (
        {"num_layers": 2},
        "attn.to_q attn.to_k attn.to_v attn.add_q_proj attn.add_k_proj attn.add_v_proj attn.to_out.0 attn.to_add_out",
        "ff.net.0.proj ff.net.2 ff_context.net.0.proj ff_context.net.2",
    ),
    "FluxTransformer2DModel": (
        {"num_layers": 1, "num_single_layers": 1},
        "attn.to_q attn.to_k attn.to_v attn.add_q_proj attn.add_k_proj attn.add_v_proj attn.to_out.0 attn.to_add_out "
        "single_transformer_blocks.0.proj_out",
        "ff.net.0.proj ff.net.2 ff_context.net.0.proj ff_context.net.2 "
        "single_transformer_blocks.0.proj_mlp single_transformer_blocks.0.proj_out",
    ),
    "PixArtTransformer2DModel": (
        {"num_layers": 1},
        "attn1.to_q attn1.to_k attn1.to_v attn1.to_out.0 attn2.to_q attn2.to_k attn2.to_v attn2.to_out.0",
        "ff.net.0.proj ff.net.2",
    ),
    "SanaTransformer2DModel": (
        {"num_layers": 1},
        "attn1.to_q attn1.to_k attn1.to_v attn1.to_out.0 attn2.to_q attn2.to_k attn2.to_v attn2.to_out.0",
        "ff.conv_inverted ff.conv_point",
    ),
    "UNet2DModel": ({}, "to_q to_k to_v to_out.0", ""),
}


@pytest.mark.parametrize("name", DIFFUSERS)
def test_attention_of_a_denoiser(name: str) -> None:
    options, attention, feed_forward = DIFFUSERS[name]
    model = _diffusers(name, **options)
    wanted = set(attention.split())
    found = resolve("attention", model)
    for path in found:
        assert any(matches(end, path) for end in wanted), path
    for end in wanted:
        assert any(matches(end, path) for path in found), end
    blocks = read_structure(model).feed_forwards
    assert all(any(matches(end, p) for end in feed_forward.split()) for b in blocks for p in (*b.inner, *b.out))
    for end in feed_forward.split():
        assert any(matches(end, path) for block in blocks for path in (*block.inner, *block.out)), end


def test_a_unet_by_itself_is_of_its_family() -> None:
    model = _diffusers("UNet2DConditionModel", cross_attention_dim=32)
    by_family = find_targets({"": model}, "attention")[""]
    assert set(by_family) == set(resolve("attention", model))  # the family's row and the structure agree


def test_query_value_is_what_peft_adapts_by_default() -> None:
    """Of every model type in PEFT's table that transformers has, but for the rows that name other layers."""
    peft = pytest.importorskip("peft")
    table = peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    # rows that are not the query and value projections of every attention: they name fc1 and fc2, all four roles, the
    # mixing of an RNN, or leave out the image side or the bridge of a model of several parts
    others = {"phi", "nemotron_h", "rwkv", "rwkv7", "blip-2", "gemma4"}
    checked = set()
    for model_type, names in table.items():
        if model_type in others or model_type not in CONFIG_MAPPING:
            continue
        model = built(model_type)
        linear = [path for path, module in model.named_modules() if ends_of(module) is not None]
        wanted = {path for path in linear if any(path == name or path.endswith(f".{name}") for name in names)}
        assert set(resolve("query-value", model)) == wanted, model_type
        checked.add(model_type)
    assert len(checked) >= 28


def test_other_presets_of_one_model() -> None:
    model = built("llama")
    assert ends(resolve("attention-output", model)) == {"self_attn.o_proj"}
    assert ends(resolve("mlp-output", model)) == {"mlp.down_proj"}
    assert ends(resolve("mlp", model)) == {"mlp"}
    assert resolve("mlp", built("opt"))[0].endswith("0.fc2")  # no module of its own: the projection that ends it
    assert ends([path for path in resolve("norms", model) if "layers" in path]) == {
        "input_layernorm",
        "post_attention_layernorm",
    }
    assert "lm_head" not in resolve("all-linear", model)
    assert len(resolve("all-linear", model)) == 2 * 7


def test_presets_that_find_nothing_say_what_there_is() -> None:
    with pytest.raises(
        NoTargets, match=r"'attention' finds nothing in this MambaForCausalLM, which is made of MambaBlock"
    ):
        resolve("attention", built("mamba"))
    with pytest.raises(NoTargets, match="in_proj, x_proj, dt_proj, out_proj"):
        resolve("attention", built("mamba"))
    moe = built("mixtral")
    with pytest.raises(NoTargets, match="experts stored as parameters.*'attention' or|'attention\\+experts'"):
        resolve("attention+mlp", moe)
    with pytest.raises(NoTargets, match="take targets='experts'"):
        resolve("mlp-output", moe)
    with pytest.raises(NoTargets, match="'conv' finds nothing in this Sequential"):
        resolve("conv", nn.Sequential(nn.Linear(2, 2)))


def test_every_preset_is_reachable_from_a_config() -> None:
    model = llama(intermediate_size=24, num_attention_heads=4)
    absent = {"mlp", "norms", "conv", "experts", "attention+experts"}  # of other methods, or not in this model
    for preset in PRESETS:
        config = studio.LoRA(rank=2, targets=preset)
        if preset in absent:
            with pytest.raises((NoTargets, UnsupportedLayer)):
                studio.attach(model, config)
        else:
            assert studio.attach(model, config).sites
            model(torch.tensor([[1, 2]]))  # every layer that was named is called
            studio.detach(model)


class Odd(nn.Module):
    """An attention whose names say nothing but that it is one; the shapes tell."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"in_proj": nn.Linear(8, 24), "back": nn.Linear(8, 8), "proj": nn.Linear(8, 8)})
        self.lm_head = nn.Linear(8, 32)
        self.position_embeddings = nn.Embedding(16, 8)


def test_a_fused_projection_is_known_by_its_shape() -> None:
    assert resolve("attention", Odd()) == ["attn.in_proj", "attn.proj"]


def test_a_typo_gets_the_nearest_five_beside_a_pattern_that_matches() -> None:
    model = built("llama")
    with pytest.raises(NoTargets, match="the target 'q_porj' matches no layer; the nearest layers are: ") as caught:
        find_targets({"": model}, ["v_proj", "q_porj"])
    named = str(caught.value).rpartition(": ")[2].split(", ")
    assert len(named) == 5 and named[0].endswith("q_proj")
    with pytest.raises(NoTargets, match="did you mean the preset 'attention'"):
        find_targets({"": model}, "atention")
    with pytest.raises(NoTargets, match="is a parameter of a layer; name the layer: 'q_proj'"):
        find_targets({"": model}, ["q_proj.weight"])


@pytest.mark.slow
def test_every_model_type_that_can_be_built() -> None:
    """``python -m benchmarks.targets`` prints the same by type."""
    survey = importlib.import_module("benchmarks.targets").survey
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [one for one in survey() if one.model]
    attending = [one for one in found if one.attentions or one.missing]
    assert not [one for one in found if one.wrong]
    assert len(found) > 700 and sum(one.complete for one in attending) >= 0.95 * len(attending)
