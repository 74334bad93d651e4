"""The part of TensorFlow's trace format that is read here, as data, parsed by protobuf's own library.

TensorFlow's generated modules for the same messages lie in private packages that have moved before, and importing one
imports all of TensorFlow. The numbers of fields never change, so they are what this file relies on.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["SCHEMA", "HloProto", "XEvent", "XLine", "XPlane", "XSpace"]

#: Message -> field -> (number, type); "*" marks repeated fields. Maps are repeated pairs of key and value. Planes,
#: lines and events stay bytes until each is wanted: the host's never are in a GPU trace, and of a million events only
#: one at a time has to lie in memory unpacked.
#: Sources: tsl/profiler/protobuf/xplane.proto and xla/service/hlo.proto of TensorFlow 2.21; a test compares them.
SCHEMA: Final[dict[str, dict[str, tuple[int, str]]]] = {
    "XSpace": {"planes": (1, "*bytes"), "errors": (2, "*string"), "warnings": (3, "*string")},
    "XPlane": {
        "name": (2, "string"),
        "lines": (3, "*bytes"),
        "event_metadata": (4, "*EventMetadataEntry"),
        "stat_metadata": (5, "*StatMetadataEntry"),
        "stats": (6, "*XStat"),
    },
    # Lines, events and stats are complete, so that a field unknown here means a newer format.
    "XLine": {
        "id": (1, "int64"),
        "name": (2, "string"),
        "timestamp_ns": (3, "int64"),
        "events": (4, "*bytes"),
        "duration_ps": (9, "int64"),
        "display_id": (10, "int64"),
        "display_name": (11, "string"),
    },
    "XEvent": {
        "metadata_id": (1, "int64"),
        "offset_ps": (2, "int64"),
        "duration_ps": (3, "int64"),
        "stats": (4, "*XStat"),
        "num_occurrences": (5, "int64"),
    },
    "XStat": {
        "metadata_id": (1, "int64"),
        "double_value": (2, "double"),
        "uint64_value": (3, "uint64"),
        "int64_value": (4, "int64"),
        "str_value": (5, "string"),
        "bytes_value": (6, "bytes"),
        "ref_value": (7, "uint64"),
    },
    "EventMetadataEntry": {"key": (1, "int64"), "value": (2, "XEventMetadata")},
    "XEventMetadata": {"name": (2, "string"), "display_name": (4, "string"), "stats": (5, "*XStat")},
    "StatMetadataEntry": {"key": (1, "int64"), "value": (2, "XStatMetadata")},
    "XStatMetadata": {"name": (2, "string")},
    "HloProto": {"hlo_module": (1, "HloModuleProto")},
    "HloModuleProto": {"computations": (3, "*HloComputationProto")},
    "HloComputationProto": {"instructions": (2, "*HloInstructionProto"), "id": (5, "int64"), "root_id": (6, "int64")},
    "HloInstructionProto": {
        "name": (1, "string"),
        "opcode": (2, "string"),
        "shape": (3, "ShapeProto"),
        "metadata": (7, "OpMetadata"),
        "id": (35, "int64"),
        "operand_ids": (36, "*int64"),
        "called_computation_ids": (38, "*int64"),
    },
    "ShapeProto": {"element_type": (2, "int32"), "dimensions": (3, "*int64")},
    "OpMetadata": {"op_type": (1, "string"), "op_name": (2, "string")},
}

_PACKAGE = "precscope.trace"
_TYPES = descriptor_pb2.FieldDescriptorProto.Type
_LABELS = descriptor_pb2.FieldDescriptorProto.Label


def _file_descriptor() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3")
    for message_name, fields in SCHEMA.items():
        message = file.message_type.add(name=message_name)
        for name, (number, kind) in fields.items():
            label = "LABEL_REPEATED" if kind.startswith("*") else "LABEL_OPTIONAL"
            item = message.field.add(name=name, number=number, label=_LABELS.Value(label))
            kind = kind.lstrip("*")
            if kind in SCHEMA:
                item.type, item.type_name = _TYPES.Value("TYPE_MESSAGE"), f".{_PACKAGE}.{kind}"
            else:
                item.type = _TYPES.Value(f"TYPE_{kind.upper()}")
    return file


# A pool of its own: the default one holds TensorFlow's messages once TensorFlow is imported.
_pool = descriptor_pool.DescriptorPool()
_pool.Add(_file_descriptor())


def _message_class(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


XSpace: Final = _message_class("XSpace")
XPlane: Final = _message_class("XPlane")
XLine: Final = _message_class("XLine")
XEvent: Final = _message_class("XEvent")
HloProto: Final = _message_class("HloProto")
