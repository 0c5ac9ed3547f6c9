r"""Packing: the samples of a batch stand one behind the other in few rows, and none attends to another.

It is a layout and no other training: the same samples are drawn, the loss is the same sum over the same tokens, and the
gradients are the same up to rounding; what is saved is the filling of short samples up to the longest. A sample's
positions begin at 0, and it is by them that transformers keeps attention inside of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from studio.errors import DoesNotFit
from studio.families.language import LanguageBase
from studio.trainers.language.texts import IGNORED, TokenRow

__all__ = ["check_packs", "packed"]

ROUNDING: Final = 300  # machine epsilons of the largest logit, by which packed and single samples may differ


def packed(
    rows: Sequence[TokenRow], pad: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Lays samples out, each in the first row that has room for it.

    Args:
        rows: the samples. pad: the token that fills rows up; filling is a sequence of its own and counts nowhere.
        length: tokens of a row at most, at least those of the longest sample. device: where to.

    Returns:
        Token numbers, positions and labels, each ``(R, T)``, int64; labels that do not count are
        :data:`~studio.trainers.language.texts.IGNORED`, and so is the first of each sample, which nothing foretells.
    """
    shelves: list[list[TokenRow]] = []
    for row in rows:
        fitting = (shelf for shelf in shelves if sum(one.size for one in shelf) + row.size <= length)
        shelf = next(fitting, None)
        if shelf is None:
            shelves.append([row])
        else:
            shelf.append(row)
    width = max(sum(one.size for one in shelf) for shelf in shelves)
    tokens, labels = torch.full((len(shelves), width), pad), torch.full((len(shelves), width), IGNORED)
    positions = torch.zeros(len(shelves), width, dtype=torch.int64)
    for index, shelf in enumerate(shelves):
        begin = 0
        for row in shelf:
            end, numbers = begin + row.size, torch.tensor(row.tokens)
            tokens[index, begin:end], positions[index, begin:end] = numbers, torch.arange(row.size)
            learned = torch.tensor([False, *row.learned[1:]])
            labels[index, begin:end] = torch.where(learned, numbers, IGNORED)
            begin = end
        positions[index, begin:] = torch.arange(width - begin)
    return tokens.to(device), positions.to(device), labels.to(device)


@torch.no_grad()
def check_packs(base: LanguageBase, rows: Sequence[TokenRow]) -> None:
    """Checks that a model keeps packed samples apart, by its own numbers.

    Args:
        base: the base. rows: at least one sample; the first two are tried.

    Raises:
        DoesNotFit: one behind another is not what it is alone.
    """
    device = base.model.device
    some = [rows[0], rows[min(1, len(rows) - 1)]]
    tokens, positions, _ = packed(some, base.pad, sum(row.size for row in some), device)
    others = tokens.clone()
    others[:, : some[0].size] = tokens[:, : some[0].size].flip(1).roll(1, 1)
    training = base.model.training
    base.model.eval()
    try:
        alone = _logits(base.model, torch.tensor([some[1].tokens], device=device))[0]
        behind, behind_others = (
            _logits(base.model, packed_tokens, position_ids=positions)[0, some[0].size :]
            for packed_tokens in (tokens, others)
        )
    finally:
        base.model.train(training)
    # what stands before must not matter, in any number format; alone, products are summed in another order
    away = float((behind - behind_others).abs().max()), float((behind - alone).abs().max())
    largest = float(alone.abs().max())
    mixed = away[0] > 8 * torch.finfo(torch.float32).eps * largest
    if mixed or not away[1] < ROUNDING * torch.finfo(base.model.dtype).eps * largest:
        raise DoesNotFit(
            f"packing: {base.id} reads a sample otherwise behind another one than alone (its logits move by "
            f"{max(away):.2g}), so samples would mix; leave packing out"
        )


def _logits(model: Any, tokens: Tensor, **more: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=tokens, use_cache=False, **more).logits
    return logits.float()
