"""What processes count together: nothing is lost, told twice, or taken back."""

from __future__ import annotations

import itertools
import os
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.ops.families import FAMILIES, LAYOUT
from proxy.tally import OTHER, SILENT_S, Board, Family, Layout, Pulses, new_memory

READS = Family(
    name="reads", kind="counter", help="", labels={"method": ("a", "b", OTHER), "outcome": ("hit", "miss")}
)
SLEPT = Family(name="slept_seconds", kind="counter", help="")
BUSY = Family(name="busy", kind="gauge", help="")
TOOK = Family(name="took_seconds", kind="histogram", help="", labels={"o": ("x", "y")}, buckets=(0.1, 1.0))
FOUR = Layout([READS, SLEPT, BUSY, TOOK])
BEARS = Family(name="bears", kind="gauge", help="", labels={"host": ()}, found=3)


def boards(count, layout=FOUR, places=3):
    """The same memory as several processes see it."""
    fd = new_memory(places)
    seen = [Board(layout, os.dup(fd)) for _ in range(count)]
    os.close(fd)
    return seen


class TestCounters:
    @given(
        st.lists(
            st.tuples(st.integers(0, 2), st.sampled_from(["a", "b", OTHER, "never heard of"]), st.booleans()),
            max_size=60,
        )
    )
    def test_all_places_are_added_up_whoever_dies_meanwhile(self, events):
        """A process that is replaced at any moment: the next in its place counts on."""
        memory = boards(4)
        tallies = [memory[place].tally(place) for place in range(3)]
        expected, before = Counter(), 0.0
        for place, method, dies in events:
            if dies:
                tallies[place] = memory[place].tally(place)
            tallies[place].add("reads", method, "hit")
            expected[method if method in ("a", "b") else OTHER] += 1
            total = memory[3].totals(0).sum("reads")
            assert total == before + 1
            before = total
        told = memory[3].totals(0).numbers["reads"]
        assert {labels[0]: n for labels, n in told.items() if n} == dict(expected)
        assert all(n == 0 for labels, n in told.items() if labels[1] == "miss")

    def test_the_shortest_way_counts_the_same(self):
        [board] = boards(1)
        tally = board.tally()
        tally.cells[tally.cell("reads", "b", "miss")] += 1
        assert board.totals(0).numbers["reads"]["b", "miss"] == 1

    def test_seconds_are_kept_to_the_microsecond(self):
        [board] = boards(1)
        for _ in range(1000):
            board.tally().add("slept_seconds", by=0.001234)
        assert board.totals(0).numbers["slept_seconds"][()] == pytest.approx(1.234)

    def test_a_label_without_a_rest_takes_no_other_value(self):
        [board] = boards(1)
        with pytest.raises(KeyError):
            board.tally().add("reads", "a", "lost")


class TestHistograms:
    @given(st.lists(st.floats(0, 3), max_size=30))
    def test_buckets_are_cumulative(self, times):
        one, two, reader = boards(3)
        for tally, time in zip(itertools.cycle([one.tally(0), two.tally(1)]), times, strict=False):
            tally.observe("took_seconds", time, "y")
        told = reader.totals(0).histograms["took_seconds"]["y",]
        assert told.counts == tuple(
            sum(time <= bound for time in times) for bound in (0.1, 1.0, float("inf"))
        )
        assert told.sum_s == pytest.approx(sum(times), abs=1e-5)
        assert reader.totals(0).histograms["took_seconds"]["x",].counts == (0, 0, 0)


class TestGauges:
    def test_they_are_of_the_processes_that_are_there(self):
        one, two, reader = boards(3)
        tallies = [one.tally(0), two.tally(1)]
        for number, tally in enumerate(tallies, start=1):
            tally.gauge("busy", read=lambda number=number: number)
            tally.beat(100.0)
        assert reader.totals(101).numbers["busy"][()] == 3
        tallies[0].beat(100 + SILENT_S)
        assert reader.totals(101 + SILENT_S).numbers["busy"][()] == 1, "the second is silent"
        one.tally(0)
        assert reader.totals(101 + SILENT_S).numbers["busy"][()] == 0, "the first is being replaced"

    def test_counters_of_the_silent_stay(self):
        one, reader = boards(2)
        tally = one.tally()
        tally.add("reads", "a", "hit", by=3)
        tally.beat(1.0)
        assert reader.totals(1e6).sum("reads") == 3


