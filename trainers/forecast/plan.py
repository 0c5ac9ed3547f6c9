"""The forecast of a training: its stages played on tensors without numbers, and what is a matter of formulas put on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from studio.device import choose_device, title
from studio.errors import BadConfig, DoesNotFit
from studio.families import Base, components
from studio.planning.blueprint import Blueprint, blueprint
from studio.planning.fakes import Fakes
from studio.planning.forecast import PHASES, Forecast, Phase
from studio.planning.measured import correction
from studio.planning.quantised import Saved, matrices, quantised
from studio.planning.sharding import SHARDINGS, deepspeed_buffers, share
from studio.planning.sizes import in_words
from studio.planning.tracker import Tracker
from studio.quantization import BACKENDS, Backend
from studio.quantization.parts import by_component
from studio.quantization.wishes import read_wishes
from studio.trainers.forecast.asked import Asked
from studio.trainers.forecast.image import image_scene
from studio.trainers.forecast.language import language_scene, text_recipe
from studio.trainers.forecast.stage import play
from studio.trainers.forecast.swapped import Waiting, block_sizes, waiting
from studio.trainers.language.rehearsals import REHEARSALS, USUAL_TASKS
from studio.trainers.loop import checkpoint
from studio.trainers.recipes import recipe_for

__all__ = ["IMAGE_TASKS", "forecast", "plan", "usual_task"]

IMAGE_TASKS: Final = ("dreambooth", "style")
LEAST_IN_8_BITS: Final = 4096
"""Numbers of a tensor from which on bitsandbytes keeps its moments in 8 bits."""


def plan(base: str | Path, **settings: Any) -> Forecast:
    """Says what a training will take, from configs alone: no weights, no accelerator, nothing of the network.

    The trainers' own loss, the adapter's own layers and the loop's own optimizer run for one step on tensors that have
    shapes and no numbers, and every storage is counted from its making to its end.

    Args:
        base: a public model's name (``"sd1"``, ``"sdxl"``, ``"flux-dev"``, ``"llama-3-8b"``, …), an embedded base, a
            folder, a checkpoint of one file, or a hub id whose configs are in the cache on this machine.
        settings: fields of :class:`~studio.trainers.forecast.asked.Asked`: ``adapter``, ``resolution``,
            ``batch_size``, ``gradient_checkpointing``, ``quantize``, …

    Returns:
        The forecast; ``str()`` of it is a table.

    Raises:
        UnknownName: nothing is known of the base's shape, or a setting's word is not known.
        BadConfig: a setting with an impossible value.
        DoesNotFit: settings that do not belong to this sort of base.
        BadFile: the base's configs cannot be read.

    Example:
        >>> found = plan("emoji", batch_size=4)
        >>> found.worst.name, found.peak < 1e9
        ('backward', True)
    """
    return forecast(base, Asked(**settings))


def usual_task(base: str | Path) -> str:
    """Returns the task that is meant where none is named.

    Args:
        base: as :func:`plan` takes it.

    Raises:
        UsageError: as :func:`plan`.

    Example:
        >>> usual_task("emoji"), usual_task("facts"), usual_task("words"), usual_task("figures")
        ('dreambooth', 'causal-lm', 'seq2seq', 'caption')
    """
    return _nature(str(base), None).task


def forecast(base: str | Path, asked: Asked) -> Forecast:
    """As :func:`plan`, of settings that have been put together."""
    asked = _for(base, asked)
    # what is a matter of formulas is left out of what is played, so that a search plays little
    plain = replace(
        asked, quantize=None, offload="none", sharding="none", processes=1, batch_size=asked.rows,
        optimizer=asked.optimizer if asked.optimizer in ("lora-plus", "lora-fa") else "adamw", corrected=True,
        blocks_to_swap=0 if asked.quantize else asked.blocks_to_swap,
    )  # fmt: skip
    made = _adjusted(_played(str(base), plain), asked)
    if not asked.corrected:
        return made
    return replace(made, correction=correction(made.counted, title(choose_device())))


_FRESH: Final[dict[tuple[str, str], Blueprint]] = {}
"""Bases by name and task that were looked at and have not been played yet, which changes them."""
KEPT_FRESH: Final = 4


@dataclass(frozen=True)
class _Nature:
    """What the settings of a training ask a base about.

    Args:
        draws: whether it draws pictures. task: what is trained. batch_size: the recipe's.
    """

    draws: bool
    task: str
    batch_size: int


def _drawn(base: str, task: str | None) -> Blueprint:
    """The base, opened as what a task needs; as what it was saved as for one that is not on texts."""
    if task is None or task not in REHEARSALS:
        return blueprint(base)
    return blueprint(base, REHEARSALS[task].kind, REHEARSALS[task].labels)


@lru_cache(maxsize=16)
def _nature(base: str, task: str | None) -> _Nature:
    """What a base is to a task; None: to the one that is usual.

    Raises:
        DoesNotFit: it is of another sort, or no forecast is made of the task.
    """
    drawn = _drawn(base, task)
    family, model = drawn.family, drawn.language
    tasks = IMAGE_TASKS if family is not None else tuple(REHEARSALS)
    if task is not None and task not in tasks:
        sort = "an image" if family is not None else "a language"
        raise DoesNotFit(
            f"task={task!r}: {base} is {sort} base, and of the trainings of those a forecast is made of "
            f"{', '.join(tasks)}"
        )
    if family is None:
        assert model is not None and drawn.kind is not None, "else it is of a family"
        named = task or USUAL_TASKS[drawn.kind.name]
        batch_size = text_recipe(named, model).batch_size
    else:
        named = task or IMAGE_TASKS[0]
        made = Base(drawn, family, drawn.name, family.native(drawn), defaults=family.defaults(drawn))
        batch_size = recipe_for(named, made).batch_size
    if len(_FRESH) >= KEPT_FRESH:
        _FRESH.pop(next(iter(_FRESH)))
    _FRESH[base, named] = drawn
    return _Nature(family is not None, named, batch_size)


def _for(base: str | Path, asked: Asked) -> Asked:
    """Returns the settings with what the sort of the base decides.

    Raises:
        DoesNotFit: a setting of the other sort.
    """
    own = _nature(str(base), asked.task)
    for name in ("answer",) if own.draws else ("resolution", "text_encoder", "prior", "crop"):
        if getattr(asked, name) != Asked.__dataclass_fields__[name].default:
            sort = "a language" if own.draws else "an image"
            raise DoesNotFit(f"{name}={getattr(asked, name)!r} is for {sort} base, and {base} is none: leave it out")
    _check_own(own, asked)
    batch = asked.batch_size or max(own.batch_size, asked.processes)
    samples = batch * asked.accumulation
    if asked.processes > samples:
        raise DoesNotFit(
            f"{asked.processes} processes share {samples} samples of a step, so some would have none: give a "
            f"batch_size of {asked.processes} or more"
        )
    return replace(asked, task=own.task, batch_size=batch)


def _check_own(nature: _Nature, asked: Asked) -> None:
    """Checks that the task has the settings that are given as its own.

    Raises:
        DoesNotFit: it has not. BadConfig: a value that is none of such a setting.
    """
    known = REHEARSALS[nature.task].options if nature.task in REHEARSALS else {}
    other = next((name for name in asked.own if name not in known), None)
    if other is not None:
        names = ", ".join(known) or "none"
        raise DoesNotFit(
            f"{other} decides nothing of what the task {nature.task} takes (what does: {names}): leave it out"
        )
    for name, value in asked.own.items():
        usual = known[name]
        if type(value) is not type(usual) or (type(value) is int and value < 1):
            raise BadConfig(f"{name}={value!r}: give what the task {nature.task} takes, such as {usual!r}")


class _Play:
    """A run that was played: what was counted, and what formulas ask about its modules."""

    def __init__(self, base: str, asked: Asked) -> None:
        fakes, self.tracker = Fakes(), Tracker()
        self.asked = asked  # kept: the words of a function are its place in memory, which another one may take after it
        assert asked.task is not None, "the settings are filled"
        drawn = _FRESH.pop((base, asked.task), None) or _drawn(base, asked.task)
        self.name, self.dtype = drawn.name, asked.type_of(drawn.dtype)
        self.known_dtype = drawn.dtype is not None
        scene = image_scene(drawn, asked, fakes) if drawn.family else language_scene(drawn, asked)
        parts = components(scene.lesson.model)
        self.first = next(iter(scene.lesson.rates))
        main = parts[self.first]
        self.matrices = {name: matrices(part) for name, part in {**scene.beside, **parts}.items()}
        self.resident = {*scene.lesson.rates, *scene.resident}
        self.blocks = block_sizes(main)
        try:
            play(scene, asked, fakes, self.tracker)
        except (DataDependentOutputException, DynamicOutputShapeException) as problem:
            raise DoesNotFit(
                f"no forecast is made of {self.name} with these settings: {problem.func} asks for numbers, and a plan "
                "has only shapes; smaller batches or shorter samples are forecast"
            ) from problem
        self.unit = max((_bytes(block) for block in _blocks(main)), default=_bytes(main))
        self.largest = max(p.numel() * p.element_size() for p in main.parameters())
        self.weights = sum(
            _own(module) for module in {id(m): m for m in (*parts.values(), *scene.beside.values())}.values()
        )
        trained = (p for part in scene.lesson.rates for p in parts[part].parameters() if p.requires_grad)
        sizes = [parameter.numel() for parameter in trained]
        self.trained, self.share_in_8_bits = sum(sizes), share_in_8_bits(sizes)
        self.cached = _cache_bytes(scene)
        self.sizes = scene.sizes

    def quantised_as(self, asked: str | None) -> dict[str, Backend]:
        """Returns how each component is quantised that is asked for."""
        wishes = by_component(read_wishes(asked, packages=False), self.matrices, self.first)
        return {part: BACKENDS[name] for part, name in wishes.items()}

    def waiting(self, asked: Asked) -> Waiting:
        """Returns what blocks take that wait in the CPU's memory.

        Raises:
            DoesNotFit: there are fewer, or what is quantised so cannot wait.
        """
        way = self.quantised_as(asked.quantize).get(self.first)
        named = self.first or self.name
        return waiting(self.blocks, asked.blocks_to_swap, named, way, asked.gradient_checkpointing)


def share_in_8_bits(sizes: Sequence[int]) -> float:
    """Returns the bytes of moments in 8 bits against those of AdamW's, which are eight per number.

    Two bytes and two scales in fp32 per 256 numbers; what is small keeps its own.

    Args:
        sizes: numbers of each trained tensor.

    Example:
        >>> share_in_8_bits([4096]), share_in_8_bits([4095]), share_in_8_bits([])
        (0.25390625, 1.0, 1.0)
    """
    large = sum(size for size in sizes if size >= LEAST_IN_8_BITS)
    return 1 - large / sum(sizes) * (1 - (2 + 2 * 4 / 256) / 8) if large else 1.0


def _played(base: str, asked: Asked) -> _Play:
    """A run that was played, which a search asks for again; configs may hold tables, so their words are keys."""
    key = base, repr(asked)
    if key not in _PLAYED:
        if len(_PLAYED) >= KEPT:
            _PLAYED.pop(next(iter(_PLAYED)))
        _PLAYED[key] = _Play(base, asked)
    return _PLAYED[key]


_PLAYED: Final[dict[tuple[str, str], _Play]] = {}
KEPT: Final = 64


def _own(module: nn.Module) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if ".adapters." not in f".{name}")


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _blocks(module: nn.Module) -> Iterable[nn.Module]:
    return (block for part in module.modules() if isinstance(part, nn.ModuleList) for block in part)


def _cache_bytes(scene: Any) -> dict[str, int]:
    """What is kept of a picture and of a caption, on the disk."""
    lesson = scene.lesson
    if scene.cache is None:
        return {}
    latent = next(iter(lesson.latents._made.values()))
    said = next(iter(lesson.prompts._encoded.values()))
    return {
        "latents per picture": latent.numel() * 4,
        "embedding per caption": sum(4 * tensor.numel() for tensor in said.tensors().values()),
    }


def _adjusted(played: _Play, asked: Asked) -> Forecast:
    """Puts on what is a matter of formulas: quantisation, the optimizer's kind, offloading, several processes."""
    host: dict[str, int] = {}
    phases = []
    for name in PHASES:
        found = played.tracker.peaks.get(name)
        if found is not None:
            phases.append(Phase(name, _phase(dict(found.by), name, played, asked, host)))
    numbers = played.trained * 4
    disk = {"adapter": numbers, "checkpoints": numbers * (1 + 3 * checkpoint.KEPT), **played.cached}
    flops = sum(count for name, count in played.tracker.flops.items() if name in ("forward", "backward"))
    micro = min(asked.accumulation, 2)
    return Forecast(
        played.name, asked.facts(), tuple(phases), host, played.trained, played.weights,
        flops / micro * asked.accumulation, asked.precision == "bf16" or played.dtype is not torch.float32, disk,
        {**played.sizes, "batch_size": asked.batch_size or 1, "blocks": len(played.blocks)},
        tuple(_assumed(played, asked)),
    )  # fmt: skip


