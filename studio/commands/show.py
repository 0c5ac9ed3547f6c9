"""What a command prints: text for people on stdout, or one JSON object."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from studio.launched import is_main
from studio.shown import shown

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Show", "shell"]

_LONE: Final = re.compile("[\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Show:
    """Where results go.

    Args:
        as_json: only :meth:`result` prints.
        quiet: nothing prints but :meth:`result` with ``as_json``.
    """

    as_json: bool = False
    quiet: bool = False

    @property
    def talks(self) -> bool:
        """Whether text for people is printed: not by the further processes of a training, which has one result."""
        return not (self.as_json or self.quiet) and is_main()

    @property
    def console(self) -> Console:
        """Stdout through rich; long lines are not broken, so that paths can be copied."""
        from rich.console import Console

        return Console(highlight=False, soft_wrap=True, quiet=not self.talks)

    def say(self, line: str = "") -> None:
        """Prints a line for people."""
        if self.talks:
            click.echo(shown(line, lines=True))

    def tell(self, line: str) -> None:
        """Prints a line about what is going on, to stderr."""
        if self.talks:
            click.echo(shown(line, lines=True), err=True)

    def note(self, line: str) -> None:
        """Prints a line about something to look at, to stderr."""
        if not self.quiet and is_main():
            click.echo(f"{click.style('note:', fg='yellow')} {shown(line, lines=True)}", err=True)

    def result(self, content: Mapping[str, Any]) -> None:
        """Prints the result as JSON, where JSON was asked for."""
        if self.as_json and is_main():
            # half a surrogate pair cannot be encoded; JSON has a way to write it, and what a terminal would act on
            text = json.dumps(content, indent=2, ensure_ascii=False, default=_plain)
            click.echo(_LONE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))

    def table(self, rows: Iterable[Sequence[str]]) -> None:
        """Prints rows of texts in aligned columns, the first one dim."""
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        made = [
            [Text(shown(cell), style="cyan" if not index else "") for index, cell in enumerate(row)] for row in rows
        ]
        for index in range(max((len(row) for row in made), default=0)):
            grid.add_column(no_wrap=not index, overflow="fold")
        for row in made:
            grid.add_row(*row)
        self.console.print(grid)


def shell(*words: str | Path) -> str:
    """Returns a command to copy, each word quoted where the shell needs it.

    Example:
        >>> shell("studio", "generate", "emoji", "a photo of sks dog")
        'studio generate emoji "a photo of sks dog"'
    """
    return " ".join(_quoted(str(word)) for word in words)


def _quoted(word: str) -> str:
    if re.fullmatch(r"[\w@%+=:,./~-]+", word):
        return word
    return shlex.quote(word) if re.search(r'["$`\\!]', word) else f'"{word}"'


def _plain(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
