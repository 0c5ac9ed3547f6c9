"""What the training commands share: settings in, a run out."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.commands.settings import Settings, gather
from studio.commands.show import Show, shell
from studio.config import read_toml
from studio.errors import BadConfig
from studio.runs import RUN_FILE

if TYPE_CHECKING:
    from studio.trainers import Plan, Run

__all__ = ["PICTURES", "TEXTS", "Medium", "TrainingRequest", "read_request", "run_facts", "run_training"]

ARGUMENTS = {"base": "BASE", "instance_images": "IMAGES", "images": "IMAGES", "data": "DATA"}
"""Fields that are arguments on the command line, as it names them."""


@dataclass(frozen=True)
class TrainingRequest:
    """A training that is asked for, its settings checked and its base still closed.

    Args:
        task: the task.
        plan: the loop's settings.
        settings: all that was given.
        start: the adapter file that is trained on from, or None.
    """

    task: Any
    plan: Plan
    settings: Settings
    start: Path | None = None

    def train(self, output: Path, *, quiet: bool, further: bool = False) -> Run:
        """Trains, and returns the run.

        Args:
            output: the run's folder.
            quiet: print nothing.
            further: the run there had fewer steps and trains on.

        Raises:
            UsageError: whatever is wrong about the request.
            Refused: nothing would be trained.
        """
        from studio.trainers import train

        plan = {field.name: getattr(self.plan, field.name) for field in dataclasses.fields(self.plan)}
        adapter = self.start or self.settings.make_adapter
        return train(self.task, output=output, adapter=adapter, quiet=quiet, further=further, **plan)


@dataclass(frozen=True)
class Medium:
    """What a training command trains on, and what it says about that.

    Args:
        group: the command's group, ``"tune"`` or none.
        remark: says what to look at before anything is trained: ``(task, show)``.
        tell: says how to try what was learned, ``(task, run, show)``, and returns what the JSON output says besides.
    """

    group: str
    remark: Callable[[Any, Show], None]
    tell: Callable[[Any, Run, Show], Mapping[str, Any]]


def read_request(
    task: type[Any], facts: Mapping[str, Any], options: Mapping[str, Any], *, command: str, config: Path | None,
    words: Sequence[str], output: Path, start: Path | None = None,
) -> TrainingRequest:  # fmt: skip
    """Reads and checks what is asked for, before anything is opened.

    Args:
        task: the task's class.
        facts: what the arguments say, by field; None where one was left out.
        options: what the options gave, by setting.
        command: the command's name, for messages.
        config: file with settings.
        words: ``key=value`` words.
        output: the run's folder, after which an adapter is named that nothing else gives a name.
        start: the adapter file that is trained on from, or the folder of its run.

    Raises:
        UsageError: whatever is wrong about the request.
    """
    from studio.trainers.recipes import recipes_of

    given = gather(task, config=config, options=options, words=words, trains_on=start is not None)
    if start is not None:
        start = _start(start, gather(task, config=None, options=options, words=words).adapter)
    else:
        for recipe in recipes_of(task.task_name):  # wrong fields are wrong on every size of base
            given.make_adapter(recipe)
    facts = {name: value for name, value in facts.items() if value is not None}
    if "name" in {field.name for field in dataclasses.fields(task)}:
        given.task.setdefault("name", _name_of(output))
    _require(task, {**given.task, **facts}, command)
    plan = given.make_plan()
    return TrainingRequest(given.make_task(task, **facts), plan, given, start)


def _name_of(output: Path) -> str | None:
    """Returns the name of a run's adapter where none is given: the folder's, or what the run there was begun with."""
    begun = output / RUN_FILE
    if begun.is_file():
        name = read_toml(begun).get("free", {}).get("name")
        return name if isinstance(name, str) else None
    return re.sub(r"\W+", "-", Path(os.path.realpath(output.expanduser())).name).strip("-") or None


def _start(given: Path, adapter: Mapping[str, Any]) -> Path:
    """Returns the file that is trained on from, after a check that nothing else is said about its adapter.

    Raises:
        BadConfig: a method or a field of its config is given besides.
        BadFile: it is no adapter.
    """
    from studio.trainers.opening import adapter_file

    file = adapter_file(given)
    if adapter:
        raise BadConfig(f"--from {given} brings the adapter's settings with it: leave out {', '.join(sorted(adapter))}")
    return file


def run_training(
    task: type[Any],
    facts: Mapping[str, Any],
    options: Mapping[str, Any],
    output: Path,
    medium: Medium,
    *,
    config: Path | None,
    words: Sequence[str],
    start: Path | None,
    further: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Trains and prints where the results are.

    Args:
        task: the task's class.
        facts: what the arguments say, by field; None where one was left out.
        options: what the options gave, by setting.
        output: the run's folder.
        medium: what is trained on.
        config: file with settings.
        words: ``key=value`` words.
        start: the adapter file that is trained on from, or the folder of its run.
        further: the run in ``output`` had fewer steps and trains on.
        as_json: print one JSON object.
        quiet: print nothing else.

    Raises:
        UsageError: whatever is wrong about the request.
        Refused: nothing would be trained.
    """
    show = Show(as_json, quiet)
    command = f"{medium.group} {task.task_name}".strip()
    asked = read_request(task, facts, options, command=command, config=config, words=words, output=output, start=start)
    medium.remark(asked.task, show)
    run = asked.train(output, quiet=quiet, further=further)
    show.say(f"adapter: {run.adapter}\nreport: {run.report}")
    more = medium.tell(asked.task, run, show)
    show.result({**run_facts(run), **more})


