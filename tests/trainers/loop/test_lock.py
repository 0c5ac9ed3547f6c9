"""The lock of a run: one winner, the right sentence for the others, and nothing that holds it for ever."""

from __future__ import annotations

import errno
import json
import os
import platform
import threading
import time
from pathlib import Path

import pytest

from studio.errors import BadFile, DoesNotFit
from studio.trainers.loop import lock
from studio.trainers.loop.claim import claim
from studio.trainers.loop.lock import EXPIRES, locked

HERE = platform.node()
GONE = {"pid": 1, "started": "1 boot", "host": "gone-7f9c"}


def hold(file, ago=0.0, **holder):
    file.write_text(json.dumps({**GONE, **holder}))
    stamp = time.time() - ago
    os.utime(file, (stamp, stamp))


@pytest.mark.parametrize(
    "holder",
    [{"host": HERE, "started": None}, {"host": HERE, "pid": 2**30}, {"host": HERE, "pid": 0}, {"beat": 10}],
    ids=["no start time", "no such process", "process 0", "a host without a sign of life"],
)
def test_who_is_gone_holds_nothing(tmp_path, holder):
    hold(tmp_path / ".lock", EXPIRES + 5, **holder)
    with locked(tmp_path / ".lock"):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_host_that_shows_life_holds_it_and_for_how_long_is_said(tmp_path):
    hold(tmp_path / ".lock", 30, beat=10)
    message = r"process 1 on gone-7f9c, last sign of life (29|30|31) s ago.*its hold ends in (59|60|61) s"
    with pytest.raises(DoesNotFit, match=message), locked(tmp_path / ".lock"):
        pass
    hold(tmp_path / ".lock", 1e6)  # of a version that gave no sign of life
    with pytest.raises(DoesNotFit, match=r"if that host is gone, remove .*\.lock"), locked(tmp_path / ".lock"):
        pass


def test_a_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    file = tmp_path / ".lock"
    with locked(file):
        os.utime(file, (0, 0))
        for _ in range(200):
            if file.stat().st_mtime > 1e9:
                break
            time.sleep(0.02)
        assert file.stat().st_mtime > 1e9
    assert not any(thread.name == "studio-lock" for thread in threading.enumerate())


def put_link(file):
    (file.parent / "thesis.tex").write_text("all of it")
    file.symlink_to(file.parent / "thesis.tex")


@pytest.mark.parametrize(
    "put",
    [
        put_link,
        lambda file: file.symlink_to(file.parent / "nowhere"),
        os.mkfifo,
        lambda file: file.mkdir(),
        lambda file: file.write_text("somebody's notes"),
        lambda file: file.write_text("[" * 100_000),
        lambda file: file.write_bytes(b"\xff\xfe\x00"),
    ],
    ids=["link", "dangling link", "pipe", "folder", "notes", "nested", "bytes"],
)
def test_what_is_not_the_studios_is_left_alone(tmp_path, put):
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / ".lock"
    put(file)
    kind = file.lstat().st_mode
    with pytest.raises(BadFile, match=r"\.lock is not the studio's"), claim(tmp_path / "run"):
        pass
    assert file.lstat().st_mode == kind
    for thesis in (tmp_path / "run").glob("thesis.tex"):
        assert thesis.read_text() == "all of it"


@pytest.mark.parametrize(
    "text", ["", '{"pid"', '{"pid": 12, "sta', "\0" * 64, '{"pid": ' + "[" * 60_000, '{"pid": "x"}']
)
def test_a_lock_that_its_writer_died_over_holds_nothing(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    with locked(tmp_path / ".lock"):
        pass


def test_a_race_has_one_winner_and_the_right_sentence_for_the_others(tmp_path):
    """The loser read "cannot write": the winner's probe file had just been removed."""
    said, won = [], []
    for trial in range(15):
        start = threading.Barrier(5)

        def take(folder=tmp_path / str(trial) / "run", start=start):
            start.wait()
            try:
                with claim(folder):
                    won.append(folder)
                    (folder / "run.toml").touch()
                    time.sleep(0.01)
                    raise ZeroDivisionError  # the winner fails and clears up while the others look
            except (DoesNotFit, BadFile) as problem:
                said.append(str(problem))
            except ZeroDivisionError:
                pass

        threads = [threading.Thread(target=take) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(won)) == 15 and len(won) + len(said) == 75
    assert all("is still going on" in sentence for sentence in said), set(said)
    assert not [file for file in tmp_path.rglob("*") if not file.is_dir()]


def test_an_output_that_links_nowhere_is_called_so(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    with pytest.raises(BadFile, match=r"is a link to .*gone, which is not there"), claim(tmp_path / "run"):
        pass


@pytest.mark.parametrize("before", ["", '{"pid": 1, "started": "1 boot", "host": "HERE"}'])
def test_a_lock_that_cannot_be_written_is_not_left_behind(tmp_path, monkeypatch, before):
    file = tmp_path / ".lock"
    if before:
        file.write_text(before.replace("HERE", HERE))

    def full(*given):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(lock, "_write", full)
    with pytest.raises(OSError, match="full"), locked(file):
        pass
    assert not list(tmp_path.iterdir())


def test_an_interruption_at_the_very_end_leaves_no_lock(tmp_path, monkeypatch):
    whole, asked = Path.unlink, []

    def unlink(file, **options):
        if not asked:
            asked.append(file)
            raise KeyboardInterrupt
        whole(file, **options)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / ".lock"):
        pass
    assert asked and not list(tmp_path.iterdir())
