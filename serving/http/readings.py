"""What Prometheus reads of a server's parts when it scrapes, beside the requests that `serving.metrics` counts."""

from __future__ import annotations

from serving.answering.reuse import ReuseProbe
from serving.metrics import Reading, readings
from serving.model.cache import HistoryCache
from serving.search.index import SEARCH_HELP
from serving.service import Service
from serving.users.placing import HELP as PLACING_HELP

HELP = {
    **PLACING_HELP,
    "headrace_freshness_seconds": "Age of the newest action that the weights in service have learned from.",
    "headrace_version_epoch": "Epoch of the version in service; -1 before the first.",
    "headrace_version_number": "Number of the version in service; -1 before the first.",
    "headrace_version_swaps_total": "Versions that came into service.",
    "headrace_version_copies_total": "Swaps that had to copy the tables, because a request still held an old version.",
    "headrace_versions_dropped_total": "Torn, corrupt, fenced or repeated versions that were dropped.",
    "headrace_versions_unlinked_total": "Deltas that do not build on the version held here.",
    "headrace_versions_refused_total": "Versions that do not fit this build.",
    "headrace_versions_held_total": "Versions held back: worse than the last good ones, or pinned but missing.",
    "headrace_version_held": "1 while the newest or the pinned version is held back.",
    "headrace_version_pinned": "1 while a version is pinned.",
    "headrace_broker_up": "1 while the broker answers.",
    "headrace_histories": "Users whose history is stored.",
    "headrace_history_bytes": "Memory used by histories.",
    "headrace_histories_forgotten_total": "Histories dropped to stay within serving.history_bytes.",
    "headrace_items_forgotten_total": "Items whose features and domain were dropped to stay within "
    "serving.catalogue_items.",
    "headrace_requests_waiting": "Requests that no worker has taken yet.",
    "headrace_requests_shed_total": "Requests answered 503 at once, because too many were waiting.",
    "headrace_expected_wait_seconds": "How long a short request would wait at present, as measured.",
    "headrace_cache_bytes": "Memory used by cached keys and values.",
    "headrace_cache_hits_total": "Requests that could use cached keys and values.",
    "headrace_cache_misses_total": "Requests that could not use cached keys and values.",
    "headrace_cache_reused_total": "Requests that used keys and values cached under an earlier version.",
    "headrace_cache_error": "Largest score difference that reuse across versions makes, measured on real requests.",
    **SEARCH_HELP,
    "headrace_cache_is_exact": "1 while only keys and values of the same version are used.",
}


def readings_of(service: Service) -> list[Reading]:
    """What is to be read now; values that are not known yet are left out."""
    current, cache, counters = service.manager.current, service.engine.cache, service.counters
    epoch, number = current.which if current else (-1, -1)
    values: dict[str, float] = {"headrace_freshness_seconds": current.freshness_s} if current else {}
    values |= {
        "headrace_version_epoch": epoch, "headrace_version_number": number,
        "headrace_version_swaps_total": service.manager.num_swaps,
        "headrace_version_copies_total": service.manager.num_copies,
        "headrace_versions_dropped_total": counters.num_dropped,
        "headrace_versions_unlinked_total": counters.num_unlinked,
        "headrace_versions_held_total": service.rollout.num_held,
        "headrace_version_held": service.rollout.held is not None,
        "headrace_version_pinned": service.rollout.wanted is not None,
        "headrace_versions_refused_total": counters.num_refused, "headrace_broker_up": service.contact.is_up,
        "headrace_histories": len(service.histories), "headrace_history_bytes": service.histories.num_bytes,
        "headrace_histories_forgotten_total": service.histories.num_forgotten,
        "headrace_items_forgotten_total": service.histories.items.num_forgotten,
        "headrace_requests_waiting": service.batcher.num_waiting,
        "headrace_requests_shed_total": service.batcher.num_shed,
        "headrace_expected_wait_seconds": service.batcher.expected_wait_s()["short"],
        **service.placing.values(),
        **_cache_values(cache, service.engine.reuse),
        **(service.search.readings() if service.search is not None else {}),
    }  # fmt: skip
    return readings(HELP, values)


def _cache_values(cache: HistoryCache, reuse: ReuseProbe) -> dict[str, float]:
    return {"headrace_cache_bytes": cache.num_bytes, "headrace_cache_hits_total": cache.num_hits,
            "headrace_cache_misses_total": cache.num_misses, "headrace_cache_reused_total": cache.num_reused,
            "headrace_cache_error": reuse.error, "headrace_cache_is_exact": reuse.allowed == 0}  # fmt: skip
