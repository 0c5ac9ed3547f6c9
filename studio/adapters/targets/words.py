"""What the name of a module or a class tells about it: words, the roles of a projection, being an attention."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Final

__all__ = ["POSITIONS", "Roles", "is_attention_name", "roles_of", "words_of"]

Roles = frozenset[str]
"""Some of q, k and v."""

_WORDS: Final[Mapping[str, str]] = {
    "query": "q", "queries": "q", "key": "k", "keys": "k", "value": "v", "values": "v",
}  # fmt: skip
_LETTERS: Final = re.compile(r"w?(?P<letters>q?k?v?|q?v?k?)z?")
POSITIONS: Final = frozenset(("relative", "rel", "pos", "position", "positional", "bias", "conv"))
"""Words of what is about places in a text, not about its tokens."""


@functools.lru_cache(maxsize=4096)
def words_of(name: str) -> tuple[str, ...]:
    """Splits a name into its lower-case words, without numbers.

    Example:
        >>> words_of("EncDecAttention"), words_of("to_q"), words_of("attn2")
        (('enc', 'dec', 'attention'), ('to', 'q'), ('attn',))
    """
    parts = re.split(r"[\W_\d]+", re.sub(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name))
    return tuple(part.lower() for part in parts if part)


def roles_of(name: str) -> Roles:
    """Reads the roles of a projection off its name.

    Example:
        >>> [sorted(roles_of(name)) for name in ("add_q_proj", "kv_proj", "Wqkv", "query_key_value", "out_proj")]
        [['q'], ['k', 'v'], ['k', 'q', 'v'], ['k', 'q', 'v'], []]
        >>> sorted(roles_of("relative_k_proj"))  # of positions, not of tokens
        []
    """
    words = words_of(name)
    if POSITIONS & set(words):
        return frozenset()
    found: set[str] = set()
    for word in words:
        if word in _WORDS:
            found.add(_WORDS[word])
        elif (match := _LETTERS.fullmatch(word)) is not None:
            found |= set(match["letters"])
    return frozenset(found)


def is_attention_name(name: str) -> bool:
    """Says whether a class or a module is called an attention."""
    return any(word in ("attention", "attn", "attentions", "mha", "att") for word in words_of(name))
