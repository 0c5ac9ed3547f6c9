"""``studio plan``: what a training takes, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from studio.commands.options import example, output_options, training_options
from studio.commands.settings import Settings, gather, setting
from studio.commands.show import Show
from studio.errors import BadConfig, DoesNotFit, nearest

if TYPE_CHECKING:
    from studio.trainers.forecast import Asked

__all__ = ["plan"]

_OWN: Final = ("whole", "answer", "attention", "cached", "keep_gradients", "length")
_TASK: Final = ("resolution", "text_encoder", "quantize", "crop")


@click.command(
    short_help="Say what a training takes, before anything is loaded.",
    epilog=example(
        "studio plan sdxl --resolution 1024 --set gradient_checkpointing=true",
        "studio plan llama-3-8b --rank 16 --max-length 1024 --batch-size 4 --fit 12GB --picture plan.png",
        "studio plan llama-3-8b --task preference --batch-size 2 --set gradient_checkpointing=true",
        "studio plan --table",
    ),
)
@click.argument("base", required=False)
@click.option("--task", metavar="NAME", help="dreambooth, style, or a task of studio tune; else by the base.")
@setting(
    "--instance-prompt", field="instance_prompt", metavar="TEXT", help="As in dreambooth; its words decide nothing."
)
@setting(
    "--class-prompt", field="class_prompt", multiple=True, metavar="TEXT", help="As in dreambooth: there is a prior."
)
@setting("--prior", field="prior", metavar="NAME", help="Prior preservation: none, self, generate, images.")
@setting("--trigger", field="trigger", metavar="TEXT", help="As in style; its words decide nothing.")
@setting(
    "--max-length",
    field="max_length",
    type=int,
    metavar="N",
    help="Tokens of a sample of a language model; of each of its texts.",
)
@click.option("--base-dtype", metavar="NAME", help="Number format of the base's weights; else that of its files.")
@click.option("--processes", type=int, default=1, metavar="N", help="Processes that share the work.")
@click.option("--attend", metavar="NAME", help="How attention is computed: sdpa, xformers, eager.")
@click.option("--picture", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw the phases as stacked bars.")
@click.option("--uncorrected", is_flag=True, help="Leave aside what runs on this machine have measured.")
@click.option("--table", is_flag=True, help="Published figures beside the forecasts of the same recipes.")
@training_options
@output_options
@click.pass_context
def plan(context: click.Context, base: str | None, table: bool, as_json: bool, quiet: bool, **asked: Any) -> None:
    """Say what a training takes: memory by phase and category, time of a step, disk.

    BASE is a public model's name (sd1, sdxl, flux-dev, llama-3-8b, ...), an embedded base, a folder, a checkpoint of
    one file, or a hub id in the cache. No weights are read: the trainers' own step runs on tensors without numbers, and
    every storage is counted. The options are those of the training commands, but for --task, --base-dtype, --processes,
    --attend, --picture, --uncorrected and --table. With --set a plan also weighs what no training here does: whole,
    cached, keep_gradients, answer, sharding=zero1, and offload in one process.

    \f
    Raises:
        BadConfig: no base is named.
    """
    show = Show(as_json, quiet)
    if table:
        _table(show)
        return
    if base is None:
        raise BadConfig("studio plan needs BASE, which is not given (studio plan --help); --table needs none")
    options = dict(context.ensure_object(dict))
    limit = options.pop("fit", None)
    settings = _read(base, options, show, **asked)
    _tell(base, settings, limit, asked["picture"], show)


def _read(base: str, options: dict[str, Any], show: Show, **asked: Any) -> Asked:
    """Reads the settings, by the rules of the training commands.

    Raises:
        UsageError: one that there is not, or with an impossible value.
    """
    from studio.trainers import TEXT_TASKS, DreamBooth, Style
    from studio.trainers.forecast import Asked
    from studio.trainers.forecast.asked import OF_THE_LOOP
    from studio.trainers.forecast.plan import IMAGE_TASKS, usual_task

    if asked.get("start") is not None:
        raise BadConfig("--from names a file, which a plan does not open: give --method, --rank and --targets")
    tasks: dict[str, Any] = {"dreambooth": DreamBooth, "style": Style, **TEXT_TASKS}
    name = asked["task"] or ("style" if "trigger" in options else usual_task(base))
    if name not in tasks:
        raise BadConfig(f"--task {name}: did you mean {nearest(name, tasks, 1)[0]!r}? (tasks: {', '.join(tasks)})")
    words, own = _apart(asked["words"])
    length = options.pop("max_length", None)
    given = gather(tasks[name], config=asked["config"], options=options, words=words)
    if name in IMAGE_TASKS and length is not None:
        raise DoesNotFit(f"--max-length is of language models, and {base} draws pictures: leave it out")
    found: dict[str, Any] = {key: given.training[key] for key in OF_THE_LOOP if key in given.training}
    found |= {key: given.task[key] for key in _TASK if key in given.task}
    found["own"] = _own_of(name, given)
    more = {
        "length": length, "dtype": asked["base_dtype"], "task": name, "attention": asked["attend"],
        "prior": _prior(given), "corrected": not asked["uncorrected"],
    }  # fmt: skip
    found |= {key: value for key, value in more.items() if value is not None}
    twice = next((key for key in own if key in found), None)
    if twice is not None:
        raise BadConfig(f"{twice} is given twice, by an option and by --set {twice}={own[twice]}: drop one of them")
    _left(given, found, show)
    return _built(Asked, {**found, **own, "adapter": given.make_adapter, "processes": asked["processes"]})


def _own_of(task: str, given: Settings) -> dict[str, Any]:
    """Takes the settings that are the task's own and decide what it takes.

    Raises:
        BadConfig: one with an impossible value.
    """
    from studio.trainers import TEXT_TASKS
    from studio.trainers.language.rehearsals import REHEARSALS

    options = REHEARSALS[task].options if task in REHEARSALS else ()
    own = {key: given.task[key] for key in options if key in given.task}
    if task in TEXT_TASKS:
        TEXT_TASKS[task](base=None, data=None, **own)  # which looks at them
    return own


def _apart(words: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """Takes out what a plan alone knows."""
    own = {word.partition("=")[0].strip(): word.partition("=")[2].strip() for word in words if "=" in word}
    mine = {key: value for key, value in own.items() if key in _OWN}
    return [word for word in words if word.partition("=")[0].strip() not in mine], mine


def _prior(given: Settings) -> str | None:
    if "prior" in given.task:
        return str(given.task["prior"])
    return "images" if "class_images" in given.task else "self" if given.task.get("class_prompt") else None


def _left(given: Settings, found: dict[str, Any], show: Show) -> None:
    """Says what was given and changes nothing of the forecast."""
    counted = {
        *found,
        *found["own"],
        "max_length",
        "prior",
        "class_prompt",
        "class_images",
        "instance_prompt",
        "trigger",
    }
    idle = sorted(key for key in {**given.task, **given.training} if key not in counted)
    if idle:
        show.note(f"{', '.join(idle)} decide{'s' if len(idle) == 1 else ''} nothing of what a training takes")


def _built(cls: Any, found: dict[str, Any]) -> Asked:
    import dataclasses

    from studio.config import assignments, build

    made = {key: value for key, value in found.items() if not isinstance(value, str)}
    texts = assignments([f"{key}={value}" for key, value in found.items() if isinstance(value, str)])
    adapter = made.pop("adapter")
    return dataclasses.replace(build(cls, {**made, **texts}), adapter=adapter)


def _tell(base: str, settings: Asked, limit: str | None, picture: Path | None, show: Show) -> None:
    from studio.planning.sizes import as_bytes
    from studio.trainers.forecast import fit, forecast

    most = as_bytes(limit) if limit is not None else None
    found = None if limit is None else fit(base, settings, limit)
    made = forecast(base, settings) if found is None else found.forecast
    show.say(str(made))
    facts = made.facts()
    if found is not None:
        if found.fits or found.found:  # else it is the error
            show.say("")
            show.say(str(found))
        facts |= {"limit": most, "fits": found.fits, "alternatives": [
            {"peak": one.forecast.peak, "options": one.options,
             "changes": [{"name": lever.name, "cost": lever.cost} for lever in one.levers]} for one in found.found],
            "least": found.least.forecast.peak}  # fmt: skip
    if picture is not None:
        _draw(made, most, picture)
        show.say(f"picture: {picture}")
    show.result(facts)
    if found is not None and not found.fits and not found.found:
        raise DoesNotFit(" ".join(str(found).split()))


def _draw(made: Any, limit: int | None, file: Path) -> None:
    from studio.atomic import atomic_path
    from studio.planning.picture import draw

    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        draw(made, limit).save(stream, format="PNG")


def _table(show: Show) -> None:
    """Prints published figures beside forecasts, with what was taken for granted."""
    from studio.planning.published import UNIT
    from studio.trainers.forecast import compare

    rows: list[tuple[str, ...]] = [("model", "trained", "published GB", "forecast GB", "deviation", "CPU GB; forecast")]
    notes, facts = dict[str, int](), []
    for one in compare():
        marks = [str(notes.setdefault(note, len(notes) + 1)) for note in one.row.notes]
        rows.append((*one.cells(), f"[{', '.join(marks)}]"))
        facts.append({"model": one.row.model, "trained": one.row.what, "published": one.row.published,
                      "forecast": one.gigabytes, "deviation": one.deviation,
                      "deviation_in_mebibytes": one.in_mebibytes, "cpu_published": one.row.host, "cpu": one.host,
                      "cpu_deviation": one.host_deviation, "notes": list(one.row.notes)})  # fmt: skip
    show.table(rows)
    show.say(UNIT)
    for note, number in notes.items():
        show.say(f"[{number}] {note}")
    show.result({"rows": facts})
