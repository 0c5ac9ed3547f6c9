"""transformers' Trainer takes a PEFT model of the studio's as it is: it asks its class for arguments and labels."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import pickle

import pytest
import torch
import transformers
from transformers import Trainer, TrainingArguments

from studio.peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = {**SMALL, "vocab_size": 32}
IDS = torch.arange(8)


@pytest.fixture(autouse=True)
def no_folder_is_taken_for_hugging_faces_package(monkeypatch):
    """The tests run beside our folder datasets/, in which transformers sees a package where none is installed."""
    found = importlib.util.find_spec("datasets")
    if found is None or found.origin is None:
        monkeypatch.setattr("transformers.trainer.is_datasets_available", lambda: False)


def llama():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**WORDS))


def vit():
    shape = {"image_size": 8, "patch_size": 4, "num_labels": 2}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, **shape))


def answers():
    return transformers.BertForQuestionAnswering(transformers.BertConfig(**WORDS))


CASES = {
    "text": (llama, lambda: LoraConfig(task_type="CAUSAL_LM"), {"input_ids": IDS, "labels": IDS}),
    "no task": (llama, lambda: LoraConfig(target_modules=["q_proj"]), {"input_ids": IDS, "labels": IDS}),
    "prompt": (
        llama,
        lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        {"input_ids": IDS, "labels": IDS},
    ),
    "pictures": (
        vit,
        lambda: LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"]),
        {"pixel_values": torch.ones(3, 8, 8), "labels": 1},
    ),
    "answers": (
        answers,
        lambda: LoraConfig(task_type="QUESTION_ANS"),
        {
            "input_ids": IDS,
            "token_type_ids": torch.zeros(8, dtype=torch.long),
            "start_positions": 1,
            "end_positions": 2,
        },
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("case", CASES)
def test_the_columns_of_the_base_are_kept_and_its_labels_found(case, tmp_path):
    base, config, row = CASES[case]
    model = get_peft_model(base(), config())
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, learning_rate=1e-2, save_strategy="no", report_to=[], use_cpu=True,
        disable_tqdm=True, per_device_train_batch_size=2,
    )  # fmt: skip
    data = [{**row, "of no use": number} for number in range(4)]
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert trainer.label_names == [name for name in row if "label" in name or "positions" in name]
    assert trainer.evaluate()["eval_loss"] > 0
    moved = {name for name, one in model.named_parameters() if not torch.equal(one, before[name])}
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert moved and moved <= trained


def test_a_forward_shows_the_arguments_of_its_base_and_the_adapters_of_samples():
    shown = inspect.signature(get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM")).forward).parameters
    own = inspect.signature(llama().forward).parameters
    assert set(shown) == {*own, "adapter_names"}
    assert [name for name in shown if name in own] == list(own)


def test_a_base_of_any_arguments_stays_so():
    class Any(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = torch.nn.Linear(4, 4)

        def forward(self, *inputs, **more):
            return self.lin(*inputs)

    model = get_peft_model(Any(), LoraConfig(target_modules=["lin"]))
    assert list(inspect.signature(model.forward).parameters) == ["inputs", "adapter_names", "more"]
    assert model(torch.ones(1, 4), adapter_names=["default"]).shape == (1, 4)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles_show_and_compute_the_same(again):
    model = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    made = again(model)
    assert isinstance(made, PeftModel) and type(made) is type(model)
    assert inspect.signature(made.forward) == inspect.signature(model.forward)
    assert torch.equal(made(IDS[None]).logits, model(IDS[None]).logits)
