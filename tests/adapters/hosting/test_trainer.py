"""transformers' Trainer with adapters of the studio: checkpoints hold them, resume them, and give the best one back."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import studio
from studio.adapters import IA3, DoRA, LoRA, VeRA

CONFIGS = [LoRA(rank=2, targets="attention"), DoRA(rank=2, targets="attention"), IA3(targets=("k_proj", "v_proj")),
           VeRA(rank=4, targets=("q_proj", "o_proj"))]  # fmt: skip
TEXTS = torch.randint(0, 40, (12, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_folder_is_taken_for_hugging_faces_package(monkeypatch):
    """The tests run beside our folder datasets/, in which transformers sees a package where none is installed."""
    found = importlib.util.find_spec("datasets")
    if found is None or found.origin is None:
        monkeypatch.setattr("transformers.trainer.is_datasets_available", lambda: False)


def make(config):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes))
    studio.attach(model, config, seed=3)
    return model


def trainer(model, folder, callbacks=(), **settings):
    data = [{"input_ids": text, "labels": text} for text in TEXTS]
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, per_device_train_batch_size=2,
        learning_rate=1e-2, seed=0, save_steps=2, logging_strategy="no", **settings,
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data[:4], callbacks=list(callbacks))


def tensors(model):
    return {key: tensor.detach().clone() for key, tensor in studio.state(model).items()}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(one, id=one.method, marks=[pytest.mark.slow] * (place in (1, 2)))
        for place, one in enumerate(CONFIGS)
    ],
)
def test_a_checkpoint_resumes_the_adapter_to_the_bit(config, tmp_path):
    whole = make(config)
    trainer(whole, tmp_path / "whole", max_steps=4).train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **rest):
            control.should_training_stop = state.global_step == 2

    trainer(make(config), tmp_path / "run", [Stop()], max_steps=4).train()
    held = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")
    assert any(".adapters.default." in key for key in held)
    resumed = make(config)
    start = tensors(resumed)
    trainer(resumed, tmp_path / "run", max_steps=4).train(resume_from_checkpoint=True)
    expected, found = tensors(whole), tensors(resumed)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert any(not torch.equal(found[key], start[key]) for key in start)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_best_model_is_loaded_at_the_end(tmp_path):
    """At step 2 the loss is told to be the least, so the adapter of step 2 has to come back."""
    seen = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **rest):
            seen[state.global_step] = tensors(model)

    model = make(CONFIGS[0])
    told = trainer(
        model, tmp_path, [Watch()], max_steps=6, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
        metric_for_best_model="told", greater_is_better=False,
    )  # fmt: skip
    losses = iter((0.1, 0.5, 0.4))
    evaluate = told.evaluate
    told.evaluate = lambda *args, **rest: {**evaluate(*args, **rest), "eval_told": next(losses)}
    told.train()
    found = tensors(model)
    assert all(torch.equal(found[key], seen[2][key]) for key in found)
    assert any(not torch.equal(found[key], seen[6][key]) for key in found)


def test_saving_the_base_by_oneself_leaves_adapters_out(tmp_path):
    make(CONFIGS[0]).save_pretrained(tmp_path)
    assert not any(".adapters." in key for key in load_file(tmp_path / "model.safetensors"))
