"""Schedulers by short name, made anew for every call, and only those that can draw noise for each image alone.

A name is the slug of the name that A1111 shows (``"DPM++ 2M Karras"`` -> ``"dpm++-2m-karras"``), so a name copied from
there, from ComfyUI (``"dpmpp_2m"``) or from this table all work. What a scheduler must know about the base (its noise
levels, what it predicts, how its steps are spaced) comes from the base's own scheduler, never from the table.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from studio.errors import BadConfig, DoesNotFit
from studio.families import Base
from studio.families.process import Diffusion, Flow, Process
from studio.registry import Registry

__all__ = [
    "SCHEDULERS",
    "Course",
    "Sampler",
    "SchedulerChoice",
    "make_sampler",
    "sampler_from_record",
    "scheduler_named",
]


@dataclass(frozen=True, kw_only=True)
class SchedulerChoice:
    """One row of the table.

    Args:
        cls: the class in diffusers.
        title: the sampler's name in A1111.
        schedule: A1111's "Schedule type", where it is not the sampler's usual one.
        settings: the scheduler's own settings; the base's noise levels are added.
        predictions: what the base may predict, as ``prediction_type`` has it; empty: anything.
        flow: the class in diffusers for bases that are flows; empty: none.
    """

    cls: str
    title: str
    schedule: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    predictions: tuple[str, ...] = ()
    flow: str = ""


SCHEDULERS: Registry[SchedulerChoice] = Registry("scheduler")


def _slug(name: str) -> str:
    slug = " ".join(name.lower().replace("_", " ").replace("-", " ").split())
    slug = slug.replace("dpmpp", "dpm++").replace("dpm++2", "dpm++ 2").replace("dpm++3", "dpm++ 3")
    return slug.replace("ancestral", "a").removeprefix("k ").replace(" ", "-")


def scheduler_named(name: str) -> str | None:
    """Returns the table's name of what another program calls a sampler; None: it is not in the table.

    Args:
        name: as A1111, ComfyUI or InvokeAI write it.

    Example:
        >>> [scheduler_named(name) for name in ("DPM++ 2M Karras", "dpmpp_2m", "euler_ancestral", "uni_pc", "lms")]
        ['dpm++-2m-karras', 'dpm++-2m', 'euler-a', 'unipc', None]
    """
    slug = _slug(name[:100])
    return next((known for known in SCHEDULERS if known.replace("-", "") == slug.replace("-", "")), None)


def _add(
    title: str, cls: str, *, flow: str = "", karras: bool = False, predictions: tuple[str, ...] = (), **settings: Any
) -> None:
    row = SchedulerChoice(cls=cls, title=title, settings=settings, predictions=predictions, flow=flow)
    SCHEDULERS.add(_slug(title), row)
    if karras:
        row = SchedulerChoice(cls=cls, title=title, schedule="Karras", settings={**settings, "use_karras_sigmas": True})
        SCHEDULERS.add(_slug(title + " Karras"), row)


# latents are not bounded by 1: the schedulers made for pixels must not clip them
_add("DDIM", "DDIMScheduler", clip_sample=False)
_add("DDPM", "DDPMScheduler", clip_sample=False)
_MULTISTEP = "DPMSolverMultistepScheduler"
_add("DPM++ 2M", _MULTISTEP, flow=_MULTISTEP, karras=True)
_add("DPM++ 2M SDE", _MULTISTEP, flow=_MULTISTEP, karras=True, algorithm_type="sde-dpmsolver++")
_add("DEIS", "DEISMultistepScheduler", flow="DEISMultistepScheduler")
_add("Euler", "EulerDiscreteScheduler", flow="FlowMatchEulerDiscreteScheduler", karras=True)
_add("Euler a", "EulerAncestralDiscreteScheduler")
_add("Heun", "HeunDiscreteScheduler", flow="FlowMatchHeunDiscreteScheduler", karras=True)
_add("LCM", "LCMScheduler", flow="FlowMatchLCMScheduler")
# it extrapolates over four steps: with predicted v that diverges under about 40 steps
_add("PLMS", "PNDMScheduler", predictions=("epsilon",), skip_prk_steps=True)
_add("TCD", "TCDScheduler")
_add("UniPC", "UniPCMultistepScheduler", flow="UniPCMultistepScheduler")


@dataclass(frozen=True)
class Course:
    """What a family says about the times of one picture.

    Args:
        process: how the base's pictures become noise.
        set_steps: ``(scheduler, steps, device)``; sets a scheduler's times.
        shift: k of a flow's ``s = k u / (1 + (k−1) u)``; 1 for diffusion.
    """

    process: type[Process] = Diffusion
    set_steps: Callable[[Any, int, Any], None] = lambda scheduler, steps, device: scheduler.set_timesteps(
        steps, device=device
    )
    shift: float = 1.0

    @classmethod
    def of(cls, base: Base, cells: tuple[int, int]) -> Course:
        """Returns that of a base's pictures of ``cells``, latent cells high and wide."""
        family, pipe = base.family, base.pipe
        return cls(
            family.process,
            lambda scheduler, steps, device: family.schedule(pipe, scheduler, steps, cells, device),
            family.shift(pipe, cells),
        )