def run_facts(run: Run) -> dict[str, Any]:
    """Returns what the JSON output says about every run."""
    return {
        "folder": run.folder, "adapter": run.adapter, "report": run.report, "steps": len(run.losses),
        "loss": run.loss, "already": run.already,
    }  # fmt: skip


def _note_trigger(task: Any, show: Show) -> None:
    """Says where the instance prompt has no rare word: what is learned then takes the place of its class."""
    from studio.datasets.trigger import rare_word

    trigger = task.answers_to
    if not trigger.phrase and rare_word(trigger.alone) is None:
        show.note(
            f"the instance prompt {trigger.alone!r} has no rare word before its class, so whatever it names will "
            "change; 'a photo of sks dog' keeps other dogs as they are"
        )


def _tell_pictures(task: Any, run: Run, show: Show) -> dict[str, Any]:
    trigger = task.answers_to
    prompt = f"{trigger.words}, ..." if trigger.phrase else trigger.alone
    configs: tuple[Any, ...] = () if task.config_of is None else ("--config-of", task.config_of)
    configs += () if task.quantize is None else ("--quantize", task.quantize)
    command = ("studio", "generate", _named(task.base), prompt, *configs, "--adapter", run.adapter, "-o", "out")
    show.say(f"try it: {shell(*command)}")
    return {"trigger": trigger.words}


def _tell_texts(task: Any, run: Run, show: Show) -> dict[str, Any]:
    steps = sorted(run.measures)
    before, after = (dict(run.measures[step]) for step in (steps[0], steps[-1])) if steps else ({}, {})
    for name, value in ((name, value) for name, value in after.items() if name in before):
        show.say(f"{name.replace('_', ' ')}: {before[name]:.3f} before, {value:.3f} after")
    own = () if task.quantize is None else ("--quantize", task.quantize)
    show.say(f"try it: {shell('studio', *_call(task), *own, '--adapter', run.adapter)}")
    return {"before": before, "after": after}


def _no_remark(task: Any, show: Show) -> None:
    """Texts have no trigger."""


PICTURES = Medium("", _note_trigger, _tell_pictures)
TEXTS = Medium("tune", _no_remark, _tell_texts)


def _call(task: Any) -> list[str]:
    """Returns the words that try an adapter on the first sample."""
    first = task.look().found.items[0]
    return [str(_named(task.base)) if word == "BASE" else word for word in task.call(first)]


def _named(base: Any) -> str | Path:
    return base if isinstance(base, (str, Path)) else "BASE"


def _require(task: type[Any], given: Mapping[str, Any], command: str) -> None:
    """Checks that the facts are there, and names them as the command line does."""
    for field in dataclasses.fields(task):
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and given.get(field.name) in (None, ""):
            word = ARGUMENTS.get(field.name) or f"--{field.name.replace('_', '-')}"
            raise BadConfig(f"studio {command} needs {word}, which is not given (studio {command} --help)")
