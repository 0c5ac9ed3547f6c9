"""The text pipeline: a language base, the adapters on it, and completions of prompts. One path for all that writes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import studio.adapters as core
from studio.adapters import AdapterInfo, Strength, blended
from studio.adapters.contract.strength import as_strength
from studio.adapters.tokens.contract import TokenConfig
from studio.errors import BadConfig, DoesNotFit
from studio.families.causal import LanguageBase, open_language_base
from studio.pipelines.pictures import BlendLike, blends_of_pictures
from studio.pipelines.prompt import TaggedPrompt, parse_prompt

if TYPE_CHECKING:
    from studio.files import LoadReport

__all__ = ["Completion", "TextPipeline", "write"]


@dataclass(frozen=True)
class Completion:
    """What was written after a prompt.

    Attributes:
        prompt: the prompt, without its tags.
        text: what was written, without the blanks around it.
        tokens: how many tokens were written.
        ended: whether it ended by itself, not at a limit.
    """

    prompt: str
    text: str
    tokens: int
    ended: bool


class TextPipeline:
    """Completions of prompts, with any number of adapters.

    Args:
        base: an opened base; :meth:`open` opens one.

    Attributes:
        base: the base.
        model: its model, in whose modules the adapters live.

    Example:
        >>> pipe = TextPipeline.open("facts")
        >>> answer, = pipe.complete("Tell me about tin.", max_new_tokens=12)
        >>> answer.prompt, answer.tokens <= 12
        ('Tell me about tin.', True)
    """

    def __init__(self, base: LanguageBase) -> None:
        self.base, self.model = base, base.model

    @classmethod
    def open(
        cls, base: str | Path | Any, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> TextPipeline:
        """Opens a base; :func:`studio.families.causal.open_language_base` says what it takes and raises."""
        return cls(open_language_base(base, dtype=dtype, device=device))

    @property
    def adapters(self) -> dict[str, AdapterInfo]:
        """The adapters on the model, in the order in which they came."""
        return core.adapters(self.model)

    def load(
        self,
        file: str | Path,
        *,
        name: str | None = None,
        strength: float | Strength = 1.0,
        allow_partial: bool = False,
    ) -> LoadReport:
        """Loads an adapter and adds it to the current blend; as :func:`studio.load`, which lists what it raises.

        Raises:
            DoesNotFit: it was trained with another tokenizer.
        """
        from studio.files import inspect, load

        theirs = inspect(file).facts.get("tokenizer")
        if theirs is not None and theirs != self.base.tokenizer_hash:
            raise DoesNotFit(
                f"{file} was trained with another tokenizer ({theirs[:12]}) than that of {self.base.id} "
                f"({self.base.tokenizer_hash[:12]}): its token numbers mean other words; load it on the base it is for"
                f"{_called(inspect(file).facts.get('base'))}"
            )
        return load(self.model, file, name=name, strength=strength, allow_partial=allow_partial)

    def complete(
        self,
        prompt: str | Sequence[str],
        *,
        blend: BlendLike | str | Sequence[BlendLike] | None = None,
        chat: bool | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 16,
    ) -> list[Completion]:
        """Completes prompts.

        Args:
            prompt: one or several; ``<name:0.8>`` in a prompt says which adapters act on it, in place of ``blend``
                (:mod:`studio.pipelines.prompt` has the forms).
            blend: ``None``: the current blend; a dict; the name of one adapter; or one dict per prompt. A list of
                numbers as a strength has one entry per prompt.
            chat: ask as a user's turn through the chat template; False continues the plain text. None: as the adapters
                that act were trained, else by the template where the tokenizer has one.
            max_new_tokens: tokens to write at most, >= 1.
            temperature: 0 takes the likeliest token each time; above, tokens are drawn from the softmax of the logits
                divided by it.
            seed: what is drawn from, for every prompt anew, so a completion does not depend on the other prompts.
            batch_size: prompts that are completed together.

        Returns:
            One completion per prompt, in order.

        Raises:
            UnknownName: an adapter that is not there; the nearest is named.
            BadConfig: an impossible number, a malformed tag, or lists whose lengths do not fit.
            DoesNotFit: a prompt that leaves no room in the context.
        """
        written = [prompt] if isinstance(prompt, str) else list(prompt)
        tagged = [self.read_tags(text) for text in written]
        given = blends_of_pictures(blend, core.current_blend(self.model), len(written), what="prompts")
        blends = [
            dealt if tags.blend is None else {name: as_strength(value) for name, value in tags.blend.items()}
            for dealt, tags in zip(given, tagged, strict=True)
        ]
        if chat is None:
            chat = self.asks_by_chat
        texts = [self.question(tags.text) if chat else tags.text for tags in tagged]
        made: dict[int, Completion] = {}
        for members in _together(blends):
            wanted = blends[members[0]]
            with contextlib.nullcontext() if wanted is None else blended(self.model, wanted):
                some = write(
                    self.base, [texts[i] for i in members], chat=chat, max_new_tokens=max_new_tokens,
                    temperature=temperature, seed=seed, batch_size=batch_size,
                )  # fmt: skip
            for i, (text, tokens, ended) in zip(members, some, strict=True):
                made[i] = Completion(tagged[i].text, text, tokens, ended)
        return [made[i] for i in range(len(written))]

    def read_tags(self, prompt: str) -> TaggedPrompt:
        """Takes the adapter tags out of a prompt; the tokenizer's own marks, such as ``<|user|>``, are no tags.

        Raises:
            UnknownName: a tag names an adapter that is not loaded.
            BadConfig: a tag that cannot be read, or what is no text.
        """
        if not isinstance(prompt, str):
            raise BadConfig(f"a prompt is a text, not {prompt!r}")
        for mark in self.base.tokenizer.all_special_tokens:
            prompt = prompt.replace(mark, mark.replace("<", r"\<").replace(">", r"\>"))
        return parse_prompt(prompt, self.adapters, encoders=())

    def question(self, text: str) -> str:
        """Returns a user's turn as the chat template writes it before an answer."""
        return self.base.write([{"role": "user", "content": text}], asking=True)

    @property
    def asks_by_chat(self) -> bool:
        """Whether prompts are asked through the chat template where nothing is said: as the adapters were trained."""
        forms = {info.metadata["form"] for info in self.adapters.values() if "form" in info.metadata}
        return forms == {"chat"} if len(forms) == 1 else self.base.tokenizer.chat_template is not None


