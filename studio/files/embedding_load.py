"""Putting the learned words of a file on a pipeline: each encoder has its vectors, or the file is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from studio.adapters import detach
from studio.errors import BadConfig, BadFile, DoesNotFit, PartialLoad
from studio.families import is_pipeline
from studio.families.vocabulary import Reader, Word, forget, learn, learned, readers, spellings_of
from studio.files.embedding import METHOD, OUT, Embedding, Entry, brought, made_for, read_entries
from studio.files.embedding_file import stem_of
from studio.files.format import Source
from studio.files.report import LoadReport

__all__ = ["check_plain", "embeddings", "load_brought", "load_words", "remove_embedding"]


def embeddings(model: Any) -> dict[str, tuple[str, ...]]:
    """Returns the learned words on a pipeline: name -> how they are written in a prompt.

    Args:
        model: a diffusers pipeline, or anything else, which has none.

    Example:
        >>> import tempfile, torch, studio
        >>> from pathlib import Path
        >>> pipe = studio.families.open_base("emoji").pipe
        >>> cat = studio.Embedding(name="cat", token="<cat>", vectors={"": torch.ones(2, 128)})
        >>> _ = studio.load(pipe, studio.save_embedding(cat, Path(tempfile.mkdtemp()) / "cat.safetensors"))
        >>> studio.embeddings(pipe)
        {'cat': ('cat', 'embedding:cat')}
        >>> studio.remove_embedding(pipe, "cat")
    """
    return {name: tuple(one for word in words for one in word.spellings) for name, words in learned(model).items()}


def remove_embedding(model: Any, name: str) -> None:
    """Takes learned words off a pipeline; with the last of them its tokenizers and encoders are as they were.

    Args:
        model: a diffusers pipeline. name: of the words.

    Raises:
        UnknownName: no words are called so. DoesNotFit: a tokenizer was changed since by somebody else.
    """
    forget(model, name)


def check_plain(source: Source, plain: bool) -> None:
    """Refuses what learned words do not have.

    Args:
        source: their file. plain: whether nothing of it was asked for.

    Raises:
        BadConfig: something was.
    """
    if not plain:
        raise BadConfig(
            f"{source.file} holds learned words (textual inversion), which act where a prompt has them: they have no "
            "strength, are not trained on, and go into no slot; a word counts less in a prompt as (word:0.8)"
        )


def load_words(
    model: Any, source: Source, format: str, entries: Sequence[Entry], *, name: str | None, allow_partial: bool
) -> LoadReport:
    """Teaches a pipeline the words of a file that holds nothing else.

    Args:
        model: the pipeline. source: the file. format: of the words. entries: the words.
        name: what they are called; None: as their file, or the word.
        allow_partial: learn them though some vectors are not read, or an encoder has none.

    Returns:
        What was learned; every key is accounted for.

    Raises:
        BadFile: tensors that are no vectors. Refused: NaN or infinities. PartialLoad: a part cannot be applied.
        DoesNotFit: they are for another base, or a word is taken. BadConfig: a name that is no word.
    """
    words = read_entries(source, format, entries)
    called = name or (words[0].name if len(words) == 1 else stem_of(source.file))
    placing = _Placing(model, source, allow_partial)
    made = []
    for word in words:
        own = word.name if len(words) > 1 else called
        token = word.token if word.token != word.name or len(words) > 1 else own
        made.append(placing.word(word, spellings_of(token=token, name=own)))
    ignored = placing.ignored
    learn(model, called, made)
    return LoadReport(
        name=called, method=METHOD, format=format,
        applied=tuple(sorted({key for word in words for key in word.keys.values()} - ignored.keys())),
        ignored=dict(sorted(ignored.items())),
        sites=tuple(sorted({component for word in made for component in word.vectors})),
        notes=(*map(_said, made), *placing.lacking), embeddings=(called,),
    )  # fmt: skip


def load_brought(
    model: Any, source: Source, attach: Callable[[Source], LoadReport], *, allow_partial: bool
) -> LoadReport:
    """Attaches an adapter, and teaches the words that its file brings along: all of it, or nothing.

    Args:
        model: what it is for. source: the file. attach: attaches what is beside the words.
        allow_partial: leave out what cannot be read.

    Returns:
        What ``attach`` says, and the words.

    Raises:
        BadFile: words that cannot be read. Refused: NaN or infinities. PartialLoad: a part of them cannot be applied.
        DoesNotFit: they are for another base, or a word is taken. What ``attach`` raises.
    """
    found = _brought(model, source, allow_partial)
    if not found:
        return attach(source)
    placing = _Placing(model, source, allow_partial)
    words = [(word.name, placing.brought(word)) for word in found]
    own = {key for word in found for key in word.keys.values()}
    infos = {key: info for key, info in source.infos.items() if key not in own}
    report = attach(dataclasses.replace(source, infos=infos))
    done: list[str] = []
    try:
        for name, word in words:
            if word is not None:
                learn(model, name, [word])
                done.append(name)
    except BaseException:
        for name in done:
            forget(model, name)
        detach(model, report.name)
        raise
    return dataclasses.replace(
        report, applied=tuple(sorted({*report.applied, *own} - placing.ignored.keys())),
        ignored=dict(sorted({**report.ignored, **placing.ignored}.items())),
        notes=(*report.notes, *(_said(word) for _, word in words if word), *placing.lacking),
        embeddings=tuple(done),
    )  # fmt: skip


def _brought(model: Any, source: Source, allow_partial: bool) -> list[Embedding]:
    """The words of an adapter's file, where there is something that can learn them."""
    if not is_pipeline(model):
        return []  # whoever reads the keys says that
    try:
        found = brought(source.infos, source.metadata, stem_of(source.file))
        return [word for format, entries in found.items() for word in read_entries(source, format, entries)]
    except BadFile:
        if not allow_partial:
            raise
        return []


