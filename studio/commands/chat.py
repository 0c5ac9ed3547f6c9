"""``studio chat``: a conversation in the terminal, with any blend of adapters."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from studio.atomic import atomic_write, sentences
from studio.commands.loading import load_adapter, open_pipeline
from studio.commands.options import adapter_option, example, output_options, pipeline_options
from studio.commands.show import Show
from studio.commands.words import AdapterWord
from studio.errors import BadConfig, BadFile, DoesNotFit, StudioError
from studio.shown import shown

if TYPE_CHECKING:
    from studio.pipelines import TextPipeline

__all__ = ["chat"]

Turn: TypeAlias = dict[str, str]
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
    come from a pipe. With --save, what was said is kept however it ends, Ctrl-C in the middle of an answer included.
    """
    from studio.pipelines import TextPipeline
    from studio.pipelines.kinds import check_writes

    show = Show(as_json, quiet)
    save = None if save is None else _checked_place(save.expanduser())
    pipe = open_pipeline(TextPipeline, base, device=device, dtype=dtype, show=show)
    check_writes(pipe.base)
    used = [load_adapter(pipe, word, show, allow_partial=allow_partial, pickled=pickled) for word in adapters]
    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    talk = _Talk(pipe, show, pipe.system if system is None else system, settings)
    show.tell(f"{pipe.base.id} listens; {HELP}")
    try:
        for turn in _turns(show):
            talk.take(turn)
    finally:  # however it ends, what was said is kept
        if save is not None and talk.all:
            _keep(talk.all, save)
            show.tell(f"{len(talk.all)} conversations added to {save}")
    show.result({"conversations": talk.all, "adapters": used})


class _Talk:
    """The conversations of a call, of which the last one goes on."""

    def __init__(self, pipe: TextPipeline, show: Show, system: str, settings: dict[str, Any]) -> None:
        self._pipe, self._show, self._settings = pipe, show, settings
        self._start: list[Turn] = [{"role": "system", "content": system}] if system else []
        self._talks: list[list[Turn]] = [self._start]

    @property
    def all(self) -> list[list[Turn]]:
        """Those in which something was said."""
        return [one for one in self._talks if len(one) > len(self._start)]

    def take(self, line: str) -> None:
        """Answers a turn, or does what a line with a slash says; what is wrong is told, and the talk goes on."""
        try:
            if line.startswith("/"):
                self._obey(line)
            else:
                self._answer(line)
        except StudioError as problem:
            self._show.note(str(problem))

    def _answer(self, line: str) -> None:
        asked = [*self._talks[-1], {"role": "user", "content": line}]
        tell = (lambda piece: click.echo(shown(piece, lines=True), nl=False)) if self._show.talks else None
        settings = {**self._settings, "seed": self._settings["seed"] + len(asked)}
        try:
            said = self._pipe.reply(asked, tell=tell, **settings)
        except DoesNotFit as problem:
            raise DoesNotFit(f"{problem}; or begin anew with /new") from None
        self._talks[-1] = [*asked, {"role": "assistant", "content": said.text}]
        self._show.say()
        if not said.ended:
            self._show.note(f"the answer did not end within {said.tokens} tokens")

    def _obey(self, line: str) -> None:
        from studio.adapters import blend

        word, *rest = line.split()
        if word == "/new":
            self._talks.append(self._start)
        elif word == "/blend":
            blend(self._pipe.model, dict(_strength(one) for one in rest))
            self._show.tell(f"blend: {' '.join(rest) or 'the base alone'}")
        else:
            raise BadConfig(f"there is no {word}; {HELP}")


def _checked_place(file: Path) -> Path:
    """Says before anything is said where nothing could be kept in the end."""
    if file.exists() and not file.is_file():
        raise BadFile(f"{file} is no file that conversations could be added to; name another (--save FILE.jsonl)")
    new = not file.exists()
    _keep([], file)
    if new:
        file.unlink()
    return file


def _keep(talks: Sequence[Sequence[Turn]], file: Path) -> None:
    """Adds conversations to a file of samples: all of them, or none."""
    with sentences(file):
        before = file.read_bytes() if file.exists() else b""
    lines = "".join(json.dumps({"messages": one}, ensure_ascii=False) + "\n" for one in talks)
    atomic_write(file, before + (b"\n" if before and not before.endswith(b"\n") else b"") + lines.encode())


def _turns(show: Show) -> Iterator[str]:
    """The lines that are typed, or come from a pipe."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a byte that is no character ends no conversation
    typed = sys.stdin.isatty() and show.talks
    while True:
        if typed:
            click.echo("> ", nl=False)
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            if typed and not line:
                show.say()
            return
        if line.strip():
            yield line.strip()


def _strength(word: str) -> tuple[str, float]:
    name, _, number = word.partition("=")
    try:
        return name, float(number or 1)
    except ValueError:
        raise BadConfig(f"{word!r} is no strength; write /blend {name}=0.8") from None
