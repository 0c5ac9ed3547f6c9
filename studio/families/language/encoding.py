"""What an encoder of texts makes of them: one vector each, of length 1, so that a product is a cosine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.errors import BadConfig, DoesNotFit
from studio.families.language.base import LanguageBase
from studio.families.language.judging import Reading, model_inputs

__all__ = ["POOLINGS", "check_encodes", "embeddings"]


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    kept = mask[..., None].to(states.dtype)
    return (states * kept).sum(1) / kept.sum(1)


def _first(states: Tensor, mask: Tensor) -> Tensor:
    return states[:, 0]


def _last(states: Tensor, mask: Tensor) -> Tensor:
    return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]


POOLINGS: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {"mean": _mean, "cls": _first, "last": _last}
"""Name -> what makes a text's vector ``(B, D)`` of the states of its tokens ``(B, T, D)``, filled up on the right, and
their mask ``(B, T)``: the mean of all of them, the state of the [CLS] mark, or that of the last token."""


def check_encodes(base: LanguageBase, pooling: str) -> None:
    """Checks that a base makes vectors of texts in that way.

    Args:
        base: the base. pooling: a name of :data:`POOLINGS`.

    Raises:
        BadConfig: there is no such pooling. DoesNotFit: it was opened as something else, it reads and writes in two
            parts, or has no [CLS].
    """
    if pooling not in tuple(POOLINGS):
        raise BadConfig(f"pooling={pooling!r}: give one of {', '.join(POOLINGS)}")
    if base.kind.name != "encoder":
        raise DoesNotFit(
            f"{base.id} was opened as {base.kind.one}, which gives no vectors of texts: open it with kind='encoder'"
        )
    if base.model.config.is_encoder_decoder:
        raise DoesNotFit(
            f"{base.id} is a model of two parts, one that reads and one that writes; take one that has a single part "
            "(BERT, Llama and their kin)"
        )
    if pooling == "cls" and base.tokenizer.cls_token_id is None:
        raise DoesNotFit(f"pooling='cls': the tokenizer of {base.id} has no [CLS] mark; take 'mean' or 'last'")


def embeddings(base: LanguageBase, readings: Sequence[Reading], pooling: str) -> Tensor:
    """Returns a vector of length 1 for each text, fp32 ``(B, D)``.

    Args:
        base: an encoder of texts. readings: B of them. pooling: a name of :data:`POOLINGS`.
    """
    given = model_inputs(base, readings)
    states = base.model(**given).last_hidden_state.float()
    return F.normalize(POOLINGS[pooling](states, given["attention_mask"]), dim=-1)
