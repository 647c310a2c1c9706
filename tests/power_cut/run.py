#!/usr/bin/env python3
"""Cuts the power below a real Forebay broker on a real ext4, and checks that nothing acknowledged is lost.

README.md beside this file says how it works. Exit codes: 0 pass, 1 a promise was broken (or the negative control found
nothing), 2 wrong usage, 3 the harness itself failed, 77 skipped, because something that it needs is not here.
"""

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack

sys.dont_write_bytecode = True

import disk
import replay
from broker import Broker, CommandFailed, Commands, NotReady, read_all, serve_arguments
from check import Findings, LiveFailure, judge
from disk import DoesNotMount
from history import History
from load import Session
from processes import HarnessError, defer_signals, leave_if_told, run

PASS, VIOLATION, HARNESS_FAILED, SKIPPED = 0, 1, 3, 77
# Of how many cuts one is started a second time, killed in between, and must hold the same.
SECOND_START_EVERY = 3
# Each tool, and the Debian packages that may hold it, in the order in which they are tried.
TOOLS = {
    "losetup": ("util-linux", "mount"),
    "mount": ("mount",),
    "umount": ("mount",),
    "mkfs.ext4": ("e2fsprogs",),
    # Some releases have it in the one, some in the other.
    "qemu-storage-daemon": ("qemu-utils", "qemu-system-common"),
}


class Skip(Exception):
    """This machine cannot run the harness."""


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     epilog="What stands behind -- is given to `forebay serve`.")
    parser.add_argument("--forebay", required=True, metavar="PATH", help="the binary under test")
    parser.add_argument("--cuts", type=int, default=30, metavar="N", help="power cuts to try (30)")
    parser.add_argument("--seed", type=int, metavar="S", help="for all that is drawn; random if not given")
    parser.add_argument("--seconds", type=float, default=30, metavar="T", help="of load, over all rounds (30)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N",
                        help="each but the first goes on from an image that a power cut left (3)")
    parser.add_argument("--image-mib", type=int, default=384, metavar="M", help="length of the disk (384)")
    parser.add_argument("--negative-control", action="store_true",
                        help="let the disk lie about flushes; passes only if that is noticed")
    parser.add_argument("--forebay-mutant", metavar="PATH",
                        help="a broker that is known to be broken takes the load; passes only if that is noticed")
    parser.add_argument("--keep", action="store_true", help="keep the image of a broken promise, and the log of writes")
    parser.add_argument("--install", action="store_true", help="install what is missing, with apt-get")
    own, extra = split_at_dashes(argv)
    options = parser.parse_args(own)
    if min(options.cuts, options.rounds) < 1 or options.seconds <= 0 or options.image_mib < 64:
        parser.error("--cuts and --rounds are at least 1, --image-mib at least 64, and --seconds more than 0.")
    for path in filter(None, (options.forebay, options.forebay_mutant)):
        if not os.access(path, os.X_OK):
            parser.error(f"{path} is not an executable file.")
    return finish_options(options, extra)


def split_at_dashes(argv):
    at = argv.index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1:]


def finish_options(options, extra):
    options.forebay = os.path.abspath(options.forebay)
    options.live_binary = os.path.abspath(options.forebay_mutant or options.forebay)
    options.serve_arguments = serve_arguments(extra)
    options.expects_trouble = options.negative_control or bool(options.forebay_mutant)
    if options.expects_trouble:
        # Nothing could go on from what a lying disk left behind.
        options.rounds = 1
    if options.seed is None:
        options.seed = secrets.randbelow(1 << 32)
    return options


