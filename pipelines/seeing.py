"""The one path for pictures that are described: files in, texts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps
from torch import Tensor

from studio.adapters.hosting.turns import turn
from studio.config import whole_from_one
from studio.errors import BadFile, DoesNotFit
from studio.families.language import LanguageBase
from studio.families.language.seeing import asked, joined, looked_at
from studio.pipelines.generating import Written, generated, passes
from studio.pipelines.metadata import open_picture
from studio.pipelines.write import evaluating, virtual_tokens
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
    except OSError as problem:  # an object whose file is read only now
        raise BadFile(f"the picture cannot be read ({problem})") from None
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
    max_new_tokens = whole_from_one("max_new_tokens", max_new_tokens)
    batch_size = whole_from_one("batch_size", batch_size)
    room, made = base.context - virtual_tokens(base.model), dict[int, Written]()
    lengths = [int(one["input_ids"].shape[1]) for one in seen]
    if max(lengths, default=0) >= room:
        raise DoesNotFit(
            f"a picture and its question have {max(lengths)} tokens and {base.id} reads {room}: nothing can be said "
            "behind them; ask for less"
        )
    with turn(base.model), evaluating(base.model):
        for most, places in passes([min(max_new_tokens, room - length) for length in lengths], batch_size):
            inputs = joined(base, [seen[place] for place in places], [()] * len(places), left=True)
            found = generated(base, inputs, begin=inputs["input_ids"].shape[1], most=most)
            made |= dict(zip(places, found, strict=True))
    return [made[place] for place in range(len(seen))]
