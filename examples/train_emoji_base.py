"""Trains a base like the embedded one from the npm sources: tokenizer, autoencoder, then text encoder and UNet.

::

    npm pack emoji-datasource-google unicode-emoji-json      # unpack both below one folder: emoji-datasource-google/ …
    OMP_NUM_THREADS=2 python examples/train_emoji_base.py NPM_FOLDER OUT --bf16 --compile

It takes about two hours on two cores that do nothing else. Ctrl-C, a crash or a full disk cost at most ``--save-every``
steps: the same command goes on where it stopped, with the result of an uninterrupted run, because what a step draws
follows from the seed and the step alone. ``OUT/pipeline`` is the diffusers folder that ``studio`` opens as a base.

Two things decide how well so small a base draws. A latent of 8 × 8 × 16 holds as much as one of 16 × 16 × 4 at a
quarter of the cost. And content is decided at high noise, which min-SNR weights starve; :func:`weight` does not.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from studio.atomic import atomic_path
from studio.families.emoji_world import COLOURS, SIDE

# never seen by text encoder and UNet: subjects to learn later
KEPT_OUT = frozenset(
    ("robot", "teddy bear", "unicorn", "jack-o-lantern", "alien monster", "snowman")
    + ("sailboat", "cactus", "mushroom", "penguin", "guitar", "hamburger")
)
KINDS = {"Animals & Nature", "Food & Drink", "Activities", "Travel & Places", "Smileys & Emotion"}
BACKGROUNDS = tuple(COLOURS)
LENGTH = 24  # tokens


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of the networks and of the two trainings; the defaults are the embedded base's."""

    vae_steps: int = 3000
    steps: int = 12000
    batch: int = 64
    vae_batch: int = 16
    vae_channels: tuple[int, ...] = (16, 32, 64, 96)
    latent_channels: int = 16
    width: int = 128
    text_layers: int = 3
    unet_channels: tuple[int, int] = (128, 160)
    vocabulary: int = 2000
    rate: float = 1e-3
    vae_rate: float = 2e-3


