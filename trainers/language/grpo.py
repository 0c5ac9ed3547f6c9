"""The lesson on answers that the model draws itself, learned by their rewards: GRPO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studio.datasets.chat import Sample
from studio.datasets.prompts import Prompt
from studio.errors import BadFile, DoesNotFit
from studio.families.language import LanguageBase
from studio.trainers.language.answers import log_chances, sums
from studio.trainers.language.lesson import MEASURED
from studio.trainers.language.policy_losses import advantages, grpo
from studio.trainers.language.reference import ReferenceLesson
from studio.trainers.language.rehearsal import Stand
from studio.trainers.language.rewards import Scores
from studio.trainers.language.texts import TokenRow, asked_text
from studio.trainers.loop.mode import evaluating
from studio.trainers.loop.task import Loss, Say

__all__ = ["GRPOLesson", "PromptRow", "encode_prompt", "prompt_sizes", "prompt_tokens", "rehearsed_prompts"]


@dataclass(frozen=True)
class PromptRow:
    """A prompt as the model reads it.

    Args:
        sample: what it is of. text: the prompt, with a template's marks if it is a conversation. tokens: its numbers.
    """

    sample: Prompt
    text: str
    tokens: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its tokens."""
        return len(self.tokens)

    @property
    def counted(self) -> int:
        """1: each prompt can be answered."""
        return 1

    @property
    def lost(self) -> int:
        """Nothing: prompts are never cut."""
        return 0

    def ends(self, base: LanguageBase) -> bool:
        """The data holds no answer, so none has to end."""
        return True


def encode_prompt(sample: Prompt, base: LanguageBase, length: int, answer: int) -> PromptRow:
    """Turns a prompt into token numbers; it is never cut, for what is left would ask something else.

    Args:
        sample: the prompt. base: whose template and tokenizer it is. length: tokens of prompt and answer at most.
        answer: tokens of the answer at most.

    Raises:
        BadFile: the answer has no room behind it.
    """
    text = asked_text(sample.turns, sample.text, base, sample.line)
    tokens, _ = base.tokens(text, chat=bool(sample.turns))
    if len(tokens) + answer > length:
        raise BadFile(
            f"line {sample.line}: the prompt has {len(tokens)} tokens, and with {answer} of an answer that is more "
            f"than {length}: shorten it, lower max_new_tokens, or raise max_length"
        )
    return PromptRow(sample, text, tuple(tokens))


@dataclass(kw_only=True)
class GRPOLesson(ReferenceLesson[PromptRow]):
    r"""An opened task whose answers are drawn while it is trained.

    Drawn sample n is a prompt and a group of G answers to it, the j-th drawn with a seed that is made of the run's
    seed, n and j: a pure function of these and of the weights, whatever other prompts are drawn beside it. The loss of
    B groups is the mean over their B·G answers of the mean over each one's tokens of
    :func:`~studio.trainers.language.policy_losses.grpo`. Answers are drawn anew for every step, so π is the model that
    drew them: their ratio is 1, and clipping acts in the gradient of no step. A group whose rewards are all equal has
    nothing to learn from, and its advantages are 0.

    Args:
        scores: the rewards. group: G. beta: β. clip_ratio: ε. temperature: of the draws.
        max_new_tokens: tokens of an answer at most. answers: how many held-out prompts are answered and rewarded.
    """

    scores: Scores
    group: int
    beta: float
    clip_ratio: float
    temperature: float
    max_new_tokens: int
    answers: int

    @property
    def asks(self) -> bool:
        """There is nothing to ask of the reference before a step."""
        return False

    def remember(self, say: Say) -> None:
        """There is nothing to ask of the reference yet."""

    def loss(self, numbers: Sequence[int]) -> Loss:
        """Returns the loss of the groups ``numbers``, drawn with the weights as they are."""
        rows, groups = list[TokenRow](), list[Tensor]()
        for n, prompt in zip(numbers, self.drawn(numbers), strict=True):
            answers, rewards = self.drawn_group(n, prompt)
            rows += answers
            groups.append(rewards)
        rewards = torch.stack(groups)
        now, places = log_chances(self.model, rows, self.base.pad, self.temperature)
        with self.bare():
            reference, _ = log_chances(self.model, rows, self.base.pad, self.temperature)
        advantage = advantages(rewards).flatten().to(now.device)[places.nonzero()[:, 0]]
        found, off = grpo(now, now.detach(), reference, advantage, self.clip_ratio, self.beta)
        counts = places.sum(1)
        equal = (rewards == rewards[:, :1]).all(1).float().mean()
        parts = {
            "reward": rewards.mean(), "equal_rewards": equal, "kl": off.detach().mean(),
            "answer_tokens": counts.float().mean(),
        }  # fmt: skip
        return Loss((sums(found, places) / counts).mean(), parts)

    def drawn_group(self, n: int, prompt: PromptRow) -> tuple[list[TokenRow], Tensor]:
        """Returns the answers of drawn sample ``n``, and their rewards ``(G,)``."""
        seeds = [self.draws.generator(n, f"answer {place}").initial_seed() for place in range(self.group)]
        texts, rows = self._written([prompt] * self.group, self.temperature, seeds)
        return rows, torch.tensor(self.scores(prompt.sample, texts))

    def measured(self) -> dict[str, float]:
        """Returns figures of the likeliest answers to held-out prompts.

        Their mean reward, the mean KL divergence per token from the reference, and their mean number of tokens.
        """
        total, strayed, tokens, asked = 0.0, 0.0, 0, self.held_out[: self.answers]
        for begin in range(0, len(asked), MEASURED):
            prompts = asked[begin : begin + MEASURED]
            texts, rows = self._written(prompts, 0.0, [0] * len(prompts))
            total += sum(self.scores(one.sample, [text])[0] for one, text in zip(prompts, texts, strict=True))
            more, count = self.strayed(rows)
            strayed, tokens = strayed + more, tokens + count
        return {"reward": total / len(asked), "kl": strayed / tokens, "answer_tokens": tokens / len(asked)}

    def _written(
        self, prompts: Sequence[PromptRow], temperature: float, seeds: Sequence[int]
    ) -> tuple[list[str], list[TokenRow]]:  # fmt: skip
        """Writes an answer to each prompt; returns the texts, and the answers behind their prompts as numbers."""
        from studio.pipelines.write import write

        texts, rows = [""] * len(prompts), dict[int, TokenRow]()
        for chat in (True, False):
            places = [place for place, prompt in enumerate(prompts) if bool(prompt.sample.turns) is chat]
            made = write(
                self.base, [prompts[place].text for place in places], chat=chat, max_new_tokens=self.max_new_tokens,
                temperature=temperature, seed=[seeds[place] for place in places], batch_size=MEASURED,
            )  # fmt: skip
            for place, one in zip(places, made, strict=True):
                texts[place], before = one.text, prompts[place].tokens
                learned = (False,) * len(before) + (True,) * len(one.tokens)
                rows[place] = TokenRow(Sample(prompts[place].sample.line), (*before, *one.tokens), learned)
        return texts, [rows[place] for place in range(len(prompts))]


