"""Files that do not fit, wholly or in part: one sentence each, and the model stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import studio
from studio.errors import BadConfig, BadFile, DoesNotFit, PartialLoad
from studio.families import open_base
from studio.files.detect import guess_family, sort_keys
from studio.files.header import TensorInfo


@pytest.fixture(scope="module")
def tiny(tiny_base):
    return open_base(tiny_base).pipe


@pytest.fixture
def unet(tiny):
    return copy.deepcopy(tiny.unet)


@pytest.fixture
def file(tmp_path, unet):
    """A sound file of the UNet, which carries nothing when the test begins."""
    studio.attach(unet, studio.LoRA(rank=2, alpha=1.0, targets=("to_q", "to_k")))
    studio.save(unet, tmp_path / "dog.safetensors", metadata={"trigger": "sks"})
    studio.detach(unet)
    return tmp_path / "dog.safetensors"


def respelled(file, change):
    """Rewrites a file with other keys; ``change`` returns a key's new name, or None to leave it out."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = {change(key): tensor.clone() for key, tensor in load_file(file).items() if change(key) is not None}
    save_file(tensors, file, metadata=metadata)
    return file


def untouched(model, error, match, file, **options):
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    with pytest.raises(error, match=match) as caught:
        studio.load(model, file, **options)
    assert studio.adapters(model) == {} and [type(module) for module in model.modules()] == classes
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert len(model.state_dict()) == len(before) and "\n" not in str(caught.value)
    return str(caught.value)


LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def test_a_misspelt_layer_is_named_with_the_right_one(file, unet):
    respelled(file, lambda key: key.replace(f"{LAYER}.lora_A", f"{LAYER}q.lora_A"))
    said = untouched(unet, PartialLoad, "2 of the 32 keys", file)
    assert f"unet.{LAYER}q.lora_A.weight" in said and f"the nearest is 'unet.{LAYER}'" in said
    assert "allow_partial=True" in said
    report = studio.load(unet, file, allow_partial=True)
    assert set(report.ignored) == {f"unet.{LAYER}q.lora_A.weight", f"unet.{LAYER}.lora_B.weight"}
    assert len(report.applied) == 30 and LAYER not in report.sites and len(report.sites) == 15


def test_a_misspelt_tensor_is_named_with_the_right_one(file, unet):
    respelled(file, lambda key: key.replace(f"{LAYER}.lora_A.weight", f"{LAYER}.lora_a.weight"))
    said = untouched(unet, PartialLoad, "2 of the 32 keys", file)
    assert "lora_a.weight" in said and "the nearest is 'lora_A.weight'" in said
    assert len(studio.load(unet, file, allow_partial=True).ignored) == 2


def test_a_misspelt_kohya_key(tmp_path, unet):
    studio.attach(unet, studio.LoRA(rank=2, targets=("to_q", "to_k")))
    file = studio.save(unet, tmp_path / "a.safetensors", format="kohya")
    studio.detach(unet)
    flat = f"lora_unet_{LAYER}".replace(".", "_")
    respelled(file, lambda key: key.replace(flat, flat.replace("mid_block", "midblock")))
    said = untouched(unet, PartialLoad, "3 of the 48 keys", file)
    assert f"the nearest is '{flat}'" in said


def test_one_key_gone_makes_its_partner_useless(file, unet):
    respelled(file, lambda key: None if key == f"unet.{LAYER}.lora_A.weight" else key)
    untouched(unet, PartialLoad, r"incomplete: lora_A\.weight of the same layer is not in the file", file)


def test_a_method_that_is_not_read_beside_two_that_are(file, unet):
    tensors = load_file(file)
    extra = {f"unet.{LAYER[:-1]}v.ia3_l": torch.ones(16, 1), "unet.conv_in.bm.weight": torch.ones(2, 2)}
    save_file({**tensors, **extra}, file)
    assert "GLoRA" in untouched(unet, PartialLoad, "1 of the 34 keys", file)
    report = studio.load(unet, file, allow_partial=True)
    assert len(report.applied) == 33 and report.method == "lora+ia3"


