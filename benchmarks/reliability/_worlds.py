"""Small bases that adapter files of every format are for, and what each key of such a file means on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks.reliability._formulas import Meaningless, change

__all__ = ["LYCORIS", "Unit", "World", "flux", "numbered", "plain"]

LYCORIS: Final = (
    "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale", "hada_w1_a", "hada_w1_b",
    "hada_w2_a", "hada_w2_b", "lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "a1.weight",
    "a2.weight", "b1.weight", "b2.weight", "diff", "diff_b", "weight", "on_input", "oft_blocks",
)  # fmt: skip
PEFT: Final = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
DOTTED: Final = {**{part: part for part in LYCORIS}, **PEFT, "lora.down.weight": "lora_down.weight",
                 "lora.up.weight": "lora_up.weight"}  # fmt: skip
FLAT: Final = {part: part for part in LYCORIS}


@dataclass(frozen=True)
class Unit:
    """A layer as a format has it.

    Attributes:
        paths: the layers here whose rows it has. swapped: whether the halves of its rows are exchanged.
    """

    paths: tuple[str, ...]
    swapped: bool = False


@dataclass
class World:
    """A base, and the keys that mean something on it.

    Attributes:
        model: the base. names: key -> module of the file, unit and part. scale: what the config of a folder states.
        whole: whether a file's keys are all that its format has.
    """

    model: nn.Module
    names: dict[str, tuple[str, Unit, str]] = field(default_factory=dict)
    scale: float | None = None
    whole: Callable[[Mapping[str, Tensor]], bool] = lambda tensors: True
    _weights: dict[str, Tensor] = field(default_factory=dict)

    def add(self, module: str, unit: Unit, parts: Mapping[str, str], same: str = "") -> None:
        """Notes the keys of a module; ``same`` is the module that a program takes it for."""
        self.names |= {f"{module}.{part}": (same or module, unit, meant) for part, meant in parts.items()}

    def weight(self, path: str) -> Tensor:
        """The base's weight, in fp64."""
        if path not in self._weights:
            self._weights[path] = self.model.get_submodule(path).weight.detach().double().clone()
        return self._weights[path]

    def meaning(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor | None]] | None:
        """Path -> change of weight and bias; None where the file has no meaning as a whole."""
        modules: dict[str, tuple[Unit, dict[str, Tensor]]] = {}
        for key, tensor in tensors.items():
            if key not in self.names:
                return None
            module, unit, part = self.names[key]
            parts = modules.setdefault(module, (unit, {}))[1]
            if part in parts:
                return None
            parts[part] = tensor
        if not modules or not self.whole(tensors):
            return None
        found: dict[str, tuple[Tensor, Tensor | None]] = {}
        for unit, parts in modules.values():
            try:
                made = dict(self._of(unit, parts))
            except Meaningless:
                return None
            if found.keys() & made.keys():
                return None
            found |= made
        return found

    def _of(self, unit: Unit, parts: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[Tensor, Tensor | None]]]:
        weights = [self.weight(path) for path in unit.paths]
        whole = torch.cat([_swapped(one) if unit.swapped else one for one in weights])
        made, bias = change(parts, whole, self.scale)
        if bias is not None and self.model.get_submodule(unit.paths[0]).bias is None:
            raise Meaningless
        rows = [len(one) for one in weights]
        biases = [None] * len(rows) if bias is None else bias.split(rows)
        for path, one, other in zip(unit.paths, made.split(rows), biases, strict=True):
            turned = None if other is None else _swapped(other) if unit.swapped else other
            yield path, (_swapped(one) if unit.swapped else one, turned)


def _swapped(rows: Tensor) -> Tensor:
    return torch.cat(rows.chunk(2)[::-1])


