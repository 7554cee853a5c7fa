"""The operator's way to declare cached answers dead: POST /purge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.routing import Route

from proxy.admin import AdminEdge, document_of
from proxy.errors import Rejected, StoreError, StoreRefused
from proxy.feeds.key import FeedKey, canonical_key
from proxy.feeds.purge import Purges
from proxy.feeds.service import FeedService
from proxy.syntax import is_did, is_handle

_RESOLVE: Final = "com.atproto.identity.resolveHandle"


class PurgeRoutes:
    """POST /purge, behind the edge of admin routes."""

    def __init__(self, purges: Purges, service: FeedService, edge: AdminEdge) -> None:
        self._purges = purges
        self._service = service
        self._edge = edge

    def routes(self) -> list[Route]:
        """The route."""
        return [self._edge.route("/purge", self._purge, "POST")]

    async def _purge(self, request: Request) -> Mapping[str, Any]:
        wanted = await document_of(request)
        try:
            number = await self._carry_out(wanted)
        except StoreError as error:
            trouble = "refuses it" if isinstance(error, StoreRefused) else "does not answer"
            message = f"Redis {trouble}: the purge holds in this process only. Repeat it."
            raise Rejected(503, "StoreUnavailable", message, (("Retry-After", "2"),)) from None
        return {"purged": wanted, "number": number}

    async def _carry_out(self, wanted: Mapping[str, Any]) -> int:
        match wanted:
            case {"actor": str(actor)} if len(wanted) == 1 and (is_did(actor) or is_handle(actor.lower())):
                await self._learn_did(actor)
                return await self._purges.purge_actor(actor)
            case {"key": str(target)} if len(wanted) == 1:
                return await self._purges.purge_key(key_of(target))
            case {"all": True} if len(wanted) == 1:
                return await self._purges.purge_all()
        raise Rejected(
            400, "InvalidRequest", 'say {"actor": handle or DID}, {"key": "/xrpc/…"} or {"all": true}'
        )

    async def _learn_did(self, actor: str) -> None:
        """Handle and DID are one account: ask who it is, if that is not known, before it is purged."""
        if not is_did(actor) and not self._purges.is_known(actor.lower()):
            # What comes of it is learned at the fill; without an answer, the handle alone is purged.
            await self._service.answer(FeedKey(_RESOLVE, (("handle", actor.lower()),)))


def key_of(target: str) -> FeedKey:
    """The key of the question that path and query of `target` ask. Raises Rejected."""
    path, _, query = target.partition("?")
    if not path.startswith("/xrpc/"):
        raise Rejected(400, "InvalidRequest", "a key begins with /xrpc/")
    nsid = path.removeprefix("/xrpc/").removesuffix("/")
    return canonical_key(nsid, query.encode(), labelers=None, language=None)
