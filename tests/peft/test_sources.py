"""What adapters start from and share: matrices of all layers in a file and between adapters, another prompt's tasks."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import studio.peft as ours


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 6))


X = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
PROJECTED = {
    "vera": (ours.VeraConfig, {"r": 4, "target_modules": ["0", "1"], "init_weights": False}, "vera_A"),
    "randlora": (ours.RandLoraConfig, {"r": 4, "target_modules": ["0", "1"], "init_weights": False}, "randlora_A"),
}


@pytest.mark.parametrize("name", PROJECTED)
def test_matrices_in_a_file_are_used_and_not_drawn_anew(name, tmp_path):
    config, fields, matrix = PROJECTED[name]
    model = ours.get_peft_model(net(), config(**fields))
    before = model(X)
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    held = [key for key in tensors if key.endswith(matrix)]
    save_file({key: one + 0.1 if key in held else one for key, one in tensors.items()}, file)
    loaded = ours.PeftModel.from_pretrained(net(), tmp_path)
    torch.testing.assert_close(getattr(loaded.base_model, matrix)["default"], tensors[held[0]] + 0.1)
    assert not torch.allclose(loaded(X), before, atol=1e-3)
    loaded.load_adapter(tmp_path, "again")
    loaded.set_adapter("again")
    again = ours.PeftModel.from_pretrained(net(), tmp_path)
    torch.testing.assert_close(loaded(X), again(X))


@pytest.mark.parametrize("key, shared", [(0, True), (5, False)])
def test_adapters_with_the_same_matrices_hold_them_once(key, shared, tmp_path):
    config, fields, _ = PROJECTED["vera"]
    model = ours.get_peft_model(net(), config(**fields))
    model.add_adapter("other", config(**fields, projection_prng_key=key))
    layer = model.base_model.model[0]
    assert (layer.vera_A["default"] is layer.vera_A["other"]) is shared
    model.set_adapter("other")
    here = model(X)
    model.save_pretrained(tmp_path)
    model.delete_adapter("default")
    assert torch.equal(model(X), here)
    torch.testing.assert_close(ours.PeftModel.from_pretrained(net(), tmp_path / "other")(X), here)


# -- prompts of several tasks ------------------------------------------------------------------------------------------

SIZES = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
IDS = torch.arange(8).view(2, 4)
INIT = ours.MultitaskPromptTuningInit


def language():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def fields(**more):
    return {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3, "num_ranks": 2, **more}


def prompt(**more):
    return ours.get_peft_model(language(), ours.MultitaskPromptTuningConfig(**fields(**more)))


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("init", ["AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED"])
def test_a_prompt_starts_from_anothers_file_as_in_peft(init, safe, tmp_path):
    theirs = pytest.importorskip("peft")
    prompt(num_tasks=3).save_pretrained(tmp_path, safe_serialization=safe)
    file = str(next(tmp_path.glob("adapter_model.*")))
    start = {"num_tasks": 1, "prompt_tuning_init_state_dict_path": file, "prompt_tuning_init_task": 2}
    model = prompt(prompt_tuning_init=init, **start)
    there = theirs.get_peft_model(
        language(), theirs.MultitaskPromptTuningConfig(**fields(**start, prompt_tuning_init=init))
    )
    mine, yours = ours.get_peft_model_state_dict(model), theirs.get_peft_model_state_dict(there)
    for name in mine if init != "ONLY_SOURCE_SHARED" else ["prompt_embeddings"]:  # the rest is drawn
        torch.testing.assert_close(mine[name], yours[name])
    model.save_pretrained(tmp_path / "own")
    own = ours.PeftModel.from_pretrained(language(), tmp_path / "own")
    task = torch.tensor([0, 0])
    torch.testing.assert_close(own(IDS, task_ids=task).logits, model(IDS, task_ids=task).logits)


WRONG = {
    "no file": ({"prompt_tuning_init": "EXACT_SOURCE_TASK"}, "needs to be specified with EXACT_SOURCE_TASK"),
    "no such file": (
        {"prompt_tuning_init": "EXACT_SOURCE_TASK", "prompt_tuning_init_state_dict_path": "nothing.safetensors"},
        "nothing.safetensors",
    ),
    "no such task": ({"prompt_tuning_init": "EXACT_SOURCE_TASK", "prompt_tuning_init_task": 3}, "the tasks 0 to 2"),
    "more tasks than one": ({"prompt_tuning_init": "AVERAGE_SOURCE_TASKS", "num_tasks": 2}, "num_tasks=1"),
    "more tokens": ({"prompt_tuning_init": "ONLY_SOURCE_SHARED", "num_virtual_tokens": 4}, "as many tokens"),
    "another method's file": ({"prompt_tuning_init": "ONLY_SOURCE_SHARED"}, "no multitask prompt"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_start_that_cannot_be_is_refused_and_leaves_no_trace(name, tmp_path):
    more, said = WRONG[name]
    if name == "another method's file":
        plain = ours.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        ours.get_peft_model(language(), plain).save_pretrained(tmp_path)
    else:
        prompt(num_tasks=3).save_pretrained(tmp_path)
    file = (
        {} if name == "no file" else {"prompt_tuning_init_state_dict_path": str(tmp_path / "adapter_model.safetensors")}
    )
    base = language()
    names = list(base.state_dict())
    with pytest.raises(ValueError, match=said):
        ours.get_peft_model(base, ours.MultitaskPromptTuningConfig(**{**fields(num_tasks=1), **file, **more}))
    assert list(base.state_dict()) == names and torch.isfinite(base(IDS).logits).all()


def test_a_call_says_which_task_each_sample_is_of():
    model = prompt(num_tasks=2)
    for call in (lambda: model(IDS), lambda: model.generate(IDS, max_new_tokens=1)):
        with pytest.raises(ValueError, match="task_ids cannot be None"):
            call()
    with model.disable_adapter():
        assert torch.equal(model(IDS).logits, language()(IDS).logits)
    assert model.generate(IDS, task_ids=torch.tensor([0, 1]), max_new_tokens=1).shape == (2, 5)
