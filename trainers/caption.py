"""Vision-language models: captions of pictures, and answers to questions about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from studio.adapters import AdapterConfig
from studio.datasets.samples import Form
from studio.datasets.seen import Seen, seen_of
from studio.families.language import LanguageBase
from studio.families.language.seeing import check_sees
from studio.trainers.language.caption import CaptionLesson, SeenRow, encode_seen, text_alone
from studio.trainers.text_task import Shared, TextTask

__all__ = ["Caption"]

SHOWN: Final = 4  # pictures that previews describe


@dataclass(frozen=True, kw_only=True)
class Caption(TextTask[Seen, SeenRow]):
    """Teaches a vision-language model (LLaVA, ...) what to say of pictures.

    Two facts suffice: ``base`` and ``data``, a folder of pictures with their captions or a file that names them.
    :mod:`studio.datasets.seen` has the forms of a record, :class:`~studio.trainers.text_task.TextTask` the other
    settings.

    Attributes:
        prompt: what is asked of a picture where the sample asks nothing.
        vision: adapt the vision tower too, and what leads from it to the text; else only the text decoder.
        answers: how many held-out pictures are described for the exact match; 0 measures the loss alone.
        preview_tokens: tokens of a preview at most.

    Raises:
        BadConfig: a field with an impossible value.

    Example:
        >>> Caption(base="llava/", data="pictures/", held_out=0.1).task_name
        'caption'
    """

    task_name: ClassVar[str] = "caption"
    kind: ClassVar[str] = "vision"
    least: ClassVar[Mapping[str, int]] = {"answers": 0, "preview_tokens": 1}

    prompt: str = ""
    vision: bool = False
    answers: int = 200
    preview_tokens: int = 64

    @property
    def form(self) -> Form[Seen]:
        return seen_of

    def encode(self, sample: Seen, base: LanguageBase, length: int) -> SeenRow:
        check_sees(base)
        return encode_seen(sample, base, self.prompt, length)

    def example(self, row: SeenRow, base: LanguageBase) -> str:
        return f"{row.sample.name}: {row.asked}⟦{base.tokenizer.decode(row.said)}⟧"

    def call(self, sample: Seen) -> Sequence[str]:
        question = next((text for role, text in reversed(sample.turns) if role == "user"), "")
        return ("complete", "BASE", sample.name, *(("--ask", question) if question else ()))

    def narrowed(self, adapter: AdapterConfig, base: LanguageBase) -> AdapterConfig:
        return adapter if self.vision else text_alone(adapter, base)

    def lesson(self, shared: Shared, rows: Sequence[SeenRow], held_out: Sequence[SeenRow]) -> CaptionLesson:
        return CaptionLesson(
            **shared, samples=rows, held_out=held_out, previews=(held_out or rows)[:SHOWN], answers=self.answers,
            preview_tokens=self.preview_tokens,
        )  # fmt: skip

    def settings(self, rows: Sequence[SeenRow], base: LanguageBase) -> Mapping[str, Any]:
        return {"vision": self.vision, **({"prompt": self.prompt} if self.prompt else {})}

    def origin(self, rows: Sequence[SeenRow], base: LanguageBase) -> Mapping[str, str]:
        return {"prompt": self.prompt} if self.prompt else {}
