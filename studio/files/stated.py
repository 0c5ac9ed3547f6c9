"""What the header of a single file states beside its tensors: PEFT's fields by component, and an alpha for all layers.

diffusers writes PEFT's fields as JSON under ``lora_adapter_metadata``, for a pipeline with the component in front
(``unet.lora_alpha``), for a model by itself (``save_lora_adapter``) without. Other trainers write one number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from studio.errors import BadFile, DoesNotFit
from studio.files.components import component_of
from studio.files.format import Source
from studio.given import parse_json

__all__ = [
    "ALPHAS",
    "METADATA",
    "RANKS",
    "check_header_rank",
    "chosen_label",
    "header_alpha",
    "labelled",
    "other_alpha",
    "refuse_unused",
]

METADATA: Final = "lora_adapter_metadata"
ALPHAS: Final = ("lora_alpha", "network_alpha", "ss_network_alpha")
"""Under which an alpha for all layers stands."""
RANKS: Final = ("rank", "lora_rank", "network_dim", "ss_network_dim")
"""Under which the rank stands that goes with it."""


def labelled(source: Source) -> dict[str, dict[str, Any]]:
    """Returns the fields that the header states, by the component in front of them, ``""`` for none.

    Raises:
        BadFile: they are no table in JSON.
    """
    text = source.metadata.get(METADATA)
    if text is None:
        return {}
    try:
        table = parse_json(text)
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise BadFile(
            f"{source.file}: its metadata {METADATA!r} is no table in JSON; take it out, or save the file again"
        )
    fields: dict[str, dict[str, Any]] = {}
    for name, value in table.items():
        label, _, field = name.rpartition(".")
        fields.setdefault(label, {})[field] = value
    return fields


def chosen_label(fields: Mapping[str, Any], labels: Iterable[str]) -> str | None:
    """Returns the component whose fields are those of a layer, or None where the header states nothing for it.

    Args:
        fields: by component. labels: what the layer's component is called, in the file and here.
    """
    named = [label for label in labels if label]
    found = next((label for label in (*named, "") if label in fields), None)
    if found is None and not named and len(fields) == 1:  # one component, and a file of its layers alone
        return next(iter(fields))
    return found


def refuse_unused(source: Source, used: Iterable[str], modules: Iterable[str]) -> None:
    """Refuses fields in the header that no layer of the file is under.

    Args:
        source: the file. used: the components whose fields were read. modules: the layers in the file.

    Raises:
        DoesNotFit: there are some, so that a scale which somebody stated would be left out.
    """
    fields = labelled(source)
    rest = set(fields) - set(used)
    rest -= {component_of(module) for module in modules} - {""} if rest else set()
    for label in sorted(rest):
        name, value = next(iter(fields[label].items()))
        raise DoesNotFit(
            f"{source.file}: its metadata {METADATA!r} says {label + '.' if label else ''}{name}={str(value)[:60]!r}, "
            "and it is for none of the layers in the file; correct the component there, or take it out"
        )


def header_alpha(metadata: Mapping[str, str]) -> tuple[str, float] | None:
    """Returns the alpha that a header states for all layers, and under which name; None where it states none.

    Raises:
        DoesNotFit: it is no number, or stated twice with other values.
    """
    stated = {name: metadata[name] for name in ALPHAS if name in metadata}
    numbers = {name: number(text) for name, text in stated.items()}
    for name, found in numbers.items():
        if found is None:
            raise DoesNotFit(
                f"the header says {name}={stated[name][:60]!r}, which is no number, and no tensor states alpha; "
                "correct it, or take it out for alpha = rank"
            )
    if len(set(numbers.values())) > 1:
        both = " and ".join(f"{name}={text[:60]!r}" for name, text in stated.items())
        raise DoesNotFit(f"the header says {both}, and no tensor states alpha; take out the wrong one")
    return next(((name, found) for name, found in numbers.items() if found is not None), None)


def other_alpha(source: Source, name: str, fields: Mapping[str, Any]) -> Iterator[str]:
    """Says where an alpha for all layers stands beside PEFT's fields, and is another one.

    Args:
        source: the file. name: of PEFT's field, ``""`` where the method has none. fields: PEFT's.

    Raises:
        DoesNotFit: PEFT's fields leave it out, and so the scale could be that of either.
    """
    usual = 8  # what PEFT takes
    stated, alpha = fields.get(name), fields.get(name, usual)
    for other in ALPHAS if name and not fields.get("alpha_pattern") else ():
        found = number(source.metadata.get(other, ""))
        if found is None or not isinstance(alpha, (int, float)) or math.isclose(found, alpha, rel_tol=1e-5):
            continue
        if stated is None:
            raise DoesNotFit(
                f"{source.file}: its metadata {METADATA!r} leaves out {name}, for which PEFT takes {usual}, and the "
                f"header says {other}={source.metadata[other][:60]!r}: write the right one there"
            )
        yield f"{METADATA!r} says {name}={alpha!r}, and the header {other}={found:g}; the first counts"


def check_header_rank(metadata: Mapping[str, str], name: str, rank: int) -> None:
    """Checks the rank that a header states beside an alpha that is used.

    Args:
        metadata: the header's. name: under which the alpha stands. rank: that of a layer's tensors.

    Raises:
        DoesNotFit: they differ, and so the scale could be either's.
    """
    for field in RANKS:
        if field in metadata and number(metadata[field]) != rank:
            raise DoesNotFit(
                f"the header says {name}={metadata[name]!r} and {field}={metadata[field][:60]!r}, and the tensors have "
                f"rank {rank}: the scale could be that of either; correct the header"
            )


def number(text: str) -> float | None:
    """Reads a finite number out of a text; None where it is none."""
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None
