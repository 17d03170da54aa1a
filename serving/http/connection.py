"""A client's connection: uvicorn's, with limits on incomplete requests and on clients that do not read, and with every
answer, refusals too, in the place of what it answers.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import sys
import termios
from contextlib import suppress
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.answer_bodies import Problem
from serving.http.error_handlers import refusal
from serving.http.flow import Flow, Transport
from wire.thinned_log import is_told

logger = logging.getLogger(__name__)
MAX_HEAD_BYTES = 64_000
PIECE_BYTES = 2_048
"""So much is parsed before the next request is looked for."""
STALLED_S = 30.0
"""How long a client may take nothing of what it has been sent."""
LINGER_S, LINGER_REST_S = 2.0, 0.002
"""How long what a client still sends is read and discarded after the last answer, and the pause after each piece of it.
If it were not read, the system would reset the connection, and what is on its way to the client would be lost."""


class BoundedConnection(HttpToolsProtocol):
    """A connection on which each request's headers must arrive within ``read_timeout_s`` and `MAX_HEAD_BYTES`, and on
    which what is behind a request that waits for its answer is not parsed yet.

    Uvicorn itself waits for ever and buffers everything: a client that sends a byte per second would hold a socket
    indefinitely, and one that sends thousands of requests without waiting would have all of them parsed at once, which
    takes seconds in which nobody is answered. It also loses the body of a request that offers to upgrade to HTTP/2, as
    the first request of Java's own client does, and closes a connection whose client has finished sending before it is
    answered.
    """

    read_timeout_s = 10.0
    _num_invalid = itertools.count(1)

    def connection_made(self, transport: Any) -> None:
        """Start the clock for the first request's headers."""
        super().connection_made(transport)
        self._num_head_bytes = 0
        self._rest, self._has_ended = bytearray(), False
        self._running: RequestResponseCycle | None = None
        self._is_in_body = False
        self._last_word: bytes | None = None
        """What is sent once every request before it is answered; then the connection ends."""
        self._is_lingering = False
        self._num_written = self._num_taken = 0
        self._moved_s = self.loop.time()
        self.flow = Flow(transport, lambda: bool(self._rest or self.pipeline or self._last_word is not None))
        self._due = self.loop.call_later(self.read_timeout_s, self._expire)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks, and the answer. Uvicorn tells only the newest request that its client has gone, and leaves
        the clock of a connection that was reset, which holds all of it."""
        self._due.cancel()
        self._unset_keepalive_if_required()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def drop_if_stalled(self, now_s: float) -> None:
        """End the connection if its client has taken nothing for `STALLED_S` of what is still to be sent. To close it
        would wait for the client, which would hold it, and its answers, for ever. Call this once a second."""
        num_unsent = self._count_unsent()
        num_taken = self._num_written - num_unsent
        if num_unsent == 0 or num_taken > self._num_taken:
            self._moved_s = now_s
        elif now_s - self._moved_s > STALLED_S:
            self.transport.abort()
        self._num_taken = num_taken

    def _count_unsent(self) -> int:
        """Bytes that wait here; and if any do, those that wait in the system, which takes more of them only once a
        megabyte of its own has gone."""
        num = self.transport.get_write_buffer_size()
        if num:
            with suppress(OSError):
                waiting = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
                num += int.from_bytes(waiting, sys.byteorder)
        return num

    def data_received(self, data: bytes) -> None:
        """Parse it, up to the requests that have to wait for an answer."""
        if self._is_ending():  # discard it, slowly: a client that keeps sending must not keep others waiting
            self.flow.pause_reading()
            self.loop.call_later(LINGER_REST_S, self.flow.resume_reading)
            return
        self._rest += data
        self._unset_keepalive_if_required()
        self._parse()

    def on_response_complete(self) -> None:
        """Go on with what has come meanwhile, after what others have sent."""
        if self._is_lingering:
            self.server_state.total_requests += 1
            return
        super().on_response_complete()
        if self._last_word is not None and not self._is_answering():
            self._unset_keepalive_if_required()
            self._close(self._last_word)
        elif self._rest and not self._is_closing():
            self.flow.pause_reading()
            if not self.pipeline:
                self._unset_keepalive_if_required()
                self.loop.call_soon(self._parse)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _parse(self) -> None:
        while self._rest and not self.pipeline and not self._is_ending():
            piece = bytes(self._rest[:PIECE_BYTES])
            del self._rest[:PIECE_BYTES]
            self._parse_piece(piece)
        if self._is_ending():
            self._rest.clear()
        elif self._rest:
            self.flow.pause_reading()
        elif self._has_ended and not self._ends_in_order():
            self.transport.close()
        elif not self._is_answering():
            self._read_on()

    def _is_ending(self) -> bool:
        return self._last_word is not None or self._is_closing()

    def _is_closing(self) -> bool:
        return self._is_lingering or self.transport.is_closing()

    def _is_answering(self) -> bool:
        return bool(self.pipeline) or (self._running is not None and not self._running.response_complete)

    def _read_on(self) -> None:
        """Wait for more of a request, as long as its clock says, or for one, as long as a connection is kept alive:
        what came last may have begun none."""
        self.flow.resume_reading()
        if self._due.cancelled() and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _parse_piece(self, piece: bytes) -> None:
        """Parse it, and count bytes of headers that are not complete yet."""
        self._num_head_bytes += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as offer:
            self._decline(piece[offer.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(error)
        if self._num_head_bytes > MAX_HEAD_BYTES and not self._is_ending():
            self._end(_message(b"431 Request Header Fields Too Large"))

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that sends nothing more still gets the answers to what it has sent, except a stream, which ends.
        Returns whether answers are still to come."""
        self._has_ended = True
        if self._is_lingering:
            return False
        return bool(self._rest) or self._ends_in_order()

    def _ends_in_order(self) -> bool:
        newest: RequestResponseCycle | None = self.cycle
        if self._last_word is not None:
            return True
        if newest is not None and newest.more_body and self.pipeline:
            self._end(b"")
            return True
        if newest is None or newest.more_body or newest.response_started:
            return False
        newest.keep_alive = False
        return True

    def _decline(self, rest: bytes) -> None:
        """Take a request that offers another protocol as one that does not. The parser has skipped its body."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(ValueError("this is no proxy"))
            return
        head = [b"%s %s HTTP/1.1" % (method, self.url)]
        head += [b"%s: %s" % (name, value) for name, value in self.headers if name != b"upgrade"]
        self.parser, self._num_head_bytes = httptools.HttpRequestParser(self), 0
        self._rest[:0] = b"\r\n".join([*head, b"", b""]) + rest

    def _refuse(self, error: Exception) -> None:
        """Answer 400. Whoever connects may cause this, so few of them are logged."""
        if is_told(num := next(self._num_invalid)):
            logger.warning("a client sent something that is not HTTP (%s; number %d so far)", error, num)
        problem = Problem(field="", expected="a request in HTTP/1.1", do=f"correct it: {error}")
        self._end(_message(b"400 Bad Request", bytes(refusal(400, problem).body)))

    def on_message_begin(self) -> None:
        """Start the clock for a further request's headers on a connection that is kept alive."""
        super().on_message_begin()
        if self._due.cancelled():
            self._due = self.loop.call_later(self.read_timeout_s, self._expire)

    def on_headers_complete(self) -> None:
        """Stop the clock: the headers are complete."""
        if self.parser.should_upgrade():  # parsed again without the offer: see `_decline`
            return
        self._due.cancel()
        if self.parser.get_http_version() == "1.0":  # its client would take a 100 for the answer
            self.expect_100_continue = False
        super().on_headers_complete()
        self.cycle.transport = Transport(self._write, self._linger, self._is_closing)  # type: ignore[assignment]
        self._is_in_body = True

    def on_body(self, body: bytes) -> None:
        """Do not count bodies, which the gate limits."""
        self._num_head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Start counting the next request's headers."""
        if self.parser.should_upgrade():
            return
        self._num_head_bytes, self._is_in_body = 0, False
        super().on_message_complete()

    def _expire(self) -> None:
        if self.flow.read_paused:  # what is missing may have come, and waits to be read
            self._due = self.loop.call_later(self.read_timeout_s, self._expire)
        elif not self._is_ending():
            self._end(_message(b"408 Request Timeout"))

    def _end(self, word: bytes) -> None:
        """Take nothing more, and end with this word in the place of the answer to what came last, so that no client
        can take it for the answer to a request before that."""
        if self._is_in_body and self.pipeline:
            self.pipeline.popleft()
        elif self._is_in_body or not self._is_answering():
            has_begun = self._is_in_body and self.cycle.response_started
            self._close(b"" if has_begun else word)
            return
        self._due.cancel()
        self._last_word = word
        self.flow.pause_reading()

    def _close(self, word: bytes) -> None:
        if not self._is_closing():
            self._write(word)
            self._linger()

    def _write(self, data: bytes) -> None:
        self._num_written += len(data)
        self.transport.write(data)

    def _linger(self) -> None:
        """Send nothing more, and close once the client has finished, or after `LINGER_S`."""
        if self._is_closing():
            return
        self._is_lingering, self._last_word = True, None
        self._rest.clear()
        self.pipeline.clear()
        self._due.cancel()
        self._unset_keepalive_if_required()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        if self._has_ended:
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self._due = self.loop.call_later(LINGER_S, self.transport.close)


def _message(status: bytes, body: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    return head % (status, len(body)) + body
