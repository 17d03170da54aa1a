"""All HTTP operations of the server, in one table used for routes, limits, tokens and /openapi.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from serving.answer_bodies import (
    About,
    ExplainAnswer,
    Health,
    HistoryAnswer,
    ItemsAnswer,
    PartitionsAnswer,
    RankAnswer,
    RankBatchAnswer,
    Readiness,
    RecommendAnswer,
    RecommendBatchAnswer,
    SentAction,
    SentRequest,
    SimilarAnswer,
    UsersAnswer,
    VersionAnswer,
)
from serving.config import ServingConfig
from serving.request_bodies import (
    ActionRequest,
    ExplainRequest,
    ForgetRequest,
    ItemsRequest,
    RankBatchRequest,
    RankRequest,
    RecommendBatchRequest,
    RecommendRequest,
    SimilarRequest,
)
from serving.validation import Limit


@dataclass(frozen=True, slots=True)
class Operation:
    """``role``: the least role that a token needs; empty: no token needed. ``statuses``: beyond the usual ones."""

    method: str
    path: str
    tag: str
    summary: str
    answer: type[msgspec.Struct] | None
    request: type[msgspec.Struct] | None = None
    role: str = "read"
    text: str = ""
    media: str = "application/json"
    example: Mapping[str, Any] = field(default_factory=dict)
    statuses: tuple[int, ...] = ()
    parameter: str = ""
    """Name of a required query parameter."""
    is_of_users: bool = False
    """Whether the answer depends on users' histories, which another server may hold."""


_HISTORY = [{"item": 318, "action": "click", "timestamp": 1_700_000_000_000}]
OPERATIONS = (
    Operation(
        "POST", "/recommend", "Answers", "Which items next?", RecommendAnswer, RecommendRequest, statuses=(503,),
        example={"user": "u1", "k": 10, "deny": [50]},
        is_of_users=True,
        text="From the history that the server keeps of `user`, or from one sent with the request. A user about whom "
        "nothing is known gets an answer too, marked `cold`.",
    ),
    Operation(
        "POST", "/recommend/batch", "Answers", "Which items next, for many?", RecommendBatchAnswer,
        RecommendBatchRequest, statuses=(503,), example={"requests": [{"user": "u1"}, {"history": _HISTORY, "k": 5}]},
        is_of_users=True,
        text="All answers come from the same version; or, if several servers hold the users, from one of each.",
    ),
    Operation(
        "POST", "/rank", "Answers", "How likely is each action on these items?", RankAnswer, RankRequest,
        statuses=(503,), example={"user": "u1", "items": [318, 50, "never seen"]},
        is_of_users=True,
        text="Each candidate is scored by itself, as if it came next: its probabilities do not depend on its place in "
        "the list.",
    ),
    Operation(
        "POST", "/rank/batch", "Answers", "How likely is each action, for many?", RankBatchAnswer, RankBatchRequest,
        statuses=(503,), example={"requests": [{"user": "u1", "items": [318]}, {"user": "u2", "items": [50]}]},
        is_of_users=True,
        text="All answers come from the same version; or, if several servers hold the users, from one of each.",
    ),
    Operation(
        "POST", "/similar", "Answers", "Which items are similar to this one?", SimilarAnswer, SimilarRequest,
        statuses=(503,), example={"item": 318, "k": 5}, text="By cosine similarity of their embeddings.",
    ),
    Operation(
        "POST", "/items", "Answers", "What is known about these items?", ItemsAnswer, ItemsRequest, statuses=(503,),
        example={"items": [318, "never seen"]}, text="Titles come from `serving.titles_file`.",
    ),
    Operation(
        "POST", "/explain", "Answers", "Why these items?", ExplainAnswer, ExplainRequest, statuses=(503,),
        example={"user": "u1", "k": 3, "reasons": 2},
        is_of_users=True,
        text="The parts of each score, which add up to it, and the interactions of the history with the largest effect "
        "on each. The memory's part of an effect is exact; the network's is measured by leaving the interaction out.",
    ),
    Operation("GET", "/version", "State", "Which version answers at present?", VersionAnswer, statuses=(503,)),
    Operation("GET", "/partitions", "State", "Which server holds which users?", PartitionsAnswer),
    Operation("GET", "/healthz", "State", "Is the server alive?", Health, role=""),
    Operation(
        "GET", "/readyz", "State", "Is the server ready to answer?", Readiness, role="", statuses=(503,),
        text="200 once there is a version and the histories were read; until then 503, with the same body.",
    ),
    Operation("GET", "/metrics", "State", "Metrics for Prometheus", None, media="text/plain"),
)  # fmt: skip
ACTIONS = Operation(
    "POST", "/actions", "Administration", "Send an action through Kafka", SentAction, ActionRequest, role="admin",
    statuses=(503,), example={"user": "u1", "item": 318, "action": "click"},
    text="As your own producer would: the action takes the same path as any other. Only with `serving.allow_actions`.",
)  # fmt: skip
FORGET = Operation(
    "POST", "/forget", "Administration", "Forget a user or an item", SentRequest, ForgetRequest, role="admin",
    statuses=(503,), example={"user": "u1"},
    text="Like `headrace forget`: sends a request through the actions topic. Only with `serving.allow_forget`.",
)  # fmt: skip
PAGE = (
    Operation("GET", "/about", "Page", "What may the page show and do?", About),
    Operation(
        "GET", "/events", "Page", "The pipeline, second by second", None, media="text/event-stream", statuses=(503,),
        text="Server-sent events: first `points` (the last 15 minutes), then one `point` a second.",
    ),
    Operation("GET", "/users", "Page", "Which users acted most recently, of those held here?", UsersAnswer),
    Operation(
        "GET", "/history", "Page", "What did a user do?", HistoryAnswer, parameter="user", statuses=(422, 503),
        is_of_users=True,
        text="The newest interactions, on which the next answer will be based.",
    ),
)  # fmt: skip
"""The operations that `serving.page` adds."""
BY_PATH = {each.path: each for each in (*OPERATIONS, FORGET, ACTIONS, *PAGE)}


def operations_of(config: ServingConfig) -> tuple[Operation, ...]:
    """The operations that this configuration offers."""
    allowed = [each for each, is_on in ((FORGET, config.allow_forget), (ACTIONS, config.allow_actions)) if is_on]
    return (*OPERATIONS, *allowed, *(PAGE if config.page else ()))


def limits(config: ServingConfig) -> dict[str, Limit]:
    """By name of a field: the most that it may be, or have, and the setting that says so."""
    candidates = (config.max_candidates, "serving.max_candidates")
    return {
        "k": (config.max_k, "serving.max_k"), "items": candidates, "allow": candidates, "deny": candidates,
        "history": (config.max_history, "serving.max_history"),
        "requests": (config.max_requests, "serving.max_requests"),
    }  # fmt: skip
