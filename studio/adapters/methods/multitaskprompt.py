"""Multitask prompt tuning: one shared prompt, and a low-rank factor for every task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Given
from studio.adapters.contract.foreign import Choice, Peft, Sites
from studio.adapters.methods.prompttuning import SETTINGS, StartedConfig, new_prompt
from studio.adapters.sites.site import Site
from studio.adapters.tokens.contract import PromptAdapter, started_rows
from studio.errors import DoesNotFit

__all__ = ["MultitaskPrompt", "MultitaskPromptAdapter"]


@METHODS.register("multitaskprompt")
@dataclass(frozen=True, kw_only=True)
class MultitaskPrompt(StartedConfig):
    r"""Multitask prompt tuning adjusts a shared prompt for every task ``t``: ``x' = [P ∘ (cols_t @ rows_t); E(ids)]``.

    Which task a sample is of is said with the call, ``model(**batch, task_ids=[0, 2])`` (also ``model.generate``), or
    around it, ``with studio.adapters.for_tasks(model, [0, 2]):``. With one task nothing need be said.

    Attributes:
        tasks: how many tasks. rank: rank of a task's factor.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning (Wang et al., 2023),
        https://arxiv.org/abs/2303.02861

    Example:
        >>> MultitaskPrompt(tasks=3).rank
        1
    """

    method = "multitaskprompt"
    rate = 30.0
    tasks: int = 1
    rank: int = 1

    def check(self) -> None:
        super().check()
        self.require(self.tasks >= 1, "tasks", "at least 1")
        self.require(self.rank >= 1, "rank", "at least 1")


INITS: Final = Choice(
    "MultitaskPromptTuningInit",
    ("TEXT", "RANDOM", "AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED"),
    "RANDOM",
)


SOURCES: Final = INITS.words[2:]
"""Starts from the tensors of another prompt, which ``studio.peft`` reads from their file."""


def _new(config: Any, sites: Sites) -> dict[str, Any]:
    """Makes our fields of what PEFT's prompt starts from."""
    word = getattr(config.prompt_tuning_init, "value", config.prompt_tuning_init)
    return {} if word in SOURCES else new_prompt(config, sites)


def _config_of_peft(fields: Mapping[str, Any]) -> dict[str, Any]:
    stacks = fields.get("num_transformer_submodules") or (2 if fields["is_encoder_decoder"] else 1)
    return {"tasks": int(fields["num_tasks"]), "rank": int(fields["num_ranks"]), "decoder": stacks == 2}


class MultitaskPromptAdapter(PromptAdapter[MultitaskPrompt]):
    """On one model: ``prompt`` ``(m, width)``, ``cols`` ``(tasks, m, rank)``, ``rows`` ``(tasks, rank, width)``."""

    trained = ("prompt", "cols", "rows")
    peft = Peft(
        type="MULTITASK_PROMPT_TUNING",
        settings=dataclasses.replace(
            SETTINGS,
            name="MultitaskPromptTuningConfig",
            extends=SETTINGS.name,
            defaults={
                **SETTINGS.defaults,
                "prompt_tuning_init": INITS,
                "prompt_tuning_init_state_dict_path": None,
                "prompt_tuning_init_task": 0,
                "num_ranks": 1,
                "num_tasks": 1,
            },
            fields={"tasks": "num_tasks", "rank": "num_ranks"},
            config=_config_of_peft,
            new=_new,
        ),
        tensors={"prompt": "prompt_embeddings", "cols": "prefix_task_cols", "rows": "prefix_task_rows"},
    )

    @classmethod
    def start(cls, site: Site, config: MultitaskPrompt, given: Given) -> dict[str, Tensor]:
        total, draw = config.tokens * (2 if config.decoder else 1), given.generator
        return {
            "prompt": started_rows(site, config, total, draw),
            "cols": 0.02 * torch.randn(config.tasks, total, config.rank, generator=draw),
            "rows": 0.02 * torch.randn(config.tasks, config.rank, site.rows, generator=draw),
        }

    def fit(self) -> None:
        super().fit()
        config = self.config
        self.require("prompt", (self.total, self.site.rows))
        self.require("cols", (config.tasks, self.total, config.rank))
        self.require("rows", (config.tasks, config.rank, self.site.rows))

    def embedded(self, rows: int, tasks: Tensor | None) -> Tensor:
        t, count = self.tensors(), self.config.tasks
        if tasks is None:
            if count > 1:
                raise DoesNotFit(
                    f"the prompt has {count} tasks, and the call does not say which one each sample is of; pass "
                    "task_ids, one number per sample"
                )
            return t["prompt"] * (t["cols"][0] @ t["rows"][0])
        if bool((tasks < 0).any()) or bool((tasks >= count).any()):
            raise DoesNotFit(
                f"task_ids={tasks.tolist()} names a task that is not there; they are numbered 0 to {count - 1}"
            )
        return t["prompt"] * (t["cols"][tasks] @ t["rows"][tasks])


MultitaskPrompt.adapter = MultitaskPromptAdapter
