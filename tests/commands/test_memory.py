"""What saves memory on the command line, and the guidance that some bases embed."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from PIL import Image

from studio.cli import main
from studio.commands import options
from studio.commands.generate import generate
from studio.families.attention import ATTENTIONS
from studio.families.offloading import OFFLOADS
from tiny_pipelines import build


def run(*words: object):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dev") / "dev"
    build("flux1").save_pretrained(folder)
    return folder


def draw(base, folder, *more: object):
    return run("generate", base, "rocket", "--steps", 1, "--resolution", 64, "-o", folder, *more)


def test_the_choices_are_the_registries():
    def words(name: str) -> set[str]:
        (option,) = [one for one in generate.params if name in one.opts]
        return set(option.type.choices)

    assert words("--offload") == set(OFFLOADS)
    assert words("--attention") == set(ATTENTIONS) == set(options._ATTENTION.choices)


def test_pictures_stay_the_same(tmp_path):
    assert draw("emoji", tmp_path / "plain").exit_code == 0
    result = draw(
        "emoji", tmp_path / "spared", "--offload", "group", "--vae-tiling", "--vae-slicing", "--device", "cpu",
        "--attention", "sdpa",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    plain, spared = (tmp_path / folder / "0000.png" for folder in ("plain", "spared"))
    assert Image.open(plain).tobytes() == Image.open(spared).tobytes()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--offload", "model", "--device", "cpu"), "offload='model' keeps weights in the CPU's memory"),
        (("--attention", "xformers"), "pip install xformers"),
        (("--attention", "sdp"), "--attention"),
        (("--embedded-guidance", 3), "emoji embeds no guidance; guidance is what it takes"),
    ],
)
def test_what_cannot_be_had_is_refused(words, part, tmp_path):
    result = draw("emoji", tmp_path / "out", *words)
    assert result.exit_code == 2 and part in result.output, result.output


def test_embedded_guidance_acts_where_it_is_embedded(dev, tmp_path):
    pictures = []
    for more in ((), ("--embedded-guidance", 3.5), ("--embedded-guidance", 9)):
        folder = tmp_path / str(len(pictures))
        result = draw(dev, folder, *more)
        assert result.exit_code == 0, result.output
        pictures.append((folder / "0000.png").read_bytes())
    own, same, other = pictures
    assert own == same != other
    result = draw(dev, tmp_path / "none", "--embedded-guidance", "nan")
    assert result.exit_code == 2 and "finite number" in result.output


def test_previews_take_their_ways(tmp_path, picture):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        picture(number, (64, 64)).save(photos / f"{number}.png")

    def train(folder: str, *more: object):
        return run(
            "dreambooth", "emoji", photos, "--instance-prompt", "a photo of sks robot", "--steps", 1, "--rank", 1,
            "--preview-every", 1, "--sampling-steps", 1, "-o", tmp_path / folder, "--set", "prior=none", *more,
        )  # fmt: skip

    assert train("plain").exit_code == 0
    result = train("sparing", "--attention", "sliced", "--vae-tiling")
    assert result.exit_code == 0, result.output
    plain, sparing = ((tmp_path / folder / "adapter.safetensors").read_bytes() for folder in ("plain", "sparing"))
    assert plain == sparing
    assert 'attention = "sliced"' in (tmp_path / "sparing" / "run.toml").read_text()
    result = train("refused", "--attention", "xformers", "--device", "cpu")
    assert result.exit_code == 2 and "pip install xformers" in result.output, result.output