@dataclass(frozen=True)
class Drawings:
    """Names, categories and RGBA drawings ``(N, 64, 64, 4)``, uint8."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    pixels: Tensor

    def known(self) -> Drawings:
        """Those that text encoder and UNet learn: names of one or two words, without the kept-out ones and clocks."""

        def wanted(name: str, kind: str) -> bool:
            words = name.replace("-", " ").split()
            return name not in KEPT_OUT and kind in KINDS and len(words) <= 2 and not {"clock", "thirty"} & set(words)

        rows = [i for i, (name, kind) in enumerate(zip(self.names, self.kinds, strict=True)) if wanted(name, kind)]
        return Drawings(tuple(self.names[i] for i in rows), tuple(self.kinds[i] for i in rows), self.pixels[rows])


def read_npm(folder: Path) -> Drawings:
    """Reads the 64-pixel Noto drawings and their CLDR names from two unpacked npm packages."""
    names = json.loads((folder / "unicode-emoji-json" / "data-by-emoji.json").read_text(encoding="utf-8"))
    called = {character.replace("\ufe0f", ""): entry["name"].lower() for character, entry in names.items()}
    rows: dict[str, tuple[str, np.ndarray[Any, Any]]] = {}
    for entry in json.loads((folder / "emoji-datasource-google" / "emoji.json").read_text(encoding="utf-8")):
        character = "".join(chr(int(code, 16)) for code in entry["unified"].split("-")).replace("\ufe0f", "")
        if entry["has_img_google"] and entry["category"] not in ("Flags", "Component") and character in called:
            file = folder / "emoji-datasource-google" / "img" / "google" / "64" / entry["image"]
            with Image.open(file) as image:
                rows[called[character]] = entry["category"], np.asarray(image.convert("RGBA"))
    pixels = torch.from_numpy(np.stack([pixels for _, pixels in rows.values()]))
    return Drawings(tuple(rows), tuple(kind for kind, _ in rows.values()), pixels)


def drawn_at(seed: int, step: int) -> torch.Generator:
    """The generator of one step: a resumed run draws what an uninterrupted one would have."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def composited(pixels: Tensor, background: Tensor) -> Tensor:
    """Composites RGBA drawings ``(B, 64, 64, 4)`` on colours ``(B,)``; ``(B, 3, 64, 64)`` in [-1, 1]."""
    alpha = pixels[..., 3:].float() / 255
    colour = torch.tensor(list(COLOURS.values())).float()[background][:, None, None]
    return ((pixels[..., :3].float() * alpha + colour * (1 - alpha)) / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def small(pictures: Tensor, background: Tensor) -> Tensor:
    """The same pictures with the thing at 48 pixels, centred."""
    colour = torch.tensor(list(COLOURS.values())).float()[background] / 127.5 - 1
    wide = colour[:, :, None, None].expand(-1, -1, SIDE, SIDE).clone()
    wide[..., 8:56, 8:56] = F.interpolate(pictures, size=(48, 48), mode="area")
    return wide


def caption(name: str, background: int, is_small: bool, draw: Callable[[int], int]) -> str:
    """One caption of the grammar; empty in a tenth of the cases (for guidance), white often goes unsaid."""
    if draw(10) == 0:
        return ""
    start = ("", "", "an emoji of ", "a photo of ")[draw(4)]
    said = background != 0 or draw(5) == 0
    end = f" on a {BACKGROUNDS[background]} background" if said else ""
    return f"{'small ' if is_small else ''}{start}{name}{end}"


def weight(snr: Tensor) -> Tensor:
    """``w = 1.5 (0.3 + min(snr, 3)) / (snr + 1)``, for a loss on v; keeps the steps of high noise alive."""
    return 1.5 * (0.3 + snr.clamp(max=3)) / (snr + 1)


def learn_merges(words: Counter[str], count: int) -> list[tuple[str, str]]:
    """Byte-pair encoding: the ``count`` most frequent pairs, one after another; ties go to the first in the alphabet.

    The trainer of ``tokenizers`` breaks ties differently from run to run, and a base is worthless with another
    vocabulary than its own.
    """
    split = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in split.items():
            for pair in zip(pieces, pieces[1:], strict=False):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for pieces in split.values():
            at = 0
            while at < len(pieces) - 1:
                if (pieces[at], pieces[at + 1]) == best:
                    pieces[at : at + 2] = ["".join(best)]
                at += 1
    return merges


def train_tokenizer(names: tuple[str, ...], vocabulary: int, folder: Path) -> Any:
    """Learns a byte-level BPE of CLIP's scheme on the names and the grammar, and returns a ``CLIPTokenizer``."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    if not (folder / "tokenizer_config.json").exists():
        grammar = [f"{start} of thing on a {b} background" for start in ("a photo", "an emoji") for b in BACKGROUNDS]
        grammar += ["small", "sks", "zwx", "in the style of", "upside down", "black and white"]
        text = " ".join([*names * 3, *grammar * 20])
        letters = ByteLevel.alphabet()
        symbols = [*sorted(letters), *(letter + "</w>" for letter in sorted(letters))]
        # only plain letters are merged: everything else falls back to single bytes
        merges = learn_merges(Counter(re.findall("[a-z]+", text)), vocabulary - len(symbols) - 2)
        pieces = dict.fromkeys([*symbols, *("".join(pair) for pair in merges)])  # two merges may make one piece
        vocab = {piece: i for i, piece in enumerate(["<|startoftext|>", "<|endoftext|>", *pieces])}
        CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


@dataclass
class Phase:
    """A training that survives being killed: modules, optimizer, EMA and step in one atomically written file."""

    file: Path
    modules: dict[str, nn.Module]
    steps: int
    rate: float
    save_every: int
    momentum: float = 0.998

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
        optimizer = torch.optim.AdamW(weights, lr=self.rate, betas=(0.9, 0.99), weight_decay=0.01)
        average = copy.deepcopy(nn.ModuleDict(self.modules))
        first = self._resume(optimizer, average) if self.file.exists() else 0
        begin, last = time.monotonic(), self.steps if stop_at is None else min(stop_at, self.steps)
        for step in range(first, last):
            for group in optimizer.param_groups:
                group["lr"] = self.rate * schedule(step / self.steps)
            value = loss(step)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            keep = min(self.momentum, (1 + step) / (10 + step))
            for mean, now in zip(average.parameters(), weights, strict=True):
                mean.data.lerp_(now.data, 1 - keep)
            if (step + 1) % self.save_every == 0 or step + 1 == last:
                self._keep(step + 1, optimizer, average)
                rate = (step + 1 - first) / (time.monotonic() - begin)
                print(f"{self.file.stem} {step + 1}/{self.steps}  loss {value.item():.4f}  {rate:.2f} it/s", flush=True)
        for name, module in self.modules.items():
            module.load_state_dict(average[name].state_dict())
        return last == self.steps

    def _resume(self, optimizer: torch.optim.Optimizer, average: nn.Module) -> int:
        """Brings everything to where it was kept; returns the next step."""
        saved = torch.load(self.file, weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        average.load_state_dict(saved["average"])
        for name, module in self.modules.items():
            module.load_state_dict(saved[name])
        return int(saved["step"])

    def _keep(self, step: int, optimizer: torch.optim.Optimizer, average: nn.Module) -> None:
        state = {name: module.state_dict() for name, module in self.modules.items()}
        state |= {"step": step, "optimizer": optimizer.state_dict(), "average": average.state_dict()}
        with atomic_path(self.file) as temporary:
            torch.save(state, temporary)


def vae_loss(vae: Any, drawings: Drawings, batch: int, draw: torch.Generator) -> Tensor:
    """``|x̂ - x| + ½ |∇x̂ - ∇x| + 2·10⁻⁴ KL``: the gradients keep edges that an L1 loss alone blurs."""
    rows = torch.randint(0, len(drawings.names), (batch,), generator=draw)
    colour = torch.randint(0, len(BACKGROUNDS), (batch,), generator=draw)
    x = composited(drawings.pixels[rows], torch.where(torch.rand(batch, generator=draw) < 0.4, 0, colour))
    x = torch.where(torch.rand(batch, generator=draw)[:, None, None, None] < 0.5, x.flip(-1), x)
    posterior = vae.encode(x).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=draw)
    y = vae.decode(posterior.mean + posterior.std * noise).sample.float()
    edges = sum((y.diff(dim=dim) - x.diff(dim=dim)).abs().mean() for dim in (2, 3))
    kl = posterior.kl().float().mean() / posterior.mean[0].numel()
    return (y - x).abs().mean() + 0.5 * edges + 2e-4 * kl


@torch.no_grad()
def latents_of(vae: Any, drawings: Drawings) -> tuple[Tensor, Tensor]:
    """Latents of every drawing on every colour, full and small ``(colours, 2, N, C, 8, 8)``, and of plain colours."""
    colours = []
    for number in range(len(BACKGROUNDS)):
        background = torch.full((len(drawings.names),), number)
        full = composited(drawings.pixels, background)
        both = torch.stack([full, small(full, background)]).flatten(0, 1)
        encoded = torch.cat([vae.encode(part).latent_dist.mode().float() for part in both.split(64)])
        colours.append(encoded.unflatten(0, (2, -1)))
    flat = torch.tensor(list(COLOURS.values())).float()[:, :, None, None].expand(-1, -1, SIDE, SIDE) / 127.5 - 1
    return torch.stack(colours), vae.encode(flat).latent_dist.mode().float()


@dataclass
class Denoising:
    """The loss of text encoder and UNet on precomputed latents; every fourth batch is wide pictures of two things."""

    latents: Tensor
    plain: Tensor
    names: tuple[str, ...]
    tokenizer: Any
    encoder: Callable[..., Any]
    unet: Callable[..., Any]
    scheduler: Any
    seed: int
    batch: int

    def __call__(self, step: int) -> Tensor:
        draw = drawn_at(self.seed, step)
        x, captions = self.pictures(step, draw)
        noise = torch.randn(x.shape, generator=draw)
        times = torch.randint(0, 1000, (len(x),), generator=draw)
        noisy, target = self.scheduler.add_noise(x, noise, times), self.scheduler.get_velocity(x, noise, times)
        ids = self.tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        output = self.unet(noisy, times, encoder_hidden_states=self.encoder(ids.input_ids)[0]).sample
        alpha = self.scheduler.alphas_cumprod[times]
        return ((output.float() - target).square().mean((1, 2, 3)) * weight(alpha / (1 - alpha))).mean()

    def pictures(self, step: int, draw: torch.Generator) -> tuple[Tensor, list[str]]:
        """Latents and captions of one step."""
        wide = step % 4 == 3
        count = self.batch // 2 if wide else self.batch

        def number(below: int) -> int:
            return int(torch.randint(0, below, (1,), generator=draw))

        things = [(number(len(self.names)), number(len(self.names))) for _ in range(count)]
        colours = [0 if number(100) < 35 else number(len(BACKGROUNDS)) for _ in range(count)]
        sizes = [int(number(4) == 0) for _ in range(count)]
        rows, captions = [], []
        for (left, right), colour, size in zip(things, colours, sizes, strict=True):
            x, name = self.latents[colour, size, left], self.names[left]
            if wide and number(5) == 0:  # one thing in the middle
                side = self.plain[colour][..., : x.shape[-1] // 2]
                x = torch.cat([side, x, side], -1)
            elif wide:
                x = torch.cat([x, self.latents[colour, size, right]], -1)
                name = f"{name} and {self.names[right]}"
            rows.append(x)
            captions.append(caption(name, colour, bool(size), number))
        return torch.stack(rows), captions


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
    """An untrained UNet."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIDE // 2 ** (len(sizes.vae_channels) - 1),
        in_channels=sizes.latent_channels,
        out_channels=sizes.latent_channels,
        layers_per_block=1,
        block_out_channels=sizes.unet_channels,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=sizes.width,
        attention_head_dim=4,
    )


