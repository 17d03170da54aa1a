"""What a server can be told."""

from __future__ import annotations

from dataclasses import dataclass

from wire.checks import ABOVE_0, AT_LEAST_1, Limit, Number, Switch, Text, Word, check_fields

CLOCKS = ("auto", "wall", "event")
DEVICES = ("auto", "cpu", "cuda")
BACKENDS = ("auto", "reference")

SERVING_LIMITS: dict[str, Limit] = {
    "host": Text(r".+", "an address", "0.0.0.0 listens on every interface"),
    "port": Number(0, 65_535, whole=True, advice="0 takes any free port, 8080 is usual"),
    "name": Text(),
    "device": Word(DEVICES, "use auto"),
    "backend": Word(BACKENDS, "use auto"),
    "num_threads": AT_LEAST_1,
    "num_workers": AT_LEAST_1,
    "max_batch": AT_LEAST_1,
    "max_waiting": AT_LEAST_1,
    "max_wait_s": ABOVE_0,
    "clock": Word(CLOCKS, "use auto"),
    "replay_after_s": ABOVE_0,
    "max_k": AT_LEAST_1,
    "max_candidates": AT_LEAST_1,
    "max_history": AT_LEAST_1,
    "max_requests": AT_LEAST_1,
    "max_body_bytes": AT_LEAST_1,
    "read_timeout_s": ABOVE_0,
    "candidates_per_pass": AT_LEAST_1,
    "cache_bytes": Number(0, whole=True, advice="0 turns it off"),
    "cache_versions": Number(0, whole=True, advice="0 is exact"),
    "cache_error": Number(0, open_low=True, advice="cache_versions = 0 is exact"),
    "warm_s": Number(0, advice="0 turns it off"),
    "history_bytes": AT_LEAST_1,
    "connect_timeout_s": ABOVE_0,
    "swap_wait_s": Number(0, advice="1 is usual"),
    "drain_timeout_s": ABOVE_0,
    "status_every_s": ABOVE_0,
    "pin": Text(r"(\d+/\d+)?", "EPOCH/NUMBER, such as 3/17, or nothing", "`headrace versions` lists them"),
    "guard": Switch(),
    "guard_hr_drop": Number(0, 1, open_low=True, open_high=True, advice="0.5 is usual"),
    "guard_ne_rise": ABOVE_0,
    "guard_calibration": Number(1, open_low=True, advice="3 is usual"),
    "guard_min_targets": AT_LEAST_1,
    "access_log": Switch(),
    "tokens_file": Text(),
    "titles_file": Text(),
    "page": Switch(),
    "freshness_objective_s": ABOVE_0,
    "allow_actions": Switch(),
    "allow_forget": Switch(),
}


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
    guard: bool = False
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
    allow_forget: bool = False
    """Let ``POST /forget`` have users and items forgotten. With tokens: to admins."""

    def __post_init__(self) -> None:
        check_fields(self, "serving", SERVING_LIMITS)