class TestVersions:
    def test_what_another_version_counts_is_not_mixed_in(self):
        fd = new_memory(2)
        old, new = Board(FOUR, os.dup(fd)), Board(Layout([SLEPT, READS]), fd)
        old.tally(0).add("reads", "a", "hit")
        new.tally(1).add("slept_seconds", by=7)
        assert (old.totals(0).sum("reads"), old.totals(0).sum("slept_seconds")) == (1, 0)
        assert (new.totals(0).sum("reads"), new.totals(0).sum("slept_seconds")) == (0, 7)

    def test_a_place_of_another_version_is_taken_over_empty(self):
        fd = new_memory(1)
        old, new = Board(FOUR, os.dup(fd)), Board(Layout([SLEPT, READS]), fd)
        old.tally(0).observe("took_seconds", 1.0, "x")
        assert new.tally(0).cells[2:].tolist() == [0] * (len(new.tally(0).cells) - 2)
        assert new.totals(0).sum("slept_seconds") == 0


def test_no_two_numbers_share_a_cell():
    taken = Counter(
        cell
        for family in FAMILIES
        for labels in family.children()
        for cell in range(LAYOUT.cell(family.name, labels), LAYOUT.cell(family.name, labels) + family.cells())
    )
    assert set(taken.values()) == {1}
    assert min(taken) >= 2


def test_two_runs_have_nothing_in_common():
    one, two = Board(FOUR, new_memory()), Board(FOUR, new_memory())
    one.tally().add("reads", "a", "hit")
    assert (one.totals(0).sum("reads"), two.totals(0).sum("reads")) == (1, 0)


def test_too_many_numbers_are_refused():
    many = Family(name="many", kind="counter", help="", labels={"n": tuple(map(str, range(5000)))})
    with pytest.raises(ValueError, match="5002"):
        Layout([many])


class TestWhatIsFoundOut:
    def test_it_is_told_by_its_names_added_up_and_bounded(self):
        first, second, reader = boards(3, Layout([BEARS, BUSY]))
        hosts, others = {"a.example": 4}, {"b" * 80: 1, "a.example": 2}
        tallies = [first.tally(0), second.tally(1)]
        for tally, found in zip(tallies, (hosts, others), strict=True):
            tally.found("bears", lambda found=found: found)
            tally.gauge("busy", read=lambda: 7)
        assert reader.totals(0).numbers["bears"] == {}
        for tally in tallies:
            tally.beat(1)
        assert reader.totals(1).numbers["bears"] == {("a.example",): 6, ("b" * 64,): 1}
        hosts |= {"c.example": 0, "d.example": 5, "e.example": 6}
        tallies[0].beat(2)
        tallies[1].beat(2)
        told = reader.totals(2).numbers
        assert told["bears"] == {("a.example",): 6, ("b" * 64,): 1, ("c.example",): 0, ("d.example",): 5}
        assert told["busy"] == {(): 14}

    def test_a_process_that_is_replaced_leaves_no_names(self):
        writer, reader = boards(2, Layout([BEARS]))
        tally = writer.tally()
        tally.found("bears", lambda: {"a.example": 4, "b.example": 4})
        tally.beat(1)
        tally = writer.tally()
        tally.found("bears", lambda: {"c.example": 1})
        tally.beat(2)
        assert reader.totals(2).numbers["bears"] == {("c.example",): 1}


def test_whoever_made_the_memory_sees_who_beats():
    fd = new_memory(2)
    pulses, board = Pulses(fd), Board(FOUR, os.dup(fd))
    tally = board.tally(1)
    assert (pulses.last_ms(0), pulses.last_ms(1)) == (0, 0)
    tally.beat(12.5)
    assert (pulses.last_ms(0), pulses.last_ms(1)) == (0, 12_500)
    board.tally(1)
    assert pulses.last_ms(1) == 0, "a replacement has not begun"
    os.close(fd)
