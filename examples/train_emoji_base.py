"""Trains the embedded base: the autoencoder, then text encoder and UNet, on pictures that are drawn while it runs.

::

    OMP_NUM_THREADS=2 nice python examples/train_emoji_base.py runs/emoji-base --bf16

Four hours of two cores that multiply in bf16 (AVX-512), ten of two that do not. Ctrl-C, a crash or a full disk cost at
most ``--save-every`` steps: the same command goes on where it stopped, with the result of an uninterrupted run, because
what a step draws follows from the seed and the step alone. Every ``--look-every`` steps a sheet of the same prompts and
seeds is written beside the checkpoints.
``OUT/pipeline`` is the diffusers folder that ``studio`` opens as a base. ``--from`` names the base to go on from (the
packaged one): its tokenizer is kept and whatever of its weights fits; ``--keep-vae`` leaves its autoencoder as it is.

The networks may be wider and have a level more than those gone on from (:func:`adopt`, :func:`widened`).

The world is that of ``emoji_pictures.py``. Wide pictures show two. The core names make up most of it; the kept-out
concepts are for the autoencoder alone.

What decides how well so small a base draws:

* Latents that move as the pictures do. A tiger two pixels further right should be the same latents a little further
  right, or the UNet has to learn every place and turn by heart. 8 × 8 × 16 latents bend under such a step nearly like
  the pixels themselves; as many numbers in 16 × 16 × 4, of an autoencoder that must draw *moved latents* as moved
  pictures (:func:`vae_loss`, after EQ-VAE, arXiv 2502.09509), bend half as much, and the UNet learns ten times faster.
* Content is decided at high noise, which min-SNR weights starve; :func:`weight` does not.
* Muon for the matrices: from one checkpoint, 200 of its steps did what 300 of AdamW's did.
* Names are learned upright and in the middle first, and their poses while those spread (``--spread``: how far).
* Each picture is shown about four times, in other noise: drawing and encoding were a third of a step.
"""

from __future__ import annotations

import argparse
import copy
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from emoji_pictures import (
    BACKGROUNDS,
    LENGTH,
    Drawings,
    Poses,
    caption,
    composited,
    drawn_at,
    layer,
    packaged,
    vae_pictures,
)
from torch import Tensor, nn

from studio.atomic import atomic_path
from studio.device import has_dtype
from studio.families.emoji_world import SIDE

