r"""Learned words: what the text encoders of a pipeline read in place of a word, and all of it taken off again.

A word has n vectors per encoder, ``(n, d)``. Its tokenizer is given n tokens more and a rule that puts them where the
word stands, whatever reads the prompt (in one piece, in chunks, weighed, within a chat template); the encoder is asked
about tokens that it has, and its input embedding answers with the vectors where theirs stand. Nothing of the base is
written to: the tokenizer works on a copy of its rules, the encoder carries hooks, and both go with the last word.

References:
    Gal et al.: An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion, 2022,
    arXiv:2208.01618.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from studio.errors import BadConfig, DoesNotFit, UnknownName, nearest
from studio.families.family import Encoder, family_of
from studio.families.lookup import Lookup, Word, lookup_of, spelled

__all__ = [
    "Reader", "Word", "asked_for", "escaped", "forget", "learn", "learned", "missing", "readers", "said",
    "spellings_of", "state_hash",
]  # fmt: skip

_PREFIX: Final = "embedding:"
_PREFIXED: Final = re.compile(r"(?i)(?<![\\\w])embedding:(?=\S)")


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A text encoder of a pipeline with its tokenizer.

    Args:
        row: what the family knows about it.
        module: the encoder. tokenizer: its tokenizer.
    """

    row: Encoder
    module: nn.Module
    tokenizer: Any

    @property
    def width(self) -> int:
        """Of the vectors that it reads."""
        found: Any = self.module
        return int(found.get_input_embeddings().weight.shape[-1])

    @property
    def most(self) -> int:
        """Vectors of one word that it can read: what a row has beside its begin and its end."""
        return min(int(self.tokenizer.model_max_length), 1024) - 2


def readers(pipe: Any) -> tuple[Reader, ...]:
    """Returns the text encoders that a pipeline has, in its order.

    Raises:
        DoesNotFit: it is no pipeline of a known family.
    """
    family, parts = family_of(pipe), getattr(pipe, "components", None)
    if family is None or not isinstance(parts, Mapping):
        raise DoesNotFit(
            f"learned words need tokenizers and text encoders, and {type(pipe).__name__} is no image pipeline of a "
            "known family; load them on the pipeline"
        )
    return tuple(
        Reader(row=row, module=parts[row.component], tokenizer=parts.get(row.tokenizer))
        for row in family.encoders
        if isinstance(parts.get(row.component), nn.Module)
    )


def learn(pipe: Any, name: str, words: Sequence[Word]) -> None:
    """Teaches the text encoders of a pipeline words, all of them or none.

    Args:
        pipe: a diffusers pipeline.
        name: what the words are called together.
        words: the words.

    Raises:
        DoesNotFit: the name or a spelling is taken, vectors are of another width, there are more than an encoder reads
            at once, or a tokenizer cannot learn words.
    """
    held, here = learned(pipe), readers(pipe)
    if name in held:
        raise DoesNotFit(f"an embedding is called {name!r} already; give this one another name, or take that one off")
    taken = {one.lower(): other for other, words_ in held.items() for word in words_ for one in word.spellings}
    for one in (one for word in words for one in word.spellings if one.lower() in taken):
        raise DoesNotFit(f"{one!r} is a word of the embedding {taken[one.lower()]!r} already; take that one off first")
    begun: list[tuple[Reader, Lookup]] = []
    try:
        for reader in here:
            mine = tuple(word for word in words if reader.row.component in word.vectors)
            if mine:
                _check(reader, here, mine)
                begun.append((reader, lookup_of(reader.module) or Lookup(reader.module, reader.tokenizer)))
                begun[-1][1].add(name, reader.row.component, mine)
    except BaseException:
        for _, lookup in begun:
            if name in lookup.words:  # one that refused has set nothing, and may stand under somebody else's tokens
                lookup.drop(name)
        raise


def _check(reader: Reader, here: Sequence[Reader], words: Sequence[Word]) -> None:
    component, tokenizer = reader.row.component, reader.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise DoesNotFit(f"{type(tokenizer).__name__} of {component} cannot learn words")
    if any(other is not reader and other.tokenizer is tokenizer for other in here):
        raise DoesNotFit(f"{component} shares its tokenizer with another encoder; give each its own to learn words")
    for vectors in (word.vectors[component] for word in words):
        if vectors.shape[-1] != reader.width:
            raise DoesNotFit(
                f"vectors of {vectors.shape[-1]} numbers do not fit {component}, which reads {reader.width}"
            )
        if not 1 <= len(vectors) <= reader.most:
            raise DoesNotFit(
                f"a word of {len(vectors):,} vectors is none that {component} could read: it has {reader.most} places"
            )