def test_formats_may_be_mixed(file, unet):
    """Keys are classified one by one."""
    flat = f"lora_unet_{LAYER}".replace(".", "_")
    names = {
        f"unet.{LAYER}.lora_A.weight": f"{flat}.lora_down.weight",
        f"unet.{LAYER}.lora_B.weight": f"{flat}.lora_up.weight",
    }
    respelled(file, lambda key: names.get(key, key))
    report = studio.load(unet, file)
    assert len(report.applied) == 32 and report.format == "diffusers"
    config = studio.adapters(unet)["default"].config
    assert config.scale_at(LAYER) == 1.0 and config.scale_at(LAYER.replace("to_q", "to_k")) == 0.5


def test_a_bundled_embedding_and_other_strangers_are_named(file, unet):
    save_file({**load_file(file), "bundle_emb.dog.clip_l": torch.ones(1, 4), "lora_controlnet": torch.ones(1)}, file)
    said = untouched(unet, PartialLoad, "2 of the 34 keys", file)
    assert "text embedding" in said and "Control-LoRA" in said


def test_the_same_layer_twice(file, unet):
    tensors = load_file(file)
    save_file(
        {**tensors, f"{LAYER}.lora_A.weight": torch.ones(2, 16), f"{LAYER}.lora_B.weight": torch.ones(16, 2)}, file
    )
    untouched(unet, PartialLoad, "another name in the file means the same layer", file)


def family_file(folder, keys):
    tensors = {}
    for module, width in keys.items():
        down, up = ("lora_down", "lora_up") if module.startswith("lora_") else ("lora_A", "lora_B")
        tensors |= {f"{module}.{down}.weight": torch.ones(4, width), f"{module}.{up}.weight": torch.ones(width, 4)}
    save_file(tensors, folder / "other.safetensors")
    return folder / "other.safetensors"


OTHERS = {
    "Stable Diffusion XL": {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": 640,
        "lora_te2_text_model_encoder_layers_0_mlp_fc1": 1280,
    },
    "Flux.1": {"transformer.single_transformer_blocks.0.attn.to_q": 3072},
    "Stable Diffusion 3": {"lora_unet_joint_blocks_0_x_block_attn_qkv": 1536},
    "Stable Diffusion 2.x": {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": 1024},
    "Wan video": {"diffusion_model.blocks.0.self_attn.q": 1536},
    "a language model": {"base_model.model.model.layers.0.self_attn.q_proj": 64},
}


@pytest.mark.parametrize("title", list(OTHERS))
def test_a_file_for_another_family_says_so(tmp_path, unet, tiny, title):
    file = family_file(tmp_path, OTHERS[title])
    said = untouched(unet, DoesNotFit, f"is an adapter for {title}, the model is Stable Diffusion 1.x", file)
    assert str(file) in said
    untouched(tiny.text_encoder, DoesNotFit, title, file, allow_partial=True)
    with pytest.raises(DoesNotFit, match=title):
        studio.load(tiny, file)


def test_families_are_told_by_widths_too():
    def guess(module, width):
        infos = {f"{module}.lora_A.weight": TensorInfo("F32", (4, width), 0, 0)}
        return guess_family(sort_keys(infos), infos)[0]

    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    assert [guess(layer, width) for width in (768, 1024, 2048, 99)] == ["sd1", "sd2", "sdxl", ""]
    text = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    assert [guess(text, width) for width in (768, 1024, 1280, 99)] == ["sd1", "sd2", "sdxl", ""]
    assert guess("base_model.model.model.layers.0.self_attn.q_proj", 768) == "llm"


def test_tensors_of_another_width(file, unet, tmp_path):
    tensors = load_file(file)
    wide = {
        key: torch.ones(2, 99) if key == f"unet.{LAYER}.lora_A.weight" else tensor for key, tensor in tensors.items()
    }
    save_file(wide, file)
    said = untouched(unet, PartialLoad, "2 of the 32 keys", file)
    assert LAYER in said and "(2, 99)" in said
    assert len(studio.load(unet, file, allow_partial=True).sites) == 15
    studio.detach(unet)
    save_file({key: torch.ones(3, 5) for key in tensors}, file)
    untouched(unet, DoesNotFit, "nothing in", file, allow_partial=True)


def test_layers_that_no_adapter_can_change(tmp_path):
    net = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    pair = {"lora_A.weight": torch.ones(1, 4), "lora_B.weight": torch.ones(4, 1)}
    save_file(
        {f"{place}.{part}": value.clone() for place in (0, 1) for part, value in pair.items()},
        tmp_path / "a.safetensors",
    )
    untouched(net, PartialLoad, "LayerNorm", tmp_path / "a.safetensors")


def test_what_is_no_adapter(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4))
    file = tmp_path / "a.safetensors"
    save_file(net.state_dict(), file)
    untouched(net, BadFile, "whole tensor of the base", file)
    save_file({}, file)
    untouched(net, BadFile, "holds no adapter", file)
    save_file({"x.bm.weight": torch.ones(1)}, file)
    untouched(net, BadFile, "GLoRA", file)
    save_file({"x.hada_w1_a": torch.ones(1)}, file)
    untouched(net, BadFile, "incomplete: hada_w1_b", file)
    file.write_bytes(b"\x89PNG\r\n\x1a\n and so on")
    untouched(net, BadFile, "not a safetensors file", file)
    untouched(net, BadFile, "there is no file", tmp_path / "b.safetensors")
    (tmp_path / "empty").mkdir()
    untouched(net, BadFile, r"holds no adapter_model\.safetensors or .*found: nothing", tmp_path / "empty")


