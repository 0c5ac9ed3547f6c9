"""Names of other versions of transformers and diffusers: a file of either time loads on a base of either."""

from __future__ import annotations

import json

import peft
import pytest
import torch
import transformers
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import studio
from studio.errors import PartialLoad, StudioError
from studio.files.names import Names
from studio.files.renames import RENAMES, other_names
from tests.support.tiny_pipelines import build

TEXT = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SEEN = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
ALONE = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
BLOCKS = {"depth": 1, "hidden_size": 16, "num_heads": 2, "patch_size": 4}
ROTATED = {**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}}
MLLAMA = {
    "text_config": {**TEXT, "cross_attention_layers": [], "rope_scaling": {"rope_type": "default"}},
    "vision_config": {**SEEN, "num_global_layers": 1, "attention_heads": 2, "vision_output_dim": 32,
                      "intermediate_layers_indices": [0]},
}  # fmt: skip


def seeing(cls, config, text, vision, **more):
    """A vision-language model: its class, its config's, those of the two inside it."""

    def make():
        both = {"text_config": getattr(transformers, text)(**TEXT), "vision_config": getattr(transformers, vision)}
        return getattr(transformers, cls)(
            getattr(transformers, config)(**{**both, "vision_config": both["vision_config"](**SEEN)}, **more)
        )

    return make


def plain(cls, config, **fields):
    return lambda: getattr(transformers, cls)(getattr(transformers, config)(**fields))


MODELS = {
    "llava": seeing("LlavaForConditionalGeneration", "LlavaConfig", "LlamaConfig", "CLIPVisionConfig"),
    "llava without its head": seeing("LlavaModel", "LlavaConfig", "LlamaConfig", "CLIPVisionConfig"),
    "llava-next": seeing("LlavaNextForConditionalGeneration", "LlavaNextConfig", "LlamaConfig", "CLIPVisionConfig"),
    "llava-onevision": seeing(
        "LlavaOnevisionForConditionalGeneration", "LlavaOnevisionConfig", "Qwen2Config", "SiglipVisionConfig"
    ),
    "paligemma": seeing(
        "PaliGemmaForConditionalGeneration", "PaliGemmaConfig", "GemmaConfig", "SiglipVisionConfig", projection_dim=16
    ),
    "gemma3": seeing(
        "Gemma3ForConditionalGeneration", "Gemma3Config", "Gemma3TextConfig", "SiglipVisionConfig",
        mm_tokens_per_image=4,
    ),
    "mistral3": seeing("Mistral3ForConditionalGeneration", "Mistral3Config", "MistralConfig", "PixtralVisionConfig"),
    "mllama": plain("MllamaForConditionalGeneration", "MllamaConfig", **MLLAMA),
    "qwen2-vl": plain(
        "Qwen2VLForConditionalGeneration", "Qwen2VLConfig", text_config=ROTATED,
        vision_config={**BLOCKS, "embed_dim": 16, "mlp_ratio": 2},
    ),
    "qwen2.5-vl": plain(
        "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig", text_config=ROTATED,
        vision_config={**BLOCKS, "intermediate_size": 32, "out_hidden_size": 16, "fullatt_block_indexes": [0]},
    ),
    "gpt-neox": plain("GPTNeoXForCausalLM", "GPTNeoXConfig", **ALONE),
    "vit": plain("ViTForImageClassification", "ViTConfig", **SEEN),
    "beit": plain("BeitModel", "BeitConfig", **SEEN),
    "dinov2": plain("Dinov2Model", "Dinov2Config", **SEEN),
    "swin": plain("SwinModel", "SwinConfig", embed_dim=8, depths=[1], num_heads=[2], image_size=16, patch_size=4,
                  window_size=2),
}  # fmt: skip
"""transformers 5 saves these under their older names."""


@pytest.fixture(scope="module")
def made():
    """Returns a maker of models by name; each is made once."""
    kept: dict[str, nn.Module] = {}

    def make(name):
        if name not in kept:
            torch.manual_seed(0)
            kept[name] = MODELS[name]()
        return kept[name]

    return make


