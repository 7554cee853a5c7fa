"""What one attempt is about to send, and what is decided of it by what was found or refused at the PDS."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.bluesky.pds import Record
from proxy.errors import LeaseLost, PdsRejected
from proxy.syndication.attempt import Lease, Outcome, Permanent, Published
from proxy.syndication.embedding import bare_embed
from proxy.syndication.intent import FrozenRecord, Intent
from proxy.syndication.job import Delivery, Job
from proxy.syndication.post import Post
from proxy.syndication.record import links_to, uris_in
from proxy.syndication.rkey import PostIdentity, record_uri
from proxy.telemetry import get_logger

_log = get_logger()


@dataclass(slots=True)
class Draft:
    """What has been settled of one attempt: a new session changes none of that.

    `looks`: there may be a record already, which is looked at before anything is sent. `intended`: the queue
    knows what is sent. `enrich_s`: for how long what the post is published with may be looked for.
    """

    delivery: Delivery
    post: Post
    lease: Lease
    enrich_s: float
    did: str = ""
    generation: int = 0
    rkey: str = ""
    intent: Intent | None = None
    looks: bool = False
    intended: bool = False

    @property
    def identity(self) -> PostIdentity:
        """What the record keys follow from."""
        return identity_of(self.lease.job, self.post, self.did)

    @property
    def uri(self) -> str:
        """Of the record, or of the first one of a thread."""
        return record_uri(self.did, self.rkey)

    def step(self, generation: int) -> None:
        """Go on with the key of `generation`."""
        self.generation, self.rkey = generation, self.identity.key(generation)

    def settled(self) -> tuple[Intent, tuple[FrozenRecord, ...]]:
        """What is to be sent, and its records at the key that the attempt has come to."""
        if self.intent is None:
            raise LeaseLost("nothing was frozen")
        return self.intent, self.intent.at(self.did, self.rkey)

    def judge(self, there: Record) -> Outcome | None:
        """What the record at our key is: this post, be it in other words; another one (None); or neither."""
        intent, (root, *_) = self.settled()
        if there.cid == root.cid:
            return Published(uri=there.uri, cid=there.cid, found=True, degraded=intent.degraded)
        if links_to(there.value, self.post.url) or links_to(there.value, intent.url):
            _log.info("post_found_again", job=self.delivery.job, uri=there.uri)
            return Published(uri=there.uri, cid=there.cid, found=True)
        if any(True for _ in uris_in(there.value)):
            _log.warning("record_key_taken", job=self.delivery.job, uri=there.uri)
            return None
        # Without its address, which is the job's: reasons are counted.
        return Permanent(reason="conflict: what is at its address is not this post")

    def strip(self, refused: PdsRejected) -> None:
        """Go on without pictures if what was refused had some. Raises `refused` if it had none.

        A refusal says that nothing was written, so that what was frozen may change.
        """
        intent, _ = self.settled()
        if not intent.has_pictures:
            raise refused
        _log.warning("pictures_refused", job=self.delivery.job, reason=str(refused))
        embed = bare_embed(self.post, intent.records[0].get("embed"), f"the pictures were refused: {refused}")
        self.intent, self.intended = intent.showing(embed), False


def identity_of(job: Job, post: Post, did: str) -> PostIdentity:
    """What the record keys of `post` follow from on the account `did`: the first date that was seen of it."""
    return PostIdentity(
        did=did,
        site=job.site,
        post_id=job.post,
        published_at_ms=job.first_published_at_ms or post.published_at_ms,
    )
