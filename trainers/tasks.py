"""The tasks on language bases, by name: what ``studio tune`` knows."""

from __future__ import annotations

from typing import Any, Final

from studio.registry import Registry
from studio.trainers.caption import Caption
from studio.trainers.causal_lm import CausalLM
from studio.trainers.classify import Classify
from studio.trainers.code import Code
from studio.trainers.embed import Embed
from studio.trainers.grpo import GRPO
from studio.trainers.preference import Preference
from studio.trainers.reward import Reward
from studio.trainers.seq2seq import Seq2Seq
from studio.trainers.speech import Speech
from studio.trainers.text_task import TextTask

__all__ = ["TEXT_TASKS"]

TEXT_TASKS: Final[Registry[type[TextTask[Any, Any]]]] = Registry("task")
"""Name -> the task."""

for _task in (Caption, CausalLM, Classify, Code, Embed, GRPO, Preference, Reward, Seq2Seq, Speech):
    TEXT_TASKS.add(_task.task_name, _task)