PACKAGED = Path(__file__).parents[1] / "studio" / "families" / "emoji" / "pipeline"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of the networks and of the two trainings; the packaged base is of an earlier, smaller training."""

    vae_steps: int = 2000
    steps: int = 12000
    batch: int = 64
    vae_batch: int = 16
    vae_channels: tuple[int, ...] = (32, 64, 128)
    latent_channels: int = 4
    width: int = 128
    text_layers: int = 3
    unet_channels: tuple[int, ...] = (64, 128, 160, 160)
    bank: int = 500  # steps that share their pictures, see :class:`Denoising`
    core_share: float = 0.85  # of what is drawn is of the core names
    spread: float = 1.0  # of the poses in the second half, see :meth:`Poses.drawn`
    rate: float = 2e-3
    vae_rate: float = 2e-3


def weight(snr: Tensor) -> Tensor:
    """``w = 1.5 (0.3 + min(snr, 3)) / (snr + 1)``, for a loss on v; keeps the steps of high noise alive."""
    return 1.5 * (0.3 + snr.clamp(max=3)) / (snr + 1)


def orthogonal(matrix: Tensor) -> Tensor:
    """About ``U Vᵀ`` of ``U S Vᵀ``, by five quintic steps of Newton and Schulz with Muon's coefficients.

    What ``torch.optim.Muon`` does in bf16, which many CPUs emulate, at twenty times the time. All products but two are
    of the small square ``G = X Xᵀ``: with ``Q = a + b G + c G²``, ``X`` becomes ``Q X`` and ``G`` becomes ``Q G Q``.

    Args:
        matrix: of any shape ``(m, n)``; ``(m, n)`` comes back, with singular values from about 0.7 to 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    gram, product = wide @ wide.T, torch.eye(len(wide))
    for _ in range(5):
        factor = torch.addmm(b * gram, gram, gram, alpha=c)
        factor.diagonal().add_(a)
        gram, product = factor @ gram @ factor, factor @ product
    wide = product @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's momentum, at steps as large as AdamW's: ``torch.optim.Muon``, by :func:`orthogonal`.

    References:
        | Muon is Scalable for LLM Training (Liu et al., 2025), arXiv:2502.16982
    """

    def __init__(self, matrices: list[nn.Parameter], *, lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Steps every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                kept = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix))
                kept.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonal(matrix.grad.lerp(kept, group["momentum"]))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-0.2 * group["lr"] * math.sqrt(max(matrix.shape)))


class Optimizers:
    """AdamW; with ``muon``, Muon for the matrices inside: kernels are matrices of one row per output channel."""

    def __init__(self, modules: dict[str, nn.Module], rate: float, *, muon: bool) -> None:
        named = [pair for module in modules.values() for pair in module.named_parameters()]
        ends = ("embedding", "conv_in", "conv_out")  # tables, and what touches latents
        inside = [p for name, p in named if muon and p.ndim > 1 and not any(end in name for end in ends)]
        self.matrices = [(p, nn.Parameter(p.detach().flatten(1))) for p in inside]  # the same storage
        chosen = {id(p) for p in inside}
        rest = [p for _, p in named if id(p) not in chosen]
        self.all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        ]
        if self.matrices:
            flat = [matrix for _, matrix in self.matrices]
            self.all += [Muon(flat, lr=rate, weight_decay=0.01)]

    def step(self, rate: float) -> None:
        """One step at this rate; the gradients are gone after it."""
        for weight, matrix in self.matrices:
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        for weight, _ in self.matrices:
            weight.grad = None

    def state_dict(self) -> list[Any]:
        """The state of each optimizer."""
        return [optimizer.state_dict() for optimizer in self.all]

    def load_state_dict(self, states: list[Any]) -> None:
        """Brings each to its state."""
        for optimizer, state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)


@dataclass
class Phase:
    """A training that survives being killed: modules, optimizers, EMA and step in one atomically written file."""

    file: Path
    modules: dict[str, nn.Module]
    steps: int
    rate: float
    save_every: int
    momentum: float = 0.998
    muon: bool = False
    look: Callable[[int, nn.ModuleDict], str] | None = None  # called with the step and the EMA, its answer is logged
    look_every: int = 1000

    def run(
        self, loss: Callable[[int], Tensor], schedule: Callable[[float], float], *, stop_at: int | None = None
    ) -> bool:
        """Runs ``loss(step)`` from the checkpoint's step on; whether all steps are done. The EMA ends in the modules.

        Args:
            loss: the loss of a step.
            schedule: the rate's factor, of the fraction that is done.
            stop_at: leave after this many steps, as if interrupted.
        """
        weights = [p for module in self.modules.values() for p in module.parameters()]
        optimizers = Optimizers(self.modules, self.rate, muon=self.muon)
        average = copy.deepcopy(nn.ModuleDict(self.modules))
        first = self._resume(optimizers, average) if self.file.exists() else 0
        begin, last = time.monotonic(), self.steps if stop_at is None else min(stop_at, self.steps)
        for step in range(first, last):
            value = loss(step)
            value.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizers.step(self.rate * schedule(step / self.steps))
            self._follow(average, weights, step)
            if (step + 1) % self.save_every == 0 or step + 1 == last:
                self._keep(step + 1, optimizers, average)
                self._say(
                    step + 1, f"loss {value.item():.4f}  {(step + 1 - first) / (time.monotonic() - begin):.2f} it/s"
                )
            if self.look and ((step + 1) % self.look_every == 0 or step + 1 == self.steps):
                self._say(step + 1, self.look(step + 1, average))
        for name, module in self.modules.items():
            module.load_state_dict(average[name].state_dict())
        return last == self.steps

    def _follow(self, average: nn.Module, weights: list[nn.Parameter], step: int) -> None:
        keep = min(self.momentum, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), weights, 1 - keep)

    def _say(self, step: int, what: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {self.file.stem} {step}/{self.steps}  {what}", flush=True)

    def _resume(self, optimizers: Optimizers, average: nn.Module) -> int:
        """Brings everything to where it was kept; returns the next step."""
        try:
            saved = torch.load(self.file, weights_only=True)
            for name, module in self.modules.items():
                module.load_state_dict(saved[name])
            average.load_state_dict(saved["average"])
            optimizers.load_state_dict(saved["optimizers"])
        except (OSError, KeyError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            what = f"{self.file} is damaged or of a training of other sizes, and nothing can go on from it"
            raise SystemExit(f"{what}; give another folder, or delete the file") from error
        return int(saved["step"])

    def _keep(self, step: int, optimizers: Optimizers, average: nn.Module) -> None:
        state = {name: module.state_dict() for name, module in self.modules.items()}
        state |= {"step": step, "optimizers": optimizers.state_dict(), "average": average.state_dict()}
        with atomic_path(self.file) as temporary:
            torch.save(state, temporary)


def is_wide(step: int) -> bool:
    """Whether a step's pictures are wide."""
    return step % 4 == 3


