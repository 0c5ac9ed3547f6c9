"""The adapters on a base while a list is drawn: loaded where they are needed, taken off when there are too many."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, TypeVar

from studio.adapters.effect import has_effect
from studio.errors import NoEffect
from studio.files.embedding import METHOD
from studio.pipelines.image import ImagePipeline

__all__ = ["Standing"]

T = TypeVar("T")
MOST: Final = 16
"""Adapters that stay where they are not needed at the moment."""


class Standing:
    """The adapters on a pipeline, by the order of their names, which decides the last bits of a sum.

    Args:
        pipe: a pipeline without adapters.
        allow_partial: load what fits of a file. pickled: read ``.pt`` and ``.bin`` files too.
    """

    def __init__(self, pipe: ImagePipeline, *, allow_partial: bool = False, pickled: bool = False) -> None:
        self.pipe = pipe
        self.allow_partial = allow_partial
        self.pickled = pickled
        self._files: dict[str, str] = {}
        self._teaching: set[str] = set()  # names of those that bring learned words
        self._bad: dict[tuple[str, str], Exception] = {}

    def need(self, wanted: Mapping[str, str]) -> dict[str, Exception]:
        """Sees to it that adapters stand on the base.

        Args:
            wanted: their files, by name.

        Returns:
            Those that cannot, and why; none of them is tried again before :meth:`forget`.
        """
        bad = {name: self._bad[name, file] for name, file in wanted.items() if (name, file) in self._bad}
        wanted = {name: file for name, file in wanted.items() if name not in bad}
        crowded = len({*self._files, *wanted}) > MOST
        for name, file in list(self._files.items()):
            if wanted.get(name, file) != file or (name not in wanted and (crowded or name in self._teaching)):
                self._unload(name)
        missing = sorted(set(wanted) - set(self._files))
        for name in [name for name in self._files if missing and name > missing[0]]:
            self._unload(name)
        for name in sorted(set(wanted) - set(self._files)):
            try:
                self._load(name, wanted[name])
            except Exception as error:
                bad[name] = self._bad[name, wanted[name]] = error.with_traceback(None)
        return bad

    def by_words(self, jobs: Sequence[T], files: Callable[[T], Collection[str]]) -> list[list[T]]:
        """Returns jobs in parts that share their learned words, since a word is read wherever it stands.

        Args:
            jobs: the jobs. files: the names of the adapters that one of them needs, which were loaded before.
        """
        found: dict[frozenset[str], list[T]] = {}
        for job in jobs:
            found.setdefault(frozenset(self._teaching & set(files(job))), []).append(job)
        return list(found.values())

    def forget(self) -> None:
        """Lets files that could not be loaded be tried again."""
        self._bad.clear()

    def _load(self, name: str, file: str) -> None:
        report = self.pipe.load(file, name=name, allow_partial=self.allow_partial, pickled=self.pickled)
        self._files[name] = file
        if report.embeddings:
            self._teaching.add(name)
        if report.method != METHOD and not has_effect(self.pipe.carrier, name):
            self._unload(name)
            raise NoEffect(
                f"{file} changes nothing: the change is zero in each of its layers, so what is made would be the "
                "base's own; it was saved before it was trained, or its tensors were lost"
            )

    def _unload(self, name: str) -> None:
        self.pipe.unload(name)
        self._teaching.discard(name)
        del self._files[name]
