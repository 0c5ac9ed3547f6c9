"""What is given to a verb and is of no use there is refused in a sentence, before anything is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

import studio
from studio.errors import BadConfig, DoesNotFit, NoTargets, UnknownName, UsageError

LORA = studio.LoRA(rank=2, targets=("0",))

ASKED: dict[str, tuple[Callable[[Any], Any], type[UsageError], str]] = {
    "a word for a config": (lambda net: studio.attach(net, "lora"), BadConfig, "takes the config of a method.*'lora'"),  # type: ignore[arg-type]
    "a class for a config": (lambda net: studio.attach(net, studio.LoRA), BadConfig, "the class LoRA; call it"),  # type: ignore[arg-type]
    "a dict for a config": (lambda net: studio.attach(net, {"rank": 2}), BadConfig, "takes the config of a method"),  # type: ignore[arg-type]
    "a word for a model": (lambda net: studio.attach("net", LORA), DoesNotFit, "not on str .'net'."),
    "no model": (lambda net: studio.adapters(None), DoesNotFit, "not on NoneType"),
    "tensors for a model": (lambda net: studio.state(net.state_dict()), DoesNotFit, "not on OrderedDict"),
    "a component": (
        lambda net: studio.attach(net, LORA, components="unet"),
        NoTargets,
        "no component 'unet'.*by itself",
    ),
    "a list for a blend": (lambda net: studio.blend(net, ["a"]), BadConfig, "a table of names and strengths"),  # type: ignore[arg-type]
    "a number for a blend": (lambda net: studio.blend(net, 0.5), BadConfig, "a table of names and strengths"),  # type: ignore[arg-type]
    "a number for a name": (lambda net: studio.attach(net, LORA, name=5), BadConfig, "5 cannot name an adapter"),  # type: ignore[arg-type]
    "an unknown name": (lambda net: studio.detach(net, "dog"), UnknownName, "no adapter is named 'dog'"),
}


@pytest.mark.parametrize("what", ASKED)
def test_what_is_of_no_use_is_refused(what: str) -> None:
    ask, error, says = ASKED[what]
    net = nn.Sequential(nn.Linear(8, 8))
    names = list(net.state_dict())
    with pytest.raises(error, match=says):
        ask(net)
    assert list(net.state_dict()) == names and not studio.adapters(net)
