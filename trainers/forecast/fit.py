"""What makes a training fit: the settings that take less, cheapest in quality first, each with its price in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from studio.adapters import AdapterConfig
from studio.errors import DoesNotFit
from studio.planning.forecast import Forecast
from studio.planning.sizes import as_bytes, in_words
from studio.quantization import BACKENDS
from studio.quantization.wishes import read_wishes
from studio.trainers.forecast.asked import Asked
from studio.trainers.forecast.plan import forecast

__all__ = ["LEVERS", "Fitted", "Found", "Lever", "check_fits", "fit"]


@dataclass(frozen=True)
class Lever:
    """One thing that takes less memory.

    Args:
        name: a word for it. cost: what it costs, in words. change: ``(settings, image base?) -> settings`` with it, or
            None where it is done already or means nothing.
        option: ``(settings) -> words of the command line`` that ask for it; "" where the commands have none.
        group: levers of one group take each other's place.
    """

    name: str
    cost: str
    change: Callable[[Asked, Forecast], Asked | None]
    option: Callable[[Asked], str] = lambda asked: ""
    group: str = ""


def _checkpointed(asked: Asked, now: Forecast) -> Asked | None:
    return None if asked.gradient_checkpointing else replace(asked, gradient_checkpointing=True)


def _accumulated(asked: Asked, now: Forecast) -> Asked | None:
    rows = now.sizes["batch_size"]
    if rows <= asked.processes:
        return None
    return replace(asked, batch_size=asked.processes, accumulation=asked.accumulation * -(-rows // asked.processes))


def _put_away(asked: Asked, now: Forecast) -> Asked | None:
    return None if asked.cached or asked.text_encoder else replace(asked, cached=True)


def _unseen(asked: Asked, now: Forecast) -> Asked | None:
    return replace(asked, previews=False) if asked.previews and now.worst.name == "preview" else None


def _halved(asked: Asked, now: Forecast) -> Asked | None:
    return replace(asked, dtype="bf16") if asked.dtype in ("fp32", "float32") and not asked.quantize else None


def _swapped(asked: Asked, now: Forecast) -> Asked | None:
    """Half of the blocks first, then all."""
    packed = asked.quantize is not None and not (asked.gradient_checkpointing and _waits(asked.quantize))
    if asked.whole or asked.sharding != "none" or packed:
        return None
    blocks = now.sizes.get("blocks", 0)
    more = next((count for count in (blocks // 2, blocks) if count > max(asked.blocks_to_swap, 2)), None)
    return None if more is None else replace(asked, blocks_to_swap=more)


def _waits(quantize: str) -> bool:
    """Whether layers that are quantised so can wait elsewhere than they compute."""
    return all(BACKENDS[way].packing.fetched for way in read_wishes(quantize, packages=False).values())


def _fused(asked: Asked, now: Forecast) -> Asked | None:
    alone = asked.processes == 1 and asked.accumulation == 1 and asked.sharding == "none"
    held = now.categories.get("gradients", 0)
    whole = isinstance(asked.adapter, AdapterConfig) and asked.adapter.watching
    if asked.fused_backward_pass or not alone or whole or held <= now.peak // 100:
        return None
    return replace(asked, fused_backward_pass=True)


def _eight_bits(asked: Asked, now: Forecast) -> Asked | None:
    held = now.categories.get("optimizer", 0)
    return replace(asked, optimizer="adamw-8bit") if asked.optimizer == "adamw" and held > now.peak // 100 else None


def _text_left(asked: Asked, now: Forecast) -> Asked | None:
    return replace(asked, text_encoder=False) if asked.text_encoder else None


def _quantised(way: str) -> Callable[[Asked, Forecast], Asked | None]:
    def change(asked: Asked, now: Forecast) -> Asked | None:
        if asked.whole or asked.quantize == way or asked.quantize not in (None, "int8"):
            return None
        if asked.blocks_to_swap and not (asked.gradient_checkpointing and _waits(way)):
            return None
        return replace(asked, quantize=way)

    return change


def _smaller(asked: Asked, now: Forecast) -> Asked | None:
    if "native" not in now.sizes:  # a language model
        length = asked.length or now.sizes["length"]
        return replace(asked, length=length // 2) if length > max(128, 2 * now.sizes["least"]) else None
    width, height = now.sizes["width"], now.sizes["height"]
    unit, least = 64, min(256, now.sizes["native"])
    sides = max(unit, round(width * 0.75 / unit) * unit), max(unit, round(height * 0.75 / unit) * unit)
    return replace(asked, resolution=sides) if min(sides) >= least and sides != (width, height) else None


LEVERS: Final[Sequence[Lever]] = (
    Lever("gradient checkpointing", "the same result; a step takes about a third longer", _checkpointed,
          lambda asked: "--set gradient_checkpointing=true"),
    Lever("smaller batches, accumulated", "the same gradients; a step takes longer", _accumulated,
          lambda asked: f"--batch-size {asked.batch_size} --set accumulation={asked.accumulation}"),
    Lever("encoders put away", "nothing: their outputs are kept", _put_away),
    Lever("blocks in the CPU's memory", "the same result; they are fetched in both passes, beside what computes",
          _swapped, lambda asked: f"--set blocks_to_swap={asked.blocks_to_swap}"),
    Lever("no previews", "nobody sees the adapter grow", _unseen, lambda asked: "--set preview_prompts=[]"),
    Lever("steps in the backward pass", "gradients are not clipped", _fused,
          lambda asked: "--set fused_backward_pass=true --set clip=0"),
    Lever("the base in bf16", "the last digits of its products", _halved),
    Lever("an optimizer in 8 bits", "the last digits of its moments", _eight_bits,
          lambda asked: "--set optimizer=adamw-8bit"),
    Lever("the text encoder as it is", "rare words are learned a little less well", _text_left,
          lambda asked: "--no-text-encoder"),
    Lever("the base in 8 bits (int8)", "errors of about half a percent in its weights", _quantised("int8"),
          lambda asked: "--quantize int8", "quantize"),
    Lever("the base in 4 bits (NF4)", "errors of about nine percent in its weights; the adapter makes up for some",
          _quantised("nf4"), lambda asked: "--quantize nf4", "quantize"),
    Lever("smaller samples", "detail, or context, that is not learned", _smaller, lambda asked: _size_option(asked)),
)  # fmt: skip
"""What takes less, cheapest in quality first."""


def _size_option(asked: Asked) -> str:
    if isinstance(asked.resolution, tuple):
        return f"--resolution {asked.resolution[0]}x{asked.resolution[1]}"
    return f"--max-length {asked.length}"


@dataclass(frozen=True)
class Found:
    """Settings that fit.

    Args:
        asked: the settings. forecast: what they take. levers: what was changed.
    """

    asked: Asked
    forecast: Forecast
    levers: tuple[Lever, ...]

    @property
    def options(self) -> str:
        """The words of the command line that ask for it."""
        return " ".join(filter(None, (lever.option(self.asked) for lever in self.levers)))

    def __str__(self) -> str:
        said = ", ".join(f"{lever.name} ({lever.cost})" for lever in self.levers)
        return f"{in_words(self.forecast.peak)} with {said}"


@dataclass(frozen=True)
class Fitted:
    """What a search has found.

    Attributes:
        limit: bytes that there are. forecast: of what was asked. found: settings that fit, the cheapest in quality
            first, at most two; empty where what was asked fits, or nothing does.
        least: what takes least of all that was tried.
    """

    limit: int
    forecast: Forecast
    found: tuple[Found, ...]
    least: Found

    @property
    def fits(self) -> bool:
        """Whether what was asked fits."""
        return self.forecast.peak <= self.limit

    def __str__(self) -> str:
        if self.fits:
            return f"{in_words(self.forecast.peak)} of {in_words(self.limit)}: it fits as it is"
        if not self.found:
            return (
                f"nothing reaches {in_words(self.limit)}: it takes {in_words(self.forecast.peak)} as it is, and at "
                f"least {self.least}"
            )
        lines = [f"{in_words(self.forecast.peak)} is more than {in_words(self.limit)}; these fit:"]
        for number, one in enumerate(self.found, 1):
            lines += [f"  {number}. {one}", *([f"     {one.options}"] if one.options else [])]
        return "\n".join(lines)


def fit(base: str | Path, asked: Asked, limit: str | float, *, given: bool = True) -> Fitted:
    """Searches settings that fit.

    Args:
        base: as :func:`~studio.trainers.forecast.plan.plan` takes it. asked: the settings that are wished.
        limit: what there is: ``"12GB"``, ``"11.5GiB"``, or a number in GB.
        given: look at nothing but what the training commands have an option for; False looks at everything.

    Raises:
        BadConfig: a limit that is none.
        UsageError: as :func:`~studio.trainers.forecast.plan.plan`.
    """
    most = as_bytes(limit)
    first = forecast(base, asked)
    start = Found(asked, first, ())
    if first.peak <= most:
        return Fitted(most, first, (), start)
    levers = [lever for lever in LEVERS if not given or lever.option(asked)]
    tried = list(_path(base, start, levers, most))
    least = min([start, *tried], key=lambda one: one.forecast.peak)
    found = [one for one in tried if one.forecast.peak <= most][:1]
    if found:
        found += _another(base, start, found[0], levers, most)
    return Fitted(most, first, tuple(found), least)


def _path(base: str | Path, start: Found, levers: Sequence[Lever], limit: int) -> Iterator[Found]:
    """Puts one lever on after the other, as often as it goes, until it fits; what gains nothing is left out."""
    now = start
    for lever in levers:
        while True:
            changed = lever.change(now.asked, now.forecast)
            if changed is None:
                break
            after = forecast(base, changed)
            if after.peak >= now.forecast.peak:
                break
            kept = tuple(
                one for one in now.levers if one is not lever and not (lever.group and one.group == lever.group)
            )
            now = Found(changed, after, (*kept, lever))
            yield now
            if after.peak <= limit:
                return


def _another(base: str | Path, start: Found, first: Found, levers: Sequence[Lever], limit: int) -> list[Found]:
    """A second way: without the last thing that the first one needed."""
    rest = [lever for lever in levers if lever is not first.levers[-1]]
    return [one for one in _path(base, start, rest, limit) if one.forecast.peak <= limit][:1]


def check_fits(base: str | Path, asked: Asked, limit: str | float) -> Forecast:
    """Checks, before anything is loaded, that a training fits; returns its forecast.

    Raises:
        DoesNotFit: it does not; two ways that do are named, or the least that is needed.
    """
    done = fit(base, asked, limit)
    if done.fits:
        return done.forecast
    raise DoesNotFit(" ".join(str(done).split()))
