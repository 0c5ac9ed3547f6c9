"""An adapter that TRL's SFTTrainer trains, without peft: facts learns answers to questions.

python examples/trl_sft.py [STEPS]
"""

import sys
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import studio
from studio.families.language import LANGUAGE_BASES, sample_file

steps = int(sys.argv[1]) if sys.argv[1:] else 100
folder = LANGUAGE_BASES["facts"]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
print(studio.attach(model, studio.LoRA(rank=8, targets="attention+mlp"), seed=0))

with TemporaryDirectory() as out:
    arguments = SFTConfig(
        output_dir=out, max_steps=steps, per_device_train_batch_size=16, learning_rate=4e-3, use_cpu=True, bf16=False,
        gradient_checkpointing=False, logging_steps=max(steps // 4, 1), report_to="none", disable_tqdm=True,
        save_strategy="no",
    )  # fmt: skip
    data = Dataset.from_json(str(sample_file("facts", "train.jsonl")), cache_dir=out, keep_in_memory=True)
    trainer = SFTTrainer(model, arguments, train_dataset=data, processing_class=AutoTokenizer.from_pretrained(folder))
    trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
assert losses[-1] < losses[0]

print("adapter:", studio.save(model, "answers.safetensors"))
assert "peft" not in sys.modules
