"""``studio combine``: one new adapter file out of several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from studio.commands.combining import Opening, is_public, off_base, on_base
from studio.commands.options import config_option, example, output_options, pipeline_options
from studio.commands.show import Show
from studio.commands.words import ADAPTER, AdapterWord
from studio.errors import BadConfig, UsageError

if TYPE_CHECKING:
    from studio.adapters import CombineReport

__all__ = ["combine"]


@click.command(
    short_help="Make one adapter file out of several.",
    epilog=example(
        "studio combine robot.safetensors:0.8 ink.safetensors:0.6 -o both.safetensors",
        "studio combine robot.safetensors ink.safetensors --method ties --density 0.4 --rank 16 -o both.safetensors",
        "studio combine cat.safetensors:content ink.safetensors:0.9:style -o cat-in-ink.safetensors",
        "studio combine dora.safetensors:0.7 b.safetensors:0.4 --base sdxl/ --format kohya -o ab.safetensors",
        "studio combine robot.safetensors ink.safetensors",
    ),
)
@click.argument("adapters", nargs=-1, required=True, type=ADAPTER, metavar="[NAME=]FILE[:STRENGTH][:BLOCKS]...")
@click.option("--base", metavar="BASE", help="The base that they are for, where it is no public model, or its weights "
              "are needed (DoRA, OFT, IA3, GLoRA).")  # fmt: skip
@click.option("--family", metavar="NAME", help="The family or public model that they are for; else told by their keys.")
@click.option("--method", default="exact", show_default=True, metavar="NAME", help="How; --methods lists the ways.")
@click.option("--methods", is_flag=True, is_eager=True, expose_value=False, callback=lambda c, p, v: _list(c, v),
              help="List the ways to combine, and end.")  # fmt: skip
@click.option("--rank", type=int, metavar="N", help="Of the new adapter; what it leaves out is said.")
@click.option("--density", type=float, metavar="X", help="Part of the numbers that is kept (ties, dare, della, ...).")
@click.option("--epsilon", type=float, metavar="X", help="Of della.")
@click.option("--gamma", type=float, metavar="X", help="Of breadcrumbs: part of the largest numbers that is dropped.")
@click.option("--signs", type=click.Choice(["total", "frequency"]), help="How ties finds the majority.")
@click.option("--sides", type=click.Choice(["outputs", "inputs", "both"]), help="Where orthogonal keeps them apart.")
@click.option("--penalty", type=float, metavar="X", help="Of ziplora: what columns that meet cost.")
@click.option("--seed", type=int, metavar="N", help="Of what is drawn (dare, della).")
@click.option("--name", metavar="NAME", help="What tags call it; else the name of the new file.")
@click.option("--format", metavar="NAME", help="Of the file: diffusers, kohya, native, peft; else diffusers.")
@click.option("--store", metavar="T", help="What its tensors are stored in (fp32, bf16, fp16); else fp32.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="The new file; without it, it is only said what would come of it.")  # fmt: skip
@config_option
@pipeline_options
@output_options
def combine(
    adapters: tuple[AdapterWord, ...],
    base: str | None,
    family: str | None,
    method: str,
    rank: int | None,
    density: float | None,
    epsilon: float | None,
    gamma: float | None,
    signs: str | None,
    sides: str | None,
    penalty: float | None,
    seed: int | None,
    name: str | None,
    format: str | None,
    store: str | None,
    output: Path | None,
    config_of: str | None,
    allow_partial: bool,
    pickled: bool,
    device: str | None,
    dtype: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make one adapter out of several: what their blend does, in one file that other programs read too.

    With --method exact it draws what the blend draws: LoRAs of any ranks become one LoRA whose rank is the sum of
    theirs, or --rank with the error said; other kinds become a full difference unless a rank is given. The base of a
    public model need not be there. Before anything is written, it is said what the adapters do to each other, block by
    block, and what to try. BLOCKS is lbw=... as in a tag, or a preset (content and style are B-LoRA's).
    """
    from studio.adapters.combination import read_way
    from studio.files.format import FORMATS

    show = Show(as_json, quiet)
    output = None if output is None else output.expanduser()
    _check(output, adapters)
    if family is not None:
        _check_unopened(base, device, dtype, config_of, allow_partial)
    told = dict(density=density, epsilon=epsilon, gamma=gamma, signs=signs, sides=sides, penalty=penalty, seed=seed)
    way = read_way(method, rank, told)
    if format is not None:
        FORMATS[format]  # before anything is computed
    on = None if base or family else _opened(adapters, (device, dtype, config_of), allow_partial)
    if base or on:
        opening = Opening(base or on or "", device, dtype, config_of, allow_partial, pickled)
        made = on_base(adapters, way, opening, name or _stem(output), show)
    else:
        made = off_base(adapters, way, family, pickled, name or _stem(output), show)
    _say(show, made.report)
    file = None if output is None else made.save(output, format=format, dtype=store)
    show.say("nothing is written: give -o FILE" if file is None else f"written: {file}")
    show.result({**_facts(made.report), "file": file, "adapters": made.used})


