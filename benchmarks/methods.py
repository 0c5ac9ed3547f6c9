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
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import studio
from benchmarks.layers import PEFT, Run, interleaved, kept_bytes, table
from studio.adapters import AdapterConfig
from studio.device import choose_device, choose_dtype
from studio.errors import DoesNotFit

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "oft": {"terms": 5},  # as PEFT's is by default
    "tokenembedding": {"tokens": (1, 5, 9)},
    "multitaskprompt": {"tasks": 3},
}
"""Settings of methods that are measured with others than their defaults."""

CALLS: Mapping[str, Mapping[str, Tensor]] = {"multitaskprompt": {"task_ids": torch.tensor([0, 1, 2, 0])}}
"""What models of a method are given beside the input."""

BASES = {"norms": "norm", "embeddings": "embedding", "model": "language"}
"""Default targets of a method -> what it is measured on; others on a linear layer."""

APART = {"qalora"}
"""Methods that ``peft`` computes on layers of others alone."""


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


def base_of(on: str, width: int, tokens: int) -> tuple[nn.Module, Tensor]:
    """A model and an input for it."""
    if on == "norm":
        return Tower(nn.LayerNorm(width)), torch.randn(1, tokens, width)
    if on == "embedding":
        return Tower(nn.Embedding(8192, width)), torch.randint(0, 8192, (1, tokens))
    if on == "language":
        return language(), torch.randint(0, 1024, (4, 128))
    return Tower(nn.Linear(width, width)), torch.randn(1, tokens, width)


def config_of(method: str) -> AdapterConfig:
    """The settings with which a method is measured."""
    config = studio.METHODS[method]
    on = {} if base_name(config) == "language" else {"targets": ("layer",)}
    return config.usual(**on, **SETTINGS.get(method, {}))


def base_name(config: type[AdapterConfig]) -> str:
    """What a method is measured on."""
    usual = config.usual().targets
    return BASES.get(usual, "linear") if isinstance(usual, str) else "linear"


def attached(method: str, base: nn.Module) -> tuple[nn.Module, int]:
    """Our adapter on a copy of the base, and the trained numbers."""
    model = copy.deepcopy(base)
    return model, studio.attach(model, config_of(method)).parameters


def wrapped(model: nn.Module, base: nn.Module) -> nn.Module | None:
    """PEFT's adapter of the same settings on a copy of the base; None where it has no such method."""
    import peft

    with tempfile.TemporaryDirectory() as folder:
        try:
            file = studio.save(model, Path(folder) / "adapter", format="peft") / "adapter_config.json"
        except DoesNotFit:
            return None
        fields = json.loads(file.read_text())
    return peft.get_peft_model(copy.deepcopy(base), peft.get_peft_config({**fields, "inference_mode": False}))


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


def compared(method: str, base: nn.Module, on: str) -> tuple[dict[str, nn.Module], int]:
    """What takes turns, and the trained numbers of ours."""
    ours, count = attached(method, base)
    models = {"ours": ours}
    if on == "linear":
        models["lora"], _ = attached("lora", base)
    peer = wrapped(ours, base) if PEFT and method not in APART else None
    return models if peer is None else {**models, "peft": peer}, count


def measured(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    device, on = choose_device(options.device), base_name(studio.METHODS[method])
    dtype = choose_dtype(options.dtype, device).dtype
    base, x = base_of(on, options.width, options.tokens)
    base, x = base.to(device, dtype).eval(), x.to(device, dtype if x.is_floating_point() else None)
    call = {name: value.to(device) for name, value in CALLS.get(method, {}).items()}
    models, count = compared(method, base, on)
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