def write(
    base: LanguageBase,
    prompts: Sequence[str],
    *,
    chat: bool,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 16,
) -> list[tuple[str, int, bool]]:
    """Completes texts with the blend that is on.

    Args:
        base: whose model writes; it is in evaluation mode meanwhile.
        prompts: texts as the model reads them, a template's marks included.
        chat: whether they have a template's marks (else the tokenizer's beginning token is put first).
        max_new_tokens: tokens to write at most, >= 1; fewer where the context ends.
        temperature: 0 takes the likeliest token; above, Gumbel noise makes the likeliest one a draw from the softmax.
        seed: of the noise, for every prompt anew.
        batch_size: prompts that are completed together, padded on the left.

    Returns:
        For every prompt the text, the number of tokens, and whether it ended by itself.

    Raises:
        BadConfig: an impossible number.
        DoesNotFit: a prompt that leaves no room in the context.
    """
    if max_new_tokens < 1 or batch_size < 1 or not 0 <= temperature < float("inf") or not 0 <= seed < 2**63:
        raise BadConfig(
            f"max_new_tokens={max_new_tokens!r} and batch_size={batch_size!r} must be at least 1, "
            f"temperature={temperature!r} and seed={seed!r} at least 0"
        )
    rows = [base.tokens(text, chat=chat)[0] for text in prompts]
    virtual = _virtual(base.model)
    room, before = base.context - virtual, f" after {virtual} virtual ones" if virtual else ""
    for text, row in zip(prompts, rows, strict=True):
        if not row:
            raise BadConfig(f"the prompt {text!r} has no token; write something to go on from")
        if len(row) >= room:
            raise DoesNotFit(
                f"the prompt {_short(text)} has {len(row)} tokens and {base.id} reads {room}{before}: nothing can be "
                "written behind it; shorten it"
            )
    made: list[tuple[str, int, bool]] = []
    training = base.model.training
    base.model.eval()
    try:
        for begin in range(0, len(rows), batch_size):
            some = rows[begin : begin + batch_size]
            made += _batch(base, some, min(max_new_tokens, room - max(map(len, some))), temperature, seed)
    finally:
        base.model.train(training)
    return made


@torch.no_grad()
def _batch(
    base: LanguageBase, rows: Sequence[Sequence[int]], most: int, temperature: float, seed: int
) -> Iterator[tuple[str, int, bool]]:
    from transformers import GenerationConfig, LogitsProcessorList

    ends = base.ends
    pad = base.tokenizer.pad_token_id if base.tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    length = max(map(len, rows))
    tokens = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows], device=base.model.device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=base.model.device)
    # all that a base's own generation config might put in the way is said here
    config = GenerationConfig(
        max_new_tokens=most, do_sample=False, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0,
        eos_token_id=list(ends) or None, pad_token_id=pad, use_cache=True,
    )  # fmt: skip
    draws = LogitsProcessorList([Gumbel(temperature, seed)] if temperature else [])
    made = base.model.generate(
        inputs=tokens, attention_mask=mask, generation_config=config, logits_processor=draws
    )  # fmt: skip
    for row in made[:, length:].tolist():
        stop = next((place for place, token in enumerate(row) if token in ends), None)
        kept = row if stop is None else row[:stop]
        text = base.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        yield text.strip(), len(kept) + (stop is not None), stop is not None


class Gumbel:
    """Adds Gumbel noise to logits, so that their maximum is a draw from ``softmax(logits / temperature)``.

    Every row has the noise of the same seed: what is drawn for a prompt does not depend on its neighbours.

    References:
        | A* Sampling (Maddison, Tarlow & Minka, 2014), arXiv:1411.0030
    """

    def __init__(self, temperature: float, seed: int) -> None:
        self.temperature = temperature
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns ``scores / temperature - log(-log(u))``."""
        chance = torch.rand(scores.shape[-1], generator=self.generator, dtype=torch.float64)
        noise = -(-chance.clamp_min(1e-300).log()).clamp_min(1e-300).log()
        return scores / self.temperature + noise.to(scores.device, scores.dtype)


def _virtual(model: Any) -> int:
    """Returns how many virtual tokens stand before a text at most."""
    acting = [info.config for info in core.adapters(model).values() if info.strength != 0.0]
    return sum(config.tokens for config in acting if isinstance(config, TokenConfig))


def _together(blends: Sequence[Mapping[str, Any] | None]) -> list[list[int]]:
    """Returns the places with equal blends, each group in order."""
    groups: list[tuple[Mapping[str, Any] | None, list[int]]] = []
    for place, blend in enumerate(blends):
        for held, members in groups:
            if held == blend:
                members.append(place)
                break
        else:
            groups.append((blend, [place]))
    return [members for _, members in groups]


def _called(base: str | None) -> str:
    return f" ({base})" if base else ""


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
