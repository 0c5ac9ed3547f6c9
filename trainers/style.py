"""Style: how things are drawn, from captioned pictures of many things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from studio.errors import BadConfig
from studio.trainers.image.latents import Pictures
from studio.trainers.image.prior import Prior
from studio.trainers.image_task import ImageTask, Opened

__all__ = ["Style"]


@dataclass(frozen=True, kw_only=True)
class Style(ImageTask):
    """Teaches the base a way of drawing under a trigger phrase.

    A caption says *what* is drawn, so that the trigger is left to mean *how*; the trigger stands in front of it:
    ``"ink style, a cat"``. A picture without a caption has the trigger alone, which works less well and is said.

    Attributes:
        images: folder with the pictures and their captions (``cat.txt`` beside ``cat.png``, or ``metadata.jsonl``).
        trigger: the phrase, ``"ink style"``.
        joint: what stands between trigger and caption.
        caption_dropout: probability in [0, 1) with which a sample has the trigger alone.

    Raises:
        BadConfig: a field with an impossible value.

    Example:
        >>> Style(base="emoji", images="drawings", trigger="ink style").caption("a cat")
        'ink style, a cat'
    """

    kind: ClassVar[str] = "style"

    images: str | Path
    trigger: str
    joint: str = ", "
    caption_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.trigger.strip():
            raise BadConfig("trigger is empty: choose words that the style shall answer to, such as 'ink style'")
        if not 0 <= self.caption_dropout < 1:
            raise BadConfig(f"caption_dropout={self.caption_dropout!r} must be a probability in [0, 1)")

    @property
    def trigger_words(self) -> str:
        """The trigger phrase."""
        return self.trigger.strip()

    def caption(self, caption: str | None) -> str:
        """Returns the caption with the trigger in front, unless it has it already."""
        if not caption:
            return self.trigger_words
        if self.trigger_words.lower() in caption.lower():
            return caption
        return f"{self.trigger_words}{self.joint}{caption}"

    def default_previews(self, captions: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(captions))[:2]

    def read(self, opened: Opened) -> tuple[Pictures, list[str], Prior | None, dict[str, Any], dict[str, str]]:
        """See :meth:`ImageTask.read`."""
        from studio.datasets.cache import TensorCache
        from studio.datasets.folder import read_folder

        folder = read_folder(self.images, captions=True)
        opened.note_skipped(folder.skipped)
        bare = [item.file.name for item in folder.items if not item.caption]
        if bare:
            opened.say(
                f"{len(bare)} of {len(folder.items)} pictures have no caption ({', '.join(bare[:3])}, ...): they are "
                "trained with the trigger alone, so what they show becomes part of the style"
            )
        pictures = Pictures(
            opened.base, folder.items, size=opened.size, crop=self.crop, flip=self.flip,
            cache=TensorCache(opened.cache / "tensors"),
        )  # fmt: skip
        settings = {"trigger": self.trigger_words, "joint": self.joint, "caption_dropout": self.caption_dropout}
        captions = [self.caption(item.caption) for item in folder.items]
        return pictures, captions, None, settings, {"instance_images": folder.digest}
