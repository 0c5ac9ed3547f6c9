"""What a file says about itself: our own entry, and the entries that other tools read.

Our entry stands under one key, ``"studio"``, as JSON: the adapter's name, the method with its full config, the tool,
and *facts* (base, base_hash, trigger, seed, steps, dataset, licence, parents, ...). Facts that other tools know are
repeated under their names. Nothing here depends on when, where or by whom a file is written.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from studio import config as configs
from studio.adapters import METHODS, AdapterConfig
from studio.adapters.contract.mixed import Mixed
from studio.adapters.contract.ranked import RankedConfig
from studio.errors import BadConfig, StudioError
from studio.families import Family, family_called, family_in
from studio.files.format import Source
from studio.files.header import payload_hash
from studio.given import parse_json
from studio.version import __version__

__all__ = [
    "ARCHITECTURE", "COMPONENT", "GGUF_ENTRIES", "KEY", "THEIRS", "Entry", "doubts", "facts_of", "families_named",
    "own_entry", "stated_hash", "write_metadata",
]  # fmt: skip

KEY: Final = "studio"
COMPONENT: Final = "studio.component"
"""Which component of a pipeline a file is about whose names do not say it."""

ARCHITECTURE: Final = "general.architecture"
"""What a file of llama.cpp's calls the architecture of its model."""
GGUF_ENTRIES: Final = ("general.type", ARCHITECTURE, "general.alignment", "adapter.type", "adapter.lora.alpha")
"""Entries of such a file that say how it is to be read."""

_HASH: Final = "sshs_model_hash"
_HASH_TOO: Final = "modelspec.hash_sha256"
_PUBLIC: Final = {
    "trigger": "modelspec.trigger_phrase",
    "licence": "modelspec.license",
    "title": "modelspec.title",
    "author": "modelspec.author",
    "description": "modelspec.description",
    "base": "ss_sd_model_name",
    "seed": "ss_seed",
    "steps": "ss_steps",
}
"""Our fact -> the key under which other tools look for it."""

_DERIVED: Final = (
    KEY,
    COMPONENT,
    "format",
    "lora_adapter_metadata",
    "lora_alpha",
    "network_alpha",
    "alpha",
    "rank",
    "lora_rank",
    "network_dim",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
    _HASH,
    "sshs_legacy_hash",
    "modelspec.sai_model_spec",
    "modelspec.implementation",
    _HASH_TOO,
    *GGUF_ENTRIES,
    "general.file_type",
    "general.quantization_version",
)
"""Keys that follow from the tensors and the config; they are made anew at every save, or left out."""
_FAMILY: Final = ("modelspec.architecture", "ss_base_model_version")
"""Keys that name the base's family. What another program says there stays where it is true: it may be more exact."""
_OURS: Final = frozenset(
    "trigger licence title author description base base_hash seed steps task dataset images resolution learning_rate "
    "batch_size parents combined converted resized extracted tokenizer template system max_length dtype".split()
)
"""Facts of the studio's; any other stands in the header by itself, where the program that wrote it looks for it."""
THEIRS: Final = ("ss_", "sshs_", "ot_", "modelspec.")
"""What entries of other programs begin with."""
_COUNTED: Final = re.compile(r"^(unet|text_encoder)(:\d+:rank)?$")
"""Such keys of cloneofsimo's: the classes that were looked for, and the rank of every pair."""


@dataclass(frozen=True)
class Entry:
    """Our entry of a file.

    Attributes:
        name: the adapter's name. method: registry name of its method. tool: what wrote it.
        config: its config, or None where this version of the studio cannot read it.
        family: registry name of its family, or "". trouble: why the config cannot be read, in brackets.
    """

    name: str
    method: str
    tool: str
    config: AdapterConfig | None
    family: str
    trouble: str = ""


def own_entry(metadata: Mapping[str, str]) -> Entry | None:
    """Returns our entry, or None where a file has none that can be read."""
    return _read_entry(metadata.get(KEY, "{}"), METHODS.names)


@functools.lru_cache(maxsize=4)
def _read_entry(text: str, methods: tuple[str, ...]) -> Entry | None:
    """The same, of its text and with these methods there: a config may name a thousand layers, and is asked twice."""
    entry = _entry({KEY: text})
    method = entry.get("method")
    if not isinstance(method, str):
        return None
    config, trouble = None, ""
    if isinstance(entry.get("config"), dict):
        try:
            config = _built(method, entry["config"])
        except StudioError as error:  # of a later version; the tensors still say what is needed
            trouble = f" ({str(error)[:120]})"
    texts = [entry.get(name) for name in ("name", "tool", "family")]
    name, tool, family = (text if isinstance(text, str) else "" for text in texts)
    return Entry(name, method, tool, config, family, trouble)


def _built(method: str, stated: Mapping[str, Any]) -> AdapterConfig | None:
    """A config out of our entry; None for a method that this version does not have.

    Raises:
        BadConfig: fields that it does not have, or impossible ones.
    """
    words = method.split("+")
    if not all(word in METHODS for word in words):
        return None
    if len(words) == 1:
        return configs.build(METHODS[method], stated)
    parts = stated.get("parts")
    if not isinstance(parts, list) or len(parts) != len(words) or not all(isinstance(one, dict) for one in parts):
        raise BadConfig(f"an adapter of {method} has {len(words)} parts, and its entry has others")
    return Mixed(parts=tuple(configs.build(METHODS[word], one) for word, one in zip(words, parts, strict=True)))


