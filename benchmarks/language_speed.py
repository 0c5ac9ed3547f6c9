"""What a training on a language model costs beside PEFT and transformers' Trainer: ``benchmarks.language --speed``.

A model of Qwen2.5-0.5B's shape with random weights in bf16. One step of both on the same samples in turn: tokens per
second, and the bytes that the forward pass keeps for the backward pass. Then ``attach`` beside ``get_peft_model``, and
a batch of 16 prompts over 15 adapters beside the same batch under one.
"""

from __future__ import annotations

import copy
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

import studio
from benchmarks.layers import PEFT, Times, interleaved, kept_bytes
from studio.families.language import open_language_base, sample_file
from studio.pipelines import TextPipeline
from studio.trainers import CausalLM
from studio.trainers.loop.optimizer import adamw
from studio.trainers.loop.plan import Plan

__all__ = ["main", "shape"]

TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
RANK: Final = 8
BATCH: Final = 4
LENGTH: Final = 256
ADAPTERS: Final = 15


def shape() -> Any:
    """A model of Qwen2.5-0.5B's shape, random weights, bf16."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).to(torch.bfloat16).eval().requires_grad_(False)


def samples(count: int = 64) -> list[dict[str, str]]:
    """Questions of about 160 tokens with answers of about 90, of the facts that come with the studio."""
    from studio.datasets.chat import read_samples

    turns = [sample.turns for sample in read_samples(sample_file("facts", "train.jsonl")).items]
    draw = random.Random(0)
    made = []
    for _ in range(count):
        asked = draw.sample(turns, 18)
        made.append(
            {
                "prompt": " ".join(one[-2][1] for one in asked),
                "completion": " ".join(f"{one[-1][1]}." for one in asked[:16]),
            }
        )
    return made


def our_step(model: Any, tokenizer: Any, data: Sequence[dict[str, str]]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Our lesson on a copy of the model: its step, and its loss alone."""
    task = CausalLM(base=(copy.deepcopy(model), tokenizer), data=list(data), max_length=LENGTH, preview_prompts=())
    lesson = task.open(studio.LoRA(rank=RANK, targets=TARGETS), Plan(batch_size=BATCH, learning_rate=1e-4), str)
    studio.attach(lesson.model, lesson.adapter, name=lesson.name)
    lesson.model.train()
    trained = {key: tensor for key, tensor in studio.state(lesson.model, lesson.name).items() if tensor.requires_grad}
    optimizer, at = adamw(trained, {"": 1e-4}, 0.01, 0.999), iter(range(10**6))

    def loss() -> Any:
        step = next(at)
        return lesson.loss(range(step * BATCH, (step + 1) * BATCH)).total

    return _stepping(loss, list(trained.values()), optimizer), loss