def check_needs(may_install):
    """Raises `Skip` with the reason when something is missing that cannot be had."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise Skip("it needs Linux, and root for loop devices and mounts")
    # The system directories are not on everybody's path.
    os.environ["PATH"] = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin:/sbin"
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing and may_install:
        install(missing)
        missing = [tool for tool in missing if not shutil.which(tool)]
    if missing:
        packages = ", ".join(f"{tool} (Debian: {' or '.join(TOOLS[tool])})" for tool in missing)
        raise Skip(f"there is no {packages}; --install gets it with apt-get")
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not os.path.exists(device):
            raise Skip(f"there is no {device}")
    if "fuse" not in run("qemu-storage-daemon", "--help"):
        raise Skip("this qemu-storage-daemon was built without FUSE exports")


def install(tools):
    if not shutil.which("apt-get"):
        raise Skip("--install works with apt-get only")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for argv in [["update"]] + [["install", "-y", "--no-install-recommends", package]
                                for tool in tools for package in TOOLS[tool]]:
        if argv != ["update"] and all(shutil.which(tool) for tool in tools):
            return
        subprocess.run(["apt-get", "-q", *argv], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       check=False)


class Tally:
    """What became of all cuts."""

    def __init__(self):
        self.live = self.cut_count = self.clean = self.broken = self.refused = self.unmountable = 0
        self.kinds = {}

    def add(self, findings):
        self.cut_count += 1
        self.clean += not findings
        self.refused += "refused" in findings.counts
        self.unmountable += "unmountable" in findings.counts
        self.broken += bool(findings.counts.keys() - {"refused", "unmountable"})
        for kind, count in findings.counts.items():
            self.kinds[kind] = self.kinds.get(kind, 0) + count

    def noticed(self):
        """How often the broker, or what it gave back, showed the trouble; ext4 alone proves nothing."""
        return self.live + self.broken + self.refused

    def describe(self):
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items())) or "nothing wrong"
        return (f"{self.cut_count} cuts: {self.clean} clean, {self.broken} with broken promises, {self.refused} "
                f"refused starts, {self.unmountable} file systems that did not mount ({kinds})")


class Stop(Exception):
    """The first broken promise ends the run."""


class PowerCut:
    """The whole run, in one temporary directory."""

    def __init__(self, options, work):
        self.options = options
        self.work = work
        self.mount_point = os.path.join(work, "mounted")
        self.data_dir = os.path.join(self.mount_point, "data")
        self.base = os.path.join(work, "base.img")
        self.history = History()
        self.tally = Tally()

    def run(self):
        disk.make_image(self.base, self.options.image_mib)
        options = self.options
        for number in range(1, options.rounds + 1):
            log_path, first, starts = self._live(number)
            entries = replay.read_log(log_path)
            describe_log(entries, first)
            share = options.cuts // options.rounds + (number <= options.cuts % options.rounds)
            places = replay.choose_places(entries, first, self.history.marks(), starts, share,
                                          replay.stream(options.seed, "places", number))
            self._cut_all(number, places, log_path, entries, first)
            if number < options.rounds:
                self._go_on_from_a_cut(number, log_path, entries, first)

    def _live(self, number):
        """One round of load on a recorded disk; gives the log, its length when the load began, and the starts."""
        live = os.path.join(self.work, "live.img")
        disk.copy_image(self.base, live)
        session, started = None, time.monotonic()
        try:
            with disk.Recorder(live, self.work) as recorder, disk.loop_device(recorder.disk) as device:
                with disk.mounted(device, self.mount_point):
                    run("sync", "-f", self.mount_point)
                    first = recorder.entries()
                    session = Session(self.options, recorder, self.history, self.data_dir, self.work, number)
                    session.run(self.options.seconds / self.options.rounds)
        except DoesNotMount as error:
            raise HarnessError(f"the recorded disk does not mount: {error}") from error
        except LiveFailure as error:
            self._report_live(number, error.findings)
        if session:
            describe_session(number, session, self.history, time.monotonic() - started)
        return recorder.log_path, first, session.starts

    def _report_live(self, number, findings):
        print(f"round {number}: while the power was on: {findings.summary()}")
        print_examples(findings)
        self.tally.live += 1
        # A lying disk is made from the log afterwards: the load itself never saw it.
        if not self.options.forebay_mutant:
            raise Stop

    def _cut_all(self, number, places, log_path, entries, first):
        options = self.options
        cuts = [replay.plan(entries, index, at, first, options.negative_control,
                            replay.stream(options.seed, "cut", number, index))
                for index, at in enumerate(places, 1)]
        cuts.sort(key=lambda cut: (cut.durable, cut.at))
        with replay.Replayer(self.base, log_path, entries, self.work) as replayer:
            for cut in cuts:
                self._try_cut(number, cut, len(entries), replayer)

    def _try_cut(self, number, cut, entry_count, replayer):
        leave_if_told()
        started = time.monotonic()
        image = os.path.join(self.work, "cut.img")
        replayer.build(cut, image)
        findings, seen = self._inspect(image, cut)
        self.tally.add(findings)
        print(f"round {number} cut {cut.number} at entry {cut.at} of {entry_count}: {cut.describe()}; "
              f"{len(self.history.owed_lengths(cut.at))} records owed, {seen}: {findings.summary() or 'ok'} "
              f"({time.monotonic() - started:.1f} s)", flush=True)
        if not findings:
            return
        print_examples(findings)
        if self.options.expects_trouble:
            return
        if self.options.keep:
            replayer.build(cut, os.path.join(self.work, "broken.img"))
        print(f"broken promise: seed {self.options.seed}, round {number}, cut {cut.number}")
        raise Stop

    def _inspect(self, image, cut):
        """Mounts what the cut left, starts the broker on it, and reads everything."""
        findings = Findings()
        seen = "not read"
        try:
            with disk.loop_device(image) as device, disk.mounted(device, self.mount_point):
                contents, ready_s = self._serve_and_read()
                seen = f"{record_count(contents)} read, ready in {ready_s:.2f} s"
                findings = judge(contents, self.history, cut.at)
                if not findings and cut.number % SECOND_START_EVERY == 0:
                    again, _ = self._serve_and_read()
                    seen += ", started twice"
                    if again != contents:
                        findings.add("unstable", "a second start holds other records than the first.")
        except DoesNotMount as error:
            if not self.options.negative_control:
                raise HarnessError(f"cut {cut.number} left an ext4 that does not mount: {error}") from error
            findings.add("unmountable", str(error))
        except NotReady as error:
            findings.add("refused", str(error))
        except CommandFailed as error:
            findings.add("unreadable", str(error))
        return findings, seen

    def _serve_and_read(self):
        broker = Broker(self.options.forebay, self.data_dir, self.options.serve_arguments,
                        os.path.join(self.work, "cut-broker.err"))
        try:
            return read_all(Commands(self.options.forebay, broker.address)), broker.ready_s
        finally:
            broker.kill()

    def _go_on_from_a_cut(self, number, log_path, entries, first):
        """Makes an image that a late power cut left the base of the next round: a second cut follows the first."""
        rng = replay.stream(self.options.seed, "next base", number)
        at = replay.choose_before_flush(entries, first + 2 * (len(entries) - first) // 3, rng)
        cut = replay.plan(entries, 0, at, first, False, rng)
        following = os.path.join(self.work, "next-base.img")
        with replay.Replayer(self.base, log_path, entries, self.work) as replayer:
            replayer.build(cut, following)
        os.replace(following, self.base)
        self.history.continue_from(at)
        print(f"round {number + 1} begins with what a power cut at entry {at} left: {cut.describe()}")


def record_count(contents):
    return sum(len(records) for partitions in contents.values() for records in partitions)


def print_examples(findings):
    for example in findings.examples:
        print(f"  {example}")


def describe_session(number, session, history, seconds):
    print(f"round {number}: {session.ready_line}")
    lengths = history.owed_lengths()
    ends = ", ".join(f"{session.ends.count(end)} {end}" for end in sorted(set(session.ends)))
    print(f"round {number}: {len(session.ends) + 1} starts in {seconds:.1f} s (ends: {ends}); "
          f"{len(lengths)} records of {sum(lengths) / (1 << 20):.0f} MiB acknowledged and not deleted, "
          f"{len(history.topics)} topics made")
    if session.idle_count:
        print(f"round {number}: in {session.idle_count} lives of the broker nothing was acknowledged")
    for text in sorted(set(session.notes)):
        print(f"round {number}: {session.notes.count(text)} times a producer gave up: {text}")


def describe_log(entries, first):
    writes = [entry for entry in entries if entry.is_write]
    flushes = sum(entry.is_flush for entry in entries)
    discards = sum(bool(entry.flags & replay.DISCARD) for entry in entries)
    print(f"log: {len(writes)} writes of {sum(entry.length for entry in writes) / (1 << 20):.0f} MiB, "
          f"{flushes} flushes, {discards} discards; the load begins at entry {first}", flush=True)


def verdict(options, tally, was_stopped, seconds):
    print(f"seed {options.seed}, {seconds:.0f} s: {tally.describe()}")
    if was_stopped or not options.expects_trouble:
        return VIOLATION if was_stopped else PASS
    what = "a lying disk" if options.negative_control else "the broken broker"
    if tally.noticed():
        print(f"The harness sees {what}: {tally.noticed()} times at {tally.cut_count} cuts.")
        return PASS
    print(f"The harness does not see {what}.")
    return VIOLATION


def check_room(work, options):
    # Four images, with holes, and the log of all that is written.
    if disk.room(work) < 5 * options.image_mib << 20:
        raise HarnessError(f"there is too little room in {os.path.dirname(work)}; TMPDIR names another place.")


def remove_work_directory(work, keeps):
    if keeps:
        print(f"kept: {work} (base.img, writes.log, and broken.img if a cut was at fault)")
        return
    if any(disk.is_in_mount_table(os.path.join(work, name)) for name in ("mounted", "disk")):
        # Never remove through a mount.
        print(f"{work} is still mounted and was left behind.", file=sys.stderr)
        return
    shutil.rmtree(work, ignore_errors=True)


def main(argv):
    options = parse_arguments(argv)
    defer_signals()
    started, was_stopped = time.monotonic(), False
    try:
        check_needs(options.install)
        print(f"seed {options.seed}; serve {' '.join(options.serve_arguments)}", flush=True)
        with ExitStack() as stack:
            # The kernel's table of mounts, which paths are compared with, has no symbolic links in it.
            work = os.path.realpath(tempfile.mkdtemp(prefix="forebay-power-cut-"))
            stack.callback(lambda: remove_work_directory(work, options.keep and was_stopped))
            check_room(work, options)
            power_cut = PowerCut(options, work)
            try:
                power_cut.run()
            except Stop:
                was_stopped = True
        return verdict(options, power_cut.tally, was_stopped, time.monotonic() - started)
    except Skip as reason:
        print(f"skipped: cannot run here because {reason}.")
        return SKIPPED
    except HarnessError as error:
        print(f"the harness failed, which says nothing about the broker: {error}", file=sys.stderr)
        return HARNESS_FAILED
    except Exception:
        # Python would end with 1, which is the code of a broken promise.
        print("the harness failed, which says nothing about the broker:", file=sys.stderr)
        traceback.print_exc()
        return HARNESS_FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
