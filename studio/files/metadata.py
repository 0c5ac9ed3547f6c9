"""What a file says about itself: our own entry, and the entries that other tools read.

Our entry stands under one key, ``"studio"``, as JSON: the adapter's name, the method with its full config, the tool,
and *facts* (base, base_hash, trigger, seed, steps, dataset, licence, parents, ...). Facts that other tools know are
repeated under their names. Nothing here depends on when, where or by whom a file is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from studio import config as configs
from studio.adapters import METHODS, AdapterConfig
from studio.adapters.contract.ranked import RankedConfig
from studio.errors import BadConfig, StudioError
from studio.families import Family, family_in
from studio.files.header import payload_hash
from studio.given import parse_json
from studio.version import __version__

__all__ = ["Entry", "changed", "facts_of", "own_entry", "write_metadata"]

KEY: Final = "studio"

_HASHED: Final = 256 << 20  # bytes; more would take longer to check than to load
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
    "format",
    "lora_adapter_metadata",
    "lora_alpha",
    "network_alpha",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
    "ss_base_model_version",
    "sshs_model_hash",
    "sshs_legacy_hash",
    "modelspec.sai_model_spec",
    "modelspec.architecture",
    "modelspec.implementation",
    "modelspec.hash_sha256",
)
"""Keys that follow from the tensors and the config; they are made anew at every save."""


@dataclass(frozen=True)
class Entry:
    """Our entry of a file.

    Attributes:
        name: the adapter's name. method: registry name of its method. tool: what wrote it.
        config: its config, or None where this version of the studio cannot read it.
        family: registry name of its family, or "".
    """

    name: str
    method: str
    tool: str
    config: AdapterConfig | None
    family: str


def own_entry(metadata: Mapping[str, str]) -> Entry | None:
    """Returns our entry, or None where a file has none that can be read."""
    entry = _entry(metadata)
    method = entry.get("method")
    if not isinstance(method, str):
        return None
    config = None
    if method in METHODS and isinstance(entry.get("config"), dict):
        try:
            config = configs.build(METHODS[method], entry["config"])
        except StudioError:  # of a later version; the tensors still say what is needed
            config = None
    texts = [entry.get(name) for name in ("name", "tool", "family")]
    name, tool, family = (text if isinstance(text, str) else "" for text in texts)
    return Entry(name, method, tool, config, family)


def changed(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Says, of a file that the studio wrote, whether its tensors are no longer those that were saved; ``""`` if not."""
    if KEY not in metadata or sum(tensor.nbytes for tensor in tensors.values()) > _HASHED:
        return ""
    if metadata.get("sshs_model_hash") in (None, payload_hash(tensors)):
        return ""
    return "its tensors are not those that the studio saved: another program changed them, or the file is damaged"


def facts_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """Returns what a file states beyond what follows from its tensors: our facts, and foreign entries as they are."""
    facts = _entry(metadata).get("facts")
    own = {key: value for key, value in facts.items() if isinstance(value, str)} if isinstance(facts, dict) else {}
    repeated = {public for fact, public in _PUBLIC.items() if fact in own}
    foreign = {key: value for key, value in metadata.items() if key not in _DERIVED and key not in repeated}
    return dict(sorted({**foreign, **own}.items()))


def _entry(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        entry = parse_json(metadata.get(KEY, "{}"))
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def canonical(config: AdapterConfig) -> dict[str, Any]:
    """Returns a config's fields as reading them gives them again, so that 3 and 3.0 are written alike."""
    return configs.plain(configs.build(type(config), configs.plain(config)))


def write_metadata(
    config: AdapterConfig, facts: Mapping[str, str], *, name: str, parts: Mapping[str, nn.Module], payload: str
) -> dict[str, str]:
    """Makes the metadata of a file.

    Args:
        config: the method and its settings.
        facts: what the caller knows. Entries named as other tools name theirs ("ss_…", "modelspec.…") stay as they are.
        name: the adapter's name. parts: the base's components by name. payload: hash of the tensors' bytes.

    Raises:
        BadConfig: a fact that is not text.
    """
    for key, value in facts.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise BadConfig(f"metadata[{key!r}] is {value!r}; a file holds texts only: give it as a string")
    foreign = {key: value for key, value in facts.items() if "." in key or key.startswith(("ss_", "sshs_", "ot_"))}
    own = {key: value for key, value in facts.items() if key not in foreign}
    family = family_in(parts)
    entry = _own_entry(config, own, name, family)
    algorithm = config.adapter.lycoris.algo
    metadata = {
        **foreign,
        **{_PUBLIC[fact]: value for fact, value in own.items() if fact in _PUBLIC},
        KEY: json.dumps(entry, sort_keys=True, ensure_ascii=False, separators=(",", ":")),
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "diffusers",
        "modelspec.hash_sha256": f"0x{payload}",
        "ss_network_module": "lycoris.kohya" if algorithm else "networks.lora",
        "ss_network_args": json.dumps({"algo": algorithm} if algorithm else {}),
        "sshs_model_hash": payload,
    }
    if isinstance(config, RankedConfig):
        metadata |= _network(config)
    if family is not None:
        identity = family.identity(parts)
        metadata["modelspec.architecture"] = f"{identity.modelspec}/lora"
        metadata["ss_base_model_version"] = identity.version
    return metadata


def _own_entry(config: AdapterConfig, facts: Mapping[str, str], name: str, family: Family | None) -> dict[str, Any]:
    """What the studio itself reads back."""
    return {
        "config": canonical(config),
        "facts": facts,
        "family": "" if family is None else family.name,
        "method": config.method,
        "name": name,
        "tool": f"adapter-studio {__version__}",
    }


def _network(config: RankedConfig) -> dict[str, str]:
    """Rank and alpha, as kohya's tools state them."""
    alpha = config.rank if config.alpha is None else config.alpha
    varies = bool(config.alpha_pattern) or (config.alpha is None and bool(config.rank_pattern))
    return {
        "ss_network_dim": "Dynamic" if config.rank_pattern else str(config.rank),
        "ss_network_alpha": "Dynamic" if varies else f"{alpha:g}",
    }
