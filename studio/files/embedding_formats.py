"""How programs write learned words: keys to words, and words to keys.

- A1111: a pickle of ``string_to_param`` with one entry (which is read as the key ``string_to_param.*``);
- kohya, ComfyUI and A1111's later files: ``emb_params`` for one encoder, ``clip_l``, ``clip_g``, ``t5xxl`` for several;
- OneTrainer: the same but for ``t5``, and ``clip_l_out`` and the like for vectors that are added behind the encoder;
- diffusers: one key, the word itself, ``(d,)`` or ``(n, d)``;
- cloneofsimo: such keys, several of them, each with the text ``<embed>`` in the metadata;
- bundled with an adapter: ``bundle_emb.<name>.<key of one of the others>``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from torch import Tensor

from studio.errors import BadFile, DoesNotFit
from studio.families import FAMILIES
from studio.files.embedding import EMBED, EMBEDDINGS, OUT, Embedding, EmbeddingFormat, Entry, named
from studio.files.header import TensorInfo

__all__ = ["PARAMETER"]

PARAMETER: Final = "string_to_param."
"""Begins the keys by which :mod:`studio.files.source` calls the entries of A1111's pickles."""
_ONE: Final = "emb_params"
_KOHYA: Final = ("clip_l", "clip_g", "clip_h", "t5xxl")
_T5: Final = {"t5": "t5xxl", f"t5{OUT}": f"t5xxl{OUT}"}
_ONETRAINER: Final = ("clip_l", "clip_g", "t5", f"clip_l{OUT}", f"clip_g{OUT}", f"t5{OUT}")
_ADAPTERS: Final = re.compile(r"lora|^prompt_embeddings$|^(weight|bias|diff|alpha)$")
_BUNDLE: Final = "bundle_emb"

Infos = Mapping[str, TensorInfo]
Words = Sequence[Embedding]


def _label(key: str) -> str:
    return "" if key == _ONE or key.startswith(PARAMETER) else _T5.get(key, key)


def _labelled(keys: Sequence[str], stem: str) -> tuple[Entry, ...]:
    name, token = named(stem)
    return (Entry(name=name, token=token, keys={_label(key): key for key in keys}),)


# -- readers -----------------------------------------------------------------------------------------------------------


def _a1111(infos: Infos, metadata: Mapping[str, str], stem: str) -> tuple[Entry, ...] | None:
    if not all(key.startswith(PARAMETER) for key in infos):
        return None
    if len(infos) > 1:
        raise BadFile(
            f"{stem}: string_to_param holds {len(infos)} entries, {', '.join(infos)}, and a word is one of them; which "
            "one is meant is not said"
        )
    return _labelled([*infos], stem)


def _kohya(infos: Infos, metadata: Mapping[str, str], stem: str) -> tuple[Entry, ...] | None:
    return _labelled([*infos], stem) if {*infos} == {_ONE} or {*infos} <= {*_KOHYA} else None


def _onetrainer(infos: Infos, metadata: Mapping[str, str], stem: str) -> tuple[Entry, ...] | None:
    theirs = {*infos} <= {*_ONETRAINER} and not {*infos} <= {*_KOHYA}
    return _labelled([*infos], stem) if theirs else None


def _is_word(key: str, info: TensorInfo) -> bool:
    return len(info.shape) in (1, 2) and key.startswith("<") and key.endswith(">") and "lora" not in key


def _cloneofsimo(infos: Infos, metadata: Mapping[str, str], stem: str) -> tuple[Entry, ...] | None:
    stated = all(metadata.get(key) == EMBED for key in infos)
    if not stated and not (len(infos) > 1 and all(_is_word(key, info) for key, info in infos.items())):
        return None
    own = {key: named(stem if len(infos) == 1 else "embeddings", key) for key in infos}
    return tuple(Entry(name=name, token=token, keys={"": key}) for key, (name, token) in own.items())


def _diffusers(infos: Infos, metadata: Mapping[str, str], stem: str) -> tuple[Entry, ...] | None:
    key = next(iter(infos))
    others = key in (_ONE, *_KOHYA, *_ONETRAINER) or metadata.get(key) == EMBED
    plain = "." not in key and not _ADAPTERS.search(key) and len(infos[key].shape) in (1, 2)
    if len(infos) != 1 or others or not (plain or _is_word(key, infos[key])):
        return None
    name, token = named(stem, key)
    return (Entry(name=name, token=token, keys={"": key}),)


