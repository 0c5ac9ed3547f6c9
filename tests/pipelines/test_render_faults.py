"""A thousand jobs through kills, a full disk, lacking memory and a bad adapter; and the same list on a Ray cluster."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

import studio
from studio.pipelines import ImagePipeline, read_metadata, regenerate, render
from studio.pipelines.rendering.finished import job_in

pytestmark = pytest.mark.slow

SEEDS = 125
ADAPTERS = ("ink", "robot", "sun")
# what a process of its own does: memory lacks in every ninth call of the denoiser with more than two pictures
CHILD = """
    import json, sys
    import torch
    from studio.pipelines import render
    from studio.pipelines.rendering.bench import Bench
    torch.set_num_threads(1)
    jobs, out, lacks = sys.argv[1], sys.argv[2], sys.argv[3] == "lacks"
    real, calls, hooked = Bench.pipe, [], []
    def pipe(self, base):
        opened = real(self, base)
        if lacks and not hooked:
            def check(module, given, kwargs):
                calls.append(None)
                if len(calls) % 9 == 0 and len(given[0] if given else kwargs["sample"]) > 4:
                    raise MemoryError
            hooked.append(opened.pipe.unet.register_forward_pre_hook(check, with_kwargs=True))
        return opened
    Bench.pipe = pipe
    done = render(jobs, out, batch_size=8, device="cpu", retries=2)
    print(json.dumps({"drawn": done.drawn, "found": done.found, "failures": [one.index for one in done.failures]}))
"""


def adapters(folder: Path) -> dict[str, str]:
    pipe = ImagePipeline.open("emoji")
    for seed, name in enumerate(ADAPTERS):
        studio.attach(pipe.pipe, studio.LoRA(rank=2), name=name, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, tensor in studio.state(pipe.pipe, name).items():
                if key.endswith(".up"):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)
        studio.save(pipe.pipe, folder / f"{name}.safetensors", name=name)
    return {name: str(folder / f"{name}.safetensors") for name in ADAPTERS}


def a_list(folder: Path, files: dict[str, str], seeds: int = SEEDS) -> Path:
    """Eight prompts and blends with ``seeds`` seeds each."""
    said = [{}, {"ink": 0.5}, {"robot": 0.4, "sun": 0.3}, {"sun": 0.6}]
    jobs = [
        {"prompt": prompt, "blend": blend, "seeds": f"0..{seeds - 1}", "adapters": files, "base": "emoji", "steps": 1}
        for prompt in ("tiger", "rocket on a blue background") for blend in said
    ]  # fmt: skip
    file = folder / "jobs.jsonl"
    file.write_text("".join(json.dumps(job) + "\n" for job in jobs))
    return file


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    """A disk of its own that holds so much, where this user may mount one; else None."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", folder], check=False)


