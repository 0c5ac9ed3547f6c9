"""Style: how things are drawn, from captioned pictures of many things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from studio.datasets.trigger import Trigger
from studio.errors import BadConfig
from studio.families import Base
from studio.given import is_blank
from studio.trainers.image_task import ImageTask, Material
from studio.trainers.opening import Opening

if TYPE_CHECKING:
    from studio.datasets.folder import ImageFolder

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

    task_name: ClassVar[str] = "style"

    images: str | Path
    trigger: str
    joint: str = ", "
    caption_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if is_blank(self.trigger):
            raise BadConfig("trigger is empty: choose words that the style shall answer to, such as 'ink style'")
        if not 0 <= self.caption_dropout < 1:
            raise BadConfig(f"caption_dropout={self.caption_dropout!r} must be a probability in [0, 1)")

    def look(self) -> tuple[ImageFolder, ...]:
        """Reads the pictures and their captions."""
        from studio.datasets.folder import read_folder

        return (read_folder(self.images, captions=True, encoding=self.caption_encoding),)

    @property
    def answers_to(self) -> Trigger:
        """The trigger phrase."""
        return Trigger.of_style(self.trigger, self.joint)

    def caption(self, caption: str | None) -> str:
        """Returns the caption with the trigger in front, unless it has it already."""
        return self.answers_to.text(caption)

    def read(self, opening: Opening[Base], size: tuple[int, int], folders: Sequence[ImageFolder]) -> Material:
        """See :meth:`ImageTask.read`."""
        folder, trigger = folders[0], self.answers_to
        latents = self.latents_of(folder, opening, size)
        bare = [item.file.name for item in folder.items if not item.caption]
        if bare:
            opening.say(
                f"{len(bare)} of {len(folder.items)} pictures have no caption ({', '.join(bare[:3])}, ...): they are "
                "trained with the trigger alone, so what they show becomes part of the style"
            )
        return Material(
            latents=latents,
            captions=[trigger.of(item) for item in folder.items],
            caption_dropout=self.caption_dropout,
            settings={"trigger": trigger.words, "joint": self.joint, "caption_dropout": self.caption_dropout},
            inputs={"instance_images": folder.digest},
        )
