"""The hooks of one stack: soft prompts before its input, and positions that count the virtual tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias, cast

import torch
from torch import Tensor, nn

from studio.adapters.sites.language import CACHE, Stack
from studio.adapters.tokens.contract import PromptAdapter
from studio.adapters.tokens.layout import Layout, counted
from studio.adapters.tokens.state import Coefficient, TokenState
from studio.errors import DoesNotFit

__all__ = ["StackWire", "named"]

Prompts: TypeAlias = Sequence[tuple[str, PromptAdapter, Coefficient]]
"""Name, adapter and strength of soft prompts."""

TAG: Final = "_studio_prompts"
KNOWN: Final = (
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "position_ids",
    "token_type_ids",
    "encoder_hidden_states",
)
"""Arguments of a stack whose second axis may be its tokens."""


_ONE_LENGTH: Final = (
    "a static cache has no room for a soft prompt, which is longer than the text: use cache_implementation='dynamic'"
)


def named(names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all arguments of a call by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


class StackWire:
    """The hooks of one stack: prompts before its input, and positions that count the virtual tokens."""

    def __init__(self, state: TokenState, stack: Stack) -> None:
        self.state, self.stack = state, stack
        self.layout: Layout | None = None
        self.tag: tuple[Any, int] | None = None
        self.cache: tuple[Any, Any] | None = None

    def before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Changes what the stack is called with."""
        self.layout, self.tag, self.cache = None, None, None
        self.state.forget()
        given = named(self.stack.names, args, kwargs)
        self._check_cache(given)
        changed = self._prepend(given)
        changed = self._widen_cross(given) or changed
        changed = self._shift(given) or changed
        return ((), given) if changed else None

    # -- soft prompts ------------------------------------------------------------------------------------------------

    def _signature(self) -> tuple[tuple[str, int], ...]:
        return tuple((name, adapter.count) for name, adapter, _ in self.state.prompts(self.stack.role))

    def _check_cache(self, given: dict[str, Any]) -> None:
        """A cache that was begun under other prompts than now act continues nothing."""
        past = given.get(CACHE)
        if past is None or not past.get_seq_length():
            return
        held, now = past.__dict__.get(TAG, ((), 0))[0], self._signature()
        if held != now:
            raise DoesNotFit(
                f"the cache was begun with the soft prompts {_listed(held)}, and now {_listed(now)} act; go on with "
                "the same blend, or begin with an empty cache"
            )

    @staticmethod
    def _everywhere(prompts: Prompts) -> bool:
        """Whether all act in all rows."""
        return all(bool((number != 0).all()) for _, _, number in prompts if isinstance(number, Tensor))

    def _on(self, prompts: Prompts, batch: int, device: torch.device) -> Tensor:
        """Which virtual tokens act in which row ``(B, M)``."""
        columns = [
            (self.state.rows(number, batch, device) != 0)[:, None].expand(batch, adapter.count)
            for _, adapter, number in prompts
        ]
        return torch.cat(columns, dim=1)

    def _prepend(self, given: dict[str, Any]) -> bool:
        prompts = self.state.prompts(self.stack.role)
        if not prompts:
            return False
        self.state.note_called()
        text = given.get("inputs_embeds")
        if text is None:
            text = self.stack.embedding(given["input_ids"])
        (batch, length), device = text.shape[:2], text.device
        on = self._on(prompts, batch, device)
        mask = _flat_mask(given.get("attention_mask"))
        past = given.get(CACHE)
        if past is not None and past.is_compileable:
            raise DoesNotFit(_ONE_LENGTH)
        seen = 0 if past is None else int(past.get_seq_length())
        self.state.check_room(self.stack, length + max(0, seen - on.shape[1]), on.shape[1])
        how = {"counted": self._takes_positions, "everywhere": self._everywhere(prompts)}
        if seen:
            began = past.__dict__[TAG][1]
            layout = Layout(on, began, None if mask is None else mask[:, :began], **how)
            self._go_on(given, layout, seen, length, mask)
            return True
        _check_known(given, batch, length)
        self._begin(given, Layout(on, length, mask, **how), prompts, text)
        return True

    def labelled(self, given: Mapping[str, Any], *, shifted: bool) -> Tensor | None:
        """Returns the labels for all columns that come out, where they are more than came in; None where they are not.

        Args:
            given: the call of the model. shifted: as in :meth:`Layout.labels`.
        """
        prompts, past, labels = self.state.prompts(self.stack.role), given.get(CACHE), given.get("labels")
        text = given.get("input_ids") if given.get("inputs_embeds") is None else given["inputs_embeds"]
        if not (prompts and self.whole and isinstance(labels, Tensor) and isinstance(text, Tensor)):
            return None
        if labels.shape != text.shape[:2] or (past is not None and past.get_seq_length()):
            return None
        on, mask = self._on(prompts, len(text), text.device), _flat_mask(given.get("attention_mask"))
        layout = Layout(on, text.shape[1], mask, everywhere=self._everywhere(prompts))
        return layout.labels(labels, shifted=shifted)

    @property
    def whole(self) -> bool:
        """Whether the columns of virtual tokens come out: never to a classifier, which reads one place of the text."""
        return self.state.whole and self.stack.alone and not self._pools_outside()

    def _begin(
        self,
        given: dict[str, Any],
        layout: Layout,
        prompts: Prompts,
        text: Tensor,
    ) -> None:
        """The first tokens: the prompts are put before their embeddings ``text`` ``(B, L, width)``."""
        (batch, length), device = text.shape[:2], text.device
        tasks = self.state.task_of(batch, device)
        virtual = torch.cat(
            [
                cast(Tensor, adapter(type(adapter).before, self.stack.role, batch, tasks)).to(device, text.dtype)
                for _, adapter, _ in prompts
            ],
            dim=1,
        )
        given["inputs_embeds"], given["input_ids"] = layout.place(virtual, text), None
        given["attention_mask"] = layout.mask
        if given.get("token_type_ids") is not None:
            types = given["token_type_ids"]
            given["token_type_ids"] = layout.place(types.new_zeros(batch, layout.virtual), types.expand(batch, length))
        if given.get("position_ids") is not None:
            given["position_ids"] = layout.positions(given["position_ids"])
        elif layout.order is not None and self._takes_positions:
            given["position_ids"] = counted(cast(Tensor, layout.mask))
        self.layout, self.tag = layout, (self._signature(), length)

    def _go_on(self, given: dict[str, Any], layout: Layout, seen: int, length: int, mask: Tensor | None) -> None:
        """Later tokens: the prompts are in the cache, only the mask and the positions have to count them."""
        text = seen - layout.virtual + length
        if mask is not None and mask.shape[1] != text:
            raise DoesNotFit(f"the attention_mask has {mask.shape[1]} columns, and cache and input have {text} tokens")
        if mask is not None or layout.mask is not None:
            batch = layout.on.shape[0]
            whole = torch.ones(batch, text, dtype=torch.long, device=layout.on.device) if mask is None else mask
            first = layout.place(layout.on, whole[:, : layout.length])
            given["attention_mask"] = torch.cat([first, whole[:, layout.length :]], dim=1)
        if given.get("position_ids") is not None:
            given["position_ids"] = given["position_ids"] + layout.ahead
        elif layout.order is not None and self._takes_positions:
            given["position_ids"] = counted(given["attention_mask"])[:, -length:]

    @property
    def _takes_positions(self) -> bool:
        return self.stack.role == "decoder" and "position_ids" in self.stack.names

    def _widen_cross(self, given: dict[str, Any]) -> bool:
        """A decoder reads the prompts of its encoder too: its mask of the encoder's states has to count them."""
        prompts = [] if self.stack.alone or self.stack.role == "encoder" else self.state.prompts("encoder")
        states = given.get("encoder_hidden_states")
        if not prompts or states is None:
            return False
        self.state.note_called()
        on = self._on(prompts, states.shape[0], states.device)
        length, mask = states.shape[1] - on.shape[1], _flat_mask(given.get("encoder_attention_mask"))
        if length < 0 or (mask is not None and mask.shape[1] != length):
            would = on.shape[1] + (0 if mask is None else mask.shape[1])
            raise DoesNotFit(
                f"the encoder's states have {states.shape[1]} positions, text and {on.shape[1]} virtual tokens would "
                f"have {would}: they were computed without the soft prompt"
            )
        given["encoder_attention_mask"] = Layout(on, length, mask, everywhere=self._everywhere(prompts)).mask
        return True

    # -- prefixes ----------------------------------------------------------------------------------------------------

    def _shift(self, given: dict[str, Any]) -> bool:
        """Positions go on behind a prefix, as PEFT counts them."""
        prefixes = self.state.prefixes(self.stack.role)
        if not prefixes or (self.stack.role == "encoder" and not self.stack.alone):
            return False
        text = given["input_ids"] if given.get("inputs_embeds") is None else given["inputs_embeds"]
        (batch, length), device = text.shape[:2], text.device
        cpu = torch.device("cpu")
        ahead = torch.stack(
            [(self.state.rows(number, batch, cpu) != 0) * adapter.count for _, adapter, number in prefixes]
        ).sum(0)
        past = given.get(CACHE)
        seen = 0 if past is None else int(past.get_seq_length())
        self.state.check_room(self.stack, seen + length, int(ahead.max()))
        if self.state.site.context is None:
            return False  # relative positions: the attention counts its keys
        mask, rows = given.get("attention_mask"), ahead[:, None].to(device)
        if given.get("position_ids") is not None:
            given["position_ids"] = given["position_ids"] + rows
        elif "position_ids" in self.stack.names and not self.state.site.reserved:
            base = torch.arange(seen, seen + length, device=device)[None]
            if mask is not None and mask.dim() == 2 and self.stack.role == "decoder":
                base = counted(mask)[:, -length:]
            given["position_ids"] = base + rows
        else:
            self._shift_by_cache(given, ahead)
        return True

    def _shift_by_cache(self, given: dict[str, Any], ahead: Tensor) -> None:
        """A stack without position_ids counts from the length of its cache."""
        from studio.adapters.tokens.caches import shifted

        if bool((ahead != ahead[0]).any()):
            raise DoesNotFit(
                f"{type(self.stack.module).__name__} takes no position_ids, so a prefix cannot be on in some rows of a "
                "batch and off in others; call it once for each"
            )
        past = given.get(CACHE)
        given[CACHE] = shifted(past, int(ahead[0]), encoder_decoder=not self.stack.alone)
        kept = given.get("use_cache")
        kept = getattr(cast(Any, self.stack.module).config, "use_cache", False) if kept is None else kept
        self.cache = given[CACHE], given[CACHE].held if past is None and kept else past

    # -- what comes out ----------------------------------------------------------------------------------------------

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Gives the caller back as many tokens as came in (or all columns), and a cache that knows its prompts."""
        layout, tag, cache = self.layout, self.tag, self.cache
        self.layout, self.tag, self.cache = None, None, None
        if cache is not None:
            output = _replaced(output, lambda value: cache[1] if value is cache[0] else value)
        if tag is not None:
            _tag(output, tag)
        if layout is None or (self.stack.role == "encoder" and (not self.stack.alone or self._pools_outside())):
            return output
        return _replaced(output, functools.partial(_taken, layout, layout.shown if self.whole else layout.text))

    def _pools_outside(self) -> bool:
        """A classifier on an encoder reads the first position, which is the first virtual token's, as in PEFT."""
        root = self.state.site.module
        return (
            root is not self.stack.module
            and "Classification" in type(root).__name__
            and "Token" not in type(root).__name__
        )


