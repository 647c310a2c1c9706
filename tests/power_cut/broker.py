"""The broker's process, and the client commands that the harness uses."""

import functools
import os
import select
import signal
import subprocess
import threading
import time

from processes import HarnessError, interruptible, run, spawn

READY_WAIT_S = 60.0
STOP_WAIT_S = 20.0
COMMAND_WAIT_S = 60.0
DEFAULTS = {
    "--cores": "none",
    "--waiting": "park",
    "--journal-bytes": "32MiB",
    "--memory-bytes": "192MiB",
}


class NotReady(Exception):
    """The broker ended, or said nothing, instead of serving."""


class CommandFailed(Exception):
    """A client command did not end with code 0."""


def serve_arguments(extra):
    """Our small defaults, without those that the caller gives."""
    given = {argument.split("=", 1)[0] for argument in extra}
    ours = [f"{name}={value}" for name, value in DEFAULTS.items() if name not in given]
    return ours + list(extra)


class Broker:
    """A broker that serves; made only when it is ready."""

    def __init__(self, binary, data_dir, arguments, messages_path):
        self._messages_path = messages_path
        self.process = None
        started = time.monotonic()
        argv = [binary, "serve", f"--data-dir={data_dir}", "--listen=127.0.0.1:0", *arguments]
        try:
            with open(messages_path, "wb") as messages:
                self.process = spawn(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages)
            self.ready_line = self._wait_ready(started + READY_WAIT_S)
            self.address = self.ready_line.removeprefix("forebay ready on ").split(",", 1)[0]
        except BaseException:
            self.kill()
            raise
        self.ready_s = time.monotonic() - started

    def _wait_ready(self, give_up_at):
        descriptor, line = self.process.stdout.fileno(), b""
        while not line.endswith(b"\n"):
            left_s = give_up_at - time.monotonic()
            with interruptible():
                is_readable = left_s > 0 and select.select([descriptor], [], [], left_s)[0]
            if not is_readable:
                raise NotReady(f"the broker was not ready after {READY_WAIT_S:.0f} s. {self.messages()}")
            chunk = os.read(descriptor, 4096)
            if not chunk:
                self.process.wait()
                raise NotReady(f"the broker ended with code {self.process.returncode}: {self.messages()}")
            line += chunk
        text = line.decode(errors="replace").strip()
        if not text.startswith("forebay ready on "):
            raise NotReady(f"the broker's first line is not its ready line: {text}")
        return text

    def messages(self):
        """What the broker wrote to stderr."""
        with open(self._messages_path, errors="replace") as messages:
            return messages.read().strip()

    def has_ended(self):
        return self.process.poll() is not None

    def kill(self):
        """SIGKILL, if it still runs."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def stop(self):
        """SIGTERM; gives the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return None
        self.process.stdout.close()
        return self.process.returncode


class Commands:
    """The client side of the binary under test, against one broker."""

    def __init__(self, binary, address):
        self._argv = [binary, "--connect", address]
        self._lock = threading.Lock()
        self._started = []
        self._is_over = False

    def start(self, *arguments, **options):
        """A long-lived command; its stderr is thrown away unless asked for."""
        options.setdefault("stderr", subprocess.DEVNULL)
        with self._lock:
            if self._is_over:
                raise CommandFailed("the life of this broker is over.")
            process = spawn([*self._argv, *arguments], **options)
            self._started.append(process)
        return process

    def end_all(self):
        """Ends what still runs, and starts nothing more: a command would wait half a minute for a broker to return."""
        with self._lock:
            self._is_over = True
            for process in self._started:
                if process.poll() is None:
                    process.kill()

    def call(self, *arguments, given=b""):
        """Runs a command to its end and gives its stdout."""
        process = self.start(*arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            with interruptible():
                output, messages = process.communicate(given, COMMAND_WAIT_S)
        except subprocess.TimeoutExpired:
            raise CommandFailed(f"`forebay {' '.join(arguments)}` did not end in {COMMAND_WAIT_S:.0f} s.") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode != 0:
            said = messages.decode(errors="replace").strip()
            raise CommandFailed(f"`forebay {' '.join(arguments)}` ended with code {process.returncode}: {said}")
        return output

    def optional(self, command, option, value):
        """The option as arguments if this version of the command has it, else nothing."""
        known = command_help(self._argv[0], *command)
        return [option, value] if option in known.split() else []

    def topics(self):
        """Name and partition count of each topic."""
        rows = self.call("topic", "list").decode().splitlines()[1:]
        return {name: int(count) for name, count in (row.split()[:2] for row in rows)}

    def records(self, topic, partition):
        """All records of a partition, by offset."""
        output = self.call("consume", topic, "--partition", str(partition), "--from", "earliest")
        if output and not output.endswith(b"\n"):
            raise HarnessError("`forebay consume` printed half a line.")
        return output.split(b"\n")[:-1]


@functools.cache
def command_help(binary, *command):
    return run(binary, *command, "--help")


def read_all(commands):
    """Everything that a broker holds: topics with their partitions, each a list of records."""
    return {name: [commands.records(name, partition) for partition in range(count)]
            for name, count in commands.topics().items()}
