"""A proxy before a PDS that loses answers: the PDS has done what it was asked, and nobody hears of it."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import httpx

from harness.pds import BodyServer, Call
from harness.upstream import Response

# What a request takes on its way there and back, at most: whoever is killed is killed in the middle of one.
LAG_S: Final = 0.02
# A login whose answer is lost has to be made again, and nothing in the world could help it.
SPARED: Final = frozenset({"createSession"})
# Loading the certificates of the world takes a while, and there is no TLS on loopback.
_NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class LossyProxy(BodyServer):
    """Forwards everything to `target`, and loses that `share` of the answers.

    Which ones follows from `seed`, from what is asked and from how often it was asked before; `names` are
    those of the accounts by DID. `commits` counts writes as the PDS confirms them, by DID and record key;
    `secrets` are the tokens that it has given.
    """

    def __init__(self, target: str, *, seed: int, share: float, names: Mapping[str, str]) -> None:
        super().__init__()
        self.commits: Counter[tuple[str, str]] = Counter()
        self.lost: Counter[str] = Counter()
        self.secrets: set[str] = set()
        self._target = target
        self._seed = seed
        self._share = share
        self._names = names
        self._asked: Counter[str] = Counter()
        self._client = httpx.AsyncClient(base_url=target, trust_env=False, verify=_NO_TLS, timeout=30)

    async def stop(self) -> None:
        await super().stop()
        await self._client.aclose()

    def calls(self, name: str) -> list[Call]:
        return [call for call in self.requests if call.name == name]

    async def respond(self, call: Call) -> Response:
        what = self._what(call)
        self._asked[what] += 1
        draw = random.Random(f"{self._seed} {what} {self._asked[what]}")
        await asyncio.sleep(draw.uniform(0, LAG_S))
        answer = await self._forwarded(call)
        await asyncio.sleep(draw.uniform(0, LAG_S))
        if call.name not in SPARED and draw.random() < self._share:
            self.lost[call.name] += 1
            return Response(close=True)
        return answer

    def _what(self, call: Call) -> str:
        """The same in each run with this seed, though DIDs and record keys may differ."""
        given = call.json() if call.body else {}
        name = self._names.get(given.get("repo") or call.param("repo"), "")
        return f"{call.name} {name} {given.get('record', {}).get('text', '')}"

    async def _forwarded(self, call: Call) -> Response:
        kept = ("authorization", "content-type", "accept", "accept-encoding")
        headers = {name: call.headers[name] for name in kept if name in call.headers}
        answer = await self._client.request(
            call.method, call.target, headers=headers, content=call.body or None
        )
        if answer.status_code == 200:
            self._note(call, answer.json())
        return Response(status=answer.status_code, body=answer.content)

    def _note(self, call: Call, document: dict[str, Any]) -> None:
        if call.name == "putRecord" and "commit" in document:
            given = json.loads(call.body)
            self.commits[given["repo"], given["rkey"]] += 1
        self.secrets.update(document[name] for name in ("accessJwt", "refreshJwt") if name in document)
