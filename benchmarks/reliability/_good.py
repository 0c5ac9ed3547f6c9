"""Good adapter files of every format and method, as their programs write them, for the attack by changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from benchmarks.reliability._worlds import World, flux, numbered, plain

__all__ = ["CONFIG", "Good", "Words", "goods", "words"]

CONFIG: Final = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["wide", "square", "bare"]}
"""Of the folder."""


@dataclass(frozen=True)
class Good:
    """A good file.

    Attributes:
        name: its format and method. world: the base. tensors: the file's. folder: whether it is one of PEFT's.
        share: how many of a hundred trials it gets for each that others get.
    """

    name: str
    world: World
    tensors: dict[str, Tensor]
    folder: bool = False
    share: float = 1.0


@dataclass(frozen=True)
class Words:
    """A good file of learned words.

    Attributes:
        name: its format. tensors: the file's. metadata: its texts. known: keys of such files.
    """

    name: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    known: tuple[str, ...] = ("emb_params", "clip_l", "clip_g", "t5xxl", "t5", "clip_l_out", "<cat>", "cat")


def words() -> list[Words]:
    """Textual inversions, one of each form."""
    torch.manual_seed(6)
    rows = {width: torch.randn(2, width) for width in (768, 1280, 4096)}
    told = {"<s1>": "<embed>", "<s2>": "<embed>"}
    return [
        Words("kohya words", {"emb_params": rows[768]}, {}),
        Words("sdxl words", {"clip_l": rows[768], "clip_g": rows[1280]}, {}),
        Words("onetrainer words", {"clip_l": rows[768], "clip_l_out": rows[768] + 1, "t5": rows[4096]}, {}),
        Words("diffusers words", {"<cat>": rows[768][0].clone()}, {}),
        Words("cloneofsimo words", dict(zip(told, rows[768], strict=True)), told),
    ]


def goods() -> list[Good]:
    """One of each."""
    torch.manual_seed(5)
    here, there, unet = plain(), flux(), numbered()
    found = [Good(f"lycoris {name}", here, dict(made)) for name, made in _lycoris()]
    found += [Good(f"flux {name}", there, made) for name, made in _flux(there)]
    folder = plain(folder=True)
    pairs = [_pair(f"base_model.model.{path}", *size, "lora_A.weight", "lora_B.weight") for path, size in SIZES.items()]
    found.append(Good("peft folder", folder, {key: one for pair in pairs for key, one in pair.items()}, folder=True))
    keys = [key for key in unet.names if key.startswith("unet:")]
    found.append(Good("cloneofsimo", unet, {key: _numbered(unet, key) for key in keys}, share=0.1))
    flat = [key for key in unet.names if key.startswith("lora_unet_down_blocks_0_attentions_0")]
    ends = ("lora_down.weight", "lora_up.weight", "alpha")
    found.append(Good("kohya unet", unet, {key: _part(unet, key) for key in flat if key.endswith(ends)}))
    return found


SIZES: Final = {"wide": (12, 8), "square": (8, 8), "bare": (6, 8)}


def _pair(module: str, rows: int, cols: int, down: str, up: str, rank: int = 2) -> dict[str, Tensor]:
    return {f"{module}.{down}": torch.randn(rank, cols), f"{module}.{up}": torch.randn(rows, rank)}


def _numbered(world: World, key: str) -> Tensor:
    rows, cols = world.weight(world.names[key][1].paths[0]).shape
    return torch.randn(rows, 2) if key.endswith("up") else torch.randn(2, cols)


def _part(world: World, key: str) -> Tensor:
    rows, cols = world.weight(world.names[key][1].paths[0]).shape
    part = world.names[key][2]
    return torch.tensor(1.0) if part == "alpha" else torch.randn(*((rows, 2) if "up" in part else (2, cols)))


def _lycoris() -> Iterator[tuple[str, dict[str, Tensor]]]:
    """LyCORIS' algorithms on layers of no family."""
    lora: dict[str, Tensor] = {}
    for path, size in SIZES.items():
        lora |= _pair(f"lycoris_{path}", *size, "lora_down.weight", "lora_up.weight")
        lora[f"lycoris_{path}.alpha"] = torch.tensor(1.0)
    yield "lora", lora
    yield "lora, dotted", {key.replace("lycoris_", ""): one for key, one in lora.items()}
    magnitudes = {"lycoris_wide.dora_scale": torch.rand(12, 1) + 1, "lycoris_bare.dora_scale": torch.rand(1, 8)}
    yield "dora", lora | magnitudes
    conv = {"lora_down.weight": (2, 4, 3, 3), "lora_up.weight": (6, 2, 1, 1)}
    yield "locon", _on("conv", conv) | _on("point", {**conv, "lora_down.weight": (2, 6, 1, 1)})
    tucker = {"lora_down.weight": (2, 4, 1, 1), "lora_up.weight": (6, 2, 1, 1), "lora_mid.weight": (2, 2, 3, 3)}
    yield "locon tucker", _on("conv", tucker)
    hada = {"hada_w1_a": (12, 2), "hada_w1_b": (2, 8), "hada_w2_a": (12, 2), "hada_w2_b": (2, 8)}
    yield "loha", _on("wide", hada)
    yield "loha, dora", {**_on("wide", hada), "lycoris_wide.dora_scale": torch.rand(12, 1)}
    yield "lokr", _on("wide", {"lokr_w1": (3, 2), "lokr_w2": (4, 4)})
    yield "lokr, a pair", _on("wide", {"lokr_w1": (3, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 4)})
    both = {"lokr_w1_a": (3, 1), "lokr_w1_b": (1, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 4)}
    yield "lokr, two pairs", _on("wide", both)
    yield "lokr, convolution", _on("conv", {"lokr_w1": (2, 2), "lokr_w2": (3, 2, 3, 3)})
    glora = {"a1.weight": (8, 2), "a2.weight": (2, 8), "b1.weight": (12, 2), "b2.weight": (2, 8)}
    yield "glora", _on("wide", glora)
    yield "full", _on("wide", {"diff": (12, 8), "diff_b": (12,)}, {}) | _on("conv", {"diff": (6, 4, 3, 3)}, {})
    out, into = ({"on_input": torch.tensor(flag)} for flag in (0, 1))
    yield "ia3", _on("bare", {"weight": (6,)}, out) | _on("square", {"weight": (8,)}, into)
    yield "oft", _on("wide", {"oft_blocks": (3, 4, 4)}, {"alpha": torch.tensor(0.0)})
    yield "boft", _on("wide", {"oft_blocks": (1, 3, 4, 4)}, {"alpha": torch.tensor(0.0)})
    yield "boft, stages", _on("square", {"oft_blocks": (2, 4, 2, 2)}, {"alpha": torch.tensor(0.0)})
    yield "lora and full", {**lora, **_on("conv", {"diff": (6, 4, 3, 3)}, {})}


