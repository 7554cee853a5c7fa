"""What processes count, in memory that those of one host share.

Each process has a place of its own, where it alone writes; whoever reads adds all of them up. The supervisor
makes the memory and hands it to its children. One that replaces a dead process counts on from where that was
cut off: so no count is lost, none is told twice, and none ever goes backwards. There is no file to clean up,
and what is run twice on one machine has nothing in common.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Final, Literal

# A value that is none of a label's own.
OTHER: Final = "other"
# Gauges of a process that has not written them for so long are not told: it is gone, or hangs.
SILENT_S: Final = 5.0
BEAT_S: Final = 1.0

_CELLS: Final = 4096  # of a place
_PLACE_BYTES: Final = _CELLS * 8
# The first cells of a place: what is counted there, and when its gauges were written (steady, ms).
_MARK, _BEAT_AT_MS, _FIRST = 0, 1, 2
_MICRO: Final = 1e6
# What a name takes that is found out.
_NAME_CELLS: Final = 8
_NAME_BYTES: Final = _NAME_CELLS * 8

# As they are told: one of each label's values, in the labels' order.
Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Numbers of one meaning, one for each combination of the labels' values, all of which are known.

    `name` is as Prometheus has it, without `_total`. Counters may only grow. `buckets` of a histogram are
    upper bounds in seconds; what a counter of seconds or a histogram is given are seconds. Of a gauge with
    `found` the values of its one label are found out, by each process so many at most.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()
    found: int = 0

    @property
    def in_seconds(self) -> bool:
        """Whether its numbers are seconds: they are kept as whole microseconds."""
        return self.name.endswith("_seconds")

    def children(self) -> Iterator[Labels]:
        """Every combination of the labels' values; of those that are found out, their numbers."""
        return product(*self.labels.values()) if not self.found else ((str(i),) for i in range(self.found))

    def cells(self) -> int:
        """Cells of one child: for a histogram each bucket, the rest, the sum; of what is found its name."""
        if self.kind == "histogram":
            return len(self.buckets) + 2
        return 1 + _NAME_CELLS if self.found else 1


class Layout:
    """Where in a process's place each number is."""

    def __init__(self, families: Sequence[Family]) -> None:
        self.families = {family.name: family for family in families}
        self._cells: dict[tuple[str, Labels], int] = {}
        size = _FIRST
        for family in families:
            for labels in family.children():
                self._cells[family.name, labels] = size
                size += family.cells()
        if size > _CELLS:
            raise ValueError(f"{size} numbers do not fit into a place")
        told = repr([(each.name, each.kind, each.labels, each.buckets, each.found) for each in families])
        # Tells this layout from those of other versions.
        self.mark = int.from_bytes(hashlib.sha256(told.encode()).digest()[:8], "big") or 1

    def cell(self, name: str, labels: Labels) -> int:
        """The first cell of a number. A value that is not among a label's is OTHER, if that is."""
        known = self._cells.get((name, labels))
        if known is not None:
            return known
        values = self.families[name].labels.values()
        rest = tuple(given if given in own else OTHER for given, own in zip(labels, values, strict=True))
        return self._cells[name, rest]


