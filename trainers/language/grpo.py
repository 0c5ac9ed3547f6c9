"""The lesson on answers that the model draws itself, learned by their rewards: GRPO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.datasets.chat import Sample
from studio.datasets.prompts import Prompt
from studio.errors import BadFile
from studio.families.language import LanguageBase
from studio.trainers.language.answers import log_chances, sums
from studio.trainers.language.lesson import MEASURED
from studio.trainers.language.policy_losses import advantages, grpo
from studio.trainers.language.reference import ReferenceLesson
from studio.trainers.language.rewards import Scores
from studio.trainers.language.texts import TokenRow, asked_text
from studio.trainers.loop.task import Loss, Say

__all__ = ["GRPOLesson", "PromptRow", "encode_prompt"]


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
