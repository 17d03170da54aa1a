"""The bodies of requests; `serving.http.openapi` describes the same types.

Unknown fields are refused everywhere: a misspelt option must not silently fall back to its default. If a key occurs
twice in an object, the last value counts, as in most JSON parsers. `serving.validation` reports the ``expected`` of a
type to clients that sent something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from wire.action_json import MAX_KEY_LEN, MAX_VALUE

MAX_KEY, MAX_EXPLAINED, MAX_REASONS = MAX_KEY_LEN, 100, 50
_INTEGER, _STRING = Meta(ge=-(2**63), le=2**63 - 1), Meta(min_length=1, max_length=MAX_KEY)
Id = Annotated[
    Annotated[int, _INTEGER] | Annotated[str, _STRING],
    Meta(extra={"expected": f"an integer, or a string of 1 to {MAX_KEY} characters"}),
]
Kind = Annotated[str, _STRING, Meta(extra={"expected": "the name of a kind of action"})]
Milliseconds = Annotated[
    int,
    Meta(ge=0, le=253_402_300_799_999, description="milliseconds since the epoch",
         extra={"expected": "an integer: milliseconds since the epoch"}),
]  # fmt: skip
Worth = Annotated[float, Meta(ge=-1e9, le=1e9, extra={"expected": "a number from -1e9 to 1e9"})]
Age = Annotated[float, Meta(ge=0, le=1e10, extra={"expected": "seconds, 0 to 1e10"})]
Value = Annotated[
    float, Meta(ge=-MAX_VALUE, le=MAX_VALUE, extra={"expected": f"a number from -{MAX_VALUE:.7g} to {MAX_VALUE:.7g}"})
]
"""A float32, as the model takes it."""
Positive = Annotated[int, Meta(ge=1, extra={"expected": "an integer, 1 or more"})]


class _Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class HistoryEntry(_Request, frozen=True, kw_only=True):
    """One interaction of a history sent with the request."""

    item: Id
    action: Annotated[
        Kind | Annotated[list[Kind], Meta(max_length=64)],
        Meta(description="the kind, or kinds, of action", extra={"expected": "a kind of action, or a list of kinds"}),
    ]
    timestamp: Milliseconds
    value: Value | None = None
    domain: Id | None = None


class _Asking(_Request, frozen=True, kw_only=True):
    ABSENT: ClassVar[Mapping[str, str]] = {
        "domain": "remove it: what is recommended does not depend on it. To choose among the items of some domains, "
        "send domains to /recommend"
    }
    """What to do about fields that others of these requests have."""

    user: Annotated[Id | None, Meta(description="whose history to answer from; or give `history`")] = None
    history: Annotated[
        list[HistoryEntry] | None, Meta(description="interactions to answer from, instead of `user`")
    ] = None
    timestamp: Annotated[Milliseconds | None, Meta(description="the moment to answer for; none: now")] = None

    def __post_init__(self) -> None:
        if (self.user is None) == (self.history is None):
            raise ValueError("expected either user or history")


class RecommendRequest(_Asking, frozen=True, kw_only=True):
    """Which items next?"""

    k: Annotated[Positive, Meta(description="how many items, at most `serving.max_k`")] = 10
    exclude_seen: Annotated[
        bool | None,
        Meta(description="leave out items that the history contains; none: only if the stream has hardly any repeats"),
    ] = None
    allow: Annotated[list[Id] | None, Meta(description="choose only among these items")] = None
    deny: Annotated[list[Id], Meta(description="leave these items out")] = []
    domains: Annotated[
        Annotated[list[Id], Meta(max_length=64)] | None,
        Meta(description="choose only among items that were last seen in one of these domains"),
    ] = None
    features: Annotated[
        Annotated[dict[Kind, Annotated[list[Id], Meta(max_length=64)]], Meta(max_length=64)] | None,
        Meta(description="choose only among items that were last seen with one of these values of each feature",
             extra={"expected": "an object: a list of values for each feature"}),
    ] = None  # fmt: skip
    min_age_s: Annotated[
        Age | None, Meta(description="choose only among items that were first seen at least this long ago")
    ] = None
    max_age_s: Annotated[
        Age | None, Meta(description="choose only among items that were first seen at most this long ago")
    ] = None
    diversity: Annotated[
        float,
        Meta(ge=0, le=1, description="0: the best scores; towards 1, no item that resembles those before it",
             extra={"expected": "a number from 0 to 1"}),
    ] = 0.0  # fmt: skip

    @property
    def is_filtered(self) -> bool:
        """Whether it has conditions on the items that the server has to look up."""
        return any(each is not None for each in (self.domains, self.features, self.min_age_s, self.max_age_s))


class RankRequest(_Asking, frozen=True, kw_only=True):
    """How likely is each kind of action on each of these items?"""

    items: Annotated[list[Id], Meta(min_length=1, description="candidates, at most `serving.max_candidates`")]
    domain: Annotated[Id | None, Meta(description="the domain to rank for; none: the history's last")] = None
    weights: Annotated[
        Annotated[dict[Kind, Worth], Meta(min_length=1, max_length=64)] | None,
        Meta(
            description="what each kind of action is worth; each item then has a score, the sum of its probabilities "
            "times what they are worth",
            extra={"expected": "an object: a number for each kind of action"},
        ),
    ] = None


class RecommendBatchRequest(_Request, frozen=True, kw_only=True):
    """Several requests at once, answered by one version."""

    requests: Annotated[list[RecommendRequest], Meta(min_length=1, description="at most `serving.max_requests`")]


class RankBatchRequest(_Request, frozen=True, kw_only=True):
    """Several requests at once, answered by one version."""

    requests: Annotated[list[RankRequest], Meta(min_length=1, description="at most `serving.max_requests`")]


class SimilarRequest(_Request, frozen=True, kw_only=True):
    """Which items are similar to this one?"""

    item: Id
    k: Annotated[Positive, Meta(description="how many items, at most `serving.max_k`")] = 10


class ItemsRequest(_Request, frozen=True, kw_only=True):
    """What is known about these items?"""

    items: Annotated[list[Id], Meta(min_length=1, description="at most `serving.max_candidates`")]


class ExplainRequest(_Asking, frozen=True, kw_only=True):
    """Why these items?"""

    items: Annotated[
        Annotated[list[Id], Meta(min_length=1, max_length=MAX_EXPLAINED)] | None,
        Meta(description="items to explain; none: those that would be recommended"),
    ] = None
    k: Annotated[
        int, Meta(ge=1, le=MAX_EXPLAINED, description="without `items`: how many to recommend and explain",
                  extra={"expected": f"an integer from 1 to {MAX_EXPLAINED}"}),
    ] = 10  # fmt: skip
    exclude_seen: Annotated[bool | None, Meta(description="as /recommend")] = None
    reasons: Annotated[
        int, Meta(ge=0, le=MAX_REASONS, description="interactions to list for each item, the largest effects first",
                  extra={"expected": f"an integer from 0 to {MAX_REASONS}"}),
    ] = 3  # fmt: skip
    network: Annotated[
        bool,
        Meta(description="measure the newest interactions' effect on the network, which takes some milliseconds"),
    ] = True


class ActionRequest(_Request, frozen=True, kw_only=True):
    """An action to send through Kafka, as a producer would; the server adds a timestamp and an id."""

    user: Id
    item: Id
    action: Annotated[
        Kind | Annotated[list[Kind], Meta(min_length=1, max_length=64)],
        Meta(description="one or several of the kinds that the model knows",
             extra={"expected": "a kind of action, or a list of kinds"}),
    ]  # fmt: skip
    value: Value | None = None
    domain: Id | None = None


class ForgetRequest(_Request, frozen=True, kw_only=True):
    """Forget a user, or an item."""

    user: Annotated[Id | None, Meta(description="forget the user's history, everywhere")] = None
    item: Annotated[Id | None, Meta(description="stop recommending the item, and learn nothing about it")] = None
    undo: Annotated[bool, Meta(description="for an item: revoke an earlier request")] = False

    def __post_init__(self) -> None:
        if (self.user is None) == (self.item is None) or (self.undo and self.item is None):
            raise ValueError("expected either user or item, and undo with an item alone")
