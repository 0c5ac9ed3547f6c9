"""ComfyUI's graph as it was on the screen, turned into the one that it runs.

On the screen a node's values stand in a list without names, ``widgets_values``; for the nodes of this table it is known
which is which. Links stand in a list of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["graph_of_screen"]

_SAMPLER: Final = ("seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise")
WIDGETS: Final[Mapping[str, tuple[str, ...]]] = {
    "KSampler": _SAMPLER,
    "KSamplerAdvanced": ("", "noise_seed", "", "steps", "cfg", "sampler_name", "scheduler"),
    "KSamplerSelect": ("sampler_name",),
    "RandomNoise": ("noise_seed",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "CFGGuider": ("cfg",),
    "FluxGuidance": ("guidance",),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeFlux": ("clip_l", "t5xxl", "guidance"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "UNETLoader": ("unet_name",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "EmptyLatentImage": ("width", "height"),
    "EmptySD3LatentImage": ("width", "height"),
    "PrimitiveNode": ("value",),
}
"""Class -> the names of its values in their order; ``""`` is one that is not needed."""


def graph_of_screen(screen: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns ``name -> {"class_type": ..., "inputs": ...}``, as the graph that runs has it.

    Args:
        screen: the content of the picture's ``workflow`` text.

    Example:
        >>> graph_of_screen({"nodes": [{"id": 6, "type": "CLIPTextEncode", "widgets_values": ["a dog"]}], "links": []})
        {'6': {'class_type': 'CLIPTextEncode', 'inputs': {'text': 'a dog'}}}
    """
    links = {}
    for link in _list(screen.get("links")):
        if isinstance(link, list) and len(link) >= 3 and isinstance(link[0], (int, str)):
            links[link[0]] = [str(link[1]), link[2]]
    graph = {}
    for node in _list(screen.get("nodes")):
        if not isinstance(node, Mapping) or node.get("mode", 0) in (2, 4):  # muted, bypassed
            continue
        kind, values, inputs = str(node.get("type", "")), node.get("widgets_values"), dict[str, Any]()
        if isinstance(values, list):
            inputs |= {name: value for name, value in zip(WIDGETS.get(kind, ()), values, strict=False) if name}
        for slot in _list(node.get("inputs")):
            if isinstance(slot, Mapping) and isinstance(slot.get("link"), (int, str)) and slot["link"] in links:
                inputs[str(slot.get("name"))] = links[slot["link"]]
        graph[str(node.get("id"))] = {"class_type": kind, "inputs": inputs}
    return graph


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
