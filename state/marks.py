"""What tells readers of the sequences topic that a user or an item is forgotten: examples without interactions."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from state.emitter import Emitter, Users
from wire.action_json import ForgetRequest
from wire.example import MARK_USER, Address, Mark
from wire.hashing import item_hash


class Marks:
    """The marks of one partition, and the last request about each item. ``stored``: where those are that the owner has
    removed from ``requests``."""

    def __init__(self, emitter: Emitter, stored: Users | None) -> None:
        self.requests: dict[int, ForgetRequest] = {}
        """By item; the owner may empty this if ``stored`` keeps them."""
        self._emitter = emitter
        self._stored = stored

    def mark_item(self, request: ForgetRequest, offset: int, record_ms: int) -> None:
        """Tell that an item is forgotten, or is back. ``offset``: that of the request."""
        item = item_hash(request.item)
        self.requests[item] = request
        self._mark_item(item, request, offset, record_ms)

    def mark_users(self, names: Sequence[str], offset: int, record_ms: int) -> None:
        """Tell that users are forgotten; no names: nobody of the request was known."""
        if len(names) == 1:
            self._emitter.mark(Mark.USER, names[0], offset, record_ms, {})
        elif names:
            self._emitter.mark(Mark.USERS, msgspec.json.encode(names).decode(), offset, record_ms, {})
        # Replaces the record that names the users.
        self._emitter.mark(Mark.USER, "", offset, record_ms, {})

    def mark_again(self, address: Address, offset: int, record_ms: int) -> bool:
        """Write again what belongs under the key of a mark's address; False if nothing does."""
        if address.segment == MARK_USER:
            self._emitter.mark(Mark.USER, "", offset, record_ms, {})
            return True
        request = self.requests.get(address.first)
        if request is None and self._stored is not None:
            request = self._stored.forget_request(address.first)
        if request is not None:
            self._mark_item(address.first, request, offset, record_ms)
        return request is not None

    def _mark_item(self, item: int, request: ForgetRequest, offset: int, record_ms: int) -> None:
        mark = Mark.ITEM_BACK if request.is_back else Mark.ITEM
        self._emitter.mark(mark, "", offset, record_ms, {item: request.item})
