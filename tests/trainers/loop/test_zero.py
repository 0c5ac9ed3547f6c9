"""DeepSpeed's ZeRO-2 and ZeRO-3: two processes that hold parts train what one does that holds all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest

import studio
import tiny
from studio.adapters import METHODS, attach
from studio.errors import BadConfig, DoesNotFit, MissingPackage
from studio.trainers import Plan
from studio.trainers.loop.group import Group
from studio.trainers.loop.sharding import check_shards, check_started
from studio.trainers.loop.steps import check_divisible
from studio.trainers.loop.zero import settings_for
from tests.support.groups import IMAGE, assert_same, begun, environment, train_in_processes, wait_for, workers
from tests.support.groups import studio as command
from tests.support.in_processes import WAYS, train_all, train_much

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "message"), [
    ({"offload": "optimizer"}, r"offload='optimizer': offload must be left out: it is of sharding='zero2' or 'zero3'"),
    ({"sharding": "full", "offload": "all"}, "offload must be left out: .* this is 'full'"),
    ({"sharding": "zero2", "offload": "all"}, "'optimizer' where sharding='zero2' keeps the base whole"),
    ({"sharding": "zero2", "optimizer": "lora-fa"}, "optimizer must be 'adamw' or 'lora-plus' where sharding='zero2'"),
    ({"sharding": "zero3", "optimizer": "adamw-8bit"}, "optimizer must be 'adamw' or 'lora-plus'"),
])  # fmt: skip
def test_settings_that_contradict_are_refused(settings, message):
    with pytest.raises(BadConfig, match=message):
        Plan(**settings)


@pytest.mark.parametrize("way", ["zero2", "zero3"])
def test_what_is_missing_is_said_before_a_base_is_opened(way, monkeypatch):
    with pytest.raises(BadConfig, match=f"sharding='{way}' divides .* among processes, and there is one"):
        check_started(way, Group())
    with pytest.raises(BadConfig, match="a step's 3 samples are no multiple of that"):
        check_shards(way, Group(0, 2), 3)
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # as where it is not installed
    with pytest.raises(MissingPackage, match=f"sharding='{way}' need deepspeed: pip install deepspeed"):
        check_started(way, Group(0, 2))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.adapter.scratch])
def test_methods_that_look_at_whole_gradients_are_refused(name):
    model = tiny.unet()
    attach(model, METHODS[name](rank=2))
    with pytest.raises(
        DoesNotFit, match=f"{METHODS[name].__name__} looks at whole gradients or weights after .* sharding='zero2'"
    ):
        check_divisible(model, "default", "zero2")


@pytest.mark.parametrize("way", ["none", "full"])
def test_they_are_not_where_gradients_are_whole(way):
    model = tiny.unet()
    attach(model, studio.AdaLoRA(rank=2))
    check_divisible(model, "default", way)


def test_no_more_of_the_base_is_held_than_two_blocks():
    """What is fetched ahead and what is kept follow the largest block; what stays follows the whole."""
    zero = settings_for(3, unit=1000, numbers=10**6)["zero_optimization"]
    assert (zero["stage3_prefetch_bucket_size"], zero["stage3_max_live_parameters"]) == (1000, 2000)
    assert zero["stage3_max_reuse_distance"] == 0 and zero["stage3_param_persistence_threshold"] == 100


@pytest.mark.parametrize(("stage", "offload", "there"), [
    (2, "none", []), (2, "optimizer", ["offload_optimizer"]), (2, "all", ["offload_optimizer"]),
    (3, "none", []), (3, "optimizer", []), (3, "all", ["offload_param"]),
])  # fmt: skip
def test_what_rests_in_the_machines_memory(stage, offload, there):
    """The engine of stage 2 has the moments of both ways, that of stage 3 the base."""
    zero = settings_for(stage, offload=offload)["zero_optimization"]
    assert [key for key in zero if key.startswith("offload")] == there


# -- real processes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(bases, tmp_path_factory):
    """The same trainings in this process, and in two that hold parts."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    train_all(bases, one, {"whole": {}})
    train_much(bases, one, {"whole": {}})
    train_in_processes(bases, two, "zero")
    return one, two


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS["zero"])
@pytest.mark.parametrize("name", ["unet", "mmdit", "llama", "much"])
def test_two_processes_that_hold_parts_train_what_one_does(runs, name, way):
    """Losses, adapter and files; "much" is two rates, growth, an average, clipping, accumulation and checkpointing."""
    one, two = runs
    assert_same(one / f"{name}-whole", two / f"{name}-{way}")
    files = [sorted(p.name for p in (top / folder).rglob("*"))
             for top, folder in ((one, f"{name}-whole"), (two, f"{name}-{way}"))]  # fmt: skip
    assert files[0] == files[1]


@needs_deepspeed
@pytest.mark.slow
def test_each_process_holds_half_of_the_base(runs):
    """Its parts are half of the numbers (rounded up per weight), and what is whole meanwhile is little."""
    for rank in range(2):
        found = json.loads((runs[1] / f"held-{rank}.json").read_text())
        assert found["numbers"] / 2 <= found["own"] <= 0.51 * found["numbers"]
        assert found["there"] < 0.1 * found["numbers"]


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(("stopped", "by"), [
    (["--sharding", "zero2", "--offload", "optimizer"], signal.SIGINT),
    (["--sharding", "zero3", "--offload", "all"], signal.SIGKILL),
], ids=["zero2, Ctrl-C", "zero3, kill -9 of one"])  # fmt: skip
def test_a_stopped_run_goes_on_with_two_processes_with_one_and_without_deepspeed(tmp_path, stopped, by):
    """The checkpoint is the whole state: whoever goes on from it ends as a run in one go does."""
    words = [*IMAGE, "--steps", "12", "--batch-size", "4", "--checkpoint-every", "2"]
    command(*words, "-o", tmp_path / "whole")
    folder = tmp_path / "stopped"
    started = begun(*words, *stopped, "-o", folder, start_new_session=True)
    wait_for(lambda: list(folder.glob("checkpoints/step-*.state")), started)
    if by is signal.SIGKILL:
        os.kill(workers(started.pid)[-1], by)
    else:
        started.send_signal(by)
    _, said = started.communicate(timeout=200)
    assert started.returncode != 0 and "goes on from" in said and "Traceback" not in said, said[-3000:]
    assert list(folder.glob("checkpoints/step-*.state")) and not (folder / "result.toml").exists()
    for name, more, processes in (("two", stopped, 2), ("other", ["--sharding", "zero2"], 2), ("one", [], 1)):
        shutil.copytree(folder, tmp_path / name)
        command(*words, *more, "-o", tmp_path / name, processes=processes)
        assert_same(tmp_path / "whole", tmp_path / name)


@needs_deepspeed
@pytest.mark.slow
def test_a_command_whose_libraries_import_deepspeed_prints_its_result_alone():
    """It writes its remarks to stdout, where a program reads JSON."""
    script = "from studio.cli import main; main(['methods', '--json'], standalone_mode=False); import deepspeed"
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)


@needs_deepspeed
@pytest.mark.slow
def test_a_quantised_base_is_refused_by_zero3(tmp_path):
    words = [*IMAGE, "--steps", "2", "--batch-size", "2", "--quantize", "nf4", "-o", tmp_path / "r"]
    code, said = command(*words, "--sharding", "zero3", processes=2, check=False)
    assert code != 0 and "is quantised, and sharding='zero3' divides plain weights" in said, said[-2000:]
    assert "Traceback" not in said
    command(*words, "--sharding", "zero2", processes=2)
