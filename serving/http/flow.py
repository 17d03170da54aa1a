"""Between a connection and its requests: when it reads on, and what their answers are written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl


class Flow(FlowControl):
    """Does not read on, whatever a request asks for, while there is something that has to wait to be parsed."""

    def __init__(self, transport: Any, is_behind: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._is_behind = is_behind

    def resume_reading(self) -> None:
        """Read on, if nothing waits to be parsed and the connection is not closing."""
        if not (self._is_behind() or self._transport.is_closing()):
            super().resume_reading()


class Transport:
    """What a request's answer is written to; whoever closes it has the connection linger."""

    def __init__(
        self, write: Callable[[bytes], None], linger: Callable[[], None], is_closing: Callable[[], bool]
    ) -> None:
        self.write, self.close, self.is_closing = write, linger, is_closing
