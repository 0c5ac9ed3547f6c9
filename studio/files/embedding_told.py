"""What the header of a file tells about learned words in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from studio.errors import BadFile
from studio.families import Family
from studio.files.embedding import METHOD, OUT, Entry, brought, made_for
from studio.files.embedding_file import stem_of, words_in
from studio.files.format import Source
from studio.files.header import TensorInfo

__all__ = ["Told", "words_told"]


@dataclass(frozen=True, kw_only=True)
class Told:
    """Learned words of a file, as its header tells them.

    Args:
        words: token -> label of an encoder -> number and width of its vectors.
        rest: keys that are none of theirs.
        unread: key -> why it cannot be read.
        format: of a file that holds nothing else, else ``""``; method: likewise.
        family: that such a file was made for.
    """

    words: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)
    rest: Mapping[str, TensorInfo]
    unread: Mapping[str, str] = field(default_factory=dict)
    format: str = ""
    method: str = ""
    family: Family | None = None


def words_told(source: Source) -> Told:
    """Returns what a header tells about learned words.

    Args:
        source: the file, opened.
    """
    try:
        whole = words_in(source)
        found = brought(source.infos, source.metadata, stem_of(source.file)) if whole is None else {whole[0]: whole[1]}
    except BadFile as error:
        own = [key for key in source.infos if key.startswith(("bundle_emb.", "string_to_param."))]
        rest = {key: info for key, info in source.infos.items() if key not in own}
        return Told(rest=rest, unread=dict.fromkeys(own, str(error)))
    entries = [entry for some in found.values() for entry in some]
    keys = {key for entry in entries for key in entry.keys.values()}
    told = Told(
        words={entry.token: _sizes(entry, source.infos) for entry in entries},
        rest={key: info for key, info in source.infos.items() if key not in keys},
        unread=_behind(entries),
    )
    if whole is None:
        return told
    widths = {label: size[1] for label, size in _sizes(entries[0], source.infos).items()}
    return Told(words=told.words, rest={}, unread=told.unread, format=whole[0], method=METHOD, family=made_for(widths))


def _sizes(entry: Entry, infos: Mapping[str, TensorInfo]) -> dict[str, tuple[int, int]]:
    shapes = {label: (1, 1, *infos[key].shape) for label, key in entry.keys.items()}
    return {label: (shape[-2], shape[-1]) for label, shape in shapes.items()}


def _behind(entries: list[Entry]) -> dict[str, str]:
    reason = "it is added behind an encoder, by OneTrainer alone, and not here"
    return {key: reason for entry in entries for label, key in entry.keys.items() if label.endswith(OUT)}