def test_truncated_at_every_tenth(file, unet):
    content = file.read_bytes()
    for tenth in range(10):
        file.write_bytes(content[: len(content) * tenth // 10])
        untouched(unet, BadFile, "truncated|too few", file)


def test_other_dtypes_and_zero_alpha(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4))
    file = tmp_path / "a.safetensors"
    save_file({"0.lora_A.weight": torch.ones(1, 4, dtype=torch.int8), "0.lora_B.weight": torch.ones(4, 1)}, file)
    untouched(net, DoesNotFit, "int8", file)
    ones = {"lycoris_0.lora_down.weight": torch.ones(1, 4), "lycoris_0.lora_up.weight": torch.ones(4, 1)}
    save_file({**ones, "lycoris_0.alpha": torch.tensor(0.0)}, file)
    x = torch.randn(2, 4)
    before = net(x)
    report = studio.load(net, file)
    assert torch.equal(net(x), before) and any("alpha is 0" in note for note in report.notes)


def test_pickled_files_only_on_request(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4))
    file = tmp_path / "a.bin"
    tensors = {"0.lora_A.weight": torch.ones(1, 4), "0.lora_B.weight": torch.ones(4, 1)}
    torch.save(tensors, file)
    untouched(net, BadFile, "pickled=True", file)
    assert len(studio.load(net, file, pickled=True).applied) == 2
    studio.detach(net)

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"x": Trap()}, file)
    untouched(net, BadFile, "more than tensors", file, pickled=True)
    assert not (tmp_path / "ran").exists()


def test_bad_names(file, unet):
    untouched(unet, BadConfig, "cannot name an adapter", file, name="a b")


def test_hostile_metadata_is_only_text(file, unet):
    tensors = load_file(file)
    deep = "[" * 100_000
    entries = [
        deep,
        "[]",
        '{"method": 3}',
        '{"method": "dora", "config": {}}',
        '{"method": "lora", "config": {"rank": -1}}',
    ]
    for entry in [*entries, '{"method": "lora", "config": {"rank": 64}}']:
        metadata = {"studio": entry}
        save_file(tensors, file, metadata=metadata)
        report = studio.load(unet, file)
        assert report.method == "lora" and studio.adapters(unet)["default"].config.rank == 2
        studio.detach(unet)
    save_file(tensors, file, metadata={"lora_adapter_metadata": deep})
    untouched(unet, BadFile, "lora_adapter_metadata", file)


def test_a_family_less_model_takes_any_prefix(tmp_path):
    net = nn.ModuleDict({"a": nn.Linear(4, 4)})
    for prefix in ("", "unet.", "transformer.", "base_model.model."):
        pair = {f"{prefix}a.lora_A.weight": torch.ones(1, 4), f"{prefix}a.lora_B.weight": torch.ones(4, 1)}
        save_file(pair, tmp_path / "a.safetensors")
        assert studio.load(net, tmp_path / "a.safetensors", allow_partial=True).sites == ("a",)
        studio.detach(net)
