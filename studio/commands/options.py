"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from studio.commands.settings import setting
from studio.commands.words import ADAPTER, HELD_OUT, SIZE

__all__ = [
    "adapter_option",
    "config_option",
    "example",
    "memory_options",
    "offline_option",
    "output_options",
    "pipeline_options",
    "training_options",
    "tuning_options",
]

F = TypeVar("F", bound=Callable[..., Any])


def _environment(*names: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback that sets variables of the environment, which libraries read, while the command runs."""

    def keep(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        for name in names if value else ():
            before = os.environ.get(name)
            os.environ[name] = "1"
            context.call_on_close(lambda name=name, before=before: _put_back(name, before))
        return value

    return keep


def _put_back(name: str, before: str | None) -> None:
    if before is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = before


_OFFLINE = click.option(
    "--offline", is_flag=True, expose_value=False, callback=_environment("HF_HUB_OFFLINE"), is_eager=True,
    help="Never ask the hub: take what is in its cache on this machine.",
)  # fmt: skip
_QUANTIZE = setting(
    "--quantize", field="quantize", metavar="HOW|PART=HOW[,...]",
    help="Keep the base in fewer bits: nf4 for its denoiser, or its language model; text_encoder_2=int8 for another "
    "part alone; both with a comma between. Ways: nf4, int8, fp8, grid4, quanto-int4, gguf-q4-0 and more.",
)  # fmt: skip
_ATTENTION = click.Choice(["sdpa", "sliced", "flash", "xformers"])
_CONFIG_OF = "For a base in one file: the folder, or the hub id, of its configs, and of what the file lacks."

_ADAPTER = (
    setting("--method", field="method", metavar="NAME", help="Adapter method; studio methods lists them."),
    setting("--rank", field="rank", type=int, metavar="N", help="Rank of the adapter."),
    setting(
        "--targets", field="targets", metavar="PRESET|PATTERNS",
        help="Layers: attention, attention+mlp, all-linear, conv, subject, style; or patterns with commas between.",
    ),
    setting("--steps", field="steps", type=int, metavar="N", help="Optimizer steps."),
    setting("--learning-rate", field="learning_rate", type=float, metavar="X", help="Learning rate."),
)  # fmt: skip
_RUN = (
    click.option(
        "--from", "start", type=click.Path(path_type=Path), metavar="ADAPTER",
        help="Train on from an adapter file, or from that of a run's folder, with its method, rank and targets.",
    ),
    click.option(
        "--continue", "further", is_flag=True,
        help="Train the run in the output folder on, finished or not, to the larger number of --steps.",
    ),
    setting(
        "--preview", field="preview_prompts", multiple=True, metavar="PROMPT", help="What previews show; repeatable."
    ),
    setting("--preview-every", field="preview_every", type=int, metavar="N", help="Steps between previews."),
    setting("--checkpoint-every", field="checkpoint_every", type=int, metavar="N", help="Steps between checkpoints."),
    _OFFLINE,
    _QUANTIZE,
    setting("--device", field="device", metavar="NAME", help="Where to compute: auto, cpu, ..."),
    setting(
        "--sharding", field="sharding", type=click.Choice(["none", "full", "zero2", "zero3"]),
        help="What several processes (launch) divide: nothing, the base; by DeepSpeed, moments, or all.",
    ),
    setting(
        "--offload", field="offload", type=click.Choice(["none", "optimizer", "all"]),
        help="Of zero2 and zero3, what rests in the CPU's memory: moments, or the base too.",
    ),
    setting(
        "--dtype", field="precision", type=click.Choice(["fp32", "bf16"]),
        help="What products are computed in; the adapter itself is fp32.",
    ),
    setting(
        "--fit", field="fit", metavar="SIZE",
        help="Memory that there is, 12GB: what would take more is refused before it is loaded, with two ways that fit.",
    ),
    click.option(
        "--config", type=click.Path(path_type=Path), metavar="FILE.toml",
        help="Settings from a file, or from the run.toml of an earlier run; options win over it.",
    ),
    click.option(
        "--set", "words", multiple=True, metavar="KEY=VALUE",
        help="Any other setting of the task, the adapter or the loop: --set dropout=0.1; repeatable.",
    ),
)  # fmt: skip


def _training(sample: str, *own: Callable[[Any], Any]) -> tuple[Callable[[Any], Any], ...]:
    """The options of a training; ``own`` are those of one sort of task, and ``sample`` is what it calls its samples."""
    size = setting("--batch-size", field="batch_size", type=int, metavar="N", help=f"{sample} per step.")
    seed = setting(
        "--seed", field="seed", type=int, metavar="N", help="Decides everything that is drawn.  [default: 0]"
    )  # fmt: skip
    return (*_ADAPTER, size, seed, *own, *_RUN)


_PICTURES = _training(
    "Pictures",
    setting(
        "--resolution", field="resolution", type=SIZE, metavar="WxH", help="Pixels to train at, 512x768 or 512."
    ),
    setting(
        "--text-encoder/--no-text-encoder", field="text_encoder", default=None, help="Adapt the text encoder too."
    ),
    setting(
        "--caption-encoding", field="caption_encoding", type=click.Choice(["utf-8", "windows-1252"]),
        help="What caption files without a mark are read as.",
    ),
    setting("--config-of", field="config_of", metavar="BASE", help=_CONFIG_OF),
    setting("--sampling-steps", field="preview_steps", type=int, metavar="N", help="Denoising steps of previews."),
    setting("--guidance", field="preview_guidance", type=float, metavar="X", help="Guidance of previews."),
    setting("--attention", field="preview_attention", type=_ATTENTION, help="What previews compute attention by."),
    setting(
        "--vae-tiling", field="preview_vae_tiling", is_flag=True, default=None,
        help="Previews' autoencoder takes a picture in overlapping tiles: less memory for large ones.",
    ),
)  # fmt: skip
_TEXTS = _training(
    "Samples",
    setting(
        "--held-out", field="held_out", type=HELD_OUT, metavar="FILE|SHARE",
        help="What is only measured on: a file of samples, or a share of the data such as 0.1.",
    ),
    setting("--max-length", field="max_length", type=int, metavar="N", help="Tokens of a sample at most."),
    setting("--name", field="name", metavar="NAME", help="The adapter's name; else that of the run's folder."),
)  # fmt: skip

_PIPELINE = (
    click.option("--allow-partial", is_flag=True, help="Load what fits of an adapter file, and name the rest."),
    click.option("--pickled", is_flag=True, help="Read .pt and .bin adapter files too; of those, the tensors alone."),
    _QUANTIZE,
    _OFFLINE,
    click.option("--device", metavar="NAME", help="Where to compute: auto, cpu, ..."),
    click.option(
        "--dtype", metavar="NAME", help="Number format of the base: fp32, bf16, fp16; else that of its files."
    ),
)

_MEMORY = (
    setting(
        "--offload", field="offload", type=click.Choice(["none", "model", "group", "sequential"]),
        help="Where weights rest while they do not compute: all but none keep them in the CPU's memory, a component, a "
        "block or a layer at a time on the accelerator; each takes less of it and is slower than the one before.",
    ),
    setting(
        "--attention", field="attention", type=_ATTENTION,
        help="What computes the denoiser's attention: sdpa (torch's own, the default), sliced (least memory), "
        "flash, or xformers (an extra).",
    ),
    setting(
        "--vae-tiling", field="vae_tiling", is_flag=True, default=None,
        help="The autoencoder takes a picture in overlapping tiles, which changes large ones a little.",
    ),
    setting(
        "--vae-slicing", field="vae_slicing", is_flag=True, default=None,
        help="The autoencoder takes the pictures of a batch one by one.",
    ),
)  # fmt: skip

_OUTPUT = (
    click.option(
        "--json",
        "as_json",
        is_flag=True,
        callback=_environment("HF_HUB_DISABLE_PROGRESS_BARS"),
        is_eager=True,
        help="Print one JSON object to stdout.",
    ),
    click.option(
        "--quiet",
        "-q",
        is_flag=True,
        callback=_environment("HF_HUB_DISABLE_PROGRESS_BARS"),
        is_eager=True,
        help="Print nothing but errors (and what --json asks for).",
    ),
)


def training_options(command: F) -> F:
    """Adds the options of every training on pictures, in front of those that stand below it."""
    return _add(_PICTURES, command)


def tuning_options(command: F) -> F:
    """Adds the options of every training on texts, in front of those that stand below it."""
    return _add(_TEXTS, command)


def output_options(command: F) -> F:
    """Adds ``--json`` and ``--quiet``."""
    return _add(_OUTPUT, command)


def adapter_option(command: F) -> F:
    """Adds ``--adapter``, in front of those that stand below it."""
    return click.option(
        "--adapter", "adapters", type=ADAPTER, multiple=True, metavar="[NAME=]FILE[:STRENGTH][:BLOCKS]",
        help="An adapter's file, or a run's folder, with its strength (1 if left out), the weights of its blocks "
        "(lbw=... as in a tag, or a preset) and the name that tags call it; repeatable.",
    )(command)  # fmt: skip


def pipeline_options(command: F) -> F:
    """Adds how a base and its adapters are opened: ``--allow-partial``, ``--offline``, ``--device``, ``--dtype``."""
    return _add(_PIPELINE, command)


def offline_option(command: F) -> F:
    """Adds ``--offline``, which the options of pipelines and of training hold."""
    return _OFFLINE(command)


def memory_options(command: F) -> F:
    """Adds what saves memory, as settings of the context that are arguments of ``ImagePipeline.open``."""
    return _add(_MEMORY, command)


def config_option(command: F) -> F:
    """Adds ``--config-of``, in front of those that stand below it."""
    return click.option("--config-of", metavar="BASE", help=_CONFIG_OF)(command)


def example(*lines: str) -> str:
    """Returns the end of a help text, with its lines as they stand.

    Example:
        >>> print(example("studio check photos/"))
        \b
        Example:
          studio check photos/
    """
    return "\n".join(["\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)])


def _add(options: tuple[Callable[[Any], Any], ...], command: F) -> F:
    for option in reversed(options):
        command = option(command)
    return command
