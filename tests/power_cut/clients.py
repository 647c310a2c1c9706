"""Producers, consumers and topic changes, each a process of the command line under test.

A line says where it belongs and ends with a checksum, and no line is sent twice, so a line that is read back is
recognised byte for byte.
"""

import os
import subprocess
import threading
import zlib
from typing import NamedTuple

from broker import CommandFailed
from check import live_failure
from processes import HarnessError, interruptible

CHUNK_BYTES = 1 << 16
# A producer gives up after some twenty seconds of refusals, and a topic of the churn is made by three commands.
QUIET_WAIT_S = 60.0
JOIN_WAIT_S = 150.0
POOL_BYTES = 1 << 20
# Name, partitions, and a length of segments that is reached several times.
TOPICS = (("orders", 1, "1MiB"), ("events", 2, "512KiB"))
SHORT_SEGMENT = "256KiB"
# Share of records, and the range of their lengths.
LENGTHS = ((0.60, 16, 200), (0.30, 200, 2_000), (0.095, 2_000, 8_000), (0.005, 20_000, 180_000))


class Style(NamedTuple):
    """How a producer sends: lines unacknowledged at most, lines of one burst at most, mean pause between bursts."""

    topic: str
    partition: int
    window: int
    burst: int
    pause_s: float
    compression: str


STYLES = (
    Style("orders", 0, 1, 1, 0.004, "none"),
    Style("orders", 0, 256, 24, 0.020, "none"),
    Style("events", 0, 64, 8, 0.010, "lz4"),
    Style("events", 1, 512, 64, 0.060, "zstd"),
)


class Worker(threading.Thread):
    """A thread whose error is raised where it is joined."""

    def __init__(self, work):
        super().__init__(daemon=True)
        self._work = work
        self._error = None

    def run(self):
        try:
            self._work()
        except Exception as error:  # Raised again in `finish`.
            self._error = error

    def finish(self):
        self.join(JOIN_WAIT_S)
        if self.is_alive():
            raise HarnessError("a thread of the load did not end.")
        if self._error is not None:
            raise self._error


