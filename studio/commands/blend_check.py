"""``studio blend-check``: what the adapters of a blend do to each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from studio.commands.bases import pipeline_for
from studio.commands.loading import load_adapter, open_pipeline
from studio.commands.options import adapter_option, config_option, example, output_options, pipeline_options
from studio.commands.show import Show
from studio.commands.words import AdapterWord

if TYPE_CHECKING:
    from studio.adapters.interference import BlendReport

__all__ = ["blend_check"]


@click.command(
    "blend-check",
    short_help="Tell what adapters do to each other before they are blended.",
    epilog=example(
        "studio blend-check emoji --adapter runs/robot --adapter runs/ink:0.6",
        "studio blend-check emoji --adapter runs/robot --adapter runs/ink --picture blend.png",
    ),
)
@click.argument("base")
@adapter_option
@click.option("--normalize", is_flag=True, help="Look at the blend as generate --normalize would draw with it.")
@click.option("--sites", is_flag=True, help="A line for every layer, not one for every block.")
@click.option("--picture", type=click.Path(path_type=Path), metavar="FILE.png", help="Also draw it as a heat map.")
@config_option
@pipeline_options
@output_options
def blend_check(
    base: str,
    adapters: tuple[AdapterWord, ...],
    normalize: bool,
    sites: bool,
    picture: Path | None,
    config_of: str | None,
    allow_partial: bool,
    pickled: bool,
    device: str | None,
    dtype: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Tell what adapters do to each other: how far each moves the weights of BASE, and where they add up or fight.

    Nothing is drawn; the answer is in the weights. In the table, an adapter's column is its change as a part of the
    base's weights there, a pair's is their cosine (+1 they do the same, 0 they do not meet, -1 they undo each other),
    growth is how much further all go together than the strongest by itself, and kept how much of what each does is left
    in the sum. BASE and the adapters are named as in studio generate; a language base can be named too.
    """
    from studio.adapters.interference import blend_report
    from studio.adapters.normalized import normalized

    show = Show(as_json, quiet)
    kind, opened_as = pipeline_for(base, config_of, adapters)
    pipe = open_pipeline(
        kind, base, device=device, dtype=dtype, show=show, config_of=config_of, as_kind=opened_as
    )  # fmt: skip
    used = [load_adapter(pipe, word, show, allow_partial=allow_partial, pickled=pickled) for word in adapters]
    report = blend_report(pipe.carrier, normalized(pipe.carrier) if normalize else None)
    _show_table(show, report, sites)
    if picture is not None:
        _draw(report, picture.expanduser(), show)
    show.result({**report.facts(), "adapters": used, "picture": picture})


def _show_table(show: Show, report: BlendReport, sites: bool) -> None:
    from studio.adapters.interference import cells, heading

    places = [*(report.sites if sites else report.blocks), report.whole]
    show.table([heading(report.whole), *(cells(place, report.whole) for place in places)])
    show.say()
    for line in report.advice:
        show.say(line)


def _draw(report: BlendReport, file: Path, show: Show) -> None:
    from studio.pipelines import save_png
    from studio.pipelines.overlap_map import overlap_map

    save_png(overlap_map(report), file)
    show.say(f"picture: {file}")
