"""A server's configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass

from serving.users.addresses import Addresses, OwnAddress
from wire.checks import ABOVE_0, AT_LEAST_1, Limit, Number, Switch, Text, Word, above_0, at_least_1, check_fields
from wire.cluster import SILENT_MS
from wire.holding import Partitions

CLOCKS = ("auto", "wall", "event")
DEVICES = ("auto", "cpu", "cuda")
BACKENDS = ("auto", "reference")
SEARCHES = ("exact", "index")
MAX_STATUS_EVERY_S = SILENT_MS / 2000
"""Half of the time after which others take a server for silent, so that one report may be late."""
SILENCE = f"1 is usual; whoever says nothing for {SILENT_MS // 1000} s counts as silent"

SERVING_LIMITS: dict[str, Limit] = {
    "host": Text(r".+", "an address", "0.0.0.0 listens on every interface"),
    "port": Number(0, 65_535, whole=True, advice="0 takes any free port, 8080 is usual"),
    "name": Text(),
    "partitions": Partitions(),
    "address": OwnAddress(),
    "peers": Addresses(),
    "peer_timeout_s": above_0(0.05, 120),
    "device": Word(DEVICES, "use auto"),
    "backend": Word(BACKENDS, "use auto"),
    "num_threads": Number(1, 1024, whole=True, advice="1 is usual"),
    "num_workers": Number(1, 1024, whole=True, advice="as many as processors is the most that helps"),
    "max_batch": AT_LEAST_1,
    "max_waiting": AT_LEAST_1,
    "max_wait_s": above_0(0.005, 60),
    "clock": Word(CLOCKS, "use auto"),
    "historical_after_s": above_0(600),
    "max_k": AT_LEAST_1,
    "max_candidates": AT_LEAST_1,
    "max_history": AT_LEAST_1,
    "max_requests": AT_LEAST_1,
    "max_body_bytes": at_least_1(1_000),
    "read_timeout_s": above_0(0.1, 600),
    "candidates_per_pass": AT_LEAST_1,
    "search": Word(SEARCHES, "exact looks at all items, index at the likely ones"),
    "search_probes": AT_LEAST_1,
    "search_recall": Number(0, 1, advice="0.95 is usual; 0 never warns"),
    "search_least_items": AT_LEAST_1,
    "search_compare_s": Number(0, advice="2 is usual; 0 never compares", usual=(0.001, 600)),
    "cache_bytes": Number(0, whole=True, advice="0 turns it off", usual=(1e6, math.inf)),
    "cache_versions": Number(0, whole=True, advice="0 is exact"),
    "cache_error": Number(0, open_low=True, advice="cache_versions = 0 is exact"),
    "warm_s": Number(0, advice="0 turns it off", usual=(0.001, 30)),
    "history_bytes": at_least_1(2e6),
    "catalogue_items": AT_LEAST_1,
    "tables_folder": Text(),
    "swap_wait_s": Number(0, advice="1 is usual", usual=(0.001, 120)),
    "drain_timeout_s": above_0(0.1, 3_600),
    "status_every_s": Number(0, MAX_STATUS_EVERY_S, open_low=True, advice=SILENCE, usual=(0.05, MAX_STATUS_EVERY_S)),
    "pin": Text(r"([0-9]+/[0-9]+)?", "EPOCH/NUMBER, such as 3/17, or nothing", "`headrace versions` lists them"),
    "guard": Switch(),
    "guard_hr_drop": Number(0, 1, open_low=True, open_high=True, advice="0.5 is usual"),
    "guard_ne_rise": above_0(0.001, 10),
    "guard_calibration": Number(1, open_low=True, advice="3 is usual", usual=(1, 100)),
    "guard_min_targets": AT_LEAST_1,
    "guard_patience_s": Number(0, advice="60 is usual; 0 never gives in"),
    "guard_new_line_s": Number(0, advice="3600 is usual; 0 never gives in"),
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

    The model's shape is not set here: it comes with every version.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    name: str = ""
    """Key of this server's status records; empty: ``server@HOST:PORT``, where HOST is the machine's name."""
    partitions: str = "all"
    """The partitions whose users' histories this server keeps (`wire.holding`). Requests for other users are forwarded
    to servers that hold them."""
    address: str = ""
    """The base URL under which other servers reach this one; empty: made of `host` and `port`, with the machine's name
    instead of a host that means every interface."""
    peers: tuple[str, ...] = ()
    """The base URLs to which requests may be forwarded; empty: those of all servers that report."""
    peer_timeout_s: float = 3.0
    """How long another server may take to answer a forwarded request; then one other that holds the user is asked."""
    device: str = "auto"
    backend: str = "auto"
    num_threads: int = 1
    """Threads within one computation (torch)."""
    num_workers: int = 1
    """Threads that answer requests; each takes up to `max_batch` of those waiting, and answers them together."""
    max_batch: int = 16
    max_waiting: int = 1024
    """Requests that may wait; more are answered 503 at once."""
    max_wait_s: float = 0.5
    """The longest expected wait, as measured; a request that would have to wait longer is answered 503 at once, with
    Retry-After."""
    clock: str = "auto"
    """What "now" means for a request without a timestamp. ``event``: the newest event time seen; ``wall``: this
    machine's clock; ``auto``: wall, unless the newest event is older than `historical_after_s`, which means that
    historical data is being processed."""
    historical_after_s: float = 86_400.0
    max_k: int = 1000
    max_candidates: int = 10_000
    max_history: int = 1000
    max_requests: int = 64
    """Requests in one body of ``/recommend/batch`` or ``/rank/batch``."""
    max_body_bytes: int = 256_000
    """Larger bodies are answered 413, without being read."""
    read_timeout_s: float = 10.0
    """How long a client may take to send a request's headers, and then again its body."""
    candidates_per_pass: int = 2048
    """Candidates are ranked this many at a time, to bound the memory of one request."""
    search: str = "exact"
    """Where the best items are looked for. ``exact``: everywhere; ``index``: among those that the lists closest to the
    user's query contain, the most popular and most recent ones, what follows the user's past choices, and what has
    changed lately. Scores are the same."""
    search_probes: int = 32
    """How many lists a query looks at; there are some 2 √items of them. More: better recall, slower."""
    search_recall: float = 0.95
    """A lower share of the exact answers' items is logged, and has the lists made anew."""
    search_least_items: int = 1_000_000
    """Smaller catalogues are always answered exactly."""
    search_compare_s: float = 2.0
    """One answer in so many seconds is compared with the exact one; 0: none."""
    cache_bytes: int = 256_000_000
    """Bound on cached keys and values; 0 turns the cache off."""
    cache_versions: int = 16
    """Keys and values cached up to this many versions ago may be reused as long as that changes no score by more than
    `cache_error`, as measured on real requests. Until enough is measured, and if it is exceeded, answers are exact.
    0: answers are always exact."""
    cache_error: float = 0.05
    """In units of scores: 0.05 is a probability about 5% higher or lower than the exact one."""
    warm_s: float = 0.25
    """How long a new version may be held up to recompute cache entries for it, for the users with requests since the
    last swap, the most recent first; 0: requests compute them."""
    history_bytes: int = 1_000_000_000
    """Bound on stored histories. The users that have been quiet longest are forgotten (and answered as cold)."""
    catalogue_items: int = 10_000_000
    """Of how many items domain, features and first time are kept, for filters and for ranking: some 60 bytes each and 8
    for each feature. Beyond that, a quarter is forgotten: those that have not been seen for longest."""
    tables_folder: str = ""
    """Where tables and memory are kept in files, beyond what fits in memory (`model.growing`); empty: in memory."""
    swap_wait_s: float = 1.0
    """How long a new version waits for requests that still use the version before the last; then it copies the tables
    instead."""
    drain_timeout_s: float = 20.0
    """How long requests in flight may take to finish after SIGTERM."""
    status_every_s: float = 1.0
    pin: str = ""
    """Always answer from this version, ``EPOCH/NUMBER``; empty: from the one pinned with ``headrace pin``, else from
    the newest good one."""
    guard: bool = True
    """Hold back versions that are worse than the last good ones, by their trainer's metrics, by more than the following
    limits. They are applied and reported, but do not answer until one is good again."""
    guard_hr_drop: float = 0.5
    """A drop of HR@10 by this fraction."""
    guard_ne_rise: float = 0.25
    """A rise of normalised entropy by this fraction."""
    guard_calibration: float = 3.0
    """Predicting more than this many times what is observed, or less than its inverse."""
    guard_patience_s: float = 60.0
    """After this long, the newest version answers anyway, whatever its metrics: perhaps the world has changed, and
    weights that learn nothing new only get worse. 0: never."""
    guard_new_line_s: float = 3600.0
    """The same for a new line of training, which takes time to become as good as the old one."""
    guard_min_targets: int = 5000
    """A version measured on fewer targets is not judged; it is held back only if its line of training is new."""
    access_log: bool = False
    tokens_file: str = ""
    """A TOML file of bearer tokens, ``read = [...]`` and ``admin = [...]``; empty: the server is open to everyone."""
    titles_file: str = ""
    """A file of ``ID<TAB>TITLE`` lines: names of the items, for ``/items`` and the page."""
    page: bool = True
    """Serve the page at ``/``, with the data that it shows: the pipeline's state, recent users, and their histories."""
    freshness_objective_s: float = 10.0
    """How old the newest learned action may be before the page says that the server is behind."""
    allow_actions: bool = False
    """Let the page (and ``POST /actions``) send actions to the actions topic; with tokens, only admins may."""
    allow_forget: bool = False
    """Let ``POST /forget`` have users and items forgotten; with tokens, only admins may."""

    def __post_init__(self) -> None:
        check_fields(self, "serving", SERVING_LIMITS)