def linears(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def older(model, folder):
    """Layer -> what transformers calls it in a checkpoint, told by the bytes of its weight."""
    with torch.no_grad():
        for number, tensor in enumerate(model.parameters()):
            tensor.fill_(number + 1)
    model.save_pretrained(folder)
    places = {id(tensor): number + 1 for number, tensor in enumerate(model.parameters())}
    with safe_open(next(folder.glob("*.safetensors")), "pt") as opened:
        saved = {int(opened.get_tensor(key).flatten()[0]): key.removesuffix(".weight") for key in list(opened.keys())}
    wanted = {name: places[id(model.get_submodule(name).weight)] for name in linears(model)}
    return {name: saved[place] for name, place in wanted.items() if place in saved}


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_of_the_older_names_loads_on_todays_classes(made, name, tmp_path):
    """Every Linear layer of the model, under the names that transformers' own table makes of them."""
    model = made(name)
    names = older(model, tmp_path / "checkpoint")
    tied = getattr(model.config, "tie_word_embeddings", False)
    names = {now: then for now, then in names.items() if not (tied and now == "lm_head")}
    assert len(names) > 4 and any(now != then for now, then in names.items())
    tensors = {}
    for number, (now, then) in enumerate(names.items()):
        layer = model.get_submodule(now)
        tensors[f"base_model.model.{then}.lora_A.weight"] = torch.full((1, layer.in_features), number + 1.0)
        tensors[f"base_model.model.{then}.lora_B.weight"] = torch.full((layer.out_features, 1), 1.0)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": sorted(names.values())}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    report = studio.load(model, folder)
    try:
        assert set(report.applied) == set(tensors) and not report.ignored  # every key
        state = studio.state(model)
        for number, now in enumerate(names):
            down = state[f"{now}.down"]
            assert torch.equal(down, torch.full_like(down, number + 1.0)), now
        assert studio.adapters(model)["default"].config.scale_at(next(iter(names))) == 2.0
    finally:
        studio.detach(model)


# -- CLIP --------------------------------------------------------------------------------------------------------------

Q_PROJ = "encoder.layers.0.self_attn.q_proj"


def clip(cls):
    torch.manual_seed(3)
    return getattr(transformers, cls)(transformers.CLIPTextConfig(**ALONE, projection_dim=16))


def pair(prefix, down, up, rows=16, cols=16):
    draw = torch.Generator().manual_seed(5)
    return {
        f"{prefix}.{down}": torch.randn(2, cols, generator=draw),
        f"{prefix}.{up}": torch.randn(rows, 2, generator=draw),
    }


@pytest.mark.parametrize(("cls", "level"), [("CLIPTextModel", ""), ("CLIPTextModelWithProjection", "text_model.")])
@pytest.mark.parametrize("written", ["text_model_", ""])
def test_kohyas_names_of_clip_with_and_without_its_level(cls, level, written, tmp_path):
    """Check 24: ``lora_te1_text_model_…`` is of both classes, and what is written says ``text_model``."""
    model = clip(cls)
    name = f"lora_te1_{written}{Q_PROJ.replace('.', '_')}"
    tensors = pair(name, "lora_down.weight", "lora_up.weight")
    save_file(tensors, tmp_path / "a.safetensors")
    report = studio.load(model, tmp_path / "a.safetensors")
    assert report.sites == (f"{level}{Q_PROJ}",) and set(report.applied) == set(tensors)
    x = torch.randn(3, 16)
    layer = model.get_submodule(f"{level}{Q_PROJ}")
    down, up = tensors.values()
    expected = x @ layer.weight.T + layer.bias + x @ down.T @ up.T
    assert torch.allclose(layer(x), expected, atol=1e-5)
    for format in ("kohya", "diffusers") if cls == "CLIPTextModel" else ("diffusers",):
        keys = load_file(studio.save(model, tmp_path / f"{format}.safetensors", format=format))
        assert keys and all("text_model" in key for key in keys)


@pytest.mark.parametrize(("cls", "level"), [("CLIPTextModel", ""), ("CLIPTextModelWithProjection", "text_model.")])
@pytest.mark.parametrize("written", ["text_model.", ""])
def test_a_peft_folder_of_clip_with_and_without_its_level(cls, level, written, tmp_path):
    """Check 25: it gives what PEFT gives, whose own reader loads nothing of the other spelling."""
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    theirs = peft.get_peft_model(clip(cls), config)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    head = "base_model.model."
    save_file({key.replace(head + level, head + written): one for key, one in load_file(file).items()}, file)
    ids = torch.arange(12).reshape(2, 6)
    wanted = theirs(input_ids=ids).last_hidden_state
    model = clip(cls)
    assert not torch.allclose(model(input_ids=ids).last_hidden_state, wanted, atol=1e-3)
    report = studio.load(model, tmp_path)
    assert len(report.applied) == 4 and not report.ignored
    assert torch.allclose(model(input_ids=ids).last_hidden_state, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("cls", "config"),
    [("CLIPVisionModel", "CLIPVisionConfig"), ("SiglipVisionModel", "SiglipVisionConfig")],
)
def test_vision_models_lost_their_level(cls, config, tmp_path):
    model = plain(cls, config, **SEEN)()
    tensors = pair(f"vision_model.{Q_PROJ}", "lora_A.weight", "lora_B.weight")
    save_file(tensors, tmp_path / "a.safetensors")
    assert studio.load(model, tmp_path / "a.safetensors").sites == (Q_PROJ,)


def test_a_vision_models_file_is_not_a_text_models(tmp_path):
    """Both have layers of these names and sizes; what a file says in front tells them apart."""
    model = clip("CLIPTextModel")
    save_file(pair(f"vision_model.{Q_PROJ}", "lora_A.weight", "lora_B.weight"), tmp_path / "a.safetensors")
    with pytest.raises(StudioError, match="vision_model"):
        studio.load(model, tmp_path / "a.safetensors")


# -- the others --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headed", "bare", "config", "level", "layer"),
    [
        ("GPT2LMHeadModel", "GPT2Model", transformers.GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2),
         "transformer.", "h.0.attn.c_attn"),
        ("LlamaForCausalLM", "LlamaModel", transformers.LlamaConfig(**TEXT), "model.", "layers.0.mlp.up_proj"),
    ],
)  # fmt: skip
def test_with_a_head_and_without(headed, bare, config, level, layer, tmp_path):
    """A PEFT folder of the model with a head on the model without, and the other way round: PEFT's own output."""
    lora = peft.LoraConfig(r=2, target_modules=[layer.rpartition(".")[2]], init_lora_weights=False)
    ids = torch.arange(6).reshape(1, 6)
    for writer, reader in ((headed, bare), (bare, headed)):
        torch.manual_seed(0)
        body = getattr(transformers, bare)(config).eval()
        whole = getattr(transformers, headed)(config).eval()
        whole.base_model.load_state_dict(body.state_dict())
        models = {bare: body, headed: whole}
        theirs = peft.get_peft_model(models[writer], lora)
        theirs.save_pretrained(tmp_path / writer)
        inner = models[writer].base_model if writer == headed else models[writer]
        wanted = inner(input_ids=ids).last_hidden_state
        report = studio.load(models[reader], tmp_path / writer)
        assert report.sites == ((layer if reader == bare else level + layer),) and not report.ignored
        inner = models[reader].base_model if reader == headed else models[reader]
        assert torch.allclose(inner(input_ids=ids).last_hidden_state, wanted, atol=1e-5)


