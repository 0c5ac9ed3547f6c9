"""An adapter that TRL's GRPOTrainer trains, without peft: facts learns to say little, by a reward for what it writes.

python examples/trl_grpo.py [STEPS]
"""

import sys
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import studio
from studio.families.language import LANGUAGE_BASES

steps = int(sys.argv[1]) if sys.argv[1:] else 20
folder = LANGUAGE_BASES["facts"]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
print(studio.attach(model, studio.LoRA(rank=8, targets="attention+mlp"), seed=0))


def brief(completions: list[str], **more: object) -> list[float]:
    """The reward of what was written: the fewer letters the better."""
    return [-float(len(completion)) for completion in completions]


with TemporaryDirectory() as out:
    arguments = GRPOConfig(
        output_dir=out, max_steps=steps, per_device_train_batch_size=8, num_generations=4, max_completion_length=12,
        learning_rate=1e-3, use_cpu=True, bf16=False, gradient_checkpointing=False, logging_steps=1, report_to="none",
        disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    prompts = Dataset.from_list([{"prompt": f"{what} is"} for what in ("Tin", "A cat", "Oman", "Tea")] * 8)
    trainer = GRPOTrainer(
        model, brief, args=arguments, train_dataset=prompts, processing_class=AutoTokenizer.from_pretrained(folder)
    )  # fmt: skip
    trainer.train()
print("rewards:", [round(entry["reward"], 1) for entry in trainer.state.log_history if "reward" in entry])

print("adapter:", studio.save(model, "brief.safetensors"))
assert "peft" not in sys.modules
