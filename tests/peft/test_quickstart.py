"""PEFT's Quickstart with another import line, on a tiny model."""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers")

TRAIN = """
import torch
from transformers import AutoModelForCausalLM
from studio.peft import LoraConfig, TaskType, get_peft_model

device = "cpu"
model = AutoModelForCausalLM.from_pretrained(model_id, device_map=device)
peft_config = LoraConfig(
    r=16,
    lora_alpha=32,
    task_type=TaskType.CAUSAL_LM,
    # target_modules=["q_proj", "v_proj", ...]  # optionally indicate target modules
)
model = get_peft_model(model, peft_config)
model.print_trainable_parameters()

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for _ in range(30):
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())

model.save_pretrained(folder)
"""

GENERATE = """
from transformers import AutoModelForCausalLM
from studio.peft import PeftModel

model = AutoModelForCausalLM.from_pretrained(model_id, device_map="cpu")
model = PeftModel.from_pretrained(model, folder)
outputs = model.generate(input_ids=ids[:, :4], max_new_tokens=5, do_sample=False)
"""


@pytest.fixture
def model_id(tmp_path):
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.mark.filterwarnings("ignore:The attention mask")
def test_the_quickstart_runs_and_learns(model_id, tmp_path, capsys):
    losses: list[float] = []
    folder = str(tmp_path / "qwen-lora")
    names = {"model_id": model_id, "folder": folder, "ids": torch.arange(3, 35).view(2, 16), "losses": losses}
    exec(compile(TRAIN, "train", "exec"), names)
    trained = 2 * 16 * ((32 + 32) + (32 + 16))  # q_proj 32 -> 32 and v_proj 32 -> 16 of two layers
    assert f"trainable params: {trained:,} || all params: " in capsys.readouterr().out
    assert losses[-1] < 0.95 * losses[0]
    assert {file.name for file in (tmp_path / "qwen-lora").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    with torch.no_grad():
        wanted = names["model"].eval()(input_ids=names["ids"]).logits
    exec(compile(GENERATE, "generate", "exec"), names)
    assert names["outputs"].shape == (2, 9)
    assert torch.equal(names["model"](input_ids=names["ids"]).logits, wanted)
    peft = pytest.importorskip("peft")  # and PEFT reads the folder
    base = transformers.AutoModelForCausalLM.from_pretrained(model_id)
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(base, folder)(input_ids=names["ids"]).logits
    assert torch.allclose(theirs, wanted, atol=1e-5)
