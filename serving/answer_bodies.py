"""The bodies of answers, refusals among them; `serving.http.openapi` describes the same types."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType


class VersionName(Struct, frozen=True):
    """The version that answered."""

    epoch: int
    number: int


class ScoredItem(Struct, frozen=True, gc=False):
    """An item and its score: higher is better; comparable only within one answer."""

    item: int | str
    score: float


class _Answer(Struct, frozen=True, kw_only=True):
    version: VersionName
    freshness_s: Annotated[float, Meta(description="age of the newest action that these weights have learned from")]
    cold: Annotated[
        bool, Meta(description="true: nothing is known about the user; the answer is what is popular, or a first guess")
    ]
    num_history: Annotated[int, Meta(description="how many interactions the answer is based on")]


class RecommendAnswer(_Answer, frozen=True, kw_only=True):
    """Items, best first; fewer than k if no more can be recommended."""

    items: list[ScoredItem]


class RankedItem(Struct, frozen=True, gc=False):
    """A candidate: the probability of each kind of action, and whether the model knows the item."""

    item: int | str
    known: bool
    probabilities: dict[str, float]
    value: Annotated[
        float | UnsetType, Meta(description="with `model.predict_value`: what is expected of the action's value")
    ] = UNSET
    score: Annotated[
        float | UnsetType, Meta(description="with `weights`: the sum of the probabilities, each times its weight")
    ] = UNSET


class RankAnswer(_Answer, frozen=True, kw_only=True):
    """The candidates, in the order of the request."""

    items: list[RankedItem]


class RecommendBatchAnswer(Struct, frozen=True):
    """An answer for each request, in the same order."""

    answers: list[RecommendAnswer]


class RankBatchAnswer(Struct, frozen=True):
    """An answer for each request, in the same order."""

    answers: list[RankAnswer]


class SimilarAnswer(Struct, frozen=True, kw_only=True):
    """Items with the most similar embeddings, the most similar first; none if the model does not know the item."""

    version: VersionName
    known: bool
    items: Annotated[list[ScoredItem], Meta(description="the score is the cosine similarity")]


class Reason(Struct, frozen=True, kw_only=True):
    """An interaction of the history, and its effect on an item's score."""

    item: int | str
    title: str | None
    timestamp: int
    memory: Annotated[float, Meta(description="its contribution to the memory's part; exact")]
    network: Annotated[
        float | None,
        Meta(description="how much lower the network's part would be without it; none: not measured"),
    ]
    after: Annotated[float, Meta(description="how often users chose the explained item after it; a decayed count")]
    before: Annotated[float, Meta(description="how often users chose it before; a decayed count")]


class ExplainedItem(Struct, frozen=True, kw_only=True):
    """An item's score and its parts: `standing`, `memory`, `groups`, `network` and `reranking` add up to it."""

    item: int | str
    title: str | None
    known: bool
    left_out: Annotated[
        bool, Meta(description="would not be recommended, because the user has met it or it is unknown; the score is "
                   "the one that it would have")
    ]  # fmt: skip
    score: Annotated[float | None, Meta(description="as in /recommend; none for an unknown item")]
    standing: Annotated[float | None, Meta(description="the part that is the same for all users: popularity and age")]
    memory: Annotated[
        float | None,
        Meta(description="from the history: what users chose after and before its items, and these themselves"),
    ]
    groups: Annotated[
        float | None,
        Meta(description="from its features: its category, brand, ... is likelier after this history than usual"),
    ]
    network: Annotated[float | None, Meta(description="the network's logit, weighted")]
    reranking: Annotated[float | None, Meta(description="what rescoring the best items with each other adds")]
    reasons: list[Reason]


class ExplainAnswer(_Answer, frozen=True, kw_only=True):
    """The items, best first, or in the order of the request."""

    items: list[ExplainedItem]


class ItemFacts(Struct, frozen=True, gc=False):
    """What is known about an item."""

    item: int | str
    known: Annotated[bool, Meta(description="whether the item has an embedding of its own")]
    title: Annotated[str | None, Meta(description="from `serving.titles_file`")] = None


class ItemsAnswer(Struct, frozen=True, kw_only=True):
    """The items, in the order of the request."""

    version: VersionName
    items: list[ItemFacts]


