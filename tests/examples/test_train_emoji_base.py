"""The script that trains a base like the embedded one: a few of its steps on a handful of pictures."""

from __future__ import annotations

import pytest
import torch

from studio.families import open_base
from studio.families.emoji_world import atlas, emoji_names


@pytest.fixture(scope="module")
def script(example):
    return example("train_emoji_base")


@pytest.fixture(scope="module")
def few(script):
    names = ("rocket", "red apple", "tiger", "robot", "pizza", "ghost")
    rows = [emoji_names().index(name) for name in names]
    return script.Drawings(names, ("Travel & Places",) * len(names), torch.from_numpy(atlas()[rows]))


def tiny(script):
    unet = {
        "unet_channels": (32, 32),
        "vae_channels": (8, 8, 8, 8),
        "latent_channels": 4,
        "width": 16,
        "text_layers": 1,
    }
    return script.Sizes(vae_steps=3, steps=5, batch=4, vae_batch=2, vocabulary=600, **unet)


def test_the_kept_out_concepts_are_not_learned(script, few):
    assert few.known().names == ("rocket", "red apple", "tiger", "pizza", "ghost")
    assert len(script.KEPT_OUT) == 12


def test_an_interrupted_training_ends_with_the_same_bits_and_opens_as_a_base(script, few, tmp_path):
    whole = script.train_base(few, tmp_path / "whole", tiny(script), save_every=2)
    for stop in (1, 2, 3, 4):  # the autoencoder ends at 3
        assert script.train_base(few, tmp_path / "cut", tiny(script), save_every=2, stop_at=stop) is None
    cut = script.train_base(few, tmp_path / "cut", tiny(script), save_every=2)
    assert not list((tmp_path / "cut").glob("*.tmp*"))
    first, second = open_base(whole), open_base(cut)
    assert first.hash == second.hash
    assert (first.family.name, first.native) == ("sd1", (64, 64))
    other = script.train_base(few, tmp_path / "other", tiny(script), seed=1)
    assert open_base(other).hash != first.hash
    picture = first.pipe("rocket on a red background", num_inference_steps=2, output_type="pil").images[0]
    assert picture.size == (64, 64)


def test_losses_fall(script, few, tmp_path):
    torch.manual_seed(0)
    tokenizer = script.train_tokenizer(few.names, 600, tmp_path / "tokenizer")
    vae, *_ = script.build(tiny(script), tokenizer)
    losses = []
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3)
    for step in range(60):
        loss = script.vae_loss(vae, few, 4, script.drawn_at(0, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_tokenizer_is_the_same_every_time_and_reads_everything(script, few, tmp_path):
    first, second = (script.train_tokenizer(few.names, 700, tmp_path / name) for name in "ab")
    assert first.get_vocab() == second.get_vocab()
    assert first.tokenize("a photo of rocket")[-1] == "rocket</w>"
    assert first.decode(first("a strange émoji 42!").input_ids, skip_special_tokens=True) == "a strange émoji 4 2 !"


def test_captions_follow_the_grammar(script):
    def told(*numbers: int):
        rest = iter(numbers)
        return lambda below: next(rest)

    assert script.caption("tiger", 4, False, told(1, 3)) == "a photo of tiger on a blue background"
    assert script.caption("tiger", 0, True, told(1, 0, 1)) == "small tiger"
    assert script.caption("tiger", 0, False, told(1, 2, 0)) == "an emoji of tiger on a white background"
    assert script.caption("tiger", 4, False, told(0)) == ""