def _bundled(infos: Infos, metadata: Mapping[str, str], stem: str) -> tuple[Entry, ...] | None:
    if not all(key.startswith(f"{_BUNDLE}.") for key in infos):
        return None
    found: dict[str, dict[str, str]] = {}
    for key in infos:
        _, name, rest = key.split(".", 2) if key.count(".") > 1 else (key, "", "")
        if not name or not (rest == _ONE or rest in (*_KOHYA, *_ONETRAINER) or rest.startswith(PARAMETER)):
            raise BadFile(
                f"{key!r} is no word that a file brings along: bundle_emb.<name>.<key> has a name without a dot, and "
                f"a key such as {_ONE} or {', '.join(_KOHYA)}"
            )
        if _label(rest) in found.setdefault(name, {}):
            raise BadFile(f"{key!r} and {found[name][_label(rest)]!r} are the same vectors of one word")
        found[name][_label(rest)] = key
    for name, keys in found.items():
        if "" in keys and len(keys) > 1:
            raise BadFile(f"{keys['']!r} does not say of which encoder it is, and {name!r} has others beside it")
    return tuple(Entry(name=name, token=name, keys=keys) for name, keys in found.items())


# -- writers -----------------------------------------------------------------------------------------------------------


def _nothing(words: Words) -> dict[str, str]:
    return {"format": "pt"}


def _facts(words: Words) -> dict[str, str]:
    """What was said beside the one word of a file."""
    return {**words[0].facts, **_nothing(words)}


def _alone(word: Embedding, title: str) -> Tensor:
    """The vectors of a word that has those of one encoder."""
    if len(word.vectors) != 1 or any(label.endswith(OUT) for label in word.vectors):
        raise DoesNotFit(
            f"{word.name!r} has vectors of {', '.join(label or 'one encoder' for label in word.vectors)}, and a "
            f"{title} file holds those of one encoder; write it in another format (kohya, or onetrainer)"
        )
    return next(iter(word.vectors.values()))


def _as_kohya(words: Words) -> dict[str, Tensor]:
    (word,) = words
    behind = [label for label in word.vectors if label.endswith(OUT)]
    if behind:
        raise DoesNotFit(f"{word.name!r} has vectors behind an encoder ({behind[0]}), which OneTrainer alone has")
    if len(word.vectors) == 1 and {*word.vectors} <= {"", "clip_l", "clip_h"}:
        return {_ONE: next(iter(word.vectors.values()))}
    return {_label_of(word, label): vectors for label, vectors in word.vectors.items()}


def _label_of(word: Embedding, label: str) -> str:
    """The label of vectors, of those that have none by their width."""
    width = word.vectors[label].shape[-1]
    found = label or next(
        (one.label for row in FAMILIES.values() for one in row.encoders if one.width == width and one.label), ""
    )
    if not found:
        raise DoesNotFit(f"{word.name!r} does not say of which encoder it is, and none is known by its width {width}")
    return found


def _as_onetrainer(words: Words) -> dict[str, Tensor]:
    (word,) = words
    theirs = {ours: key for key, ours in _T5.items()}
    keyed = {_label_of(word, label): vectors for label, vectors in word.vectors.items()}
    # it calls the encoder of SD2 as that of SD1
    return {theirs.get(label, "clip_l" if label == "clip_h" else label): one for label, one in keyed.items()}


def _as_bundled(words: Words) -> dict[str, Tensor]:
    keyed: dict[str, Tensor] = {}
    for word in words:
        if "." in word.name:
            raise DoesNotFit(f"{word.name!r} has a dot, and the name of a word that a file brings along has none")
        keyed |= {f"{_BUNDLE}.{word.name}.{label or _ONE}": vectors for label, vectors in word.vectors.items()}
    return keyed


EMBEDDINGS.add(
    "bundled",
    EmbeddingFormat(
        name="bundled", title="bundled words, beside an adapter", several=True, entries=_bundled, keyed=_as_bundled,
        stated=_nothing,
    ),
)  # fmt: skip
EMBEDDINGS.add(
    "a1111",
    EmbeddingFormat(
        name="a1111", title="A1111", entries=_a1111, pickled=True,
        keyed=lambda words: {f"{PARAMETER}*": _alone(words[0], "A1111")},
        stated=lambda words: {"name": words[0].name, **words[0].facts},
    ),
)  # fmt: skip
EMBEDDINGS.add(
    "kohya",
    EmbeddingFormat(
        name="kohya", title="kohya, ComfyUI and A1111", entries=_kohya, keyed=_as_kohya, stated=_facts,
    ),
)  # fmt: skip
EMBEDDINGS.add(
    "onetrainer",
    EmbeddingFormat(
        name="onetrainer", title="OneTrainer", entries=_onetrainer, keyed=_as_onetrainer, stated=_facts,
    ),
)  # fmt: skip
EMBEDDINGS.add(
    "cloneofsimo",
    EmbeddingFormat(
        name="cloneofsimo", title="cloneofsimo", several=True, entries=_cloneofsimo,
        keyed=lambda words: {word.token: _alone(word, "cloneofsimo") for word in words},
        stated=lambda words: {**words[0].facts, **{word.token: EMBED for word in words}},
    ),
)  # fmt: skip
EMBEDDINGS.add(
    "diffusers",
    EmbeddingFormat(
        name="diffusers", title="diffusers", entries=_diffusers, stated=_facts,
        keyed=lambda words: {words[0].token: _alone(words[0], "diffusers")},
    ),
)  # fmt: skip
