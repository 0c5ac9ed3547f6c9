"""``--mask-of``: adapters that act in a part of the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from studio.errors import BadConfig

if TYPE_CHECKING:
    from studio.pipelines import ImagePipeline

__all__ = ["mask_adapters", "mask_option", "masks_given"]

F = TypeVar("F", bound=Callable[..., Any])

_GIVEN: Final = "studio.commands.regions"  # of the context: the masks that were asked for


class MaskWord(click.ParamType):
    """A mask as named on the command line: ``NAME=FILE``."""

    name = "mask"

    def convert(
        self, value: str | tuple[str, Path], parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, Path]:
        """Reads the name of an adapter and the file of its mask.

        Example:
            >>> MaskWord()("robot=left.png")
            ('robot', PosixPath('left.png'))
        """
        if isinstance(value, tuple):
            return value
        name, sign, file = value.partition("=")
        if not (name and sign and file):
            self.fail(f"{value!r} is not of the form NAME=FILE, such as robot=left.png", parameter, context)
        return name, Path(file)


def _note(context: click.Context, parameter: click.Parameter, value: Sequence[tuple[str, Path]]) -> None:
    context.meta[_GIVEN] = value


def mask_option(command: F) -> F:
    """Adds ``--mask-of``; :func:`mask_adapters` makes it act."""
    return click.option(
        "--mask-of", type=MaskWord(), multiple=True, metavar="NAME=FILE", expose_value=False, callback=_note,
        help="The adapter of that name acts where this picture is white, softly where it is grey; repeatable.",
    )(command)  # fmt: skip


def masks_given() -> list[Path]:
    """Returns the files of the masks that were given to the command which runs."""
    return [file for _, file in click.get_current_context().meta.get(_GIVEN) or ()]


def mask_adapters(pipe: ImagePipeline, prompts: Sequence[str]) -> None:
    """Makes adapters act where the masks say that were given to the command which runs.

    Args:
        pipe: which has them loaded. prompts: that are drawn.

    Raises:
        UnknownName: no adapter of such a name. BadFile: a mask that cannot be read.
        BadConfig: a prompt with tags, which say themselves how adapters act; or two masks of one adapter.
    """
    from studio.adapters import blend, current_blend
    from studio.adapters.hosting.attached import check_known
    from studio.pipelines.making import read_tags

    given = click.get_current_context().meta.get(_GIVEN) or ()
    acting = current_blend(pipe.carrier)
    for name, file in given:
        check_known(pipe.carrier, name)
        if acting[name].mask is not None:
            raise BadConfig(f"--mask-of names {name!r} twice; one mask holds all of its places")
        acting[name] = acting[name].within(file)
    for prompt in prompts if given else ():
        if read_tags(pipe.base, prompt).blend is not None:
            raise BadConfig(
                f"the tags in {prompt!r} say how adapters act there, without the masks of --mask-of; leave the tags "
                "out: --adapter FILE:STRENGTH says how strongly"
            )
    if given:
        blend(pipe.carrier, acting)