@dataclass(frozen=True)
class Sampler:
    """A scheduler that is ready for one batch, with what the metadata say about it.

    Args:
        scheduler: the diffusers scheduler; its timesteps are set.
        title: the sampler's name in A1111, or the class if it has none.
        schedule: A1111's "Schedule type", ``""`` for the usual one.
        record: JSON from which :func:`sampler_from_record` makes an equal one.
    """

    scheduler: Any
    title: str
    schedule: str
    record: Mapping[str, Any]


def make_sampler(
    own: Any, asked: str | Any | None, steps: int, device: torch.device | str = "cpu", *, course: Course | None = None
) -> Sampler:
    """Makes a fresh scheduler.

    Args:
        own: the base's scheduler; it is only read.
        asked: a name of :data:`SCHEDULERS`, a diffusers scheduler (copied), or ``None`` for the base's own.
        steps: denoising steps, at least 1.
        device: where the latents are.
        course: what the base's family says about the times; None: diffusion, by steps alone.

    Raises:
        UnknownName: no scheduler has this name; the nearest is named.
        DoesNotFit: the scheduler draws one noise for all images of a batch, or cannot run this base.
        BadConfig: the scheduler refuses this number of steps.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> sampler = make_sampler(DDIMScheduler(), "DPM++ 2M Karras", 5)
        >>> type(sampler.scheduler).__name__, sampler.schedule, len(sampler.scheduler.timesteps)
        ('DPMSolverMultistepScheduler', 'Karras', 5)
    """
    name, course = None, course or Course()
    if asked is None or not isinstance(asked, str):
        scheduler = copy.deepcopy(own if asked is None else asked)
        _check_per_image(scheduler)
        course.process.of(scheduler)  # one of the other process would draw noise
    else:
        name = _slug(asked)
        scheduler = _named(own, SCHEDULERS[name], course)
    row = SCHEDULERS[name] if name else _row_of(scheduler)
    title, schedule = (row.title, row.schedule) if row else (type(scheduler).__name__, "")
    _set_steps(scheduler, steps, device, name or type(scheduler).__name__, course)
    return Sampler(scheduler, title, schedule, _record(scheduler))


def sampler_from_record(record: Mapping[str, Any]) -> Any:
    """Returns the diffusers scheduler that a picture's metadata describe.

    Raises:
        DoesNotFit: this version of diffusers lacks the class or one of its settings, or a setting is impossible.
    """
    try:
        return _build(str(record["class"]), dict(record["settings"]))
    except DoesNotFit:
        raise
    except Exception as problem:  # what a scheduler raises on settings that it does not take
        raise DoesNotFit(f"the scheduler of the picture cannot be made ({problem}): its text was changed") from None


