"""The log of writes, and the disk that a power cut at one place of it could have left behind.

A disk with a volatile cache owes us what was written before the last flush that it confirmed. Each later write is
kept, dropped, or torn between two sectors of 512 bytes, independently of the others. A lying disk confirms flushes
and does nothing: what it owes ends somewhere before them.
"""

import os
import random
import struct
from typing import NamedTuple

from disk import LOG_HEADER, LOG_MAGIC, copy_image
from processes import HarnessError

SECTOR = 512
FLUSH, FUA, DISCARD = 1, 2, 4
ENTRY_HEADER = struct.Struct("<QQQQ")
# ext4 expects of its super block, two sectors under one checksum, what disks with sectors of 4 KiB give. A tear in it
# stops the mount, which says nothing about the broker.
NEVER_TORN_BYTES = 4096
# How many of the newest writes a lying disk may still hold in its cache.
LIES = (16, 64, 256, 1024)


class Entry(NamedTuple):
    """One write or flush: byte range of the disk, flags, and where its data stands in the log file."""

    start: int
    length: int
    flags: int
    data_at: int

    @property
    def is_flush(self):
        return bool(self.flags & FLUSH)

    @property
    def is_write(self):
        return self.length > 0 and not self.flags & DISCARD


class Fate(NamedTuple):
    """What became of one unflushed write: the pieces of it (start, length) that reached the medium."""

    entry: Entry
    pieces: tuple

    @property
    def word(self):
        if not self.pieces:
            return "dropped"
        return "kept" if sum(length for _, length in self.pieces) == self.entry.length else "torn"


class Cut(NamedTuple):
    """A power cut after `at` entries: the first `durable` of them are on the medium, of the others what fates say."""

    number: int
    at: int
    durable: int
    fates: list

    def describe(self):
        words = [fate.word for fate in self.fates]
        counts = ", ".join(f"{words.count(word)} {word}" for word in ("kept", "torn", "dropped"))
        return f"unflushed writes: {len(words)} ({counts})" if words else "no unflushed writes"


def read_log(path):
    """All entries up to the last flush."""
    with open(path, "rb") as file:
        magic, version, count, sector = LOG_HEADER.unpack(file.read(LOG_HEADER.size))
        if (magic, version, sector) != (LOG_MAGIC, 1, SECTOR):
            raise HarnessError(f"{path} is not a log that this script reads.")
        entries, at = [], SECTOR
        for _ in range(count):
            file.seek(at)
            start, sectors, flags, _ = ENTRY_HEADER.unpack(file.read(ENTRY_HEADER.size))
            entries.append(Entry(start * SECTOR, sectors * SECTOR, flags, at + SECTOR))
            at += SECTOR if flags & DISCARD else SECTOR + sectors * SECTOR
    return entries


def choose_places(entries, first, marks, starts, count, rng):
    """Where to cut, in turns: anywhere, before a flush, right behind an acknowledgement, within a start's recovery.

    `marks` are the places of acknowledgements, `starts` those before and after each start of the broker.
    """
    places, marks = [], [mark for mark in marks if mark >= first]
    for number in range(count):
        kind = number % 4
        if kind == 1:
            places.append(choose_before_flush(entries, first, rng))
        elif kind == 2 and marks:
            places.append(min(rng.choice(marks) + rng.randrange(6), len(entries)))
        elif kind == 3 and starts:
            before, after = rng.choice(starts)
            places.append(min(rng.randint(before, after + 1), len(entries)))
        else:
            places.append(rng.randint(first, len(entries)))
    return places


def choose_before_flush(entries, first, rng):
    """Right before a flush, while what it would have made safe is in the cache: the likelier the more that is."""
    places, weights, pending = [], [], 0
    for index in range(first, len(entries)):
        if not entries[index].is_flush:
            pending += 1
        elif pending:
            places.append(index)
            weights.append(pending)
            pending = 0
    return rng.choices(places, weights)[0] if places else len(entries)


def plan(entries, number, at, first, lies, rng):
    """Draws what became of the writes that the disk did not owe us at this cut."""
    durable = lie(at, first, rng) if lies else owed(entries, at)
    mood = rng.random()
    fates = []
    for entry in entries[durable:at]:
        if not entry.is_write:
            continue
        whole = ((0, entry.length),)
        if mood < 0.1 or (entry.flags & FUA and not lies):
            fates.append(Fate(entry, whole))
        elif mood < 0.25:
            fates.append(Fate(entry, ()))
        else:
            fates.append(Fate(entry, draw_pieces(entry, whole, rng)))
    return Cut(number, at, durable, fates)


def owed(entries, at):
    """How many entries an honest disk has on its medium: those before the last flush."""
    for index in range(at - 1, -1, -1):
        if entries[index].is_flush:
            return index
    return 0


def lie(at, first, rng):
    """How many entries a lying disk has on its medium."""
    return max(first, at - rng.choice(LIES))


def draw_pieces(entry, whole, rng):
    """Dropped with one half; of the rest three tenths are torn, to a front or to any sectors."""
    if rng.random() < 0.5:
        return ()
    sectors = entry.length // SECTOR
    if rng.random() >= 0.3 or sectors < 2 or entry.start < NEVER_TORN_BYTES:
        return whole
    if rng.random() < 0.5:
        return ((0, rng.randrange(1, sectors) * SECTOR),)
    chosen = [sector for sector in range(sectors) if rng.random() < 0.5]
    return tuple((sector * SECTOR, SECTOR) for sector in chosen)


class Replayer:
    """Builds the image of one cut after another. They must come in the order of their `durable`."""

    def __init__(self, base, log_path, entries, work):
        self._entries = entries
        self._log = os.open(log_path, os.O_RDONLY)
        self._durable_path = os.path.join(work, "durable.img")
        self._applied = 0
        copy_image(base, self._durable_path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._log)

    def build(self, cut, path):
        """Writes the disk as this cut left it."""
        if cut.durable < self._applied:
            raise HarnessError("the cuts are not in the order of what is durable.")
        disk = os.open(self._durable_path, os.O_WRONLY)
        try:
            for entry in self._entries[self._applied:cut.durable]:
                if entry.is_write:
                    self._copy(disk, entry, 0, entry.length)
        finally:
            os.close(disk)
        self._applied = cut.durable
        copy_image(self._durable_path, path)
        disk = os.open(path, os.O_WRONLY)
        try:
            for fate in cut.fates:
                for start, length in fate.pieces:
                    self._copy(disk, fate.entry, start, length)
        finally:
            os.close(disk)

    def _copy(self, disk, entry, start, length):
        data = os.pread(self._log, length, entry.data_at + start)
        if len(data) != length:
            raise HarnessError("the log of writes ends before its last entry.")
        if os.pwrite(disk, data, entry.start + start) != length:
            raise HarnessError("an image could not be written.")


def stream(seed, *names):
    """A random stream of its own for each purpose, so that one more draw here changes nothing there."""
    return random.Random("/".join(map(str, (seed, *names))))
