"""From what hosts tell of themselves to rates and bars."""

from __future__ import annotations

import pytest

from proxy.ops.watch import WINDOW_S, Host, Numbers, Sample, picture


def numbers(**more):
    lines = ['feedproxy_build_info{version="1"} 1']
    for name, values in more.items():
        for labels, value in values.items():
            told = ",".join(f'{key}="{text}"' for key, text in zip(labels[::2], labels[1::2], strict=True))
            lines.append(f"feedproxy_{name}{{{told}}} {value}")
    return Numbers("\n".join(lines) + "\n")


def reads(**by_outcome):
    return {("method", "m", "outcome", outcome): count for outcome, count in by_outcome.items()}


def watched(*told, url="http://a", **checks):
    host = Host(url)
    for at, said in told:
        host.told(Sample(at, said, checks))
    return host


def test_what_is_no_feedproxy_is_told_from_one():
    for text in ("<html>", "", "python_info 1\n", "feedproxy_build_info"):
        with pytest.raises(ValueError):  # noqa: PT011 - the parser has many
            Numbers(text)


def test_rates_are_what_grew_within_the_window():
    told = [(at, numbers(requests_total=reads(hit=100 * at))) for at in range(31)]
    shown = picture([watched(*told)])
    assert shown["reads"]["per_s"] == 100
    assert shown["window_s"] == WINDOW_S
    idle = [(at, numbers(requests_total=reads(hit=3000))) for at in range(31, 42)]
    assert picture([watched(*told, *idle)])["reads"]["per_s"] == 0


def test_one_sample_is_no_rate_and_a_long_silence_is_averaged():
    first = (0.0, numbers(requests_total=reads(hit=50)))
    shown = picture([watched(first)])["reads"]
    assert (shown["per_s"], shown["hit_ratio"], shown["total"]) == (0, None, 50)
    later = (100.0, numbers(requests_total=reads(hit=250)))
    assert picture([watched(first, later)])["reads"]["per_s"] == 2


def test_what_appears_counts_from_nothing_and_what_began_anew_too():
    host = watched(
        (0.0, numbers(requests_total=reads(hit=1000))),
        (10.0, numbers(requests_total=reads(hit=30, miss=10))),
    )
    assert picture([host])["reads"]["by_outcome_per_s"] == {"hit": 3, "miss": 1}


def test_copies_of_any_kind_are_hits_and_nothing_else_is():
    outcomes = dict.fromkeys(("hit", "stale", "negative", "miss", "collapsed", "error", "bypass"), 10)
    host = watched((0.0, numbers()), (1.0, numbers(requests_total=reads(**outcomes))))
    assert picture([host])["reads"]["hit_ratio"] == pytest.approx(3 / 7)


def test_hosts_are_added_up_but_the_queue_is_the_same_for_all():
    queue = {("state", "ready"): 7, ("state", "dead"): 2}
    hosts = [
        watched(
            (0.0, numbers(requests_total=reads(hit=0))),
            (1.0, numbers(requests_total=reads(hit=5), jobs=queue, upstream_limit_per_second={(): 4})),
            url=url,
        )
        for url in ("http://a", "http://b")
    ]
    shown = picture(hosts)
    assert (shown["reads"]["per_s"], shown["reads"]["total"]) == (10, 10)
    assert (shown["queue"]["ready"], shown["queue"]["dead"]) == (7, 2)
    assert shown["upstream"]["limit_per_s"] == 4


def test_the_worst_of_what_hosts_see_of_the_breaker_is_shown():
    def breaker(state):
        states = {("state", name): int(name == state) for name in ("closed", "open", "half-open")}
        return watched((0.0, numbers(upstream_breaker=states)))

    for states, worst in (
        (("closed",), "closed"),
        (("closed", "half-open"), "half-open"),
        (("half-open", "open", "closed"), "open"),
    ):
        assert picture([breaker(state) for state in states])["upstream"]["breaker"] == worst
    assert picture([watched((0.0, numbers()))])["upstream"]["breaker"] is None


def test_a_host_that_fails_is_named_and_nothing_of_it_is_shown():
    host = watched((0.0, numbers(requests_total=reads(hit=5))))
    host.failed("does not answer")
    shown = picture([host])
    assert shown["hosts"] == [{"url": "http://a", "trouble": "does not answer"}]
    assert (shown["reads"]["total"], shown["queue"], shown["findings"]) == (0, None, [])


def test_closed_accounts_come_first_then_those_for_which_most_waits():
    waiting = {("account", name): count for name, count in (("a", 0), ("b", 5), ("c", 1))}
    closed = {("account", "c", "reason", "paused"): 1, ("account", "c", "reason", "breaker"): 0}
    shown = picture([watched((0.0, numbers(account_waiting_jobs=waiting, account_closed=closed)))])
    told = [(each["account"], each["waiting"], each["closed"]) for each in shown["accounts"]]
    assert told == [("c", 1, "paused"), ("b", 5, None), ("a", 0, None)]


def test_what_several_hosts_find_is_told_once():
    late = [{"status": "warn", "output": "late"}]
    hosts = [
        watched((0.0, numbers()), url=url, queue=late, store=[{"status": "pass"}])
        for url in ("http://a", "http://b")
    ]
    [finding] = picture(hosts)["findings"]
    assert finding == {
        "part": "queue",
        "status": "warn",
        "output": "late",
        "hosts": ["http://a", "http://b"],
    }


def test_the_wait_for_a_turn_is_per_turn():
    host = watched(
        (0.0, numbers()),
        (2.0, numbers(limiter_wait_seconds_count={(): 10}, limiter_wait_seconds_sum={(): 5})),
    )
    assert picture([host])["upstream"]["wait_s"] == 0.5
