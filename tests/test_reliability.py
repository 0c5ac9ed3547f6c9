"""The attacks of benchmarks/reliability in their short form: no trial is a fault, and a fault would be found."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.reliability import __main__ as page  # noqa: E402
from benchmarks.reliability import data, disks, files, formats, kills, mutations, prompts  # noqa: E402
from benchmarks.reliability._forked import End, ran  # noqa: E402
from benchmarks.reliability._jobs import complaint, leftovers  # noqa: E402
from benchmarks.reliability.trial import attempt  # noqa: E402
from studio.errors import BadFile  # noqa: E402


def faults(trials):
    return [f"{trial.name}: {trial.fault}" for trial in trials if trial.fault]


def test_files_that_are_damaged_at_random_end_well(tmp_path):
    found = list(mutations.trials(tmp_path, long=False))
    assert len(found) == mutations.SHORT and faults(found) == []


def test_files_of_every_format_that_are_changed_at_random_end_well(tmp_path):
    """20,000 of them are slow (``test_every_attack_in_full``)."""
    found = list(formats.trials(tmp_path, long=False))
    assert len(found) > formats.SHORT and faults(found) == [] and formats.LONG == 20_000


def test_a_wrong_result_would_be_found():
    """The formulas are not those of the studio: a change that is left out, or of twice the strength, is a fault."""
    world = formats.goods()[0].world
    tensors = formats.goods()[0].tensors
    content = formats.packed(tensors)
    with torch.no_grad():
        assert "has no meaning" not in formats.right(world, content, Applied(tensors))
        assert "computes something else" in formats.right(world, content, Applied(tensors))
        assert "silently" in formats.right(world, content, Applied(dict(list(tensors.items())[:-1])))
    assert "no meaning" in formats.right(world, formats.packed({**tensors, "x": torch.ones(1)}), Applied(tensors))


class Applied:
    """A report of a load that did nothing."""

    def __init__(self, tensors):
        self.applied, self.ignored, self.sites = tuple(tensors), {}, ()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, calls refused as Linux does it")
@pytest.mark.parametrize("attack", [kills, disks], ids=["kills", "disks"])
def test_processes_that_are_ended_or_refused_the_disk_end_well(tmp_path, attack):
    assert faults(attack.trials(tmp_path, long=False)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="pipes, devices and links of Linux")
@pytest.mark.parametrize(("attack", "least"), [(data, 80), (prompts, 80)], ids=["data", "prompts"])
def test_what_is_given_and_what_is_asked_ends_well(tmp_path, attack, least):
    found = list(attack.trials(tmp_path, long=False))
    assert len(found) >= least and faults(found) == []


@pytest.mark.slow
@pytest.mark.parametrize("attack", list(page.attacks()), ids=lambda attack: attack.__name__.rpartition(".")[2])
def test_every_attack_in_full(tmp_path, attack):
    assert faults(attack.trials(tmp_path, long=True)) == []


def test_headers_and_numbers_made_by_hand(tmp_path):
    """A part of the attack by hand; all of it is slow."""
    made = [one for group in (files.stated, files.tables, files.alphas, files.not_finite) for one in group()]
    trials = [attempt(name, lambda n=n, one=one: one(tmp_path / str(n))) for n, (name, one) in enumerate(made)]
    assert len(trials) > 100 and faults(trials) == []


def wrong():
    raise KeyError("x")


def refusing():
    raise BadFile("no")


def waiting():
    end = time.process_time() + 30
    while time.process_time() < end:
        pass
    return ""


@pytest.mark.parametrize(
    ("action", "says"),
    [(wrong, "KeyError"), (refusing, ""), (lambda: "silently wrong", "silently wrong"), (lambda: "", "")],
)
def test_what_counts_as_a_fault(action, says):
    fault = attempt("x", action).fault
    assert (says in fault) if says else fault == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_how_a_process_ended():
    assert "KeyError" in ran(wrong).unsaid and ran(lambda: sys.exit(7)).code == 7
    stopped = ran(lambda: os.kill(os.getpid(), signal.SIGSTOP))
    assert (stopped.code, stopped.unsaid) == (-signal.SIGKILL, "")
    loud = ran(lambda: print("x" * 200_000, file=sys.stderr))
    assert (loud.code, len(loud.said)) == (0, 200_001)


@pytest.mark.parametrize(
    ("code", "said", "right"),
    [
        (2, "error: cannot write /a/b: full\n", True),
        (2, "step 1\nerror: cannot write /a/b: full\n", True),
        (2, "error: it is full\n", False),
        (2, "error: cannot write /a/b: full\nerror: cannot write /a/b: full\n", False),
        (1, "error: cannot write /a/b: full\n", False),
        (2, "Traceback (most recent call last):\nerror: cannot write /a/b: full\n", False),
        (2, "", False),
    ],
)
def test_what_counts_as_a_sentence(code, said, right):
    assert (complaint(End(code, said, 0.0, 0), Path("/a")) == "") is right


def test_what_counts_as_left_behind(tmp_path):
    assert leftovers(tmp_path) == ""
    (tmp_path / "deep").mkdir()
    for name in (".x.png.0123abcd.tmp", ".lock", ".room"):
        (tmp_path / "deep" / name).touch()
        assert name in leftovers(tmp_path)
        (tmp_path / "deep" / name).unlink()


def test_what_hangs_is_ended(monkeypatch):
    monkeypatch.setattr("benchmarks.reliability.trial.CPU", 0.3)
    trial = attempt("x", waiting)
    assert "hung" in trial.fault and trial.seconds < 5


def test_the_page_keeps_the_rows_of_attacks_that_were_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "PAGE", tmp_path / "reliability.md")
    done = [attempt("x", lambda: "")]
    page.write({"one": page.row("one", done)})
    page.write({"two": page.row("two", done)})
    page.write({"one": page.row("one", done * 2)})
    lines = (tmp_path / "reliability.md").read_text().splitlines()
    assert [line.split("|")[1:4] for line in lines[-2:]] == [[" one ", " 2 ", " 0 "], [" two ", " 1 ", " 0 "]]
