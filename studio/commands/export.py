"""``studio export``: adapters as one file, or one model, of the program that serves them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from studio.commands.bake import write_folder
from studio.commands.bases import pipeline_for
from studio.commands.loading import kind_of_adapters, load_adapter, open_pipeline
from studio.commands.options import adapter_option, config_option, example, output_options, pipeline_options
from studio.commands.show import Show
from studio.commands.words import AdapterWord
from studio.errors import UsageError

if TYPE_CHECKING:
    from studio.pipelines.pipeline import Pipeline

__all__ = ["export"]

_TO: Final = ("gguf", "mlx", "peft", "model")
_LANGUAGE: Final = ("gguf", "mlx")


@click.command(
    short_help="Write adapters for llama.cpp, MLX or PEFT, or as a whole model.",
    epilog=example(
        "studio export facts --adapter runs/facts --to gguf -o facts.gguf",
        "studio export qwen/ --adapter a.safetensors:0.7 --adapter b.safetensors:0.4 --to mlx -o both-mlx",
        "studio export qwen/ --adapter loha.safetensors --rank 16 --to gguf --store fp16 -o loha.gguf",
        "studio export qwen/ --adapter a.safetensors --to model -o qwen-a",
    ),
)
@click.argument("base")
@adapter_option
@click.option("--to", "target", required=True, type=click.Choice(_TO), help="llama.cpp's adapter file, MLX's folder, "
              "PEFT's folder, or the model with the adapters in its weights.")  # fmt: skip
@click.option("--rank", type=int, metavar="N", help="Make a LoRA of this rank of any method; what it leaves out is "
              "said.")  # fmt: skip
@click.option("--store", metavar="T", help="What the adapter's tensors are stored in (fp32, bf16, fp16); else as they "
              "are.")  # fmt: skip
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="OUT",
              help="The new file (gguf) or folder.")  # fmt: skip
@config_option
@pipeline_options
@output_options
def export(
    base: str,
    adapters: tuple[AdapterWord, ...],
    target: str,
    rank: int | None,
    store: str | None,
    output: Path,
    config_of: str | None,
    allow_partial: bool,
    pickled: bool,
    device: str | None,
    dtype: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write adapters for the program that serves them, and prove it by reading it again.

    BASE is the model that they are for. An adapter at strength 1 is written as it is; several, or one at another
    strength, become one first, exactly. What was written is loaded on the same base, and each layer's change compared
    with what it was to be; if it is not that, nothing is kept and the exit code is 3.
    """
    show = Show(as_json, quiet)
    _check(adapters, target, rank, store)
    kind, opened_as = _pipeline(base, config_of, adapters, target)
    pipe = open_pipeline(
        kind, base, device=device, dtype=dtype, show=show, config_of=config_of, as_kind=opened_as
    )  # fmt: skip
    used = [load_adapter(pipe, word, show, allow_partial=allow_partial, pickled=pickled) for word in adapters]
    if target == "model":
        write_folder(pipe, output, used, show)
    else:
        _write(pipe, adapters, used, {"format": target, "rank": rank, "dtype": store}, output.expanduser(), show)


def _check(adapters: tuple[AdapterWord, ...], target: str, rank: int | None, store: str | None) -> None:
    if not adapters:
        raise UsageError("name the adapters that are exported: --adapter FILE[:STRENGTH]")
    if target == "model" and (rank is not None or store is not None):
        raise UsageError("--rank and --store are of an adapter, and --to model writes none: leave them out, or give "
                         "--dtype for the whole model")  # fmt: skip


def _pipeline(
    base: str, config_of: str | None, adapters: tuple[AdapterWord, ...], target: str
) -> tuple[type[Pipeline], dict[str, Any]]:
    if target in _LANGUAGE and config_of is None:
        from studio.pipelines import TextPipeline

        return TextPipeline, kind_of_adapters(adapters)  # whatever base it is, it has to write
    return pipeline_for(base, config_of, adapters)


def _write(
    pipe: Pipeline,
    adapters: tuple[AdapterWord, ...],
    used: list[dict[str, Any]],
    wanted: Mapping[str, Any],
    output: Path,
    show: Show,
) -> None:
    """Writes one adapter and says how it was proven."""
    from studio.files.embedding import METHOD
    from studio.files.export import export as make
    from studio.pipelines.naming import plain_name

    words = next((entry["file"] for entry in used if entry["method"] == METHOD), None)
    if words is not None:
        raise UsageError(f"{words} holds learned words (textual inversion), which studio convert writes")
    blend = {entry["name"]: pipe.adapters[entry["name"]].strength for entry in used}
    name = plain_name(output.stem) or "exported"
    name = f"{name}-exported" if name in pipe.adapters else name
    report = make(pipe.carrier, output, blend=blend, name=name, **wanted)
    show.say(str(report))
    show.result({**dataclasses.asdict(report), "worst": {"error": report.worst[0], "layer": report.worst[1]},
                 "parents": sorted(report.parents), "adapters": used})  # fmt: skip
