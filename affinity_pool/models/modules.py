"""What a patch does to modules, and how all of it is undone.

Two things: a function around one module's ``forward``, and a class of its own for every module concerned, derived from
the module's class and named like it. With the class come

- hooks that run before the module is called, and so before what its own class or hooks do then: outside of gradient
  checkpointing, which runs a layer again in the backward pass, and outside of FSDP's casts;
- copies and pickles come out as if there were no patch, whichever module is copied, and need no affinity_pool to load;
- code that torch compiled without the hooks, or with them, is not used for the module any more, neither after patching
  nor after removing: compiled code is guarded by the classes of modules, not by their hooks.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

HookResult = tuple[tuple[Any, ...], dict[str, Any]] | None
Hook = Callable[[Any, tuple[Any, ...], dict[str, Any]], HookResult]
"""Of a module, its positional and its keyword arguments; what to call it with instead, None: with the same."""


class PatchedModule(nn.Module):
    """A module of a patched model."""

    _affinity_pool: Changes
    _affinity_pool_hooks: tuple[list[Hook], ...]
    """Of each patch that the module belongs to, the last first; a list is empty once its patch is off."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kind = type(self)
        if not issubclass(kind, PatchedModule):  # the patch is off, and torch.compile has kept this method
            return kind.__call__(self, *args, **kwargs)
        for hooks in kind._affinity_pool_hooks:
            for hook in hooks:
                args, kwargs = hook(self, args, kwargs) or (args, kwargs)
        return super().__call__(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        made, (kind, *rest), state, *more = reduced
        if _unpatched(kind) is not kind:
            # not copyreg.__newobj__, which pickle allows for an object's present class alone
            made, kind, rest = copyreg._reconstructor, _unpatched(kind), [object, None]  # type: ignore[attr-defined]
        return made, (kind, *rest), type(self)._affinity_pool.without(self, state), *more


def _unpatched(kind: Any) -> Any:
    """A class as it was before any patch."""
    while "_affinity_pool" in vars(kind):
        kind = kind.__bases__[-1]
    return kind


def before_patches(module: nn.Module, hook: Callable[[], None]) -> Callable[[], None]:
    """Call ``hook()`` before the hooks that patches have put on a module; what is returned takes it off again.

    torch's own pre-hooks run behind those of patches.
    """
    assert isinstance(module, PatchedModule), "no patch has a hook there"
    hooks = type(module)._affinity_pool_hooks[0]

    def mark(*_: Any) -> None:
        hook()

    hooks.insert(0, mark)
    return lambda: hooks.remove(mark)


class Changes:
    """Everything that one patch has changed in modules."""

    def __init__(self) -> None:
        self.classes: dict[nn.Module, type[nn.Module]] = {}
        """The class of its own that each module has got; its last base is the one it had."""
        self._forward: tuple[nn.Module, Any, Any] | None = None

    @property
    def undone(self) -> bool:
        """Whether nothing of them is left."""
        return not self.classes

    def hook(self, module: nn.Module, hook: Hook) -> None:
        """Call ``hook(module, args, kwargs)`` before each call of a module; it may return what to call instead."""
        self._mark(module)
        self._hooks_of(module).append(hook)

    def follow(self, modules: Iterable[nn.Module]) -> None:
        """Move hooks out of what torch's checkpoint_wrapper has been put around since, which runs a module again."""
        for module in modules:
            inside: Any = module
            while module not in self.classes and "_checkpoint_wrapped_module" in inside._modules:  # hasattr is slow
                inside = inside._checkpoint_wrapped_module
                if inside in self.classes:
                    for hook in self._hooks_of(inside):
                        self.hook(module, hook)
                    self._hooks_of(inside).clear()

    def _hooks_of(self, module: nn.Module) -> list[Hook]:
        return vars(self.classes[module])["_affinity_pool_hooks"][0]

    def wrap(self, module: nn.Module, around: Callable[..., Any]) -> None:
        """Have ``around(forward)`` in place of a module's ``forward``: not a hook, for ``forward`` is called directly
        too, as peft does, and ends hooks do not see, such as Ctrl-C."""
        self._mark(module)
        before, wrapped = vars(module).get("forward"), around(module.forward)
        self._forward = (module, before, wrapped)
        module.forward = wrapped

    def without(self, module: nn.Module, state: Any) -> Any:
        """A copy of a module's state as it would be without the patch."""
        if not isinstance(state, dict):
            return state
        state = dict(state)
        if self._forward is not None and self._forward[0] is module and self._has_wrapped(state):
            _restore(state, self._forward[1])
        return state

    def undo(self) -> None:
        """Leave every module as it was. What has been changed on top since then, such as ``forward``, stays."""
        if self._forward is not None:
            module, before, _ = self._forward
            if self._has_wrapped(vars(module)):
                _restore(vars(module), before)
        for module, own in self.classes.items():
            self._hooks_of(module).clear()
            if type(module) is own:  # else others have derived a class of theirs from it
                module.__class__ = own.__bases__[-1]
        self._forward, self.classes = None, {}

    def _has_wrapped(self, state: dict[str, Any]) -> bool:
        """Whether the forward is the wrapped one, or a method of it: accelerate binds what was inside its own function
        to the model when it takes that off, a function or not."""
        assert self._forward is not None
        forward = state.get("forward")
        return getattr(forward, "__func__", forward) is self._forward[2]

    def _mark(self, module: nn.Module) -> None:
        if module in self.classes:
            return
        kind = type(module)
        bases = (kind,) if issubclass(kind, PatchedModule) else (PatchedModule, kind)
        names: dict[str, Any] = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        names |= {"_affinity_pool": self, "_affinity_pool_hooks": ([], *getattr(kind, "_affinity_pool_hooks", ()))}
        module.__class__ = self.classes[module] = type(kind.__name__, bases, names)


def _restore(state: dict[str, Any], forward: Any) -> None:
    if forward is None:
        del state["forward"]
    else:
        state["forward"] = forward


def changes_to(module: nn.Module) -> Changes | None:
    """Those of the patch that a module belongs to, if any."""
    changes = getattr(type(module), "_affinity_pool", None)
    return changes if changes is not None and module in changes.classes else None
