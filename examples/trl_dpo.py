"""An adapter that TRL's DPOTrainer trains, without peft: facts learns to prefer short answers.

The reference is the model before the first step, whose adapter still changes nothing: TRL asks it once about all
answers (``precompute_ref_log_probs``), and no second model is needed.

python examples/trl_dpo.py [STEPS]
"""

import sys
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

import studio
from studio.families.language import LANGUAGE_BASES, sample_file

steps = int(sys.argv[1]) if sys.argv[1:] else 50
folder = LANGUAGE_BASES["facts"]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
print(studio.attach(model, studio.LoRA(rank=8, targets="attention+mlp"), seed=0))


def turns(entry: dict) -> dict:
    """A pair of answers as TRL has it: each a conversation."""
    sides = ("chosen", "rejected")
    return {"prompt": entry["prompt"], **{side: [{"role": "assistant", "content": entry[side]}] for side in sides}}


with TemporaryDirectory() as out:
    arguments = DPOConfig(
        output_dir=out, max_steps=steps, per_device_train_batch_size=8, learning_rate=1e-3, use_cpu=True, bf16=False,
        gradient_checkpointing=False, precompute_ref_log_probs=True, logging_steps=max(steps // 4, 1),
        report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    pairs = Dataset.from_json(str(sample_file("facts", "preferences.jsonl")), cache_dir=out, keep_in_memory=True)
    pairs = pairs.select(range(min(8 * steps, len(pairs)))).map(turns)
    trainer = DPOTrainer(
        model, args=arguments, train_dataset=pairs, processing_class=AutoTokenizer.from_pretrained(folder)
    )  # fmt: skip
    trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
assert losses[-1] < losses[0]

print("adapter:", studio.save(model, "short.safetensors"))
assert "peft" not in sys.modules
