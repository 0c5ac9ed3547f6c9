"""The one path for texts: prompts in, completions out, greedy or drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import studio.adapters as core
from studio.adapters.hosting.turns import turn
from studio.adapters.tokens.contract import TokenConfig
from studio.config import finite, own_number, whole_from_one
from studio.errors import BadConfig, DoesNotFit
from studio.families.language import LanguageBase
from studio.pipelines.generating import Written, generated, passes

__all__ = ["Gumbel", "Written", "evaluating", "virtual_tokens", "write"]


def write(
    base: LanguageBase,
    prompts: Sequence[str],
    *,
    chat: bool,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    batch_size: int = 16,
    tell: Callable[[str], None] | None = None,
) -> list[Written]:
    """Completes texts with the blend that is on.

    Args:
        base: whose model writes; it is in evaluation mode meanwhile.
        prompts: texts as the model reads them, a template's marks included.
        chat: whether they have a template's marks (else the tokenizer's beginning token is put first).
        max_new_tokens: tokens to write at most, >= 1; fewer where the context ends.
        temperature: 0 takes the likeliest token; above, Gumbel noise makes the likeliest one a draw from the softmax.
        seed: of the noise, for every prompt anew; or one for each of the prompts.
        batch_size: prompts that are completed together.
        tell: of a single prompt, takes each piece of the text as soon as it stands.

    Returns:
        What was written, for every prompt.

    Raises:
        BadConfig: an impossible number.
        DoesNotFit: a prompt that leaves no room in the context.
        StudioError: the model gave no finite numbers.
    """
    max_new_tokens = whole_from_one("max_new_tokens", max_new_tokens)
    batch_size, temperature = whole_from_one("batch_size", batch_size), own_number(temperature)
    seeds = [own_number(one) for one in seed] if isinstance(seed, (list, tuple)) else [own_number(seed)] * len(prompts)
    if tell is not None and len(prompts) != 1:
        raise BadConfig(f"{len(prompts)} prompts would be told at once, one piece of each in turn: give one prompt")
    if len(seeds) != len(prompts):
        raise BadConfig(f"there are {len(seeds)} seeds for {len(prompts)} prompts; give one for each")
    for name, value, sound, wanted in (
        *(("seed", one, _seed(one), "a whole number from 0 to 2**63 - 1") for one in dict.fromkeys(seeds)),
        ("temperature", temperature, finite(temperature) and temperature >= 0, "a finite number from 0 on"),
    ):
        if not sound:
            raise BadConfig(f"{name}={value!r} must be {wanted}")
    apart = bool(base.model.config.is_encoder_decoder)  # what is read is not what is gone on from
    rows = [base.reads(text) if apart else base.tokens(text, chat=chat)[0] for text in prompts]
    room = base.context - virtual_tokens(base.model)
    for text, row in zip(prompts, rows, strict=True):
        _check_room(base, text, row, room + apart)
    most_of = [min(max_new_tokens, room - 1 if apart else room - len(row)) for row in rows]
    made: dict[int, Written] = {}
    with turn(base.model), evaluating(base.model):
        for most, places in passes(most_of, batch_size):
            some, noise = [rows[place] for place in places], [seeds[place] for place in places]
            made |= dict(zip(places, _batch(base, some, most, temperature, noise, tell), strict=True))
    return [made[place] for place in range(len(rows))]


def _check_room(base: LanguageBase, text: str, row: Sequence[int], most: int) -> None:
    """Checks that something stands there to go on from, and that there is room behind it."""
    if not row:
        raise BadConfig(f"the prompt {text!r} has no token; write something to go on from")
    if len(row) >= most:
        virtual = virtual_tokens(base.model)
        before = f" after {virtual} virtual ones" if virtual else ""
        raise DoesNotFit(
            f"the prompt {_short(text)} has {len(row)} tokens and {base.id} reads {base.context - virtual}{before}: "
            "nothing can be written behind it; shorten it"
        )


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """While it lasts, a model is in evaluation mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _batch(
    base: LanguageBase, rows: Sequence[Sequence[int]], most: int, temperature: float, seeds: Sequence[int],
    tell: Callable[[str], None] | None,
) -> Iterator[Written]:  # fmt: skip
    apart = bool(base.model.config.is_encoder_decoder)
    length, pad = max(map(len, rows)), base.pad
    # what is gone on from ends where the new tokens begin; what an encoder reads begins at its first position
    tokens = torch.tensor([_filled(row, [pad] * (length - len(row)), apart) for row in rows], device=base.model.device)
    mask = torch.tensor(
        [_filled([1] * len(row), [0] * (length - len(row)), apart) for row in rows], device=tokens.device
    )
    begin = 1 if apart else length
    yield from generated(
        base, {"inputs": tokens, "attention_mask": mask}, begin=begin, most=most,
        processors=[Gumbel(temperature, seeds)] if temperature else [],
        streamer=None if tell is None else _Spoken(base, tell, begin),
    )  # fmt: skip


