"""``studio bake``: a whole model with adapters folded into its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from studio.commands.bases import pipeline_for
from studio.commands.loading import load_adapter, open_pipeline
from studio.commands.options import adapter_option, config_option, example, output_options, pipeline_options
from studio.commands.show import Show
from studio.commands.words import AdapterWord
from studio.errors import UsageError

if TYPE_CHECKING:
    from studio.pipelines.pipeline import Pipeline

__all__ = ["bake", "write_folder"]


@click.command(
    short_help="Write a whole model with adapters folded into its weights.",
    epilog=example(
        "studio bake emoji --adapter runs/robot:0.9 -o robot-model",
        "studio bake sdxl/ --adapter dog.safetensors --adapter ink.safetensors:0.6 -o dog-in-ink --dtype fp16",
        "studio bake facts --adapter runs/facts -o facts-model",
    ),
)
@click.argument("base")
@adapter_option
@config_option
@pipeline_options
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FOLDER",
              help="The new folder, as diffusers reads it, or transformers.")  # fmt: skip
@output_options
def bake(
    base: str,
    adapters: tuple[AdapterWord, ...],
    config_of: str | None,
    allow_partial: bool,
    pickled: bool,
    device: str | None,
    dtype: str | None,
    output: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write BASE with adapters folded into its weights, as a folder that needs no adapter any more.

    It is opened again and draws a picture, which must be that of the blend and not that of the base; a language model
    gives the logits of a few tokens. If they differ, nothing is kept.
    """
    show = Show(as_json, quiet)
    _check_any(adapters)
    kind, opened_as = pipeline_for(base, config_of, adapters)
    pipe = open_pipeline(
        kind, base, device=device, dtype=dtype, show=show, config_of=config_of, as_kind=opened_as
    )  # fmt: skip
    used = [load_adapter(pipe, word, show, allow_partial=allow_partial, pickled=pickled) for word in adapters]
    write_folder(pipe, output, used, show)


def _check_any(adapters: tuple[AdapterWord, ...]) -> None:
    if not adapters:
        raise UsageError("name the adapters that are folded in: --adapter FILE[:STRENGTH]")


def write_folder(pipe: Pipeline, output: Path, used: Sequence[Mapping[str, Any]], show: Show) -> None:
    """Writes a base with its blend folded in, and says how that was proven.

    Args:
        pipe: with the adapters on it. output: the new folder. used: what the JSON output says about them.
        show: takes lines.

    Raises:
        BadFile: something is there. NoEffect: the blend changes nothing. Refused: what was written does something else.
    """
    from studio.families.language import LanguageBase
    from studio.pipelines.whole_model import write_whole_model

    folder, apart = write_whole_model(pipe.base, output.expanduser())
    writes = isinstance(pipe.base, LanguageBase)
    off = f"{apart:.1e} of the largest logit" if writes else f"{apart * 127.5:.2f} of 255 levels at most"
    does = "writes" if writes else "draws"
    show.say(f"{folder}: it {does} what the blend {does}, {'to the bit' if apart == 0 else f'but for {off}'}")
    show.result({"folder": folder, "difference": apart, "adapters": used})