def _build(cls_name: str, settings: Mapping[str, Any]) -> Any:
    import diffusers

    cls = getattr(diffusers, cls_name, None)
    if cls is None or cls_name not in _per_image_classes():
        raise DoesNotFit(f"the scheduler class {cls_name!r} is not one that the studio runs ({_known_names()})")
    unknown = sorted(set(settings) - set(inspect.signature(cls.__init__).parameters))
    if unknown:
        raise DoesNotFit(f"{cls_name} of diffusers {diffusers.__version__} has no setting {unknown[0]!r}; update it")
    return cls(**settings)


def _named(own: Any, choice: SchedulerChoice, course: Course) -> Any:
    """A scheduler of the table, told what the base's own says about the base."""
    import diffusers

    flow = course.process is Flow
    cls = choice.flow if flow else choice.cls
    if not cls or (flow and choice.settings.get("use_karras_sigmas")):
        usable = ", ".join(name for name, row in SCHEDULERS.items() if row.flow and not row.schedule)
        raise DoesNotFit(
            f"{f'{choice.title} {choice.schedule}'.strip()} cannot sample a flow, and this base is one; choose one of "
            f"{usable}"
        )
    accepted = inspect.signature(getattr(diffusers, cls).__init__).parameters
    told = course.process.facts(own.config, accepted, choice.title, course.shift)
    predicts = told.get("prediction_type", "epsilon")
    if choice.predictions and predicts not in choice.predictions:
        raise DoesNotFit(f"{choice.title} cannot sample a base with prediction_type = {predicts!r}; choose another")
    settings = {} if flow and cls != choice.cls else choice.settings
    return _build(cls, {**told, **settings})


def _per_image_classes() -> set[str]:
    return {cls for choice in SCHEDULERS.values() for cls in (choice.cls, choice.flow) if cls}


def _known_names() -> str:
    return "by name: " + ", ".join(SCHEDULERS)


def _check_per_image(scheduler: Any) -> None:
    cls = type(scheduler).__name__
    if cls not in _per_image_classes():
        raise DoesNotFit(
            f"{cls} is not known to draw its noise for each image alone, so an image would depend on its neighbours; "
            f"choose a scheduler {_known_names()}"
        )


def _row_of(scheduler: Any) -> SchedulerChoice | None:
    """The row whose class and settings a scheduler object has."""
    config = scheduler.config
    flags = ("use_karras_sigmas", "algorithm_type")
    for row in SCHEDULERS.values():
        if type(scheduler).__name__ not in (row.cls, row.flow):
            continue
        wanted = {"use_karras_sigmas": False, "algorithm_type": "dpmsolver++", **row.settings}
        if all(config.get(key, wanted[key]) == wanted[key] for key in flags):
            return row
    return None


def _record(scheduler: Any) -> dict[str, Any]:
    """Class and the settings that differ from the class's defaults (some defaults, -inf, are no JSON)."""
    parameters = inspect.signature(type(scheduler).__init__).parameters
    config = scheduler.config
    settings = {}
    for key, parameter in parameters.items():
        if key == "self" or key not in config:
            continue
        value = config[key]
        value = value.tolist() if hasattr(value, "tolist") else value
        if value != parameter.default:
            settings[key] = value
    return {"class": type(scheduler).__name__, "settings": settings}


def _set_steps(scheduler: Any, steps: int, device: torch.device | str, name: str, course: Course) -> None:
    most = scheduler.config.num_train_timesteps
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= most:
        raise BadConfig(f"steps={steps!r}: the number of steps must be a whole number from 1 to {most}")
    try:
        with np.errstate(all="ignore"):
            course.set_steps(scheduler, steps, device)
    except (ValueError, IndexError) as problem:
        sentence = str(problem).strip().splitlines()[0]
        raise BadConfig(f"the scheduler {name} cannot make {steps} steps: {sentence}") from problem
    if not torch.isfinite(torch.as_tensor(scheduler.timesteps)).all():  # Qwen-Image's, of one step
        raise BadConfig(f"the scheduler {name} cannot make {steps} steps: their times are not finite; give more")
