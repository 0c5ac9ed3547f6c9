"""An adapter that transformers' Trainer trains, without peft: facts learns answers to questions.

python examples/transformers_trainer.py [STEPS]
"""

import json
import sys
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import studio
from studio.families.language import LANGUAGE_BASES, sample_file

steps = int(sys.argv[1]) if sys.argv[1:] else 100
folder = LANGUAGE_BASES["facts"]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
print(studio.attach(model, studio.LoRA(rank=8, targets="attention+mlp"), seed=0))


def row(line: str) -> dict[str, list[int]]:
    """A conversation as token numbers, of which the answer alone counts."""
    question, answer = json.loads(line)["messages"]
    asked = tokenizer.apply_chat_template([question], add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template([question, answer], return_dict=True)["input_ids"]
    return {"input_ids": whole, "labels": [-100] * len(asked) + whole[len(asked) :]}


def batch(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Rows filled up on the right."""
    longest = max(len(one["input_ids"]) for one in rows)
    fill = {"input_ids": tokenizer.pad_token_id, "labels": -100}
    return {
        name: torch.tensor([one[name] + [value] * (longest - len(one[name])) for one in rows])
        for name, value in fill.items()
    }


with TemporaryDirectory() as out:
    arguments = TrainingArguments(
        output_dir=out, max_steps=steps, per_device_train_batch_size=16, learning_rate=4e-3, use_cpu=True,
        logging_steps=max(steps // 4, 1), report_to=[], disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    rows = [row(line) for line in sample_file("facts", "train.jsonl").read_text(encoding="utf-8").splitlines()]
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=batch)
    trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
assert losses[-1] < losses[0]

print("adapter:", studio.save(model, "answers.safetensors"))
assert "peft" not in sys.modules
