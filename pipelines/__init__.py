"""Pictures and texts from prompts, with any blend of adapters: one sampling path over all families, and one for texts.

Example:
    >>> from studio.pipelines import ImagePipeline, contact_sheet, save_png
    >>> pipe = ImagePipeline.open("emoji")
    >>> images = pipe.generate(["tiger", "rocket on a blue background"], seeds=[0, 1], steps=4)
    >>> contact_sheet(images, columns=2).mode
    'RGB'
"""

from __future__ import annotations

from studio.pipelines.asking import Wanted
from studio.pipelines.grids.kinds import AXES
from studio.pipelines.grids.matrix import prompt_matrix
from studio.pipelines.grids.plan import Grid
from studio.pipelines.grids.xyz import strength_sweep, xyz_grid
from studio.pipelines.image import ImagePipeline
from studio.pipelines.making import Made
from studio.pipelines.metadata import read_metadata, save_picture, save_png
from studio.pipelines.prompting.escaping import escape_prompt
from studio.pipelines.prompting.tags import TaggedPrompt, parse_prompt
from studio.pipelines.prompting.wildcards import every_prompt
from studio.pipelines.regenerate import regenerate
from studio.pipelines.rendering.render import render
from studio.pipelines.request import Request
from studio.pipelines.sample import sample
from studio.pipelines.schedulers import SCHEDULERS
from studio.pipelines.sheet import before_after, contact_sheet
from studio.pipelines.text import Completion, TextPipeline
from studio.pipelines.verdicts import Verdict

__all__ = [
    "AXES",
    "SCHEDULERS",
    "Completion",
    "Grid",
    "ImagePipeline",
    "Made",
    "Request",
    "TaggedPrompt",
    "TextPipeline",
    "Verdict",
    "Wanted",
    "before_after",
    "contact_sheet",
    "escape_prompt",
    "every_prompt",
    "parse_prompt",
    "prompt_matrix",
    "read_metadata",
    "regenerate",
    "render",
    "sample",
    "save_picture",
    "save_png",
    "strength_sweep",
    "xyz_grid",
]