def _filled(row: Sequence[int], filling: Sequence[int], right: bool) -> list[int]:
    return [*row, *filling] if right else [*filling, *row]


class _Spoken:
    """Tells a text piece by piece while it is written: what stands up to the last whole character."""

    def __init__(self, base: LanguageBase, tell: Callable[[str], None], given: int) -> None:
        self.base, self.tell, self.given = base, tell, given
        self.tokens: list[int] = []
        self.told = ""

    def put(self, tokens: Tensor) -> None:
        """Takes the next tokens; the first ones are those that are gone on from."""
        numbers = tokens.reshape(-1).tolist()
        skipped = min(self.given, len(numbers))
        self.given -= skipped
        self.tokens += [number for number in numbers[skipped:] if number not in self.base.ends]
        self._say(self._text().rstrip().rstrip("\N{REPLACEMENT CHARACTER}"))  # half a character, or blanks at the end

    def end(self) -> None:
        """Tells what was held back."""
        self._say(self._text().rstrip())

    def _text(self) -> str:
        text = self.base.tokenizer.decode(self.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).lstrip()

    def _say(self, whole: str) -> None:
        if len(whole) > len(self.told):
            self.tell(whole[len(self.told) :])
            self.told = whole


def _seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


class Gumbel:
    """Adds Gumbel noise to logits, so that their maximum is a draw from ``softmax(logits / temperature)``.

    Every row has the noise of its own seed: what is drawn for a prompt does not depend on its neighbours.

    Args:
        temperature: above 0.
        seeds: one for each of the rows; equal ones draw equal noise.

    References:
        | A* Sampling (Maddison, Tarlow & Minka, 2014), arXiv:1411.0030
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self.temperature = temperature
        self.places = [list(dict.fromkeys(seeds)).index(seed) for seed in seeds]
        self.generators = [torch.Generator().manual_seed(seed) for seed in dict.fromkeys(seeds)]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns ``scores / temperature - log(-log(u))``, ``(B, V)``.

        Args:
            input_ids: the tokens so far, int64 ``(B, T)``.
            scores: the logits of the next, ``(B, V)``.
        """
        drawn = [torch.rand(scores.shape[-1], generator=one, dtype=torch.float64) for one in self.generators]
        chance = torch.stack([drawn[place] for place in self.places])
        noise = -(-chance.clamp_min(1e-300).log()).clamp_min(1e-300).log()
        return scores / self.temperature + noise.to(scores.device, scores.dtype)


def virtual_tokens(model: Any) -> int:
    """Returns how many virtual tokens stand before a text at most.

    Args:
        model: the model, under the blend that is on.
    """
    acting = [info.config for info in core.adapters(model).values() if info.strength != 0.0]
    return sum(config.tokens for config in acting if isinstance(config, TokenConfig))


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