def their_step(
    model: Any, tokenizer: Any, data: Sequence[dict[str, str]]
) -> tuple[Callable[[], Any], Callable[[], Any]]:  # fmt: skip
    """PEFT's LoRA in transformers' Trainer on a copy of the model: its step, and its loss alone."""
    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    adapted, rows = get_peft_model(copy.deepcopy(model), config), _rows(tokenizer, data)
    collate = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            adapted, TrainingArguments(folder, use_cpu=True, bf16=False, report_to="none", learning_rate=1e-4,
                                       per_device_train_batch_size=BATCH, disable_tqdm=True),
            train_dataset=rows, data_collator=collate,
        )  # fmt: skip
    trainer.create_optimizer_and_scheduler(10**6)
    trainer.current_gradient_accumulation_steps = 1  # what its train() sets before the first step
    adapted.train()
    at = iter(range(10**6))

    def batch() -> Any:
        step = next(at)
        keys = ("input_ids", "labels")
        return collate([{key: list(rows[(step * BATCH + n) % len(rows)][key]) for key in keys} for n in range(BATCH)])

    def step() -> None:
        trainer.training_step(adapted, batch())
        torch.nn.utils.clip_grad_norm_([one for one in adapted.parameters() if one.requires_grad], 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step, lambda: trainer.compute_loss(adapted, batch())


def _rows(tokenizer: Any, data: Sequence[dict[str, str]]) -> list[dict[str, list[int]]]:
    """The samples as Trainer's collator takes them."""
    rows = []
    for one in data:
        asked, said = (tokenizer(one[name], add_special_tokens=False)["input_ids"] for name in ("prompt", "completion"))
        said = [*said, tokenizer.eos_token_id]
        rows.append({"input_ids": (asked + said)[:LENGTH], "labels": ([-100] * len(asked) + said)[:LENGTH]})
    return rows


def _stepping(loss: Callable[[], Any], trained: Sequence[torch.Tensor], optimizer: Any) -> Callable[[], None]:
    def step() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def attaching(model: Any, rounds: int) -> dict[str, list[float]]:
    """Seconds of putting an adapter on, ours and PEFT's in turn, each taken off again."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    found: dict[str, list[float]] = {"ours": [], "peft": []}
    for _ in range(rounds):
        begin = time.perf_counter()
        studio.attach(model, studio.LoRA(rank=RANK, targets=TARGETS))
        found["ours"].append(time.perf_counter() - begin)
        studio.detach(model)
        begin = time.perf_counter()
        adapted = get_peft_model(model, config)
        found["peft"].append(time.perf_counter() - begin)
        adapted.unload()
    return found


def mixed_batch(model: Any, tokenizer: Any, rounds: int) -> Times:
    """Sixteen prompts over fifteen adapters beside the same under one of them."""
    pipe = TextPipeline.open((model, tokenizer))
    draw = torch.Generator().manual_seed(0)
    for n in range(ADAPTERS):
        studio.attach(model, studio.LoRA(rank=RANK, targets=TARGETS), name=f"a{n}")
        for tensor in studio.state(model, f"a{n}").values():
            tensor.data.normal_(std=0.01, generator=draw)
            tensor.requires_grad_(False)
    prompts = [one["prompt"] for one in samples(16)]
    blends = [{f"a{n}": 1.0} if n < ADAPTERS else {} for n in range(16)]
    more: dict[str, Any] = {"max_new_tokens": 4, "chat": False}
    runs = {
        "one adapter": lambda: pipe.complete(prompts, blend={"a0": 1.0}, **more),
        "fifteen adapters": lambda: pipe.complete(prompts, blend=blends, **more),
    }
    return interleaved(runs, rounds, 1)


def main(rounds: int = 5) -> dict[str, float]:
    """Measures all and prints a line for each; returns the ratios by name."""
    if not PEFT:
        raise SystemExit("the speed is that beside PEFT: pip install peft")
    model, tokenizer, data = shape(), open_language_base("facts").tokenizer, samples()
    (ours, our_loss), (theirs, their_loss) = our_step(model, tokenizer, data), their_step(model, tokenizer, data)
    kept = kept_bytes(our_loss, model) / kept_bytes(their_loss, model)
    times = interleaved({"ours": ours, "peft": theirs}, rounds, 1)
    found = {"tokens/s": times.ratio("peft", "ours"), "kept for backward": kept}
    print(f"a step: {times.seconds('ours'):.2f} s, PEFT and Trainer {times.seconds('peft'):.2f} s", flush=True)
    del ours, our_loss, theirs, their_loss
    attached = attaching(model, 3 * rounds)
    ratios = sorted(b / a for a, b in zip(attached["ours"], attached["peft"], strict=True))
    found["attach"] = ratios[len(ratios) // 2]
    found["15 adapters / 1"] = mixed_batch(model, tokenizer, rounds).ratio("fifteen adapters", "one adapter")
    goals = {"tokens/s": "≥ 1.2", "kept for backward": "≤ 0.8", "attach": "≥ 5", "15 adapters / 1": "≤ 1.5"}
    for name, value in found.items():
        print(f"{name:20} {value:6.2f}×   (goal {goals[name]})")
    return found
