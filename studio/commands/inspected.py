"""What ``studio inspect`` says about a file: as rows for people, and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from studio.files import AdapterFile
    from studio.files.hashes import FileHashes
    from studio.files.provenance import Provenance

__all__ = ["content", "rows", "wrong_hashes"]

SHOWN: Final = 8  # layers, foreign metadata and reasons that are listed
TOLD: Final = frozenset(
    "trigger title author licence description base base_hash name parents combined converted resized extracted task "
    "steps seed dataset images resolution learning_rate batch_size software training_info version".split()
)
"""Entries that stand in rows of their own."""
ROWS: Final = ("title", "author", "licence", "date", "description", "usage", "comment", "base", "base_hash")


def rows(found: AdapterFile, hashes: FileHashes | None) -> list[tuple[str, str]]:
    """Returns what is known of a file in words: a name and a text each; rows without a name belong to the one above.

    Args:
        found: what the file says. hashes: of its bytes; None: they were not asked for.
    """
    made = [*_about(found), *_from(found.provenance), ("also", _also(found)), *_hashes(found.hashes, hashes)]
    made += _listed("look at", [*found.suspicions, *wrong_hashes(found.hashes, hashes)])
    unread = [f"{key}: {reason}" for key, reason in found.unread.items()]
    made += _listed("cannot read", unread[:SHOWN])
    made += [("", f"and {len(unread) - SHOWN} more keys")] if len(unread) > SHOWN else []
    return [(name, value) for name, value in made if value]


def wrong_hashes(stored: Mapping[str, str], hashes: FileHashes | None) -> list[str]:
    """Says which hashes that a file states of itself are not true, a sentence each.

    Args:
        stored: what it states, by key. hashes: what is so; None: nobody looked.
    """
    return [
        f"the header says {key}={stored[key][:64]}, and its tensors have {right}: they were changed by a program that "
        "left the header as it was, so that others take it for the file that it was made of"
        for key, right in ({} if hashes is None else hashes.wrong).items()
    ]


def _about(found: AdapterFile) -> Iterator[tuple[str, str]]:
    dtypes = Counter(dtype for dtype, _ in found.tensors.values())
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in sorted(dtypes.items()))
    yield "file", str(found.file)
    yield "format", found.format or _nothing(found)
    yield "spelled by", ", ".join(found.tools)
    yield "method", found.method or ("unknown" if found.format else "")
    yield "rank", _counts(found.ranks)
    yield "alpha", _counts(found.alphas) or _own_alpha(found)
    yield "scale", _counts(found.scales) if set(found.scales) - {1.0} else ""
    yield "name", found.name
    yield "family", _family(found) if found.format else ""
    yield from (("word", _word(token, sizes)) for token, sizes in found.embeddings.items())
    yield "layers", f"{len(found.sites)}: {_parts(found.sites)}" if found.sites else "" if found.embeddings else "none"
    yield "tensors", f"{len(found.tensors)}, {found.parameters:,} numbers, {kinds}"


def _also(found: AdapterFile) -> str:
    """What stands in no row of its own."""
    from studio.files.metadata import THEIRS

    rest = [name for name in found.facts if name not in TOLD and not name.startswith(THEIRS)]
    others = [f"{name}={_short(found.facts[name])}" for name in rest]
    foreign = sum(name.startswith(THEIRS) for name in found.facts)
    return _some([*others, *([f"{foreign} entries of other programs (--json)"] if foreign else [])])


def _from(said: Provenance) -> Iterator[tuple[str, str]]:
    """Where it comes from."""
    yield "trigger", ", ".join(said.triggers)
    tags = ", ".join(f"{tag} ({count})" for tag, count in said.tags.items())
    yield "captions", f"most often {tags}: a hint at trigger words, no statement" if tags else ""
    for name in ROWS:
        yield name.replace("_", " "), _short(getattr(said, name), 300)
    yield "for", ", ".join(filter(None, (said.architecture, said.base_version)))
    for name, value in said.made.items():
        yield name, _short(value, 300)
    yield from _listed("training", [f"{name}: {_short(value)}" for name, value in said.training.items()])


def _hashes(stored: Mapping[str, str], hashes: FileHashes | None) -> Iterator[tuple[str, str]]:
    if hashes is not None:
        yield "file hash", f"{hashes.file} (AutoV2 {hashes.short})"
        yield "payload hash", f"{hashes.payload} (AutoV3 {hashes.short_payload})" if hashes.payload else ""
        yield "legacy hash", hashes.legacy
    right = () if hashes is None else hashes.right
    said = [f"{key} {value}{', which is right' if key in right else ''}" for key, value in stored.items()]
    yield from _listed("stated", said)


def _listed(name: str, lines: Sequence[str]) -> list[tuple[str, str]]:
    return [(name if not index else "", line) for index, line in enumerate(lines)]


def _counts(table: Mapping[Any, int]) -> str:
    """``8 (96 layers), 16 (12 layers)``; one by itself without its number of layers."""
    if len(table) == 1:
        return f"{next(iter(table)):g}"
    shown = [f"{value:.6g} ({count} layers)" for value, count in table.items()]
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")


def _word(token: str, sizes: Mapping[str, tuple[int, int]]) -> str:
    """A learned word and its vectors."""
    said = {label: f"{count} vector{'s' if count > 1 else ''} of {width}" for label, (count, width) in sizes.items()}
    return f"{token}: {', '.join(f'{one} for {label}' if label else one for label, one in said.items())}"


def _own_alpha(found: AdapterFile) -> str:
    alpha = getattr(found.config, "alpha", None)
    return "" if alpha is None else f"{alpha:g}"


def _nothing(found: AdapterFile) -> str:
    """Says what a file is that holds no adapter that can be read."""
    from studio.files.checkpoint import checkpoint_title

    title = checkpoint_title({key: shape for key, (_, shape) in found.tensors.items()})
    if title is None:
        return "none: this file holds no adapter that can be read"
    what = f"{title} model" if title else "model"
    return f"none: this is a whole {what} (a checkpoint), not an adapter; open it as a base"


def _family(found: AdapterFile) -> str:
    from studio.families import FAMILIES

    if found.family in FAMILIES:
        return FAMILIES[found.family].title
    return found.family_title or found.family or "unknown"


def _short(value: str, most: int = 64) -> str:
    return f"{value[: most - 4]}…" if len(value) > most else value


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _parts(sites: tuple[str, ...]) -> str:
    """Counts layers by component."""
    from studio.files.components import heading

    heads = Counter(heading(site) for site in sites)
    if set(heads) == {""}:
        return _some(sites)
    return ", ".join(f"{count} in {head or 'others'}" for head, count in sorted(heads.items()))


def content(found: AdapterFile, hashes: FileHashes | None) -> dict[str, Any]:
    """Returns all that is known of a file, for JSON.

    Args:
        found: what the file says. hashes: of its bytes; None: they were not asked for.
    """
    import dataclasses

    from studio.config import plain

    made = None if hashes is None else {
        "file": hashes.file, "auto_v2": hashes.short, "payload": hashes.payload, "auto_v3": hashes.short_payload,
        "legacy": hashes.legacy, "wrong": dict(hashes.wrong),
    }  # fmt: skip
    return {
        "file": found.file, "format": found.format, "method": found.method, "name": found.name, "rank": found.rank,
        "tools": list(found.tools),
        "ranks": _keyed(found.ranks), "alphas": _keyed(found.alphas), "scales": _keyed(found.scales),
        "family": found.family, "parameters": found.parameters,
        "config": None if found.config is None else plain(found.config),
        "sites": list(found.sites), "facts": dict(found.facts), "metadata": dict(found.metadata),
        "provenance": dataclasses.asdict(found.provenance), "hashes": {"stated": dict(found.hashes), "made": made},
        "suspicions": [*found.suspicions, *wrong_hashes(found.hashes, hashes)],
        "tensors": {key: {"dtype": dtype, "shape": list(shape)} for key, (dtype, shape) in found.tensors.items()},
        "unread": dict(found.unread),
        "embeddings": {token: {label: list(size) for label, size in own.items()}
                       for token, own in found.embeddings.items()},
    }  # fmt: skip


def _keyed(table: Mapping[Any, int]) -> dict[str, int]:
    return {f"{value:g}": count for value, count in table.items()}
