"""A base that does not fit, tuned where it does: ``python -m benchmarks.big [--folder DIR]``.

A Llama of 6.7 billion parameters (random weights, written in shards of a layer or so, 13.5 GB in bf16) is opened in NF4
and tuned for three steps with LoRA and gradient checkpointing, in a process of its own whose peak is what counts; the
forecast of ``studio plan`` for the same settings stands beside it. bitsandbytes is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

__all__ = ["LIMIT", "main", "make", "tune"]

LIMIT = 12e9
SETTINGS: dict[str, Any] = {"batch_size": 1, "gradient_checkpointing": True, "precision": "bf16"}
LENGTH, RANK, STEPS = 128, 16, 3


def config() -> Any:
    """The shape of Llama 2 with seven billion parameters, with the packaged tokenizer's ids."""
    from transformers import AutoTokenizer, LlamaConfig

    from studio.families.language import LANGUAGE_BASES

    tokenizer = AutoTokenizer.from_pretrained(LANGUAGE_BASES["facts"])
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=2048, architectures=["LlamaForCausalLM"], dtype="bfloat16", **ids,
    )  # fmt: skip


def make(folder: Path) -> int:
    """Writes the model shard by shard, so that no more than a layer is in memory; returns its bytes."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    from studio.families.language import LANGUAGE_BASES

    folder.mkdir(parents=True, exist_ok=True)
    made = config()
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(LANGUAGE_BASES["facts"]).save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(made).state_dict().items()}
    parts: dict[str, dict[str, torch.Size]] = {}
    for name, shape in shapes.items():
        words = name.split(".")
        parts.setdefault(words[2] if words[1] == "layers" else "ends", {})[name] = shape
    generator, where, total = torch.Generator().manual_seed(0), {}, 0
    for number, (_, part) in enumerate(sorted(parts.items())):
        file = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        tensors = {
            name: torch.ones(shape, dtype=torch.bfloat16) if len(shape) == 1
            else torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.03, 0.03, generator=generator)
            for name, shape in part.items()
        }  # fmt: skip
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def tune(folder: Path, out: Path) -> dict[str, Any]:
    """Tunes the model; returns the losses, seconds, and the peak of this process in bytes."""
    import studio
    from studio.trainers import CausalLM, train

    data = out / "samples.jsonl"
    data.parent.mkdir(parents=True, exist_ok=True)
    line = {"prompt": "Tell me of a long day. ", "completion": "It began early and went on and on. " * 12}
    data.write_text("".join(json.dumps(line) + "\n" for _ in range(8)))
    begin = time.perf_counter()
    run = train(
        CausalLM(base=folder, data=data, max_length=LENGTH, preview_prompts=(), quantize="nf4"),
        adapter=studio.LoRA(rank=RANK, targets="attention"), output=out / "run", steps=STEPS, learning_rate=1e-4,
        warmup=0, preview_every=0, **SETTINGS,
    )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"losses": run.losses, "seconds": time.perf_counter() - begin, "peak": peak}


def forecast() -> float:
    """The bytes that ``studio plan`` expects for the same settings."""
    import studio
    from studio.trainers.forecast import plan

    with tempfile.TemporaryDirectory() as place:
        config().save_pretrained(place)
        adapter = studio.LoRA(rank=RANK, targets="attention")
        return float(plan(place, adapter=adapter, length=LENGTH, quantize="nf4", **SETTINGS).peak)


def main() -> int:
    """Prints the figures; returns 1 where the process took more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the model is, or shall be kept; else it is removed again")
    parser.add_argument("--tune", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tune:
        print(json.dumps(tune(*options.tune)))
        return 0
    kept = options.folder is not None
    folder = options.folder or Path(tempfile.mkdtemp(prefix="big-"))
    try:
        if not (folder / "model.safetensors.index.json").exists():
            print(f"{make(folder) / 1e9:.1f} GB of weights written")
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "benchmarks.big", "--tune", str(folder), out]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"losses {', '.join(f'{loss:.3f}' for loss in found['losses'])} in {found['seconds']:.0f} s")
        print(f"peak of the process {found['peak'] / 1e9:.2f} GB (limit {LIMIT / 1e9:.0f} GB)")
        print(f"forecast of the tensors {forecast() / 1e9:.2f} GB")
    finally:
        if not kept:
            shutil.rmtree(folder)
    return int(found["peak"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
