"""A reward model that TRL's RewardTrainer trains, without peft: an adapter in the layers, and the head itself.

python examples/trl_reward.py [STEPS]
"""

import sys
from tempfile import TemporaryDirectory

from datasets import Dataset
from transformers import AutoTokenizer
from trl import RewardConfig, RewardTrainer

import studio
from studio.adapters import Full, LoRA, Mixed
from studio.families.language import LANGUAGE_BASES, open_language_base, sample_file

steps = int(sys.argv[1]) if sys.argv[1:] else 50
base = open_language_base("facts", kind="classifier", labels=["reward"])  # with a head that is always the same one
model = base.model
print(studio.attach(model, Mixed(parts=(LoRA(rank=8, targets="attention+mlp"), Full(targets=("score",)))), seed=0))


def turns(entry: dict) -> dict:
    """A pair of answers as TRL has it: two conversations."""
    sides = ("chosen", "rejected")
    return {side: [*entry["prompt"], {"role": "assistant", "content": entry[side]}] for side in sides}


with TemporaryDirectory() as out:
    arguments = RewardConfig(
        output_dir=out, max_steps=steps, per_device_train_batch_size=8, learning_rate=1e-3, use_cpu=True, bf16=False,
        gradient_checkpointing=False, logging_steps=max(steps // 4, 1), report_to="none", disable_tqdm=True,
        save_strategy="no",
    )  # fmt: skip
    pairs = Dataset.from_json(str(sample_file("facts", "preferences.jsonl")), cache_dir=out, keep_in_memory=True)
    pairs = pairs.select(range(min(8 * steps, len(pairs)))).map(turns, remove_columns=["prompt"])
    trainer = RewardTrainer(
        model, args=arguments, train_dataset=pairs,
        processing_class=AutoTokenizer.from_pretrained(LANGUAGE_BASES["facts"]),
    )  # fmt: skip
    trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
assert losses[-1] < losses[0]

print("adapter:", studio.save(model, "judge.safetensors"))
assert "peft" not in sys.modules
