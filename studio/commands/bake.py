"""``studio bake``: a whole model with adapters folded into its weights."""

from __future__ import annotations

from pathlib import Path

import click

from studio.commands.loading import load_adapter, open_pipeline
from studio.commands.options import adapter_option, config_option, example, output_options, pipeline_options
from studio.commands.show import Show
from studio.commands.words import AdapterWord
from studio.errors import UsageError

__all__ = ["bake"]


@click.command(
    short_help="Write a whole model with adapters folded into its weights.",
    epilog=example(
        "studio bake emoji --adapter runs/robot:0.9 -o robot-model",
        "studio bake sdxl/ --adapter dog.safetensors --adapter ink.safetensors:0.6 -o dog-in-ink --dtype fp16",
    ),
)
@click.argument("base")
@adapter_option
@config_option
@pipeline_options
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FOLDER",
              help="The new folder, as diffusers reads it.")  # fmt: skip
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

    It is opened again and draws a picture, which must be that of the blend and not that of the base; if it is not,
    nothing is kept.
    """
    from studio.pipelines import ImagePipeline
    from studio.pipelines.whole_model import write_whole_model

    show = Show(as_json, quiet)
    _check_any(adapters)
    pipe = open_pipeline(ImagePipeline, base, device=device, dtype=dtype, show=show, config_of=config_of)
    used = [load_adapter(pipe, word, show, allow_partial=allow_partial, pickled=pickled) for word in adapters]
    folder, apart = write_whole_model(pipe.base, output)
    same = "to the bit" if apart == 0 else f"but for {apart * 127.5:.2f} of 255 levels at most"
    show.say(f"{folder}: it draws what the blend draws, {same}")
    show.result({"folder": folder, "difference": apart, "adapters": used})


def _check_any(adapters: tuple[AdapterWord, ...]) -> None:
    if not adapters:
        raise UsageError("name the adapters that are folded in: --adapter FILE[:STRENGTH]")
