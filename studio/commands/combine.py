"""``studio combine``: one new adapter file out of several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from studio.commands.loading import load_adapter, open_pipeline
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
        "studio combine a.safetensors:0.7 b.safetensors:0.4 --base sdxl/ --format kohya -o ab.safetensors",
    ),
)
@click.argument("adapters", nargs=-1, required=True, type=ADAPTER, metavar="[NAME=]FILE[:STRENGTH]...")
@click.option("--base", metavar="BASE", help="The base that they are for; else the one that the first of them names.")
@click.option("--method", default="exact", show_default=True, metavar="NAME", help="How; --methods lists the ways.")
@click.option("--methods", is_flag=True, is_eager=True, expose_value=False, callback=lambda c, p, v: _list(c, v),
              help="List the ways to combine, and end.")  # fmt: skip
@click.option("--rank", type=int, metavar="N", help="Of the new adapter; what it leaves out is said.")
@click.option("--density", type=float, metavar="X", help="Part of the numbers that is kept (ties, dare, della, ...).")
@click.option("--epsilon", type=float, metavar="X", help="Of della.")
@click.option("--gamma", type=float, metavar="X", help="Of breadcrumbs: part of the largest numbers that is dropped.")
@click.option("--seed", type=int, metavar="N", help="Of what is drawn (dare, della).")
@click.option("--name", metavar="NAME", help="What tags call it; else the name of the new file.")
@click.option("--format", metavar="NAME", help="Of the file: diffusers, kohya, native, peft; else diffusers.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The new file.")
@config_option
@pipeline_options
@output_options
def combine(
    adapters: tuple[AdapterWord, ...],
    base: str | None,
    method: str,
    rank: int | None,
    density: float | None,
    epsilon: float | None,
    gamma: float | None,
    seed: int | None,
    name: str | None,
    format: str | None,
    output: Path,
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
    theirs, or --rank with the error said; other kinds become a full difference unless a rank is given. Before it is
    written, it is said what the adapters do to each other.
    """
    from studio.adapters.combine import combine as make
    from studio.files import save
    from studio.pipelines import ImagePipeline

    show = Show(as_json, quiet)
    _check(output, adapters)
    pipe = open_pipeline(
        ImagePipeline, base or _recorded(adapters[0].file), device=device, dtype=dtype, show=show, config_of=config_of
    )
    used = [load_adapter(pipe, word, show, allow_partial=allow_partial, pickled=pickled) for word in adapters]
    blend = {entry["name"]: entry["strength"] for entry in used}
    chosen = {"density": density, "epsilon": epsilon, "gamma": gamma, "seed": seed}
    own = name or _plain(output, pipe)
    report = make(pipe.pipe, blend, method=method, rank=rank, name=own, **chosen)  # type: ignore[arg-type]
    show.say(str(report))
    file = save(pipe.pipe, output.expanduser(), name=own, format=format)
    show.say(f"written: {file}")
    show.result({**_facts(report), "file": file, "adapters": used})


def _check(output: Path, adapters: tuple[AdapterWord, ...]) -> None:
    if output.exists():
        raise UsageError(f"{output} is there already: choose another name")
    if any(word.schedule for word in adapters):
        raise BadConfig("one adapter has one strength: give numbers, not schedules")


def _list(context: click.Context, wanted: bool) -> None:
    if not wanted:
        return
    from studio.adapters.combining.rules import COMBINES

    for name, rule in COMBINES.items():
        heeds = f" ({', '.join(rule.takes)})" if rule.takes else ""
        click.echo(f"{name:16} {rule.title}{heeds}")
    context.exit()


def _recorded(file: Path) -> str:
    """The base that an adapter file names."""
    from studio.files import inspect
    from studio.pipelines.naming import adapter_file

    found = inspect(adapter_file(file)).facts.get("base")
    if not found:
        raise UsageError(f"{file} does not say which base it is for: name it, --base BASE")
    return found


def _plain(output: Path, pipe: Any) -> str:
    from studio.pipelines.naming import plain_name

    name = plain_name(output.stem)
    return f"{name}-combined" if name in pipe.adapters else name


def _facts(report: CombineReport) -> dict[str, Any]:
    return {
        "name": report.name, "method": report.method, "rule": report.rule, "sites": report.sites,
        "ranks": {str(rank): count for rank, count in report.ranks.items()}, "parameters": report.parameters,
        "error": report.error, "kept": report.kept,
        "cosines": [{"between": list(pair), "cosine": value} for pair, value in report.cosines.items()],
    }  # fmt: skip
