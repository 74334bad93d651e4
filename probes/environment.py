"""What a run was made with: model, software, hardware, as plain data for the run's record."""

from __future__ import annotations

import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import keras
import psutil
import tensorflow as tf

from precscope.probes.gpus import describe_gpus
from precscope.probes.internals.distribution import ONE_REPLICA, Replicas
from precscope.probes.internals.layer_tree import walk_layers
from precscope.probes.internals.optimizers import growth_steps, initial_scale, inner_optimizer, loss_scaling
from precscope.records import RunRecord

if TYPE_CHECKING:
    from precscope.options import Options

__all__ = ["describe_hardware", "describe_model", "describe_run", "describe_software"]

_PACKAGES = ("precscope", "tensorflow", "keras", "numpy", "ml_dtypes")


def describe_run(name: str, model: Any, optimizer: Any, options: Options, replicas: Replicas) -> RunRecord:
    """Return the record of a run called `name` that begins now."""
    return RunRecord(
        name=name,
        status="running",
        error=None,
        started_unix_s=time.time(),
        ended_unix_s=None,
        options=options.as_dict(),
        model=describe_model(model, optimizer, replicas),
        software=describe_software(),
        hardware=describe_hardware(),
    )


def describe_model(model: Any, optimizer: Any, replicas: Replicas = ONE_REPLICA) -> dict[str, Any]:
    """Return what identifies the model and how it is trained; `loss_scaling` is "dynamic", "static" or "none"."""
    inner = inner_optimizer(optimizer)
    return {
        "name": model.name,
        "class": type(model).__name__,
        "dtype_policy": model.dtype_policy.name,
        "layers": sum(1 for _ in walk_layers(model)),
        "parameters": _parameters(model),
        "optimizer": type(inner).__name__,
        "loss_scaling": loss_scaling(optimizer),
        "initial_loss_scale": initial_scale(optimizer),
        "loss_scale_growth_steps": growth_steps(optimizer),
        "jit_compile": bool(getattr(model, "jit_compile", False)) if getattr(model, "compiled", False) else None,
        "run_eagerly": bool(getattr(model, "run_eagerly", False)),
        "steps_per_execution": int(getattr(model, "steps_per_execution", 1) or 1),
        "strategy": replicas.strategy if replicas.are_several else None,
        "replicas": replicas.total,
        "workers": replicas.workers,
    }


def _parameters(model: Any) -> int | None:
    return int(model.count_params()) if model.built else None


def describe_software() -> dict[str, str]:
    """Return versions by package name, and Python's."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # nightly and vendors' builds have other names
            module = {"tensorflow": tf, "keras": keras}.get(package)
            if module is not None:
                versions[package] = str(module.__version__)
    return versions


def describe_hardware() -> dict[str, Any]:
    """Return platform, processor, memory and the GPUs that TensorFlow sees."""
    gpus = [_gpu(device) for device in tf.config.list_physical_devices("GPU")]
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_count": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus,
        "driver": _add_what_nvml_tells(gpus),
    }


def _gpu(device: Any) -> dict[str, Any]:
    details = tf.config.experimental.get_device_details(device)
    capability = details.get("compute_capability")
    return {
        "name": details.get("device_name"),
        "compute_capability": ".".join(map(str, capability)) if capability else None,
    }


def _add_what_nvml_tells(gpus: list[dict[str, Any]]) -> str | None:
    """Add each GPU's memory and UUID, and return the driver's version; nothing where NVML is out of reach."""
    infos = describe_gpus() if gpus else ()
    if len(infos) != len(gpus):  # TensorFlow was given fewer than CUDA has: which they are is not known
        return None
    for gpu, info in zip(gpus, infos, strict=True):
        gpu |= {"memory_bytes": info.memory_total_bytes, "uuid": info.uuid}
    return infos[0].driver_version if infos else None


def _cpu_name() -> str | None:
    if sys.platform == "linux":
        try:
            with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
                names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        except OSError:
            names = []
        return names[0] if names else None
    return platform.processor() or None
