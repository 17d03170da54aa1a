"""What `headrace doctor` checks on this machine: software, processor, memory, disks."""

from __future__ import annotations

import os
import platform
import resource
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from headrace.config import Settings
from headrace.findings import Finding, note, ok, problem

PACKAGES = ("headrace", "torch", "kafka-python", "faust-streaming", "rocksdict")
LOW_BYTES = 2 << 30
LOW_SHARE = 0.1
"""A disk with less free space than both is about to fill up."""
LOW_MEMORY_BYTES = 1 << 30
MIN_OPEN_FILES = 4096
SLOW_LEVELS = ("portable", "avx2")
FULL_LEVEL = "avx512"


def findings(settings: Settings) -> Iterator[Finding]:
    """All findings about this machine."""
    yield software()
    yield processor()
    yield gpu(settings.trainer.device)
    yield memory()
    yield open_files()
    yield disk("disk: state", settings.store.path)
    yield disk("disk: checkpoints", Path(settings.trainer.checkpoint_dir))
    for name, folder in (("trainer", settings.trainer.tables_folder), ("serving", settings.serving.tables_folder)):
        if folder:
            yield disk(f"disk: tables ({name})", Path(folder))


def software() -> Finding:
    """The versions that a bug report needs."""
    found = [f"{name} {_version(name)}" for name in PACKAGES]
    return ok("software", f"Python {platform.python_version()}, " + ", ".join(found))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def processor() -> Finding:
    """Whether the kernels are compiled, and which instructions they use."""
    from kernels.backend import KernelUnavailable
    from kernels.library import level

    cores = len(os.sched_getaffinity(0))
    try:
        used = level()
    except (KernelUnavailable, ValueError) as error:
        return problem("processor", f"{cores} cores; the compiled kernels cannot be used", str(error))
    words = f"{cores} cores, kernels for {used}"
    if used in SLOW_LEVELS:
        return note(
            "processor", words, f"a trainer or server learns and answers faster on a processor with {FULL_LEVEL}"
        )
    return ok("processor", words)


def gpu(wanted: str) -> Finding:
    """Whether ``trainer.device`` is available here."""
    import torch

    from model.device import fault_of_gpu

    fault = fault_of_gpu()
    if not fault:
        return ok("gpu", f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}")
    if wanted == "cuda":
        return problem(
            "gpu", f"trainer.device is cuda, and there is {fault}", 'set trainer.device = "auto", or see nvidia-smi'
        )
    if torch.cuda.is_available():
        return note("gpu", f"the trainer runs on the processor: there is {fault}", "use another GPU, or build of torch")
    return ok("gpu", "none; the trainer runs on the processor")


def memory() -> Finding:
    """How much memory is free; a machine that swaps is never fresh."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(lines[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return note("memory", "this system does not say how much is free", "use its own tools")
    words = f"{size(free)} of {size(total)} available"
    if free < LOW_MEMORY_BYTES:
        return problem("memory", words, "stop what else runs here, or give the machine more")
    return ok("memory", words)


def open_files() -> Finding:
    """The limit on open files; RocksDB and Kafka's clients keep many files and sockets open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    words = f"at most {soft} per process"
    if 0 <= soft < MIN_OPEN_FILES:
        most = "as many as the system allows" if hard < 0 else str(hard)
        return note(
            "open files", words, f"raise it to {MIN_OPEN_FILES} or more: ulimit -n {MIN_OPEN_FILES} ({most} allowed)"
        )
    return ok("open files", words)


def disk(subject: str, folder: Path) -> Finding:
    """Whether a folder can be written to and has room."""
    # Not `Path.exists`, which raises where a folder above may not be searched.
    existing = next(each for each in (folder.absolute(), *folder.absolute().parents) if os.path.exists(each))  # noqa: PTH110
    if not existing.is_dir():
        return problem(subject, f"{existing} is not a folder", "name another folder, or move that file away")
    if not os.access(existing, os.W_OK):
        return problem(subject, f"{existing} cannot be written to", "let this user write there, or name another folder")
    usage = shutil.disk_usage(existing)
    words = f"{folder}: {size(usage.free)} of {size(usage.total)} free"
    if usage.free < min(LOW_BYTES, LOW_SHARE * usage.total):
        return problem(subject, words, "free some, or move the folder: it is safe to move while its process is stopped")
    return ok(subject, words)


def size(num_bytes: float) -> str:
    """A number of bytes for people: 640 B, 812 MB, 3.1 GB."""
    if num_bytes < 1e4:
        return f"{num_bytes:.0f} B"
    for limit, unit, name in ((1e9, 1e6, "MB"), (1e12, 1e9, "GB")):
        if num_bytes < limit:
            return f"{num_bytes / unit:.3g} {name}"
    return f"{num_bytes / 1e12:.3g} TB"