def forget(pipe: Any, name: str) -> None:
    """Takes words off; with the last one the tokenizers and the encoders are as they were, bit for bit.

    Args:
        pipe: a diffusers pipeline. name: of the words.

    Raises:
        UnknownName: no words are called so. DoesNotFit: a tokenizer was changed since by somebody else.
    """
    held = learned(pipe)
    if name not in held:
        close = nearest(name, held, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UnknownName(f"no embedding is called {name!r} (loaded: {', '.join(held) or 'none'}){hint}")
    lookups = [lookup for lookup in _lookups(pipe) if name in lookup.words]
    for lookup in lookups:
        lookup.check_own()
    for lookup in lookups:
        lookup.drop(name)


def learned(pipe: Any) -> dict[str, tuple[Word, ...]]:
    """Returns the words on a pipeline by the name of their embedding, in the order in which they came.

    Args:
        pipe: a diffusers pipeline, or anything else, which has none.
    """
    found: dict[str, tuple[Word, ...]] = {}
    for lookup in _lookups(pipe):
        found |= {name: words for name, words in lookup.words.items() if name not in found}
    return found


def _lookups(pipe: Any) -> list[Lookup]:
    parts = getattr(pipe, "components", None)
    modules = parts.values() if isinstance(parts, Mapping) else ()
    found = (lookup_of(module) for module in modules if isinstance(module, nn.Module))
    return [lookup for lookup in found if lookup is not None]


# -- words in prompts --------------------------------------------------------------------------------------------------


def said(pipe: Any, *texts: str) -> list[str]:
    """Returns the names of the embeddings of which a word stands in one of some texts.

    Args:
        pipe: a diffusers pipeline. texts: prompts.
    """
    return [
        name
        for name, words in learned(pipe).items()
        if any(_pattern(one).search(text) for word in words for one in word.spellings for text in texts)
    ]


def escaped(pipe: Any, prompt: str) -> str:
    r"""Returns a prompt in which ``<`` and ``>`` of learned words are written as characters, so that they are no tags.

    Args:
        pipe: a diffusers pipeline. prompt: as it was written.
    """
    spellings = {one for words in learned(pipe).values() for word in words for one in word.spellings if "<" in one}
    for one in sorted(spellings, key=len, reverse=True):
        prompt = re.sub(
            rf"(?<!\\){_pattern(one).pattern}",
            lambda found: found[0].replace("<", r"\<").replace(">", r"\>"),
            prompt,
        )
    return prompt


def asked_for(pipe: Any, prompt: str) -> None:
    """Checks that every ``embedding:name`` of a prompt, ComfyUI's spelling, is a word that is there.

    Args:
        pipe: a diffusers pipeline. prompt: as it was written.

    Raises:
        UnknownName: one is not; the nearest is named.
    """
    held = learned(pipe)
    for name in missing(pipe, prompt):
        close = nearest(name, held, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UnknownName(
            f"the prompt asks for the embedding {name!r}, which is not loaded (loaded: {', '.join(held) or 'none'})"
            f"{hint}; load its file, or write embedding\\: for the characters"
        )


def missing(pipe: Any, prompt: str) -> list[str]:
    """Returns what stands behind every ``embedding:`` of a prompt that is no word that is there.

    Args:
        pipe: a diffusers pipeline. prompt: as it was written.
    """
    known = [_pattern(one) for words in learned(pipe).values() for word in words for one in word.spellings]
    return [
        re.split(r"[^\w.-]", prompt[found.end() :], maxsplit=1)[0].rstrip(".-") or "?"
        for found in _PREFIXED.finditer(prompt)
        if not any(one.match(prompt, found.start()) for one in known)
    ]


def _pattern(spelling: str) -> re.Pattern[str]:
    return re.compile(spelled(spelling), re.IGNORECASE)


def spellings_of(*, token: str, name: str) -> tuple[str, ...]:
    """Returns how a word may be written: as it is, and as ComfyUI writes the name of its file.

    Args:
        token: the word. name: of the embedding.

    Raises:
        BadConfig: a word that cannot stand in a prompt.
    """
    for text in (token, name):
        if not text.strip() or text != text.strip() or len(text) > 200 or not text.isprintable():
            raise BadConfig(f"{text[:80]!r} cannot be a word of a prompt; give the embedding another name")
    return tuple(dict.fromkeys((token, f"{_PREFIX}{name}")))


def state_hash(words: Iterable[Word]) -> str:
    """Hashes what an embedding says: its words and their vectors.

    Args:
        words: the words.
    """
    digest = hashlib.sha256()
    for word in words:
        digest.update(f"{word.spellings!r}\n".encode())
        for component, vectors in sorted(word.vectors.items()):
            digest.update(f"{component} {vectors.dtype} {tuple(vectors.shape)}\n".encode())
            digest.update(vectors.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
