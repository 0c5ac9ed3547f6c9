"""Pictures of ComfyUI: the graph of nodes that made it, under ``prompt``; or the graph that was on the screen.

The graph is followed upwards from a sampler: its conditionings to the texts, its model through the LoRA loaders to the
checkpoint, its latents to their size. Where pictures are drawn in several passes, the first is the one that is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from studio.errors import BadFile
from studio.pipelines.foreign.said import Notes, Said, SaidAdapter, file_stem
from studio.pipelines.foreign.screen import graph_of_screen
from studio.pipelines.foreign.tree import json_object

__all__ = ["read"]

NODES_MOST: Final = 10_000
ADAPTERS_MOST: Final = 100
SAMPLERS: Final = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
TEXTS: Final = ("text", "text_g", "t5xxl", "clip_l", "text_l", "prompt", "string", "value", "populated_text")
MODELS: Final = ("ckpt_name", "unet_name", "model_name")
CONDITIONINGS: Final = ("conditioning", "conditioning_1", "conditioning_to", "positive")
PASSING: Final = ("FluxGuidance", "Reroute", "ConditioningZeroOut")  # nodes on the way that change no text


@dataclass(frozen=True)
class _Node:
    """A node: its class, its inputs, and the graph in which it stands."""

    name: str
    kind: str
    inputs: Mapping[str, Any]
    graph: Mapping[str, Mapping[str, Any]]

    def above(self, *inputs: str) -> _Node | None:
        """The node that the first of these inputs comes from; None: it is a value, or is not there."""
        for name in inputs:
            value = self.inputs.get(name)
            if isinstance(value, Sequence) and not isinstance(value, str) and value and str(value[0]) in self.graph:
                return _node(self.graph, str(value[0]))
        return None

    def value(self, *inputs: str) -> Any:
        """The first of these inputs that is there, followed to where it comes from."""
        node: _Node | None = self
        for _ in range(20):
            if node is None:
                break
            for name in inputs:
                found = node.inputs.get(name)
                if isinstance(found, (str, int, float)) and not isinstance(found, bool):
                    return found
            node, inputs = node.above(*inputs), (*inputs, *TEXTS)
        return None


def read(texts: Mapping[str, str]) -> Said | None:
    """Reads what ComfyUI wrote.

    Args:
        texts: the texts of the picture.

    Returns:
        What it says; None: ComfyUI did not make it, or no sampler of its own did.

    Raises:
        BadFile: its text is damaged, or too long.
    """
    if "prompt" in texts and texts["prompt"].lstrip().startswith("{"):
        graph = json_object(texts["prompt"], "prompt")
    elif "workflow" in texts:
        graph = graph_of_screen(json_object(texts["workflow"], "workflow"))
    else:
        return None
    if len(graph) > NODES_MOST:
        raise BadFile(f"the picture's graph has {len(graph):,} nodes, and at most {NODES_MOST:,} are read")
    nodes = {str(name): node for name, node in graph.items() if isinstance(node, Mapping)}
    samplers = [node for name in nodes if (node := _node(nodes, name)).kind in SAMPLERS]
    return _said(samplers) if samplers else None


def _said(samplers: Sequence[_Node]) -> Said:
    notes = Notes()
    # the first pass is the one whose latents come from no other sampler
    first = next((one for one in samplers if not any(node.kind in SAMPLERS for node in _latents(one))), samplers[0])
    for other in samplers:
        if other.name != first.name:
            notes.leave(f"pass {other.name}", f"{other.kind} (the first pass alone is read)")
    guider, sigmas = first.above("guider") or first, first.above("sigmas") or first
    noise, sampler = first.above("noise") or first, first.above("sampler") or first
    notes.whole("steps", "steps", sigmas.value("steps"))
    notes.whole("seed", "seed", noise.value("seed", "noise_seed"), least=0)
    notes.number("guidance", "cfg", guider.value("cfg"))
    notes.scheduler(sampler.value("sampler_name"), sigmas.value("scheduler"))
    denoise = sigmas.value("denoise")
    if isinstance(denoise, (int, float)) and denoise < 1:
        notes.leave("denoise", f"{denoise} (of another picture that it started from: --image)")
    _size(notes, first)
    prompt = _text(guider.above("positive", "conditioning"), notes, guided=True)
    away = _text(guider.above("negative"), notes)
    base, adapters = _model((guider if guider.above("model") else sigmas).above("model"), notes)
    return Said(
        tool="ComfyUI", prompt=prompt, negative=away, base=base, adapters=adapters, numbers=notes.numbers,
        unused=tuple(notes.unused),
    )  # fmt: skip


def _size(notes: Notes, sampler: _Node) -> None:
    for node in _latents(sampler):
        if node.kind.startswith("Empty"):
            notes.size(node.value("width"), node.value("height"))
            return


def _latents(sampler: _Node) -> Iterator[_Node]:
    """The nodes above a sampler's latents, up to the next sampler."""
    node = sampler.above("latent_image")
    for _ in range(100):
        if node is None:
            return
        yield node
        if node.kind in SAMPLERS:
            return
        node = node.above("samples", "latent", "latent_image", "image", "pixels", "images")


def _text(node: _Node | None, notes: Notes, *, guided: bool = False) -> str:
    """The text above a conditioning."""
    for _ in range(100):
        if node is None:
            return ""
        if guided and "guidance" in node.inputs:
            notes.number("embedded_guidance", "guidance", node.value("guidance"))
        text = node.value(*TEXTS)
        if isinstance(text, str):
            return text
        if node.kind not in PASSING:
            notes.leave(node.kind, "what it does to the text")
        node = node.above(*CONDITIONINGS)
    return ""


def _model(node: _Node | None, notes: Notes) -> tuple[str, tuple[SaidAdapter, ...]]:
    """The checkpoint above a model, and the LoRA loaders on the way, the first to act first."""
    adapters: list[SaidAdapter] = []
    for _ in range(ADAPTERS_MOST):
        if node is None:
            break
        if isinstance(node.value("lora_name"), str):
            adapters.insert(0, _adapter(node))
        elif isinstance(node.value(*MODELS), str) and node.above("model") is None:
            return file_stem(node.value(*MODELS)), tuple(adapters)
        elif node.kind != "Reroute":
            notes.leave(node.kind, "what it does to the model")
        node = node.above("model", "")
    return "", tuple(adapters)


def _adapter(node: _Node) -> SaidAdapter:
    numbers = Notes()
    for name in ("strength_model", "strength_clip"):
        numbers.number(name, name, node.value(name))
    model = numbers.numbers.get("strength_model", 1.0)
    return SaidAdapter(file_stem(node.value("lora_name")), model, numbers.numbers.get("strength_clip", model))


def _node(graph: Mapping[str, Mapping[str, Any]], name: str) -> _Node:
    node = graph[name]
    inputs = node.get("inputs")
    return _Node(name, str(node.get("class_type", "")), inputs if isinstance(inputs, Mapping) else {}, graph)
