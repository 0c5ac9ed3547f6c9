"""Files are there completely or not at all."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import textwrap

import pytest

from studio.atomic import atomic_folder, atomic_path, atomic_write, together
from studio.errors import BadFile


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_bytes_and_text_are_written_as_they_are(tmp_path):
    atomic_write(tmp_path / "a" / "b.bin", b"\x00\r\n")
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"\x00\r\n"
    atomic_write(tmp_path / "a" / "c.txt", "dé\n")
    assert (tmp_path / "a" / "c.txt").read_bytes() == "dé\n".encode()
    assert names(tmp_path / "a") == ["b.bin", "c.txt"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_after_an_exception_the_old_file_stands_and_nothing_else(tmp_path, kind):
    file = tmp_path / "adapter.safetensors"
    file.write_bytes(b"old")
    with pytest.raises(kind), atomic_path(file) as temporary:
        temporary.write_bytes(b"half of the ne")
        assert temporary.parent == file.parent
        raise kind
    assert file.read_bytes() == b"old"
    assert names(tmp_path) == ["adapter.safetensors"]


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path):
    file = tmp_path / "state.bin"
    file.write_bytes(b"old")
    code = f"""
        import os, signal
        from studio.atomic import atomic_path
        with atomic_path({str(file)!r}) as temporary:
            temporary.write_bytes(b"x" * 100)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=60)
    assert result.returncode == -9
    assert file.read_bytes() == b"old"
    assert not [name for name in names(tmp_path) if name != "state.bin" and not name.endswith(".tmp")]
    atomic_write(file, b"new")  # what the killed one left goes with the next writing of the same file
    assert names(tmp_path) == ["state.bin"]


def test_the_permissions_are_those_of_a_plain_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    atomic_write(tmp_path / "ours", b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left on the device"),
        (errno.EDQUOT, "no space left in your quota"),
        (errno.EACCES, "not writable for you"),
        (errno.EROFS, "read-only"),
    ],
)
def test_the_reason_is_a_sentence(tmp_path, number, words):
    with pytest.raises(BadFile) as error, atomic_path(tmp_path / "x.bin"):
        raise OSError(number, os.strerror(number))
    assert str(error.value).startswith(f"cannot write {tmp_path / 'x.bin'}: ") and words in str(error.value)
    assert names(tmp_path) == []


def test_a_full_disk_is_one_sentence(tmp_path):
    if not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("there is no /dev/full")
    with pytest.raises(BadFile, match="no space left"), atomic_path(tmp_path / "x.bin") as temporary:
        temporary.unlink()
        temporary.symlink_to("/dev/full")  # whatever is written there finds the disk full
        temporary.write_bytes(b"x")
    assert names(tmp_path) == []


def test_errors_about_other_files_pass_through(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "x.bin"):
        open("/no/such/input")  # noqa: PTH123, SIM115
    with pytest.raises(PermissionError), atomic_path(tmp_path / "x.bin"):
        raise PermissionError(errno.EACCES, "no", "/another/file")


def test_impossible_places_are_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadFile, match="a part of that path is a file, not a folder"):
        atomic_write(tmp_path / "file" / "x.bin", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadFile, match="that is a folder: name a file"):
        atomic_write(tmp_path / "folder", b"")
    with pytest.raises(BadFile, match="name is too long"):
        atomic_write(tmp_path / ("x" * 300), b"")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the administrator may write everywhere")
def test_an_unwritable_folder_is_named(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(BadFile, match="not writable for you"):
        atomic_write(locked / "x.bin", b"")


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(target) as temporary:
        (temporary / "new.txt").write_text("new")
        raise RuntimeError
    assert names(tmp_path) == ["adapter"] and names(target) == ["old.txt"]
    with atomic_folder(target) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "new.txt").write_text("new")
    assert names(tmp_path) == ["adapter"] and names(target) == ["deep"]
    assert (target / "deep" / "new.txt").read_text() == "new"


def test_what_stands_in_the_way_is_named_for_what_it_is(tmp_path):
    (tmp_path / "away").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadFile, match=r"away is a link to .*nowhere, which is not there"):
        atomic_write(tmp_path / "away" / "x.png", "x")
    with pytest.raises(BadFile, match="that is a device or a pipe"):
        atomic_write(tmp_path / "pipe", "x")
    atomic_write(tmp_path / "away", "x")  # a link to a file is replaced like any file
    assert (tmp_path / "away").read_text() == "x" and not (tmp_path / "nowhere").exists()


def test_a_name_as_long_as_the_system_allows(tmp_path):
    for name in ("a" * 255, "写" * 85, "é" * 127):
        atomic_write(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"
    with pytest.raises(BadFile, match="the name is too long"):
        atomic_write(tmp_path / ("写" * 90), "x")


def test_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    atomic_write("~/new/note.txt", "x")
    with atomic_folder("~/folder") as temporary:
        (temporary / "a").write_text("x")
    assert (tmp_path / "new" / "note.txt").is_file() and (tmp_path / "folder" / "a").is_file()


def test_only_what_dead_writers_of_the_same_file_left_goes(tmp_path):
    for name in (".a.bin.0123abcd.tmp", ".ab.bin.0123abcd.tmp", ".a.bin.0123abcd.tmp.tmp", ".a.bin.mine.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".folder.0123abcd.tmp").mkdir()
    (tmp_path / ".folder.0123abcd.tmp" / "half").touch()
    with atomic_path(tmp_path / "a.bin") as living, atomic_folder(tmp_path / "folder") as alive:
        atomic_write(tmp_path / "a.bin", b"other")
        with atomic_folder(tmp_path / "folder"):
            pass
        assert living.exists() and alive.is_dir()
        living.write_bytes(b"last")
    assert (tmp_path / "a.bin").read_bytes() == b"last"
    assert names(tmp_path) == [".a.bin.0123abcd.tmp.tmp", ".a.bin.mine.tmp", ".ab.bin.0123abcd.tmp", "a.bin", "folder"]


@pytest.mark.parametrize("there", ["nothing", "the first", "both"])
@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("links", [True, False])
def test_files_that_belong_together_come_together(tmp_path, monkeypatch, there, failing, links):
    before = {name: b"old" for name in {"nothing": (), "the first": ("1",), "both": ("1", "2")}[there]}
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    whole, calls = os.replace, []

    def replace(source, target, **more):
        calls.append(target)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, "full", str(target))
        whole(source, target, **more)

    def refuse(*given, **more):
        raise OSError(errno.EPERM, "no such links here")

    monkeypatch.setattr(os, "replace", replace)
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(BadFile, match=f"cannot write {tmp_path / str(failing)}: no space left"), together():
        atomic_write(tmp_path / "1", "new")
        atomic_write(tmp_path / "2", "new")
        assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    with together():
        atomic_write(tmp_path / "1", "new")
        atomic_write(tmp_path / "2", "new")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"1": b"new", "2": b"new"}
