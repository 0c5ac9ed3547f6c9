"""Encoders wait in the CPU's memory while a run trains, and are where they compute for previews and at the end."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from studio.trainers.image import idle
from studio.trainers.image.idle import Idle


class Traveller(nn.Linear):
    """Notes where it goes, and stays."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.places: list[str] = []

    def to(self, device):
        self.places.append(str(device))
        return self


@pytest.fixture
def away(monkeypatch):
    freed = []
    monkeypatch.setattr(idle, "free_cache", freed.append)
    one = Traveller()
    return one, Idle([one], torch.device("meta")), freed


def test_modules_travel_and_come_back(away):
    one, waiting, freed = away
    waiting.put_away()
    waiting.put_away()
    assert one.places == ["cpu"] and freed == [torch.device("meta")]
    with waiting.at_hand():
        assert one.places == ["cpu", "meta"] and not waiting.away
    assert one.places == ["cpu", "meta", "cpu"] and waiting.away
    waiting.fetch()
    waiting.fetch()
    assert one.places == ["cpu", "meta", "cpu", "meta"]


def test_what_was_at_hand_stays_so(away):
    one, waiting, _ = away
    with pytest.raises(RuntimeError), waiting.at_hand():
        raise RuntimeError
    assert one.places == []


def test_nothing_moves_on_a_cpu():
    one = Traveller()
    waiting = Idle([one], torch.device("cpu"))
    waiting.put_away()
    with waiting.at_hand():
        pass
    waiting.fetch()
    assert one.places == []
