"""The options of one picture: what is given on the command line, and nothing else, becomes what is wanted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from studio.commands.words import SIZE

__all__ = ["PICTURE", "SHEET", "given_options", "picture_options", "sheet_options"]

F = TypeVar("F", bound=Callable[..., Any])
PICTURE, SHEET = "studio.picture", "studio.sheet"


def given_options(part: str = PICTURE) -> dict[str, Any]:
    """Returns the options of a picture, or of a sheet, that were given in this call, by the name of their argument."""
    return dict(click.get_current_context().meta.get(part, {}))


def _option(part: str, *names: str, **settings: Any) -> Callable[[F], F]:
    def keep(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        if value is not None and value is not False:
            context.meta.setdefault(part, {})[str(parameter.name)] = value
        return value

    settings = {"metavar": "X", **settings} if "is_flag" not in settings else settings
    return click.option(*names, expose_value=False, callback=keep, **settings)


_FILE = click.Path(path_type=Path)
_PICTURE = (
    _option(
        PICTURE, "--normalize", is_flag=True, help="Lower strengths where adapters add up: 1.0 + 1.0 does not burn."
    ),
    _option(PICTURE, "--steps", type=int, metavar="N", help="Denoising steps; else the base's own."),
    _option(PICTURE, "--sampling-steps", "steps", type=int, hidden=True, help="The same as --steps."),
    _option(PICTURE, "--guidance", type=float, help="Guidance scale, else the base's own; 1: the prompt alone."),
    _option(
        PICTURE, "--embedded-guidance", type=float,
        help="Guidance that a distilled base (Flux dev) takes as a number instead; else the base's own.",
    ),
    _option(PICTURE, "--negative", metavar="TEXT", help="What guidance leads away from."),
    _option(
        PICTURE, "--wildcards", type=_FILE, metavar="FOLDER", help="Where the text files are that __name__ names."
    ),
    _option(
        PICTURE, "--resolution", type=SIZE, metavar="WxH", help="Size in pixels, 512x768 or 512; else the base's own."
    ),
    _option(PICTURE, "--image", type=_FILE, metavar="FILE", help="A picture to start from instead of noise alone."),
    _option(
        PICTURE, "--strength", type=float, help="How much of it is drawn anew, above 0 and at most 1; 0.6 if not said."
    ),
    _option(PICTURE, "--mask", type=_FILE, metavar="FILE", help="Draw anew only where this picture is white."),
    _option(PICTURE, "--upscale", type=float, help="Scale the picture up by this and draw it again in a second pass."),
    _option(
        PICTURE, "--upscale-strength", type=float, help="How much the second pass draws anew; 0.5 if not said."
    ),
    _option(
        PICTURE, "--upscale-steps", type=int, metavar="N", help="Steps of the second pass; else those of the first."
    ),
    _option(
        PICTURE, "--scheduler", metavar="NAME", help="Sampler, such as euler-a or dpm++-2m-karras; else the base's own."
    ),
)  # fmt: skip
_AXIS = "strength:robot=0,0.5,1, seed=0..3, guidance=1..5:2, scheduler=NAME,NAME, prompt:tiger=tiger,fox, ..."
_SHEET = (
    _option(SHEET, "--x", metavar="AXIS", help=f"Draw a grid: what changes from column to column. {_AXIS}"),
    _option(SHEET, "--y", metavar="AXIS", help="What changes from row to row, in the same forms."),
    _option(SHEET, "--z", metavar="AXIS", help="What changes from panel to panel, in the same forms."),
    _option(SHEET, "--matrix", is_flag=True, help="Draw the parts of PROMPT between | in all combinations."),
)


def picture_options(command: F) -> F:
    """Adds what can be said of one picture; :func:`given_options` returns it."""
    for option in reversed(_PICTURE):
        command = option(command)
    return command


def sheet_options(command: F) -> F:
    """Adds what makes a grid; ``given_options(SHEET)`` returns it."""
    for option in reversed(_SHEET):
        command = option(command)
    return command
