"""Where an adapter comes from, by its file's own words: trigger words, base, training, licence, author.

Every trainer says it under keys of its own (kohya's ``ss_``, Stability's ``modelspec.``, OneTrainer's ``ot_config``,
ai-toolkit's ``training_info``), all of them as text: "None" is nothing, and a text may be JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from studio.files.metadata import facts_of, own_entry
from studio.files.training_words import TRAINING, first_value, plain_value
from studio.given import parse_json

__all__ = ["Provenance", "provenance_of"]

_TAGS: Final = 12  # that are named
_WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "title": ("title", "modelspec.title", "ss_output_name", "name"),
    "author": ("author", "modelspec.author"),
    "licence": ("licence", "modelspec.license"),
    "date": ("modelspec.date",),
    "description": ("description", "modelspec.description"),
    "comment": ("ss_training_comment",),
    "usage": ("modelspec.usage_hint",),
    "base": ("base", "ss_sd_model_name", "base_model_name"),
    "base_hash": ("base_hash", "ss_new_sd_model_hash", "ss_sd_model_hash"),
    "base_version": ("ss_base_model_version",),
    "architecture": ("modelspec.architecture",),
}
_MADE: Final[Mapping[str, tuple[str, ...]]] = {
    "trained on from": ("parents",),
    "combined of": ("combined", "modelspec.merged_from"),
    "converted from": ("converted",),
    "resized from": ("resized",),
    "extracted from": ("extracted",),
}
"""What is said -> the keys under which programs say it, ours first."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a file says about where it comes from; ``""`` and empty tables where it says nothing.

    Attributes:
        triggers: the words that call up what was learned.
        tags: the words that stand most often in the captions of its training, and how often: a hint, no statement.
        title: its name. author: who made it. licence: of the adapter. date: when. description: what it is.
        comment: what the trainer was told to note. usage: how it wants to be used.
        base: what it was trained on. base_hash: the hash of that. base_version: the family as kohya's tools call it.
        architecture: the family as Stability's specification calls it.
        made: how it was made of others, in words -> what is said of those.
        training: settings of its training, in words -> value.
    """

    triggers: tuple[str, ...] = ()
    tags: Mapping[str, int] = field(default_factory=dict)
    title: str = ""
    author: str = ""
    licence: str = ""
    date: str = ""
    description: str = ""
    comment: str = ""
    usage: str = ""
    base: str = ""
    base_hash: str = ""
    base_version: str = ""
    architecture: str = ""
    made: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, str] = field(default_factory=dict)


def provenance_of(metadata: Mapping[str, str]) -> Provenance:
    """Reads what a file says about where it comes from; text that cannot be read says nothing.

    Args:
        metadata: the container's texts.

    Example:
        >>> found = provenance_of({"ss_steps": "1600", "ss_unet_lr": "None", "modelspec.trigger_phrase": "sks dog"})
        >>> found.triggers, found.training
        (('sks dog',), {'steps': '1600'})
    """
    said = {**metadata, **facts_of(metadata), **_config(metadata)}
    tags, taught = _tags(metadata)
    found = {name: first_value(said, keys) for name, keys in _WORDS.items()}
    training = {word: text for word, read in TRAINING.items() if (text := read(said))}
    own = own_entry(metadata)
    if own is not None and own.tool:
        training = {"tool": own.tool, **training}
    triggers = [plain_value(said.get(key)) for key in ("trigger", "modelspec.trigger_phrase")]
    return Provenance(
        triggers=tuple(dict.fromkeys(word for word in (*triggers, *taught) if word)),
        tags={} if taught else tags,
        training=training,
        made={word: text for word, keys in _MADE.items() if (text := first_value(said, keys))},
        **found,
    )


def _config(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The settings that stand in one text: OneTrainer's, and ai-toolkit's."""
    found: dict[str, Any] = {}
    for key in ("ot_config", "training_info"):
        table = _table(metadata.get(key))
        found |= {name: value for name, value in table.items() if name not in metadata}
    return found


def _table(text: str | None) -> dict[str, Any]:
    try:
        table = parse_json(text or "{}")
    except ValueError:
        return {}
    return table if isinstance(table, dict) else {}


def _tags(metadata: Mapping[str, str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """The most frequent tags, and those that are the trigger by the trainer's own custom.

    ai-toolkit writes its trigger word as the one tag of its captions, so that A1111 shows it.
    """
    counts = Counter(dict(_counted(_table(metadata.get("ss_tag_frequency")).values())))
    if len(counts) == 1 and "ai-toolkit" in metadata.get("software", ""):
        return {}, tuple(counts)
    if not counts:  # captions were folders' names: "10_sks dog"
        folders = _table(metadata.get("ss_dataset_dirs"))
        counts = Counter(dict(_counted([{_called(name): _images(one) for name, one in folders.items()}])))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_TAGS]), ()


def _counted(tables: Iterable[Any]) -> Iterator[tuple[str, int]]:
    """Each tag with its sum over all folders."""
    sums: Counter[str] = Counter()
    for table in tables:
        for tag, count in table.items() if isinstance(table, dict) else ():
            if isinstance(count, int) and not isinstance(count, bool) and count > 0 and tag.strip():
                sums[tag.strip()] += count
    return iter(sums.items())


def _called(folder: str) -> str:
    """What stands behind the number of repeats in a folder's name."""
    repeats, _, words = folder.partition("_")
    return words if repeats.isdigit() else ""


def _images(folder: Any) -> Any:
    return folder.get("img_count") if isinstance(folder, dict) else None
