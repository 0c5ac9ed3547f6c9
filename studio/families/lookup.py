"""What one text encoder and its tokenizer carry while there are learned words: rules of the one, hooks on the other."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.errors import DoesNotFit

__all__ = ["Lookup", "Word", "inner_tokens", "lookup_of", "spelled"]

FIRST: Final = 0xF0000
"""The character of a word's first vector, and of those of other words behind it: for private use, in no text."""
NEXT: Final = 0x100000
"""The same of its other vectors."""
MOST: Final = 60_000
_PREFIXED: Final = r"(?:\.(?:pt|bin|safetensors))?(?![\w-]|\.\w)"
"""What may stand behind the name of a file, and what may not."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Word:
    """A word that encoders have vectors for; equal to itself alone.

    Args:
        spellings: how it is written in a prompt; upper and lower case are the same.
        vectors: component -> what it reads there, ``(n, d)``.
    """

    spellings: tuple[str, ...]
    vectors: Mapping[str, Tensor]


def spelled(spelling: str) -> str:
    r"""Returns the regular expression of a word: not a part of a longer one.

    Example:
        >>> spelled("dog"), spelled("<dog>")
        ('(?<!\\w)dog(?!\\w)', '<dog>')
    """
    before = r"(?<!\w)" if re.match(r"\w", spelling) else ""
    if spelling.startswith("embedding:"):
        return before + re.escape(spelling) + _PREFIXED
    return before + re.escape(spelling) + (r"(?!\w)" if re.search(r"\w$", spelling) else "")


def lookup_of(encoder: nn.Module) -> Lookup | None:
    """Returns what an encoder carries, or None."""
    hooks = encoder._forward_pre_hooks.values()
    return next((hook for hook in hooks if isinstance(hook, Lookup)), None)


def inner_tokens(tokenizer: Any) -> frozenset[int]:
    """Returns the tokens before which a text is not to be cut: all vectors of a word but the first.

    Args:
        tokenizer: any.
    """
    return frozenset(number for token, number in tokenizer.added_tokens_encoder.items() if token >= chr(NEXT))


class Lookup:
    """The learned words of one encoder.

    Args:
        encoder: a text encoder of transformers.
        tokenizer: its tokenizer, of transformers, with rules in ``tokenizers``.

    Attributes:
        words: name -> words, in the order in which they came.
    """

    def __init__(self, encoder: Any, tokenizer: Any) -> None:
        self.words: dict[str, tuple[Word, ...]] = {}
        self._encoder, self._tokenizer = encoder, tokenizer
        self._plain = self._mine = tokenizer._tokenizer
        self._components: dict[str, str] = {}
        self._rows = torch.empty(0)
        self._start = len(tokenizer)
        special = set(tokenizer.all_special_ids)
        self._instead = next(number for number in itertools.count() if number not in special)
        self._handles: list[Any] = []
        self._now = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_now"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state, _now=threading.local())

    def add(self, name: str, component: str, words: Sequence[Word]) -> None:
        """Adds words.

        Args:
            name: what they are called. component: what the pipeline calls the encoder. words: the words.

        Raises:
            DoesNotFit: the tokenizer does not read a spelling as a word, or was changed by somebody else.
        """
        self.check_own()
        self._components[name] = component
        self._set({**self.words, name: tuple(words)})

    def drop(self, name: str) -> None:
        """Takes words off; with the last one everything is as it was."""
        self._set({other: words for other, words in self.words.items() if other != name})

    def check_own(self) -> None:
        """Checks that the tokenizer's rules are still those that were set here.

        Raises:
            DoesNotFit: they are not.
        """
        if self._tokenizer._tokenizer is not self._mine or len(self._tokenizer) != self._start + len(self._rows):
            raise DoesNotFit(
                "the tokenizer has been given other tokens since the embedding was loaded; take those out first"
            )

    def _set(self, words: dict[str, tuple[Word, ...]]) -> None:
        rows = [word.vectors[self._components[name]] for name, some in words.items() for word in some]
        mine = self._plain if not words else _taught(self._plain, _marked(words, rows), self._start)
        self.words, self._rows = words, torch.cat([one.float() for one in rows]) if rows else torch.empty(0)
        self._tokenizer._tokenizer = self._mine = mine
        if words and not self._handles:
            self._put()
        while not words and self._handles:
            self._handles.pop().remove()

    def _put(self) -> None:
        encoder = self._encoder
        self._handles = [
            encoder.register_forward_pre_hook(self, with_kwargs=True),
            *(one.register_forward_hook(self._answer) for one in _input_embeddings(encoder)),
            encoder.register_forward_hook(self._check_answered),
        ]

    # -- while the encoder runs ----------------------------------------------------------------------------------------

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Asks the encoder about tokens that it has, and notes where words stand."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._now.asked = None
        if not isinstance(ids, Tensor):
            return None
        places = ids - self._start
        ours = (places >= 0) & (places < len(self._rows))
        if not bool(ours.any()):
            return None
        self._now.asked = ours, places.where(ours, 0)
        plain = ids.where(~ours, self._instead)
        return (args, {**kwargs, "input_ids": plain}) if "input_ids" in kwargs else ((plain, *args[1:]), kwargs)

    def _answer(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Answers with the vectors where words stand."""
        asked, self._now.asked = getattr(self._now, "asked", None), None
        if asked is None:
            return None
        ours, places = asked
        found = F.embedding(places, self._rows.to(output.device)).to(output.dtype)
        return torch.where(ours[..., None], found, output)

    def _check_answered(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if getattr(self._now, "asked", None) is not None:
            raise DoesNotFit(
                f"{type(module).__name__} did not read its input embedding, so learned words would not count"
            )


def _input_embeddings(encoder: Any) -> list[nn.Module]:
    """The input embedding, and others that are tied to it: a T5 reads one that it does not name."""
    sizes = encoder.get_input_embeddings().weight.shape
    found = (module for module in encoder.modules() if isinstance(module, nn.Embedding))
    return [module for module in found if (module.num_embeddings, module.embedding_dim) == tuple(sizes)]


def _marked(words: Mapping[str, Sequence[Word]], rows: Sequence[Tensor]) -> list[tuple[Word, str]]:
    """Every word with the characters of its vectors."""
    some, place = list[tuple[Word, str]](), 0
    flat = [word for group in words.values() for word in group]
    for word, vectors in zip(flat, rows, strict=True):
        count = len(vectors)
        marks = [chr(FIRST + place), *(chr(NEXT + place + more) for more in range(1, count))]
        some.append((word, "".join(marks)))
        place += count
    if place > MOST:
        raise DoesNotFit(f"{place:,} vectors of learned words are more than a tokenizer takes ({MOST:,})")
    return some


def _taught(plain: Any, marked: Sequence[tuple[Word, str]], start: int) -> Any:
    """A copy of a tokenizer's rules that reads words as the tokens of their vectors, from ``start`` on."""
    from tokenizers import AddedToken, Regex, Tokenizer
    from tokenizers.normalizers import Normalizer, Replace, Sequence

    taught = Tokenizer.from_str(plain.to_str())
    taught.no_truncation()
    taught.no_padding()
    tokens = [AddedToken(mark, normalized=True, lstrip=True) for _, marks in marked for mark in marks]
    taught.add_tokens(tokens)
    pairs = [(spelling, marks) for word, marks in marked for spelling in word.spellings]
    rules: list[Normalizer] = [
        Replace(Regex(f"(?i){spelled(spelling)}"), marks)
        for spelling, marks in sorted(pairs, key=lambda pair: -len(pair[0]))
    ]
    taught.normalizer = Sequence([*rules, *([] if taught.normalizer is None else [taught.normalizer])])
    numbers = itertools.count(start)
    for word, marks in marked:
        wanted = [next(numbers) for _ in marks]
        for spelling in word.spellings:
            _check_read(taught, spelling, wanted)
    return taught


def _check_read(taught: Any, spelling: str, wanted: list[int]) -> None:
    read = taught.encode(f"a {spelling} b", add_special_tokens=False).ids
    if not any(read[place : place + len(wanted)] == wanted for place in range(len(read))):
        raise DoesNotFit(f"the tokenizer does not read {spelling!r} as a word; give the embedding another name")
