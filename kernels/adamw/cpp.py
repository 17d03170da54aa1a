"""AdamW in C++: two passes over the vectors."""

from __future__ import annotations

import ctypes

from kernels.adamw.params import AdamWRules, AdamWState
from kernels.library import function


class _Call(ctypes.Structure):
    """``AdamWCall`` of csrc/level/adamw.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in AdamWState.__slots__),
        ("num", ctypes.c_int64),
        *(
            (name, ctypes.c_double)
            for name in (
                "clip_norm", "mean_share", "square_share", "mean_fix", "square_fix", "lr", "eps", "weight_decay",
            )
        ),
    )  # fmt: skip


def adamw_(state: AdamWState, rules: AdamWRules, lr: float, step: int) -> None:
    """See `kernels.adamw.adamw_`."""
    call = _Call(
        *(getattr(state, name).data_ptr() for name in AdamWState.__slots__), len(state.weight), rules.clip_norm,
        1 - rules.beta1, 1 - rules.beta2, 1 - rules.beta1**step, 1 - rules.beta2**step, lr, rules.eps,
        rules.weight_decay,
    )  # fmt: skip
    function("adamw")(ctypes.byref(call))
