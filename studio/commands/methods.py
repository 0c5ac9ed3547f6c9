"""``studio methods``: the methods, what they cover and what they cost."""

from __future__ import annotations

import click

from studio.commands.options import example, output_options
from studio.commands.show import Show

__all__ = ["methods"]


@click.command(short_help="List the methods: formula, parameters, layers.", epilog=example("studio methods --layers"))
@click.option("--layers", is_flag=True, help="Try each method on each kind of layer and say which it covers.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print docs/methods.md.")
@output_options
def methods(layers: bool, as_markdown: bool, as_json: bool, quiet: bool) -> None:
    """List the adapter methods: formula, trained parameters of a 4096 x 4096 layer, PEFT's name."""
    from studio.survey import coverage, markdown, survey

    if as_markdown:
        click.echo(markdown(), nl=False)
        return
    show = Show(as_json, quiet)
    content: dict[str, object] = {}
    rows = []
    for row in survey():
        facts: dict[str, object] = {
            "formula": row.formula, "parameters": row.parameters, "bakes": row.bakes, "per_sample": row.per_sample,
            "peft": row.peft, "papers": [address for _, address in row.papers],
        }  # fmt: skip
        count = "" if row.parameters is None else f" · {row.parameters:,} parameters"
        rows.append((row.name, f"{row.formula}{count}{'' if row.bakes else ' · acts live only'}"))
        if layers:
            covered = {cell.layer: cell.refusal for cell in coverage(row.name)}
            facts["layers"] = covered
            rows.append(("", "covers " + (", ".join(layer for layer, no in covered.items() if not no) or "a model")))
            rows += [("", f"not {layer}: {no}") for layer, no in covered.items() if no]
        content[row.name] = facts
    if show.talks:
        show.table(rows)
    show.result(content)
