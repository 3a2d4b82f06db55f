"""The memory that a program needs, before any compiler sees it: read off its jaxpr.

The program is walked in order, with the compilers' habits that matter: elementwise work is fused
into what reads it and has no array of its own unless a product reads it; an array is freed behind
its last reader, and its memory taken by a result of its size. What a loop over layers stacks up for
its backward pass is counted by itself: it is what remat policies choose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.interpreters.partial_eval import dce_jaxpr

from peft_jax import tree


class Memory(NamedTuple):
    """Bytes beside a program's arguments and results.

    Attributes:
      peak: the most that is there at one time.
      kept: at that time, what loops have stacked up and a later one reads.
    """

    peak: int
    kept: int


def _bodies(equation: Any) -> list[Jaxpr]:
    """The jaxprs that an equation runs."""
    found = []
    for value in equation.params.values():
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, ClosedJaxpr):
                found.append(each.jaxpr)
            elif isinstance(each, Jaxpr):
                found.append(each)
    return found


# What only looks at its operand in another way: no array is made.
_VIEWS = frozenset(
    [
        "reshape",
        "squeeze",
        "expand_dims",
        "transpose",
        "name",
        "copy",
        "stop_gradient",
        "sharding_constraint",
        "optimization_barrier",
    ]
)
# Fused into whatever reads it, beside all arithmetic on single entries.
_FUSED = frozenset(
    [
        "broadcast_in_dim",
        "iota",
        "convert_element_type",
        "select_n",
        "slice",
        "dynamic_slice",
        "pad",
        "rev",
        "reduce_precision",
        "bitcast_convert_type",
        "random_bits",
        "random_wrap",
        "random_unwrap",
        "threefry2x32",
        "device_put",
        "pvary",
    ]
)
_REDUCTIONS = frozenset(
    [
        "reduce_sum",
        "reduce_max",
        "reduce_min",
        "reduce_and",
        "reduce_or",
        "reduce_prod",
        "argmax",
        "argmin",
    ]
)
_COSTLY = frozenset(("exp", "log", "log1p", "expm1", "tanh", "logistic", "erf", "pow"))
_LOOPS = ("scan", "while")


def memory(jaxpr: Jaxpr, platform: str = "tpu") -> Memory:
    """The memory that a program needs beside its arguments and results.

    Args:
      platform: whose compiler is meant. A CPU's does not fuse an exponential into the sum over it.
    """
    # What nothing reads is never computed: a backward pass leaves much of it in a jaxpr.
    needed, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    return _Walk(needed, platform).run()


@dataclasses.dataclass(eq=False)
class _Array:
    """A value of the program.

    Attributes:
      size: bytes.
      stored: whether it has memory of its own (else it is an argument, or fused).
      reads: the stored arrays that it is computed from, where it is fused.
      fused: whether it must be stored before a product can read it.
      costly: whether an exponential or the like is fused into it.
      stack: whether a loop stacked it up.
    """

    size: int
    stored: bool = False
    fused: bool = False
    costly: bool = False
    stack: bool = False
    reads: tuple[_Array, ...] = ()

    @property
    def needs(self) -> tuple[_Array, ...]:
        return (self,) if self.stored else self.reads


class _Event(NamedTuple):
    """A moment of the program: arrays made, arrays read, and what it needs within itself."""

    made: list[_Array]
    read: list[_Array]
    inside: Memory
    in_place: bool


class _Walk:
    """One pass over a jaxpr that lists its events, and one over them for the peak."""

    def __init__(self, jaxpr: Jaxpr, platform: str, sliced: int = 0):
        """Args: sliced: so many of the last arguments are slices that a loop takes of its inputs,
        which a product reads from a copy."""
        self.events: list[_Event] = []
        self.platform = platform
        inputs = [_Array(_bytes(v)) for v in jaxpr.invars]
        for array in inputs[len(inputs) - sliced :]:
            array.fused = True
        constants = [_Array(_bytes(v)) for v in jaxpr.constvars]
        self.outputs = self.inline(jaxpr, constants + inputs)

    def run(self) -> Memory:
        last: dict[int, int] = {}
        for i, event in enumerate(self.events):
            for array in (*event.read, *event.made):
                last[id(array)] = i
        for output in self.outputs:
            for array in output.needs if output is not None else ():
                last[id(array)] = len(self.events)
        peak, live, kept = Memory(0, 0), 0, 0
        for i, event in enumerate(self.events):
            dying = {id(a): a for a in event.read if last[id(a)] == i}
            born = sum(array.size for array in event.made)
            room = 0
            if event.in_place:
                room = max((a.size for a in dying.values() if a.size <= born), default=0)
            live += born
            kept += sum(array.size for array in event.made if array.stack)
            here = live - room + event.inside.peak
            if here > peak.peak:
                peak = Memory(here, kept + event.inside.kept)
            dying |= {id(a): a for a in event.made if last[id(a)] == i}
            live -= sum(array.size for array in dying.values())
            kept -= sum(array.size for array in dying.values() if array.stack)
        return peak

    # ---------------------------------------------------------------------------- equations
    def inline(self, jaxpr: Jaxpr, inputs: Sequence[_Array | None]) -> list[_Array | None]:
        values: dict[Any, _Array | None] = dict(
            zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True)
        )

        def value(atom):
            return None if isinstance(atom, Literal) else values[atom]

        for equation in jaxpr.eqns:
            operands = [value(atom) for atom in equation.invars]
            for variable, out in zip(equation.outvars, self.step(equation, operands), strict=True):
                values[variable] = out
        return [value(atom) for atom in jaxpr.outvars]

    def step(self, equation: Any, operands: list[_Array | None]) -> list[_Array | None]:
        name = equation.primitive.name
        bodies = _bodies(equation)
        if name in _LOOPS or (name == "cond" and bodies):
            return self.loop(equation, operands, bodies)
        if len(bodies) == 1 and len(bodies[0].invars) == len(operands):
            constants = [_Array(_bytes(v)) for v in bodies[0].constvars]
            return self.inline(bodies[0], [*constants, *operands])
        if name in _VIEWS:
            return list(operands[: len(equation.outvars)])
        if name in _FUSED or _elementwise(equation):
            costly = name in _COSTLY or any(o.costly for o in operands if o is not None)
            return [self.fuse(variable, operands, costly) for variable in equation.outvars]
        for operand in operands:
            if name not in _REDUCTIONS:
                self.store(operand)
            elif operand and operand.costly and self.platform == "cpu":
                # Two sums read what the exponential is taken of: it stays.
                self.store(operand, in_place=False)
        in_place = name.startswith(("dynamic_update", "scatter"))
        return self.make(equation.outvars, operands, in_place=in_place)

    def fuse(self, variable: Any, operands: Iterable[_Array | None], costly: bool) -> _Array:
        reads = {id(a): a for operand in operands if operand for a in operand.needs}
        return _Array(_bytes(variable), fused=True, costly=costly, reads=tuple(reads.values()))

    def store(self, array: _Array | None, *, in_place: bool = True) -> None:
        """Gives a fused array memory, where a product or a loop is about to read it."""
        if array is None or array.stored or not array.fused:
            return
        reads, array.reads, array.stored = list(array.reads), (), True
        array.costly = False
        self.events.append(_Event([array], reads, Memory(0, 0), in_place))

    def make(
        self,
        variables: Sequence[Any],
        operands: Sequence[_Array | None],
        inside: Memory = Memory(0, 0),
        *,
        in_place: bool = False,
    ) -> list[_Array | None]:
        made = [_Array(_bytes(variable), stored=True) for variable in variables]
        results: list[_Array | None] = [*made]
        read = [a for operand in operands if operand for a in operand.needs]
        self.events.append(_Event(made, read, inside, in_place))
        return results

    def loop(self, equation: Any, operands: list[_Array | None], bodies: list[Jaxpr]):
        for operand in operands:
            self.store(operand)
        parameters = equation.params
        first = parameters.get("num_consts", 0) + parameters.get("num_carry", 0)
        sliced = len(operands) - first if equation.primitive.name == "scan" else 0
        inside = max(
            (_Walk(body, self.platform, sliced).run() for body in bodies), key=lambda m: m.peak
        )
        # The carry is written over; a loop's results take the memory of what it started from.
        made = self.make(equation.outvars, operands, Memory(inside.peak, 0), in_place=True)
        if equation.primitive.name == "scan":
            for array in made[parameters["num_carry"] :]:
                if array is not None:
                    array.stack = True
        return made


def _elementwise(equation: Any) -> bool:
    """Whether each entry of the results is computed from one entry of every operand."""
    if equation.primitive.name in _STORED:
        return False
    shapes = {tuple(v.aval.shape) for v in equation.outvars}
    if len(shapes) != 1:
        return False
    (shape,) = shapes
    return all(_spreads(tuple(v.aval.shape), shape) for v in equation.invars)


def _spreads(shape: tuple[int, ...], over: tuple[int, ...]) -> bool:
    if not shape:
        return True
    return len(shape) == len(over) and all(a in (1, b) for a, b in zip(shape, over, strict=True))


# Of their operands' shape, and yet no work on single entries.
_STORED = frozenset(
    [
        "dot_general",
        "sort",
        "cumsum",
        "cumlogsumexp",
        "cummax",
        "cumprod",
        "scatter",
        "scatter-add",
        "scatter_add",
        "gather",
        "dynamic_update_slice",
        "concatenate",
        "top_k",
        "ragged_dot",
        "fft",
        "eigh",
        "svd",
    ]
)


def _bytes(variable: Any) -> int:
    aval = variable.aval
    if not hasattr(aval, "shape") or "Host" in str(getattr(aval, "memory_space", "")):
        return 0
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.float0):
        return 0
    return int(np.prod(aval.shape, dtype=np.int64)) * tree.bits(aval.dtype) // 8
