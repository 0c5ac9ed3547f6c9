"""The texts of a picture in the EXIF of a JPEG or a WebP, where such files hold them.

``parameters`` stands in ``UserComment`` as A1111 writes it (``UNICODE`` and UTF-16, the higher byte first); ``studio``
in ``MakerNote``, the tag for what only its own program reads. Both are of EXIF's type UNDEFINED: a reader gets bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any, Final

from PIL import Image

__all__ = ["LARGEST", "exif_bytes", "exif_texts"]

LARGEST: Final = 65_533
"""Bytes of EXIF that a JPEG holds: its marker gives them a 16-bit length."""
EXIF_IFD, MAKER_NOTE, USER_COMMENT = 0x8769, 0x927C, 0x9286
LONG, UNDEFINED = 4, 7
_UNICODE: Final = b"UNICODE\0"
_CODES: Final = (_UNICODE, b"ASCII\0\0\0", b"JIS\0\0\0\0\0", bytes(8))
_OURS: Final = b"adapter-studio\0"
# a WebP of ComfyUI has "prompt:{...}" and "workflow:{...}" in tags for the maker and the model of a camera
_NAMED: Final = re.compile(r"(prompt|workflow):\s*(\{.*)", re.DOTALL)


def exif_bytes(texts: Mapping[str, str]) -> bytes:
    """Returns EXIF that holds texts.

    Args:
        texts: ``parameters`` and ``studio``, or one of them.

    Example:
        >>> exif_bytes({"parameters": "a dog"})[:8], len(exif_bytes({}))
        (b'Exif\\x00\\x00MM', 0)
    """
    tags = {}
    if "studio" in texts:
        tags[MAKER_NOTE] = _OURS + texts["studio"].encode()
    if "parameters" in texts:
        tags[USER_COMMENT] = _UNICODE + texts["parameters"].encode("utf-16-be", "surrogatepass")
    if not tags:
        return b""
    entries, values = b"", b""
    # header 8 bytes, a first table of one entry 18; then this table, of two bytes, 12 per entry and four
    behind = 8 + 18 + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        entries += struct.pack(">HHII", tag, UNDEFINED, len(value), behind + len(values))
        values += value + bytes(len(value) % 2)  # values begin at even places
    first = struct.pack(">HHHIII", 1, EXIF_IFD, LONG, 1, 26, 0)
    return b"Exif\0\0MM\0*" + struct.pack(">I", 8) + first + struct.pack(">H", len(tags)) + entries + bytes(4) + values


def exif_texts(image: Image.Image) -> dict[str, str]:
    """Returns the texts in a picture's EXIF: ``parameters``, ``studio``, ComfyUI's ``prompt`` and ``workflow``.

    Args:
        image: a picture; without EXIF, or with EXIF that cannot be read, it has no texts.
    """
    try:
        exif = image.getexif()
        inner = exif.get_ifd(EXIF_IFD)
    except Exception:  # a decoder raises anything on hostile bytes, and the picture is one without them
        return {}
    found = {match[1]: match[2] for value in exif.values() if (match := _NAMED.match(_plain(value)))}
    comment, note = (_whole(inner.get(tag)) for tag in (USER_COMMENT, MAKER_NOTE))
    if comment.strip(b"\0 "):
        found["parameters"] = _comment(comment)
    if note.startswith(_OURS):
        found["studio"] = note.removeprefix(_OURS).decode("utf-8", "replace")
    return found


def _plain(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)[: 1 << 21]


def _whole(value: Any) -> bytes:
    """The bytes of a tag, which some programs write as numbers or as a text."""
    if isinstance(value, tuple) and all(isinstance(one, int) and 0 <= one < 256 for one in value):
        return bytes(value)
    return value.encode("latin-1", "replace") if isinstance(value, str) else value if isinstance(value, bytes) else b""


def _comment(value: bytes) -> str:
    """A comment without the eight bytes that name its code; UTF-16 of either order, as programs differ."""
    code = next((code for code in _CODES if value.startswith(code)), b"")
    text = value[len(code) :]
    if code != _UNICODE:
        return text.rstrip(b"\0").decode("utf-8", "replace")
    even = len(text) & ~1
    little = text[1:even:2].count(0) > text[0:even:2].count(0)
    return text[:even].decode("utf-16-le" if little else "utf-16-be", "replace").lstrip("\ufeff").rstrip("\0")