def _phase(by: dict[str, int], name: str, played: _Play, asked: Asked, host: dict[str, int]) -> Mapping[str, int]:
    works, steps = name not in ("load", "save", "optimizer"), name in ("forward", "backward", "optimizer", "save")
    ways = played.quantised_as(asked.quantize)
    wanted = {part: how for part, how in ways.items() if not steps or part in played.resident}
    saved = quantised(played.matrices, wanted)
    by["weights"] -= saved.before - saved.after
    apart = played.waiting(asked)
    if asked.quantize:  # else it was played
        by["weights"] -= apart.there - apart.on_device(name)
    host["blocks"] = apart.there
    computing = {part: how for part, how in wanted.items() if name != "caching" or part != played.first}
    together = quantised(played.matrices, computing).largest  # the largest that is put together to compute with
    if works and together:
        by["temporaries"] = by.get("temporaries", 0) + together
    if "optimizer" in by and asked.optimizer.endswith("8bit"):
        by["optimizer"] = round(by["optimizer"] * played.share_in_8_bits)
    unit = played.unit if not saved.layers else round(played.unit * saved.after / saved.before)
    if asked.sharding == "zero3":
        unit = max(unit, played.largest)
        if works and asked.processes == 1:  # no training here: another program's, by DeepSpeed's own settings
            by["communication"] = deepspeed_buffers(played.weights, played.dtype.itemsize)
    resting = share(by, SHARDINGS[asked.sharding], asked.processes, 0)  # its own part, and nothing that is fetched
    by = share(by, SHARDINGS[asked.sharding], asked.processes, unit)
    if "optimizer" in by and (asked.optimizer.startswith("paged") or asked.offload != "none"):
        host["optimizer"] = resting["optimizer"]
        del by["optimizer"]
    if asked.offload == "all":
        host["weights"] = max(host.get("weights", 0), resting["weights"])
        by["weights"] = 2 * unit if works else 0
    return {category: size for category, size in by.items() if size}


