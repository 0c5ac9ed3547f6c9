"""The script that trains the embedded base: its world, and a few of its steps on a handful of pictures."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from studio.families import open_base
from studio.families.emoji_world import COLOURS, atlas, composite, core_names, emoji_names


@pytest.fixture(scope="module")
def script(example):
    return example("train_emoji_base")


@pytest.fixture(scope="module")
def world(script):
    return sys.modules["emoji_pictures"]


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
    return script.Sizes(vae_steps=3, steps=5, batch=4, vae_batch=2, text_layers=1, bank=2, **unet)


def test_the_kept_out_concepts_are_not_learned(script, world, few, tokenizer):
    assert few.known(tokenizer).names == ("rocket", "red apple", "tiger", "pizza", "ghost")
    assert len(world.KEPT_OUT) == 12
    known = script.packaged().known(tokenizer)
    assert len(known.names) > 1500 and not [name for name in known.names if any(k in name for k in world.KEPT_OUT)]
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


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_poses_spread_around_an_upright_drawing_as_wide_as_the_picture(script, spread):
    small, sided = torch.arange(4000) % 2 == 0, torch.zeros(4000, dtype=torch.bool)
    poses = script.Poses.drawn(small, sided, torch.Generator().manual_seed(0), spread)
    large = 64 * (1 - 0.45 * spread)
    assert large - 1e-3 <= poses.width[~small].min() < large + 0.5 and poses.width[~small].max() <= 64
    assert poses.turn.abs().max() <= spread * math.radians(15) <= poses.turn.abs().max() + 0.01
    assert (poses.mirror < 0).float().mean() == pytest.approx(min(0.5, spread), abs=0.03)
    for middle in (poses.x, poses.y):
        assert (middle - 32).abs().max() == pytest.approx(spread * max(0.45 / 2, (1 - 0.36) / 2) * 64, abs=5 * spread)
    if not spread:
        assert len(set(zip(*(column.tolist() for column in vars(poses).values()), strict=True))) == 2


def test_names_are_learned_upright_before_their_poses(script, few, tmp_path):
    training = script.Training(few, tmp_path, script.Sizes(steps=100, spread=0.8))
    assert [training.spread(step) for step in (0, 25, 50, 10**6)] == pytest.approx([0, 0.4, 0.8, 0.8])


@pytest.mark.parametrize("words", [("--spread", "2"), ("--core-share", "-0.1"), ("--spread", "nan")])
def test_parts_outside_of_0_to_1_are_refused_before_anything_is_written(script, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_emoji_base.py", str(tmp_path / "out"), *words])
    with pytest.raises(SystemExit):
        script.main()
    assert "must be from 0 to 1" in capsys.readouterr().err and not (tmp_path / "out").exists()


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


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other", "old"])
def test_a_checkpoint_that_cannot_be_gone_on_from_is_said(script, tmp_path, damage):
    file = tmp_path / "net.pt"

    def training(width: int):
        net = torch.nn.Linear(width, 2)
        phase = script.Phase(file, {"net": net}, 3, 1e-3, 1, muon=True)
        return phase.run(lambda step: net(torch.ones(width)).square().mean(), lambda done: 1.0, stop_at=2)

    assert not training(4)
    whole = file.read_bytes()
    if damage == "old":
        torch.save({"step": 1, "optimizer": {}}, file)
    else:
        file.write_bytes({"cut": whole[:-40], "empty": b"", "text": b"hello", "other": whole}[damage])
    before = file.read_bytes()
    with pytest.raises(SystemExit, match=r"net\.pt is damaged or of a training of other sizes"):
        training(3 if damage == "other" else 4)
    assert file.read_bytes() == before


def test_wider_and_deeper_networks_go_on_from_saved_ones(script, tmp_path):
    def saved(module: torch.nn.Module, name: str):
        save_file(module.state_dict(), tmp_path / name)
        return tmp_path / name

    torch.manual_seed(0)
    wide, narrow = (script.autoencoder(script.Sizes(vae_channels=c)) for c in ((32, 64, 128), (16, 32, 64)))
    x = script.vae_pictures(script.packaged(), 4, script.drawn_at(0, 0))
    with torch.no_grad():
        before = wide.decode(wide.encode(x).latent_dist.mode()).sample
        assert script.adopt(wide, saved(narrow, "vae.safetensors")) == 1
        first, second = (vae.decode(vae.encode(x).latent_dist.mode()).sample for vae in (wide, narrow))
    assert (first - second).abs().mean() < 0.2 * (before - second).abs().mean()
    three, four = (script.denoiser(script.Sizes(unet_channels=c)) for c in ((64, 128, 160), (64, 128, 160, 160)))
    file = saved(three, "unet.safetensors")
    assert script.adopt(script.denoiser(script.Sizes(unet_channels=(64, 128, 160))), file) == 1
    assert 0.6 < script.adopt(four, file) < 0.9
    assert torch.equal(four.up_blocks[3].resnets[0].conv1.weight, three.up_blocks[2].resnets[0].conv1.weight)
    assert script.widened(torch.zeros(3, 3), torch.Size((4, 3))) is None


def test_moved_latents_are_those_of_moved_pictures_where_the_encoder_is_a_mean(script):
    x = script.vae_pictures(script.packaged(), 8, script.drawn_at(0, 0))
    maps = script.moves(8, script.drawn_at(0, 1))
    assert torch.equal(maps, script.moves(8, script.drawn_at(0, 1)))
    sizes = torch.linalg.det(maps[:, :, :2]).abs().sqrt()
    assert sizes.min() >= 1 / 1.5 and sizes.max() <= 1.5
    here = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]).expand(8, 2, 3)
    assert torch.allclose(script.moved(x, here), x, atol=1e-4)
    mirrored = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]]).expand(8, 2, 3)
    assert torch.allclose(script.moved(x, mirrored), x.flip(-1), atol=1e-4)

    def means(pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(pictures, 2)

    error = (script.moved(means(x), maps) - means(script.moved(x, maps))).abs().mean()
    assert error < 0.1 * (means(x) - means(script.moved(x, maps))).abs().mean()


def test_matrices_are_stepped_in_all_directions_alike_and_tables_by_adamw(script):
    """Muon's step of a matrix is orthogonal, 0.2·√max(rows, columns) of AdamW's rate; AdamW's first is ±rate."""
    torch.manual_seed(0)
    layers = {"net": torch.nn.ModuleDict({"kernel": torch.nn.Conv2d(4, 8, 3), "embedding": torch.nn.Embedding(5, 3)})}
    kernel, table = layers["net"]["kernel"], layers["net"]["embedding"]
    before = kernel.weight.detach().clone(), kernel.bias.detach().clone(), table.weight.detach().clone()
    optimizers = script.Optimizers(layers, 1e-3, muon=True)
    gradients = [torch.randn_like(weight) for weight in before]
    for weight, gradient in zip((kernel.weight, kernel.bias, table.weight), gradients, strict=True):
        weight.grad = gradient
    optimizers.step(1e-3)
    after = [weight.detach() for weight in (kernel.weight, kernel.bias, table.weight)]
    moved = [now - then * (1 - 1e-5) for now, then in zip(after, before, strict=True)]
    lengths = torch.linalg.svdvals(moved[0].flatten(1).double()) / (1e-3 * 0.2 * math.sqrt(4 * 9))
    assert lengths.min() > 0.6 and lengths.max() < 1.3  # Newton and Schulz's five steps end about 1
    for change, gradient in zip(moved[1:], gradients[1:], strict=True):
        assert torch.allclose(change, -1e-3 * gradient.sign(), atol=2e-6)
    assert [weight.grad for weight in (kernel.weight, kernel.bias, table.weight)] == [None] * 3


