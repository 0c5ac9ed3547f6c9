"""How well a subject was learned, measured against the truth and not guessed.

Every picture of the emoji world can be computed (:mod:`studio.families.emoji_world`), so "a photo of sks robot on a
purple background" has a right answer: that drawing, on that colour. Three numbers per picture:

* *subject fidelity* ``(s(x) - s(base)) / (s(VAE(truth)) - s(base))``: 0 is what the base draws for the prompt, 1 is the
  truth sent once through the base's own autoencoder, which bounds what any adapter can reach.
* *rank*: how many emoji are nearer to the picture than the right one, plus 1. Colour averages are removed first, so a
  blob of the right colour and outline does not pass.
* *prompt fidelity*: whether the background is the colour that was asked for.

``s`` is the similarity of a picture to the true composite, best over places, sizes, mirror and turn: the base draws all
of them at random. :func:`placements` tells where the truth fits best.

On one core :func:`placements` and :func:`similarity` take about 0.04 s a picture, :func:`rank` about a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from studio.errors import BadConfig, UnknownName
from studio.families.emoji_world import COLOURS, SIDE, atlas, composite, emoji_image, emoji_names, instance_set, posed

__all__ = [
    "COLOURS",
    "Placement",
    "background",
    "composite",
    "emoji_image",
    "emoji_names",
    "instance_set",
    "nearest_emoji",
    "placements",
    "prompt_fidelity",
    "rank",
    "similarity",
    "subject_fidelity",
    "vae_round_trip",
]

SMALLEST = 34  # width of a drawing, in pixels, from which `placements` looks for it: 0.55 of the picture, rounded down
TURNS = (-15.0, -7.5, 0.0, 7.5, 15.0)  # degrees, of the coarse search
FINER = ((1, 2.5, 2), (1, 1.25, 1))  # steps of size, turn and place of the two fine searches around what is best
CANDIDATES = 4  # poses (mirror and turn) that the first of them looks at
MARGIN = 4  # pixels that a drawing may lie outside of the picture
RING = 2  # pixels of background around the drawing that count as the subject's outline
FRAME = 3  # width in pixels of the frame in which the background is looked for
RANK_COARSE, RANK_FINE = (
    16,
    32,
)  # sides in pixels of the pictures in which all emoji, then the nearest ones are compared
RANK_KEPT = 24  # emoji that are compared again, and as many by another measure
RANK_TURNS, RANK_TURN = (-10.0, 0.0, 10.0), 5.0  # degrees: tried on all; around the best of them on the nearest
RANK_SIZES = (-2, -1, 0, 1, 2)  # pixels at half resolution, around the best size at a quarter
RANK_FLOOR = 0.04  # standard deviation (colours are 0 to 1) below which a drawing or a window counts as flat
RANK_INSIDE = 0.95  # opacity from which a pixel is inside of a drawing
RANK_COVER = 0.1  # distance from the background from which a pixel belongs to the thing in the picture


@dataclass(frozen=True)
class Placement:
    """Where a true drawing lies in a picture (see :func:`composite`), and how well it fits.

    Args:
        size: width of the drawing in pixels.
        left: x of its left edge in pixels.
        top: y of its upper edge in pixels.
        mirror: left and right are exchanged.
        turn: degrees, counter-clockwise.
        similarity: as of :func:`similarity`.
    """

    size: int
    left: int
    top: int
    mirror: bool
    turn: float
    similarity: float


def similarity(images: Sequence[Image.Image], name: str | Image.Image, colour: str) -> list[float]:
    """Returns for each picture ``s = max_p [1 - Σ m_p |x - t_p| / Σ m_p]``, 1 for the truth itself.

    ``p`` runs over the places, sizes, mirrors and turns of :func:`placements`, ``t_p`` is the true composite at p,
    ``m_p`` is 1 on the drawing and on a ring of 2 pixels around it, so that its outline counts. Colours are 0 to 1.

    Args:
        images: 64 × 64.
        name: of :func:`emoji_names`, or a drawing of one's own, 64 × 64 RGBA.
        colour: of :data:`COLOURS`.

    Raises:
        UnknownName: no such emoji or colour.
        BadConfig: a picture is not 64 × 64.

    Example:
        >>> similarity([composite("robot", "red", 52, left=4, top=8, mirror=True, turn=-10)], "robot", "red")
        [1.0]
    """
    return [placement.similarity for placement in placements(images, name, colour)]


def placements(images: Sequence[Image.Image], name: str | Image.Image, colour: str) -> list[Placement]:
    """Returns for each picture where the true drawing fits best: 34 to 64 pixels wide, turned by up to 15 degrees.

    First by squared distances at half resolution (every second size and place, five turns, both mirrors), then around
    the best four poses by :func:`similarity`'s measure, in steps of 1 pixel and 1.25 degrees.

    Args:
        images: 64 × 64.
        name: of :func:`emoji_names`, or a drawing of one's own, 64 × 64 RGBA.
        colour: of :data:`COLOURS`.

    Raises:
        UnknownName: no such emoji or colour.
        BadConfig: a picture is not 64 × 64.

    Example:
        >>> placements([composite("tiger", "blue", 41, left=20, top=3, mirror=True)], "tiger", "blue")
        [Placement(size=41, left=20, top=3, mirror=True, turn=0.0, similarity=1.0)]
    """
    wide = _padded(_pixels(images), _colour(colour), MARGIN)
    return [_finest(picture, name, colour, _coarse(picture, name, colour)) for picture in wide]


def subject_fidelity(
    images: Sequence[Image.Image], name: str, colour: str, *, base_images: Sequence[Image.Image], vae: Any
) -> list[float]:
    """Returns ``(s(x) - b) / (v - b)`` for each picture.

    ``b`` is the mean similarity of ``base_images``, ``v`` that of the truth after one trip through ``vae``
    (:func:`vae_round_trip` of full, middle and small size). 0: not better than the base; 1: as good as the VAE allows.

    Args:
        images: pictures of ``name`` on ``colour``, made with the adapter.
        name: the subject, of :func:`emoji_names`.
        colour: the background asked for, of :data:`COLOURS`.
        base_images: pictures of the same prompt without the adapter; the same seeds are best.
        vae: the base's ``AutoencoderKL`` (``base.pipe.vae``).

    Raises:
        UnknownName: no such emoji or colour.
        BadConfig: a picture is not 64 × 64, there are no base pictures, or the base draws the subject already.
    """
    if not base_images:
        raise BadConfig("subject fidelity is measured against pictures of the base, and none were given")
    low = float(np.mean(similarity(base_images, name, colour)))
    truths = [composite(name, colour, size) for size in (SIDE, 56, 48)]
    high = float(np.mean(similarity(vae_round_trip(truths, vae), name, colour)))
    if high - low < 0.01:
        raise BadConfig(f"the base pictures already show {name} on {colour} as well as the VAE can; nothing to measure")
    return [(value - low) / (high - low) for value in similarity(images, name, colour)]


def vae_round_trip(images: Sequence[Image.Image], vae: Any) -> list[Image.Image]:
    """Returns the pictures encoded (mode of the posterior) and decoded by ``vae``: what it can show of them at best."""
    pixels = (_pixels(images) * 2 - 1).to(vae.device, vae.dtype)
    with torch.no_grad():
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    values = ((decoded.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(value) for value in values]


def rank(image: Image.Image, name: str, colour: str | None = None) -> int:
    """Returns the place of the right emoji among all, ordered by :func:`nearest_emoji`'s score; 1 is nearest.

    Args:
        image: 64 × 64.
        name: the right emoji.
        colour: the background that the drawings are compared on; ``None``: the one that the picture has.

    Raises:
        UnknownName: no such emoji or colour.
        BadConfig: the picture is not 64 × 64.
    """
    emoji_image(name)  # names the nearest when there is none
    scores = _scores(image, colour)
    return int((scores > scores[emoji_names().index(name)]).sum()) + 1


def nearest_emoji(image: Image.Image, colour: str | None = None, count: int = 5) -> list[tuple[str, float]]:
    """Returns the ``count`` nearest emoji with their scores, best first.

    The score of an emoji is a masked, mean-removed correlation, best over sizes, places, mirror and turn p:

    ``score = max_p min(ρ_R, 2 ρ_I)``,
    ``ρ_M = Σ_M (t - t̄)(x - x̄) / sqrt[(Σ_M (t - t̄)² + ε)(Σ_M (x - x̄)² + ε)]``, ``ε = 3 |M| · 0.04²``

    All are compared at a quarter of the resolution, with six mirrors and turns; those that score best there, and those
    that are most alike, again at half, turned finer.

    ``x`` is the picture, ``t`` the drawing at p on the same background, the means are taken over the mask M for each
    colour channel. R is what either of them covers, so that neither a small drawing inside a large thing nor a large
    one around a small thing profits; I is the inside of the drawing, on which a silhouette of the right outline and the
    right mean colour is constant and scores nothing. ``ε`` keeps flat drawings from correlating by noise.

    Args:
        image: 64 × 64.
        colour: the background that the drawings are compared on; ``None``: the one that the picture has.
        count: how many.

    Raises:
        UnknownName: no such colour.
        BadConfig: the picture is not 64 × 64.
    """
    scores = _scores(image, colour)
    order = torch.argsort(scores, descending=True)[:count].tolist()
    return [(emoji_names()[i], float(scores[i])) for i in order]


def background(image: Image.Image) -> str:
    """Returns the name of the colour of :data:`COLOURS` that most pixels of the frame (3 pixels wide) are nearest to.

    Example:
        >>> background(composite("penguin", "orange"))
        'orange'
    """
    palette = torch.tensor(list(COLOURS.values())).float() / 255
    nearest = torch.cdist(_frame(_pixels([image])[0], FRAME).T, palette).argmin(1)
    return list(COLOURS)[int(torch.bincount(nearest, minlength=len(palette)).argmax())]


def prompt_fidelity(image: Image.Image, colour: str) -> bool:
    """Whether the background of ``image`` is ``colour``: most of its frame is nearest to it of the ten colours.

    Raises:
        UnknownName: no such colour.
        BadConfig: the picture is not 64 × 64.
    """
    _colour(colour)
    return background(image) == colour


def _pixels(images: Sequence[Image.Image]) -> Tensor:
    wrong = next((image.size for image in images if image.size != (SIDE, SIDE)), None)
    if wrong:
        raise BadConfig(
            f"fidelity is measured on pictures of {SIDE} × {SIDE} pixels, this one has {wrong[0]} × {wrong[1]}"
        )
    stack = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255


def _colour(colour: str) -> Tensor:
    if colour not in COLOURS:
        raise UnknownName(f"no background is called {colour!r}; the ten are {', '.join(COLOURS)}")
    return torch.tensor(COLOURS[colour]).float()[:, None, None] / 255


def _padded(pixels: Tensor, colour: Tensor, margin: int) -> Tensor:
    height, width = pixels.shape[-2:]
    wide = colour.expand(len(pixels), 3, height + 2 * margin, width + 2 * margin).clone()
    wide[..., margin : margin + height, margin : margin + width] = pixels
    return wide


def _coarse(picture: Tensor, name: str | Image.Image, colour: str) -> list[Placement]:
    """The best place and size of the best poses, by squared distance at half resolution."""
    half = F.avg_pool2d(picture[None], 2)
    best: dict[tuple[bool, float], tuple[float, Placement]] = {}
    for size, layers in _layers(name):
        alpha, side = layers[:, 3:], layers.shape[-1]
        mask = F.max_pool2d((alpha > 0.05).float(), RING + 1, 1, RING // 2)
        truth = (layers[:, :3] + (1 - alpha) * _colour(colour)) * mask
        windows = F.unfold(half, side)[0]
        distance = mask.expand(-1, 3, -1, -1).flatten(1) @ windows.square() - 2 * truth.flatten(1) @ windows
        distance = (distance + truth.square().sum((1, 2, 3))[:, None]) / mask.sum((1, 2, 3))[:, None]
        across = half.shape[-1] - side + 1
        for pose, value, at in zip(_POSES, *(part.tolist() for part in distance.min(1)), strict=True):
            left, top = 2 * (at % across) + RING - MARGIN, 2 * (at // across) + RING - MARGIN
            if pose not in best or value < best[pose][0]:
                best[pose] = value, Placement(size, left, top, mirror=pose[0], turn=pose[1], similarity=-1.0)
    return [place for _, place in sorted(best.values(), key=lambda found: found[0])[:CANDIDATES]]


_POSES = tuple((mirror, turn) for mirror in (False, True) for turn in TURNS)


def _layers(name: str | Image.Image) -> tuple[tuple[int, Tensor], ...]:
    """Sizes with the drawing in all poses and with a ring, premultiplied, at half resolution ``(poses, 4, s, s)``."""
    return _layers_of_emoji(name) if isinstance(name, str) else _layers_of(name)


@lru_cache(maxsize=16)
def _layers_of_emoji(name: str) -> tuple[tuple[int, Tensor], ...]:
    return _layers_of(emoji_image(name))


def _layers_of(drawing: Image.Image) -> tuple[tuple[int, Tensor], ...]:
    def layer(size: int, mirror: bool, turn: float) -> Tensor:
        pixels = torch.from_numpy(np.array(posed(drawing, size, mirror, turn).convert("RGBa"))).permute(2, 0, 1)
        return F.avg_pool2d(F.pad(pixels.float() / 255, (RING,) * 4), 2)

    sizes = range(SMALLEST, SIDE + 1, 2)
    return tuple((size, torch.stack([layer(size, *pose) for pose in _POSES])) for size in sizes)


def _finest(picture: Tensor, name: str | Image.Image, colour: str, starts: list[Placement]) -> Placement:
    """The best placement around the starts."""
    for size_step, turn_step, place_step in FINER:
        found = [
            _best_place(picture, name, colour, replace(start, size=size, turn=turn), place_step)
            for start in starts
            for size in (start.size - size_step, start.size, start.size + size_step)
            for turn in (start.turn - turn_step, start.turn, start.turn + turn_step)
            if SMALLEST <= size <= SIDE and abs(turn) <= TURNS[-1]
        ]
        starts = [max(found, key=lambda place: (place.similarity, -abs(place.turn)))]
    return starts[0]


def _best_place(picture: Tensor, name: str | Image.Image, colour: str, start: Placement, step: int) -> Placement:
    """The best place at most ``step`` pixels away, of this size, mirror and turn."""
    truth, mask = _placed(name, colour, start.size, start.mirror, start.turn)
    side, shift = truth.shape[-1], MARGIN - RING
    corner = [min(max(at + shift - step, 0), picture.shape[-1] - side) for at in (start.top, start.left)]
    top, left = corner
    near = picture[:, top : top + side + 2 * step, left : left + side + 2 * step]
    windows = near.unfold(1, side, 1).unfold(2, side, 1)
    distance = ((windows - truth[:, None, None]).abs().mean(0) * mask).sum((2, 3)) / mask.sum()
    row, column = divmod(int(distance.argmin()), distance.shape[1])
    best = round(float(1 - distance[row, column]), 6)
    return replace(start, left=left + column - shift, top=top + row - shift, similarity=best)


def _placed(name: str | Image.Image, colour: str, size: int, mirror: bool, turn: float) -> tuple[Tensor, Tensor]:
    """The composite of one pose with a ring of background, ``(3, s, s)``, and its mask ``(s, s)``."""
    if isinstance(name, str):
        return _placed_emoji(name, colour, size, mirror, turn)
    return _place(name, colour, size, mirror, turn)


@lru_cache(maxsize=512)
def _placed_emoji(name: str, colour: str, size: int, mirror: bool, turn: float) -> tuple[Tensor, Tensor]:
    return _place(emoji_image(name), colour, size, mirror, turn)


def _place(drawing: Image.Image, colour: str, size: int, mirror: bool, turn: float) -> tuple[Tensor, Tensor]:
    wide = Image.new("RGBA", (size + 2 * RING, size + 2 * RING), (0, 0, 0, 0))
    wide.paste(posed(drawing, size, mirror, turn), (RING, RING))
    flat = Image.alpha_composite(Image.new("RGBA", wide.size, (*COLOURS[colour], 255)), wide).convert("RGB")
    truth = torch.from_numpy(np.array(flat)).permute(2, 0, 1).float() / 255
    opaque = torch.from_numpy(np.array(wide))[..., 3].float() / 255
    mask = F.max_pool2d((opaque > 0.05).float()[None, None], 2 * RING + 1, 1, RING)[0, 0]
    return truth, mask


@dataclass(frozen=True)
class _Drawings:
    """All drawings at one size s, as rows of matrices."""

    size: int
    premultiplied: Tensor  # (N, 3, s²), zero where the drawing covers less than RANK_COVER
    opacity: Tensor  # (N, s²), zero there too
    inside: Tensor  # (N, s²), 1 where it is opaque
    centred: Tensor  # (N, 3 s²), straight colours minus their mean over `inside`, zero outside
    spread: Tensor  # (N,), sum of squares of `centred`


@lru_cache(maxsize=1)
def _premultiplied() -> Tensor:
    """All drawings, ``(N, 4, 64, 64)``."""
    drawings = torch.from_numpy(atlas().astype(np.float32)).permute(0, 3, 1, 2) / 255
    return torch.cat([drawings[:, :3] * drawings[:, 3:], drawings[:, 3:]], 1)


@lru_cache(maxsize=1)
def _bank() -> tuple[_Drawings, ...]:
    return tuple(_drawings(_premultiplied(), size) for size in _rank_sizes(RANK_COARSE))


def _rank_sizes(side: int) -> range:
    """Sizes of a drawing in a picture of this side."""
    return range(round(SMALLEST * side / SIDE), side + 1)


def _drawings(layers: Tensor, size: int) -> _Drawings:
    tile = F.interpolate(layers, size=(size, size), mode="area").flatten(2)
    tile = tile * (tile[:, 3:] > RANK_COVER)  # |R| counts exactly where the drawing is not zero
    opaque = tile[:, 3].amax(1, keepdim=True).clamp(max=1) * RANK_INSIDE  # thin lines are nowhere quite opaque
    inside = (tile[:, 3] > opaque).float()
    mean = (tile[:, :3] * inside[:, None]).sum(2, keepdim=True) / inside.sum(1).clamp(min=1)[:, None, None]
    centred = ((tile[:, :3] - mean) * inside[:, None]).flatten(1)
    return _Drawings(size, tile[:, :3], tile[:, 3], inside, centred, centred.square().sum(1))


def _scores(image: Image.Image, colour: str | None) -> Tensor:
    """The score of every emoji, ``(N,)``: the nearest ones' at half resolution, the others' at a quarter.

    The picture is posed and not the drawings: what lies on its background is turned and mirrored back.
    """
    pixels = _pixels([image])
    empty = _colour(colour) if colour else _frame(pixels[0]).median(1).values[:, None, None]
    poses = [(mirror, turn) for mirror in (False, True) for turn in RANK_TURNS]
    alike, coarse = _pose_scores(_unposed(pixels - empty, poses, RANK_COARSE), empty, _bank(), (_alike, _score))
    scores = coarse.amax((0, 1))
    kept = torch.cat([alike.amax((0, 1)).topk(RANK_KEPT).indices, scores.topk(2 * RANK_KEPT).indices]).unique()
    size_of, pose_of = alike.amax(1).argmax(0), alike.amax(0).argmax(0)
    for number, (mirror, turn) in enumerate(poses):
        rows = kept[pose_of[kept] == number]
        if len(rows):
            near = [(mirror, turn - RANK_TURN), (mirror, turn), (mirror, turn + RANK_TURN)]
            sizes = {2 * _bank()[i].size + more for i in set(size_of[rows].tolist()) for more in RANK_SIZES}
            bank = [_drawings(_premultiplied()[rows], size) for size in sizes & set(_rank_sizes(RANK_FINE))]
            found = _pose_scores(_unposed(pixels - empty, near, RANK_FINE), empty, bank, (_score,))[0]
            scores[rows] = found.amax((0, 1))
    return scores


def _unposed(y: Tensor, poses: Sequence[tuple[bool, float]], side: int) -> Tensor:
    """A picture minus its background ``(1, 3, 64, 64)`` without each mirror and turn, ``(poses, 3, side, side)``."""
    angle = torch.tensor([turn for _, turn in poses]).deg2rad()
    flip = torch.tensor([-1.0 if mirror else 1.0 for mirror, _ in poses])
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros(len(poses))
    matrix = torch.stack([torch.stack([flip * cos, sin, none], 1), torch.stack([-flip * sin, cos, none], 1)], 1)
    grid = F.affine_grid(matrix, [len(poses), 3, SIDE, SIDE], align_corners=False)
    posed_back = F.grid_sample(y.expand(len(poses), -1, -1, -1), grid, align_corners=False)
    return F.interpolate(posed_back, size=(side, side), mode="area")


Measure = Callable[["_Sums", Tensor, _Drawings], Tensor]


def _pose_scores(y: Tensor, empty: Tensor, bank: Sequence[_Drawings], measures: Sequence[Measure]) -> list[Tensor]:
    """Each measure's best over the places, of every size, pose and drawing ``(S, P, N)``; matrix products do it."""
    covered = (y.abs().amax(1, keepdim=True) > RANK_COVER).float()
    y = y * covered
    wide = F.pad(torch.cat([y, covered], 1), (y.shape[-1] // 16,) * 4)
    best = []
    for drawings in bank:
        windows = F.unfold(wide, drawings.size).transpose(1, 2).unflatten(2, (4, -1))
        sums = _sums(windows, drawings, empty.flatten(), y, covered.sum((1, 2, 3)))
        best.append(torch.stack([measure(sums, windows, drawings).amax(1) for measure in measures]))
    return list(torch.stack(best, 1))


@dataclass(frozen=True)
class _Sums:
    """Sums over R of every pose, place and drawing, ``(P, places, N)`` or less.

    With ``y = x - background`` and ``d = t - background``, which are zero outside of what they cover, the sums over R
    are sums over everything and only ``|R| = |x covers| + |t covers| - |both|`` is to be counted.
    """

    area: Tensor
    y: Tensor  # (P, 1, 3)
    d: Tensor  # (N, 3)
    yy: Tensor
    dd: Tensor
    yd: Tensor


def _sums(windows: Tensor, drawings: _Drawings, empty: Tensor, y: Tensor, y_area: Tensor) -> _Sums:
    """The sums; the fourth channel of ``windows`` is what is covered."""
    d = drawings.premultiplied - drawings.opacity[:, None] * empty[:, None]
    mask = (drawings.opacity > 0).float()
    area = y_area[:, None, None] + mask.sum(1) - windows[:, :, 3] @ mask.T
    yy, dd = y.square().sum((1, 2, 3))[:, None, None], d.square().sum((1, 2))
    return _Sums(area, y.sum((2, 3))[:, None], d.sum(2), yy, dd, windows[:, :, :3].flatten(2) @ d.flatten(1).T)


def _alike(sums: _Sums, windows: Tensor, drawings: _Drawings) -> Tensor:
    """``2 Σ y d / (Σ y² + Σ d²)``, to preselect: where colours are low, correlations are too."""
    return 2 * sums.yd / (sums.yy + sums.dd).clamp(min=1e-9)


def _score(sums: _Sums, windows: Tensor, drawings: _Drawings) -> Tensor:
    """``min(ρ_R, 2 ρ_I)``."""
    covariance = sums.yd - sums.y @ sums.d.T / sums.area
    d_spread = sums.dd - sums.d.square().sum(1) / sums.area
    y_spread = sums.yy - sums.y.square().sum(2, keepdim=True) / sums.area
    return torch.minimum(_correlation(covariance, d_spread, y_spread, sums.area), 2 * _inside(windows, drawings))


def _inside(windows: Tensor, drawings: _Drawings) -> Tensor:
    """ρ_I of every pose, place and drawing, ``(P, places, N)``."""
    area = drawings.inside.sum(1).clamp(min=1)
    sums = sum((windows[:, :, channel] @ drawings.inside.T).square() for channel in range(3))
    spread = windows[:, :, :3].square().sum(2) @ drawings.inside.T - sums / area
    return _correlation(windows[:, :, :3].flatten(2) @ drawings.centred.T, drawings.spread, spread, area)


def _correlation(covariance: Tensor, first: Tensor, second: Tensor, area: Tensor) -> Tensor:
    floor = 3 * area * RANK_FLOOR**2
    return covariance / ((first.clamp(min=0) + floor) * (second.clamp(min=0) + floor)).clamp(min=1e-9).sqrt()


def _frame(pixels: Tensor, width: int = 2) -> Tensor:
    """The outermost pixels of ``(3, H, W)``, as ``(3, P)``."""
    outer = torch.ones(pixels.shape[1:], dtype=torch.bool)
    outer[width:-width, width:-width] = False
    return pixels[:, outer]