class Lines:
    """Makes the lines of one producer."""

    def __init__(self, rng):
        self._rng = rng
        self._pool = rng.randbytes(POOL_BYTES // 2).hex().encode()

    def make(self, log, run):
        draw, length = self._rng.random(), 0
        for share, low, high in LENGTHS:
            length = self._rng.randint(low, high)
            if draw < share:
                break
            draw -= share
        start = self._rng.randrange(len(self._pool) - length)
        text = b"%s run %d line %d %s " % (log.name.encode(), run.number, len(run.lines),
                                           self._pool[start:start + length])
        return text + b"%08x" % zlib.crc32(text)


class Producer:
    """One `forebay produce`, a thread that feeds it, and one that reads its acknowledgements."""

    def __init__(self, commands, recorder, log, run, style, rng):
        self._recorder, self._log, self._run, self._style, self._rng = recorder, log, run, style, rng
        self._lines = Lines(rng)
        self._stopping = threading.Event()
        arguments = ["produce", log.topic, "--partition", str(log.partition), "--print-acked",
                     *commands.optional(["produce"], "--compression", style.compression)]
        self.process = commands.start(*arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE)
        self._workers = [Worker(self._feed), Worker(self._read_acks)]
        for worker in self._workers:
            worker.start()

    def _feed(self):
        try:
            with self.process.stdin as pipe:
                while not self._stopping.is_set():
                    pipe.write(self._next_burst())
                    pipe.flush()
                    # Now and then long enough that the broker writes its marker.
                    pause_s = 0.05 if self._rng.random() < 0.02 else self._rng.expovariate(1 / self._style.pause_s)
                    self._stopping.wait(pause_s)
        except BrokenPipeError:
            pass

    def _next_burst(self):
        while len(self._run.lines) - len(self._run.acks) >= self._style.window:
            if self._stopping.wait(0.001):
                return b""
        lines = []
        for _ in range(self._rng.randint(1, self._style.burst)):
            line = self._lines.make(self._log, self._run)
            self._log.add_line(self._run, line)
            lines.append(line + b"\n")
        return b"".join(lines)

    def _read_acks(self):
        for rows, at in rows_with_place(self.process.stdout, self._recorder):
            take_acks(rows, self._run, self._log.partition, at)

    def stop_feeding(self):
        self._stopping.set()

    def end_of_input(self):
        """No more lines; the process ends by itself when all are acknowledged."""
        self._stopping.set()
        self._workers[0].finish()
        try:
            with interruptible():
                self.process.wait(QUIET_WAIT_S)
        except subprocess.TimeoutExpired:
            raise live_failure("unanswered", f"producer {self._run.number} had no answer to all of its records "
                                             f"after {QUIET_WAIT_S:.0f} s.") from None

    def acked_count(self):
        return len(self._run.acks)

    def early_end(self):
        """Why the process has given up while its broker served, if it has."""
        if self.process.poll() in (None, 0):
            return None
        self._run.gave_up = True
        messages = self.process.stderr.read().decode(errors="replace").strip()
        return messages.splitlines()[-1] if messages else f"exit code {self.process.returncode}"

    def finish(self):
        self._stopping.set()
        if self.process.poll() is None:
            self.process.kill()
        for worker in self._workers:
            worker.finish()
        self.process.wait()
        self.process.stderr.close()


class Follower:
    """One `forebay consume --follow` that goes on where the one before it was."""

    def __init__(self, commands, recorder, log):
        self._recorder, self._log = recorder, log
        self.process = commands.start("consume", log.topic, "--partition", str(log.partition), "--follow",
                                      "--from", str(len(log.delivered)),
                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._worker = Worker(self._read)
        self._worker.start()

    def _read(self):
        for rows, at in rows_with_place(self.process.stdout, self._recorder):
            self._log.delivered.extend((row, at) for row in rows)

    def finish(self):
        if self.process.poll() is None:
            self.process.kill()
        self._worker.finish()
        self.process.wait()


class Churn:
    """Creates topics, writes a little into them, and deletes most of them again."""

    def __init__(self, commands, recorder, history, rng):
        self._commands, self._recorder, self._history, self._rng = commands, recorder, history, rng
        self._lines = Lines(rng)
        self._stopping = threading.Event()
        self._worker = Worker(self._go_round)
        self._worker.start()

    def _go_round(self):
        try:
            while not self._stopping.wait(self._rng.uniform(0.05, 0.4)):
                self._one_topic()
        except CommandFailed:
            # The broker was stopped in between, or is full: the outcome stays unknown.
            pass

    def _one_topic(self):
        self._history.scratch_count += 1
        name = f"scratch-{self._history.scratch_count}"
        topic = create_topic(self._commands, self._recorder, self._history, name, 1)
        log = topic.logs[0]
        run = self._history.next_run(log)
        for _ in range(self._rng.randint(1, 30)):
            log.add_line(run, self._lines.make(log, run))
        given = b"".join(line + b"\n" for line in run.lines)
        rows = self._commands.call("produce", name, "--print-acked", given=given).splitlines()
        take_acks(rows, run, 0, self._recorder.entries())
        if self._rng.random() < 0.7:
            topic.delete_sent_at = self._recorder.entries()
            self._commands.call("topic", "delete", name)
            topic.deleted_at = self._recorder.entries()

    def stop(self):
        self._stopping.set()

    def finish(self):
        """Ends after the topic at hand."""
        self.stop()
        self._worker.finish()


def create_topic(commands, recorder, history, name, partition_count, segment_bytes=SHORT_SEGMENT):
    topic = history.add_topic(name, partition_count)
    segments = commands.optional(["topic", "create"], "--segment-bytes", segment_bytes)
    commands.call("topic", "create", name, "--partitions", str(partition_count), *segments)
    topic.created_at = recorder.entries()
    return topic


def rows_with_place(pipe, recorder):
    """Whole lines as they arrive, each time with the place in the log that was known after they had."""
    rest = b""
    with pipe:
        while chunk := os.read(pipe.fileno(), CHUNK_BYTES):
            at = recorder.entries()
            *rows, rest = (rest + chunk).split(b"\n")
            yield rows, at


def take_acks(rows, run, partition, at):
    """Rows of `produce --print-acked`: partition and offset of each line, in the order of the lines."""
    for row in rows:
        if row.startswith(b"acknowledged "):
            continue
        told_partition, offset = map(int, row.split())
        if told_partition != partition:
            raise live_failure("misplaced", f"a line for partition {partition} went to {told_partition}.")
        if len(run.acks) >= len(run.lines):
            raise live_failure("phantom", f"producer {run.number} got more acknowledgements than it sent lines.")
        run.acks.append((offset, len(run.acks), at))