def begin(jobs: Path, out: Path, *, lacks: bool = False) -> subprocess.Popen:
    words = [sys.executable, "-c", textwrap.dedent(CHILD), str(jobs), str(out), "lacks" if lacks else "has"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(out: Path, count: int, processes: list[subprocess.Popen]) -> None:
    end = time.monotonic() + 600
    while len(list(out.glob("*.png"))) < count and time.monotonic() < end:
        if all(process.poll() is not None for process in processes):
            return
        time.sleep(0.05)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    said, error = process.communicate(timeout=900)
    return process.returncode, said or error


def test_a_thousand_jobs_through_every_fault_are_each_done_once(tmp_path):
    files = adapters(tmp_path)
    jobs, sound = a_list(tmp_path, files), Path(files["sun"]).read_bytes()
    Path(files["sun"]).write_bytes(sound[:-50])  # a quarter of the jobs needs it, and another one it too
    with small_disk(tmp_path / "disk", "2500k") as small:
        out = tmp_path / "disk" / "out"
        two = [begin(jobs, out), begin(jobs, out)]
        wait_for(out, 120, two)
        two[0].kill()
        two[0].communicate()
        if small:  # the other goes on until the disk is full
            code, said = ended(two[1])
            assert code == 1 and "no space left on the device" in said and "the same command goes on" in said
            assert not [file for file in out.glob("*.png") if job_in(file) is None]
            subprocess.run(["mount", "-o", "remount,size=64m", tmp_path / "disk"], check=True)
        else:
            two[1].kill()
            two[1].communicate()
        interrupted(jobs, out)
        code, said = ended(begin(jobs, out, lacks=True))
        result = json.loads(said)
        assert code == 0 and len(result["failures"]) == SEEDS * 4 and result["drawn"] + result["found"] == SEEDS * 4
        Path(files["sun"]).write_bytes(sound)
        two = [begin(jobs, out), begin(jobs, out, lacks=True)]
        results = [json.loads(ended(process)[1]) for process in two]
        assert all(one["failures"] == [] for one in results)
        check(jobs, out, files)


def interrupted(jobs: Path, out: Path) -> None:
    """Lets two processes draw a hundred more, and kills both."""
    before = len(list(out.glob("*.png")))
    two = [begin(jobs, out, lacks=True), begin(jobs, out, lacks=True)]
    wait_for(out, before + 100, two)
    for process in two:
        process.kill()
        process.communicate()


def check(jobs: Path, out: Path, files: dict[str, str]) -> None:
    """Every job is done, noted once, and what its picture says makes it again; a further call does nothing."""
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines() if line.startswith("{")]
    done = Counter((line["file"], line["job"]) for line in lines if line["outcome"] in ("done", "found"))
    pictures = sorted(out.glob("*.png"))
    assert len(pictures) == 8 * SEEDS == len(done) and set(done.values()) == {1}
    assert {(file.name, job_in(file)) for file in pictures} == set(done)
    began = time.monotonic()
    again = render(jobs, out, batch_size=8, device="cpu")
    assert (again.drawn, again.found, again.failures) == (0, 8 * SEEDS, [])
    assert time.monotonic() - began < 30
    assert len((out / "manifest.jsonl").read_text().splitlines()) == len(lines)
    assert not list(out.glob(".*.tmp")) and not (out / ".render" / "claims").exists()
    for file in random.Random(0).sample(pictures, 8):
        assert regenerate(file, adapters=files.values()).tobytes() == pixels(file), read_metadata(file)


def pixels(file: Path) -> bytes:
    from PIL import Image

    with Image.open(file) as image:
        return image.tobytes()


RAY = """
    import json, os, signal, sys
    import psutil, torch
    from studio.pipelines import render
    torch.set_num_threads(1)
    killed = []
    def kill(job, error):
        if not killed:
            every = psutil.Process().children(recursive=True)
            actors = [one.pid for one in every if "MapWorker" in "".join(one.cmdline())]
            if len(actors) == 2:
                os.kill(actors[0], signal.SIGKILL)
                killed.append(actors[0])
    done = render(sys.argv[1], sys.argv[2], batch_size=4, device="cpu", engine="ray", workers=2, on_job=kill)
    print(json.dumps({"drawn": done.drawn, "failures": len(done.failures), "killed": len(killed)}))
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_two_actors_of_which_one_is_killed_draw_the_same_bytes(tmp_path):
    jobs = a_list(tmp_path, adapters(tmp_path), seeds=8)
    here = render(jobs, tmp_path / "here", batch_size=4, device="cpu")
    words = [sys.executable, "-c", textwrap.dedent(RAY), str(jobs), str(tmp_path / "there")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ray = subprocess.run(words, capture_output=True, text=True, timeout=900, env=environment)
    assert ray.returncode == 0, ray.stderr
    assert json.loads(ray.stdout.splitlines()[-1]) == {"drawn": 64, "failures": 0, "killed": 1}
    assert len(here.pictures) == 64
    for file in here.pictures:
        assert file.read_bytes() == (tmp_path / "there" / file.name).read_bytes()
