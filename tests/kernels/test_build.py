"""The build: up to date, all or nothing, refused when stale, and safe on processors without newer instruction sets."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kernels import KernelUnavailable, build, library
from kernels.attention.args import AttentionArgs, BucketsArgs
from kernels.layer.args import LayerArgs
from kernels.sources import SOURCES, digest

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


@needs_compiler
def test_a_second_build_has_nothing_to_do() -> None:
    build.build()
    assert not build.build()


@needs_compiler
def test_a_source_that_does_not_compile_leaves_the_library_alone(tmp_path: Path) -> None:
    sources, target = tmp_path / "csrc", tmp_path / "build" / "library.so"
    sources.mkdir()
    (sources / "wrong.cpp").write_text("int f( {\n")
    target.parent.mkdir()
    target.write_text("the one before")
    with pytest.raises(build.BuildError, match=r"wrong\.cpp"):
        build.build(sources=sources, target=target, objects=tmp_path / "objects")
    assert target.read_text() == "the one before"
    assert [path.name for path in target.parent.iterdir()] == ["library.so"]


@needs_compiler
def test_only_units_that_changed_are_compiled(tmp_path: Path) -> None:
    sources, target, objects = tmp_path / "csrc", tmp_path / "build" / "library.so", tmp_path / "objects"
    sources.mkdir()
    (sources / "inner.h").write_text("constexpr int ANSWER = 41;\n")
    (sources / "outer.h").write_text('#include "inner.h"\n')
    shown = 'extern "C" __attribute__((visibility("default"))) int'
    (sources / "answer.cpp").write_text(f'#include "outer.h"\n{shown} answer() {{ return ANSWER; }}\n')
    (sources / "other.cpp").write_text(f"{shown} other() {{ return 1; }}\n")

    def compiled() -> set[str]:
        before = set(objects.glob("*.o"))
        build.build(sources=sources, target=target, objects=objects)
        return {path.name.split(".")[0] for path in set(objects.glob("*.o")) - before}

    assert compiled() == {"answer", "other"}
    (sources / "inner.h").write_text("constexpr int ANSWER = 42;  // included by a header\n")
    assert compiled() == {"answer"}
    assert ctypes.CDLL(str(target)).answer() == 42
    (sources / "inner.h").write_text("constexpr int ANSWER = 42;  // reworded\n")
    assert compiled() == set()


@needs_compiler
@pytest.mark.parametrize("answer", ["HEADRACE_SOURCES", ""], ids=["other sources", "from before the digest"])
def test_a_library_of_other_sources_is_refused_with_what_to_run(answer: str, tmp_path: Path) -> None:
    source, target = tmp_path / "cpu.cpp", tmp_path / "build" / "library.so"
    source.write_text(f'extern "C" const char* headrace_sources() {{ return {answer}; }}\n' if answer else "int f;\n")
    build.build(sources=tmp_path, target=target, objects=tmp_path / "objects")
    with pytest.raises(KernelUnavailable, match=r"built from other sources .*; run `python -m kernels\.build`"):
        library.open_library(target)


def test_the_digest_knows_code_from_comments(tmp_path: Path) -> None:
    header = tmp_path / "level" / "call.h"
    header.parent.mkdir()
    seen = []
    for code in (
        "struct Call { int a; };\n",
        "// why\nstruct Call { int a; };  // what\n\n",
        "struct Call { long a; };\n",
    ):
        header.write_text(code)
        seen.append(digest(tmp_path))
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.slow
@pytest.mark.parametrize("cxx", ["aarch64-linux-gnu-g++", "clang++"])
def test_the_sources_are_accepted_for_arm64_and_by_clang_without_a_warning(cxx: str, tmp_path: Path) -> None:
    (tmp_path / "parallel.cpp").write_text("#include <omp.h>\n")
    probe = [cxx, "-fopenmp", "-fsyntax-only", str(tmp_path / "parallel.cpp")]
    if not shutil.which(cxx) or subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"no {cxx} with OpenMP")

    def complaints(unit: build.Unit) -> str:
        command = [*build.command_for([cxx], unit), "-fsyntax-only"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stderr or "x" * (done.returncode != 0)

    with ThreadPoolExecutor(2) as pool:
        assert list(filter(None, pool.map(complaints, build.units({"portable": []})))) == []


def test_a_compiler_that_is_named_but_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-c++")
    with pytest.raises(build.BuildError, match=r"CXX: expected a C\+\+ compiler, found no 'no-such-c\+\+'; unset it"):
        build.compiler()


def test_a_compiler_may_have_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "env LANG=C g++")
    assert build.compiler() == ["env", "LANG=C", "g++"]
    (source := tmp_path / "empty.cpp").write_text("")
    build.compile_unit(build.compiler(), build.Unit(source, "portable", ()), made := tmp_path / "empty.o", tmp_path)
    assert made.exists()


def test_without_a_compiler_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(build.BuildError, match=r"install g\+\+"):
        build.compiler()


@pytest.mark.skipif(not shutil.which("nm"), reason="no nm")
def test_levels_share_no_code_that_only_some_processors_run() -> None:
    """A weak symbol (an inline function of a header) exists once, whichever instruction set it was compiled for."""
    symbols = subprocess.run(
        ["nm", "--demangle", str(library.LIBRARY_PATH)], capture_output=True, text=True, check=True
    ).stdout
    level_code = re.compile(r"headrace::(portable|avx2|avx512|amx)::")
    weak = [line for line in symbols.splitlines() if re.search(r" [WVu] ", line) and level_code.search(line)]
    assert weak == []


@pytest.mark.parametrize(
    ("header", "name", "mirror"),
    [
        ("attention.h", "HeadraceAttention", AttentionArgs),
        ("attention.h", "HeadraceBuckets", BucketsArgs),
        ("layer.h", "HeadraceLayer", LayerArgs),
    ],
)
def test_the_structs_are_mirrored_field_by_field(header: str, name: str, mirror: type[ctypes.Structure]) -> None:
    source = re.sub(r"//.*", "", (SOURCES / header).read_text())
    body = re.search(rf"struct {name} \{{(.*?)\n\}};", source, re.DOTALL)
    assert body is not None
    declared = [
        identifier
        for declaration in body.group(1).split(";")
        for part in declaration.split(",")
        if (identifier := "".join(re.findall(r"(\w+)\s*$", part)))
    ]
    assert declared == [field[0] for field in mirror._fields_]
