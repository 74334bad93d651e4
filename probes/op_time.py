"""Op time: from a profiler trace to records of op, layer, direction, dtype and device time.

A kernel stands at one layer as a whole; nothing is divided by guess. In a kernel that XLA fused from ops of several
layers, each instruction counts the elements that it computes, and the layer that computes most has the kernel; the
others are named in `shared_with`. Forward ops inside a kernel of the backward pass are recomputed for it, so they count
as backward.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from precscope.formats import FORMATS
from precscope.op_records import OpRecord
from precscope.probes.hlo import HloInstruction, HloWork, work_of
from precscope.probes.kernel_names import is_matrix_op, kernel_dtypes, kernel_uses_tensor_cores
from precscope.probes.layer_paths import paths_of_records
from precscope.probes.op_scopes import KERAS_OPTIMIZERS, NOWHERE, OpPlace, OpScopes, strip_wrappers
from precscope.probes.xplane import Trace, TraceOp, read_trace

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from precscope.records import LayerRecord

__all__ = ["op_records", "read_trace"]


def op_records(
    trace: Trace,
    layer_ids: Mapping[str, str] | Sequence[LayerRecord],
    optimizers: Collection[str] = KERAS_OPTIMIZERS,
) -> tuple[OpRecord, ...]:
    """Return the records of a trace, the costliest first.

    Args:
        trace: The trace.
        layer_ids: Layer ids by path of names ("sequential/conv", from `paths_of_layers`) or by name scope
            ("sequential_1/conv_1"); or the layers of a run, whose names are then guessed where they have no Keras path.
        optimizers: Names of optimizers, where one has another than Keras gives.
    """
    paths = layer_ids if isinstance(layer_ids, Mapping) else paths_of_records(layer_ids)
    scopes = OpScopes(paths, _op_names(trace), optimizers)
    records = _merged(_record(op, trace, scopes) for op in trace.ops)
    return tuple(sorted(records, key=lambda item: (-item.device_time_ns, item.device, item.op, item.kernel or "")))


def _op_names(trace: Trace) -> Iterator[str]:
    yield from (op.tf_op.partition(":")[0] for op in trace.ops)
    for module in trace.modules.values():
        yield from (item.op_name for item in module.instructions.values())


def _record(op: TraceOp, trace: Trace, scopes: OpScopes) -> OpRecord:
    module = trace.modules.get(op.program)
    instruction = module.by_name.get(op.hlo_op) if module else None
    if module and instruction:
        return _xla_record(op, work_of(module, instruction), instruction, scopes)
    # Under XLA all kernels carry the op that called the program, which says nothing.
    name, _, op_type = op.tf_op.partition(":") if not op.hlo_op else ("", "", "")
    place = OpPlace(None, "input") if op.input_pipeline else scopes.place(name, op_type)
    first, last = kernel_dtypes(op.kernel)
    return OpRecord(
        op=strip_wrappers(name) or op.hlo_op or op.kernel,
        op_type=op_type or None,
        kernel=op.kernel or None,
        layer=place.layer,
        direction=place.direction,
        dtype=last if op_type == "Cast" else first,
        device_time_ns=op.time_ps,
        count=op.count,
        tensor_core=_tensor_core(op, not op_type or is_matrix_op(op_type)),
        device=op.device,
        cast=op_type == "Cast" and {first, last} <= {None, *FORMATS},
    )


def _xla_record(op: TraceOp, work: Sequence[HloWork], named: HloInstruction, scopes: OpScopes) -> OpRecord:
    place, own, others = _by_most_work(work, scopes)
    # XLA names a fusion after one op in it; that name is kept where it is an op of this place.
    main = max((item.instruction for item in own), key=lambda item: (item.op_name == named.op_name, item.elements))
    dtypes: dict[str | None, float] = defaultdict(float)
    for item in own:
        dtypes[item.dtype] += item.elements
    return OpRecord(
        op=strip_wrappers(main.op_name) or op.hlo_op,
        op_type=main.op_type or None,
        kernel=op.kernel,
        layer=place.layer,
        direction=place.direction,
        dtype=kernel_dtypes(op.kernel)[0] or max(dtypes, key=lambda dtype: dtypes[dtype]),
        device_time_ns=op.time_ps,
        count=op.count,
        tensor_core=_tensor_core(op, any(item.is_product for item in work)),
        device=op.device,
        cast=_is_cast(work),
        shared_with=tuple(sorted({item.layer for item in others if item.layer})),
    )


def _by_most_work(work: Iterable[HloWork], scopes: OpScopes) -> tuple[OpPlace, list[HloWork], list[OpPlace]]:
    """Return the place whose instructions compute most, these, and the other places in the kernel."""
    groups: dict[OpPlace, list[HloWork]] = defaultdict(list)
    for item in work:
        groups[scopes.place(item.instruction.op_name, item.instruction.op_type)].append(item)
    if any(place.direction == "backward" for place in groups):
        for place in [place for place in groups if place.direction == "forward"]:
            groups[OpPlace(place.layer, "backward")] += groups.pop(place)
    named = [place for place in groups if place != NOWHERE] or list(groups)
    main = max(named, key=lambda place: sum(item.elements for item in groups[place]))
    return main, groups[main], [place for place in named if place != main]


def _is_cast(work: Sequence[HloWork]) -> bool:
    converts = [item for item in work if not item.is_move]
    return bool(converts) and all(
        item.instruction.opcode == "convert" and {item.operand_dtype, item.dtype} <= FORMATS.keys() for item in converts
    )


def _tensor_core(op: TraceOp, could: bool) -> bool | None:
    return kernel_uses_tensor_cores(op.kernel) if could and op.device != "host" else False


def _merged(records: Iterable[OpRecord]) -> Iterator[OpRecord]:
    """Yield records with the same names once, with their time in ns: until here it is in ps, as in the trace."""
    totals: dict[OpRecord, list[int]] = defaultdict(lambda: [0, 0])
    for record in records:
        total = totals[replace(record, device_time_ns=0, count=0)]
        total[0] += record.device_time_ns
        total[1] += record.count
    for record, (time_ps, count) in totals.items():
        yield replace(record, device_time_ns=round(time_ps / 1000), count=count)
