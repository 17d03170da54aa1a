"""Registers the C++ kernels as torch operators, with fake tensors and autograd.

`torch.library.custom_op` does the same, but wraps each kernel so that its first call imports the compiler
(``torch._dynamo``): about a second of processor time at the start of every process, of which none here compiles.
The registrations below are what ``custom_op`` is made of, without that wrapper.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

NAMESPACE = "headrace"
_Library: Any = torch.library.Library  # comes without types
_LIBRARY = _Library(NAMESPACE, "FRAGMENT")


def register(
    kernel: Callable[..., Any],
    *,
    name: str,
    fake: Callable[..., Any],
    mutates_args: tuple[str, ...] = (),
) -> Callable[..., Any]:
    """``torch.ops.headrace.<name>``, for CPU tensors; its schema is read from ``kernel``'s annotations.

    ``kernel`` returns no input and no view of one. ``fake`` takes the same arguments and returns empty tensors of the
    result's shapes and dtypes. ``mutates_args`` names the tensors that the kernel writes.
    """
    schema = torch.library.infer_schema(kernel, mutates_args=mutates_args)
    _LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    qualified = f"{NAMESPACE}::{name}"
    torch.library.impl(qualified, "cpu", _announcing(kernel, mutates_args) if mutates_args else kernel, lib=_LIBRARY)
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    operator: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return operator


def differentiate(operator: Any, backward: Callable[..., Any], *, save: Callable[..., None]) -> None:
    """Gives ``operator`` gradients; both functions are as `torch.library.register_autograd` takes them."""
    torch.library.register_autograd(operator, backward, setup_context=save, lib=_LIBRARY)


def _announcing(kernel: Callable[..., None], mutates_args: tuple[str, ...]) -> Callable[..., None]:
    """``kernel``, after which autograd knows that the tensors have changed: it refuses a backward that needs the old.

    An operator written in Python gets this from nowhere else.
    """
    names = list(inspect.signature(kernel).parameters)
    positions = [names.index(name) for name in mutates_args]

    @wraps(kernel)
    def announced(*arguments: Any) -> None:
        kernel(*arguments)
        changed = [arguments[position] for position in positions]
        torch.autograd.graph.increment_version([tensor for tensor in changed if not tensor.is_inference()])

    return announced
