"""diffusers' single file: the component, the module and PEFT's tensor names, ``unet.mid_block.….to_q.lora_A.weight``.

The scale of a LoRA stands in the metadata under ``lora_adapter_metadata``, JSON of PEFT's config fields with the
component in front (``unet.lora_alpha``); where it is missing diffusers takes alpha = rank, and so does this reader.
Older spellings of the tensors are read as well (``.lora.down``, ``.lora_linear_layer``, ``.processor.to_q_lora.down``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from studio.adapters import METHODS
from studio.files.format import FORMATS, Draft, Format, Source
from studio.files.header import write_tensors
from studio.files.names import Names
from studio.files.peft import peft_fields
from studio.files.peft_settings import PeftSettings
from studio.files.spelling import part_of
from studio.files.stated import METADATA, chosen_label, labelled, other_alpha

__all__ = ["DIFFUSERS"]

# Attention processors had LoRA layers of their own: "<attention>.processor.to_q_lora.down.weight".
_PROCESSORS: Final[Mapping[str, str]] = {
    "to_q_lora": "to_q",
    "to_k_lora": "to_k",
    "to_v_lora": "to_v",
    "to_out_lora": "to_out.0",
}
_TEXT: Final[Mapping[str, str]] = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "out_proj"}


def _split(key: str) -> tuple[str, str] | None:
    words = key.split(".")
    if len(words) > 3 and words[-3] in _PROCESSORS:
        layer = _PROCESSORS[words[-3]]
        before = words[:-3]
        if before[-1] == "processor":
            before = before[:-1]
        elif before[0].startswith("text_encoder"):
            layer = _TEXT[layer]
        return ".".join([*before, layer]), "lora_A.weight" if words[-2] == "down" else "lora_B.weight"
    return part_of(key)


def _settings(source: Source, method: str, components: tuple[str, ...]) -> PeftSettings | None:
    fields = labelled(source)
    label = chosen_label(fields, components)
    if label is None:
        return None
    settings = PeftSettings(fields[label], method, f"the metadata {METADATA!r}", label)
    name = METHODS[method].adapter.peft.settings.fields.get("alpha", "")
    settings.notes += other_alpha(source, name, fields[label])
    return settings


def _check(draft: Draft) -> None:
    """Everything can be said."""


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], draft: Draft) -> None:
    members = draft.config.members
    if len(members) == 1 and members[0].adapter.peft.diffusers:  # several methods have no one table of settings
        components = dict.fromkeys(draft.names.paths[path][0] for path in draft.sites)
        table: dict[str, Any] = {}
        for component in components:
            label = draft.names.labels[component]
            fields = peft_fields(draft, component)
            table |= {f"{label}.{name}" if label else name: value for name, value in fields.items()}
        metadata[METADATA] = json.dumps(table, indent=2, sort_keys=True)
    write_tensors(file, tensors, metadata)


DIFFUSERS: Final = FORMATS.add(
    "diffusers",
    Format(
        name="diffusers",
        title="diffusers file",
        dialect="peft",
        owns=lambda key: True,
        split=_split,
        find=Names.find_dotted,
        spell=Names.dotted,
        settings=_settings,
        write=_write,
        check=_check,
        respells=True,
    ),
)