class Layers(nn.Module):
    """A layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.square = nn.Linear(8, 12), nn.Linear(8, 8)
        self.bare = nn.Linear(8, 6, bias=False)
        self.conv, self.point = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 6, 1)


def plain(folder: bool = False) -> World:
    """Layers of no family.

    Args:
        folder: whether the file is that of a PEFT folder, whose config says alpha / r = 1.5.
    """
    torch.manual_seed(0)
    world = World(Layers().eval(), scale=1.5 if folder else None)
    for path, _ in world.model.named_children():
        if folder:
            world.add(f"base_model.model.{path}", Unit((path,)), PEFT)
        else:
            world.add(f"lycoris_{path}", Unit((path,)), FLAT)
            world.add(path, Unit((path,)), DOTTED)
    return world


_ATTENTIONS: Final = {"img_attn": ("to_q", "to_k", "to_v"), "txt_attn": ("add_q_proj", "add_k_proj", "add_v_proj")}


def flux() -> World:
    """A Flux of one block of each kind, in the names of kohya, ComfyUI, XLabs, fal and diffusers."""
    import diffusers

    torch.manual_seed(0)
    world = World(
        diffusers.FluxTransformer2DModel(
            in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=12, pooled_projection_dim=10, axes_dims_rope=(2, 2, 4), guidance_embeds=True,
        ).eval()
    )  # fmt: skip
    for name, unit in _flux_units():
        native = f"diffusion_model.{name}"
        world.add(f"lora_unet_{name.replace('.', '_')}", unit, FLAT)
        for head in ("diffusion_model.", "model.diffusion_model.", "", "transformer."):
            world.add(f"{head}{name}", unit, DOTTED)
        if "blocks" in name:
            world.add(f"base_model.model.{name}", unit, DOTTED, same=native)
    for path in {path for _, unit in _flux_units() for path in unit.paths}:
        unit = Unit((path,))
        world.add(f"lora_transformer_{path.replace('.', '_')}", unit, FLAT)
        for head in ("transformer.", ""):
            world.add(f"{head}{path}", unit, DOTTED)
    _add_xlabs(world)
    return world


def _flux_units() -> Iterator[tuple[str, Unit]]:
    block, single = "transformer_blocks.0", "single_transformer_blocks.0"
    for side, names in _ATTENTIONS.items():
        yield f"double_blocks.0.{side}.qkv", Unit(tuple(f"{block}.attn.{name}" for name in names))
    yield "double_blocks.0.img_attn.proj", Unit((f"{block}.attn.to_out.0",))
    yield "double_blocks.0.txt_attn.proj", Unit((f"{block}.attn.to_add_out",))
    yield "double_blocks.0.img_mlp.0", Unit((f"{block}.ff.net.0.proj",))
    yield "double_blocks.0.img_mod.lin", Unit((f"{block}.norm1.linear",))
    parts = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    yield "single_blocks.0.linear1", Unit(tuple(f"{single}.{part}" for part in parts))
    yield "single_blocks.0.linear2", Unit((f"{single}.proj_out",))
    yield "final_layer.adaLN_modulation.1", Unit(("norm_out.linear",), swapped=True)


def _add_xlabs(world: World) -> None:
    pair = {"down.weight": "lora_down.weight", "up.weight": "lora_up.weight"}
    units = dict(_flux_units())
    for number, side in (("1", "img_attn"), ("2", "txt_attn")):
        for part in ("qkv", "proj"):
            unit = units[f"double_blocks.0.{side}.{part}"]
            world.add(f"double_blocks.0.processor.{part}_lora{number}", unit, pair, f"double_blocks.0.{side}.{part}")
    linear = units["single_blocks.0.linear1"]
    world.add("single_blocks.0.processor.qkv_lora", Unit(linear.paths[:3]), pair)
    world.add("single_blocks.0.processor.proj_lora", units["single_blocks.0.linear2"], pair, "single_blocks.0.linear2")


def numbered() -> World:
    """A UNet of SD1's layers, in the numbers of cloneofsimo's trainer."""
    import diffusers

    torch.manual_seed(0)
    model: Any = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16, 24, 24), norm_num_groups=4, cross_attention_dim=12,
        attention_head_dim=2,
    ).eval()  # fmt: skip
    paths = [
        f"{name}.{inner}"
        for name, one in model.named_modules()
        if type(one).__name__ in ("Attention", "GEGLU")
        for inner, layer in one.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    count = {f"unet:{number}:{part}" for number in range(len(paths)) for part in ("up", "down")}
    world = World(model, whole=lambda tensors: count <= tensors.keys() or not count & tensors.keys())
    for number, path in enumerate(paths):
        for part in ("down", "up"):
            world.names[f"unet:{number}:{part}"] = (f"unet.{path}", Unit((path,)), f"lora_{part}.weight")
        world.add(f"unet.{path}", Unit((path,)), DOTTED)
        world.add(f"lora_unet_{path.replace('.', '_')}", Unit((path,)), FLAT)
    return world