def test_the_attention_blocks_of_old_autoencoders(tmp_path):
    """diffusers' own reader of such checkpoints turns these names into those."""
    vae = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",), layers_per_block=1,
    )  # fmt: skip
    place = "decoder.mid_block.attentions.0"
    tensors = {}
    for old in ("query", "key", "value", "proj_attn"):
        tensors |= pair(f"{place}.{old}", "lora_A.weight", "lora_B.weight", 8, 8)
    save_file(tensors, tmp_path / "a.safetensors")
    report = studio.load(vae, tmp_path / "a.safetensors")
    assert set(report.sites) == {f"{place}.{now}" for now in ("to_q", "to_k", "to_v", "to_out.0")}
    assert set(report.applied) == set(tensors)


class _Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(16, 16)])})
        self.lm_head = nn.Linear(16, 16)


class LlavaForConditionalGeneration(nn.Module):
    """The names of transformers 4.51 under the class's own name."""

    def __init__(self) -> None:
        super().__init__()
        self.language_model = _Inner()
        self.vision_tower = nn.Linear(16, 16)


def test_a_file_of_todays_names_loads_on_an_older_class(tmp_path):
    model = LlavaForConditionalGeneration()
    now = {
        "model.language_model.layers.0": "language_model.model.layers.0",
        "lm_head": "language_model.lm_head",
        "model.vision_tower": "vision_tower",
    }
    tensors = {key: one for name in now for key, one in pair(name, "lora_A.weight", "lora_B.weight").items()}
    save_file(tensors, tmp_path / "a.safetensors")
    report = studio.load(model, tmp_path / "a.safetensors")
    assert set(report.sites) == set(now.values()) and set(report.applied) == set(tensors)


