"""What the pipelines share: a base, and the adapters on its modules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch

import studio.adapters as core
from studio.adapters import AdapterInfo, Strength
from studio.errors import DoesNotFit
from studio.files import embeddings, inspect, remove_embedding
from studio.files.embedding import METHOD
from studio.files.embedding_file import words_in
from studio.files.source import PICKLED, open_source
from studio.pipelines.blends import BlendLike
from studio.pipelines.naming import adapter_file, free_name
from studio.pipelines.sources import Source, source_of

if TYPE_CHECKING:
    from studio.files import AdapterFile, LoadReport
    from studio.quantization.wishes import Wishes

__all__ = ["Pipeline"]

AnyPipeline = TypeVar("AnyPipeline", bound="Pipeline")


class Pipeline(ABC):
    """A base, with any number of adapters.

    Args:
        base: an opened base; :meth:`open` opens one.

    Attributes:
        base: the base.
        sources: the file of every adapter that :meth:`load` loaded, by name; of learned words by ``embedding:name``.
    """

    _open_base: ClassVar[Callable[..., Any]]

    def __init__(self, base: Any) -> None:
        self.base = base
        self.sources: dict[str, Source] = {}
        self._places: dict[str, Path] = {}
        self._brought: dict[str, tuple[str, ...]] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.base.id}; adapters: {', '.join(self.adapters) or 'none'}>"

    @classmethod
    def open(
        cls: type[AnyPipeline],
        base: str | Path | Any,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        offline: bool = False,
        quantize: Wishes | None = None,
    ) -> AnyPipeline:
        """Opens a base.

        Args:
            base: the name of an embedded one, a folder, a hub id, an object of diffusers or transformers, or an opened
                base; :func:`studio.families.open_base` and :func:`studio.families.language.open_language_base` have the
                forms.
            dtype: the weights' type, or its name (``"bf16"``); ``None``: what the files hold, but fp32 for a small base
                on a CPU, unchanged for an object; ``"auto"``: the same, or what the device computes fastest in.
            device: where to; ``None``: the CPU for what is read from disk, unchanged for an object.
            offline: never ask the hub.
            quantize: what is kept in fewer bits, and how: ``"nf4"``.

        Raises:
            UnknownName: neither a known name nor a folder nor an id that the hub has, or no such type.
            BadFile: what is there is not a whole base.
            DoesNotFit: a base of a family that the studio does not know.
        """
        return cls(cls._open_base(base, dtype=dtype, device=device, offline=offline, quantize=quantize))

    @property
    @abstractmethod
    def carrier(self) -> Any:
        """What the adapters are on: a module, or a diffusers pipeline."""

    @property
    def adapters(self) -> dict[str, AdapterInfo]:
        """The adapters, in the order in which they came."""
        return core.adapters(self.carrier)

    @property
    def embeddings(self) -> dict[str, tuple[str, ...]]:
        """The learned words (textual inversion): name -> how they are written in a prompt."""
        return embeddings(self.carrier)

    def load(
        self,
        file: str | Path,
        *,
        name: str | None = None,
        strength: float | Strength = 1.0,
        allow_partial: bool = False,
        trainable: bool = False,
        pickled: bool = False,
    ) -> LoadReport:
        """Loads an adapter and adds it to the current blend; as :func:`studio.load`, which lists what it raises.

        A file of learned words (textual inversion) adds them to what prompts may say.

        Args:
            file: a safetensors file, a folder in PEFT's format, or the folder of a run.
            name: what tags and blends call it; ``None``: the name that the file records, else that of the file; where
                it is taken, that of the file's folder, or one with a number.
            strength: its strength in the current blend.
            allow_partial: load what fits and report the rest.
            trainable: whether its tensors require gradients.
            pickled: allow ``.pt`` and ``.bin`` files, whose tensors alone are read.

        Raises:
            DoesNotFit: it is for another base, or it is on the pipeline already and has no other name now.
        """
        from studio.files import load

        file = adapter_file(file)
        recorded, words = "", False
        if pickled and file.suffix in PICKLED:
            words = words_in(open_source(file, pickled=True)) is not None
        else:
            found = inspect(file)
            self._check_fit(found)
            recorded, words = found.name, found.method == METHOD
        source = source_of(file)
        if name is None and not words:
            self._check_new(file)
            name = free_name(file, recorded, self.adapters)
        report = load(
            self.carrier, file, name=name, strength=strength, allow_partial=allow_partial, trainable=trainable,
            pickled=pickled,
        )  # fmt: skip
        self.sources |= {f"embedding:{one}": source for one in report.embeddings}
        if not words:
            self.sources[report.name], self._places[report.name] = source, file.resolve()
            self._brought[report.name] = report.embeddings
        return report

    def _check_new(self, file: Path) -> None:
        loaded = next((name for name, place in self._places.items() if place == file.resolve()), None)
        if loaded in self.adapters:
            raise DoesNotFit(f"{file} is loaded already, as {loaded!r}: give it a name of its own to load it twice")

    def _check_fit(self, found: AdapterFile) -> None:  # noqa: B027  (a base without tokens of its own takes any file)
        """Checks that an adapter's file is not for another base, where its tensors do not tell."""

    def unload(self, name: str) -> None:
        """Takes an adapter off, with the words that its file brought, or learned words; the base is as it was.

        Raises:
            UnknownName: neither an adapter nor an embedding has this name; the nearest is named.
            DoesNotFit: somebody else has given the tokenizer other tokens since.
        """
        held = self.embeddings
        words = [one for one in {name: None, **dict.fromkeys(self._brought.get(name, ()))} if one in held]
        if name in self.adapters or not words:
            core.detach(self.carrier, name)
        for one in words:
            remove_embedding(self.carrier, one)
            self.sources.pop(f"embedding:{one}", None)
        self.sources.pop(name, None)
        self._places.pop(name, None)
        self._brought.pop(name, None)

    def blend(self, blend: BlendLike | str) -> None:
        """Sets the current blend: which adapters act from now on; ``{}`` is the base alone.

        Raises:
            UnknownName: an adapter that is not there; the nearest is named.
            DoesNotFit: a blend is baked into the weights.
        """
        core.blend(self.carrier, blend)

    def bake(self, blend: BlendLike | str | None = None) -> None:
        """Folds a blend (``None``: the current one) into the weights, until :meth:`unbake`.

        Raises:
            UnknownName: an adapter that is not there; the nearest is named.
            DoesNotFit: a blend is baked already, or weights are offloaded.
        """
        _ = self.base.hash  # of the base itself, so it is taken before the weights change
        core.bake(self.carrier, blend)

    def unbake(self) -> None:
        """Gives the base's weights back, bit for bit."""
        core.unbake(self.carrier)
