"""What a CMS may send: each rule with its place, one canonical form, and who is skipped."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Faulty
from proxy.syndication.document import MAX_DEPTH, json_path, parse_document
from proxy.syndication.post import (
    MAX_FAULTS,
    MAX_FUTURE_S,
    MAX_WARNINGS,
    Skip,
    parse_post,
    restore_post,
    skip_reason,
)

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
DAY_S = 86400.0
LEAST = {
    "id": "123",
    "url": "https://blog.example/a",
    "title": "A title",
    "published_at": "2026-11-22T09:00:00Z",
}
# The example of the contract, all fields.
FULL = {
    **LEAST,
    "excerpt": "…",
    "text": None,
    "images": [{"url": "https://blog.example/a.jpg", "alt": "…"}],
    "langs": ["en"],
    "tags": ["python"],
    "labels": [],
    "status": "publish",
    "previous_status": "draft",
    "syndicate": True,
    "thread": False,
    "revision": 7,
    "group": "autumn",
    "priority": "normal",
    "accounts": ["main"],
    "callback_url": "https://blog.example/hook",
}


def post(**changes):
    return parse_post({**LEAST, **changes}, now=NOW)[0]


def faults(document):
    with pytest.raises(Faulty) as caught:
        parse_post(document, now=NOW)
    assert (caught.value.status, caught.value.code) == (422, "invalid_post")
    return dict(caught.value.faults)


def test_the_example_of_the_contract_is_taken_without_a_warning():
    parsed, warnings = parse_post(FULL, now=NOW)
    assert warnings == ()
    assert (parsed.id, parsed.revision, parsed.accounts) == ("123", 7, ("main",))
    assert parsed.published_at == datetime(2026, 11, 22, 9, tzinfo=UTC)
    assert parsed.published_at_ms == 1_795_338_000_000


def test_the_least_a_post_needs():
    assert post() == post(text=None, images=[], syndicate=True, status="publish", priority="normal")
    assert post(title=None, text="all of it").text == "all of it"


@pytest.mark.parametrize("name", ["id", "url", "published_at"])
def test_what_is_required(name):
    document = {key: value for key, value in LEAST.items() if key != name}
    assert list(faults(document)) == [f"$.{name}"]


@pytest.mark.parametrize("nothing", [None, "", "  \n"])
def test_a_title_or_a_text_is_required(nothing):
    assert faults({**LEAST, "title": nothing, "text": nothing}) == {"$.title": "give a title or a text"}


WRONG = {
    "id": [None, "", 5, " a", "a\n", "x" * 257, "a\x00b"],
    "url": [
        *(
            "",
            "blog.example/a",
            "/a",
            "ftp://blog.example/a",
            "javascript:alert(1)",
            "https://",
            "https:///a",
        ),
        *("https://a b.example/", "https://u:p@blog.example/", "https://x\\@blog.example/", "https://[::1/"),
        *("https://blog.example:99999/", "https://blog.example:0/", "https://blog.example/\n", 5, None),
        "https://blog.example/" + "x" * 2048,
    ],
    "title": [5, "x" * 1001, []],
    "text": ["x" * 10_001, {}],
    "excerpt": [["a"]],
    "images": [{}, "a", [{"url": "https://a.example/"}] * 21],
    "langs": ["en", ["en", "de", "fr", "es"], ["!"], [None]],
    "tags": [["x"] * 65, [""], ["\x00"], [1]],
    "labels": [["x"] * 11, [""], ["x" * 129]],
    "status": [None, "", 1, "x" * 129],
    "previous_status": [1, "x" * 129],
    "syndicate": ["yes", 1, None],
    "thread": ["no", None],
    "published_at": [
        *("2026-11-22T09:00:00", "2026-11-22", "22.11.2026", "", None, 1_795_338_000, "1795338000"),
        *("2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z", "2026-11-22T25:00:00Z", "0000-00-00T00:00:00Z"),
        *(
            "0001-01-01T00:00:00+14:00",
            "9999-12-31T23:59:59-14:00",
            "1969-12-31T23:59:59Z",
            "2026-W47-7T09:00:00Z",
        ),
        *("2026-11-22T09:00:00+99:00", "٢٠٢٦-11-22T09:00:00Z", "2026-11-22T09:00:00Z\n"),
    ],
    "revision": [-1, 1.5, "7", True, 2**53 + 1],
    "group": ["x" * 129, "a\tb", 5],
    "priority": ["low", None, 1],
    "accounts": [[], "main", ["a b"], [""], ["a"] * 101],
    "callback_url": ["hook", "ftp://blog.example/", 5],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_each_fault_is_told_with_its_place(name, value):
    found = faults({**LEAST, name: value})
    assert len(found) == 1
    assert next(iter(found)).startswith(f"$.{name}")


def test_all_faults_are_told_at_once_and_name_the_member():
    document = {**LEAST, "id": 5, "images": [{"url": "https://a.example/"}, {"alt": 3}], "tags": ["a", 1]}
    assert set(faults(document)) == {"$.id", "$.images[1].url", "$.images[1].alt", "$.tags[1]"}


def test_the_list_of_faults_is_bounded_and_repeats_nothing_of_the_document():
    found = faults({**LEAST, "tags": [12345678] * 64, "title": "x" * 2000})
    assert len(found) == MAX_FAULTS
    assert "12345678" not in str(found)
    assert "xxx" not in str(found)


@pytest.mark.parametrize("document", [None, [], "a", 5, [LEAST]])
def test_a_post_is_an_object(document):
    assert list(faults(document)) == ["$"]


def test_a_post_may_lie_a_year_in_the_future_and_no_more():
    edge = datetime.fromtimestamp(NOW + MAX_FUTURE_S, UTC)
    assert post(published_at=edge.isoformat()).published_at == edge
    late = (edge + timedelta(seconds=1)).isoformat()
    assert faults({**LEAST, "published_at": late}) == {
        "$.published_at": "must not lie more than a year in the future"
    }


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-22T09:00:00Z",
        "2026-11-22t09:00:00z",
        "2026-11-22 10:00:00+01:00",
        "2026-11-22T10:00:00.000+0100",
    ],
)
def test_one_instant_in_all_its_spellings_is_one(text):
    assert post(published_at=text).payload_hash() == post().payload_hash()


def test_unknown_fields_are_ignored_and_listed():
    document = {**LEAST, "colour": 1, "a b": 2, "images": [{"url": "https://a.example/", "width": 3}]}
    parsed, warnings = parse_post(document, now=NOW)
    assert warnings == (
        "$.colour is not known and was ignored",
        '$["a b"] is not known and was ignored',
        "$.images[0].width is not known and was ignored",
    )
    assert parsed == post(images=[{"url": "https://a.example/"}])


def test_the_list_of_unknown_fields_is_bounded():
    _, warnings = parse_post({**LEAST, **{f"field{n}" + "x" * 500: n for n in range(500)}}, now=NOW)
    assert len(warnings) == MAX_WARNINGS + 1
    assert max(map(len, warnings)) < 200
    assert warnings[-1] == "480 more fields are not known and were ignored"


def test_blank_means_absent_where_a_cms_has_nothing_to_say():
    assert post(text="", excerpt=" ", group="", callback_url="", previous_status="") == post()


def test_text_loses_what_is_no_text():
    parsed = post(title="a\x00b\x1b[31mc\r\nd\te", tags=["x\x7fy"])
    assert (parsed.title, parsed.tags) == ("ab[31mc\nd\te", ("xy",))


def test_the_canonical_form_tells_edits_apart_and_nothing_else():
    shuffled = dict(reversed(FULL.items()))
    assert parse_post(shuffled, now=NOW)[0].payload_hash() == parse_post(FULL, now=NOW)[0].payload_hash()
    assert parse_post({**FULL, "unknown": 1}, now=NOW)[0].canonical() == post(**FULL).canonical()
    hashes = {post().payload_hash()}
    for name, value in (
        ("title", "b"),
        ("revision", 0),
        ("accounts", ["x"]),
        ("syndicate", False),
        ("text", "t"),
    ):
        hashes.add(post(**{name: value}).payload_hash())
    assert len(hashes) == 6


def test_the_canonical_form_stays_the_same_in_every_version():
    # Queues and keys of other versions hold it: a field that is new must not show while it has its default.
    assert post(priority="urgent").canonical() == (
        '{"id":"123","priority":"urgent","published_at":"2026-11-22T09:00:00.000Z",'
        '"title":"A title","url":"https://blog.example/a"}'
    )


def test_the_canonical_form_reads_back_as_the_same_post():
    parsed = post(**{**FULL, "published_at": "2026-11-22T09:00:00.123456789Z", "title": "ä😀\u2028"})
    assert restore_post(parsed.canonical()) == parsed
    assert parsed.published_at_ms % 1000 == 123
    with pytest.raises(Faulty):
        restore_post('{"id": 1}')


zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(
    st.fixed_dictionaries(
        {
            "id": st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20),
            "title": st.text(st.characters(exclude_categories=["Cs"]), max_size=50).map(
                lambda text: f"x{text}"
            ),
            "published_at": st.builds(
                lambda at, zone: datetime.fromtimestamp(at, zone).isoformat(), st.integers(0, int(NOW)), zones
            ),
        },
        optional={
            "revision": st.integers(0, 2**53),
            "tags": st.lists(st.text("ab\x00\r\n ", max_size=5).map(lambda text: f"x{text}"), max_size=5),
            "priority": st.sampled_from(["normal", "urgent"]),
        },
    )
)
def test_whatever_is_taken_survives_its_canonical_form(changes):
    parsed = post(**changes)
    again = restore_post(parsed.canonical())
    assert (again, again.payload_hash()) == (parsed, parsed.payload_hash())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"status": "draft"}, Skip.NOT_PUBLISHED),
        ({"status": "trash", "syndicate": False}, Skip.NOT_PUBLISHED),
        ({"syndicate": False}, Skip.SWITCHED_OFF),
        ({"previous_status": "publish"}, Skip.ALREADY_PUBLISHED),
        ({"previous_status": "draft"}, None),
        ({"published_at": "2026-11-15T12:00:00Z"}, None),
        ({"published_at": "2026-11-15T11:59:59.999Z"}, Skip.TOO_OLD),
        ({"published_at": "2027-01-01T00:00:00Z"}, None),
    ],
)
def test_who_is_skipped(changes, reason):
    assert skip_reason(post(**changes), NOW, 7 * DAY_S) is reason


def test_what_is_wanted_is_published_and_switched_on():
    assert post().wanted
    assert not post(status="private").wanted
    assert not post(syndicate=False).wanted


AMBIGUOUS = [
    b"",
    b"{",
    b"{}x",
    b'{"a": 1, "a": 2}',
    b'{"a": [{"b": 1, "b": 1}]}',
    b'{"a": NaN}',
    b'{"a": Infinity}',
    b'{"a": -Infinity}',
    b'{"a": 1e999}',
    b'{"a": ' + b"9" * 5000 + b"}",
    b'{"a": 9007199254740993}',
    b'{"a": "\\ud800"}',
    b'{"\\udfff": 1}',
    b'["\\ud800"]',
    b'"\\ud800"',
    b'{"a": "\xff"}',
    "{}".encode("utf-16"),
    b"[" * 60_000 + b"]" * 60_000,
    b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    b'{"a": "\x01"}',
    b"{'a': 1}",
]


@pytest.mark.parametrize("body", AMBIGUOUS)
def test_a_document_that_is_not_plain_is_refused(body):
    with pytest.raises(Faulty) as caught:
        parse_document(body)
    assert (caught.value.status, caught.value.code) == (422, "invalid_json")
    assert caught.value.faults[0][0] == "$"


def test_a_document_that_is_plain_is_read():
    body = '{"a": [1, 2.5, true, null, "\\ud83d\\ude00"], "ä": {"b": -0.0}}'
    assert parse_document(body.encode()) == json.loads(body)
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert parse_document(deepest) == json.loads(deepest)


def test_paths_within_a_document():
    assert json_path(()) == "$"
    assert json_path(("a", 0, "b_1")) == "$.a[0].b_1"
    assert json_path(("<b>\n",)) == '$["<b>\\n"]'
    assert len(json_path(("x" * 10_000,))) < 120