class SentAction(Struct, frozen=True):
    """The action's id, and where the broker stored it."""

    id: str
    partition: int
    offset: int
    timestamp: int
    record_ms: Annotated[int, Meta(description="the record's Kafka timestamp; compare `newest_record_ms` of /version")]


class SentRequest(Struct, frozen=True):
    """Where the broker stored the request; the worker carries it out when it reaches that offset."""

    partition: int
    offset: int


class PastInteraction(Struct, frozen=True, gc=False):
    """One of a user's interactions: the item, and all kinds of action that have arrived for it."""

    item: int | str
    title: str | None
    actions: list[str]
    timestamp: int


class HistoryAnswer(Struct, frozen=True, kw_only=True):
    """What the server knows about a user, newest first: the next answer will be based on it."""

    user: str
    num_history: int
    interactions: list[PastInteraction]


class UsersAnswer(Struct, frozen=True):
    """The users that acted most recently, newest first."""

    users: list[str]


class About(Struct, frozen=True, kw_only=True):
    """What the page may show and do on this server."""

    kinds: Annotated[list[str], Meta(description="kinds of action that the model knows; none before the first version")]
    allow_actions: bool
    objective_s: Annotated[float, Meta(description="`serving.freshness_objective_s`")]


class VersionAnswer(Struct, frozen=True, kw_only=True):
    """The version that answers at present."""

    version: VersionName
    model_id: str
    freshness_s: float
    age_s: Annotated[float, Meta(description="time since this server swapped to it")]
    num_items: int
    num_interactions: Annotated[int, Meta(description="interactions that these weights have learned from")]
    newest_record_ms: Annotated[int, Meta(description="Kafka timestamp of the newest action that they learned from")]


class Health(Struct, frozen=True):
    """``alive``; or ``failed``, shortly before the process ends, because it no longer follows its topics."""

    status: Literal["alive", "failed"] = "alive"


class Readiness(Struct, frozen=True, kw_only=True):
    """Which of its preconditions the server has met."""

    ready: bool
    version: VersionName | None
    histories: Annotated[bool, Meta(description="the sequences topic was read up to the end that it had at startup")]
    broker: Annotated[bool, Meta(description="whether the broker answers; if not, the last version keeps answering")]
    broker_away_s: float
    freshness_s: float | None
    waits_for: Annotated[str, Meta(description="what a server that is not ready waits for, as one line")] = ""
    line: Annotated[str, Meta(description="the line of training that is followed; empty: the main one")] = ""
    pinned: Annotated[
        VersionName | None, Meta(description="the version pinned by an operator; none: the newest good one answers")
    ] = None
    held: Annotated[VersionName | None, Meta(description="a newer or pinned version that is held back")] = None
    why: Annotated[str, Meta(description="why it is held back")] = ""
    partitions: Annotated[str, Meta(description="`serving.partitions`: whose users are held here")] = "all"
    unheld: Annotated[
        list[int],
        Meta(description="partitions whose users no server holds now: requests for them are answered 503"),
    ] = []
    recall: Annotated[
        float | None, Meta(description="the share of the exact answers' items that the search by lists finds, lately")
    ] = None


class Holder(Struct, frozen=True):
    """A server, the base URL under which other servers reach it, and the partitions whose users it holds."""

    server: str
    address: str
    partitions: list[int]


class PartitionsAnswer(Struct, frozen=True, kw_only=True):
    """Who holds which users. A user's partition is (murmur2 of the id as a string in UTF-8, without the sign bit)
    modulo `num_partitions`, as Kafka's Java client computes it."""

    num_partitions: Annotated[int, Meta(description="0 while that is not known yet")]
    held: Annotated[list[int], Meta(description="held by the server that answers")]
    unheld: Annotated[list[int], Meta(description="held by no server at present")]
    others: Annotated[list[Holder], Meta(description="other servers; none are known to one that holds all users")]


class Problem(Struct, frozen=True, kw_only=True):
    """One thing that is wrong with a request."""

    field: str
    expected: str
    got: Any = None
    do: str


class Refusal(Struct, frozen=True):
    """Why the request was refused: the first 20 problems."""

    detail: list[Problem]
