"""Why a delivery is still waiting, in words for the person who asks. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from proxy.syndication.job import LIVE, Delivery, DeliveryState
from proxy.syndication.overview import AccountOverview, Overview


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One thing that a delivery waits for. `until_ms`: since 1970; 0 if nobody can say, -1: for a person.

    `code` is sending, paused, account_paused, credentials, breaker, rate_limited (or what else closed the
    account), retry, schedule, quota, no_worker, unknown_account or turn.
    """

    code: str
    until_ms: int
    sentence: str


def why_waiting(delivery: Delivery, overview: Overview) -> tuple[Cause, ...]:
    """What `delivery` waits for, what lasts longest last; nothing if it is over."""
    if delivery.state not in LIVE:
        return ()
    account = next((each for each in overview.accounts if each.account == delivery.account), None)
    if account is None:
        return ()
    if delivery.state is DeliveryState.ACTIVE:
        return (Cause(code="sending", until_ms=0, sentence=f"{delivery.worker} is working on it"),)
    causes = [*_own(delivery), *_of_account(account, overview.now_ms), *_of_workers(account, overview)]
    if not causes or (delivery.state is DeliveryState.READY and account.place > 0):
        causes.insert(0, _turn(account))
    return tuple(causes)


def _own(delivery: Delivery) -> Iterator[Cause]:
    if delivery.state is not DeliveryState.DELAYED:
        return
    sentences = {
        "retry": f"attempt {delivery.failures} failed ({delivery.error}); it is tried again",
        "schedule": "its publication lies in the future",
        "quota": "the site has used up its posts_per_hour",
    }
    reason = delivery.waiting_for
    yield Cause(
        code=reason, until_ms=delivery.due_at_ms, sentence=sentences.get(reason, f"it is put off: {reason}")
    )


def _of_account(account: AccountOverview, now_ms: int) -> Iterator[Cause]:
    name, reason = account.account, account.gate_reason
    if reason == "breaker":
        sentence = f"the server of {name} failed {account.failures} times in a row; then one post tries it"
        yield Cause(code=reason, until_ms=account.gate_until_ms, sentence=sentence)
    elif reason == "credentials":
        sentence = (
            f"the login of {name} was refused: put its password right, or try again with "
            f"`feedproxy accounts resume {name}`"
        )
        yield Cause(code=reason, until_ms=-1, sentence=sentence)
    elif reason:
        sentence = f"{name} has reached a limit of its server, or one of our own, as the pause between logins"
        yield Cause(code=reason, until_ms=account.gate_until_ms, sentence=sentence)
    elif account.pace_until_ms > now_ms:
        sentence = f"the server of {name} asked not to be asked"
        yield Cause(code="rate_limited", until_ms=account.pace_until_ms, sentence=sentence)
    if account.paused:
        sentence = f"{name} is paused; `feedproxy accounts resume {name}` ends that"
        yield Cause(code="account_paused", until_ms=-1, sentence=sentence)


def _of_workers(account: AccountOverview, overview: Overview) -> Iterator[Cause]:
    if overview.paused:
        sentence = "everything is paused; `feedproxy resume` ends that"
        yield Cause(code="paused", until_ms=-1, sentence=sentence)
    if not overview.workers:
        sentence = "no worker is running: start `feedproxy serve` or `feedproxy worker`"
        yield Cause(code="no_worker", until_ms=0, sentence=sentence)
    elif not account.workers and account.gate_reason != "credentials":
        sentence = f"no running worker knows {account.account} with a password that was not refused"
        yield Cause(code="unknown_account", until_ms=0, sentence=sentence)


def _turn(account: AccountOverview) -> Cause:
    under_way = ", behind one that is being sent" if account.active else ""
    place = (
        f"number {account.place + 1} of {account.waiting}" if account.place >= 0 else "about to get a place"
    )
    sentence = f"it is {place} in the queue of {account.account}{under_way}"
    return Cause(code="turn", until_ms=0, sentence=sentence)
