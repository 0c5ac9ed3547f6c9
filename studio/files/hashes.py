"""The hashes that programs know an adapter file by: made of it anew, and compared with those that stand in it.

================================ =======================================================================================
file                             SHA-256 of all bytes; A1111 and Civitai show the first 10 letters (AutoV2)
payload (``sshs_model_hash``)    SHA-256 of the bytes behind the header, which no change of metadata touches; the first
                                 12 letters are AutoV3; ``modelspec.hash_sha256`` is the same with ``0x`` in front
legacy (``sshs_legacy_hash``)    the first 8 letters of the SHA-256 of the 64 KiB from 1 MiB on, of a file of these
                                 tensors whose metadata are the ``ss_`` keys alone, as kohya's scripts make it
================================ =======================================================================================
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from studio.errors import BadFile
from studio.files.gguf_container import SUFFIX
from studio.files.header import Header, read_header
from studio.given import open_given

__all__ = ["STORED", "FileHashes", "file_hash", "file_hashes", "stored_hashes"]

_MODEL: Final = "sshs_model_hash"
_LEGACY: Final = "sshs_legacy_hash"
_SPEC: Final = "modelspec.hash_sha256"
STORED: Final = (_MODEL, _LEGACY, _SPEC)
"""Keys under which a file states hashes of itself."""
_BLOCK: Final = 1 << 20
_SLICE: Final = (0x100000, 0x110000)


@dataclass(frozen=True)
class FileHashes:
    """The hashes of a file.

    Attributes:
        file: of all bytes. payload: of the bytes behind the header; "" of a file that is no safetensors.
        legacy: kohya's old one, 8 letters; "" there too, and where a header of a MiB lies in the bytes that it is of.
        wrong: key of a stored hash -> what it should be. right: keys of those that are so.
    """

    file: str
    payload: str
    legacy: str
    wrong: Mapping[str, str] = field(default_factory=dict)
    right: tuple[str, ...] = ()

    @property
    def short(self) -> str:
        """What A1111 calls AutoV2."""
        return self.file[:10]

    @property
    def short_payload(self) -> str:
        """What Civitai calls AutoV3."""
        return self.payload[:12]


def stored_hashes(metadata: Mapping[str, str]) -> dict[str, str]:
    """Returns the hashes that a file states of itself, by their keys, in plain small letters.

    Example:
        >>> stored_hashes({"modelspec.hash_sha256": "0xAB12", "sshs_model_hash": "None"})
        {'modelspec.hash_sha256': 'ab12'}
    """
    found = {key: metadata[key].strip().lower().removeprefix("0x") for key in STORED if key in metadata}
    return {key: value for key, value in found.items() if value not in ("", "none")}


def file_hash(file: Path) -> str:
    """Returns the SHA-256 of a file.

    Raises:
        BadFile: it cannot be read.
    """
    with _opened(file) as stream:
        return _digest(_blocks(stream))


def file_hashes(file: Path) -> FileHashes:
    """Reads a file and returns its hashes, and which of those that a safetensors file states of itself are not true.

    Raises:
        BadFile: it cannot be read, or is neither a safetensors file nor called one of llama.cpp's.

    Example:
        >>> import tempfile, torch
        >>> from studio.files.header import write_tensors
        >>> file = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> write_tensors(file, {"x": torch.zeros(3)}, {"sshs_model_hash": "ab12"})
        >>> found = file_hashes(file)
        >>> found.legacy, list(found.wrong)
        ('e3b0c442', ['sshs_model_hash'])
    """
    if file.suffix.lower() == SUFFIX:
        return FileHashes(file_hash(file), "", "")
    header = read_header(file)
    with _opened(file) as stream:
        whole, payload = hashlib.sha256(), hashlib.sha256()
        whole.update(stream.read(header.start))
        for block in _blocks(stream):
            whole.update(block)
            payload.update(block)
        legacy = _legacy(header, stream)
        made = {_MODEL: payload.hexdigest(), _LEGACY: legacy, _SPEC: payload.hexdigest()}
        said = {key: value for key, value in stored_hashes(header.metadata).items() if made[key]}
        wrong = {key: made[key] for key, value in said.items() if value != made[key]}
        if wrong.get(_SPEC) and said[_SPEC] == _by_name(header, stream):
            del wrong[_SPEC]
    right = tuple(key for key in said if key not in wrong)
    return FileHashes(whole.hexdigest(), payload.hexdigest(), legacy, wrong, right)


def _opened(file: Path) -> BinaryIO:
    try:
        return open_given(file)
    except BadFile as error:
        raise BadFile(f"{file} {error}; name a .safetensors file") from None
    except OSError as error:
        raise BadFile(f"{file} cannot be read: {error.strerror or error}") from error


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(_BLOCK):
        yield block


def _digest(blocks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _legacy(header: Header, stream: BinaryIO) -> str:
    """The bytes of the slice lie somewhere else in the file that it was made of: that had a shorter header."""
    head: dict[str, Any] = {"__metadata__": {k: v for k, v in header.metadata.items() if k.startswith("ss_")}}
    for name, info in header.tensors.items():
        head[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": (info.begin, info.end)}
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    start = 8 + len(text) + -len(text) % 8
    whole = start + max((info.end for info in header.tensors.values()), default=0)
    begin, end = (min(place, whole) for place in _SLICE)
    if begin < start:  # a header of a MiB: it would have to be spelled as it was, byte by byte
        return ""
    stream.seek(header.start + begin - start)
    return _digest([stream.read(end - begin)])[:8]


def _by_name(header: Header, stream: BinaryIO) -> str:
    """What OneTrainer makes: of the tensors by their names, which is another order where their types differ."""

    def tensors() -> Iterator[bytes]:
        for _, info in sorted(header.tensors.items()):
            stream.seek(header.start + info.begin)
            yield stream.read(info.end - info.begin)

    return _digest(tensors())
