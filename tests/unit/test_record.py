"""Records: valid, frozen, with the CID that the PDS computes; and told apart by where they lead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxy.syndication.intent import canonical_json, cid_of
from proxy.syndication.post import parse_post
from proxy.syndication.record import freeze, is_about, links_to, texts_of

NOW = 1_795_338_000.5
URL = "https://blog.example/a"
DATA = Path(__file__).with_name("captured_records.json")


def post(**fields):
    document = {"id": "1", "url": URL, "title": "A title", "published_at": "2026-11-22T09:00:00Z", **fields}
    return parse_post(document, now=NOW)[0]


def frozen(template="{title}\n\n{url}", langs=(), created_at=NOW, dids=None, **fields):
    document = post(**fields)
    texts = texts_of(document, template)
    return freeze(document, texts, dids=dids or {}, langs=langs, created_at=created_at)


def record_of(**fields):
    (record,) = frozen(**fields).records
    return record


@pytest.mark.parametrize("captured", json.loads(DATA.read_text()), ids=lambda captured: captured["uri"][-13:])
def test_the_cid_is_the_one_a_real_pds_gave(captured):
    # Among them links to blobs and other records, facets, and text in several scripts.
    assert cid_of(captured["value"]) == captured["cid"]


def test_the_cid_does_not_depend_on_the_order_of_members():
    value = record_of()
    assert cid_of(dict(reversed(value.items()))) == cid_of(value)


def test_a_link_is_a_cid_and_not_its_text():
    value = {"blob": {"$link": "bafkreibvnx2q2grjbszh4i4ca5otqqp4nog6jlhd77b363uvhlpwxzoqta"}}
    assert cid_of(value) != cid_of({"blob": {"link": value["blob"]["$link"]}})
    assert cid_of({"blob": "bafkreibvnx2q2grjbszh4i4ca5otqqp4nog6jlhd77b363uvhlpwxzoqta"}) != cid_of(value)


def test_the_same_post_at_the_same_instant_is_the_same_bytes():
    assert frozen(tags=["a", "b"]) == frozen(tags=["a", "b"])


def test_the_bytes_are_canonical_json_in_utf8():
    assert canonical_json({"b": "ü", "a": {"d": 2, "c": 3}}) == '{"a":{"c":3,"d":2},"b":"ü"}'.encode()
    (record,) = frozen(title="Grüße 日本語").at("did:plc:alice", "3n2vatw364lwz")
    assert record.json_bytes == canonical_json(json.loads(record.json_bytes))
    assert "Grüße 日本語".encode() in record.json_bytes
    assert record.cid == cid_of(json.loads(record.json_bytes))


def test_it_is_a_post_with_its_link():
    record = record_of()
    assert record["$type"] == "app.bsky.feed.post"
    assert record["text"] == f"A title\n\n{URL}"
    assert record["facets"][0]["index"] == {"byteStart": 9, "byteEnd": 9 + len(URL)}
    assert set(record) == {"$type", "text", "facets", "createdAt"}


def test_it_is_dated_at_the_attempt_with_milliseconds():
    assert record_of()["createdAt"] == "2026-11-22T09:00:00.500Z"
    assert record_of(created_at=NOW + 3600)["createdAt"] == "2026-11-22T10:00:00.500Z"


def test_languages_are_the_posts_else_the_sites():
    assert record_of(langs=("en",))["langs"] == ["en"]
    document = post(langs=["de", "fr"])
    texts = texts_of(document, "{title}")
    intent = freeze(document, texts, dids={}, langs=("en",), created_at=NOW)
    assert intent.records[0]["langs"] == ["de", "fr"]


def test_labels_are_self_labels():
    values = record_of(labels=["nudity"])["labels"]
    assert values == {"$type": "com.atproto.label.defs#selfLabels", "values": [{"val": "nudity"}]}


def test_tags_that_do_not_fit_are_left_out_and_it_says_so():
    intent = frozen(tags=["#one", "one", " ", "two", "x" * 65, *(f"t{number}" for number in range(9))])
    assert intent.records[0]["tags"] == ["one", "two", "t0", "t1", "t2", "t3", "t4", "t5"]
    assert intent.degraded == ("4 of the tags were left out",)
    assert "tags" not in record_of(tags=["#"])


def test_a_cut_title_is_recorded_and_a_cut_excerpt_is_not():
    assert frozen(title="word " * 100).degraded == ("the title was too long and was cut",)
    assert frozen(template="{title} {excerpt} {url}", excerpt="word " * 100).degraded == ()


def linking(uri, **more):
    feature = {"$type": "app.bsky.richtext.facet#link", "uri": uri}
    return {"text": "", "facets": [{"index": {}, "features": [feature]}], **more}


class TestLinks:
    @pytest.mark.parametrize(
        "record",
        [
            linking(URL),
            linking(f"{URL}/"),
            linking("http://BLOG.example:80/a?utm_source=bluesky&utm_medium=social"),
            {"text": "", "embed": {"$type": "app.bsky.embed.external", "external": {"uri": URL}}},
            {"text": "", "embed": {"media": {"external": {"uri": URL}}}},
            {"text": f"Read it ({URL})."},
        ],
    )
    def test_a_record_that_leads_to_the_post(self, record):
        assert links_to(record, URL)

    @pytest.mark.parametrize(
        "record",
        [
            linking("https://blog.example/b"),
            linking("https://blog.example/a?p=1"),
            linking("https://other.example/a"),
            linking(f"{URL}#comments"),
            linking("https://blog.example:8080/a"),
            linking("did:plc:alice"),
            linking(URL, reply={"root": {}, "parent": {}}),
            {"text": "blog.example/a"},
            {"text": f"{URL}bc"},
            {"text": 5, "facets": "x", "embed": ["y"]},
            {"facets": [None, {"features": [None, {"uri": 5}]}], "embed": {"external": "z"}},
            linking("https://[broken/a"),
            {},
        ],
    )
    def test_a_record_that_does_not(self, record):
        assert not links_to(record, URL)

    def test_addresses_that_differ_in_their_query_are_different_posts(self):
        assert not links_to(linking("https://blog.example/?p=1"), "https://blog.example/?p=2")
        assert links_to(linking("https://blog.example/?p=1&utm_campaign=x"), "https://blog.example/?p=1")

    def test_addresses_that_differ_in_their_fragment_are_different_posts(self):
        assert not links_to(linking("https://app.example/#/post/1"), "https://app.example/#/post/2")
        assert not links_to({"text": "https://blog.example/live#a"}, "https://blog.example/live#b")
        assert links_to(linking("https://APP.example:443/#/post/1"), "https://app.example/#/post/1")

    def test_our_own_record_leads_to_its_post(self):
        assert links_to(record_of(), URL)
        long = "https://blog.example/" + "x" * 400
        assert links_to(record_of(url=long), long)


class TestLimits:
    """Whatever a CMS or a site has too much of is left out, and said."""

    def test_languages(self):
        intent = frozen(langs=("english language", "de", "de", "x", "pt-BR", "zh-Hant-TW", "fr"))
        assert intent.records[0]["langs"] == ["de", "pt-BR", "zh-Hant-TW"]
        assert intent.degraded == ("3 of the languages were left out",)
        assert "langs" not in frozen(langs=("nonsense!",)).records[0]

    def test_labels(self):
        intent = frozen(labels=["nudity", "nudity", "ü" * 65, "sexual"])
        assert [value["val"] for value in intent.records[0]["labels"]["values"]] == ["nudity", "sexual"]
        assert intent.degraded == ("1 of the labels was left out",)

    def test_tags_that_stand_in_the_text_are_not_repeated_beside_it(self):
        tags = ["Python", "machine learning", "web"]
        intent = frozen("{title} {tags} {url}", title="On #web", tags=tags)
        assert "tags" not in intent.records[0]
        intent = frozen("{title} {url}", title="On #WEB", tags=tags)
        assert intent.records[0]["tags"] == ["Python", "machine learning"]

    def test_facets_of_a_thread_have_a_bound(self):
        intent = frozen(text="a.co " * 1000, thread=True)
        assert sum(len(record.get("facets", ())) for record in intent.records) == 300
        assert len(intent.stored()) < 150 * 1024

    def test_mentions_that_lead_nowhere_are_said(self):
        intent = frozen(title="@alice.test, @bob.test, @carol.test", dids={"bob.test": "did:plc:bob"})
        features = [facet["features"][0] for facet in intent.records[0]["facets"]]
        assert features[0] == {"$type": "app.bsky.richtext.facet#mention", "did": "did:plc:bob"}
        assert intent.degraded == ("@alice.test and 1 more could not be resolved: plain text",)


def test_the_parts_of_a_thread_are_alike_and_a_millisecond_apart():
    intent = frozen(text="A sentence. " * 60, thread=True, tags=["a"], labels=["nudity"], langs=("en",))
    first, second, third = intent.records
    assert first["tags"] == ["a"]
    assert "tags" not in second
    assert [record["createdAt"][-5:] for record in intent.records] == [".500Z", ".501Z", ".502Z"]
    assert first["langs"] == second["langs"] == third["langs"] == ["en"]
    assert second["labels"] == first["labels"]


OTHER = "https://blog.example/other"
CARD = {"$type": "app.bsky.embed.external", "external": {"uri": URL}}


def facet(uri, start):
    feature = {"$type": "app.bsky.richtext.facet#link", "uri": uri}
    return {"index": {"byteStart": start, "byteEnd": start + 1}, "features": [feature]}


class TestWhatARecordIsAbout:
    @pytest.mark.parametrize(
        "record",
        [
            linking(URL),
            linking(OTHER, embed=CARD),
            linking(OTHER, embed={"media": CARD}),
            {"text": "", "facets": [facet(OTHER, 0), facet(URL, 30)]},
            {"text": "", "facets": [facet(URL, 30), facet(OTHER, 0)]},
            {"text": f"After {OTHER} ({URL})."},
        ],
    )
    def test_its_card_else_its_last_link(self, record):
        assert is_about(record, URL)

    @pytest.mark.parametrize(
        "record",
        [
            {"text": "", "facets": [facet(URL, 0), facet(OTHER, 30)]},
            {"text": "", "facets": [facet(OTHER, 30), facet(URL, 0)]},
            linking(URL, embed={"external": {"uri": OTHER}}),
            {"text": f"{URL} and {OTHER}"},
            linking(URL, reply={"root": {}, "parent": {}}),
            {"text": 5, "facets": [{"index": {"byteStart": "x"}}], "embed": ["y"]},
            {},
        ],
    )
    def test_what_it_mentions_beside_it_is_not(self, record):
        assert not is_about(record, URL)

    def test_our_own_record_is_about_its_post(self):
        template = "{title}\n\n{excerpt}\n\n{url}"
        assert is_about(record_of(template=template, excerpt=f"After {OTHER}."), URL)
        assert not is_about(record_of(template=template, excerpt=f"After {OTHER}."), OTHER)
