"""What an answer is worth: small rewards by name, Python functions, and reward adapters on the same base."""

from __future__ import annotations

import importlib
import math
import numbers
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from studio.datasets.prompts import Prompt
from studio.errors import BadConfig, nearest
from studio.registry import Registry
from studio.shown import short

__all__ = ["REWARDS", "NamedReward", "RewardFunction", "Scores", "check_reward", "each", "function_of", "is_file"]

RewardFunction: TypeAlias = Callable[[str, str, "str | None"], float]
"""``(prompt, completion, answer) -> reward``: the last turn that was asked, what was written, and the right answer."""

Scores: TypeAlias = Callable[[Prompt, Sequence[str]], Sequence[float]]
"""Rewards of the texts that were written behind a prompt."""


@dataclass(frozen=True)
class NamedReward:
    """A reward that comes with the studio.

    Args:
        make: makes the function of the word behind the colon.
        word: what that word is, in words; "" where there is none.
        answer: whether it compares with the right answer.
    """

    make: Callable[[str], RewardFunction]
    word: str = ""
    answer: bool = False


def exact(prompt: str, completion: str, answer: str | None) -> float:
    """1 where the completion is the answer, blanks around both left out; else 0.

    Example:
        >>> exact("1 + 1 =", " 2", "2"), exact("1 + 1 =", "22", "2")
        (1.0, 0.0)
    """
    return float(completion.strip() == (answer or "").strip())


def _length(word: str) -> RewardFunction:
    r"""``1 − |w − n| / max(w, n)`` of w words where n are wanted: 1 at n, towards 0 on both sides."""
    if not (word.isascii() and word.isdigit() and len(word) < 10 and int(word)):
        raise BadConfig(f"reward='length:{word[:20]}': give the number of words that is wanted, length:20")
    wanted = int(word)

    def length(prompt: str, completion: str, answer: str | None) -> float:
        count = len(completion.split())
        return 1 - abs(count - wanted) / max(count, wanted)

    return length


def _regex(word: str) -> RewardFunction:
    """1 where the pattern is found in the completion; else 0."""
    try:
        pattern = re.compile(word)
    except re.error as problem:
        raise BadConfig(f"reward='regex:{word}' is no regular expression: {problem}") from None
    return lambda prompt, completion, answer: float(pattern.search(completion) is not None)


REWARDS: Final[Registry[NamedReward]] = Registry("reward")
"""Name -> the reward."""
REWARDS.add("exact", NamedReward(lambda word: exact, answer=True))
REWARDS.add("length", NamedReward(_length, word="WORDS"))
REWARDS.add("regex", NamedReward(_regex, word="PATTERN"))


def is_file(reward: Any) -> bool:
    """Whether a reward is the file of a reward adapter, or the folder of its run."""
    if not isinstance(reward, str):
        return isinstance(reward, Path)
    # no Path, whose is_dir raises for a name that is too long
    return reward.endswith(".safetensors") or (":" not in reward and os.path.isdir(reward))  # noqa: PTH112


def check_reward(reward: Any) -> NamedReward | None:
    """Checks what can be checked of a reward without asking it; returns it if it comes with the studio.

    Args:
        reward: a function, a word, or the file of an adapter.

    Raises:
        BadConfig: it is none of these.

    Example:
        >>> check_reward("exakt")
        Traceback (most recent call last):
        ...
        studio.errors.BadConfig: reward='exakt' is none; did you mean 'exact'? (exact, length:WORDS, regex:PATTERN, a
        Python function MODULE:FUNCTION, or the file of a reward adapter)
    """
    if callable(reward) or is_file(reward):
        return None
    name, colon, word = str(reward).partition(":")
    if isinstance(reward, str) and name in REWARDS and bool(REWARDS[name].word) == bool(colon):
        REWARDS[name].make(word)
        return REWARDS[name]
    if isinstance(reward, str) and colon and name not in REWARDS and word.isidentifier():
        return None
    known = [f"{one}:{REWARDS[one].word}".rstrip(":") for one in REWARDS]
    close = next(one for one in known if one.startswith(nearest(name, REWARDS, 1)[0]))
    raise BadConfig(
        f"reward={reward!r} is none; did you mean {close!r}? ({', '.join(known)}, a Python function MODULE:FUNCTION, "
        "or the file of a reward adapter)"
    )


def function_of(reward: Any) -> tuple[str, RewardFunction]:
    """Returns the name and the function of a reward that is no adapter.

    Args:
        reward: a function, ``"MODULE:FUNCTION"``, or a word of :data:`REWARDS`.

    Raises:
        BadConfig: it is none, or the module or the function is not there.
    """
    if callable(reward):
        return f"{reward.__module__}:{getattr(reward, '__qualname__', type(reward).__qualname__)}", reward
    named = check_reward(reward)
    name, _, word = str(reward).partition(":")
    if named is not None:
        return str(reward), named.make(word)
    try:
        found = getattr(importlib.import_module(name), word)
    except ImportError as problem:
        raise BadConfig(f"reward={reward!r}: the module {name!r} cannot be imported ({problem})") from None
    except AttributeError:
        raise BadConfig(f"reward={reward!r}: the module {name!r} has no function {word!r}") from None
    return str(reward), found


def each(name: str, function: RewardFunction) -> Scores:
    """Returns what asks a function for every text, and refuses what is no finite number.

    Args:
        name: what messages call it. function: the reward.

    Example:
        >>> each("mine", lambda prompt, completion, answer: float("nan"))(Prompt(3, text="1 + 1 ="), ["2"])
        Traceback (most recent call last):
        ...
        studio.errors.BadConfig: the reward mine gives nan for "2" (line 3, "1 + 1 ="): a reward is a finite number
    """
    return lambda prompt, texts: [
        _finite(function(prompt.asked, text, prompt.answer), name, prompt, text) for text in texts
    ]


def _finite(value: Any, name: str, prompt: Prompt, text: str) -> float:
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise BadConfig(
            f"the reward {name} gives {value!r} for {short(text)} (line {prompt.line}, {short(prompt.asked)}): a "
            "reward is a finite number"
        )
    return float(value)