def _check(output: Path | None, adapters: tuple[AdapterWord, ...]) -> None:
    if output is not None and output.exists():
        raise UsageError(f"{output} is there already: choose another name")
    if any(word.schedule for word in adapters):
        raise BadConfig("one adapter has one strength: give numbers, not schedules")


def _check_unopened(*asked: str | bool | None) -> None:
    if any(asked):
        raise UsageError(
            "--family takes the layers of a public model, whose base is not opened: leave out --base, --device, "
            "--dtype, --config and --allow-partial, or name the base in its place"
        )


def _list(context: click.Context, wanted: bool) -> None:
    if not wanted:
        return
    from studio.adapters.combining.rules import COMBINES

    for name, rule in COMBINES.items():
        heeds = f" ({', '.join(rule.takes)})" if rule.takes else ""
        click.echo(f"{name:16} {rule.title}{heeds}")
    context.exit()


def _stem(output: Path | None) -> str:
    return "both" if output is None else output.stem


def _opened(words: tuple[AdapterWord, ...], asked: tuple[str | None, ...], allow_partial: bool) -> str | None:
    """The base that the first file names, where it has to be opened although nobody named it; else None.

    It has to be for what asks for its weights, and where the file is for none of the public models.
    """
    from studio.families import BASES
    from studio.files import inspect
    from studio.pipelines.naming import adapter_file

    file = adapter_file(words[0].file)
    recorded = inspect(file).facts.get("base")
    if any(asked) or allow_partial or recorded in BASES:
        if recorded is None:
            raise UsageError(f"{words[0].file} does not say which base it is for: name it, --base BASE")
        return recorded
    return None if recorded is None or is_public(file) else recorded


def _say(show: Show, report: CombineReport) -> None:
    from studio.adapters.interference import cells, heading

    whole = report.conflict.whole
    if len(report.parents) > 1:
        show.table([heading(whole), *(cells(place, whole) for place in (*report.conflict.blocks, whole))])
        show.say()
        for line in report.suggestions:
            show.say(line)
    show.say(str(report))


def _facts(report: CombineReport) -> dict[str, Any]:
    conflict = {key: value for key, value in report.conflict.facts().items() if key not in ("sites", "advice")}
    return {
        "name": report.name, "method": report.method, "rule": report.rule, "sites": report.sites,
        "ranks": {str(rank): count for rank, count in report.ranks.items()}, "parameters": report.parameters,
        "error": report.error, "kept": report.kept, "left": dict(report.left),
        "cosines": [{"between": list(pair), "cosine": value} for pair, value in report.cosines.items()],
        "conflict": conflict, "suggestions": report.suggestions,
    }  # fmt: skip