class Tally:
    """One process's place. Only that process, and only one thread of it, may write."""

    def __init__(self, layout: Layout, cells: memoryview) -> None:
        self._layout = layout
        self._read: list[tuple[int, Callable[[], float], float]] = []
        self._found: list[tuple[Family, Callable[[], Mapping[str, float]]]] = []
        # For whoever counts often: add one to the cell of `cell`.
        self.cells = cells

    def cell(self, name: str, *labels: str) -> int:
        """Where in `cells` a counter is."""
        return self._layout.cell(name, labels)

    def add(self, name: str, *labels: str, by: float = 1) -> None:
        """Count `by` more."""
        scale = _MICRO if self._layout.families[name].in_seconds else 1
        self.cells[self._layout.cell(name, labels)] += round(by * scale)

    def observe(self, name: str, seconds: float, *labels: str) -> None:
        """One more observation of a histogram."""
        first = self._layout.cell(name, labels)
        bounds = self._layout.families[name].buckets
        self.cells[first + bisect_left(bounds, seconds)] += 1
        self.cells[first + len(bounds) + 1] += round(max(0.0, seconds) * _MICRO)

    def gauge(self, name: str, *labels: str, read: Callable[[], float]) -> None:
        """Have `read` tell a gauge with each beat."""
        scale = _MICRO if self._layout.families[name].in_seconds else 1
        self._read.append((self._layout.cell(name, labels), read, scale))

    def found(self, name: str, read: Callable[[], Mapping[str, float]]) -> None:
        """Have `read` tell a gauge by what was found out with each beat: it only ever adds at the end."""
        self._found.append((self._layout.families[name], read))

    def beat(self, now: float) -> None:
        """Write all gauges, as they are at the steady instant `now`."""
        for cell, read, scale in self._read:
            self.cells[cell] = max(0, round(read() * scale))
        for family, read_all in self._found:
            for labels, (value, number) in zip(family.children(), read_all().items(), strict=False):
                first = self._layout.cell(family.name, labels)
                self.cells[first] = max(0, round(number))
                _write_name(self.cells[first + 1 : first + 1 + _NAME_CELLS], value)
        self.cells[_BEAT_AT_MS] = max(1, round(now * 1000))


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations at or below each bound (cumulative; the last are all there were), and their sum."""

    counts: tuple[int, ...]
    sum_s: float


@dataclass(frozen=True, slots=True)
class Totals:
    """What all processes of a host have counted, by family and labels."""

    numbers: Mapping[str, Mapping[Labels, float]]
    histograms: Mapping[str, Mapping[Labels, Histogram]]

    def sum(self, name: str, *labels: str) -> float:
        """Of the children whose labels begin with `labels`."""
        children = self.numbers[name].items()
        return sum(value for own, value in children if own[: len(labels)] == labels)


class Board:
    """The places of all processes of a host, in the memory that `fd` names (see `new_memory`).

    The descriptor is closed; the memory is there for as long as anybody uses it.
    """

    def __init__(self, layout: Layout, fd: int) -> None:
        self._layout = layout
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        os.close(fd)
        self._cells = memoryview(self._map).cast("Q")

    def tally(self, place: int = 0) -> Tally:
        """The place of a process, where it counts on; its gauges begin anew with its first beat.

        What another version has counted there is forgotten.
        """
        cells = self._place(place)
        if cells[_MARK] != self._layout.mark:
            for cell in range(_CELLS):
                cells[cell] = 0
            cells[_MARK] = self._layout.mark
        cells[_BEAT_AT_MS] = 0
        for family in self._layout.families.values():
            for labels in family.children() if family.found else ():
                cells[self._layout.cell(family.name, labels) + 1] = 0
        return Tally(self._layout, cells)

    def totals(self, now: float) -> Totals:
        """The sum of all places; of gauges, of the processes that are there at the steady instant `now`."""
        places = map(self._place, range(len(self._cells) // _CELLS))
        every = [place for place in places if place[_MARK] == self._layout.mark]
        oldest_ms = (now - SILENT_S) * 1000
        there = [place for place in every if place[_BEAT_AT_MS] > oldest_ms]
        numbers: dict[str, dict[Labels, float]] = {}
        histograms: dict[str, dict[Labels, Histogram]] = {}
        for name, family in self._layout.families.items():
            counted = there if family.kind == "gauge" else every
            if family.found:
                numbers[name] = self._found(family, counted)
                continue
            for labels in family.children():
                first = self._layout.cell(name, labels)
                if family.kind == "histogram":
                    sums = [sum(place[first + i] for place in counted) for i in range(family.cells())]
                    histograms.setdefault(name, {})[labels] = _histogram(sums)
                else:
                    scale = _MICRO if family.in_seconds else 1
                    numbers.setdefault(name, {})[labels] = sum(place[first] for place in counted) / scale
        return Totals(numbers, histograms)

    def _found(self, family: Family, counted: Sequence[memoryview]) -> dict[Labels, float]:
        told: Counter[Labels] = Counter()
        for place, labels in product(counted, family.children()):
            first = self._layout.cell(family.name, labels)
            if place[first + 1]:
                name = bytes(place[first + 1 : first + 1 + _NAME_CELLS]).rstrip(b"\0")
                told[name.decode(errors="ignore"),] += place[first]
        return dict(told)

    def _place(self, place: int) -> memoryview:
        return self._cells[place * _CELLS : (place + 1) * _CELLS]


class Pulses:
    """When each process has last beaten, for whoever made the memory that `fd` names; `fd` stays open."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        self._cells = memoryview(self._map).cast("Q")

    def last_ms(self, place: int) -> int:
        """The last beat of the process at `place` (steady, ms); 0 if it has not begun."""
        return self._cells[place * _CELLS + _BEAT_AT_MS]


def new_memory(places: int = 1) -> int:
    """Memory for so many processes, in which nothing was counted: a descriptor for them to inherit."""
    # On disk, a page for which there is no room would end the process that writes to it.
    fd = os.memfd_create("feedproxy-tally") if hasattr(os, "memfd_create") else _unnamed_file()
    os.write(fd, bytes(places * _PLACE_BYTES))
    return fd


def _write_name(cells: memoryview, name: str) -> None:
    """The first cell last: who reads it sees a whole name or none."""
    words = struct.unpack(f"={_NAME_CELLS}Q", name.encode()[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0"))
    for i in reversed(range(_NAME_CELLS)):
        cells[i] = words[i]


def _histogram(sums: Sequence[int]) -> Histogram:
    *counts, sum_us = sums
    return Histogram(tuple(sum(counts[: i + 1]) for i in range(len(counts))), sum_us / _MICRO)


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
