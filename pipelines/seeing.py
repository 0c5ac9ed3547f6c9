"""The one path for pictures that are described: files in, texts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps
from torch import Tensor

from studio.adapters.hosting.turns import turn
from studio.config import own_number
from studio.errors import BadConfig, BadFile, DoesNotFit
from studio.families.language import LanguageBase
from studio.families.language.seeing import asked, joined, looked_at
from studio.pipelines.generating import Written, generated
from studio.pipelines.metadata import open_picture
from studio.pipelines.write import evaluating
from studio.rgb import to_rgb

__all__ = ["Description", "describe_seen", "seen_of_picture"]


@dataclass(frozen=True)
class Description:
    """What was said of a picture.

    Attributes:
        file: what the picture is called; "" of one that came as an object.
        text: what was said.
        tokens: how many tokens were written.
        ended: whether it ended by itself, not at a limit.
    """

    file: str
    text: str
    tokens: int
    ended: bool


def seen_of_picture(base: LanguageBase, picture: str | Path | Image.Image, question: str) -> dict[str, Tensor]:
    """Returns what a model reads of a picture and a question.

    Args:
        base: a vision-language model. picture: a file, or Pillow's. question: what is asked; "" asks for a caption.

    Raises:
        BadFile: no picture that can be read. DoesNotFit: the question holds the picture's mark.
    """
    opened = picture if isinstance(picture, Image.Image) else open_picture(picture)
    try:
        plain = to_rgb(ImageOps.exif_transpose(opened), (255, 255, 255))
    except BadFile as problem:
        raise BadFile(f"the picture {problem}") from None
    return looked_at(base, plain, asked(base, (("user", question),)))


def describe_seen(
    base: LanguageBase, seen: Sequence[Mapping[str, Tensor]], max_new_tokens: int, batch_size: int
) -> list[Written]:  # fmt: skip
    """Says what pictures show, or answers what is asked of them, with the blend that is on.

    Args:
        base: a vision-language model; it is in evaluation mode meanwhile.
        seen: of each picture what the model reads.
        max_new_tokens: tokens to write at most, >= 1; fewer where the context ends.
        batch_size: pictures that are described together.

    Raises:
        BadConfig: an impossible number. DoesNotFit: a question that leaves no room in the context.
        StudioError: the model gave no finite numbers.
    """
    numbers = {"max_new_tokens": own_number(max_new_tokens), "batch_size": own_number(batch_size)}
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadConfig(f"{name}={value!r} must be a whole number from 1 on")
    made = list[Written]()
    with turn(base.model), evaluating(base.model):
        for begin in range(0, len(seen), batch_size):
            some = seen[begin : begin + batch_size]
            inputs = joined(base, some, [()] * len(some), left=True)
            length = inputs["input_ids"].shape[1]
            if length >= base.context:
                raise DoesNotFit(
                    f"a picture and its question have {length} tokens and {base.id} reads {base.context}: nothing can "
                    "be said behind them; ask for less"
                )
            made += generated(base, inputs, begin=length, most=min(max_new_tokens, base.context - length))
    return made
