"""MLX's adapter folders: factors the other way round, one rank and scale, blocks counted from the end."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import studio
from studio.errors import BadFile, DoesNotFit, PartialLoad, StudioError
from studio.files.export import export
from studio.files.mlx import MLX_FILE
from tests.support.tiny import language, llama, shaken

PAIR = {"model.layers.1.self_attn.q_proj.lora_a": torch.ones(16, 2), "model.layers.1.self_attn.q_proj.lora_b":
        torch.ones(2, 16)}  # fmt: skip
CONFIG = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0}}


def adapted(model, config):
    studio.attach(model, config)
    return shaken(model)


def written(folder, tensors=PAIR, **fields):
    folder.mkdir(exist_ok=True)
    save_file({key: one.clone() for key, one in tensors.items()}, folder / MLX_FILE)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **fields}))
    return folder


def read(folder):
    return json.loads((folder / "adapter_config.json").read_text()), load_file(folder / MLX_FILE)


def placed(path):
    """A layer of GPT-2 as mlx_lm calls it; others have transformers' names."""
    return path.replace("transformer.", "model.", 1)


LORA = studio.LoRA(rank=2, alpha=3.0, targets="all-linear", rank_pattern={"re:.*(q_proj|c_fc)": 4},
                   alpha_pattern={"re:.*(down_proj|c_attn)": 0.7})  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt2"])
@pytest.mark.parametrize("config", [LORA, studio.DoRA(rank=2, alpha=3.0, targets="all-linear")], ids=["lora", "dora"])
def test_merged_by_mlx_lms_rule_it_is_the_baked_model(name, config, tmp_path):
    """``W + scale · (lora_a lora_b)ᵀ``, with DoRA each row brought to the length ``m``; in float64, layer by layer."""
    model = adapted(language(name), config)
    paths = studio.adapters(model)["default"].sites
    before = {path: model.get_submodule(path).weight.detach().double() for path in paths}
    assert export(model, tmp_path / "a", format="mlx").error < 1e-6
    studio.bake(model)
    fields, tensors = read(tmp_path / "a")
    stated = fields["lora_parameters"]
    assert fields["fine_tune_type"] == config.method and stated["rank"] == (4 if config is LORA else 2)
    for path in paths:
        a, b = (tensors[f"{placed(path)}.{end}"].double() for end in ("lora_a", "lora_b"))
        assert a.shape[1] == b.shape[0] == stated["rank"]
        turn = (lambda one: one.T) if name == "gpt2" else (lambda one: one)
        whole = turn(before[path]) + stated["scale"] * (a @ b).T
        if config.method == "dora":
            whole *= (tensors[f"{placed(path)}.m"].double() / whole.norm(dim=1))[:, None]
        new = turn(model.get_submodule(path).weight.detach().double())
        assert torch.allclose(whole, new, atol=3e-6) and not torch.allclose(turn(before[path]), new, atol=1e-3), path


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_mlx_lm_finds_each_layer_that_has_tensors(name, tmp_path):
    """It looks for ``keys`` inside the last ``num_layers`` blocks, and for whole names; what it finds must be all."""
    block = r"re:.*\.1\." if name == "llama" else r"re:.*h\.1\."
    model = language(name)
    adapted(model, studio.LoRA(rank=2, targets=(block + r".*(q_proj|c_attn|up_proj)",)))
    export(model, tmp_path / "a", format="mlx")
    fields, tensors = read(tmp_path / "a")
    last = range(2 - fields["num_layers"], 2)
    found = {f"model.{'layers' if name == 'llama' else 'h'}.{i}.{key}" for i in last
             for key in fields["lora_parameters"]["keys"]}  # fmt: skip
    assert fields["num_layers"] == 1 and {key.rpartition(".")[0] for key in tensors} == found


def test_a_head_is_named_by_its_whole_name_and_a_tied_one_refused(tmp_path):
    model = adapted(llama(tie_word_embeddings=False), studio.LoRA(rank=2, targets=("lm_head", "up_proj")))
    export(model, tmp_path / "a", format="mlx")
    assert read(tmp_path / "a")[0]["lora_parameters"]["keys"] == ["lm_head", "mlp.up_proj"]
    tied = adapted(llama(tie_word_embeddings=True), studio.LoRA(rank=2, targets=("lm_head",)))
    with pytest.raises(DoesNotFit, match="tied head"):
        export(tied, tmp_path / "b", format="mlx")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("config", [LORA, studio.DoRA(rank=3, dropout=0.1, targets="attention")], ids=["lora", "dora"])
