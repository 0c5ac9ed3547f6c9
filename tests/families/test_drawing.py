"""Every image family draws what diffusers' own pipeline draws, and a row with one thing wrong does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from studio.errors import BadConfig, DoesNotFit, StudioError
from studio.families import FAMILIES, Family, Shot, open_base
from studio.pipelines import ImagePipeline
from studio.pipelines.request import Request
from studio.pipelines.sample import draw
from studio.trainers.image.latents import picture_size
from tiny_pipelines import BUILDERS, FAMILY, NEGATIVE, PROMPT, build, run

SIZE = {"width": 96, "height": 64}
EQUAL = 1e-5  # of a pixel in [0, 1]


@dataclass(frozen=True)
class Peer:
    """How diffusers' pipeline of a kind is told what ours is told.

    Args:
        guided: g -> its arguments.
        strengths: the g that are compared; a pipeline without a negative prompt has 1 alone.
        negative: what it leads away from.
    """

    guided: Callable[[float], dict[str, Any]] = lambda g: {"guidance_scale": g}
    strengths: tuple[float, ...] = (1.0, 3.0)
    negative: str = NEGATIVE


PEERS = {kind: Peer() for kind in BUILDERS} | {
    "flux1": Peer(lambda g: {"true_cfg_scale": g, "negative_prompt": NEGATIVE}),
    "flux1-schnell": Peer(lambda g: {"true_cfg_scale": g, "negative_prompt": NEGATIVE}),
    "flux2": Peer(lambda g: {}, (1.0,)),
    "flux2-klein": Peer(negative=""),
    "qwen-image": Peer(lambda g: {"true_cfg_scale": g}),
    "z-image": Peer(lambda g: {"guidance_scale": g - 1}),
}
KINDS = [kind for kind in BUILDERS if FAMILY[kind] in FAMILIES]
CASES = [(kind, strength) for kind in KINDS for strength in PEERS[kind].strengths]


def theirs(pipe: Any, kind: str, guidance: float) -> torch.Tensor:
    """Pixels in [0, 1], ``(1, 3, H, W)``."""
    changes = {"num_inference_steps": 3, **SIZE, **PEERS[kind].guided(guidance)}
    return torch.from_numpy(run(pipe, kind, seed=5, **changes)).permute(0, 3, 1, 2)


def ours(base: Any, guidance: float, negative: str) -> torch.Tensor:
    request = Request(
        prompt=PROMPT, negative=negative, seed=5, steps=3, guidance=guidance, embedded=base.defaults.embedded, **SIZE
    )
    pixels, _ = draw(base, [request], rows=1)
    return pixels / 2 + 0.5


@pytest.fixture(scope="module")
def bases() -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in made:
            made[kind] = open_base(build(kind))
        return made[kind]

    return get


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_pipeline_is_known(kind):
    assert open_base(build(kind)).family.name == FAMILY[kind]


@pytest.mark.parametrize(("kind", "guidance"), CASES)
def test_a_picture_is_the_one_that_diffusers_draws(bases, kind, guidance):
    base = bases(kind)
    difference = (ours(base, guidance, PEERS[kind].negative) - theirs(base.pipe, kind, guidance)).abs().max()
    assert difference < EQUAL


def late(family: Family) -> dict[str, Any]:
    return {"predict": lambda pipe, x, t, text: family.predict(pipe, x, t * 0.97, text)}


def turned(family: Family) -> dict[str, Any]:
    return {"predict": lambda pipe, x, t, text: family.predict(pipe, x.mT, t, text).mT}


def flipped(family: Family) -> dict[str, Any]:
    return {"predict": lambda *given: -family.predict(*given)}


def as_positive(family: Family) -> dict[str, Any]:
    return {"encode_text": lambda pipe, prompts, negative: family.encode_text(pipe, prompts, False)}


def plainly_guided(family: Family) -> dict[str, Any]:
    return {"guide": lambda without, within, guidance: without + guidance * (within - without)}


def unscheduled(family: Family) -> dict[str, Any]:
    def schedule(pipe: Any, scheduler: Any, steps: int, cells: Any, device: Any) -> None:
        dynamic = {"mu": 0.0} if scheduler.config.get("use_dynamic_shifting") else {}
        levels = torch.linspace(1, 1 / steps, steps).numpy()
        twice = FAMILIES["sd3"].schedule if "sd3" in FAMILIES else None
        if dynamic or family.schedule is twice:
            scheduler.set_timesteps(sigmas=levels, device=device, **dynamic)
        else:
            scheduler.set_timesteps(steps, device=device)

    return {"schedule": schedule}


def elsewhere(family: Family) -> dict[str, Any]:
    """The picture's size and its embedded guidance are told wrongly."""

    def condition(pipe: Any, text: Any, shots: Any) -> Any:
        wrong = [Shot(size=(32, 32), embedded=None if shot.embedded is None else shot.embedded + 1) for shot in shots]
        return family.condition(pipe, text, wrong)

    return {"condition": condition}


@dataclass(frozen=True)
class Wrong:
    """A mistake, and the kinds in which it shows.

    Args:
        change: family -> the fields that are wrong.
        kinds: where it must be noticed; empty: everywhere.
        guided: whether it shows under guidance alone.
    """

    change: Callable[[Family], dict[str, Any]]
    kinds: tuple[str, ...] = ()
    guided: bool = False
    names: str = field(default="")


