"""The settings of a training from four places: the recipe, ``--config``, options, and ``--set``.

Each place wins over those before it, but an option and a ``--set`` of the same setting are a contradiction. A setting
belongs to the task (``instance_prompt``, ``prior``, ...), to the adapter (``method``, ``rank``, ``targets``, ...) or to
the loop (``steps``, ``learning_rate``, ...); the names do not overlap, so a bare name is enough.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from studio.config import assignments, build, plain, read_toml
from studio.errors import BadConfig, DoesNotFit, nearest

if TYPE_CHECKING:
    from studio.adapters import AdapterConfig
    from studio.trainers import Plan, Task
    from studio.trainers.recipes import Recipe

__all__ = ["Settings", "gather", "setting"]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
PARTS = ("task", "adapter", "training")


def setting(*names: str, field: str, **attributes: Any) -> Callable[[F], F]:
    """Declares an option that sets ``field`` of the task, the adapter or the loop where it is given.

    Args:
        names: the option's names, ``"--rank"``.
        field: the setting.
        attributes: what :func:`click.option` takes: type, help, metavar, multiple.
    """

    def keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value is not None and value != ():
            context.ensure_object(dict)[field] = value

    return click.option(*names, f"_{field}", expose_value=False, callback=keep, **attributes)


@dataclasses.dataclass
class Settings:
    """What was given, by part; what was not given is the recipe's to decide."""

    task: dict[str, Any] = dataclasses.field(default_factory=dict)
    adapter: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)

    def make_task(self, task: type[T], **facts: Any) -> T:
        """Makes the task; ``facts`` replace what was given.

        Raises:
            BadConfig: a value of another type than its field has, or an impossible one.
        """
        return build(task, {**self.task, **facts})

    def make_plan(self) -> Plan:
        """Makes the loop's settings.

        Raises:
            BadConfig: as :meth:`make_task`.
        """
        from studio.trainers import Plan

        return build(Plan, self.training)

    def make_adapter(self, recipe: Recipe) -> AdapterConfig | None:
        """Makes the adapter's config: the recipe's with what was given instead; None where nothing was given.

        Raises:
            UnknownName: no such method.
            BadConfig: a field that the method does not have, or an impossible value.
        """
        from studio.adapters import METHODS, AdapterConfig
        from studio.trainers.recipes import usual_adapter

        if not self.adapter:
            return None
        given = dict(self.adapter)
        method = str(given.pop("method", recipe.method))
        for name in ("targets", "exclude"):
            words = given.get(name)
            if isinstance(words, str) and "," in words and "[" not in words and "re:" not in words:
                given[name] = [word.strip() for word in words.split(",") if word.strip()]
        config = METHODS[method]
        known = {field.name: field.default for field in dataclasses.fields(config)}
        shared = set(known) if method == recipe.method else set(known) & {"rank", "targets", "exclude"}
        if known["targets"] != AdapterConfig.targets:
            shared -= {"targets"}  # virtual tokens, norms, ...: the method says where it sits
        defaults = {name: value for name, value in plain(usual_adapter(recipe)).items() if name in shared}
        return build(config, {**defaults, **given})


def gather(
    task: type[Task], *, config: Path | None, options: Mapping[str, Any], words: Sequence[str], trains_on: bool = False
) -> Settings:
    """Puts the settings together.

    Args:
        task: the task's class.
        config: a TOML file: settings by name, or in tables ``[task]``, ``[adapter]`` and ``[training]``; or the
            ``run.toml`` of an earlier run of the same task.
        options: what options gave, by setting.
        words: the ``key=value`` words of ``--set``.
        trains_on: an adapter file is named that the training starts from.

    Raises:
        BadFile: the file cannot be read.
        BadConfig: a setting that does not exist, with the nearest one, or that is given twice.
        DoesNotFit: the ``run.toml`` of a run of another task, or of one that started from an adapter file where none
            is named.
    """
    where = _where(task)
    settings = Settings()
    if config is not None:
        content = read_toml(config)
        if "inputs" in content and "free" in content:
            _check_tables(content, ("inputs", "free", *PARTS), config)
            if not trains_on and "start" in content["inputs"]:
                raise DoesNotFit(f"{config} is that of a run that trained on from an adapter file: name it with --from")
            content = _of_run(content, task, config)
        for name, value in content.items():
            for key, entry in value.items() if name in PARTS and isinstance(value, Mapping) else [(name, value)]:
                belongs = _part(key, where, str(config))
                getattr(settings, belongs)[key] = entry
    given = assignments(words)
    for key in given:
        if key.partition(".")[2] in options or key in options:
            raise BadConfig(f"{key} is given twice, by an option and by --set {key}={given[key]}: drop one of them")
    for key, value in {**options, **given}.items():
        head, _, rest = key.partition(".")
        key = rest if head in PARTS and rest else key
        part = getattr(settings, _part(key, where, "--set"))
        for old in [old for old in part if old == key or old.startswith(f"{key}.") or key.startswith(f"{old}.")]:
            del part[old]  # what --config said
        part[key] = value
    return settings


def _where(task: type[Task]) -> dict[str, str]:
    """Returns for every setting the part that it belongs to."""
    from studio.adapters import METHODS
    from studio.trainers import Plan

    where = {"method": "adapter"}
    for config in METHODS.values():
        where |= {field.name: "adapter" for field in dataclasses.fields(config) if field.init}
    where |= {field.name: "training" for field in dataclasses.fields(Plan)}
    return where | {field.name: "task" for field in dataclasses.fields(task)}  # type: ignore[arg-type]


def _part(key: str, where: Mapping[str, str], source: str) -> str:
    head = key.partition(".")[0]
    if head not in where:
        close = nearest(head, where, 3)
        raise BadConfig(f"{source}: there is no setting {head!r}; the nearest are {', '.join(close)}")
    return where[head]


def _check_tables(content: Mapping[str, Any], names: Sequence[str], file: Path) -> None:
    """Checks that what a ``run.toml`` has of these is a table each, as the studio writes it."""
    other = next((name for name in names if not isinstance(content.get(name, {}), Mapping)), None)
    if other is not None:
        raise BadConfig(f"{file} has {other}={content[other]!r}, where a run.toml has a table: it was changed")


def _of_run(content: Mapping[str, Any], task: type[Task], file: Path) -> dict[str, Any]:
    """Makes settings of a ``run.toml``, which holds them as decided."""
    own = dict(content.get("task", {}))
    free = {name: value for name, value in content.get("free", {}).items() if value != ""}  # "": none was given
    made = own.pop("task", task.task_name)
    if made != task.task_name:
        raise DoesNotFit(f"{file} is that of a {made} run, and this is studio {task.task_name}: call studio {made}")
    _check_tables(own, ("learning_rates",), file)
    _check_tables(free, ("previews",), file)
    rates = own.pop("learning_rates", {})
    encoders = {part: rate for part, rate in rates.items() if part.startswith("text_encoder")}
    own["text_encoder"] = bool(encoders)
    if encoders:
        own["text_encoder_learning_rate"] = next(iter(encoders.values()))
    own.pop("captions", None)  # a digest
    own.setdefault("base", free.pop("base", None))
    free.pop("name", None)  # of that run's adapter
    for name, value in free.pop("previews", {}).items():
        if name != "size":
            own[f"preview_{name}"] = value
    known = {field.name for field in dataclasses.fields(task)}  # type: ignore[arg-type]
    own = {name: value for name, value in own.items() if name in known and value is not None}
    return {"task": own, "adapter": content.get("adapter", {}), "training": {**content.get("training", {}), **free}}
