"""Rank, alpha and scale of every layer, from a file's header, its configs and the single numbers in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from studio.adapters import AdapterConfig
from studio.adapters.contract.ranked import RankedConfig
from studio.errors import StudioError
from studio.files.components import component_of
from studio.files.detect import Contents, Layer
from studio.files.format import Settings, Source
from studio.files.scale import root_or_rank
from studio.files.spelling import Spelling
from studio.files.stated import header_alpha

__all__ = ["Graded", "counted", "grades_of"]


@dataclass(frozen=True)
class Graded:
    """What a file says about the scale of one layer.

    Attributes:
        module: the layer, as the file names it. rank: of its tensors; None for a method without one.
        alpha: numerator of the scale; None where nothing states it, and then it is the rank.
        scale: what its change is multiplied by; None for a method without a rank.
        beside: whether alpha stands beside the layer's tensors. whole: whether it is stored as a whole number there.
    """

    module: str
    rank: int | None
    alpha: float | None
    scale: float | None
    beside: bool = False
    whole: bool = False


def counted(values: Iterable[Any]) -> dict[Any, int]:
    """Returns how often each value is there, sorted by the value; None is left out."""
    return dict(sorted(Counter(value for value in values if value is not None).items()))


def grades_of(found: Contents, source: Source, config: AdapterConfig | None) -> tuple[list[Graded], list[str]]:
    """Returns what a file says about the scale of its layers, and what is wrong with the configs that say it.

    Args:
        found: its keys. source: the file, with its single numbers. config: ours, where the file has it.
    """
    statements = _Statements(source, config)
    grades = [one for layer in found.layers.values() for one in _graded(layer, source, statements)]
    return grades, statements.troubles()


class _Statements:
    """What the file's configs say, made once per method and component."""

    def __init__(self, source: Source, config: AdapterConfig | None) -> None:
        self._source, self._config = source, config
        self._made: dict[tuple[str, ...], Settings | None] = {}
        self._troubles: list[str] = []

    def troubles(self) -> list[str]:
        """What is wrong with them, once all layers are graded: patterns that no layer matched among it."""
        for settings in filter(None, self._made.values()):
            settings.fields()
            self._troubles += [note for note in settings.notes if note not in self._troubles]
        return self._troubles

    def of(self, layer: Layer, method: str) -> Settings | None:
        component = component_of(layer.module)
        key = (layer.format.name, method, component)
        if key not in self._made:
            self._made[key] = None  # also where it raises
            self._made[key] = layer.format.settings(self._source, method, (component, component))
        return self._made[key]

    def scale(self, layer: Layer, method: str, rank: int) -> tuple[float, float] | None:
        """Alpha and scale of a layer that has none beside it; None where nothing states it."""
        module = layer.module.removeprefix(f"{component_of(layer.module)}.")
        try:
            settings = self.of(layer, method)
            if settings is not None:
                return _stated(settings, module, rank)
            own = next((one for one in _members(self._config) if one.method == method), None)
            if isinstance(own, RankedConfig):
                return own.alpha_at(module), own.scale_at(module)
            header = header_alpha(self._source.metadata)
        except StudioError as error:
            self._note(error)
            return None
        return None if header is None else (header[1], header[1] / rank)

    def _note(self, error: StudioError) -> None:
        if str(error) not in self._troubles:
            self._troubles.append(str(error))


def _members(config: AdapterConfig | None) -> tuple[AdapterConfig, ...]:
    return () if config is None else config.members


def _stated(settings: Settings, module: str, rank: int) -> tuple[float, float] | None:
    scale = settings.grade(module, rank).scale
    return None if scale is None else (scale * root_or_rank(rank, settings.stated.get("use_rslora") is True), scale)


def _graded(layer: Layer, source: Source, statements: _Statements) -> Iterator[Graded]:
    spelling = layer.spelling()
    if not isinstance(spelling, Spelling):
        return
    by_name = {name: key for part, key in layer.parts.items() for name in spelling.ours.get(part, ())}
    key = next((by_name[name] for name in spelling.adapter.ranks if name in by_name), None)
    shape = () if key is None else source.infos[key].shape
    axis = layer.format.rank_axis if len(shape) > 1 else 0
    rank = int(shape[axis]) if shape and shape[axis] else None
    if not issubclass(spelling.config, RankedConfig):
        yield Graded(layer.module, rank, None, None)
        return
    alpha = layer.parts.get("alpha")
    number = source.tensors.get(alpha or "")
    if alpha is not None and number is not None and number.numel() == 1 and not number.is_complex():
        value, integer = float(number), not number.is_floating_point()
        yield Graded(layer.module, rank, value, 1.0 if rank is None else value / rank, True, integer)
        return
    if rank is None:
        yield Graded(layer.module, None, None, None)
        return
    stated = statements.scale(layer, spelling.method, rank) or (None, 1.0)
    yield Graded(layer.module, rank, *stated)
