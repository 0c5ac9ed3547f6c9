"""Which adapters a job needs: those of its blend, and those that its prompt tags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from studio.errors import BadConfig, StudioError, UnknownName
from studio.pipelines.naming import free_name, plain_name
from studio.pipelines.prompting.tags import parse_prompt
from studio.pipelines.rendering.job import Job

__all__ = ["adapters_of", "check_adapters"]

_NAME: Final = re.compile(r"[\w-]+", re.ASCII)
_TAGGED: Final = re.compile(r"(?:<\s*(?:lora\s*:)?\s*|\bembedding:)([\w.-]+)")


def check_adapters(declared: Any, what: str) -> dict[str, str]:
    """Returns files by name, checked.

    Args:
        declared: a table, or text such as ``robot=a.safetensors;ink=b.safetensors``. what: what it is called.

    Raises:
        BadConfig: it is neither, or a name that no adapter can have.

    Example:
        >>> check_adapters("robot=runs/robot; ink=ink.safetensors", "adapters")
        {'robot': 'runs/robot', 'ink': 'ink.safetensors'}
    """
    if isinstance(declared, str):
        pairs = [word.partition("=") for word in declared.split(";") if word.strip()]
        declared = {name.strip(): file.strip() for name, _, file in pairs}
    if not isinstance(declared, Mapping):
        raise BadConfig(f"{what} are a table, name to file, not {repr(declared)[:80]}")
    for name, file in declared.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise BadConfig(f"{what}: {repr(name)[:80]} is no name of an adapter: it has letters, digits, '_' and '-'")
        if not isinstance(file, (str, Path)) or not str(file):
            raise BadConfig(f"{what}: the adapter {name!r} has no file but {repr(file)[:80]}")
    return {name: str(file) for name, file in declared.items()}


def adapters_of(job: Job, declared: Mapping[str, str]) -> Job:
    """Returns a job with the files of the adapters that it needs, its blend by their names.

    Args:
        job: the job. declared: all files that it may name; a key of its blend that is not there is a file itself.

    Raises:
        BadConfig: its blend names what is neither. UnknownName: its prompt tags a name that is not declared.
    """
    blend, files = dict[str, Any](), dict[str, str]()
    for key, strength in job.blend.items():
        name = key if key in declared else _of_file(job, key, {*declared, *files})
        if name in blend:
            raise BadConfig(f"{job.where}: the blend names the adapter {name!r} twice; give it one strength")
        blend[name], files[name] = strength, declared.get(key, key)
    text = job.prompt if job.resolved is None else job.resolved[0]
    _check_tags(text, {*declared, *files}, job.where)
    tagged = {plain_name(found) for found in _TAGGED.findall(text)}
    files.update({name: declared[name] for name in declared if name in tagged})
    return replace(job, blend=blend, adapters=dict(sorted(files.items())))


def _check_tags(text: str, known: set[str], where: str) -> None:
    """Checks that what a prompt tags is declared; whether a tag fits the base is seen when that is open.

    Raises:
        UnknownName: it is not; the nearest is named.
    """
    try:
        parse_prompt(text, known)
    except UnknownName as error:
        raise UnknownName(f"{where}: {error}") from None
    except StudioError:  # its components, perhaps
        return


def _of_file(job: Job, key: str, taken: set[str]) -> str:
    """What an adapter is called that the blend names by its file."""
    if _NAME.fullmatch(key):
        known = ", ".join(sorted(taken)) or "none"
        raise BadConfig(f"{job.where}: the blend names the adapter {key!r}, which is not declared ({known}); declare "
                        "it under adapters, or name its file")  # fmt: skip
    return free_name(Path(key), "", taken)