class _Rehearsed(GRPOLesson):
    """The lesson, but for what is drawn: of a drawing the two passes at which most is held, and the longest answers."""

    def _written(
        self, prompts: Sequence[PromptRow], temperature: float, seeds: Sequence[int]
    ) -> tuple[list[str], list[TokenRow]]:  # fmt: skip
        some = prompts[:MEASURED]
        with torch.no_grad(), evaluating([self.model]):
            made = self._passed((len(some), some[0].size), None, 0)
            cache, between = made.past_key_values, self.max_new_tokens - 2
            for place, layer in enumerate(cache.layers if between > 0 else ()):
                *rows, _, width = layer.keys.shape
                more = layer.keys.new_zeros((*rows, between, width))
                cache.update(more, more, place)
            if self.max_new_tokens > 1:
                made = self._passed((len(some), 1), cache, some[0].size + between)
            scores = made.logits[:, -1].float()
            (scores / temperature + torch.zeros_like(scores)).argmax(-1)
        said = [max(self.max_new_tokens - number % 2, 1) for number in range(len(prompts))]
        rows = [
            TokenRow(Sample(1), (1,) * (one.size + count), (False,) * one.size + (True,) * count)
            for one, count in zip(prompts, said, strict=True)
        ]
        return [""] * len(prompts), rows

    def _passed(self, shape: tuple[int, int], cache: Any, before: int) -> Any:
        return self.model(
            input_ids=torch.ones(shape, dtype=torch.int64), past_key_values=cache, use_cache=True, logits_to_keep=1,
            attention_mask=torch.ones(shape[0], before + shape[1], dtype=torch.int64),
        )  # fmt: skip


def rehearsed_prompts(stand: Stand) -> GRPOLesson:
    """Returns the lesson on prompts that say nothing, whose answers are as long as they may be.

    Args:
        stand: what it is rehearsed with; ``group`` and ``max_new_tokens`` are as of the task.

    Raises:
        DoesNotFit: nothing is left of the length for a prompt.
    """
    room = stand.length - stand.own["max_new_tokens"]
    if room < 1:
        raise DoesNotFit(
            f"length={stand.length}: answers have {stand.own['max_new_tokens']} tokens (max_new_tokens), and a prompt "
            "stands before them; give more"
        )
    return _Rehearsed(
        **stand.shared, **stand.own, samples=[PromptRow(Prompt(1), "", (1,) * room)], held_out=[], previews=[],
        preview_tokens=1, scores=lambda prompt, texts: [0.0] * len(texts), beta=0.04, clip_ratio=0.2, temperature=1.0,
        answers=0,
    )  # fmt: skip


def prompt_sizes(rows: Sequence[PromptRow], own: Mapping[str, Any]) -> dict[str, int]:
    """Returns the tokens of the longest prompt with an answer that is as long as it may be.

    Args:
        rows: at least one. own: the task's settings.
    """
    return {"length": max(row.size for row in rows) + int(own["max_new_tokens"])}


def prompt_tokens(base: LanguageBase, own: Mapping[str, Any]) -> int:
    """Returns the least tokens of a sample: one of a prompt, and those of an answer.

    Args:
        base: the base. own: the task's settings.
    """
    return int(own["max_new_tokens"]) + 1