@pytest.mark.parametrize("shape", [(8, 8), (6, 40), (40, 6)])
def test_muon_is_torchs_without_the_rounding_of_bf16(script, shape):
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(3, *shape)
    ours, torchs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    steppers = (
        script.Muon([ours], lr=1e-2, weight_decay=0.1),
        torch.optim.Muon([torchs], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for gradient in gradients:
        ours.grad, torchs.grad = gradient.clone(), gradient.clone()
        for stepper in steppers:
            stepper.step()
    moved = (torchs - start).norm()
    assert 0 < (ours - torchs).norm() < 0.02 * moved


def test_newton_and_schulz_by_the_square_are_those_of_the_whole(script):
    """Their polynomial of every singular value, in float64."""
    torch.manual_seed(0)
    matrix = torch.randn(5, 12)
    u, values, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / matrix.double().norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    assert torch.allclose(script.orthogonal(matrix).double(), u * values @ vt, atol=1e-4)
    assert torch.allclose(script.orthogonal(matrix.T), script.orthogonal(matrix).T, atol=1e-5)


def test_a_bank_shows_the_pictures_of_its_steps(script, few, tokenizer):
    torch.manual_seed(0)
    vae, known = script.autoencoder(tiny(script)), few.known(tokenizer)
    banked, fresh = (script.Denoising(known, tokenizer, vae, None, None, None, 0, 8, bank) for bank in (16, 0))
    drawn = [fresh.encoded(k, script.drawn_at(0, k)) for k in range(4)]
    for step, wide in ((0, False), (3, True), (15, True), (6, False)):
        latents, captions = banked.taken(step, script.drawn_at(0, step))
        assert latents.shape == ((4, 4, 8, 16) if wide else (8, 4, 8, 8)) and len(captions) == len(latents)
        pool = [pair for x, told in drawn if x.shape[-1] == latents.shape[-1] for pair in zip(x, told, strict=True)]
        for x, told in zip(latents, captions, strict=True):
            assert any(torch.equal(x, y) and told == said for y, said in pool)
    assert not torch.equal(banked.taken(16, script.drawn_at(0, 0))[0], banked.taken(0, script.drawn_at(0, 0))[0])


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