def test_both_names_of_one_layer_in_a_file_are_refused(made, tmp_path):
    model = made("llava")
    rest = "layers.0.self_attn.q_proj"
    tensors = {
        **pair(f"language_model.model.{rest}", "lora_A.weight", "lora_B.weight"),
        **pair(f"model.language_model.{rest}", "lora_A.weight", "lora_B.weight"),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(PartialLoad, match="another name in the file means the same layer"):
        studio.load(model, tmp_path / "a.safetensors")


def test_patterns_of_a_config_are_read_in_the_files_own_names(made, tmp_path):
    """Rank and alpha by patterns of the older names."""
    model = made("qwen2-vl")
    names = {"model.layers.0.mlp.up_proj": (16, 32), "model.layers.0.mlp.gate_proj": (16, 32)}
    tensors = {}
    for name, (cols, rows) in names.items():
        tensors |= pair(f"base_model.model.{name}", "lora_A.weight", "lora_B.weight", rows, cols)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "alpha_pattern": {"^model.layers.0.mlp.up_proj": 8}}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["up_proj", "gate_proj"]}))
    studio.load(model, tmp_path)
    found = studio.adapters(model)["default"].config
    inside = "model.language_model.layers.0.mlp."
    assert (found.scale_at(f"{inside}up_proj"), found.scale_at(f"{inside}gate_proj")) == (4.0, 1.0)
    studio.detach(model)


def test_another_name_is_never_that_of_a_layer_and_tells_one(made):
    for name in MODELS:
        model = made(name)
        own = {path for path, _ in model.named_modules()}
        others = other_names(type(model).__name__, own)
        assert others and not own & others.keys() and set(others.values()) <= own
    assert other_names("CLIPTextModel", ["a", "text_model.a"]) == {}
    # two layers that would have the same other name have none
    assert other_names("VQModel", ["query.to_k", "to_q.key"]) == {}
    assert "x" not in other_names("CLIPTextModel", ["text_model.x", "text_model.text_model.x", "x"])


@pytest.mark.parametrize("row", RENAMES, ids=lambda row: f"{row.older} {row.newer}")
def test_every_row_is_of_classes_that_there_are(row):
    import re

    import diffusers

    known = {*dir(transformers), *dir(diffusers), "UNet1DModel"}
    assert any(re.search(row.classes, cls) for cls in known)


def test_families_layers_have_their_own_names_first():
    """Another name never takes a layer's name away from it, in any family."""
    for kind in ("sd1", "sdxl", "flux1"):
        names = Names(build(kind))
        for path in names.paths:
            assert names.find_dotted(names.dotted(path)) == path
