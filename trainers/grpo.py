"""Reinforcement learning: a causal language model learns from rewards for the answers that it draws itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from studio.config import finite
from studio.datasets.prompts import Prompt, prompt_of
from studio.datasets.samples import Form
from studio.errors import BadConfig, BadFile, DoesNotFit
from studio.families.language import LanguageBase
from studio.trainers.language.causal import Question
from studio.trainers.language.grpo import GRPOLesson, PromptRow, encode_prompt
from studio.trainers.language.questions import questions_of
from studio.trainers.language.reward_adapter import RewardAdapter
from studio.trainers.language.rewards import check_reward, each, function_of, is_file
from studio.trainers.language.rows import short
from studio.trainers.language.texts import system_of
from studio.trainers.loop.plan import Plan
from studio.trainers.loop.run import sha256
from studio.trainers.loop.task import AdapterLike, Lesson, Say
from studio.trainers.opening import adapter_file
from studio.trainers.text_task import Read, Shared, TextTask

__all__ = ["GRPO"]

SHOWN: Final = 4  # questions that previews ask where none are given


@dataclass(frozen=True, kw_only=True)
class GRPO(TextTask[Prompt, PromptRow]):
    """Teaches a causal language model by rewards for its own answers (group relative policy optimisation).

    Two facts suffice: ``base`` and ``data``, prompts with their right answers. :mod:`studio.datasets.prompts` has the
    forms of a record, :mod:`studio.trainers.language.policy_losses` the formulas. A step draws ``group`` answers to
    each of its prompts; what is better than its group becomes likelier. The reference is the base without the adapter.
    :class:`~studio.trainers.text_task.TextTask` has the other settings.

    Attributes:
        reward: ``"exact"`` (the right answer), ``"length:WORDS"``, ``"regex:PATTERN"``; a function ``(prompt,
            completion, answer) -> number``, or where one is: ``"module:function"``; or the file of an adapter that
            :class:`~studio.trainers.Reward` has trained on the same base.
        group: answers to a prompt, G.
        beta: β, how much the divergence from the reference costs.
        clip_ratio: ε, how far a step's ratio may go.
        temperature: of the draws.
        max_new_tokens: tokens of an answer at most.
        answers: how many held-out prompts are answered and rewarded when it measures.
        preview_prompts: what previews ask; None: the first few held-out prompts, or those of the data.

    Raises:
        BadConfig: a field with an impossible value.

    Example:
        >>> GRPO(base="facts", data="questions.jsonl", reward="length:1").group
        8
    """

    task_name: ClassVar[str] = "grpo"
    kind: ClassVar[str] = "causal-lm"
    least: ClassVar[Mapping[str, int]] = {"group": 2, "max_new_tokens": 1, "answers": 1}

    reward: Any = "exact"
    group: int = 8
    beta: float = 0.04
    clip_ratio: float = 0.2
    temperature: float = 1.0
    max_new_tokens: int = 32
    answers: int = 200
    preview_prompts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_reward(self.reward)
        for name, sound in (
            ("beta", finite(self.beta) and self.beta >= 0), ("clip_ratio", 0 < self.clip_ratio < 1),
            ("temperature", finite(self.temperature) and self.temperature > 0),
        ):  # fmt: skip
            if not sound:
                wanted = {"beta": "0 or more", "clip_ratio": "between 0 and 1", "temperature": "above 0"}[name]
                raise BadConfig(f"{name}={getattr(self, name)!r}: {name} must be {wanted}")

    @property
    def form(self) -> Form[Prompt]:
        return prompt_of

    def look(self) -> Read[Prompt]:
        """Reads the prompts; a reward that compares needs what to compare with.

        Raises:
            BadFile: as :meth:`TextTask.look`, or a prompt without its right answer.
        """
        read, named = super().look(), check_reward(self.reward)
        lone = next((one for one in (*read.found.items, *read.kept) if one.answer is None), None)
        if named is not None and named.answer and lone is not None:
            raise BadFile(
                f"line {lone.line}: the reward {self.reward!r} compares with the right answer, and the prompt has "
                "none: give its answer, or another reward"
            )
        return read

    def encode(self, sample: Prompt, base: LanguageBase, length: int) -> PromptRow:
        return encode_prompt(sample, base, length, self.max_new_tokens)

    def example(self, row: PromptRow, base: LanguageBase) -> str:
        return f"{base.begins(row.text)}{row.text}⟦{self.group} answers of its own⟧"

    def call(self, sample: Prompt) -> Sequence[str]:
        return "complete", "BASE", short(sample.asked)

    def open(self, adapter: AdapterLike, plan: Plan, say: Say) -> Lesson:
        """See :meth:`studio.trainers.Task.open`.

        Raises:
            DoesNotFit: the base would be divided among processes. UsageError: whatever else is wrong.
        """
        if plan.sharding in ("full", "zero3"):
            raise DoesNotFit(
                f"sharding={plan.sharding!r} divides the base, and every process draws answers of its own with it: use "
                "sharding='none'"
            )
        return super().open(adapter, plan, say)

    def unforeseen(self) -> str:
        """A reward that is a model stands beside the one that is trained, on a base of its own."""
        return (
            "a reward that is a model itself (its file is opened on a base of its own)" if is_file(self.reward) else ""
        )

    def lesson(self, shared: Shared, rows: Sequence[PromptRow], held_out: Sequence[PromptRow]) -> GRPOLesson:
        base = shared["base"]
        if is_file(self.reward):
            file = adapter_file(self.reward)
            scores: Any = RewardAdapter(file, self.base, base, self.quantize)
            shared["inputs"] = {**shared["inputs"], "reward": sha256(file)}
        else:
            scores = each(*function_of(self.reward))
        return GRPOLesson(
            **shared, samples=rows, held_out=held_out, previews=self._previews(base, held_out or rows),
            preview_tokens=self.max_new_tokens, scores=scores, group=self.group, beta=self.beta,
            clip_ratio=self.clip_ratio, temperature=self.temperature, max_new_tokens=self.max_new_tokens,
            answers=self.answers,
        )  # fmt: skip

    def settings(self, rows: Sequence[PromptRow], base: LanguageBase) -> Mapping[str, Any]:
        own = ("group", "beta", "clip_ratio", "temperature", "max_new_tokens")
        return {"reward": self._named_reward, **{name: getattr(self, name) for name in own}}

    def origin(self, rows: Sequence[PromptRow], base: LanguageBase) -> Mapping[str, str]:
        system = system_of([row.sample for row in rows])
        form = "chat" if any(row.sample.turns for row in rows) else "text"
        return {"form": form, **({"system": system} if system else {})}

    @property
    def _named_reward(self) -> str:
        return str(self.reward) if is_file(self.reward) else function_of(self.reward)[0]

    def _previews(self, base: LanguageBase, rows: Sequence[PromptRow]) -> list[Question]:
        chat = bool(rows[0].sample.turns)
        if self.preview_prompts is not None:
            system = system_of([row.sample for row in rows])
            return questions_of(self.preview_prompts, base, chat=chat, system=system)
        return [Question(row.text, bool(row.sample.turns), _caption(row.sample)) for row in rows[:SHOWN]]


def _caption(sample: Prompt) -> str:
    return short(sample.asked) + ("" if sample.answer is None else f" (wanted: {short(sample.answer)})")
