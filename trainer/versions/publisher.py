"""Sends versions to ``headrace.weights.v1`` from a thread of its own, beside training.

The training thread hands over a snapshot (`Publisher.offer`) once the last one is acknowledged; this thread encodes it,
sends the chunks, then the manifest (`trainer.versions.writer`), and retries for as long as the broker is away. A
process that finds a claim with a higher epoch stops: another trainer leads now. So does one whose topic is gone, or
another.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog
from kafka.errors import KafkaError

from trainer.config import TrainerConfig
from trainer.errors import UnsoundVersionError
from trainer.versions.collection import MakeBlob
from trainer.versions.election import Claimant, Election
from trainer.versions.keeper import VersionKeeper
from trainer.versions.weights import Weights
from trainer.versions.writer import WeightsWriter
from wire.config import KafkaConfig
from wire.errors import brief
from wire.kafka.retry import StoppedError, patiently
from wire.weights import Manifest

log = structlog.get_logger("trainer")
Outcome = TypeVar("Outcome")
FENCE_CHECK_S = 2.0
"""How often a trainer that has nothing to publish checks whether another one has taken over."""

MakeManifest = Callable[..., Manifest]
"""Makes a version's manifest, given the fields that only the publisher knows."""


@dataclass(frozen=True, slots=True)
class Published:
    """A version that the broker has acknowledged: its manifest, and when it did (ms, wall clock)."""

    manifest: Manifest
    acknowledged_ms: int


@dataclass(frozen=True, slots=True)
class _Offer:
    """A version on its way."""

    number: int
    kind: str
    make_blob: MakeBlob
    make_manifest: MakeManifest


