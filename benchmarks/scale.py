"""What bigger runs cost: quantised bases beside PEFT's, and two processes: ``python -m benchmarks.scale``.

``quantised``: one training step of a LoRA on a Llama whose Linear layers bitsandbytes keeps in NF4 or 8 bits, ours and
PEFT's on the same base in turn; the bytes that the forward pass keeps for the backward pass are counted beside it.
``curves``: the same step over ranks, lengths and batches. ``processes``: a step of the embedded base in one process and
in two. Ratios are medians of what was measured within one round; ``--plot`` draws the curves.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import studio
from benchmarks.layers import PEFT, Run, interleaved, kept_bytes, table

__all__ = ["curves", "main", "processes", "quantised"]

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
PICTURES = Path(__file__).parents[1] / "studio" / "families" / "emoji" / "instances" / "robot"


def language(width: int = 512) -> nn.Module:
    """A Llama of four layers with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1024, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=4,
            num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=1024,
        )
    ).requires_grad_(False)  # fmt: skip


def pair(base: nn.Module, rank: int) -> dict[str, nn.Module]:
    """Our LoRA and PEFT's on copies of a base."""
    ours = copy.deepcopy(base)
    studio.attach(ours, studio.LoRA(rank=rank, targets=TARGETS))
    models = {"ours": ours.train()}
    if PEFT:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS), task_type="CAUSAL_LM")
        models["peft"] = get_peft_model(copy.deepcopy(base), config).train()
    return models


def step(model: nn.Module, tokens: Tensor) -> None:
    """One forward and backward pass."""
    model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    for parameter in model.parameters():
        parameter.grad = None


def compared(base: nn.Module, rank: int, batch: int, length: int, rounds: int) -> dict[str, Any]:
    """A row: seconds, and ours over PEFT's in time and in bytes kept."""
    models = pair(base, rank)
    tokens = torch.randint(0, 1024, (batch, length), generator=torch.Generator().manual_seed(0))
    runs: dict[str, Run] = {name: partial(step, model, tokens) for name, model in models.items()}
    times = interleaved(runs, rounds, 1)
    row: dict[str, Any] = {"ours ms": times.seconds("ours") * 1e3}
    held: list[Any] = []
    run: Callable[[nn.Module], None] = lambda model: held.append(model(input_ids=tokens, use_cache=False))  # noqa: E731
    kept = {name: kept_bytes(partial(run, model), model) for name, model in models.items()}
    row["ours MiB"] = kept["ours"] / 2**20
    if "peft" in models:
        row |= {"step / peft": times.ratio("ours", "peft"), "bytes / peft": kept["ours"] / kept["peft"]}
    return row


def quantised(rounds: int) -> list[dict[str, Any]]:
    """A step on a base in full, in 8 bits and in 4; a way whose package is missing is left out."""
    rows = []
    for way in ("", "int8", "nf4"):
        base = language().to(torch.bfloat16)  # as such bases compute; the adapters are fp32
        if way:
            try:
                studio.quantize(base, way)
            except studio.errors.MissingPackage as missing:
                print(f"left out: {missing}")
                continue
        rows.append({"case": way or "bf16", **compared(base, 16, 2, 256, rounds)})
    return rows


def curves(rounds: int) -> dict[str, list[dict[str, Any]]]:
    """A step over ranks, lengths and batches, on the base in full."""
    base, usual = language(256), {"rank": 16, "batch": 2, "length": 128}
    values = {"rank": (2, 8, 32, 128), "length": (64, 128, 256, 512), "batch": (1, 2, 4, 8)}
    return {
        name: [{name: value, **compared(base, **{**usual, name: value}, rounds=rounds)} for value in some]
        for name, some in values.items()
    }


def processes(rounds: int) -> list[dict[str, Any]]:
    """Seconds of a DreamBooth step of the embedded base, in one process and in two, at the same global batch."""
    found: dict[tuple[int, int], list[float]] = {}
    for _ in range(rounds):
        for batch in (4, 16):
            for count in (1, 2):
                found.setdefault((batch, count), []).append(_seconds(count, batch))
    rows = []
    for batch in (4, 16):
        one, two = (statistics.median(found[batch, count]) for count in (1, 2))
        ratio = statistics.median(b / a for a, b in zip(found[batch, 1], found[batch, 2], strict=True))
        rows.append({"batch": batch, "1 process ms": one * 1e3, "2 processes ms": two * 1e3, "2 / 1": ratio})
    return rows


def _seconds(count: int, batch: int) -> float:
    """The median of the steps of a short run, but for the first ones."""
    own = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        start = ["launch", str(count), "--"] if count > 1 else []
        words = ["dreambooth", "emoji", PICTURES, "--instance-prompt", "a photo of sks robot", "--steps", 14]
        words += ["--batch-size", batch, "--preview-every", 0, "--quiet", "-o", Path(folder, "run")]
        command = [sys.executable, "-m", "studio", *start, *map(str, words)]
        subprocess.run(command, check=True, env=own, capture_output=True)
        lines = Path(folder, "run", "log.jsonl").read_text(encoding="utf-8").splitlines()
    ends = [float(json.loads(line)["seconds"]) for line in lines]
    return statistics.median(after - before for before, after in zip(ends[3:], ends[4:], strict=False))


def plot(found: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Draws the curves side by side: our step in milliseconds, and beside it PEFT's."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(4 * len(found), 3.2), layout="constrained")
    for axis, (name, rows) in zip(axes, found.items(), strict=True):
        at, ours = [row[name] for row in rows], [row["ours ms"] for row in rows]
        axis.plot(at, ours, marker="o", label="studio")
        theirs = [row["ours ms"] / row.get("step / peft", 1) for row in rows]
        if "step / peft" in rows[0]:
            axis.plot(at, theirs, marker="o", label="peft")
        high = 1.08 * max(*ours, *theirs)  # room for the marks of the highest points
        axis.set(xlabel=name, ylabel="ms per step", xscale="log", xticks=at, ylim=(0, high))
        axis.set_xticklabels([str(value) for value in at])
        axis.minorticks_off()
        axis.legend(frameon=False)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["quantised", "curves", "processes"])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--plot", type=Path, help="write the curves to this picture")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {options.rounds} rounds")
    if "quantised" in options.what:
        table("a training step on quantised bases (ratios: below 1 is less than peft)", quantised(options.rounds))
    if "curves" in options.what:
        found = curves(options.rounds)
        for name, rows in found.items():
            table(f"a training step over {name}", [{"case": row.pop(name), **row} for row in copy.deepcopy(rows)])
        if options.plot is not None:
            plot(found, options.plot)
    if "processes" in options.what:
        rows = processes(max(3, options.rounds // 4))
        table("the same global batch in one process and in two", [{"case": f"batch {row.pop('batch')}", **row}
                                                                  for row in rows])  # fmt: skip


if __name__ == "__main__":
    main()
