"""The one path for vectors: texts in, a vector of length 1 for each out, with any blend of adapters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from studio.adapters import Strength
from studio.adapters.hosting.turns import turn
from studio.errors import BadConfig, DoesNotFit, StudioError
from studio.families.language import LanguageBase
from studio.families.language.encoding import check_encodes, embeddings
from studio.families.language.judging import Reading, read_texts
from studio.given import is_blank
from studio.pipelines.mixed import batches_under
from studio.pipelines.write import evaluating
from studio.shown import short

__all__ = ["embed", "pooling_of"]


def pooling_of(asked: str | None, trained: Iterable[str]) -> str:
    """Returns what makes a text's vector: what is asked for, else as the adapters were trained, else the mean.

    Args:
        asked: what is asked for. trained: what the adapters say.

    Raises:
        BadConfig: the adapters differ, and nothing is asked for.
    """
    found = sorted(set(trained))
    if asked is None and len(found) > 1:
        raise BadConfig(f"the adapters were trained with pooling {' and '.join(found)}: say which by pooling=")
    return asked if asked is not None else found[0] if found else "mean"


def embed(
    base: LanguageBase, texts: Sequence[str], blends: Sequence[Mapping[str, Strength] | None], pooling: str,
    batch_size: int,
) -> Tensor:  # fmt: skip
    """Returns the vectors of texts, fp32 ``(N, D)`` on the CPU.

    Args:
        base: an encoder of texts; it is in evaluation mode meanwhile. texts: N of them.
        blends: what acts on each; ``None``: the blend that is on. pooling: what makes a text's vector.
        batch_size: texts that are computed together.

    Raises:
        BadConfig: no text, or an empty one; no such pooling; a batch size below 1.
        DoesNotFit: a text that is longer than the context, or a base that is no encoder of one part.
        StudioError: the model gave no finite numbers.
    """
    check_encodes(base, pooling)
    if not texts:
        raise BadConfig("there is no text to make a vector of: give at least one")
    readings = [_read(base, text) for text in texts]
    made: dict[int, Tensor] = {}
    for places, acting in batches_under(base.model, blends, batch_size):
        with acting, turn(base.model), evaluating(base.model), torch.no_grad():
            vectors = embeddings(base, [readings[place] for place in places], pooling).cpu()
        made |= dict(zip(places, vectors, strict=True))
    found = torch.stack([made[place] for place in range(len(texts))])
    if not bool(found.isfinite().all()):
        raise StudioError(
            "the model gave numbers that are not finite; open the base with another dtype (bfloat16, float32), or "
            "lower the adapters' strengths"
        )
    return found


def _read(base: LanguageBase, text: str) -> Reading:
    if not isinstance(text, str) or is_blank(text):
        raise BadConfig(f"{short(text)} has no vector: give a text that is not empty")
    read = read_texts(base, [text], base.context)
    if read.lost:
        raise DoesNotFit(
            f"the text {short(text)} has {len(read.tokens) + read.lost} tokens and {base.id} reads {base.context}; "
            "shorten it"
        )
    return read
