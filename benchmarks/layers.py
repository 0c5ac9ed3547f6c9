"""What an adapter costs, layer by layer, beside ``peft``: ``python -m benchmarks.layers [--rounds N] [--json FILE]``.

Every figure is a ratio of two things measured in turn in one run (A B A B …), so that a drift of the machine's speed
falls on both: the median over the rounds of the ratio within a round. Without ``peft`` its columns are left out.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import studio
from studio.device import wait

PEFT = importlib.util.find_spec("peft") is not None
CPU = torch.device("cpu")
Run = Callable[[], Any]


@dataclass(frozen=True)
class Times:
    """Seconds of one call of each run, round by round."""

    rounds: dict[str, list[float]]

    def __contains__(self, name: str) -> bool:
        return name in self.rounds

    def seconds(self, name: str) -> float:
        """The median of a run."""
        return statistics.median(self.rounds[name])

    def ratio(self, name: str, other: str) -> float:
        """The median of ``name / other`` within a round: what slows the machine for a while falls on both."""
        return statistics.median(a / b for a, b in zip(self.rounds[name], self.rounds[other], strict=True))


def interleaved(runs: dict[str, Run], rounds: int, repeats: int, device: torch.device = CPU) -> Times:
    """Times the runs in turn, ``repeats`` calls together; ``device`` is where they compute.

    Each round begins with another run, so that none always finds the caches as the same other one left them.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    order = list(runs)
    for _ in range(rounds):
        order.append(order.pop(0))
        for name in order:
            wait(device)
            begin = time.perf_counter()
            for _ in range(repeats):
                runs[name]()
            wait(device)
            times[name].append((time.perf_counter() - begin) / repeats)
    return Times(times)


def peft_lora(model: nn.Module, targets: list[str], names: tuple[str, ...] = ("default",)) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, lora_alpha=8, target_modules=targets)
    wrapped = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        wrapped.add_adapter(name, config)
    wrapped.base_model.set_adapter(list(names))
    return wrapped


def ours(layers: list[nn.Module], count: int = 1) -> nn.Module:
    model = nn.Sequential(*layers)
    for index in range(count):
        targets = tuple(str(place) for place in range(len(layers)))
        studio.attach(model, studio.LoRA(rank=8, targets=targets), name=f"a{index}", seed=index)
    return model


