"""The real Python bindings of several TensorRT versions, as a contract to hold calls against.

They are imported over stub libraries compiled here, so classes, enums and signatures are those of
each version, with nothing behind them. `unittest.mock.create_autospec` would check no more than
names, because methods made by pybind11 have no signature that Python can see. It stands in their
docstrings, as in

    set_tensor_address(self: tensorrt.IExecutionContext, name: str, memory: int) -> bool

and the stand-ins of this file check every call against it: that the method exists, the number,
keywords and types of its arguments, that a property exists and may be set. What they answer
follows the return type, or the script of the test.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from wheels import compile_c, facade, unpacked

from padim_edge.runtime import nvidia

BINDINGS = {
    "10.3.0": "tensorrt-cu12-bindings==10.3.0",
    "10.13.3.9": "tensorrt-cu12-bindings==10.13.3.9",
    "10.16.1.11": "tensorrt-cu12-bindings==10.16.1.11",
    "11.4.0.106": "tensorrt-cu13-bindings==11.4.0.106",
}

# Classes that callers derive from: the real ones are used, whose constructors work on stubs.
INTERFACES = {"ILogger", "IProgressMonitor"}

PRODUCT = ("tensorrt", "builder", "plan")


def assemble(version: str, folder: Path) -> Path:
    """Make `import tensorrt` work from a folder, over stubs."""
    bindings = facade("tensorrt", unpacked(BINDINGS[version]), folder)
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        compile_c("nvinfer_stub.c", bindings / f"lib{library}.so.{version.split('.')[0]}")
    return folder


# --- signatures -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overload:
    """One of the signatures in a docstring."""

    parameters: inspect.Signature
    types: dict[str, str]
    returns: str


def overloads(docstring: str, name: str) -> list[Overload]:
    """The signatures of a method in its docstring; of a property's accessor with no name."""
    pattern = rf"^(?:\d+\. )?{re.escape(name)}\((?!\*args)(.*)\) -> (.*?)\s*$"
    found = []
    for arguments, returns in re.findall(pattern, docstring, re.MULTILINE):
        parameters, types = [], {}
        for text in list(_split(arguments))[1:]:  # without self
            declared, _, default = text.partition(" = ")
            parameter, _, kind = declared.partition(": ")
            types[parameter] = kind
            parameters.append(
                inspect.Parameter(
                    parameter,
                    # what pybind11 calls arg0 has no keyword
                    inspect.Parameter.POSITIONAL_ONLY
                    if re.fullmatch(r"arg\d+", parameter)
                    else inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    default=default or inspect.Parameter.empty,
                )
            )
        found.append(Overload(inspect.Signature(parameters), types, returns))
    if not found:
        raise LookupError(f"no signature of '{name}' in: {docstring}")
    return found


def _split(arguments: str) -> Iterator[str]:
    """Parts between commas that are in no bracket."""
    depth, part = 0, ""
    for letter in arguments:
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and not depth:
            yield part.strip()
            part = ""
        else:
            part += letter
    if part.strip():
        yield part.strip()


# --- stand-ins ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """What was called, and with what."""

    name: str
    arguments: dict[str, Any]


class World(ModuleType):
    """A module `tensorrt` that records all calls and lets nothing pass that the real one lacks.

    Args:
        answers: by "Class.method" or "Class.property": a value, an exception to raise, or a
            function of the call's arguments.
    """

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__("tensorrt")
        self.real = import_module("tensorrt_bindings")
        self.__version__ = self.real.__version__
        self.answers = answers
        self.calls: list[Call] = []
        self.subject: Thing | None = None  # whose method is being called

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.real, name)
        if not isinstance(value, type) or hasattr(value, "__members__") or name in INTERFACES:
            return value
        return Kind(self, value)

    def named(self, name: str) -> list[dict[str, Any]]:
        """Arguments of all calls of a method."""
        return [call.arguments for call in self.calls if call.name == name]

    def call(self, name: str, known: list[Overload], args: Any, kwargs: Any) -> Any:
        """Check a call, record it and answer it."""
        problems = []
        for overload in known:
            try:
                bound = overload.parameters.bind(*args, **kwargs).arguments
                for parameter, value in bound.items():
                    if not self.accepts(overload.types[parameter], value):
                        raise TypeError(
                            f"{parameter} is {value!r}, not {overload.types[parameter]}"
                        )
            except TypeError as error:
                problems.append(str(error))
            else:
                self.calls.append(Call(name, bound))
                return self.answer(name, overload.returns, bound)
        raise TypeError(f"{name} of TensorRT {self.__version__}: {'; '.join(problems)}")

    def answer(self, name: str, returns: str, arguments: dict[str, Any]) -> Any:
        """The script's answer, or one that the return type allows."""
        if name in self.answers:
            answer = self.answers[name]
            if isinstance(answer, Exception):
                raise answer
            return answer(**arguments) if callable(answer) else answer
        short = _short(returns)
        if short in ("bool", "int", "str", "None"):
            return {"bool": True, "int": 0, "str": "", "None": None}[short]
        kind = getattr(self.real, short, None)
        if kind is None or hasattr(kind, "__members__") or short == "Dims":
            raise LookupError(f"{name} returns {returns}: the test has to say what")
        return Thing(self, kind)

    def accepts(self, kind: str, value: Any) -> bool:
        """Whether pybind11 would take a value for an annotation."""
        short = _short(kind)
        if short == "Dims":
            return isinstance(value, (tuple, list)) and all(type(side) is int for side in value)
        plain = {"int": int, "SupportsInt": int, "str": str, "bool": bool, "tuple": tuple,
                 "list": list, "buffer": bytes, "Buffer": bytes, "object": object}  # fmt: skip
        if short in plain:
            # pybind11 takes whatever counts as a number; that a bool or an array does, too,
            # would hide a mistake.
            return type(value) is plain[short] or plain[short] is object
        expected = getattr(self.real, short, None)
        if expected is None:
            raise LookupError(f"nothing is known of the type {kind}")
        real = object.__getattribute__(value, "real") if isinstance(value, Thing) else type(value)
        return issubclass(real, expected)


