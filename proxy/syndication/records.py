"""The posts of an account at its PDS, as one attempt reads and writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from proxy.bluesky.pds import Pds, Record, Stored
from proxy.bluesky.session import Session
from proxy.bluesky.wire import REQUEST_TIMEOUT_S
from proxy.clock import Clock
from proxy.errors import LeaseLost, PdsRejected
from proxy.syndication.attempt import Lease
from proxy.syndication.intent import FrozenRecord
from proxy.syndication.rkey import POST_COLLECTION, key_in

_SWAP: Final = "InvalidSwap"


def deadline_of(lease: Lease, clock: Clock) -> float:
    """The steady instant by which a request must be over: none outlives the lease."""
    return min(clock.steady() + REQUEST_TIMEOUT_S, lease.ends_at)


class Records:
    """Posts of the account of `session`, within `lease`.

    Everything raises what Pds raises; once the lease is over nothing is written, but LeaseLost raised.
    """

    def __init__(self, pds: Pds, session: Session, lease: Lease, clock: Clock) -> None:
        self._pds = pds
        self._session = session
        self._lease = lease
        self._clock = clock

    @property
    def did(self) -> str:
        """Whose they are."""
        return self._session.did

    async def get(self, rkey: str) -> Record | None:
        """The record at `rkey`; None if there is none."""
        return await self._pds.get_record(
            self._session.pds, did=self.did, collection=POST_COLLECTION, rkey=rkey, deadline=self._deadline()
        )

    async def last(self, before: str = "") -> list[Record]:
        """The last 100 by their keys, or those with keys before `before`; see `Pds.list_records`."""
        return await self._pds.list_records(
            self._session.pds,
            did=self.did,
            collection=POST_COLLECTION,
            before=before,
            deadline=self._deadline(),
        )

    async def put(self, record: FrozenRecord) -> Stored | None:
        """Write `record` where there is nothing, or this very record; None where there is another."""
        self._check("the record was sent")
        try:
            return await self._pds.put_record(
                self._session.pds,
                access=self._session.access,
                did=self.did,
                collection=POST_COLLECTION,
                rkey=record.rkey,
                record=record.json_bytes,
                deadline=self._deadline(),
            )
        except PdsRejected as error:
            if error.code != _SWAP:
                raise
            return None

    async def create(self, records: Sequence[FrozenRecord]) -> None:
        """Write `records` in one commit, all or none."""
        self._check("the records were sent")
        await self._pds.create_records(
            self._session.pds,
            access=self._session.access,
            did=self.did,
            collection=POST_COLLECTION,
            records=[(record.rkey, record.json_bytes) for record in records],
            deadline=self._deadline(),
        )

    async def upload(self, content: bytes, mime_type: str) -> Mapping[str, Any]:
        """Upload what records will name; the reference by which they do."""
        self._check("a picture was sent")
        return await self._pds.upload_blob(
            self._session.pds,
            access=self._session.access,
            did=self.did,
            content=content,
            mime_type=mime_type,
            deadline=self._deadline(),
        )

    async def delete(self, record: Record) -> bool:
        """Delete `record` as it was seen; False if it has become another one since."""
        self._check("the record was deleted")
        try:
            await self._pds.delete_record(
                self._session.pds,
                access=self._session.access,
                did=self.did,
                collection=POST_COLLECTION,
                rkey=key_in(record.uri),
                cid=record.cid,
                deadline=self._deadline(),
            )
        except PdsRejected as error:
            if error.code != _SWAP:
                raise
            return False
        return True

    def _deadline(self) -> float:
        return deadline_of(self._lease, self._clock)

    def _check(self, what: str) -> None:
        if self._lease.expired():
            raise LeaseLost(f"the lease ended before {what}")
