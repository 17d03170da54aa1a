"""The bodies of requests and answers, as the OpenAPI page shows them.

Unknown fields are refused everywhere: a misspelt option must not pass for a default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, model_validator
from pydantic_core import PydanticCustomError

MAX_KEY = 512
Id = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | Annotated[StrictStr, Field(min_length=1, max_length=MAX_KEY)]
Kind = Annotated[StrictStr, Field(min_length=1, max_length=MAX_KEY)]
Milliseconds = Annotated[StrictInt, Field(ge=0, le=253_402_300_799_999, description="milliseconds since the epoch")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HistoryEntry(_Strict):
    """One interaction of a history that comes with the request."""

    item: Id
    action: Kind | list[Kind] = Field(description="the kind, or kinds, of action")
    timestamp: Milliseconds
    value: float | None = None
    domain: Id | None = None


_GIVEN, _ABSENT = {"not": {"type": "null"}}, {"type": "null"}
_ONE_OF = [
    {"required": ["user"], "properties": {"user": _GIVEN, "history": _ABSENT}},
    {"required": ["history"], "properties": {"user": _ABSENT, "history": _GIVEN}},
]


class _Asking(_Strict):
    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"oneOf": _ONE_OF})  # type: ignore[dict-item]

    user: Id | None = Field(default=None, description="whose history to answer from; or give `history`")
    history: list[HistoryEntry] | None = Field(
        default=None, description="interactions to answer from, instead of `user`"
    )
    domain: Id | None = Field(default=None, description="the domain asked for; none: the history's last")
    timestamp: Milliseconds | None = Field(default=None, description="the moment asked about; none: now")

    @model_validator(mode="before")
    @classmethod
    def _one_of_user_and_history(cls, values: Any) -> Any:
        if isinstance(values, dict) and (values.get("user") is None) == (values.get("history") is None):
            given = "both" if values.get("user") is not None else "neither"
            raise PydanticCustomError("one_of", "either user or history", {"given": given})
        return values


class RecommendRequest(_Asking):
    """Which items next?"""

    k: Annotated[StrictInt, Field(ge=1)] = Field(default=10, description="how many items, at most `serving.max_k`")
    exclude_seen: bool = Field(default=True, description="leave out what the history contains", strict=True)


class RankRequest(_Asking):
    """How likely is each kind of action on each of these items?"""

    items: list[Id] = Field(min_length=1, description="candidates, at most `serving.max_candidates`")


class VersionName(BaseModel):
    """Which weights answered."""

    epoch: int
    number: int


class ScoredItem(BaseModel):
    """An item and its score: higher is better; comparable within one answer only."""

    item: int | str
    score: float


class _Answer(BaseModel):
    version: VersionName
    freshness_s: float = Field(description="age of the newest action that these weights have learned from")
    cold: bool = Field(
        description="true: nothing is known of the user, the answer is what is popular, or a first guess"
    )
    num_history: int = Field(description="interactions that the answer used")


class RecommendAnswer(_Answer):
    """Items, best first; fewer than k where the catalogue has no more."""

    items: list[ScoredItem]


class RankedItem(BaseModel):
    """One candidate: the probability of each kind of action, and whether the model knows the item."""

    item: int | str
    known: bool
    probabilities: dict[str, float]


class RankAnswer(_Answer):
    """The candidates, in the order that they came."""

    items: list[RankedItem]


class VersionAnswer(BaseModel):
    """The version that answers now."""

    version: VersionName
    model_id: str
    freshness_s: float
    age_s: float = Field(description="since this server swapped to it")
    num_items: int
    num_interactions: int = Field(description="interactions that these weights have learned from")


class Health(BaseModel):
    """Alive."""

    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    """What the server has of what it needs."""

    ready: bool
    version: VersionName | None
    histories: bool = Field(description="the sequences topic was read to the end that it had at start")
    broker: bool = Field(description="the broker answers; if not, answers come from the last version")
    broker_away_s: float
    freshness_s: float | None


class Problem(BaseModel):
    """One thing that was wrong with a request."""

    field: str
    expected: str
    got: Any = None
    do: str


class Refusal(BaseModel):
    """Why there is no answer."""

    detail: list[Problem]