def _listed(prompts: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{name!r} ({count} tokens)" for name, count in prompts) or "none"


def _flat_mask(mask: Any) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise DoesNotFit("a soft prompt needs an attention_mask of shape (rows, tokens)")
    return mask


def _check_known(given: Mapping[str, Any], batch: int, length: int) -> None:
    """Arguments with one entry per token that are not known cannot be brought to the new length."""
    for name, value in given.items():
        if name in KNOWN or name.startswith("encoder_") or not isinstance(value, Tensor):
            continue
        if length > 1 and tuple(value.shape[:2]) == (batch, length):
            raise DoesNotFit(
                f"{name} seems to have one entry per token {tuple(value.shape)}; what it should be for virtual tokens "
                "is not known, so soft prompts cannot be used with it"
            )


def _tag(output: Any, tag: tuple[Any, int]) -> None:
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    for value in values:
        if hasattr(value, "get_seq_length"):
            value.__dict__.setdefault(TAG, tag)


def _replaced(output: Any, change: Any) -> Any:
    """The same output with every value changed."""
    if isinstance(output, Mapping):
        for name, value in list(output.items()):
            new = change(value)
            if new is not value:
                cast(Any, output)[name] = new
        return output
    if isinstance(output, tuple):
        return tuple(change(value) for value in output)
    return change(output)


def _taken(layout: Layout, take: Callable[[Tensor], Tensor], value: Any) -> Any:
    """What ``take`` takes out of states ``(B, M + L, ...)`` or attention weights ``(B, heads, M + L, keys)``."""
    if isinstance(value, (tuple, list)):
        return type(value)(_taken(layout, take, entry) for entry in value)
    whole = layout.virtual + layout.length
    if isinstance(value, Tensor) and value.dim() == 3 and value.shape[1] == whole:
        return take(value)
    if isinstance(value, Tensor) and value.dim() == 4 and value.shape[2] == whole:
        return take(value.transpose(1, 2)).transpose(1, 2)
    return value
