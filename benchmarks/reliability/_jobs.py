"""Commands that write files, each on an embedded base and over in seconds, and what is wrong with what they leave."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from benchmarks.reliability._forked import End, command, ran

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Job", "complaint", "contents", "jobs", "leftovers", "numbered"]

OWN: Final = {"log.jsonl", "report.html"}  # they tell times and paths
GROWING: Final = {"log.jsonl", "measures.json", "run.toml"}
LEFT: Final = re.compile(r"\..*\.tmp|\.lock|\.room|\.clock\..*", re.DOTALL)
LORA: Final = ("--rank", "2", "--steps", "3", "--batch-size", "1", "--checkpoint-every", "1", "--preview-every", "2")
PICTURES: Final = ("--preview", "a photo of sks robot", "--sampling-steps", "1")
STYLE: Final = ("--preview", "ink, a robot", "--sampling-steps", "1")


@dataclass(frozen=True)
class Job:
    """A command.

    Args:
        name: what it does.
        words: the command line up to the output.
        folder: where it may write.
        counts: whether it goes on counting when it is called again, instead of going on with what it was at.
    """

    name: str
    words: tuple[str, ...]
    folder: Path
    counts: bool = False

    def end(self, place: Path, *more: str, learn: bool = False, **options: object) -> End:
        """Runs it with an output of ``place`` in a process of its own, ``options`` are those of :func:`ran`."""
        if not learn:
            assert self.whole, "and everything is imported, which is no part of a trial"
        cache = {"STUDIO_CACHE": str(place / "cache")}
        action = command(*self.words, *more, "-o", place / "run")
        return ran(action, environment=cache, learn=learn, **options)  # type: ignore[arg-type]

    @cached_property
    def whole(self) -> Path:
        """What it makes when nothing happens to it."""
        place = self.folder / f"{self.name}-whole"
        place.mkdir()
        end = self.end(place, learn=True)
        assert end.code == 0, f"{self.name} ended with {end.code}: {end.said}"
        return place / "run"

    def again(self, place: Path, lost: str = "") -> str:
        """Gives the command once more; returns what is wrong with what is there then, ``""`` if nothing.

        Args:
            place: the output's folder.
            lost: a folder of the run that somebody removed, so that not all of it can be there.
        """
        before = contents(place / "run")
        end = self.end(place)
        if end.code or end.unsaid:
            return f"the same command ended with {end.code}: {end.said[-300:]!a}"
        there = contents(place / "run")
        if self.counts:
            return _counted(before, there, contents(self.whole)) or leftovers(place)
        fault = self.torn(place) or leftovers(place)
        wanted = {name for name in contents(self.whole) if not lost or not name.startswith(f"{lost}/")}
        missing = wanted - there.keys()
        return fault or (f"missing after the same command: {sorted(missing)}" if missing else "")

    def torn(self, place: Path) -> str:
        """Says which file there is not what it is in a run that nothing happened to, ``""`` if none."""
        whole = contents(self.whole)
        for name, content in contents(place / "run").items():
            last = name.rpartition("/")[2]
            if last == "report.html" and not content.rstrip().endswith(b"</html>"):
                return "half a report"
            if last == "log.jsonl" and _losses(content) != _losses(whole[name])[: len(_losses(content))]:
                return f"other losses: {_losses(content)}"
            if name.endswith(".state") or last in OWN | GROWING or name not in whole:
                continue
            if _facts(name, content) != _facts(name, whole[name]):
                return f"{name} is not what it is in a run in one go"
        return ""


def _counted(before: dict[str, bytes], there: dict[str, bytes], whole: dict[str, bytes]) -> str:
    """Checks pictures that were numbered on behind those that were there."""
    if any(there.get(name) != content for name, content in before.items() if not LEFT.fullmatch(name)):
        return "a picture that was there is not what it was"
    new = [content for name, content in sorted(there.items()) if name not in before]
    return "" if new == [content for _, content in sorted(whole.items())] else "other pictures than in one go"


def _facts(name: str, content: bytes) -> Any:
    """What a file says; of a result all but the memory that was measured, which no two runs have alike."""
    if name != "result.toml":
        return content
    facts = tomllib.loads(content.decode())
    facts.pop("memory", None)
    return facts


def _losses(log: bytes) -> list[float]:
    """The losses of a log, whose last line may be torn."""
    return [json.loads(line)["loss"] for line in log.splitlines(keepends=True) if line.endswith(b"\n")]


def contents(folder: Path) -> dict[str, bytes]:
    """The files in a folder, by path; not what a writer leaves half-written."""
    files = [file for file in folder.rglob("*") if file.is_file() and not LEFT.fullmatch(file.name)]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def leftovers(place: Path) -> str:
    """Names what a writer that is gone left half-written, ``""`` where there is nothing."""
    left = [str(file.relative_to(place)) for file in place.rglob("*") if LEFT.fullmatch(file.name)]
    return f"left behind: {left}" if left else ""


def complaint(end: End, place: Path, codes: Sequence[int] = (2,)) -> str:
    """Says what is wrong with a refusal: it is one sentence that names a path and a reason, and an exit code."""
    lines = [line for line in end.said.splitlines() if line.startswith("error: ")]
    if end.unsaid or end.code not in codes or len(lines) != 1:
        return end.unsaid or f"exit code {end.code} and {len(lines)} sentences: {end.said[-300:]!a}"
    return "" if str(place) in lines[0] else f"it names no file: {lines[0]!a}"


def jobs(folder: Path) -> dict[str, Job]:
    """All commands, their data in ``folder``."""
    from studio.families.emoji_world import instance_set

    photos, texts, held_out = folder / "photos", folder / "texts.jsonl", folder / "held-out.jsonl"
    photos.mkdir(parents=True)
    for number, picture in enumerate(instance_set("robot", ("white", "yellow"), 3)):
        picture.save(photos / f"{number}.png")
    texts.write_text("".join(json.dumps({"prompt": word, "completion": word * 2}) + "\n" for word in "abc"))
    held_out.write_text(json.dumps({"prompt": "d", "completion": "dd"}) + "\n")
    subject = ("dreambooth", "emoji", str(photos), "--instance-prompt", "a photo of sks robot", *LORA, *PICTURES)
    tune = ("tune", "causal-lm", "facts", str(texts), *LORA, "--held-out", str(held_out))
    drawn = ("generate", "emoji", "a robot", "a cat", "--seeds", "0..1", "--steps", "1")
    made = (
        Job("dreambooth", subject, folder),
        Job("style", ("style", "emoji", str(photos), "--trigger", "ink", *LORA, *STYLE), folder),
        Job("tune", tune, folder),
        Job("generate", drawn, folder, counts=True),
    )
    return {job.name: job for job in made}


def numbered(folder: Path) -> Callable[[], Path]:
    """Returns a maker of new folders."""

    def places() -> Iterator[Path]:
        for number in range(10**6):
            place = folder / f"trial-{number}"
            place.mkdir()
            yield place

    made = places()
    return lambda: next(made)