class Ideal(nn.Module):
    """The least that one can write by hand: a module with the three products and the sum, and nothing else."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias, self.padding = layer.weight, layer.bias, getattr(layer, "padding", 0)
        kernel = self.weight.shape[2:]
        self.down = nn.Parameter(torch.randn(8, *self.weight.shape[1:]))
        self.up = nn.Parameter(torch.randn(self.weight.shape[0], 8, *(1 for _ in kernel)))
        self.convolution = bool(kernel)

    def forward(self, x: Tensor) -> Tensor:
        if self.convolution:
            h = F.conv2d(x, self.down, padding=self.padding)
            return F.conv2d(x, self.weight, self.bias, padding=self.padding) + F.conv2d(h, self.up)
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, self.down), self.up)


@torch.no_grad()
def forward_overhead(rounds: int) -> list[dict[str, Any]]:
    """One LoRA layer over the three-product ideal."""
    cases: list[tuple[str, nn.Module, Tensor, int]] = [
        ("linear 64 x 64, 1 row", nn.Linear(64, 64), torch.randn(1, 64), 400),
        ("linear 320 x 320, 4096 tokens", nn.Linear(320, 320), torch.randn(1, 4096, 320), 3),
        ("linear 2048 x 2048, 512 tokens", nn.Linear(2048, 2048), torch.randn(1, 512, 2048), 1),
        ("conv 3x3 128 -> 128, 8 x 8, batch 4", nn.Conv2d(128, 128, 3, padding=1), torch.randn(4, 128, 8, 8), 20),
    ]
    rows = []
    for title, layer, x, repeats in cases:
        model = ours([copy.deepcopy(layer)])
        hosted = model[0]
        best = Ideal(layer)
        runs: dict[str, Run] = {"ideal": partial(best, x), "ours": partial(hosted, x)}
        if PEFT:
            other = peft_lora(nn.Sequential(copy.deepcopy(layer)), ["0"]).base_model.model[0]
            runs["peft"] = partial(other, x)
        times = interleaved(runs, rounds, repeats)
        row = {"case": title, "ideal_us": times.seconds("ideal") * 1e6, "ours / ideal": times.ratio("ours", "ideal")}
        if PEFT:
            row["peft / ideal"] = times.ratio("peft", "ideal")
        rows.append(row)
    return rows


@torch.no_grad()
def many_adapters(rounds: int) -> list[dict[str, Any]]:
    """1, 2, 4, 8 active adapters, over one."""
    rows = []
    for title, layer, x, repeats in (
        ("linear 320 x 320, 1024 tokens", nn.Linear(320, 320), torch.randn(1, 1024, 320), 10),
        ("linear 64 x 64, 1 row", nn.Linear(64, 64), torch.randn(1, 64), 300),
    ):
        runs: dict[str, Run] = {}
        for count in (1, 2, 4, 8):
            model = ours([copy.deepcopy(layer)], count)
            model.requires_grad_(False)
            studio.blend(model, {f"a{index}": 0.5 + 0.1 * index for index in range(count)})
            runs[f"ours {count}"] = partial(model[0], x)
            if PEFT:
                names = tuple(f"a{index}" for index in range(count))
                other = peft_lora(nn.Sequential(copy.deepcopy(layer)), ["0"], names).base_model.model[0]
                runs[f"peft {count}"] = partial(other, x)
        times = interleaved(runs, rounds, repeats)
        for who in ("ours", *(["peft"] if PEFT else [])):
            row: dict[str, Any] = {"case": f"{who}: {title}"}
            row |= {f"{count} / 1": times.ratio(f"{who} {count}", f"{who} 1") for count in (2, 4, 8)}
            rows.append(row)
    return rows


def strengths(rounds: int) -> list[dict[str, Any]]:
    """Setting the strengths of 4 adapters on 252 layers."""
    model = ours([nn.Linear(16, 16) for _ in range(252)], 4).requires_grad_(False)
    x, values = torch.randn(1, 16), [0.3, 0.9]

    def set_ours() -> None:
        values.reverse()
        studio.blend(model, {f"a{index}": values[0] + 0.01 * index for index in range(4)})

    def set_and_plan() -> None:  # what the layers do at their next call because of it
        set_ours()
        for module in model:
            module.__dict__["_mount"].prepare()

    runs: dict[str, Run] = {"ours": set_ours, "ours with plans": set_and_plan}
    if PEFT:
        names = tuple(f"a{index}" for index in range(4))
        layers = nn.Sequential(*[nn.Linear(16, 16) for _ in range(252)])
        wrapped = peft_lora(layers, [str(index) for index in range(252)], names)

        def set_peft() -> None:
            values.reverse()
            wrapped.base_model.set_adapter(list(names))
            for module in wrapped.modules():
                if hasattr(module, "set_scale") and hasattr(module, "lora_A"):
                    for index, name in enumerate(names):
                        module.set_scale(name, values[0] + 0.01 * index)

        runs["peft"] = set_peft
    times = interleaved(runs, rounds, 1)
    with torch.no_grad():
        model(x)
    return [{"case": "252 layers x 4 adapters", **{f"{name} ms": times.seconds(name) * 1e3 for name in runs}}]


def kept_bytes(run: Run, base: nn.Module) -> int:
    """Bytes of the distinct tensors that are kept for backward, parameters of the model not counted."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*base.parameters(), *base.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sparse = tensor.layout == torch.sparse_coo
        for part in (tensor._indices(), tensor._values()) if sparse else (tensor,):
            storage = part.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
                held.append(part)
        return tensor

    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def backward_bytes() -> list[dict[str, Any]]:
    """Bytes kept for backward on a bf16 base: an attention block of q, k, v and out over one input."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(320, 320) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x).unflatten(-1, (8, 40)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v))
            return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    targets = ["to_q", "to_k", "to_v", "to_out"]
    x = torch.randn(1, 1024, 320, dtype=torch.bfloat16, requires_grad=True)
    hosted = Block().to(torch.bfloat16)
    studio.attach(hosted, studio.LoRA(rank=8, targets=tuple(targets)))
    row: dict[str, Any] = {"case": "attention block 320 wide, 1024 tokens, bf16"}
    held: list[Any] = []
    row["ours KiB"] = kept_bytes(lambda: held.append(hosted(x)), hosted) / 1024
    if PEFT:
        wrapped = peft_lora(Block().to(torch.bfloat16), targets)
        row["peft KiB"] = kept_bytes(lambda: held.append(wrapped(x)), wrapped) / 1024
        row["ours / peft"] = row["ours KiB"] / row["peft KiB"]
    return [row]


def unet_of(size: str) -> nn.Module:
    from diffusers import UNet2DConditionModel

    shapes: dict[str, dict[str, Any]] = {
        "128 sites": {"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 64, "attention_head_dim": 8},
        "794 sites": {
            "block_out_channels": (32, 64, 128),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (4, 8, 16),
            "cross_attention_dim": 64,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64,
        },
    }
    return UNet2DConditionModel(sample_size=8, norm_num_groups=8, **shapes[size]).eval()


def loading(rounds: int) -> list[dict[str, Any]]:
    """Loading a file that is in memory (read just before) into a UNet with SD1's and SDXL's layers."""
    rows = []
    for size, targets in (("128 sites", ("to_q", "to_k", "to_v", "to_out.0")), ("794 sites", ("re:.*",))):
        torch.manual_seed(0)
        model = unet_of(size)
        with tempfile.TemporaryDirectory() as folder:
            sites = studio.attach(model, studio.LoRA(rank=4, targets=targets)).sites
            with torch.no_grad():
                for key, tensor in studio.state(model).items():
                    if key.endswith("up"):
                        tensor.normal_()
            file = studio.save(model, Path(folder) / "adapter.safetensors", format="diffusers")
            studio.detach(model)
            peer = unet_of(size)

            def load_ours(model: nn.Module = model, file: Path = file) -> None:
                studio.load(model, file)

            prefixed = next(iter(studio.inspect(file).tensors)).startswith("unet.")
            prefix = "unet" if prefixed else None

            def load_theirs(peer: Any = peer, file: Path = file, prefix: str | None = prefix) -> None:
                peer.load_lora_adapter(str(file), prefix=prefix, adapter_name="default")

            times = Times({"ours": [], "diffusers + peft": []})
            for _ in range(rounds):
                gc.collect()
                file.read_bytes()
                begin = time.perf_counter()
                load_ours()
                times.rounds["ours"].append(time.perf_counter() - begin)
                studio.detach(model)
                if PEFT:
                    gc.collect()
                    begin = time.perf_counter()
                    load_theirs()
                    times.rounds["diffusers + peft"].append(time.perf_counter() - begin)
                    peer.delete_adapters("default")
                    peer.unload_lora()
        row: dict[str, Any] = {"case": f"{len(sites)} sites", "ours s": times.seconds("ours")}
        if PEFT:
            row["diffusers + peft s"] = times.seconds("diffusers + peft")
            row["faster"] = times.ratio("diffusers + peft", "ours")
        rows.append(row)
    return rows


def table(title: str, rows: list[dict[str, Any]]) -> None:
    """Prints rows as a table."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for column in rows[0]:
        shown.add_column(column, justify="left" if column == "case" else "right", no_wrap=column == "case")
    for row in rows:
        shown.add_row(*map(printed, row.values()))
    Console(width=120).print(shown)


def printed(value: Any) -> str:
    """A figure as a table shows it: three digits, whole numbers in full."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:,.3g}"


def main() -> None:
    """Runs all measurements and prints a table of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each measurement; medians are printed")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {options.rounds} rounds")
    measured = {
        "forward of one LoRA layer over three products": forward_overhead(options.rounds),
        "cost of several active adapters over one": many_adapters(options.rounds),
        "setting strengths": strengths(options.rounds),
        "bytes kept for backward": backward_bytes(),
        "loading a file": loading(max(3, options.rounds // 3)),
    }
    for title, rows in measured.items():
        table(title, rows)
    if options.json:
        options.json.write_text(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
