"""Registers the C++ kernels as torch operators, with fake tensors and autograd.

`torch.library.custom_op` does the same, but wraps each kernel so that its first call imports the compiler
(``torch._dynamo``): about a second of processor time in every process, though none of them compiles anything. The
registrations below are what ``custom_op`` does, without that wrapper.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

NAMESPACE = "headrace"
_Library: Any = torch.library.Library  # has no type annotations
_LIBRARY = _Library(NAMESPACE, "FRAGMENT")


def register(
    kernel: Callable[..., Any],
    *,
    name: str,
    fake: Callable[..., Any],
    mutates_args: tuple[str, ...] = (),
) -> Callable[..., Any]:
    """Register ``torch.ops.headrace.<name>`` for CPU tensors; its schema is inferred from ``kernel``'s annotations.

    ``kernel`` must not return an input or a view of one. ``fake`` takes the same arguments and returns empty tensors of
    the result's shapes and dtypes. ``mutates_args`` names the tensors that the kernel writes.
    """
    schema = torch.library.infer_schema(kernel, mutates_args=mutates_args)
    _LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    qualified = f"{NAMESPACE}::{name}"
    torch.library.impl(qualified, "cpu", _announcing(kernel, mutates_args) if mutates_args else kernel, lib=_LIBRARY)
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    operator: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return operator


def differentiate(operator: Any, backward: Callable[..., Any], *, save: Callable[..., None]) -> None:
    """Give ``operator`` gradients; the functions are those that `torch.library.register_autograd` takes."""
    torch.library.register_autograd(operator, backward, setup_context=save, lib=_LIBRARY)


def _announcing(kernel: Callable[..., None], mutates_args: tuple[str, ...]) -> Callable[..., None]:
    """``kernel``, wrapped to tell autograd that the tensors have changed, so that it refuses a backward pass that needs
    the old values.

    Nothing else does this for an operator written in Python.
    """
    names = list(inspect.signature(kernel).parameters)
    positions = [names.index(name) for name in mutates_args]

    @wraps(kernel)
    def announced(*arguments: Any) -> None:
        kernel(*arguments)
        changed = [arguments[position] for position in positions]
        torch.autograd.graph.increment_version([tensor for tensor in changed if not tensor.is_inference()])

    return announced