def save_pipeline(vae: Any, encoder: Any, tokenizer: Any, unet: Any, scheduler: Any, folder: Path) -> Path:
    """Writes the whole in fp16."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DPMSolverMultistepScheduler.from_config(scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(folder)
    return folder


def train_base(
    drawings: Drawings,
    out: Path,
    sizes: Sizes,
    *,
    seed: int = 0,
    save_every: int = 250,
    bf16: bool = False,
    compiled: bool = False,
    stop_at: int | None = None,
) -> Path | None:
    """Trains all parts, or goes on with what is in ``out``; returns the pipeline's folder, ``None`` if stopped before.

    Args:
        drawings: everything; :meth:`Drawings.known` chooses what text encoder and UNet see.
        out: folder for checkpoints and the result.
        sizes: of networks and trainings.
        seed: of weights and of everything that is drawn.
        save_every: steps between checkpoints.
        bf16: compute in bf16 (fp32 weights).
        compiled: compile text encoder and UNet.
        stop_at: leave each training after this many steps, as if interrupted (for trials).
    """
    out.mkdir(parents=True, exist_ok=True)
    known = drawings.known()
    tokenizer = train_tokenizer(known.names, sizes.vocabulary, out / "tokenizer")
    torch.manual_seed(seed)
    vae, encoder, unet, scheduler = build(sizes, tokenizer)
    cast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)

    def reconstruction(step: int) -> Tensor:
        with cast:
            return vae_loss(vae, drawings, sizes.vae_batch, drawn_at(seed, step))

    first = Phase(out / "vae.pt", {"vae": vae}, sizes.vae_steps, sizes.vae_rate, save_every, momentum=0.99)
    if not first.run(reconstruction, lambda done: min(1.0, done / 0.05 + 0.01) * (1 - done), stop_at=stop_at):
        return None
    vae.eval().requires_grad_(False)
    latents, plain = latents_of(vae, known)
    scale = float(1 / latents.std())
    vae.register_to_config(scaling_factor=scale)

    forward = [torch.compile(part, dynamic=False) if compiled else part for part in (encoder, unet)]
    denoise = Denoising(latents * scale, plain * scale, known.names, tokenizer, *forward, scheduler, seed, sizes.batch)

    def denoising(step: int) -> Tensor:
        with cast:
            return denoise(step)

    second = Phase(out / "denoiser.pt", {"encoder": encoder, "unet": unet}, sizes.steps, sizes.rate, save_every)
    if not second.run(denoising, lambda done: min(1.0, done / 0.02 + 0.01, (1 - done) / 0.75), stop_at=stop_at):
        return None
    return save_pipeline(vae, encoder, tokenizer, unet, scheduler, out / "pipeline")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path, help="folder with emoji-datasource-google/ and unicode-emoji-json/")
    parser.add_argument("out", type=Path, help="folder for checkpoints and the finished pipeline")
    parser.add_argument("--steps", type=int, default=Sizes.steps, help="of text encoder and UNet")
    parser.add_argument("--vae-steps", type=int, default=Sizes.vae_steps)
    parser.add_argument("--batch", type=int, default=Sizes.batch)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    sizes = Sizes(steps=given.steps, vae_steps=given.vae_steps, batch=given.batch)
    choices = {"seed": given.seed, "save_every": given.save_every, "bf16": given.bf16, "compiled": given.compile}
    folder = train_base(read_npm(given.sources), given.out, sizes, **choices)
    print(f"finished: {folder}")


if __name__ == "__main__":
    main()
