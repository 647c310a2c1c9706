"""Images, the recording disk under a real ext4, and mounts that are always undone.

    ext4  ->  /dev/loopN (buffered)  ->  FUSE file  ->  qemu-storage-daemon  ->  blklogwrites  ->  image
                                                                                            `->  log

The recorder sees each write and each flush that the kernel sends to the device, in their order.
"""

import os
import shutil
import struct
import subprocess
import time
from contextlib import contextmanager

from processes import HarnessError, end, interruptible, run, spawn

MOUNT_WAIT_S = 20.0
UNMOUNT_WAIT_S = 20.0
# The daemon updates the count of entries at flushes, and beside that after so many entries. The second could store an
# older count over a newer one, so it is put out of reach: then a count that was read is never ahead of the flushes.
NO_OTHER_UPDATES = 4_000_000_000
LOG_HEADER = struct.Struct("<QQQI")
LOG_MAGIC = 0x6A736677736872


class DoesNotMount(Exception):
    """The file system on an image was refused by the kernel."""


def make_image(path, mib):
    """An empty ext4. Nothing is left to background threads of the kernel, and nothing asks for discards."""
    with open(path, "wb") as file:
        file.truncate(mib << 20)
    run("mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4",
        "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", str(path))


def copy_image(source, target):
    """A copy with holes where there are zeros."""
    run("cp", "--sparse=always", "--reflink=auto", "--", str(source), str(target))


@contextmanager
def loop_device(image):
    """A buffered loop device: over this FUSE file, one with direct I/O has been seen to corrupt ext4."""
    device = run("losetup", "--show", "--find", str(image)).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextmanager
def mounted(device, directory):
    """Mounts ext4, which replays its journal. It commits only when asked to: each sync that is missing shows."""
    os.makedirs(directory, exist_ok=True)
    try:
        run("mount", "-t", "ext4", "-o", "noatime,commit=300,errors=remount-ro", device, str(directory))
    except HarnessError as error:
        raise DoesNotMount(str(error)) from error
    try:
        yield
    finally:
        unmount(directory)


def unmount(directory):
    """Unmounts, with patience: the io_uring of a killed broker holds its files for a moment after its end."""
    give_up_at = time.monotonic() + UNMOUNT_WAIT_S
    while True:
        try:
            run("umount", str(directory))
            return
        except HarnessError:
            if time.monotonic() > give_up_at:
                # Off the tree now, off the disk when the last holder has gone.
                run("umount", "--lazy", str(directory))
                raise
            time.sleep(0.02)


class Recorder:
    """A disk that logs what is written to it; `disk` is the file to put a loop device on."""

    def __init__(self, image, work):
        self.log_path = os.path.join(work, "writes.log")
        self.disk = os.path.join(work, "disk")
        self._image = str(image)
        self._messages = os.path.join(work, "qemu-storage-daemon.err")
        self._process = None
        self._log = None

    def __enter__(self):
        for path in (self.log_path, self.disk):
            with open(path, "wb"):
                pass
        try:
            self._log = os.open(self.log_path, os.O_RDONLY)
            self._process = self._spawn()
            self._wait_until_exported()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _spawn(self):
        # Without real flushes below it: the host is not what loses its power here.
        with open(self._messages, "wb") as messages:
            return spawn([
                "qemu-storage-daemon",
                "--blockdev", f"driver=file,node-name=image,filename={self._image},cache.no-flush=on",
                "--blockdev", f"driver=file,node-name=log,filename={self.log_path},cache.no-flush=on",
                "--blockdev", "driver=blklogwrites,node-name=recorded,file=image,log=log,log-sector-size=512,"
                f"log-super-update-interval={NO_OTHER_UPDATES}",
                "--export", f"type=fuse,id=export,node-name=recorded,mountpoint={self.disk},writable=on",
            ], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=messages)

    def _wait_until_exported(self):
        give_up_at = time.monotonic() + MOUNT_WAIT_S
        length = os.stat(self._image).st_size
        while os.stat(self.disk).st_size != length:
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                with open(self._messages, errors="replace") as messages:
                    raise HarnessError(f"qemu-storage-daemon exports nothing: {messages.read().strip()}")
            with interruptible():
                time.sleep(0.02)

    def __exit__(self, *_):
        if self._process:
            end(self._process)
        # It unmounts when it ends as asked; one that had to be killed leaves a dead mount.
        if is_in_mount_table(self.disk):
            run("umount", "--lazy", self.disk)
        if self._log is not None:
            os.close(self._log)

    def entries(self):
        """How many entries the log had at its last flush, at least.

        Read after an acknowledgement arrived, it is not below the flush that the acknowledgement waited for: the
        daemon stores the count before it confirms a flush. It may be behind the true count, never ahead of it.
        """
        before = None
        while True:
            header = os.pread(self._log, LOG_HEADER.size, 0)
            # Twice the same, or the read may have met the daemon's write.
            if header == before:
                break
            before = header
        if len(header) < LOG_HEADER.size:
            return 0
        magic, _, count, _ = LOG_HEADER.unpack(header)
        if magic != LOG_MAGIC and count != 0:
            raise HarnessError("the log of qemu-storage-daemon is not in the format dm-log-writes.")
        return count


def is_in_mount_table(path):
    """Whether something is mounted there; asks the kernel's table, since a dead FUSE mount cannot be looked at."""
    with open("/proc/self/mounts", errors="replace") as mounts:
        return any(line.split(" ")[1] == path for line in mounts)


def room(directory):
    """Free bytes of the file system that holds a directory."""
    return shutil.disk_usage(directory).free
