"""``studio doctor``: what works on this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from studio.commands.options import example, output_options
from studio.commands.show import Show
from studio.errors import StudioError

__all__ = ["doctor"]

MARKS = {"ok": ("✓", "green"), "missing": ("–", "dim"), "problem": ("✗", "red")}


@click.command(short_help="Tell what works on this machine.", epilog=example("studio doctor"))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=".", help="Where runs would be written.")
@click.option("--fast", is_flag=True, help="Do not open the embedded base.")
@output_options
@click.pass_context
def doctor(context: click.Context, output: Path, fast: bool, as_json: bool, quiet: bool) -> None:
    """Tell what works on this machine, and what each missing extra would add.

    The exit code is 1 where something is to be mended; a missing extra is nothing to mend.
    """
    from studio.doctor import diagnose

    rows = diagnose(output, open_the_base=not fast)
    show = Show(as_json, quiet)
    problems = [row for row in rows if row.state == "problem"]
    if show.talks:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(3):
            table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        group = ""
        for row in rows:
            mark, colour = MARKS[row.state]
            first = row.group if row.group != group else ""
            table.add_row(Text(first, "cyan"), Text(mark, colour), Text(row.name), Text(row.text))
            group = row.group
        show.console.print(table)
        names = ", ".join(row.name for row in problems)
        show.say(f"\n{len(problems)} to mend: {names}" if problems else "\nall is well")
    show.result({"rows": [dataclasses.asdict(row) for row in rows], "problems": len(problems)})
    if problems:
        context.exit(StudioError.exit_code)
