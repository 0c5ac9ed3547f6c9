"""What the training commands share: settings in, a run out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.commands.settings import gather
from studio.commands.show import Show, shell
from studio.errors import BadConfig

if TYPE_CHECKING:
    from studio.trainers.image_task import ImageTask

__all__ = ["run_training"]


def run_training(
    kind: type[ImageTask],
    facts: Mapping[str, Any],
    options: Mapping[str, Any],
    output: Path,
    *,
    config: Path | None,
    words: Sequence[str],
    as_json: bool,
    quiet: bool,
) -> None:
    """Trains and prints where the results are.

    Args:
        kind: the task's class.
        facts: what the arguments say, by field; None where one was left out.
        options: what the options gave, by setting.
        output: the run's folder.
        config: file with settings.
        words: ``key=value`` words.
        as_json: print one JSON object.
        quiet: print nothing else.

    Raises:
        UsageError: whatever is wrong about the request.
        Refused: nothing would be trained.
    """
    from studio.families import open_base
    from studio.trainers import train
    from studio.trainers.recipes import recipe_for

    show = Show(as_json, quiet)
    given = gather(kind, config=config, options=options, words=words)
    facts = {name: value for name, value in facts.items() if value is not None}
    _require(kind, {**given.task, **facts})
    plan = given.make_plan()
    asked = given.make_task(kind, **facts)  # a wrong setting is told before the base is opened
    _note_trigger(asked, show)
    opened = dataclasses.replace(asked, base=open_base(asked.base))
    adapter = given.make_adapter(recipe_for(kind.kind, opened.base))
    run = train(
        opened, output=output, adapter=adapter, quiet=quiet,
        **{field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)},
    )  # fmt: skip
    prompt = getattr(asked, "instance_prompt", None) or f"{asked.trigger_words}, ..."
    show.say(f"adapter: {run.adapter}\nreport: {run.report}")
    command = ("studio", "generate", _named(asked.base), prompt, "--adapter", run.adapter, "-o", "out")
    show.say(f"try it: {shell(*command)}")
    show.result(
        {
            "folder": run.folder,
            "adapter": run.adapter,
            "report": run.report,
            "steps": len(run.losses),
            "loss": run.losses[-1],
            "trigger": asked.trigger_words,
            "already": run.already,
        }  # fmt: skip
    )


def _note_trigger(task: ImageTask, show: Show) -> None:
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


def _require(kind: type[ImageTask], given: Mapping[str, Any]) -> None:
    """Checks that the facts are there, and names them as the command line does."""
    for field in dataclasses.fields(kind):
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and given.get(field.name) in (None, ""):
            word = {"base": "BASE", "instance_images": "IMAGES", "images": "IMAGES"}.get(field.name)
            word = word or f"--{field.name.replace('_', '-')}"
            raise BadConfig(f"studio {kind.kind} needs {word}, which is not given (studio {kind.kind} --help)")
