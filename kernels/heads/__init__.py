"""The output heads of a training step: predictions, both losses and their gradients in one call, beside autograd.

Retrieval: the output before a target is a query for the next item, over the whole catalogue. Ranking: the output at a
target's item predicts the kinds of action on it. In a live step, autograd's bookkeeping costs more than the arithmetic.
"""

from __future__ import annotations

from kernels.backend import choose
from kernels.dispatch import load
from kernels.heads import reference
from kernels.heads.params import FEEDBACK, HeadInputs, HeadOutputs, HeadParams, HeadRules

__all__ = ["FEEDBACK", "HeadInputs", "HeadOutputs", "HeadParams", "HeadRules", "heads"]


def heads(
    inputs: HeadInputs, params: HeadParams, rules: HeadRules, gradients: HeadParams | None, *, backend: str = "auto"
) -> HeadOutputs:
    """Predictions and mean losses; with ``gradients``, which are written, also the gradients of outputs and table.

    A query is ``output @ query_weight + query_bias``, scaled to unit length and divided by the temperature. The last
    column of a row is its bias, which is multiplied by ``bias_scale``; the others are its direction. ``is_new_R`` and
    ``valid_V`` bool, the table of a type in `kernels.row_types`, the rest float32 or int64, all contiguous on the CPU;
    indices are not checked. The gradients are those of ``retrieval + rank_share * ranking``. Without ``gradients``, the
    reference is differentiable by autograd.

    Raises ValueError (shapes, rules), `KernelUnavailable`.
    """
    _check(inputs, params, rules)
    if choose(backend, inputs.y_SM.device) == "reference":
        logit_QV, logit_RK, query_QD, retrieval, ranking = reference.losses(inputs, params, rules)
        return HeadOutputs(logit_QV, logit_RK, query_QD, float(retrieval), float(ranking), None, None)
    outputs: HeadOutputs = load("heads", "cpp").heads(inputs, params, rules, gradients)
    return outputs


def _check(inputs: HeadInputs, params: HeadParams, rules: HeadRules) -> None:
    model, width = inputs.y_SM.shape[1], inputs.table_VD.shape[1]
    num_targets, num_kinds = inputs.learned_RK.shape
    priors = params.rank_prior_PK.shape[0]
    if rules.feedback not in FEEDBACK:
        raise ValueError(f"feedback: expected one of {FEEDBACK}, got {rules.feedback!r}")
    expected = (
        ("query_weight", params.query_weight, (model, width - 1)),
        ("rank_weight", params.rank_weight, (model, num_kinds)),
        ("prior_RPK", inputs.prior_RPK, (num_targets, priors, num_kinds)),
        ("is_new_R", inputs.is_new_R, (num_targets,)),
        ("output_R", inputs.output_R, (num_targets,)),
        ("target_Q", inputs.target_Q, tuple(inputs.output_Q.shape)),
        ("valid_V", inputs.valid_V, (len(inputs.table_VD),)),
    )
    for name, tensor, shape in expected:
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected {shape}, got {tuple(tensor.shape)}")
