"""Opening language bases: by name, from folders, from objects; and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio.adapters import LoRA, attach
from studio.errors import BadFile, DoesNotFit, UnknownName
from studio.families import BASES
from studio.families.language import open_language_base


@pytest.fixture
def copy(tiny_language, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_language, folder)
    return folder


def test_a_folder_opens_in_fp32_and_evaluation_mode(tiny_language):
    base = open_language_base(tiny_language)
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.float32}
    assert not base.model.training and base.context == 96 and base.id == "tiny-language"
    assert base.ends == (base.tokenizer.eos_token_id,)


def test_the_hash_is_that_of_the_weights_without_adapters(tiny_language, copy):
    base = open_language_base(tiny_language)
    attach(base.model, LoRA(rank=2))
    parameters = base.parameters
    first = open_language_base(copy)
    assert base.hash == first.hash and parameters == first.parameters
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert open_language_base(copy).hash != base.hash


def test_objects_are_taken_as_they_are(tiny_language):
    base = open_language_base(tiny_language)
    assert open_language_base(base) is base
    pair = open_language_base((base.model, base.tokenizer), dtype=torch.bfloat16)
    assert pair.model is base.model and pair.id == "LlamaForCausalLM"
    assert next(pair.model.parameters()).dtype == torch.bfloat16
    with pytest.raises(DoesNotFit, match="not a int"):
        open_language_base(3)


def test_ends_are_those_of_the_tokenizer_and_of_the_generation_config(tiny_language):
    base = open_language_base(tiny_language)
    base.model.generation_config.eos_token_id = [7, base.tokenizer.eos_token_id]
    assert base.ends == (base.tokenizer.eos_token_id, 7)


def test_bad_folders_are_refused(copy, tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'facts'"):
        open_language_base("factz")
    with pytest.raises(DoesNotFit, match="'emoji' draws pictures"):
        open_language_base("emoji")
    with pytest.raises(DoesNotFit, match="is a diffusers pipeline"):
        open_language_base(BASES["emoji"])
    with pytest.raises(BadFile, match="is a single file"):
        open_language_base(copy / "model.safetensors")
    with pytest.raises(BadFile, match="no transformers model: it has no config.json"):
        open_language_base(tmp_path)
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(BadFile, match="has no tokenizer that can be opened"):
        open_language_base(copy)


def test_a_folder_without_all_weights_is_refused(copy):
    """transformers would go on with random numbers."""
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadFile, match=r"lacks 1 of the model's tensors \(model.layers.0.mlp.up_proj.weight\)"):
        open_language_base(copy)


@pytest.mark.parametrize("kind", ["clip_text_model", "llamma"])
def test_other_models_are_refused(copy, kind):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": kind}))
    with pytest.raises(DoesNotFit, match=f"is a '{kind}', which transformers has no causal language model of"):
        open_language_base(copy)


def test_the_tokenizer_of_another_model_is_refused(tiny_language, copy):
    other = open_language_base("facts").tokenizer
    other.save_pretrained(copy)
    message = r"the tokenizer of {} has 3,0\d\d tokens and the model knows 289: it is another model's; give the model's"
    with pytest.raises(DoesNotFit, match=message.format("copy")):
        open_language_base(copy)
    with pytest.raises(DoesNotFit, match=message.format("LlamaForCausalLM")):
        open_language_base((open_language_base(tiny_language).model, other))


def test_marks_that_were_added_to_a_tokenizer_may_have_no_row(tiny_language):
    base = open_language_base(tiny_language)
    base.tokenizer.add_tokens(["<unused>"])
    assert open_language_base((base.model, base.tokenizer)).tokenizer is base.tokenizer
