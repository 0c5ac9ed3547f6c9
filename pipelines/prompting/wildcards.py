r"""Prompts that stand for many: ``a {red|blue} __animal__``.

- ``{a|b|c}`` is one of them; ``{3::a|b}`` a three times as often as b; an option may be empty, and may hold others;
- ``{2$$a|b|c}`` are two of them with ``", "`` between, ``{1-2$$ and $$a|b|c}`` one or two with ``" and "``, in the
  order in which they are written;
- ``__animal__`` is a line of ``animal.txt`` in the folder of wildcards, ``__style/ink__`` of a file in a folder there;
  a line may hold all of this, begin with a weight ``3::``, and is left out if it is empty or begins with ``#``;
- ``\{``, ``\}``, ``\_`` are the characters.

What is drawn for a picture depends on its seed and on the prompt alone: a number is the next one of Python's
``Random``, begun with the SHA-256 of ``"seed\0prompt"``.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from studio.errors import BadConfig, BadFile, UnknownName, nearest
from studio.given import given_path, read_given
from studio.limits import limit, too_many
from studio.pipelines.prompting.braces import read_choices, weight_of
from studio.pipelines.prompting.choices import Lines, Option, Part, count, drawn, every
from studio.pipelines.prompting.where import quoted

__all__ = ["Wildcards", "every_prompt"]


class Wildcards:
    """A folder of wildcard files, each read once.

    Args:
        folder: the folder; None: there is none.

    Raises:
        BadFile: it is no folder.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else given_path(folder, "wildcards")
        if self.folder is not None and not self.folder.is_dir():
            raise BadFile(f"wildcards: there is no folder {self.folder}")
        self._read: dict[str, Lines] = {}

    def resolve(self, prompt: str, seed: int) -> str:
        """Returns what a prompt becomes for one picture.

        Args:
            prompt: the prompt. seed: of the picture.

        Raises:
            BadConfig: choices that cannot be read, a wildcard without a folder, or a prompt that is too long.
            BadFile: a wildcard file that cannot be read. UnknownName: there is none of that name.

        Example:
            >>> [Wildcards().resolve("a {red|blue} dog", seed) for seed in range(4)]
            ['a blue dog', 'a red dog', 'a blue dog', 'a blue dog']
        """
        parts = self.parts(prompt)
        if all(isinstance(part, str) for part in parts):
            return prompt
        numbers = random.Random(int.from_bytes(hashlib.sha256(f"{seed}\0{prompt}".encode()).digest(), "big"))
        return _short_enough(drawn(parts, numbers.random))

    def every(self, prompt: str) -> list[str]:
        """Returns all that a prompt can become.

        Args:
            prompt: the prompt.

        Raises:
            BadConfig: as :meth:`resolve`, or there are too many. BadFile: see there. UnknownName: see there.
        """
        parts = self.parts(prompt)
        if count(parts) > limit("combinations"):
            raise BadConfig(f"the prompt {quoted(prompt)} makes {count(parts):,}: {too_many('combinations')}")
        return [_short_enough(text) for text in every(parts)]

    def parts(self, text: str, within: tuple[str, ...] = (), at: str = "") -> tuple[Part, ...]:
        """Takes a text apart into its choices.

        Args:
            text: the text. within: the files in which it is, the outermost first. at: which text it is, in sentences.

        Raises:
            BadConfig: as :meth:`resolve`. BadFile: see there. UnknownName: see there.
        """
        at = at or f"the prompt {quoted(text)}"
        return read_choices(_short_enough(text), lambda name: self.lines(name, within, at), at)

    def lines(self, name: str, within: tuple[str, ...], at: str) -> Lines:
        """Returns the lines of a file.

        Args:
            name: its name. within: the files from which it is asked for. at: which text asks, in sentences.

        Raises:
            BadConfig: as :meth:`resolve`, or a file that holds itself. BadFile: see there. UnknownName: see there.
        """
        if self.folder is None:
            raise BadConfig(
                f"{at} asks for the wildcard file {name!r}, and no folder of such files is given: wildcards=FOLDER "
                "(--wildcards); write \\__ for the characters"
            )
        if name in within:
            raise BadConfig(f"the wildcard {name!r} holds itself: {' > '.join((*within, name))}")
        if name not in self._read:
            self._read[name] = Lines(name, self._options(name, self._text(name, at), (*within, name)))
        return self._read[name]

    def _text(self, name: str, at: str) -> str:
        assert self.folder is not None, "lines asks"
        file = self.folder / f"{name}.txt"
        if not file.is_file() or name.startswith("/") or ".." in name.split("/"):
            known = [one.relative_to(self.folder).with_suffix("").as_posix() for one in self.folder.rglob("*.txt")]
            close = nearest(name, known, 1) if known else []
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UnknownName(f"{at} asks for the wildcard file {name!r}, and {self.folder} has no {name}.txt{hint}")
        try:
            return read_given(file, "wildcard-bytes").decode("utf-8-sig")
        except BadFile as problem:
            raise BadFile(f"{file} {problem}") from None
        except UnicodeDecodeError:
            raise BadFile(f"{file} is not UTF-8; save it as such") from None

    def _options(self, name: str, text: str, within: tuple[str, ...]) -> tuple[Option, ...]:
        options = []
        for number, line in enumerate(text.splitlines(), 1):
            line = line.strip()
            if line and not line.startswith("#"):
                at = f"line {number} of the wildcard file {name!r}"
                weight, begins = weight_of(line, 0, at)
                options.append(Option(self.parts(line[begins:], within, at), weight))
        if not any(option.weight for option in options):
            raise BadConfig(f"the wildcard file {name!r} has no line to choose")
        return tuple(options)


def every_prompt(prompt: str, wildcards: str | Path | None = None) -> list[str]:
    """Returns all prompts that a prompt with ``{a|b}`` and ``__file__`` stands for, in order.

    Args:
        prompt: the prompt. wildcards: the folder of the wildcard files.

    Raises:
        BadConfig: choices that cannot be read, or too many.
        BadFile: a folder or file that cannot be read. UnknownName: there is no such file.

    Example:
        >>> every_prompt("a {red|blue} {dog|cat}")
        ['a red dog', 'a red cat', 'a blue dog', 'a blue cat']
    """
    return Wildcards(wildcards).every(prompt)


def _short_enough(text: str) -> str:
    if len(text) > limit("prompt-characters"):
        raise BadConfig(f"a prompt has {len(text):,} characters: {too_many('prompt-characters')}")
    return text