class Publisher:
    """Publishes one epoch's versions. `lead` first; then `start` the thread, and `offer` from the training thread."""

    def __init__(
        self,
        kafka: KafkaConfig,
        config: TrainerConfig,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
        writer: WeightsWriter | None = None,
    ) -> None:
        self._kafka, self._config, self._stop, self._clock = kafka, config, stop, clock
        self._writer = writer or WeightsWriter(kafka, config.chunk_bytes)
        self._keeper = VersionKeeper(kafka, config.keep_versions)
        self._pending: _Offer | None = None
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._base = (-1, -1)
        self._base_s = math.inf
        self._needs_base = False
        self.next_number = 0
        self.last: Published | None = None
        self.unsound: str = ""
        """What is not finite in the version offered last, which was not published."""
        self.error: BaseException | None = None

    @property
    def epoch(self) -> int:
        """The epoch that is led; -1 before `lead`."""
        return self._writer.epoch

    # Start and end

    def lead(
        self,
        claimant: Claimant,
        enough: Callable[[list[Manifest]], bool],
        stop: threading.Event,
        *,
        at_once: bool = False,
        on_standby: Callable[[], None] = lambda: None,
    ) -> list[Manifest]:
        """Become the leader, waiting while another trainer leads (`trainer.versions.election`); returns the versions
        before it.

        Raises `wire.kafka.retry.StoppedError` once ``stop`` is set.
        """
        election = Election(self._kafka, self._config, claimant, stop, on_standby)
        led = election.lead(enough, at_once=at_once)
        self._writer.begin(claimant.name, led.epoch, led.next_offset)
        self._keeper.note(led.manifests)
        return led.manifests

    def newest_weights(self, manifests: list[Manifest]) -> Weights | None:
        """The newest weights that a reader can reach among the versions before this epoch; None if there are none."""
        if not manifests:
            return None
        base_offset = manifests[-1].base_offset
        return self._patiently(lambda: self._writer.newest_weights(base_offset), "reading the last version")

    def _patiently(self, action: Callable[[], Outcome], what: str) -> Outcome:
        def checked() -> Outcome:
            self._writer.check_topic()
            return action()

        return patiently(checked, what, self._kafka, self._stop)

    # The training thread

    @property
    def idle(self) -> bool:
        """Whether the version last offered is acknowledged."""
        return self._pending is None

    @property
    def wants_base(self) -> bool:
        """Whether the next version should be a base."""
        return self._needs_base or self.base_is_old or self.next_number % self._config.base_every == 0

    def need_base(self) -> None:
        """Make the next version a base: the weights no longer follow from the last delta."""
        self._needs_base = True

    @property
    def base_is_old(self) -> bool:
        """Whether the newest base has used up its share of the topic's retention.

        Once it is gone, no server can start from the deltas after it; so a trainer that learns little, or nothing,
        publishes another one in time.
        """
        return self._clock() - self._base_s > self._config.base_max_age_share * self._kafka.weights_kept_s

    def offer(self, kind: str, make_blob: MakeBlob, make_manifest: MakeManifest) -> None:
        """Hand over the next version; only when `idle`. ``make_manifest`` gets the fields that the publisher knows.

        If ``make_blob`` raises `UnsoundVersionError`, nothing is published, and `unsound` says why.
        """
        with self._wake:
            assert self._pending is None, "a version was offered while another one was on its way"
            self.unsound = ""
            self._pending = _Offer(self.next_number, kind, make_blob, make_manifest)
            self.next_number += 1
            if kind == "base":
                self._base_s, self._needs_base = self._clock(), False
            self._wake.notify_all()

    def start(self) -> None:
        """Start the publishing thread."""
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the error that ended the thread, if one did."""
        if self.error is not None:
            raise self.error

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything offered is acknowledged; False if that takes longer than ``timeout_s``."""
        with self._wake:
            self._wake.wait_for(lambda: self._pending is None or self.error is not None, timeout_s)
        self.check()
        return self.idle

    def close(self, *, release: bool = False) -> None:
        """Stop the thread and close the connections; the next process's base covers what is not acknowledged.

        ``release``: tell standbys that this trainer has ended, so that they need not wait for its silence.
        """
        self._stop.set()
        with self._wake:
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(30)
        if release and self.epoch >= 0 and self.error is None:
            try:
                self._writer.send_claim(released=True)
            except (KafkaError, OSError) as error:
                log.warning("the epoch could not be released: standbys wait for silence instead", error=brief(error))
        self._writer.close()

    # The publishing thread

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if self._next() is not None:
                    self._publish()
                elif not self._stop.is_set():
                    self._patiently(self._writer.check_fence, "looking for another trainer")
        except StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001  (handed to the training thread, which raises it)
            with self._wake:
                self.error = error
                self._wake.notify_all()

    def _next(self) -> _Offer | None:
        with self._wake:
            self._wake.wait_for(lambda: self._pending is not None or self._stop.is_set(), FENCE_CHECK_S)
            return None if self._stop.is_set() else self._pending

    def _publish(self) -> None:
        offer = self._pending
        assert offer is not None
        try:
            blob = offer.make_blob()
        except UnsoundVersionError as error:
            self._drop(offer, str(error))
            return
        self._patiently(self._writer.check_fence, "looking for another trainer")
        if offer.kind == "base" and self._base != (-1, -1):  # before the first base, the claim is fresh
            # With each later one, so that retention never removes the claim of a live trainer.
            self._patiently(self._writer.send_claim, "renewing the claim of this epoch")
        first_offset = self._patiently(
            lambda: self._writer.send_chunks(offer.number, blob), "publishing a version's chunks"
        )
        if offer.kind == "base":
            self._base = (offer.number, first_offset)
        base_number, base_offset = self._base
        manifest = offer.make_manifest(
            epoch=self.epoch,
            number=offer.number,
            kind=offer.kind,
            onto_number=-1 if offer.kind == "base" else offer.number - 1,
            base_number=base_number,
            base_offset=base_offset,
            num_chunks=max(1, -(-blob.num_bytes // self._config.chunk_bytes)),
            num_bytes=blob.num_bytes,
            checksum=blob.checksum(),
            created_ms=int(time.time() * 1000),
        )
        self._patiently(lambda: self._writer.send_manifest(manifest), "publishing a version's manifest")
        with self._wake:
            self.last = Published(manifest, int(time.time() * 1000))
            self._pending = None
            self._wake.notify_all()
        self._keeper.note([manifest])
        if offer.kind == "base":
            self._keeper.trim()

    def _drop(self, offer: _Offer, problem: str) -> None:
        with self._wake:
            self.unsound, self.next_number, self._pending = problem, offer.number, None
            self._wake.notify_all()
