"""How well a subject was learned, measured against the truth and not guessed.

Every picture of the emoji world can be computed (:mod:`studio.families.emoji_world`), so "a photo of sks robot on a
purple background" has a right answer: that drawing, on that colour. Three numbers per picture:

* *subject fidelity* ``(s(x) - s(base)) / (s(VAE(truth)) - s(base))``: 0 is what the base draws for the prompt, 1 is the
  truth sent once through the base's own autoencoder, which bounds what any adapter can reach.
* *rank*: how many emoji are nearer to the picture than the right one, plus 1. Colour averages are removed first, so a
  blob of the right colour and outline does not pass.
* *prompt fidelity*: whether the background is the colour that was asked for.

``s`` is the similarity of a picture to the true composite, best over places and sizes; see :func:`similarity`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from studio.errors import BadConfig, UnknownName
from studio.families.emoji_world import COLOURS, SIDE, atlas, composite, emoji_image, emoji_names, instance_set

__all__ = [
    "COLOURS",
    "background",
    "composite",
    "emoji_image",
    "emoji_names",
    "instance_set",
    "nearest_emoji",
    "prompt_fidelity",
    "rank",
    "similarity",
    "subject_fidelity",
    "vae_round_trip",
]

SIZES = tuple(range(40, SIDE + 1, 2))  # of the drawing, in pixels, tried by `similarity`
MARGIN = 4  # pixels that a drawing may lie outside of the picture
RING = 2  # pixels of background around the drawing that count as the subject's outline
FRAME = 3  # width in pixels of the frame in which the background is looked for
HALF = SIDE // 2  # `rank` compares at half resolution: 1628 emoji times all places
RANK_SIZES = (22, 24, 26, 28, 30, 32)  # of the drawing, in half-resolution pixels
RANK_MARGIN = 2
RANK_FLOOR = 0.04  # standard deviation (colours are 0 to 1) below which a drawing or a window counts as flat
RANK_INSIDE = 0.95  # opacity from which a pixel is inside of a drawing
RANK_COVER = 0.1  # distance from the background from which a pixel belongs to the thing in the picture


def similarity(images: Sequence[Image.Image], name: str | Image.Image, colour: str) -> list[float]:
    """Returns for each picture ``s = max_p [1 - Σ m_p |x - t_p| / Σ m_p]``, 1 for the truth itself.

    ``p`` runs over sizes of 40 to 64 pixels and over places on a grid of 2 pixels, ``t_p`` is the true composite at p,
    ``m_p`` is 1 on the drawing and on a ring of 2 pixels around it, so that its outline counts. Colours are 0 to 1.

    Args:
        images: 64 × 64.
        name: of :func:`emoji_names`, or a drawing of one's own, 64 × 64 RGBA.
        colour: of :data:`COLOURS`.

    Raises:
        UnknownName: no such emoji or colour.
        BadConfig: a picture is not 64 × 64.

    Example:
        >>> similarity([composite("robot", "red", 52, left=4, top=8)], "robot", "red")
        [1.0]
    """
    wide = _padded(_pixels(images), _colour(colour), MARGIN)
    best = torch.full((len(wide),), -1.0)
    for size in SIZES:
        truth, mask = _placed(name, colour, size)
        side = truth.shape[-1]
        for window in wide.unfold(2, side, 2).unfold(3, side, 2).permute(2, 3, 0, 1, 4, 5).flatten(0, 1):
            distance = ((window - truth).abs().mean(1) * mask).sum((1, 2)) / mask.sum()
            best = torch.maximum(best, 1 - distance)
    return [round(float(value), 6) for value in best]


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

    The score of an emoji is a masked, mean-removed correlation, best over sizes and places p:

    ``score = max_p min(ρ_R, 2 ρ_I)``,
    ``ρ_M = Σ_M (t - t̄)(x - x̄) / sqrt[(Σ_M (t - t̄)² + ε)(Σ_M (x - x̄)² + ε)]``, ``ε = 3 |M| · 0.04²``

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


def _placed(name: str | Image.Image, colour: str, size: int) -> tuple[Tensor, Tensor]:
    """The composite of one size with a ring of background, ``(3, s, s)``, and its mask ``(s, s)``."""
    return _placed_emoji(name, colour, size) if isinstance(name, str) else _place(name, colour, size)


@lru_cache(maxsize=256)
def _placed_emoji(name: str, colour: str, size: int) -> tuple[Tensor, Tensor]:
    return _place(emoji_image(name), colour, size)


def _place(drawing: Image.Image, colour: str, size: int) -> tuple[Tensor, Tensor]:
    if size != SIDE:
        drawing = drawing.convert("RGBa").resize((size, size), Image.Resampling.BOX).convert("RGBA")
    wide = Image.new("RGBA", (size + 2 * RING, size + 2 * RING), (0, 0, 0, 0))
    wide.paste(drawing, (RING, RING))
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
def _bank() -> tuple[_Drawings, ...]:
    drawings = torch.from_numpy(atlas().astype(np.float32)).permute(0, 3, 1, 2) / 255
    layers = torch.cat([drawings[:, :3] * drawings[:, 3:], drawings[:, 3:]], 1)
    bank = []
    for size in RANK_SIZES:
        tile = F.interpolate(layers, size=(size, size), mode="area").flatten(2)
        tile = tile * (tile[:, 3:] > RANK_COVER)  # |R| counts exactly where the drawing is not zero
        inside = (tile[:, 3] > RANK_INSIDE).float()
        mean = (tile[:, :3] * inside[:, None]).sum(2, keepdim=True) / inside.sum(1).clamp(min=1)[:, None, None]
        centred = ((tile[:, :3] - mean) * inside[:, None]).flatten(1)
        bank.append(_Drawings(size, tile[:, :3], tile[:, 3], inside, centred, centred.square().sum(1)))
    return tuple(bank)


def _scores(image: Image.Image, colour: str | None) -> Tensor:
    """The score of every emoji, ``(N,)``: a few matrix products per size over all places and drawings.

    With ``y = x - background`` and ``d = t - background``, which are zero outside of what they cover, the sums over R
    are sums over everything and only ``|R| = |x covers| + |t covers| - |both|`` is to be counted.
    """
    pixels = F.interpolate(_pixels([image]), size=(HALF, HALF), mode="area")
    empty = _colour(colour) if colour else _frame(pixels[0]).median(1).values[:, None, None]
    covered = ((pixels - empty).abs().amax(1, keepdim=True) > RANK_COVER).float()
    y = (pixels - empty) * covered
    wide = F.pad(torch.cat([y, covered], 1), (RANK_MARGIN,) * 4)
    best = torch.full((len(emoji_names()),), -1.0)
    for drawings in _bank():
        windows = F.unfold(wide, drawings.size)[0].T.reshape(-1, 4, drawings.size**2)
        either = _either(windows, drawings, empty.flatten(), y, float(covered.sum()))
        best = torch.maximum(best, torch.minimum(either, 2 * _inside(windows, drawings)).amax(0))
    return best


def _either(windows: Tensor, drawings: _Drawings, empty: Tensor, y: Tensor, y_area: float) -> Tensor:
    """ρ_R of every place and drawing, ``(places, N)``; the fourth channel of ``windows`` is what the picture covers."""
    d = drawings.premultiplied - drawings.opacity[:, None] * empty[:, None]
    mask = (drawings.opacity > 0).float()
    area = y_area + mask.sum(1) - windows[:, 3] @ mask.T
    y_sum, d_sum = y.sum((0, 2, 3)), d.sum(2)
    covariance = windows[:, :3].flatten(1) @ d.flatten(1).T - (d_sum @ y_sum) / area
    d_spread = d.square().sum((1, 2)) - d_sum.square().sum(1) / area
    y_spread = y.square().sum() - y_sum.square().sum() / area
    return _correlation(covariance, d_spread, y_spread, area)


def _inside(windows: Tensor, drawings: _Drawings) -> Tensor:
    """ρ_I of every place and drawing, ``(places, N)``."""
    area = drawings.inside.sum(1).clamp(min=1)
    sums = sum((windows[:, channel] @ drawings.inside.T).square() for channel in range(3))
    spread = windows[:, :3].square().sum(1) @ drawings.inside.T - sums / area
    return _correlation(windows[:, :3].flatten(1) @ drawings.centred.T, drawings.spread, spread, area)


def _correlation(covariance: Tensor, first: Tensor, second: Tensor, area: Tensor) -> Tensor:
    floor = 3 * area * RANK_FLOOR**2
    return covariance / ((first.clamp(min=0) + floor) * (second.clamp(min=0) + floor)).clamp(min=1e-9).sqrt()


def _frame(pixels: Tensor, width: int = 2) -> Tensor:
    """The outermost pixels of ``(3, H, W)``, as ``(3, P)``."""
    outer = torch.ones(pixels.shape[1:], dtype=torch.bool)
    outer[width:-width, width:-width] = False
    return pixels[:, outer]
