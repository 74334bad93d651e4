"""XLA programs out of a trace, and who does the work in one of their kernels.

XLA fuses ops of several layers into one kernel and names it after one of them. What each op does in it is counted here:
the elements that its instructions compute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from precscope.probes.xplane_schema import HloProto

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["HloInstruction", "HloModule", "HloWork", "parse_hlo", "work_of"]

#: XLA's PrimitiveType by number (xla_data.proto).
_DTYPES: Final = {
    1: "bool",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "uint8",
    7: "uint16",
    8: "uint32",
    9: "uint64",
    10: "float16",
    11: "float32",
    12: "float64",
    16: "bfloat16",
    19: "float8_e5m2",
    20: "float8_e4m3fn",
}
#: Instructions that run others; their own work is what those do.
_CALLERS: Final = frozenset({"fusion", "call", "async-start"})
#: Instructions that read many elements for one that they give.
_REDUCERS: Final = frozenset({"reduce", "reduce-window", "select-and-scatter"})
#: Products, and calls of cuDNN, cuBLAS and the like.
_PRODUCTS: Final = frozenset({"dot", "convolution", "custom-call"})
_RENAMERS: Final = frozenset({"bitcast", "reshape", "tuple"})
#: Instructions that move elements without computing.
_MOVERS: Final = frozenset(
    ["broadcast", "concatenate", "copy", "dynamic-slice", "pad", "reverse", "slice", "transpose"]
)
#: Instructions that cost nothing inside a kernel: names for values, or values made where they are used.
_FREE: Final = frozenset(
    ["parameter", "constant", "get-tuple-element", "iota", "optimization-barrier", "after-all"]
).union(_RENAMERS)


@dataclass(frozen=True)
class HloInstruction:
    """One instruction of an XLA program, after all optimization.

    Attributes:
        name: Its name, unique in the program; what the trace calls `hlo_op`.
        opcode: "fusion", "dot", "convert", ...
        op_name: TensorFlow's op with its scopes, or "".
        op_type: TensorFlow's op type, or "".
        dtype: Element type of its result; None for tuples and for types without a name here.
        elements: Number of elements of its result, 0 for tuples.
        operands: Ids of its operands.
        calls: Ids of the computations that it calls.
    """

    name: str
    opcode: str
    op_name: str
    op_type: str
    dtype: str | None
    elements: int
    operands: tuple[int, ...]
    calls: tuple[int, ...]


@dataclass(frozen=True)
class HloModule:
    """An XLA program: instructions by id and by name; each computation's instructions and root as ids."""

    instructions: Mapping[int, HloInstruction]
    by_name: Mapping[str, HloInstruction]
    computations: Mapping[int, tuple[int, ...]]
    roots: Mapping[int, int]


@dataclass(frozen=True)
class HloWork:
    """What one instruction does in a kernel.

    Attributes:
        instruction: The instruction.
        elements: Elements that it computes; of a reduction those that it reads. Infinite for a matrix product or a
            convolution, beside which everything that is fused to it is small.
        operand_dtype: Element type of its first operand, or None.
    """

    instruction: HloInstruction
    elements: float
    operand_dtype: str | None

    @property
    def is_product(self) -> bool:
        """Whether tensor cores could do it."""
        return self.instruction.opcode in _PRODUCTS

    @property
    def is_move(self) -> bool:
        """Whether it moves elements without computing."""
        return self.instruction.opcode in _MOVERS

    @property
    def dtype(self) -> str | None:
        """The dtype that it computes in; of a conversion the one that it converts to."""
        if self.is_product or self.instruction.dtype == "bool":
            return self.operand_dtype
        return self.instruction.dtype


def parse_hlo(data: bytes) -> HloModule:
    """Read a serialized HloProto.

    Raises:
        google.protobuf.message.DecodeError: It is none.
    """
    instructions, computations, roots = {}, {}, {}
    for computation in HloProto.FromString(data).hlo_module.computations:
        computations[computation.id] = tuple(item.id for item in computation.instructions)
        roots[computation.id] = computation.root_id
        for item in computation.instructions:
            dtype = _DTYPES.get(item.shape.element_type)
            instructions[item.id] = HloInstruction(
                name=item.name,
                opcode=item.opcode,
                op_name=item.metadata.op_name,
                op_type=item.metadata.op_type,
                dtype=dtype,
                elements=math.prod(item.shape.dimensions) if dtype else 0,
                operands=tuple(item.operand_ids),
                calls=tuple(item.called_computation_ids),
            )
    return HloModule(instructions, {item.name: item for item in instructions.values()}, computations, roots)


def work_of(module: HloModule, instruction: HloInstruction) -> tuple[HloWork, ...]:
    """Return what is done in the kernel of `instruction`: one entry for each instruction that does something in it.

    There is at least one: what is no fusion, or a fusion in which nothing is computed, does its work itself.
    """
    parts = (
        tuple(work for work in _walk(module, instruction) if work.elements) if instruction.opcode in _CALLERS else ()
    )
    return parts or (HloWork(instruction, 1.0, _operand_dtype(module, instruction)),)


def _walk(module: HloModule, caller: HloInstruction) -> Iterator[HloWork]:
    for computation in caller.calls:
        results = _results(module, module.roots[computation])
        for key in module.computations[computation]:
            instruction = module.instructions[key]
            if instruction.opcode in _CALLERS:
                yield from _walk(module, instruction)
            else:
                yield HloWork(instruction, _elements(module, key, results), _operand_dtype(module, instruction))


def _results(module: HloModule, root: int) -> set[int]:
    """Return the ids of what a computation hands out, by other names where a bitcast only renames it."""
    instruction = module.instructions[root]
    if instruction.opcode in _RENAMERS:
        return set().union(*(_results(module, operand) for operand in instruction.operands))
    return {root}


def _elements(module: HloModule, key: int, results: set[int]) -> float:
    instruction = module.instructions[key]
    if instruction.opcode in _PRODUCTS:
        return math.inf
    if instruction.opcode in _FREE:
        return 0
    if instruction.opcode in _MOVERS:  # indices, except where the moved elements are what is written
        return instruction.elements if key in results else 0
    if instruction.opcode in _REDUCERS:
        return max(instruction.elements, *(module.instructions[operand].elements for operand in instruction.operands))
    return instruction.elements


def _operand_dtype(module: HloModule, instruction: HloInstruction) -> str | None:
    return module.instructions[instruction.operands[0]].dtype if instruction.operands else None
