"""What each method costs, beside LoRA and beside ``peft``: ``python -m benchmarks.methods [--rounds N] [METHOD ...]``.

One layer of 1024 x 1024 and 1,024 tokens, unless said otherwise (a norm of that width, an embedding of 8,192 rows, a
language model of four layers for the methods that need one). A forward pass without gradients, a training step
(forward, backward), what is kept for backward, and the trained numbers; the programs take turns (A B A B ...), and a
ratio is the median over the rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import studio
from benchmarks.layers import PEFT, Run, interleaved, kept_bytes, table
from studio.device import choose_device, choose_dtype


@dataclass(frozen=True)
class Case:
    """How a method is measured.

    Attributes:
        ours: settings of our config. peft: name of PEFT's config class, "" where it has no such method.
        theirs: its settings, for the same function.
        base: "linear", "norm", "embedding" or "language".
        call: what both are given beside the input.
    """

    ours: Mapping[str, Any] = field(default_factory=dict)
    peft: str = ""
    theirs: Mapping[str, Any] = field(default_factory=dict)
    base: str = "linear"
    call: Mapping[str, Tensor] = field(default_factory=dict)


RANK: dict[str, Any] = {"rank": 8}
R: dict[str, Any] = {"r": 8}

CASES: dict[str, Case] = {
    "lora": Case(RANK, "LoraConfig", {**R, "lora_alpha": 8}),
    "dora": Case(RANK, "LoraConfig", {**R, "lora_alpha": 8, "use_dora": True}),
    "ia3": Case({}, "IA3Config", {"feedforward_modules": []}),
    "lokr": Case(RANK, "LoKrConfig", {**R, "alpha": 8}),
    "loha": Case(RANK, "LoHaConfig", {**R, "alpha": 8}),
    "adalora": Case({}, "AdaLoraConfig", {"init_r": 12, "target_r": 8, "total_step": 1000}),
    "vera": Case({"rank": 256}, "VeraConfig", {"r": 256}),
    "oft": Case({"terms": 5}, "OFTConfig", {"oft_block_size": 32}),
    "boft": Case({}, "BOFTConfig", {"boft_block_size": 4}),
    "hra": Case(RANK, "HRAConfig", R),
    "road": Case({}, "RoadConfig", {}),
    "bitfit": Case({}, "BeftConfig", {}),
    "lntuning": Case({}, "LNTuningConfig", {}, "norm"),
    "tokenembedding": Case({"tokens": (1, 5, 9)}, "TrainableTokensConfig", {"token_indices": [1, 5, 9]}, "embedding"),
    "prompttuning": Case({}, "PromptTuningConfig", {"num_virtual_tokens": 20}, "language"),
    "ptuning": Case({}, "PromptEncoderConfig", {"num_virtual_tokens": 20, "encoder_hidden_size": 128}, "language"),
    "prefixtuning": Case({}, "PrefixTuningConfig", {"num_virtual_tokens": 20}, "language"),
    "multitaskprompt": Case(
        {"tasks": 3},
        "MultitaskPromptTuningConfig",
        {"num_virtual_tokens": 20, "num_tasks": 3},
        "language",
        {"task_ids": torch.tensor([0, 1, 2, 0])},
    ),
}
"""Methods that need other settings than their defaults, or that ``peft`` has too."""


class Tower(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


def language() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8}
    return LlamaForCausalLM(LlamaConfig(vocab_size=1024, num_key_value_heads=4, **shape))


def base_of(kind: str, width: int, tokens: int) -> tuple[nn.Module, Tensor]:
    """A model and an input for it."""
    if kind == "norm":
        return Tower(nn.LayerNorm(width)), torch.randn(1, tokens, width)
    if kind == "embedding":
        return Tower(nn.Embedding(8192, width)), torch.randint(0, 8192, (1, tokens))
    if kind == "language":
        return language(), torch.randint(0, 1024, (4, 128))
    return Tower(nn.Linear(width, width)), torch.randn(1, tokens, width)


def target_of(kind: str) -> dict[str, Any]:
    return {} if kind == "language" else {"targets": ("layer",)}


def attached(method: str, case: Case, base: nn.Module) -> tuple[nn.Module, int]:
    """Our adapter on a copy of the base, and the trained numbers."""
    model = copy.deepcopy(base)
    config = studio.METHODS[method](**target_of(case.base), **case.ours)
    return model, studio.attach(model, config).parameters


def wrapped(case: Case, base: nn.Module) -> nn.Module:
    """PEFT's adapter on a copy of the base."""
    import peft

    settings = dict(case.theirs)
    if case.base == "language":
        settings["task_type"] = "CAUSAL_LM"
    else:
        settings["target_modules"] = ["layer"]
    return peft.get_peft_model(copy.deepcopy(base), getattr(peft, case.peft)(**settings))


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0] if isinstance(output, tuple) else output.logits