class _Placing:
    """Gives vectors their encoders.

    Args:
        model: the pipeline. source: the file. allow_partial: whether some may have none.

    Attributes:
        ignored: key -> why it is not applied. lacking: encoders that read a word as plain text, in sentences.
    """

    def __init__(self, model: Any, source: Source, allow_partial: bool) -> None:
        self.model, self.source, self.allow_partial = model, source, allow_partial
        self.ignored: dict[str, str] = {}
        self.lacking: list[str] = []

    def word(self, word: Embedding, spellings: tuple[str, ...]) -> Word:
        """A word with its vectors by component; what has no place is noted, or refused."""
        here = readers(self.model)
        vectors: dict[str, Tensor] = {}
        for label, rows in word.vectors.items():
            reader = _meant(here, word, label)
            if label.endswith(OUT):
                self.ignored[word.keys[label]] = "it is added behind an encoder, by OneTrainer alone, and not here"
            elif reader is None:
                self.ignored[word.keys[label]] = f"no encoder of this base is meant: {_mismatch(here, word)}"
            elif rows.shape[-1] != reader.width:
                raise DoesNotFit(f"{self.source.file}: {_mismatch(here, word)}")
            else:
                vectors[reader.row.component] = rows
        if not vectors:
            raise DoesNotFit(f"{self.source.file}: {_mismatch(here, word)}")
        without = [one.row.component for one in here if one.row.component not in vectors]
        self.lacking += [f"{one} reads {word.token!r} as plain text: {_mismatch(here, word)}" for one in without]
        self._judge()
        return Word(spellings=spellings, vectors=vectors)

    def brought(self, word: Embedding) -> Word | None:
        """The same of a word that an adapter brings along; None where it is left out."""
        try:
            return self.word(word, spellings_of(token=word.token, name=word.name))
        except DoesNotFit as error:
            if not self.allow_partial:
                raise
            self.ignored |= dict.fromkeys(word.keys.values(), str(error))
            return None

    def _judge(self) -> None:
        doubts = [*self.lacking, *(f"{key!r} is not applied: {reason}" for key, reason in self.ignored.items())]
        if doubts and not self.allow_partial:
            raise PartialLoad(f"{self.source.file}: {doubts[0]}; pass allow_partial=True to do without it")


def _meant(here: Sequence[Reader], word: Embedding, label: str) -> Reader | None:
    """The encoder that vectors are for: by their label, and where there is one pair alone, by that or their width."""
    found = next((one for one in here if one.row.label == label and label), None)
    if found is not None or len(word.vectors) > 1:
        return found
    width = word.vectors[label].shape[-1]
    wide = [one for one in here if one.width == width]
    return here[0] if len(here) == 1 else wide[0] if len(wide) == 1 else None


def _mismatch(here: Sequence[Reader], word: Embedding) -> str:
    own = [f"{rows.shape[-1]}{f' ({label})' if label else ''}" for label, rows in word.vectors.items()]
    family = made_for({label: rows.shape[-1] for label, rows in word.vectors.items()})
    theirs = [f"{one.width}{f' ({one.row.label})' if here[1:] else ''}" for one in here]
    made = f", which is {family.title}'s" if family is not None else ""
    return (
        f"{word.token!r} has vectors of width {' and '.join(own)}{made}, and this base reads {' and '.join(theirs)}: "
        f"load it on {family.title if family is not None else 'the base that it was made for'}"
    )


def _said(word: Word) -> str:
    vectors = ", ".join(f"{len(rows)} vectors in {component}" for component, rows in word.vectors.items())
    return f"write {' or '.join(word.spellings)} in a prompt ({vectors})"
