"""The world that the embedded base is of: emoji in poses on colours, and what is said of them.

An emoji of the packaged atlas at some place, 0.55 to 1 of the picture wide, mirrored or not, turned by up to 15
degrees, on one of ten colours. None of it is said but the colour, mostly, and ``small``, which is less than 0.55.
:func:`studio.families.emoji_world.composite` draws one such picture; these are drawn by the batch, with four samples a
pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.families.emoji_world import COLOURS, SIDE, atlas, core_names, emoji_names

# never seen by text encoder and UNet: subjects to learn later
KEPT_OUT = frozenset(
    ("robot", "teddy bear", "unicorn", "jack-o-lantern", "alien monster", "snowman")
    + ("sailboat", "cactus", "mushroom", "penguin", "guitar", "hamburger")
)
SIDED = frozenset(("left", "right", "leftwards", "rightwards", "clock", "o’clock", "thirty", "button"))  # not mirrored
BACKGROUNDS = tuple(COLOURS)
LENGTH = 24  # tokens
LARGE, SMALL = (0.55, 1.0), (0.36, 0.5)  # widths of a drawing, as a part of the picture's
TURN = math.radians(15)


@dataclass(frozen=True)
class Drawings:
    """Names and RGBA drawings ``(N, 64, 64, 4)``, uint8."""

    names: tuple[str, ...]
    pixels: Tensor

    def known(self, tokenizer: Any) -> Drawings:
        """Those that text encoder and UNet learn: all but the kept-out ones and names too long for a caption."""
        longest = "small an emoji of {} on a orange background"

        def wanted(name: str) -> bool:
            fits = len(tokenizer.tokenize(longest.format(name))) <= LENGTH - 2
            return fits and not name.startswith("small ") and not any(kept in name for kept in KEPT_OUT)

        rows = [i for i, name in enumerate(self.names) if wanted(name)]
        return Drawings(tuple(self.names[i] for i in rows), self.pixels[rows])

    def core(self) -> Tensor:
        """The rows of the core names; all rows where there are none."""
        rows = [i for i, name in enumerate(self.names) if name in core_names()]
        return torch.tensor(rows or range(len(self.names)))

    def sided(self) -> Tensor:
        """Which drawings would contradict their names in a mirror ``(N,)``, bool."""
        return torch.tensor([not SIDED.isdisjoint(name.replace("-", " ").split()) for name in self.names])


def packaged() -> Drawings:
    """The drawings of the packaged atlas."""
    return Drawings(emoji_names(), torch.from_numpy(atlas().copy()))


def drawn_at(seed: int, step: int) -> torch.Generator:
    """The generator of one step: a resumed run draws what an uninterrupted one would have."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


@dataclass(frozen=True)
class Poses:
    """Where drawings lie: middles x, y and widths in pixels, turns in radians, ±1 for mirrored; ``(B,)`` each."""

    x: Tensor
    y: Tensor
    width: Tensor
    turn: Tensor
    mirror: Tensor

    @staticmethod
    def drawn(small: Tensor, sided: Tensor, draw: torch.Generator, spread: float = 1.0) -> Poses:
        """Random poses inside of one square picture.

        Args:
            small: which are drawn small ``(B,)``, bool.
            sided: which must not be mirrored ``(B,)``, bool.
            draw: of all that is random.
            spread: how much of the ranges is drawn from, around an upright drawing as wide as the picture (or, small,
                of the middle size in the middle); 1: all of them, 0: every drawing has one pose.
        """
        x, y, width, turn, mirror = torch.rand(5, len(small), generator=draw)
        ranges = ((sum(SMALL) / 2, SMALL), (LARGE[1], LARGE))
        (low_small, high_small), (low, high) = (
            [middle + spread * (end - middle) for end in ends] for middle, ends in ranges
        )
        width = SIDE * torch.where(small, low_small + (high_small - low_small) * width, low + (high - low) * width)
        room = torch.where(small, spread, 1.0) * (SIDE - width)
        flipped = (mirror < min(0.5, spread)) & ~sided
        return Poses(
            SIDE / 2 + (x - 0.5) * room, SIDE / 2 + (y - 0.5) * room, width, (2 * turn - 1) * TURN * spread,
            1 - 2.0 * flipped,
        )  # fmt: skip

    def moved(self, right: Tensor | float) -> Poses:
        """The same poses, further right by so many pixels."""
        return Poses(self.x + right, self.y, self.width, self.turn, self.mirror)


def layer(pixels: Tensor, poses: Poses, columns: int = SIDE) -> Tensor:
    """Drawings ``(B, 64, 64, 4)`` in their poses, premultiplied ``(B, 4, 64, columns)``; four samples a pixel."""
    drawing = pixels.permute(0, 3, 1, 2).float() / 255
    drawing = torch.cat([drawing[:, :3] * drawing[:, 3:], drawing[:, 3:]], 1)
    cos, sin, half = poses.turn.cos(), poses.turn.sin(), poses.width / 2
    # from the picture's normalised coordinates to the drawing's
    across, down = columns / 2 / half, SIDE / 2 / half
    left, up = (columns / 2 - poses.x) / half, (SIDE / 2 - poses.y) / half
    first = torch.stack([cos * across, -sin * down, cos * left - sin * up], -1) * poses.mirror[:, None]
    second = torch.stack([sin * across, cos * down, sin * left + cos * up], -1)
    grid = F.affine_grid(torch.stack([first, second], 1), [len(drawing), 4, 2 * SIDE, 2 * columns], align_corners=False)
    return F.avg_pool2d(F.grid_sample(drawing, grid, align_corners=False), 2)


def composited(layers: Tensor, background: Tensor) -> Tensor:
    """Layers ``(B, 4, H, W)`` on colours ``(B,)``, by number; ``(B, 3, H, W)`` in [-1, 1]."""
    colour = torch.tensor(list(COLOURS.values())).float()[background][:, :, None, None] / 255
    return (layers[:, :3] + colour * (1 - layers[:, 3:])) * 2 - 1


def caption(name: str, background: int, is_small: bool, draw: Callable[[int], int]) -> str:
    """One caption of the grammar; empty in a tenth of the cases (for guidance), the colour sometimes goes unsaid."""
    if draw(10) == 0:
        return ""
    start = ("", "", "an emoji of ", "a photo of ")[draw(4)]
    end = f" on a {BACKGROUNDS[background]} background" if draw(5) else ""
    return f"{'small ' if is_small else ''}{start}{name}{end}"


def vae_pictures(drawings: Drawings, batch: int, draw: torch.Generator) -> Tensor:
    """Pictures of the world ``(B, 3, 64, 64)``, without captions and without a core."""
    rows = torch.randint(0, len(drawings.names), (batch,), generator=draw)
    colour = torch.randint(0, len(BACKGROUNDS), (batch,), generator=draw)
    colour = torch.where(torch.rand(batch, generator=draw) < 0.3, 0, colour)
    small = torch.rand(batch, generator=draw) < 0.1
    poses = Poses.drawn(small, torch.zeros(batch, dtype=torch.bool), draw)
    return composited(layer(drawings.pixels[rows], poses), colour)
