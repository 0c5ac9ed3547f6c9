"""Schedulers by short name, made anew for every call, and only those that can draw noise for each image alone.

A name is the slug of the name that A1111 shows (``"DPM++ 2M Karras"`` -> ``"dpm++-2m-karras"``), so a name copied from
there, from ComfyUI (``"dpmpp_2m"``) or from this table all work. What a scheduler must know about the base (its noise
levels, what it predicts, how its steps are spaced) comes from the base's own scheduler, never from the table.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from studio.errors import BadConfig, DoesNotFit
from studio.registry import Registry

__all__ = ["SCHEDULERS", "Sampler", "SchedulerChoice", "make_sampler", "sampler_from_record"]


@dataclass(frozen=True, kw_only=True)
class SchedulerChoice:
    """One row of the table.

    Args:
        cls: the class in diffusers.
        title: the sampler's name in A1111.
        schedule: A1111's "Schedule type", where it is not the sampler's usual one.
        settings: the scheduler's own settings; the base's noise levels are added.
        predictions: what the base may predict, as ``prediction_type`` has it; empty: anything.
    """

    cls: str
    title: str
    schedule: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    predictions: tuple[str, ...] = ()


SCHEDULERS: Registry[SchedulerChoice] = Registry("scheduler")


def _slug(name: str) -> str:
    slug = " ".join(name.lower().replace("_", " ").replace("-", " ").split())
    slug = slug.replace("dpmpp", "dpm++").replace("dpm++2", "dpm++ 2").replace("dpm++3", "dpm++ 3")
    return slug.replace("ancestral", "a").removeprefix("k ").replace(" ", "-")


def _add(title: str, cls: str, *, karras: bool = False, predictions: tuple[str, ...] = (), **settings: Any) -> None:
    SCHEDULERS.add(_slug(title), SchedulerChoice(cls=cls, title=title, settings=settings, predictions=predictions))
    if karras:
        row = SchedulerChoice(cls=cls, title=title, schedule="Karras", settings={**settings, "use_karras_sigmas": True})
        SCHEDULERS.add(_slug(title + " Karras"), row)


# latents are not bounded by 1: the schedulers made for pixels must not clip them
_add("DDIM", "DDIMScheduler", clip_sample=False)
_add("DDPM", "DDPMScheduler", clip_sample=False)
_add("DPM++ 2M", "DPMSolverMultistepScheduler", karras=True)
_add("DPM++ 2M SDE", "DPMSolverMultistepScheduler", karras=True, algorithm_type="sde-dpmsolver++")
_add("DEIS", "DEISMultistepScheduler")
_add("Euler", "EulerDiscreteScheduler", karras=True)
_add("Euler a", "EulerAncestralDiscreteScheduler")
_add("Heun", "HeunDiscreteScheduler", karras=True)
_add("LCM", "LCMScheduler")
# it extrapolates over four steps: with predicted v that diverges under about 40 steps
_add("PLMS", "PNDMScheduler", predictions=("epsilon",), skip_prk_steps=True)
_add("TCD", "TCDScheduler")
_add("UniPC", "UniPCMultistepScheduler")

_ABOUT_THE_BASE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
)
# a scheduler that does not know one of these would compute another picture, so it is refused
_NEEDED = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}


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


def make_sampler(own: Any, asked: str | Any | None, steps: int, device: torch.device | str = "cpu") -> Sampler:
    """Makes a fresh scheduler.

    Args:
        own: the base's scheduler; it is only read.
        asked: a name of :data:`SCHEDULERS`, a diffusers scheduler (copied), or ``None`` for the base's own.
        steps: denoising steps, at least 1.
        device: where the latents are.

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
    name = None
    if asked is None or not isinstance(asked, str):
        scheduler = copy.deepcopy(own if asked is None else asked)
        _check_per_image(scheduler)
    else:
        name = _slug(asked)
        choice = SCHEDULERS[name]
        scheduler = _build(choice.cls, {**_about(own, choice), **choice.settings})
    row = SCHEDULERS[name] if name else _row_of(scheduler)
    title, schedule = (row.title, row.schedule) if row else (type(scheduler).__name__, "")
    _set_steps(scheduler, steps, device, name or type(scheduler).__name__)
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


def _about(own: Any, choice: SchedulerChoice) -> dict[str, Any]:
    """What the base's own scheduler says about the base, as settings of another class."""
    import diffusers

    config = own.config
    if "num_train_timesteps" in config and "beta_schedule" not in config:
        raise DoesNotFit(
            f"the base is sampled by {type(own).__name__}, which has no noise levels that {choice.title} could take "
            "over; leave the scheduler out"
        )
    accepted = inspect.signature(getattr(diffusers, choice.cls).__init__).parameters
    for key, harmless in _NEEDED.items():
        if key not in accepted and config.get(key, harmless) != harmless:
            raise DoesNotFit(f"{choice.title} cannot sample a base with {key} = {config[key]!r}; choose another")
    predicts = config.get("prediction_type", "epsilon")
    if choice.predictions and predicts not in choice.predictions:
        raise DoesNotFit(f"{choice.title} cannot sample a base with prediction_type = {predicts!r}; choose another")
    return {key: config[key] for key in _ABOUT_THE_BASE if key in accepted and key in config}


def _per_image_classes() -> set[str]:
    return {choice.cls for choice in SCHEDULERS.values()}


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
        if row.cls != type(scheduler).__name__:
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


def _set_steps(scheduler: Any, steps: int, device: torch.device | str, name: str) -> None:
    most = scheduler.config.num_train_timesteps
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= most:
        raise BadConfig(f"steps={steps!r}: the number of steps must be a whole number from 1 to {most}")
    try:
        scheduler.set_timesteps(steps, device=device)
    except (ValueError, IndexError) as problem:
        sentence = str(problem).strip().splitlines()[0]
        raise BadConfig(f"the scheduler {name} cannot make {steps} steps: {sentence}") from problem