def forward(model: nn.Module, x: Tensor, **call: Tensor) -> None:
    with torch.no_grad():
        model(x, **call)


def step(model: nn.Module, x: Tensor, **call: Tensor) -> None:
    first(model(x, **call)).sum().backward()
    for parameter in model.parameters():
        parameter.grad = None
    x.grad = None


def measured(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    case, device = CASES.get(method, Case()), choose_device(options.device)
    dtype = choose_dtype(options.dtype, device).dtype
    base, x = base_of(case.base, options.width, options.tokens)
    base, x = base.to(device, dtype).eval(), x.to(device, dtype if x.is_floating_point() else None)
    call = {name: value.to(device) for name, value in case.call.items()}
    models: dict[str, nn.Module] = {}
    models["ours"], count = attached(method, case, base)
    if case.base == "linear":
        models["lora"], _ = attached("lora", CASES["lora"], base)
    if PEFT and case.peft:
        models["peft"] = wrapped(case, base)
    learns = {id(model): [p.requires_grad for p in model.parameters()] for model in models.values()}
    row: dict[str, Any] = {"case": method, "numbers": count}
    for title, run, mode in (("forward", forward, False), ("step", step, True)):
        given = x.clone().requires_grad_(mode and x.is_floating_point())
        for model in models.values():
            model.train(mode)
            for parameter, trained in zip(model.parameters(), learns[id(model)], strict=True):
                parameter.requires_grad_(trained and mode)  # evaluation is that of a loaded, frozen adapter
        runs: dict[str, Run] = {name: partial(run, model, given, **call) for name, model in models.items()}
        times = interleaved(runs, options.rounds, options.repeats, device)
        row[f"{title} ms"] = times.seconds("ours") * 1e3
        row[f"{title} / lora"] = times.ratio("ours", "lora") if "lora" in times else "-"
        row[f"{title} / peft"] = times.ratio("ours", "peft") if "peft" in times else "-"
    given = x.clone().requires_grad_(x.is_floating_point())
    held: list[Any] = []
    for name in ("ours", "peft"):
        run_once: Callable[[], None] = lambda name=name: held.append(models[name](given, **call))  # noqa: E731
        row[f"{name} KiB"] = kept_bytes(run_once, models[name]) / 1024 if name in models else "-"
    return row


def main() -> None:
    """Measures the methods and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="the methods to measure; all without one")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each measurement; medians are printed")
    parser.add_argument("--repeats", type=int, default=2, help="calls that are timed together")
    parser.add_argument("--device", default="cpu", help="where to compute: a torch device, or auto")
    parser.add_argument("--dtype", default="fp32", help="number format of the base and its input")
    parser.add_argument("--width", type=int, default=1024, help="inputs and outputs of the layer")
    parser.add_argument("--tokens", type=int, default=1024, help="rows of the input")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {options.rounds} rounds")
    print(
        f"{options.width} x {options.width}, {options.tokens} tokens, {options.dtype}, {choose_device(options.device)}"
    )
    rows = [measured(method, options) for method in options.methods or studio.METHODS]
    table("what a method costs (ratios: below 1 is faster than LoRA, than peft)", rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
