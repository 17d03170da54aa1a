"""Compiles the C++ kernels: `python -m kernels.build [--force]`.

Sources and how often each is compiled:

- ``csrc/*.cpp``: once, for any processor of this architecture (x86-64, arm64);
- ``csrc/level/*.cpp``: once per instruction set (portable; on x86-64 also avx2 and avx512), with ``HEADRACE_LEVEL``
  defined as its name;
- ``csrc/amx/*.cpp``: once, for AMX (x86-64 and a compiler that knows it).

The library links to nothing of torch, so one build serves every torch and Python version; the choice among the
instruction sets is made at run time (`kernels.library`).

Objects are kept in ``$XDG_CACHE_HOME/headrace/objects`` (``~/.cache`` if unset) under a digest of what they are made
of, so that only changed units are compiled, in any checkout. Those that no build has used for 30 days are removed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kernels.sources import SOURCES, digest, digest_of, included

ROOT = Path(__file__).parent
LIBRARY_PATH = ROOT / "build" / "libheadrace_kernels.so"
OBJECT_AGE_S = 30 * 24 * 3600

COMMON_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-semantic-interposition",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",  # g++ 12 warns about its own AVX-512 header
    "-Wno-uninitialized",
    "-Wno-unknown-pragmas",
    "-Wno-unknown-warning-option",  # clang does not know all of these
]
AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mprefer-vector-width=256"]
AVX512_FLAGS = [
    *AVX2_FLAGS[:-1],
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mavx512cd",
    "-mprefer-vector-width=512",
]
AMX_FLAGS = [*AVX512_FLAGS, "-mavx512bf16", "-mavx512vbmi", "-mamx-tile", "-mamx-bf16"]


class BuildError(RuntimeError):
    """The compiler is missing, or failed on a source; the message is the compiler's."""


@dataclass(frozen=True)
class Unit:
    """One compiler run."""

    source: Path
    level: str
    flags: tuple[str, ...]

    def object_name(self, compiler_version: str, sources: Path) -> str:
        """The source's name and a digest of everything that decides what it compiles to."""
        settings = repr((compiler_version, COMMON_FLAGS, self.flags, self.level))
        key = hashlib.sha256((settings + digest_of(included(self.source, sources), sources)).encode()).hexdigest()
        return f"{self.source.stem}.{self.level}.{key[:32]}.o"


def compiler() -> list[str]:
    """The command of the C++ compiler: $CXX (which may have arguments, as ``ccache g++`` has), or if that is unset g++,
    or clang++."""
    if chosen := shlex.split(os.environ.get("CXX", "")):
        if not shutil.which(chosen[0]):
            raise BuildError(f"CXX: expected a C++ compiler, found no {chosen[0]!r}; unset it, or set it to a command")
        return chosen
    for candidate in ("g++", "clang++"):
        if shutil.which(candidate):
            return [candidate]
    raise BuildError("expected a C++ compiler (g++ 10 or newer), found none; install g++, or set CXX")


def accepts(cxx: list[str], flags: list[str]) -> bool:
    """Whether the compiler accepts these flags."""
    run = subprocess.run([*cxx, *flags, "-x", "c++", "-E", "/dev/null"], capture_output=True, check=False)
    return run.returncode == 0


def level_flags(cxx: list[str]) -> dict[str, list[str]]:
    """The instruction sets that this compiler and architecture can build, with their flags."""
    levels: dict[str, list[str]] = {"portable": []}
    if platform.machine() in ("x86_64", "AMD64"):
        for name, flags in (("avx2", AVX2_FLAGS), ("avx512", AVX512_FLAGS), ("amx", AMX_FLAGS)):
            if not accepts(cxx, flags):
                break
            levels[name] = flags
    return levels


def units(levels: dict[str, list[str]], sources: Path = SOURCES) -> list[Unit]:
    """All compiler runs, the slowest kinds first."""
    found = [
        Unit(source, "amx", tuple(levels["amx"]))
        for source in sorted((sources / "amx").glob("*.cpp"))
        if "amx" in levels
    ]
    for name in ("avx512", "avx2", "portable"):
        if name in levels:
            found += [Unit(source, name, tuple(levels[name])) for source in sorted((sources / "level").glob("*.cpp"))]
    built = ["portable", "avx2", "avx512", "amx"].index(list(levels)[-1])
    defined = (f"-DHEADRACE_BUILT_LEVEL={built}", f'-DHEADRACE_SOURCES="{digest(sources)}"')
    return found + [
        Unit(source, "base", defined if source.name == "cpu.cpp" else ()) for source in sorted(sources.glob("*.cpp"))
    ]


def object_folder() -> Path:
    """Where compiled units are kept, for all checkouts."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "headrace" / "objects"


def command_for(cxx: list[str], unit: Unit, sources: Path = SOURCES) -> list[str]:
    """The compiler run of one source, less where its object goes."""
    level = [f"-DHEADRACE_LEVEL={unit.level}", f"-DHEADRACE_LEVEL_{unit.level.upper()}=1"]
    return [*cxx, *COMMON_FLAGS, *unit.flags, *level, f"-I{sources}", "-c", str(unit.source)]


def compile_unit(cxx: list[str], unit: Unit, target: Path, sources: Path = SOURCES) -> None:
    """Compile one source into ``target``, whole or not at all; raises `BuildError` with the compiler's output."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [*command_for(cxx, unit, sources), "-o", str(made)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise BuildError(f"{' '.join(command)}\n{run.stderr}")
        if run.stderr:
            print(run.stderr, file=sys.stderr)
        made.replace(target)


def remove_unused(folder: Path) -> None:
    """Remove the objects that no build has used for `OBJECT_AGE_S`."""
    oldest = time.time() - OBJECT_AGE_S
    for path in folder.glob("*.o"):
        with suppress(FileNotFoundError):  # another build may have removed it
            if path.stat().st_mtime < oldest:
                path.unlink()


def build(
    *, force: bool = False, sources: Path = SOURCES, target: Path = LIBRARY_PATH, objects: Path | None = None
) -> bool:
    """Link everything into ``target`` if anything changed since; whether it did. Replaced whole, or not at all.

    Compiles the units that ``objects`` (`object_folder` if None) does not hold, or all if ``force``.
    """
    cxx = compiler()
    folder = objects or object_folder()
    version = subprocess.run([*cxx, "--version"], capture_output=True, text=True, check=True).stdout
    plan = {folder / unit.object_name(version, sources): unit for unit in units(level_flags(cxx), sources)}
    stamp, stamp_path = " ".join(path.name for path in plan), target.with_name("stamp")
    if not force and target.exists() and stamp_path.exists() and stamp_path.read_text() == stamp:
        return False
    missing = {path: unit for path, unit in plan.items() if force or not path.exists()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda path: compile_unit(cxx, missing[path], path, sources), missing))
    for path in plan:
        path.touch()
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        linked = Path(name) / target.name
        run = subprocess.run(
            [*cxx, "-shared", "-fopenmp", *plan, "-o", str(linked)], capture_output=True, text=True, check=False
        )
        if run.returncode != 0:
            raise BuildError(run.stderr)
        linked.replace(target)
    stamp_path.write_text(stamp)
    remove_unused(folder)
    return True


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m kernels.build", description="Compiles the C++ kernels.")
    parser.add_argument("--force", action="store_true", help="compile everything, even if nothing changed")
    try:
        done = build(force=parser.parse_args().force)
    except BuildError as error:
        print(f"kernels: {error}", file=sys.stderr)
        return 1
    print(f"kernels: {'built' if done else 'nothing to build:'} {LIBRARY_PATH}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
