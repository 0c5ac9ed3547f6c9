"""The door to text samples as token numbers, for scripts: what :mod:`studio.trainers.language.texts` has."""

from studio.trainers.language.texts import (
    IGNORED,
    TokenRow,
    batch,
    encode,
    marked,
    question,
    render,
    system_of,
)

__all__ = ["IGNORED", "TokenRow", "batch", "encode", "marked", "question", "render", "system_of"]
