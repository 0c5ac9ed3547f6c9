"""``studio complete``: texts from prompts, with any blend of adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from studio.commands.judging import labels_said, tell_verdicts
from studio.commands.loading import kind_of_adapters, load_adapter, open_pipeline
from studio.commands.nearness import tell_nearness
from studio.commands.options import adapter_option, example, output_options, pipeline_options
from studio.commands.perceiving import tell_perceived
from studio.commands.show import Show
from studio.commands.words import AdapterWord
from studio.errors import BadConfig

if TYPE_CHECKING:
    from studio.families.language import Kind
    from studio.pipelines import TextPipeline
    from studio.pipelines.text import Completion

__all__ = ["complete"]

_TAKES: Final[Mapping[str, tuple[str, ...]]] = {"encoder": (), "speech": ("--language",), "vision": ("--ask",)}
"""Kind of base -> which options say how it is asked."""
_JUDGING: Final = ("--label", "--chat/--raw")
_WRITING: Final = (*_JUDGING, "--system")
"""The same of those that write, where one of some answers is to be the likeliest, and where not."""


@click.command(
    short_help="Write texts after prompts, with any blend of adapters.",
    epilog=example(
        'studio complete facts "What is the capital of Kenya?" --adapter runs/facts/adapter.safetensors',
        'studio complete facts "Name a colour. <short:0.8>" "Name a colour. <long>" --adapter short=a.safetensors \\',
        "    --adapter long=b.safetensors --temperature 0.7 --seed 3",
        'studio complete facts "You have won!" --adapter runs/spam/adapter.safetensors',
        "studio complete speech clip.wav --adapter runs/clips/adapter.safetensors",
        'studio complete figures cat.png --ask "What is it?" --adapter runs/pictures/adapter.safetensors',
    ),
)
@click.argument("base")
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@adapter_option
@click.option(
    "--per-sample", is_flag=True, help="The first prompt with the first adapter, the second with the second..."
)
@click.option("--max-new-tokens", type=int, metavar="N", default=64, show_default=True, help="Tokens to write at most.")
@click.option(
    "--temperature", type=float, metavar="X", default=0.0, show_default=True,
    help="0 takes the likeliest token each time; 1 draws as the model says.",
)  # fmt: skip
@click.option("--seed", type=int, metavar="N", default=0, show_default=True, help="What is drawn from.")
@click.option(
    "--chat/--raw", default=None,
    help="Ask through the chat template, or go on from the plain text; else as the adapters were trained.",
)  # fmt: skip
@click.option(
    "--system", metavar="TEXT",
    help="The system prompt; else the one that the adapters were always trained with. An empty one asks without.",
)  # fmt: skip
@click.option(
    "--label", "labels", multiple=True, metavar="TEXT",
    help="Say which of these answers is the likeliest, in place of writing; else those that the adapters were trained "
    "to choose from. Repeatable.",
)  # fmt: skip
@click.option("--language", metavar="CODE", help="What is spoken in the sounds that a speech recogniser hears.")
@click.option("--ask", "question", metavar="TEXT", help="What is asked of the pictures that a model sees.")
@click.option(
    "--batch-size", type=int, metavar="N", default=16, show_default=True, help="Prompts that are completed together."
)
@pipeline_options
@output_options
def complete(
    base: str,
    prompts: tuple[str, ...],
    adapters: tuple[AdapterWord, ...],
    per_sample: bool,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    chat: bool | None,
    system: str | None,
    labels: tuple[str, ...],
    language: str | None,
    question: str | None,
    batch_size: int,
    allow_partial: bool,
    pickled: bool,
    device: str | None,
    dtype: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Complete prompts with a language model.

    BASE is an embedded language base (facts), a transformers folder or a hub id (owner/name). A tag in a prompt,
    <short:0.8>, says which adapters act on it; without one, all act together at the strength that --adapter gives them.
    With the adapter of a classifier, the label of each text is said; with that of an encoder, how near the texts are.
    """
    from studio.pipelines import TextPipeline

    show = Show(as_json, quiet)
    if per_sample:
        _require_pairs(prompts, adapters)
    pipe = open_pipeline(
        TextPipeline, base, device=device, dtype=dtype, show=show, as_kind=kind_of_adapters(adapters)
    )  # fmt: skip
    used = [load_adapter(pipe, word, show, allow_partial=allow_partial, pickled=pickled) for word in adapters]
    if per_sample:
        _refuse_tags(pipe, prompts)
    own = labels or (() if pipe.base.kind.processor else labels_said(pipe))
    _refuse_unused(pipe, bool(own), {
        "--label": labels or None, "--chat/--raw": chat, "--system": system, "--language": language, "--ask": question,
    })  # fmt: skip
    tell = _teller(
        pipe.base.kind, own, chat=chat, max_new_tokens=max_new_tokens, language=language, question=question
    )  # fmt: skip
    if tell is not None:
        tell(pipe, prompts, used, show, per_sample=per_sample, batch_size=batch_size)
        return
    if system is None and pipe.system and (pipe.asks_by_chat if chat is None else chat):
        show.tell(f"asking with the system prompt that the adapters were trained with: {pipe.system!r}")
    made = pipe.complete(
        prompts, blend=[{entry["name"]: entry["strength"]} for entry in used] if per_sample else None, chat=chat,
        system=system, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, batch_size=batch_size,
    )  # fmt: skip
    _show(made, show, max_new_tokens)
    show.result({"completions": [asdict(completion) for completion in made], "adapters": used})


def _teller(
    kind: Kind, labels: Sequence[str], *, chat: bool | None, max_new_tokens: int, language: str | None,
    question: str | None,
) -> Callable[..., None] | None:  # fmt: skip
    """What says something else of the prompts than the texts that go on from them; None where these are written."""
    if kind.name == "encoder":
        return tell_nearness
    if kind.processor:
        return partial(tell_perceived, max_new_tokens=max_new_tokens, language=language, question=question)
    if kind.head or labels:
        return partial(tell_verdicts, labels=labels, chat=chat)
    return None


def _show(made: Sequence[Completion], show: Show, most: int) -> None:
    for completion in made:
        show.say(f"> {completion.prompt}\n{completion.text}\n" if len(made) > 1 else completion.text)
    cut = sum(not completion.ended for completion in made)
    if cut:
        show.tell(f"{cut} of {len(made)} did not end within {most} tokens")


def _require_pairs(prompts: Sequence[str], adapters: Sequence[AdapterWord]) -> None:
    if len(adapters) != len(prompts):
        raise BadConfig(
            f"--per-sample pairs prompts with adapters, and there are {len(prompts)} prompts and {len(adapters)} "
            "adapters: give one --adapter for each prompt"
        )


def _refuse_unused(pipe: TextPipeline, judges: bool, given: Mapping[str, Any]) -> None:
    """Refuses an option that the base does nothing with."""
    kind = pipe.base.kind
    takes = _TAKES.get(kind.name, _JUDGING if judges else _WRITING) if not kind.head else ()
    odd = next((name for name, value in given.items() if value is not None and name not in takes), None)
    if odd is not None:
        does = "says which label is the likeliest" if judges and not kind.head else f"was opened as {kind.one}"
        raise BadConfig(f"{odd} changes nothing here, as {pipe.base.id} {does}: leave it out")


def _refuse_tags(pipe: TextPipeline, prompts: Sequence[str]) -> None:
    tagged = next((prompt for prompt in prompts if pipe.read_tags(prompt).blend is not None), None)
    if tagged is not None:
        raise BadConfig(f"the prompt {tagged!r} has a tag, and --per-sample says which adapter acts: drop one of them")
