"""YAML as a list of jobs uses it: plain values alone, no name twice in a table, and the line where each job begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml  # type: ignore[import-untyped]

from studio.errors import BadFile
from studio.limits import limit, too_many

__all__ = ["parse_yaml"]


def parse_yaml(text: str, what: str) -> tuple[Any, Callable[[int], int]]:
    """Reads YAML.

    Args:
        text: the YAML. what: the file, for messages.

    Returns:
        The content, and a function that tells the line (from 1 on) of an entry of its list of jobs.

    Raises:
        BadFile: it is no YAML, asks for objects of a programming language, or names something twice in one table.

    Example:
        >>> content, line_of = parse_yaml("base: emoji\\njobs:\\n- prompt: a\\n- prompt: b\\n", "jobs.yaml")
        >>> content["jobs"][1], line_of(1)
        ({'prompt': 'b'}, 4)
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lambda number: 1
        _check(node, what)
        return loader.construct_document(node), _lines_of(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f" in line {mark.line + 1}"
        raise BadFile(f"{what} is no YAML{line}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadFile(f"{what} is no YAML: {str(error)[:200] or 'it is nested too deep'}") from None


def _check(node: Any, what: str) -> None:
    """Checks names and depth; what an alias repeats counts as often as it stands there.

    Raises:
        BadFile: a name stands twice in one table, or it would become too large.
    """
    waiting, seen = [(node, 0)], 0
    while waiting:
        one, depth = waiting.pop()
        seen += 1
        if depth > limit("json-depth") or seen > 20 * limit("jobs"):
            raise BadFile(f"{what} repeats itself by aliases, or is nested too deep: {too_many('jobs')}")
        if isinstance(one, yaml.MappingNode):
            names: set[str] = set()
            for key, value in one.value:
                name = str(getattr(key, "value", ""))
                if name in names and isinstance(key, yaml.ScalarNode):
                    raise BadFile(
                        f"{what} line {key.start_mark.line + 1}: {name!r} stands there twice; which is meant?"
                    )
                names.add(name)
                waiting.append((value, depth + 1))
        elif isinstance(one, yaml.SequenceNode):
            waiting += [(value, depth + 1) for value in one.value]


def _lines_of(node: Any) -> Callable[[int], int]:
    jobs = node
    if isinstance(node, yaml.MappingNode):
        jobs = next((value for key, value in node.value if getattr(key, "value", None) == "jobs"), None)
    starts = [one.start_mark.line + 1 for one in jobs.value] if isinstance(jobs, yaml.SequenceNode) else []
    return lambda number: starts[number] if number < len(starts) else 1
