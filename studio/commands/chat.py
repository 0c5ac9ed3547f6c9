"""``studio chat``: a conversation in the terminal, with any blend of adapters."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from studio.commands.loading import load_adapter, open_pipeline
from studio.commands.options import adapter_option, example, output_options, pipeline_options
from studio.commands.show import Show
from studio.commands.words import AdapterWord
from studio.errors import BadConfig, StudioError
from studio.shown import shown

__all__ = ["chat"]

HELP = "/new begins anew, /blend short=0.8 long=0.2 changes the blend, /quit ends"


@click.command(
    short_help="Talk to a language model in the terminal.",
    epilog=example(
        "studio chat facts --adapter runs/answers",
        'studio chat model/ --adapter polite=a.safetensors:0.6 --system "Be brief." --save talk.jsonl',
    ),
)
@click.argument("base")
@adapter_option
@click.option("--system", metavar="TEXT", help="The system prompt; else the one that the adapters were trained with.")
@click.option("--max-new-tokens", type=int, metavar="N", default=256, show_default=True, help="Tokens of an answer.")
@click.option("--temperature", type=float, metavar="X", default=0.0, show_default=True, help="0: the likeliest token.")
@click.option("--seed", type=int, metavar="N", default=0, show_default=True, help="Of the first answer; then its next.")
@click.option(
    "--save", type=click.Path(path_type=Path), metavar="FILE.jsonl",
    help="Adds the conversation to a file of samples, which studio tune causal-lm takes.",
)  # fmt: skip
@pipeline_options
@output_options
def chat(
    base: str, adapters: tuple[AdapterWord, ...], system: str | None, max_new_tokens: int, temperature: float,
    seed: int, save: Path | None, allow_partial: bool, pickled: bool, device: str | None, dtype: str | None,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Talk to a language model. Each line is a turn, and is answered as it is written.

    /new begins anew; /blend short=0.8 long=0.2 changes which adapters act; /quit, or the end of input, ends. Lines may
    come from a pipe.
    """
    from studio.pipelines import TextPipeline

    show = Show(as_json, quiet)
    pipe = open_pipeline(TextPipeline, base, device=device, dtype=dtype, show=show)
    used = [load_adapter(pipe, word, show, allow_partial=allow_partial, pickled=pickled) for word in adapters]
    system = pipe.system if system is None else system
    start = [{"role": "system", "content": system}] if system else []
    talk, talks = list(start), list[list[dict[str, str]]]()
    show.tell(f"{pipe.base.id} listens; {HELP}")
    for turn in _turns(show):
        if turn.startswith("/"):
            talk = _obey(turn, pipe, talk, start, talks, show)
            continue
        tell = None if as_json else lambda piece: click.echo(shown(piece, lines=True), nl=False)
        try:
            asked = [*talk, {"role": "user", "content": turn}]
            said = pipe.reply(
                asked, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed + len(asked), tell=tell
            )  # fmt: skip
        except StudioError as problem:
            show.tell(f"error: {problem}")
            continue
        show.say("")
        talk = [*asked, {"role": "assistant", "content": said.text}]
    talks = [one for one in (*talks, talk) if len(one) > len(start)]
    if save is not None and talks:
        _keep(talks, save)
        show.tell(f"{len(talks)} conversations added to {save}")
    show.result({"conversations": talks, "adapters": used})


def _keep(talks: list[list[dict[str, str]]], file: Path) -> None:
    """Adds conversations to a file of samples."""
    with file.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"messages": one}, ensure_ascii=False) + "\n" for one in talks)


def _turns(show: Show) -> Any:
    """The lines that are typed, or come from a pipe."""
    while True:
        if sys.stdin.isatty():
            click.echo("> ", nl=False)
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            return
        if line.strip():
            yield line.strip()


def _obey(turn: str, pipe: Any, talk: list[Any], start: list[Any], talks: list[Any], show: Show) -> list[Any]:
    """Does what a line with a slash says; returns the conversation that goes on."""
    from studio.adapters import blend

    word, *rest = turn.split()
    if word == "/new":
        talks.append(talk)
        return list(start)
    try:
        if word != "/blend":
            raise BadConfig(f"there is no {word}; {HELP}")
        blend(pipe.model, dict(_strength(one) for one in rest))
        show.tell(f"blend: {' '.join(rest) or 'the base alone'}")
    except StudioError as problem:
        show.tell(f"error: {problem}")
    return talk


def _strength(word: str) -> tuple[str, float]:
    name, _, number = word.partition("=")
    try:
        return name, float(number or 1)
    except ValueError:
        raise BadConfig(f"{word!r} is no strength; write /blend {name}=0.8") from None
