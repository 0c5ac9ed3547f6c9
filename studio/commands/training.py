"""What the training commands share: settings in, a run out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.commands.settings import Settings, gather
from studio.commands.show import Show, shell
from studio.errors import BadConfig

if TYPE_CHECKING:
    from studio.trainers import Plan, Run

__all__ = ["Asked", "read_request", "run_language_training", "run_training"]

ARGUMENTS = {"base": "BASE", "instance_images": "IMAGES", "images": "IMAGES", "data": "DATA"}
"""Fields that are arguments on the command line, as it names them."""


@dataclass(frozen=True)
class Asked:
    """A training that is asked for, its settings checked and its base still closed.

    Args:
        task: the task. plan: the loop's settings. settings: all that was given.
    """

    task: Any
    plan: Plan
    settings: Settings

    def train(self, open_base: Callable[[Any], Any], output: Path, *, quiet: bool) -> Run:
        """Opens the base, trains, and returns the run.

        Raises:
            UsageError: whatever is wrong about the request.
            Refused: nothing would be trained.
        """
        from studio.trainers import train
        from studio.trainers.recipes import recipe_for

        opened = dataclasses.replace(self.task, base=open_base(self.task.base))
        adapter = self.settings.make_adapter(recipe_for(self.task.kind, opened.base))
        plan = {field.name: getattr(self.plan, field.name) for field in dataclasses.fields(self.plan)}
        return train(opened, output=output, adapter=adapter, quiet=quiet, **plan)


def read_request(
    kind: type[Any], facts: Mapping[str, Any], options: Mapping[str, Any], *, command: str, config: Path | None,
    words: Sequence[str],
) -> Asked:  # fmt: skip
    """Reads and checks what is asked for, before anything is opened.

    Args:
        kind: the task's class.
        facts: what the arguments say, by field; None where one was left out.
        options: what the options gave, by setting.
        command: the command's name, for messages.
        config: file with settings.
        words: ``key=value`` words.

    Raises:
        UsageError: whatever is wrong about the request.
    """
    given = gather(kind, config=config, options=options, words=words)
    facts = {name: value for name, value in facts.items() if value is not None}
    _require(kind, {**given.task, **facts}, command)
    plan = given.make_plan()
    return Asked(given.make_task(kind, **facts), plan, given)


def run_training(
    kind: type[Any], facts: Mapping[str, Any], options: Mapping[str, Any], output: Path, *, config: Path | None,
    words: Sequence[str], as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Trains on pictures and prints where the results are; :func:`read_request` has the arguments.

    Raises:
        UsageError: whatever is wrong about the request.
        Refused: nothing would be trained.
    """
    from studio.families import open_base

    show = Show(as_json, quiet)
    asked = read_request(kind, facts, options, command=kind.kind, config=config, words=words)
    _note_trigger(asked.task, show)
    run = asked.train(open_base, output, quiet=quiet)
    prompt = getattr(asked.task, "instance_prompt", None) or f"{asked.task.trigger_words}, ..."
    show.say(f"adapter: {run.adapter}\nreport: {run.report}")
    command = ("studio", "generate", _named(asked.task.base), prompt, "--adapter", run.adapter, "-o", "out")
    show.say(f"try it: {shell(*command)}")
    show.result({**_facts(run), "trigger": asked.task.trigger_words})


def run_language_training(
    kind: type[Any], facts: Mapping[str, Any], options: Mapping[str, Any], output: Path, *, config: Path | None,
    words: Sequence[str], as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Trains on texts and prints where the results are; :func:`read_request` has the arguments.

    Raises:
        UsageError: whatever is wrong about the request.
        Refused: nothing would be trained.
    """
    from studio.families.causal import open_language_base

    show = Show(as_json, quiet)
    asked = read_request(kind, facts, options, command=f"tune {kind.kind}", config=config, words=words)
    run = asked.train(open_language_base, output, quiet=quiet)
    show.say(f"adapter: {run.adapter}\nreport: {run.report}")
    steps = sorted(run.measures)
    before, after = (dict(run.measures[step]) for step in (steps[0], steps[-1])) if steps else ({}, {})
    for name, value in after.items():
        show.say(f"{name.replace('_', ' ')}: {before[name]:.3f} before, {value:.3f} after")
    question = _question(asked.task.data)
    show.say(f"try it: {shell('studio', 'complete', _named(asked.task.base), question, '--adapter', run.adapter)}")
    show.result({**_facts(run), "before": before, "after": after})


def _question(data: str | Path) -> str:
    """Returns what the first sample asks, to try the adapter with."""
    from studio.datasets.chat import read_samples

    first = read_samples(data).items[0]
    asked = first.turns[-2][1] if first.chat else first.prompt
    return " ".join(asked.split()) or "..."


def _facts(run: Run) -> dict[str, Any]:
    return {
        "folder": run.folder, "adapter": run.adapter, "report": run.report, "steps": len(run.losses),
        "loss": run.losses[-1], "already": run.already,
    }  # fmt: skip


def _note_trigger(task: Any, show: Show) -> None:
    """Says where the instance prompt has no rare word: what is learned then takes the place of its class."""
    from studio.datasets.check import trigger_of

    prompt = getattr(task, "instance_prompt", None)
    if prompt and trigger_of(prompt) is None:
        show.note(
            f"the instance prompt {prompt!r} has no rare word before its class, so whatever it names will change; "
            "'a photo of sks dog' keeps other dogs as they are"
        )


def _named(base: Any) -> str | Path:
    return base if isinstance(base, (str, Path)) else "BASE"


def _require(kind: type[Any], given: Mapping[str, Any], command: str) -> None:
    """Checks that the facts are there, and names them as the command line does."""
    for field in dataclasses.fields(kind):
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and given.get(field.name) in (None, ""):
            word = ARGUMENTS.get(field.name) or f"--{field.name.replace('_', '-')}"
            raise BadConfig(f"studio {command} needs {word}, which is not given (studio {command} --help)")