def _short(kind: str) -> str:
    """int of typing.SupportsInt, Dims of tensorrt_bindings.tensorrt.Dims, ParserError of C++."""
    name = re.split(r"\.|::", kind)[-1]
    return {"IParserError": "ParserError"}.get(name, name)


@dataclass(frozen=True)
class Kind:
    """A class that can be called."""

    world: World
    real: type

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        known = overloads(self.real.__init__.__doc__ or "", "__init__")
        self.world.call(self.real.__name__, known, args, kwargs)
        return Thing(self.world, self.real)


class Thing:
    """An instance: what its class has, and nothing else. That it is freed is recorded as ~Class."""

    def __init__(self, world: World, real: type) -> None:
        object.__setattr__(self, "world", world)
        object.__setattr__(self, "real", real)
        object.__setattr__(self, "values", {})

    def __getattr__(self, name: str) -> Any:
        member = self._member(name)
        if name in self.values:
            return self.values[name]
        full = f"{self.real.__name__}.{name}"
        if isinstance(member, property):
            known = overloads(member.fget.__doc__ or "", "")
            return self.world.answer(full, known[0].returns, {})
        known = overloads(member.__doc__ or "", name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.world.subject = self
            try:
                return self.world.call(full, known, args, kwargs)
            finally:
                self.world.subject = None  # or it would live on

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        member = self._member(name)
        if not isinstance(member, property) or member.fset is None:
            raise AttributeError(f"{self.real.__name__}.{name} cannot be set")
        known = overloads(member.fset.__doc__ or "", "")
        self.world.call(f"{self.real.__name__}.{name} =", known, (value,), {})
        self.values[name] = value

    def _member(self, name: str) -> Any:
        try:
            return inspect.getattr_static(self.real, name)
        except AttributeError:
            raise AttributeError(
                f"{self.real.__name__} of TensorRT {self.world.__version__} has no '{name}'"
            ) from None

    def __str__(self) -> str:
        return str(self.world.answer(f"{self.real.__name__}.__str__", "str", {}))

    def __del__(self) -> None:
        self.world.calls.append(Call(f"~{self.real.__name__}", {}))


# --- the product in such a world ------------------------------------------------------------------


def enter(
    answers: dict[str, Any],
    sabotage: tuple[str, str, str] | None = None,
    world: type[World] = World,
) -> World:
    """Make a world `import tensorrt`, and import the product's files in it anew.

    Args:
        answers: see `World`.
        sabotage: (file, old, new): the product's source with a mistake put in.
        world: the kind of world.
    """
    made = world(answers)
    sys.modules["tensorrt"] = made
    for name in PRODUCT:
        sys.modules.pop(f"{nvidia.__name__}.{name}", None)
    folder = Path(nvidia.__file__).parent
    for name in PRODUCT:
        source = (folder / f"{name}.py").read_text()
        if sabotage and sabotage[0] == name:
            assert sabotage[1] in source, "the product was changed: change the sabotage"
            source = source.replace(*sabotage[1:])
        module = ModuleType(f"{nvidia.__name__}.{name}")
        sys.modules[module.__name__] = module
        setattr(nvidia, name, module)
        exec(compile(source, str(folder / f"{name}.py"), "exec"), module.__dict__)
    return made