def _on(path: str, shapes: dict[str, tuple[int, ...]], more: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Tensors on a layer, with an alpha unless something else stands beside them."""
    beside = {"alpha": torch.tensor(1.0)} if more is None else more
    made = {part: torch.randn(shape) / 2 for part, shape in shapes.items()}
    return {f"lycoris_{path}.{part}": one for part, one in {**made, **beside}.items()}


def _flux(world: World) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """A transformer's files, whose layers are one matrix natively."""
    fused = ("double_blocks.0.img_attn.qkv", "double_blocks.0.txt_attn.proj", "single_blocks.0.linear1")
    kohya = [f"lora_unet_{name.replace('.', '_')}" for name in (*fused, "final_layer.adaLN_modulation.1")]
    yield "kohya", _loras(world, kohya, "lora_down.weight", "lora_up.weight", alpha=True)
    for title, head in (("native", "diffusion_model."), ("bare", ""), ("fal", "base_model.model.")):
        yield title, _loras(world, [head + name for name in fused], "lora_A.weight", "lora_B.weight")
    processors = ("qkv_lora1", "proj_lora2")
    xlabs = [*(f"double_blocks.0.processor.{one}" for one in processors), "single_blocks.0.processor.qkv_lora"]
    yield "xlabs", _loras(world, xlabs, "down.weight", "up.weight")
    split = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp")
    yield "diffusers", _loras(world, [f"transformer.{path}" for path in split], "lora_A.weight", "lora_B.weight")
    flat = [f"lora_transformer_{path.replace('.', '_')}" for path in split]
    yield "onetrainer", _loras(world, flat, "lora_down.weight", "lora_up.weight", alpha=True)
    whole = "diffusion_model.double_blocks.0.img_attn.qkv"
    yield "native lokr", {f"{whole}.lokr_w1": torch.randn(3, 2), f"{whole}.lokr_w2": torch.randn(16, 8)}
    yield "native full", {f"{whole}.diff": torch.randn(48, 16), f"{whole}.diff_b": torch.randn(48)}


def _loras(world: World, modules: list[str], down: str, up: str, alpha: bool = False) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for module in modules:
        weights = [world.weight(path) for path in world.names[f"{module}.{down}"][1].paths]
        made |= _pair(module, sum(map(len, weights)), weights[0].shape[1], down, up)
        made |= {f"{module}.alpha": torch.tensor(1.0)} if alpha else {}
    return made
