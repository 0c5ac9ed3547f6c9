"""Training: one loop, and one file per thing that can be trained.

Example:
    >>> from studio.trainers import DreamBooth
    >>> DreamBooth(base="emoji", instance_images="photos", instance_prompt="a photo of sks dog").task_name
    'dreambooth'
"""

from __future__ import annotations

from studio.trainers.caption import Caption
from studio.trainers.causal_lm import CausalLM
from studio.trainers.classify import Classify
from studio.trainers.code import Code
from studio.trainers.dreambooth import DreamBooth
from studio.trainers.embed import Embed
from studio.trainers.grpo import GRPO
from studio.trainers.loop.guard import NotFinite
from studio.trainers.loop.plan import Plan
from studio.trainers.loop.run import Run
from studio.trainers.loop.task import Lesson, Loss, Task
from studio.trainers.loop.training import train
from studio.trainers.preference import Preference
from studio.trainers.reward import Reward
from studio.trainers.seq2seq import Seq2Seq
from studio.trainers.speech import Speech
from studio.trainers.style import Style
from studio.trainers.tasks import TEXT_TASKS

__all__ = [
    "GRPO",
    "TEXT_TASKS",
    "Caption",
    "CausalLM",
    "Classify",
    "Code",
    "DreamBooth",
    "Embed",
    "Lesson",
    "Loss",
    "NotFinite",
    "Plan",
    "Preference",
    "Reward",
    "Run",
    "Seq2Seq",
    "Speech",
    "Style",
    "Task",
    "train",
]