def test_what_is_written_is_read_and_written_again(config, tmp_path):
    model = adapted(llama(), config)
    studio.save(model, tmp_path / "a", format="mlx", metadata={"base": "tiny"})
    studio.detach(model)
    report = studio.load(model, tmp_path / "a")
    assert (report.format, report.method, dict(report.ignored)) == ("mlx", config.method, {})
    studio.save(model, tmp_path / "b", format="mlx")
    for name in ("adapter_config.json", MLX_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    found, scale = studio.inspect(tmp_path / "a"), read(tmp_path / "a")[0]["lora_parameters"]["scale"]
    assert (found.format, found.method, found.facts["base"]) == ("mlx", config.method, "tiny")
    assert found.ranks == {4 if config is LORA else 3: len(report.sites)} and found.scales == {scale: len(report.sites)}


def test_check_37_the_scale_is_the_multiplier_itself(tmp_path):
    """Check 37: ``lora_a`` and ``lora_b`` at scale 20 are PEFT's pair with alpha = 20 r."""
    model, path = llama(), "model.layers.1.self_attn.q_proj"
    before = model.get_submodule(path).weight.detach().clone()
    a, b = torch.randn(16, 2), torch.randn(2, 16)
    written(tmp_path / "a", {f"{path}.lora_a": a, f"{path}.lora_b": b})
    assert studio.load(model, tmp_path / "a").sites == (path,)
    assert studio.adapters(model)["default"].config.alpha == 40.0
    studio.bake(model)
    assert torch.allclose(model.get_submodule(path).weight, before + 20 * (a @ b).T, atol=1e-4)


def test_other_files_of_a_folder_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    studio.save(adapted(llama(), LORA), tmp_path, format="mlx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter_config.json", MLX_FILE, "notes.txt"]


REFUSED = {
    "another method": (studio.LoKr(rank=2, targets=("q_proj",)), "export it with a rank"),
    "an embedding": (studio.LoRA(rank=2, targets=("embed_tokens",)), "embedding"),
    "a bias": (studio.LoRA(rank=2, use_bias=True, targets=("q_proj",)), "bias"),
    "a magnitude per input": (studio.DoRA(rank=2, axis="inputs", targets=("q_proj",)), "per input"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_mlx_does_not_have_is_refused(what, tmp_path):
    config, says = REFUSED[what]
    with pytest.raises(DoesNotFit, match=says):
        export(adapted(llama(), config), tmp_path / "a", format="mlx")
    assert list(tmp_path.iterdir()) == []


STATED = CONFIG["lora_parameters"]
HOSTILE = {
    "whole weights": (PAIR, {"fine_tune_type": "full"}, BadFile, "fine_tune_type='full'"),
    "a magnitude that is not said": (
        {**PAIR, "model.layers.1.self_attn.q_proj.m": torch.ones(16)}, {}, BadFile, "those of dora",
    ),
    "no parameters": (PAIR, {"lora_parameters": None}, BadFile, "no rank and scale"),
    "a scale in words": (PAIR, {"lora_parameters": {**STATED, "scale": "20"}}, BadFile, "no rank and scale"),
    "a scale without end": (PAIR, {"lora_parameters": {**STATED, "scale": 1e400}}, StudioError, "."),
    "another rank": (PAIR, {"lora_parameters": {**STATED, "rank": 4}}, BadFile, "says rank 4, and the tensors"),
    "a rank that is none": (PAIR, {"lora_parameters": {**STATED, "rank": 0}}, BadFile, "no rank and scale"),
    "an alpha beside the scale": (PAIR, {"lora_parameters": {**STATED, "alpha": 16.0}}, DoesNotFit, "has an alpha"),
    "one of two": (dict([*PAIR.items()][:1]), {}, BadFile, "incomplete"),
    "another block": (
        {**PAIR, **{key.replace("layers.1", "layers.9"): one for key, one in PAIR.items()}}, {}, PartialLoad,
        re.escape("layers.9"),
    ),
    "several experts": ({key: one[None].repeat(2, 1, 1) for key, one in PAIR.items()}, {}, StudioError, "."),
    "another width": ({key: one.repeat(2, 1) for key, one in PAIR.items()}, {}, StudioError, "."),
    "quantised factors": (
        {**PAIR, "model.layers.1.self_attn.q_proj.lora_a_scales": torch.ones(1)}, {}, BadFile, "lora_a_scales",
    ),
    "no numbers": ({key: one * torch.nan for key, one in PAIR.items()}, {}, StudioError, "NaN"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_folders_that_mean_nothing_or_something_else_are_refused(what, tmp_path):
    tensors, fields, error, says = HOSTILE[what]
    written(tmp_path / "a", tensors, **fields)
    model = llama()
    with pytest.raises(error, match=says) as caught:
        studio.load(model, tmp_path / "a")
    assert "\n" not in str(caught.value) and studio.adapters(model) == {}


def test_tensors_without_their_config_are_refused(tmp_path):
    written(tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").unlink()
    with pytest.raises(BadFile, match=r"no adapter_config\.json beside it says their scale"):
        studio.load(llama(), tmp_path / "a")
    assert studio.inspect(tmp_path / "a").method == "lora"


def test_truncated_files_are_refused(tmp_path):
    whole = (written(tmp_path / "a") / MLX_FILE).read_bytes()
    for length in (0, 7, 50, len(whole) - 1):
        (tmp_path / "a" / MLX_FILE).write_bytes(whole[:length])
        with pytest.raises(BadFile):
            studio.load(llama(), tmp_path / "a")
    written(tmp_path / "a")
    text = (tmp_path / "a" / "adapter_config.json").read_text()
    for broken in (text[:20], "[]", "{" * 5000):
        (tmp_path / "a" / "adapter_config.json").write_text(broken)
        with pytest.raises(BadFile, match=r"adapter_config\.json"):
            studio.load(llama(), tmp_path / "a")