MISTAKES = {
    "time": Wrong(late),
    "sign": Wrong(flipped),
    "height and width": Wrong(turned, ("flux1", "flux2", "qwen-image", "z-image", "chroma", "lumina2", "sdxl", "sd3")),
    "schedule": Wrong(
        unscheduled, ("sd3", "flux1", "flux2", "flux2-klein", "qwen-image", "z-image", "chroma", "lumina2")
    ),
    "negative text": Wrong(as_positive, ("sana", "lumina2"), guided=True),
    "guidance": Wrong(plainly_guided, ("qwen-image", "lumina2"), guided=True),
    "size and embedded guidance": Wrong(elsewhere, ("sdxl", "flux1", "flux2")),
}


@pytest.mark.parametrize(
    ("kind", "mistake"),
    [(kind, name) for kind in KINDS for name, wrong in MISTAKES.items() if not wrong.kinds or kind in wrong.kinds],
)
def test_a_row_with_one_thing_wrong_draws_something_else(bases, kind, mistake):
    wrong, base = MISTAKES[mistake], bases(kind)
    guidance = 3.0 if wrong.guided else 1.0
    right = ours(base, guidance, PEERS[kind].negative)
    other = replace(base, family=replace(base.family, **wrong.change(base.family)))
    assert (ours(other, guidance, PEERS[kind].negative) - right).abs().max() > 20 * EQUAL


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_the_autoencoders_own(bases, kind):
    """``decode(encode(x))`` is the VAE's own, and the layout is what ``channels`` and ``downscale`` say."""
    base = bases(kind)
    family, pipe = base.family, base.pipe
    pixels = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = family.encode_image(pipe, pixels, None)
        back = family.decode(pipe, latents)
        given = pixels if pipe.vae.encoder.conv_in.weight.dim() == 4 else pixels[:, :, None]
        encoded = pipe.vae.encode(given)
        code = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        own = pipe.vae.decode(code).sample
    own = own if own.dim() == 4 else own[:, :, 0]
    assert latents.shape == (1, family.channels(pipe), 64 // base.downscale, 96 // base.downscale)
    torch.testing.assert_close(back, own.clamp(-1, 1), rtol=0, atol=2 * EQUAL)  # of a range of 2


@pytest.mark.parametrize("kind", KINDS)
def test_cells_are_as_large_as_diffusers_counts_them(bases, kind):
    """Flux.2 alone folds four cells of its autoencoder into one before anything is predicted."""
    base = bases(kind)
    assert base.downscale == base.pipe.vae_scale_factor * (2 if base.family.name == "flux2" else 1)


def test_a_folder_without_an_autoencoder_is_not_planned(folders, tmp_path):
    from studio.planning.blueprint import blueprint

    shutil.copytree(folders("sd1"), tmp_path / "base")
    index = json.loads((tmp_path / "base" / "model_index.json").read_text())
    (tmp_path / "base" / "model_index.json").write_text(json.dumps({**index, "vae": [None, None]}))
    drawn = blueprint(tmp_path / "base")
    with pytest.raises(DoesNotFit, match="has no autoencoder; give one with"):
        drawn.family.downscale(drawn)


@pytest.mark.parametrize("levels", [3, 5])
def test_an_autoencoder_of_another_depth_draws_the_sides_asked_for(levels):
    """diffusers counts its halvings, 2 or 4 here; Stable Diffusion's own has 3."""
    pipe = build("sd1")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(4,) * levels, norm_num_groups=4, latent_channels=4,
    )  # fmt: skip
    base = open_base(type(pipe)(**pipe.components | {"vae": vae.eval()}, requires_safety_checker=False))
    cell = 2 ** (levels - 1)
    assert (base.downscale, base.multiple, base.native) == (cell, max(cell, 8), (8 * cell, 8 * cell))
    assert ours(base, 3.0, NEGATIVE).shape[-2:] == (64, 96)
    assert (ours(base, 3.0, NEGATIVE) - theirs(base.pipe, "sd1", 3.0)).abs().max() < EQUAL
    assert picture_size(None, base) == base.native
    with pytest.raises(BadConfig, match=f"divisible by {max(cell, 8)}; ask for"):
        ImagePipeline(base).generate(PROMPT, width=100)


def test_a_picture_of_other_sides_than_asked_for_is_refused(bases):
    base = bases("sd1")
    halved = replace(base, family=replace(base.family, downscale=lambda pipe: 16))
    with pytest.raises(StudioError, match="asked for 96 x 64 pixels and .* drew 48 x 32"):
        ours(halved, 1.0, NEGATIVE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_says_what_makes_it_again(bases, kind):
    from studio.pipelines import regenerate

    pipe = ImagePipeline(bases(kind))
    (image,) = pipe.generate(PROMPT, seeds=3, steps=2, **SIZE)
    assert regenerate(image, pipe=pipe).tobytes() == image.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_depends_on_its_own_request_alone(bases, kind):
    """Bit for bit, for equal rows, whatever stands beside it in the batch."""
    pipe = ImagePipeline(bases(kind))
    prompts = [PROMPT, "a cat", f"{PROMPT} and a photo of a dog"]
    together = pipe.generate(prompts, seeds=[1], steps=2, batch_size=3, **SIZE)
    for prompt, image in zip(prompts, together, strict=True):
        (alone,) = pipe.generate(prompt, seeds=[1], steps=2, batch_size=3, **SIZE)
        assert alone.tobytes() == image.tobytes()