def moves(count: int, draw: torch.Generator) -> Tensor:
    """Random affine maps ``(B, 2, 3)``: up to 1.5 times larger or smaller, turned by up to 20°, mirrored, moved."""
    size, turn, x, y, mirror = 2 * torch.rand(5, count, generator=draw) - 1
    size, turn = torch.exp(size * math.log(1.5)), turn * math.radians(20)
    cos, sin = size * turn.cos(), size * turn.sin()
    side = mirror.sign()
    return torch.stack([torch.stack([cos * side, -sin, 0.3 * x], -1), torch.stack([sin * side, cos, 0.3 * y], -1)], 1)


def moved(x: Tensor, maps: Tensor) -> Tensor:
    """Pictures or latents ``(B, C, H, W)`` under affine maps; what comes in from outside is like the border."""
    grid = F.affine_grid(maps, list(x.shape), align_corners=False)
    return F.grid_sample(x.float(), grid, padding_mode="border", align_corners=False)


def vae_loss(vae: Any, x: Tensor, draw: torch.Generator) -> Tensor:
    """``|x̂ - x| + ½ |∇x̂ - ∇x| + 2·10⁻⁴ KL``, where half of the pictures are drawn from moved latents.

    The gradients keep edges that an L1 loss alone blurs; ``x̂ = decode(T encode(x))`` against ``T x`` makes latents move
    as pictures do.

    Args:
        vae: the autoencoder.
        x: pictures ``(B, 3, H, W)``.
        draw: of the posterior's noise and of the moves.
    """
    posterior = vae.encode(x).latent_dist
    z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=draw)
    half = len(x) // 2
    maps = moves(len(x) - half, draw)
    z = torch.cat([z[:half].float(), moved(z[half:], maps)])
    x = torch.cat([x[:half], moved(x[half:], maps)])
    y = vae.decode(z).sample.float()
    edges = sum((y.diff(dim=dim) - x.diff(dim=dim)).abs().mean() for dim in (2, 3))
    kl = posterior.kl().float().mean() / posterior.mean[0].numel()
    return (y - x).abs().mean() + 0.5 * edges + 2e-4 * kl


@torch.no_grad()
def latent_scale(vae: Any, drawings: Drawings) -> float:
    """``1 / σ`` of the latents of 256 pictures."""
    parts = vae_pictures(drawings, 256, drawn_at(0, 0)).split(64)
    return float(1 / torch.cat([vae.encode(part).latent_dist.mode().float() for part in parts]).std())


