"""``studio tune``: language models, one task each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from studio.commands.options import example, output_options, tuning_options
from studio.commands.training import TEXTS, run_training
from studio.errors import UsageError, nearest

__all__ = ["tune"]


class Tasks(click.Group):
    """The tasks by name; one that is not there is refused with the nearest."""

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = arguments[0]
        if name not in self.commands and not name.startswith("-"):
            close = nearest(name, self.commands, 1)[0]
            known = ", ".join(self.commands)
            raise UsageError(f"studio tune has no task {name!r}; did you mean {close!r}? (tasks: {known})")
        return super().resolve_command(context, arguments)


@click.group(
    cls=Tasks,
    short_help="Teach a language model from samples.",
    epilog=example("studio tune causal-lm facts questions.jsonl --held-out 0.1 -o runs/facts"),
)
def tune() -> None:
    """Teach a language model from samples: studio tune TASK BASE DATA -o FOLDER."""


@tune.command(
    "causal-lm",
    short_help="Answers to questions, conversations, or plain text.",
    epilog=example(
        "studio tune causal-lm facts questions.jsonl --held-out 0.1 -o runs/facts",
        "studio tune causal-lm model/ chats.jsonl --method dora --rank 16 --steps 1000 --max-length 512 -o runs/x",
    ),
)
@click.argument("base", required=False)
@click.argument("data", required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The run's folder.")
@tuning_options
@output_options
@click.pass_context
def causal_lm(context: click.Context, base: str | None, data: str | None, output: Path, **options: Any) -> None:
    """Teach a causal language model to answer as the samples do.

    BASE is an embedded language base (facts), a transformers folder or a hub id, DATA a JSONL file with one sample per
    line: messages; instruction and output; prompt and completion; or text. The answers are learned, each with its end;
    the questions are only read. The same command again goes on with an interrupted run, to the bit.
    """
    from studio.trainers import CausalLM

    facts = {"base": base, "data": data}
    run_training(CausalLM, facts, context.ensure_object(dict), output, TEXTS, **options)
