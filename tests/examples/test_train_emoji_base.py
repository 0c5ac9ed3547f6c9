"""The script that trains the embedded base: its world, and a few of its steps on a handful of pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from studio.families import open_base
from studio.families.emoji_world import COLOURS, atlas, composite, core_names, emoji_names


@pytest.fixture(scope="module")
def script(example):
    return example("train_emoji_base")


@pytest.fixture(scope="module")
def tokenizer(script):
    return CLIPTokenizer.from_pretrained(script.PACKAGED / "tokenizer", local_files_only=True)


@pytest.fixture(scope="module")
def few(script):
    names = ("rocket", "red apple", "tiger", "robot", "pizza", "ghost")
    rows = [emoji_names().index(name) for name in names]
    return script.Drawings(names, torch.from_numpy(atlas()[rows]))


def tiny(script):
    unet = {"unet_channels": (32, 32), "vae_channels": (8, 8, 8, 8), "latent_channels": 4, "width": 16}
    return script.Sizes(vae_steps=3, steps=5, batch=4, vae_batch=2, text_layers=1, **unet)


def test_the_kept_out_concepts_are_not_learned(script, few, tokenizer):
    assert few.known(tokenizer).names == ("rocket", "red apple", "tiger", "pizza", "ghost")
    assert len(script.KEPT_OUT) == 12
    known = script.packaged().known(tokenizer)
    assert len(known.names) > 1500 and not [name for name in known.names if any(k in name for k in script.KEPT_OUT)]
    assert sorted(known.names[row] for row in known.core()) == list(core_names())
    assert not [name for name in known.names if name.startswith("small ")]  # said of another thing


def test_every_caption_fits_the_tokens(script, tokenizer):
    for name in script.packaged().known(tokenizer).names:
        assert len(tokenizer(f"small an emoji of {name} on a orange background").input_ids) <= script.LENGTH


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turn", [0.0, 12.0])
@pytest.mark.parametrize(
    ("name", "colour", "size", "left", "top"), [("tiger", "blue", 64, 0, 0), ("rocket", "black", 40, 3, 20)]
)
def test_a_pose_is_the_composite_of_the_same_place(script, name, colour, size, left, top, mirror, turn):
    row, number = emoji_names().index(name), list(COLOURS).index(colour)
    at = (left + size / 2, top + size / 2, size, math.radians(turn), -1.0 if mirror else 1.0)
    poses = script.Poses(*(torch.tensor([float(value)]) for value in at))
    drawn = script.composited(script.layer(torch.from_numpy(atlas()[row])[None], poses), torch.tensor([number]))
    truth = np.asarray(composite(name, colour, size, left=left, top=top, mirror=mirror, turn=turn), float) / 127.5 - 1
    shown = drawn[0].permute(1, 2, 0).numpy()
    mirrored = np.asarray(composite(name, colour, size, left=left, top=top, mirror=not mirror, turn=turn), float)
    assert np.abs(shown - truth).mean() < 0.2 * np.abs(shown - mirrored / 127.5 + 1).mean()


def test_poses_stay_inside_and_sided_things_are_not_mirrored(script):
    small = torch.arange(2000) % 2 == 0
    poses = script.Poses.drawn(small, torch.arange(2000) % 4 < 2, torch.Generator().manual_seed(0))
    for middle in (poses.x, poses.y):
        assert bool((middle - poses.width / 2 >= -1e-4).all() and (middle + poses.width / 2 <= 64 + 1e-4).all())
    assert poses.width[small].max() < 0.55 * 64 <= poses.width[~small].min()
    assert poses.turn.abs().max() <= math.radians(15) and poses.turn.std() > 0.1
    assert set(poses.mirror[torch.arange(2000) % 4 < 2].tolist()) == {1.0}
    assert set(poses.mirror[torch.arange(2000) % 4 >= 2].tolist()) == {1.0, -1.0}
    drawings = script.Drawings(("left arrow", "ten o\u2019clock", "tiger"), torch.zeros(3, 64, 64, 4))
    assert drawings.sided().tolist() == [True, True, False]


def test_wide_pictures_show_two_or_one_anywhere(script, few, tokenizer):
    known = few.known(tokenizer)
    denoise = script.Denoising(known, tokenizer, None, None, None, None, 0, 64)
    pictures, captions = denoise.pictures(3, script.drawn_at(0, 3))
    assert pictures.shape == (32, 3, 64, 128)
    assert -1 <= pictures.min() < pictures.max() <= 1
    pairs = [caption for caption in captions if " and " in caption]
    assert 15 < len(pairs) < 32
    assert denoise.pictures(0, script.drawn_at(0, 0))[0].shape == (64, 3, 64, 64)


def test_an_interrupted_training_ends_with_the_same_bits_and_opens_as_a_base(script, few, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "LOOKED_AT", ("tiger",))
    monkeypatch.setattr(script, "LOOKED_AT_WIDE", ())
    monkeypatch.setattr(script, "SEEDS", 1)

    def training(name, **choices):
        return script.Training(few, tmp_path / name, tiny(script), **{"save_every": 2, "look_every": 3, **choices})

    whole = training("whole").run()
    for stop in (1, 2, 3, 4):  # the autoencoder ends at 3
        assert training("cut").run(stop_at=stop) is None
    cut = training("cut").run()
    assert not list((tmp_path / "cut").glob("*.tmp*"))
    assert [file.name for file in sorted((tmp_path / "cut").glob("*.png"))] == ["sheet-000003.png", "sheet-000005.png"]
    first, second = open_base(whole), open_base(cut)
    assert first.hash == second.hash
    assert (first.family.name, first.native) == ("sd1", (64, 64))
    assert open_base(training("other", seed=1).run()).hash != first.hash
    picture = first.pipe("rocket on a red background", num_inference_steps=2, output_type="pil").images[0]
    assert picture.size == (64, 64)


def test_wider_and_deeper_networks_go_on_from_the_packaged_ones(script, tokenizer):
    file = "diffusion_pytorch_model.safetensors"
    torch.manual_seed(0)
    wide, same = (script.autoencoder(script.Sizes(vae_channels=c)) for c in ((32, 64, 128, 96), (16, 32, 64, 96)))
    assert script.adopt(wide, script.PACKAGED / "vae" / file) == script.adopt(same, script.PACKAGED / "vae" / file) == 1
    x = script.vae_pictures(script.packaged(), 4, script.drawn_at(0, 0))
    with torch.no_grad():
        first, second = (vae.decode(vae.encode(x).latent_dist.mode()).sample for vae in (wide, same))
    assert (first - second).abs().mean() < 0.2 * (second - x).abs().mean()
    two = script.denoiser(script.Sizes(unet_channels=(128, 160)))
    three = script.denoiser(script.Sizes(unet_channels=(128, 160, 160)))
    assert script.adopt(two, script.PACKAGED / "unet" / file) == 1
    assert 0.6 < script.adopt(three, script.PACKAGED / "unet" / file) < 0.8
    assert torch.equal(three.up_blocks[2].resnets[0].conv1.weight, two.up_blocks[1].resnets[0].conv1.weight)
    assert script.widened(torch.zeros(3, 3), torch.Size((4, 3))) is None


def test_losses_fall(script, few, tmp_path):
    torch.manual_seed(0)
    vae = script.autoencoder(tiny(script))
    losses = []
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-2)
    pictures = script.vae_pictures(few, 4, script.drawn_at(0, 0))
    for step in range(40):
        loss = script.vae_loss(vae, pictures, script.drawn_at(0, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_captions_follow_the_grammar(script):
    def told(*numbers: int):
        rest = iter(numbers)
        return lambda below: next(rest)

    assert script.caption("tiger", 4, False, told(1, 3, 1)) == "a photo of tiger on a blue background"
    assert script.caption("tiger", 0, True, told(1, 0, 0)) == "small tiger"
    assert script.caption("tiger", 0, False, told(1, 2, 1)) == "an emoji of tiger on a white background"
    assert script.caption("tiger", 4, False, told(0)) == ""
