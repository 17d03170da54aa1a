"""Finds in our kernels' sources what Triton accepts but miscompiles: `and`/`or` of tensors, block pointers, loops whose
condition is a call. And what is a race between a program's threads: a number in memory that a branch depends on, and
that the branch changes while other threads have yet to read it."""

from __future__ import annotations

import ast
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[3] / "kernels"
BLOCK_POINTERS = {"make_block_ptr", "advance"}


def is_kernel(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in node.decorator_list)


def faults(source: str) -> list[str]:
    """Lines in @triton.jit functions that Triton accepts but miscompiles, or that crash it."""
    found = []
    for kernel in filter(is_kernel, ast.walk(ast.parse(source))):
        for node in ast.walk(kernel):
            if isinstance(node, ast.BoolOp):
                found.append(f"line {node.lineno}: `and`/`or` of tensors is silently wrong in Triton; use & and |")
            if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
                found.append(f"line {node.lineno}: `not` of a tensor is silently wrong in Triton; use == 0")
            if isinstance(node, ast.Attribute) and node.attr in BLOCK_POINTERS:
                found.append(f"line {node.lineno}: block pointers are gone in Triton 3.9; use pointers")
            if isinstance(node, ast.While) and any(isinstance(part, ast.Call) for part in ast.walk(node.test)):
                found.append(
                    f"line {node.lineno}: Triton 3.6 aborts if a condition reduces what the loop carries; "
                    "reduce in the body, compare a number"
                )
    return found


def races(source: str) -> list[str]:
    """Branches on a number loaded from an address, in which something is stored there without a barrier before it. The
    interpreter has one thread, so it cannot show them."""
    found = []
    for kernel in filter(is_kernel, ast.walk(ast.parse(source))):
        loaded = {
            node.targets[0].id: ast.unparse(node.value.args[0])
            for node in ast.walk(kernel)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "tl.load"
        }  # fmt: skip
        for branch in (node for node in ast.walk(kernel) if isinstance(node, ast.If)):
            read = {loaded.get(node.id) for node in ast.walk(branch.test) if isinstance(node, ast.Name)}
            is_safe = False
            for line in branch.body:
                calls = [node for node in ast.walk(line) if isinstance(node, ast.Call)]
                is_safe |= any(ast.unparse(call.func) == "tl.debug_barrier" for call in calls)
                stored = {ast.unparse(call.args[0]) for call in calls if ast.unparse(call.func) == "tl.store"}
                if stored & read and not is_safe:
                    found.append(f"line {line.lineno}: other threads may not have read {stored & read} yet")
    return found


def sources() -> list[Path]:
    return sorted(KERNELS.rglob("triton_*.py"))


def test_no_kernel_uses_what_triton_gets_wrong() -> None:
    assert len(sources()) > 10
    assert {str(path): faults(path.read_text()) for path in sources() if faults(path.read_text())} == {}


def test_no_branch_changes_what_decides_it_before_all_threads_have_read_it() -> None:
    assert {str(path): races(path.read_text()) for path in sources() if races(path.read_text())} == {}
    template = "@triton.jit\ndef f(p):\n    x = tl.load(p + 1)\n    if x > 0:\n        {}tl.store(p + 1, 0)\n"
    assert len(races(template.format(""))) == 1
    assert races(template.format("tl.debug_barrier()\n        ")) == []


def test_the_lint_sees_each_fault() -> None:
    template = "@triton.jit\ndef f(a, b):\n    x = {}\n"
    for fault in ("a or b", "a and b", "not a", "tl.make_block_ptr(a)", "tl.advance(a, b)"):
        assert len(faults(template.format(fault))) == 1
    loop = "@triton.jit\ndef f(a, b):\n    while {} > 0:\n        b = a\n"
    assert len(faults(loop.format("tl.max(b, 0)"))) == 1
    assert faults(loop.format("b")) == []
    assert faults(template.format("(a | b) & (a == 0)")) == []
    assert faults("def host(a, b):\n    return a or b\n") == []