def stated_hash(metadata: Mapping[str, str]) -> str | None:
    """Returns the hash that a file of the studio's states of its tensors' bytes; None for another program's file."""
    twice = metadata.get(_HASH) or metadata.get(_HASH_TOO, "").removeprefix("0x") or None
    return twice if KEY in metadata else None


def doubts(source: Source, own: Entry | None) -> Iterator[str]:
    """Says, of a file that the studio wrote, what shows that it is no longer as it was saved.

    Args:
        source: the file. own: our entry in it.
    """
    payload = source.payload
    if payload is not None and not payload.agrees() and payload.stated != payload_hash(source.tensors):
        yield "its tensors are not those that the studio saved: another program changed them, or the file is damaged"
    if KEY in source.metadata and (own is None or own.config is None):
        yield (
            f"the studio's own entry in it cannot be read{'' if own is None else own.trouble}: a later version wrote "
            "it, or the file is damaged; what the file says beside it counts"
        )


def facts_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """Returns what a file states beyond what follows from its tensors: our facts, and foreign entries as they are."""
    facts = _entry(metadata).get("facts")
    own = {key: value for key, value in facts.items() if isinstance(value, str)} if isinstance(facts, dict) else {}
    repeated = {public for fact, public in _PUBLIC.items() if fact in own}
    repeated |= set(_FAMILY) if KEY in metadata else set()
    derived = {key for key in metadata if _is_derived(key) or key in repeated}
    foreign = {key: value for key, value in metadata.items() if key not in derived}
    return dict(sorted({**foreign, **own}.items()))


def families_named(metadata: Mapping[str, str]) -> list[str]:
    """Returns the registry names of the families that a header says its file is for, ours first."""
    own = _entry(metadata).get("family")
    called = [family_called(metadata.get(key, "")) for key in _FAMILY]
    return [*([own] if isinstance(own, str) else []), *(row.name for row in called if row is not None)]


def _is_derived(key: str) -> bool:
    return key in _DERIVED or _COUNTED.match(key) is not None


def _entry(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        entry = parse_json(metadata.get(KEY, "{}"))
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def canonical(config: AdapterConfig) -> dict[str, Any]:
    """Returns a config's fields as reading them gives them again, so that 3 and 3.0 are written alike."""
    if len(config.members) > 1:
        return {"parts": [canonical(member) for member in config.members]}
    return configs.plain(configs.build(type(config), configs.plain(config)))


def write_metadata(
    config: AdapterConfig, facts: Mapping[str, str], *, name: str, parts: Mapping[str, nn.Module], payload: str
) -> dict[str, str]:
    """Makes the metadata of a file.

    Args:
        config: the method and its settings.
        facts: what the caller knows, and what a file said that the adapter was read from. Entries of other programs
            ("ss_…", "modelspec.…", "software") stay as they are, but those that would no longer be true.
        name: the adapter's name. parts: the base's components by name. payload: hash of the tensors' bytes.

    Raises:
        BadConfig: a fact that is not text.
    """
    for key, value in facts.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise BadConfig(f"metadata[{key!r}] is {value!r}; a file holds texts only: give it as a string")
    family = family_in(parts)
    named = {key: facts[key] for key in _FAMILY if key in facts and _means(facts[key], family)}
    foreign = {key: value for key, value in facts.items() if key not in _OURS and not _is_derived(key)}
    own = {key: value for key, value in facts.items() if key not in foreign and not key.startswith(THEIRS)} | named
    entry = _own_entry(config, own, name, family)
    algorithm = next((algo for member in config.members if (algo := member.adapter.lycoris.algo)), "")
    metadata = {
        **foreign,
        **{_PUBLIC[fact]: value for fact, value in own.items() if fact in _PUBLIC},
        KEY: json.dumps(entry, sort_keys=True, ensure_ascii=False, separators=(",", ":")),
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "diffusers",
        _HASH_TOO: f"0x{payload}",
        "ss_network_module": "lycoris.kohya" if algorithm else "networks.lora",
        "ss_network_args": json.dumps({"algo": algorithm} if algorithm else {}),
        _HASH: payload,
    }
    ranked = [member for member in config.members if isinstance(member, RankedConfig)]
    if ranked:
        metadata |= _network(ranked)
    if family is not None:
        identity = family.identity(parts)
        metadata |= dict(zip(_FAMILY, (f"{identity.modelspec}/lora", identity.version), strict=True)) | named
    return metadata


def _means(name: str, family: Family | None) -> bool:
    """Whether another program's name of a family is one of this family's."""
    called = family_called(name)
    return family is None or (called is not None and called.name == family.name)


def _own_entry(config: AdapterConfig, facts: Mapping[str, str], name: str, family: Family | None) -> dict[str, Any]:
    """What the studio itself reads back."""
    return {
        "config": canonical(config),
        "facts": facts,
        "family": "" if family is None else family.name,
        "method": config.label,
        "name": name,
        "tool": f"adapter-studio {__version__}",
    }


def _network(configs: Sequence[RankedConfig]) -> dict[str, str]:
    """Rank and alpha, as kohya's tools state them."""
    ranks = {str(config.rank) for config in configs}
    alphas = {f"{config.rank if config.alpha is None else config.alpha:g}" for config in configs}
    mixed = len(ranks) > 1 or any(config.rank_pattern for config in configs)
    varies = len(alphas) > 1 or any(
        config.alpha_pattern or (config.alpha is None and config.rank_pattern) for config in configs
    )
    return {
        "ss_network_dim": "Dynamic" if mixed else ranks.pop(),
        "ss_network_alpha": "Dynamic" if varies else alphas.pop(),
    }
