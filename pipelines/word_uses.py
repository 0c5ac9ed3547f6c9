"""The learned words that a picture's prompts had: said in its text, found again by it, and compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from studio.errors import DoesNotFit, UnknownName
from studio.families.vocabulary import learned, said, state_hash
from studio.pipelines.sources import Source

__all__ = ["WordUse", "check_words", "words_said"]


@dataclass(frozen=True, kw_only=True)
class WordUse:
    """An embedding of which a picture's prompts have a word.

    Args:
        name: its name in the pipeline.
        state: hash (hex) of its words and vectors, on which the picture depends.
        file: name of the file that it was loaded from, without its folder; None: not known.
        sha256: hash (hex) of that file.
    """

    name: str
    state: str
    file: str | None = None
    sha256: str | None = None

    @property
    def content(self) -> dict[str, Any]:
        """What a picture's text says of it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def words_said(pipe: Any, sources: Mapping[str, Source], *prompts: str) -> list[WordUse]:
    """Returns the embeddings of which prompts have a word.

    Args:
        pipe: a diffusers pipeline. sources: files, by ``embedding:name``. prompts: as they are drawn from.
    """
    held, uses = learned(pipe), list[WordUse]()
    for name in said(pipe, *prompts):
        source = sources.get(f"embedding:{name}")
        files = {} if source is None else {"file": source.file, "sha256": source.sha256}
        uses.append(WordUse(name=name, state=state_hash(held[name]), **files))
    return uses


def check_words(pipe: Any, content: Mapping[str, Any], prompts: Iterable[str]) -> None:
    """Checks that a pipeline reads the prompts of a picture as they were read when it was made.

    Args:
        pipe: a diffusers pipeline. content: the picture's text.
        prompts: its prompts without tags, which are asked for when all embeddings are there.

    Raises:
        UnknownName: an embedding of the picture is not there.
        DoesNotFit: one is another than that, or one that is there changes a word that was plain text.
    """
    held = learned(pipe)
    theirs = {use["name"]: use["state"] for use in content.get("embeddings") or ()}
    for name, state in theirs.items():
        if name not in held:
            raise UnknownName(
                f"the embedding {name!r} of the picture is not loaded (loaded: {', '.join(held) or 'none'})"
            )
        if state_hash(held[name]) != state:
            raise DoesNotFit(f"the embedding {name!r} on the pipeline is not the picture's: their hashes differ")
    others = [name for name in said(pipe, *prompts) if name not in theirs]
    if others:
        raise DoesNotFit(
            f"the picture was made without the embedding {others[0]!r}, a word of which stands in its prompt; unload it"
        )
