"""What a server can be told."""

from __future__ import annotations

import re
from dataclasses import dataclass

from wire.checks import expect

CLOCKS = ("auto", "wall", "event")
DEVICES = ("auto", "cpu", "cuda")
BACKENDS = ("auto", "reference")


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """How a server listens, how much it keeps, and how it works. Times in seconds, sizes in bytes.

    The model's shape is not here: every version brings it along.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    name: str = ""
    """Key of this server's status records; empty: ``server@HOST:PORT``, with the machine's name as HOST."""
    device: str = "auto"
    backend: str = "auto"
    num_threads: int = 1
    """Threads inside one computation (torch)."""
    num_workers: int = 1
    """Threads that answer requests; each takes everything that waits, up to `max_batch`, and answers it at once."""
    max_batch: int = 16
    max_waiting: int = 1024
    """Requests that may wait; more are answered 503 at once."""
    max_wait_s: float = 0.5
    """How long a request may be expected to wait, as measured; where it would be longer it is answered 503 at once,
    with Retry-After."""
    clock: str = "auto"
    """What "now" is when a request gives no timestamp. ``event``: the newest event time seen; ``wall``: this machine's
    clock; ``auto``: wall, unless the newest event is older than `replay_after_s` (then old data is being replayed)."""
    replay_after_s: float = 86_400.0
    max_k: int = 1000
    max_candidates: int = 10_000
    max_history: int = 1000
    max_requests: int = 64
    """Requests in one body of ``/recommend/batch`` or ``/rank/batch``."""
    max_body_bytes: int = 256_000
    """Larger bodies are answered 413, before they are read."""
    read_timeout_s: float = 10.0
    """How long a client may take to send the head of a request, and then its body."""
    candidates_per_pass: int = 2048
    """Candidates are ranked this many at a time: bounds the memory of one request."""
    cache_bytes: int = 256_000_000
    """Bound of cached keys and values; 0 turns the cache off."""
    cache_versions: int = 16
    """What so many versions ago was cached may serve, while that changes no score by more than `cache_error`, as
    measured on the requests themselves; before that is known, and where it is not so, answers are exact. 0: always."""
    cache_error: float = 0.05
    """In units of scores: 0.05 is a chance that is 5% higher or lower than it would be."""
    warm_s: float = 0.25
    """How long a new version may wait while what the cache held for the last one is computed for it, of the users who
    have asked since, the latest first; 0: requests pay for it."""
    history_bytes: int = 1_000_000_000
    """Bound of stored histories. The users that have been quiet longest are forgotten (and answered as cold)."""
    connect_timeout_s: float = 20.0
    """How long to try to reach the broker at start before giving up."""
    swap_wait_s: float = 1.0
    """How long a new version waits for requests on the version before the last; then it pays for a copy instead."""
    drain_timeout_s: float = 20.0
    """How long requests in flight get to finish after SIGTERM."""
    status_every_s: float = 1.0
    pin: str = ""
    """Answer from this version, ``EPOCH/NUMBER``, whatever comes; empty: from the newest good one, or from what
    ``headrace pin`` says."""
    guard: bool = True
    """Hold back versions whose trainer says that they are worse than the last good ones, by more than the following.
    They are taken over and reported, but do not answer, until one is good again."""
    guard_hr_drop: float = 0.5
    """A fall of HR@10 by this share."""
    guard_ne_rise: float = 0.25
    """A rise of normalised entropy by this share."""
    guard_calibration: float = 3.0
    """Predictions of so many times what comes, or one over that."""
    guard_min_targets: int = 1000
    """A version that was measured on fewer targets says nothing; of a new line of training it is held back."""
    access_log: bool = False
    tokens_file: str = ""
    """A TOML file of bearer tokens, ``read = [...]`` and ``admin = [...]``; empty: whoever reaches the port may ask."""
    titles_file: str = ""
    """A file of ``ID<TAB>TITLE`` lines: what people call the items, for ``/items`` and the page."""
    page: bool = True
    """Serve the page at ``/``, with what it shows: the pipeline's state, users seen of late, and their histories."""
    freshness_objective_s: float = 10.0
    """How old the newest learned action may be before the page says that the server is behind."""
    allow_actions: bool = False
    """Let the page (and ``POST /actions``) send actions to the actions topic. With tokens: to admins."""

    def __post_init__(self) -> None:
        expect(bool(self.host), "serving.host", "an address", self.host, "0.0.0.0 listens on every interface")
        expect(0 <= self.port < 65536, "serving.port", "0 (any free port) to 65535", self.port, "8080 is usual")
        expect(self.device in DEVICES, "serving.device", f"one of {DEVICES}", self.device, "use auto")
        expect(self.backend in BACKENDS, "serving.backend", f"one of {BACKENDS}", self.backend, "use auto")
        expect(self.clock in CLOCKS, "serving.clock", f"one of {CLOCKS}", self.clock, "use auto")
        for key in ("num_threads", "num_workers", "max_batch", "max_waiting", "max_k", "max_candidates", "max_history",
                    "max_requests", "max_body_bytes", "max_wait_s", "freshness_objective_s", "read_timeout_s",
                    "candidates_per_pass", "history_bytes", "guard_ne_rise", "guard_min_targets", "replay_after_s",
                    "connect_timeout_s", "drain_timeout_s", "status_every_s"):  # fmt: skip
            value = getattr(self, key)
            expect(value > 0, f"serving.{key}", "a number above 0", value, "leave it out to get the default")
        expect(not self.pin or re.fullmatch(r"\d+/\d+", self.pin) is not None, "serving.pin",
               "EPOCH/NUMBER, such as 3/17, or nothing", self.pin, "`headrace versions` lists them")  # fmt: skip
        expect(
            0 < self.guard_hr_drop < 1, "serving.guard_hr_drop", "between 0 and 1", self.guard_hr_drop, "0.5 is usual"
        )
        expect(self.guard_calibration > 1, "serving.guard_calibration", "above 1", self.guard_calibration, "3 is usual")
        expect(self.cache_bytes >= 0, "serving.cache_bytes", "0 (off) or more", self.cache_bytes, "0 turns it off")
        expect(
            self.cache_versions >= 0, "serving.cache_versions", "0 (exact) or more", self.cache_versions, "0 is exact"
        )
        expect(self.warm_s >= 0, "serving.warm_s", "0 or more", self.warm_s, "0 is off")
        expect(self.cache_error > 0, "serving.cache_error", "above 0", self.cache_error, "cache_versions = 0 is exact")
        expect(self.swap_wait_s >= 0, "serving.swap_wait_s", "0 or more", self.swap_wait_s, "1 is usual")
