"""What a vision-language model sees: a picture and a question as its processor makes numbers of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from studio.errors import DoesNotFit
from studio.families.language.base import LanguageBase

__all__ = ["asked", "beside_text", "check_sees", "joined", "looked_at"]

Turns = Sequence[tuple[str, str]]
"""Role and content of each turn before an answer, the user's first one about the picture."""


def check_sees(base: LanguageBase) -> None:
    """Checks that a base is a vision-language model.

    Raises:
        DoesNotFit: it is something else.
    """
    if base.kind.name != "vision":
        raise DoesNotFit(f"{base.id} is {base.kind.one}, which sees nothing: give a vision-language model (figures)")


def beside_text(base: LanguageBase) -> tuple[str, ...]:
    """Returns patterns of the layers that are no part of the text decoder: the vision tower and what leads from it."""
    decoder = base.model.get_decoder()
    path = next((name for name, module in base.model.named_modules() if module is decoder), "")
    if not path:
        return ()
    holder = path.rpartition(".")[0]
    around = base.model.get_submodule(holder) if holder else base.model
    beside = [name for name, module in around.named_children() if module is not decoder and list(module.parameters())]
    outer = f"{holder}." if holder else ""
    return tuple(f"{outer}{name}.*" for name in beside if f"{outer}{name}" != "lm_head")


def asked(base: LanguageBase, turns: Turns) -> str:
    """Returns what stands before an answer, with the picture's mark, as the base was trained to read it.

    Through the chat template where the base has one; else the mark and each turn in a line of its own.

    Args:
        base: the base. turns: the conversation before the answer.

    Raises:
        DoesNotFit: a turn holds the picture's mark itself, or the template refuses the conversation or leaves the
            picture out.
    """
    mark, template = str(base.processor.image_token), base.processor.chat_template or base.tokenizer.chat_template
    if any(mark in text for _, text in turns):
        raise DoesNotFit(f"a turn holds {mark!r}, which stands for the picture; take it out")
    if not template:
        return "".join(f"{line}\n" for line in (mark, *(text for _, text in turns if text)))
    messages: list[dict[str, Any]] = [
        {"role": role, "content": [{"type": "text", "text": text}] if text else []} for role, text in turns
    ]
    first = next((message for message in messages if message["role"] == "user"), None)
    if first is not None:
        first["content"].insert(0, {"type": "image"})
    try:
        text = str(
            base.tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        )
    except Exception as problem:  # a template raises jinja's errors or whatever it likes
        raise DoesNotFit(f"the chat template of {base.id} refuses the conversation: {problem}") from problem
    if text.count(mark) != 1:
        raise DoesNotFit(f"the chat template of {base.id} writes no {mark!r} for a picture: its questions show none")
    return text


def looked_at(base: LanguageBase, picture: Image.Image, text: str) -> dict[str, Tensor]:
    """Returns what the model reads of a picture and what is asked of it.

    Args:
        base: the base. picture: of mode RGB. text: what :func:`asked` returns.

    Returns:
        ``input_ids``, int64 ``(1, T)``; the pixels, and whatever else its processor gives, by argument of the model.
    """
    made = base.processor(
        text=[base.begins(text) + text], images=[picture], add_special_tokens=False, return_tensors="pt"
    )  # fmt: skip
    return {name: made[name] for name in made if name != "attention_mask"}


def joined(
    base: LanguageBase, seen: Sequence[Mapping[str, Tensor]], behind: Sequence[Sequence[int]], *, left: bool
) -> dict[str, Tensor]:  # fmt: skip
    """Puts pictures with their questions, and what stands behind each, into one batch.

    What has a number for every token is filled up; of all else (pixels, sizes) the rows of one picture follow those of
    the other.

    Args:
        base: the base, on whose device and in whose type they are.
        seen: what :func:`looked_at` returned, of B pictures. behind: tokens behind each question.
        left: fill up on the left, where tokens will be written behind.

    Returns:
        Arguments of the model; ``input_ids`` and ``attention_mask`` are int64 ``(B, T)``.
    """
    sizes = [one["input_ids"].shape[1] + len(tokens) for one, tokens in zip(seen, behind, strict=True)]
    device, longest = base.model.device, max(sizes)

    def filled(rows: Sequence[Tensor], fill: int) -> Tensor:
        made = torch.full((len(rows), longest), fill)
        for place, row in enumerate(rows):
            made[place, slice(longest - len(row), None) if left else slice(len(row))] = row
        return made.to(device)

    tokens = [torch.cat([one["input_ids"][0], torch.tensor(list(more), dtype=torch.int64)])
              for one, more in zip(seen, behind, strict=True)]  # fmt: skip
    batch = {"input_ids": filled(tokens, base.pad), "attention_mask": filled([torch.ones_like(t) for t in tokens], 0)}
    for name in seen[0]:
        if name not in batch and seen[0][name].shape == seen[0]["input_ids"].shape:
            rows = [torch.cat([one[name][0], torch.zeros(len(more), dtype=torch.int64)])
                    for one, more in zip(seen, behind, strict=True)]  # fmt: skip
            batch[name] = filled(rows, 0)
        elif name not in batch:
            rest = torch.cat([one[name] for one in seen])
            batch[name] = rest.to(device, base.model.dtype if rest.is_floating_point() else None)
    return batch
