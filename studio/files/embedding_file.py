"""Files of learned words: read as :class:`Embedding`, and written as any program has them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from studio.atomic import atomic_path
from studio.device import on_cpu
from studio.errors import BadConfig, BadFile, DoesNotFit
from studio.files import embedding_formats as _formats
from studio.files.embedding import EMBEDDINGS, Embedding, Entry, entries_of, read_entries
from studio.files.format import Source
from studio.files.header import TensorInfo, write_tensors
from studio.files.metadata import own_entry
from studio.files.source import PICKLED, open_source
from studio.given import given_path

__all__ = ["read_embeddings", "save_embedding", "stem_of", "words_in", "words_of"]

_LARGEST = 1 << 24
"""Numbers in the vectors of a file of words: a thousand words of T5."""
_DIGITS = 19
"""From here on a text of digits is no count of steps."""


def read_embeddings(file: str | Path, *, pickled: bool = False) -> tuple[Embedding, ...]:
    """Reads the learned words of a file.

    Args:
        file: a ``.safetensors`` file of kohya, ComfyUI, A1111, OneTrainer, diffusers or cloneofsimo, a ``.pt`` or
            ``.bin`` file, or a PNG of A1111's.
        pickled: allow ``.pt`` and ``.bin`` files, whose tensors alone are read.

    Returns:
        Its words; one, but for files of several.

    Raises:
        BadFile: it cannot be read, or holds no learned words. Refused: NaN or infinities.

    Example:
        >>> import tempfile, torch
        >>> cat = Embedding(name="cat", token="<cat>", vectors={"": torch.zeros(2, 768)})
        >>> file = save_embedding(cat, Path(tempfile.mkdtemp()) / "cat.safetensors", format="diffusers")
        >>> [(word.token, word.title, word.format) for word in read_embeddings(file)]
        [('<cat>', 'Stable Diffusion 1.x', 'diffusers')]
    """
    with on_cpu():
        source = open_source(given_path(file), pickled=pickled, check=lambda infos: _check_size(file, infos))
        return embeddings_in(source)


def embeddings_in(source: Source) -> tuple[Embedding, ...]:
    """Returns the words of an opened file that holds nothing else.

    Raises:
        BadFile: it holds something else. Refused: NaN or infinities.
    """
    found = entries_of(source.infos, source.metadata, stem_of(source.file))
    if found is None:
        keys = ", ".join(map(repr, list(source.infos)[:5])) or "nothing"
        raise BadFile(f"{source.file} holds no learned words (textual inversion) that can be read; found: {keys}")
    return read_entries(source, *found)


def words_in(source: Source) -> tuple[str, tuple[Entry, ...]] | None:
    """Returns the format and the words of a file that holds nothing else, or None.

    Raises:
        BadFile: it holds words that cannot be read.
    """
    if source.peft is not None or own_entry(source.metadata) is not None:
        return None  # it says what it is
    return entries_of(source.infos, source.metadata, stem_of(source.file))


def words_of(file: str | Path, *, pickled: bool = False) -> tuple[Embedding, ...]:
    """Returns the learned words of a file that holds nothing else; none of any other file.

    Args:
        file: the file. pickled: allow ``.pt`` and ``.bin`` files.

    Raises:
        BadFile: it cannot be read. Refused: NaN or infinities.
    """
    with on_cpu():
        place = given_path(file)
        source = open_source(place, tensors=pickled and place.suffix in PICKLED, pickled=pickled)
        return read_embeddings(file, pickled=pickled) if words_in(source) is not None else ()


def stem_of(file: Path) -> str:
    """Returns what a file of words is called, without its endings.

    Example:
        >>> stem_of(Path("cat.ti.pt")), stem_of(Path("bad.v2.safetensors"))
        ('cat', 'bad.v2')
    """
    return file.stem.removesuffix(".ti")


def _check_size(file: str | Path, infos: Mapping[str, TensorInfo]) -> None:
    count = sum(torch.Size(info.shape).numel() for info in infos.values())
    if count > _LARGEST:
        raise BadFile(f"{file} holds {count:,} numbers, more than learned words have")


def save_embedding(embedding: Embedding | Sequence[Embedding], file: str | Path, *, format: str | None = None) -> Path:
    """Writes learned words as a program has them; the vectors' bytes stay as they are.

    Args:
        embedding: one word, or several where the format holds several.
        file: where to.
        format: of :data:`EMBEDDINGS`: "kohya" (which ComfyUI and A1111 read too), "a1111" (a ``.pt``), "diffusers",
            "onetrainer", "cloneofsimo" or "bundled". None: by the ending, "a1111" for ``.pt``, else "kohya".

    Returns:
        The file.

    Raises:
        UnknownName: no such format. DoesNotFit: the format cannot hold it. BadConfig: an ending of another kind of
            file. BadFile: nothing can be written there.

    Example:
        >>> import tempfile, torch
        >>> cat = Embedding(name="cat", token="<cat>", vectors={"": torch.zeros(2, 768)})
        >>> save_embedding(cat, Path(tempfile.mkdtemp()) / "cat.pt").name
        'cat.pt'
    """
    place = given_path(file)
    words = [embedding] if isinstance(embedding, Embedding) else list(embedding)
    chosen = EMBEDDINGS[format or ("a1111" if place.suffix in PICKLED else "kohya")]
    if len(words) != 1 and not (words and chosen.several):
        raise DoesNotFit(f"a {chosen.title} file holds one word, not {len(words)}; write each to a file of its own")
    pickles = place.suffix in PICKLED
    if chosen.pickled and not pickles:
        raise BadConfig(f"an {chosen.title} file is a pickle: end its name in .pt, or write another format (kohya)")
    keyed, stated = chosen.keyed(words), chosen.stated(words)
    if len(keyed) != sum(len(word.vectors) for word in words):
        raise DoesNotFit(f"two of the {len(words)} words have one name; write each to a file of its own")
    if pickles:
        _pickle(_content(keyed, stated) if chosen.pickled else keyed, place)
    else:
        write_tensors(place, keyed, stated)
    return place


def _content(keyed: Mapping[str, torch.Tensor], stated: Mapping[str, str]) -> dict[str, Any]:
    """What A1111 pickles."""
    step = stated.get("step", "")
    counted = step.isascii() and step.isdigit() and len(step) < _DIGITS
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {key.removeprefix(_formats.PARAMETER): one.clone() for key, one in keyed.items()},
        "name": stated["name"],
        "step": int(step) if counted else None,
        "sd_checkpoint": stated.get("sd_checkpoint"),
        "sd_checkpoint_name": stated.get("sd_checkpoint_name"),
    }


def _pickle(content: Mapping[str, Any], place: Path) -> None:
    """Writes as ``torch.save`` does, which puts the name of a file into it unless it has none."""
    data = io.BytesIO()
    torch.save(dict(content), data)
    with atomic_path(place) as temporary:
        temporary.write_bytes(data.getvalue())
