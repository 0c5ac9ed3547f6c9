"""The report: pictures scaled smoothly with their names, what was measured, a command that uses the adapter."""

from __future__ import annotations

import base64
import io
import re

import pytest
from PIL import Image

from studio.adapters import LoRA
from studio.datasets.folder import read_folder
from studio.families.emoji_world import INSTANCE_FOLDER, composite
from studio.trainers import DreamBooth, train
from studio.trainers.image.truth import known_subject, likeness
from studio.trainers.loop.shown import as_url, show_previews


def opened(url):
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


@pytest.mark.parametrize(("size", "shown"), [((64, 64), (256, 256)), ((8, 4), (200, 100)), ((250, 250), (250, 250)),
                                             ((640, 320), (320, 160))])  # fmt: skip
def test_small_pictures_are_enlarged_without_squares(size, shown):
    """A step from black to white has shades in between then, where squares would have two colours."""
    picture = Image.new("RGB", size, "black")
    picture.paste("white", (size[0] // 2, 0, *size))
    made = opened(as_url(picture))
    assert made.size == shown
    if size[0] < 200:
        assert len(made.convert("L").getcolors()) > 4


def test_a_report_names_its_pictures_and_says_how_to_use_the_adapter(tiny_base, photos, tmp_path):
    task = DreamBooth(
        base=tiny_base, instance_images=photos, instance_prompt="a photo of sks robot", prior="none",
        preview_steps=1, preview_seeds=(0, 1),
    )  # fmt: skip
    settings = {"steps": 2, "batch_size": 1, "preview_every": 1, "cache": str(tmp_path / "cache"), "quiet": True}
    run = train(task, output=tmp_path / "a run", adapter=LoRA(rank=2), **settings)
    page = run.report.read_text(encoding="utf-8")
    names = re.findall(r'<span class="name">([^<]*)</span>', page)
    assert names == ["the base", "with the adapter"] * 2 + sorted(file.name for file in photos.iterdir())
    assert "pixelated" not in page and page.count("<th>step ") >= 3 and "a photo of sks robot · seed 1" in page
    quoted = f"&#39;{run.adapter}&#39;"  # a blank in the path
    assert f"studio generate {tiny_base} &#39;a photo of sks robot&#39; --adapter {quoted}</code>" in page


def test_steps_with_previews_of_other_prompts_are_left_out(tmp_path):
    (tmp_path / "previews").mkdir()
    for name in ("step-000000-00", "step-000004-00", "step-000004-01", "step-000008-00"):
        (tmp_path / "previews" / f"{name}.txt").write_text(name)
    found = show_previews(tmp_path, ["asked"])
    assert found.pairs == [("asked", "step-000000-00", "step-000008-00")] and found.texts
    assert found.problems == ["the previews of step 4 are damaged, or of other prompts, and are not shown"]


def test_likeness_is_measured_where_the_truth_is_known(photos):
    robots = [item.digest for item in read_folder(INSTANCE_FOLDER / "robot").items]
    assert known_subject(robots) == known_subject(robots[:2]) == "robot"
    assert known_subject(item.digest for item in read_folder(photos).items) is None
    assert known_subject([*robots, "0" * 64]) is None
    truth, other = composite("robot", "red"), composite("penguin", "red")
    assert likeness([truth], "robot") == 1.0 > likeness([truth, other], "robot") > likeness([other], "robot")