def _assumed(played: _Play, asked: Asked) -> Iterable[str]:
    yield (
        "memory that tensors hold, in blocks of 512 bytes; the device's own context (0.3 to 0.8 GB), the workspaces of "
        "its libraries and the gaps between blocks come on top"
    )
    if asked.task is not None and asked.task in REHEARSALS:
        yield from REHEARSALS[asked.task].taken
    if not played.known_dtype and asked.dtype is None:
        yield "the base's files hold bf16 (dtype= says otherwise)"
    if asked.attention == "sdpa":
        yield "attention is computed by a kernel that keeps no scores (attention='eager' keeps them)"
    if asked.quantize:
        wanted = played.quantised_as(asked.quantize)
        saved: Saved = quantised(played.matrices, wanted)
        ways = ", ".join(dict.fromkeys(how.says for how in wanted.values()))
        yield f"{saved.layers} layers are quantised ({ways}), and one is put together at a time"
    if asked.blocks_to_swap:
        apart = played.waiting(asked)
        yield (
            f"{asked.blocks_to_swap} of {len(played.blocks)} blocks wait in the CPU's memory; a step fetches "
            f"{in_words(2 * asked.accumulation * apart.there)} of them, which is not in its time"
        )
    if asked.processes > 1:
        yield f"{asked.processes} processes, {asked.sharding}: {SHARDINGS[asked.sharding].what}"