@dataclass
class Denoising:
    """The loss of text encoder and UNet; every fourth batch is wide pictures of two things.

    Args:
        bank: so many steps draw a quarter of their pictures beforehand, and take each about four times; 0: every step
            draws its own.
        core_share: how much of what is drawn is of the core.
        spread: of the poses, by step, see :meth:`Poses.drawn`.
    """

    drawings: Drawings
    tokenizer: Any
    vae: Any
    encoder: Callable[..., Any]
    unet: Callable[..., Any]
    scheduler: Any
    seed: int
    batch: int
    bank: int = 0
    core_share: float = 0.7
    spread: Callable[[int], float] = lambda step: 1.0

    def __post_init__(self) -> None:
        self.core, self.sided = self.drawings.core(), self.drawings.sided()
        self.banked = -1
        self.banks: dict[bool, tuple[Tensor, list[str]]] = {}  # wide or not -> latents, captions

    def __call__(self, step: int) -> Tensor:
        draw = drawn_at(self.seed, step)
        x, captions = self.taken(step, draw) if self.bank else self.encoded(step, draw)
        noise = torch.randn(x.shape, generator=draw)
        places = (torch.arange(len(x)) + torch.rand(len(x), generator=draw)) / len(x)  # evenly spread over [0, 1]
        times = (1000 * places).long().clamp(max=999)
        noisy, target = self.scheduler.add_noise(x, noise, times), self.scheduler.get_velocity(x, noise, times)
        output = self.unet(noisy, times, encoder_hidden_states=self.encoder(self.ids(captions))[0]).sample
        alpha = self.scheduler.alphas_cumprod[times]
        return ((output.float() - target).square().mean((1, 2, 3)) * weight(alpha / (1 - alpha))).mean()

    @torch.no_grad()
    def encoded(self, step: int, draw: torch.Generator) -> tuple[Tensor, list[str]]:
        """Latents and captions of one step."""
        pictures, captions = self.pictures(step, draw)
        return self.vae.encode(pictures).latent_dist.mode().float() * self.vae.config.scaling_factor, captions

    def taken(self, step: int, draw: torch.Generator) -> tuple[Tensor, list[str]]:
        """Latents and captions out of the bank of this step."""
        if self.banked != step // self.bank:
            self.banked = step // self.bank
            first = self.banked * self.bank
            steps = range(first, first + max(4, self.bank // 4))
            drawn = [(is_wide(k), *self.encoded(k, drawn_at(self.seed, k))) for k in steps]
            self.banks = {
                wide: (
                    torch.cat([x for kind, x, _ in drawn if kind == wide]),
                    [caption for kind, _, captions in drawn if kind == wide for caption in captions],
                )
                for wide in (False, True)
            }
        latents, captions = self.banks[is_wide(step)]
        rows = torch.randint(0, len(latents), (self.count(step),), generator=draw)
        return latents[rows], [captions[row] for row in rows.tolist()]

    def count(self, step: int) -> int:
        """How many pictures a step sees."""
        return self.batch // 2 if is_wide(step) else self.batch

    def ids(self, captions: list[str]) -> Tensor:
        """Token ids ``(B, 24)``."""
        return self.tokenizer(
            captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
        ).input_ids

    def pictures(self, step: int, draw: torch.Generator) -> tuple[Tensor, list[str]]:
        """Pictures and captions of one step."""
        wide, count = is_wide(step), self.count(step)

        def number(below: int) -> int:
            return int(torch.randint(0, below, (1,), generator=draw))

        def posed(rows: Tensor) -> Poses:
            return Poses.drawn(small, self.sided[rows], draw, self.spread(step))

        colour = torch.tensor([0 if number(100) < 30 else number(len(BACKGROUNDS)) for _ in range(count)])
        small = torch.tensor([number(8) == 0 for _ in range(count)])
        rows, more = self.rows(count, draw), self.rows(count, draw)
        names, poses = [self.drawings.names[row] for row in rows], posed(rows)
        if wide:
            alone = torch.rand(count, generator=draw) < 0.2
            poses = poses.moved(torch.where(alone, SIDE * torch.rand(count, generator=draw), 0.0))
            layers = layer(self.drawings.pixels[rows], poses, 2 * SIDE)
            others = layer(self.drawings.pixels[more], posed(more).moved(SIDE), 2 * SIDE)
            layers = torch.where(alone[:, None, None, None], layers, layers + others * (1 - layers[:, 3:]))
            pairs = zip(names, more, alone, strict=True)
            names = [name if lone else f"{name} and {self.drawings.names[other]}" for name, other, lone in pairs]
        else:
            layers = layer(self.drawings.pixels[rows], poses)
        said = zip(names, colour.tolist(), small.tolist(), strict=True)
        return composited(layers, colour), [caption(*told, number) for told in said]

    def rows(self, count: int, draw: torch.Generator) -> Tensor:
        """Which drawings ``(B,)``: mostly of the core."""
        core = self.core[torch.randint(0, len(self.core), (count,), generator=draw)]
        whole = torch.randint(0, len(self.drawings.names), (count,), generator=draw)
        return torch.where(torch.rand(count, generator=draw) < self.core_share, core, whole)


def build(sizes: Sizes, tokenizer: Any) -> tuple[Any, Any, Any, Any]:
    """Returns untrained VAE, text encoder and UNet, and the noise schedule."""
    from diffusers import DDPMScheduler

    vae, unet = autoencoder(sizes), denoiser(sizes)
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    return vae, text_encoder(sizes, tokenizer), unet, scheduler


def autoencoder(sizes: Sizes) -> Any:
    """An untrained VAE."""
    from diffusers import AutoencoderKL

    levels = len(sizes.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=sizes.vae_channels,
        latent_channels=sizes.latent_channels,
        norm_num_groups=8,
        sample_size=SIDE,
        mid_block_add_attention=False,
    )


def text_encoder(sizes: Sizes, tokenizer: Any) -> Any:
    """An untrained text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.width,
        intermediate_size=4 * sizes.width,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=sizes.width,
    )
    return CLIPTextModel(config)


def denoiser(sizes: Sizes) -> Any:
    """An untrained UNet; the finest level has no attention, which would cost there what all others do."""
    from diffusers import UNet2DConditionModel

    attending = len(sizes.unet_channels) - 1
    return UNet2DConditionModel(
        sample_size=SIDE // 2 ** (len(sizes.vae_channels) - 1),
        in_channels=sizes.latent_channels,
        out_channels=sizes.latent_channels,
        layers_per_block=1,
        block_out_channels=sizes.unet_channels,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * attending),
        up_block_types=(*("CrossAttnUpBlock2D",) * attending, "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=sizes.width,
        attention_head_dim=4,
    )


@torch.no_grad()
def adopt(module: nn.Module, file: Path) -> float:
    """Copies every tensor that has its place in ``module`` and returns the part of the module that came from the file.

    Up blocks are counted from the last, because a further level of resolution stands in front of all others.
    """
    from safetensors.torch import load_file

    saved, own = load_file(file), module.state_dict()

    def levels(state: dict[str, Tensor]) -> int:
        return len({key.split(".")[1] for key in state if key.startswith("up_blocks.")})

    def place(key: str) -> str:
        first, *rest = key.split(".")
        if first == "up_blocks":
            rest[0] = str(int(rest[0]) + levels(own) - levels(saved))
        return ".".join([first, *rest])

    found = {place(key): value for key, value in saved.items()}
    wide = {key: widened(found[key].float(), value.shape) for key, value in own.items() if key in found}
    fits = {key: value for key, value in wide.items() if value is not None}
    for key, value in fits.items():
        own[key].copy_(value)
    return sum(own[key].numel() for key in fits) / sum(value.numel() for value in own.values())


def widened(weight: Tensor, shape: torch.Size) -> Tensor | None:
    """A weight for layers with k times as many channels that computes the same; None if the shapes are of other kinds.

    Every channel stands there k times in a row, so that group norms see the same groups, and each copy gives a k-th of
    what the next layer sums up, give or take a few per cent, without which the copies would stay alike forever.
    """
    if len(weight.shape) != len(shape) or any(new % old for new, old in zip(shape, weight.shape, strict=True)):
        return None
    for dim, (new, old) in enumerate(zip(shape, weight.shape, strict=True)):
        weight = weight.repeat_interleave(new // old, dim)
        if dim == 1 and new > old:
            weight = weight * (old / new) * (1 + 0.02 * torch.randn_like(weight))
    return weight


def pipeline_of(vae: Any, encoder: Any, tokenizer: Any, unet: Any, scheduler: Any) -> Any:
    """The parts as a diffusers pipeline."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DPMSolverMultistepScheduler.from_config(scheduler.config, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


LOOKED_AT = ("tiger", "owl on a blue background", "police car", "clown face on a purple background", "red apple")
LOOKED_AT += ("small rocket on a yellow background", "strawberry on a black background", "lion on a pink background")
SEEDS = 6
LOOKED_AT_WIDE = ("cat and pizza on a green background", "bus and tulip")


def look_at(pipe: Any, file: Path) -> None:
    """Writes the sheet of the same prompts and seeds."""
    from PIL import Image

    pipe.set_progress_bar_config(disable=True)
    sheet = Image.new("RGB", (2 * SIDE * SEEDS, 2 * SIDE * (len(LOOKED_AT) + len(LOOKED_AT_WIDE))), "white")
    for row, prompt in enumerate(LOOKED_AT + LOOKED_AT_WIDE):
        across = SIDE if prompt in LOOKED_AT else 2 * SIDE
        draws = [torch.Generator().manual_seed(seed) for seed in range(max(1, SEEDS * SIDE // across))]
        pictures = pipe(
            [prompt] * len(draws),
            height=SIDE,
            width=across,
            generator=draws,
            num_inference_steps=12,
            guidance_scale=4.0,
        ).images
        for column, picture in enumerate(pictures):
            twice = picture.resize((2 * across, 2 * SIDE), Image.Resampling.LANCZOS)
            sheet.paste(twice, (2 * across * column, 2 * SIDE * row))
    sheet.save(file)


@dataclass
class Training:
    """Both trainings of a base in one folder."""

    drawings: Drawings
    out: Path
    sizes: Sizes
    source: Path = PACKAGED
    seed: int = 0
    save_every: int = 250
    look_every: int = 1000
    bf16: bool = False
    keep_vae: bool = False

    def __post_init__(self) -> None:
        from transformers import CLIPTokenizer

        self.out.mkdir(parents=True, exist_ok=True)
        if self.bf16 and not has_dtype(torch.bfloat16, torch.device("cpu")):
            print("this CPU only emulates bf16, which would take many times as long: computing in fp32", flush=True)
            self.bf16 = False
        torch.manual_seed(self.seed)
        self.tokenizer = CLIPTokenizer.from_pretrained(self.source / "tokenizer", local_files_only=True)
        self.vae, self.encoder, self.unet, self.scheduler = build(self.sizes, self.tokenizer)
        if self.keep_vae:
            from diffusers import AutoencoderKL

            self.vae = AutoencoderKL.from_pretrained(self.source / "vae", torch_dtype=torch.float32)
        for name, module in {"vae": self.vae, "text_encoder": self.encoder, "unet": self.unet}.items():
            file = "model" if name == "text_encoder" else "diffusion_pytorch_model"
            part = adopt(module, self.source / name / f"{file}.safetensors")
            print(
                f"{name}: {part:.0%} of {sum(p.numel() for p in module.parameters()) / 1e6:.2f} M taken over",
                flush=True,
            )

    def run(self, stop_at: int | None = None) -> Path | None:
        """Trains all parts, or goes on with what is in the folder.

        Args:
            stop_at: leave each training after this many steps, as if interrupted (for trials).

        Returns:
            The pipeline's folder, fp16; ``None`` if stopped before.
        """
        if not (self.keep_vae or self.autoencoder(stop_at)):
            return None
        self.vae.eval().requires_grad_(False)
        if not self.keep_vae:
            self.vae.register_to_config(scaling_factor=latent_scale(self.vae, self.drawings))
        if not self.denoiser(stop_at):
            return None
        pipe = pipeline_of(self.vae, self.encoder, self.tokenizer, self.unet, self.scheduler)
        pipe.to(torch.float16).save_pretrained(self.out / "pipeline")
        return self.out / "pipeline"

    def cast(self) -> torch.autocast:
        """The precision of the networks' computing; weights stay fp32."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16)

    def autoencoder(self, stop_at: int | None) -> bool:
        """Trains the VAE; whether all steps are done."""

        def loss(step: int) -> Tensor:
            draw = drawn_at(self.seed, step)
            with self.cast():
                return vae_loss(self.vae, vae_pictures(self.drawings, self.sizes.vae_batch, draw), draw)

        def look(step: int, average: Any) -> str:
            return f"mean error of 64 pictures {self.error(average['vae']):.5f}"

        phase = Phase(
            self.out / "vae.pt", {"vae": self.vae}, self.sizes.vae_steps, self.sizes.vae_rate, self.save_every
        )
        phase.muon, phase.momentum, phase.look, phase.look_every = True, 0.99, look, self.look_every
        return phase.run(loss, lambda done: min(1.0, done / 0.05 + 0.01) * (1 - done), stop_at=stop_at)

    def spread(self, step: int) -> float:
        """How far the poses of a step are spread: names are learned upright, then their poses."""
        return self.sizes.spread * min(1.0, step / (0.5 * self.sizes.steps))

    @torch.no_grad()
    def error(self, vae: Any) -> float:
        """Mean distance of pictures from themselves after one trip through the VAE."""
        x = vae_pictures(self.drawings, 64, drawn_at(self.seed, 10**6))
        return float((vae.decode(vae.encode(x).latent_dist.mode()).sample - x).abs().mean())

    def denoiser(self, stop_at: int | None) -> bool:
        """Trains text encoder and UNet; whether all steps are done."""
        from diffusers.models.attention_processor import AttnProcessor

        # over 64 places, plain products are a fifth of a step faster than the fused kernel of a CPU
        self.unet.set_attn_processor(AttnProcessor())
        self.encoder.set_attn_implementation("eager")
        known, modules = self.drawings.known(self.tokenizer), {"encoder": self.encoder, "unet": self.unet}
        parts = (self.scheduler, self.seed, self.sizes.batch)
        shown = {"core_share": self.sizes.core_share, "spread": self.spread}
        denoise = Denoising(known, self.tokenizer, self.vae, self.encoder, self.unet, *parts, self.sizes.bank, **shown)

        def loss(step: int) -> Tensor:
            with self.cast():
                return denoise(step)

        @torch.no_grad()
        def look(step: int, average: Any) -> str:
            held = Denoising(known, self.tokenizer, self.vae, average["encoder"], average["unet"], *parts, **shown)
            with self.cast():
                mean = sum(float(held(10**6 + k)) for k in range(8)) / 8
                pipe = pipeline_of(self.vae, average["encoder"], self.tokenizer, average["unet"], self.scheduler)
                look_at(pipe, self.out / f"sheet-{step:06}.png")
            return f"loss of 8 held batches {mean:.4f}"

        phase = Phase(self.out / "denoiser.pt", modules, self.sizes.steps, self.sizes.rate, self.save_every)
        phase.muon, phase.look, phase.look_every = True, look, self.look_every
        return phase.run(loss, lambda done: min(1.0, done / 0.02 + 0.01, (1 - done) / 0.75), stop_at=stop_at)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for checkpoints, sheets and the finished pipeline")
    parser.add_argument("--from", dest="source", type=Path, default=PACKAGED, help="the base to go on from")
    parser.add_argument("--keep-vae", action="store_true", help="leave the autoencoder of that base as it is")
    parser.add_argument("--steps", type=int, default=Sizes.steps, help="of text encoder and UNet")
    parser.add_argument("--vae-steps", type=int, default=Sizes.vae_steps)
    parser.add_argument("--batch", type=int, default=Sizes.batch)
    parser.add_argument("--rate", type=float, default=Sizes.rate)
    parser.add_argument("--core-share", type=float, default=Sizes.core_share, help="of what is drawn is of the core")
    parser.add_argument("--spread", type=float, default=Sizes.spread, help="how much of the poses is drawn, 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--look-every", type=int, default=1000)
    parser.add_argument("--bf16", action="store_true")
    given = vars(parser.parse_args())
    for name in ("core_share", "spread"):
        if not 0 <= given[name] <= 1:
            parser.error(f"--{name.replace('_', '-')} {given[name]:g} must be from 0 to 1")
    sizes = Sizes(**{name: given.pop(name) for name in ("steps", "vae_steps", "batch", "rate", "core_share", "spread")})
    print(f"finished: {Training(packaged(), given.pop('out'), sizes, **given).run()}")


if __name__ == "__main__":
    main()
