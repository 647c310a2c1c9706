"""Child processes, and signals that never come between making a thing and knowing of it.

Every child runs in a session of its own, so that a Ctrl-C at the terminal reaches only the script, which then ends its
children in order, each by its id.
"""

import signal
import subprocess
import threading
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class HarnessError(Exception):
    """The harness could not do its work. It says nothing about the broker."""


class _Signals:
    """How deep the main thread is in `held`, and a signal that came meanwhile."""

    depth = 0
    pending = None


def leave_on_signals():
    """From now on the first signal unwinds everything, once; what comes while that goes on is not heard."""
    for number in SIGNALS:
        signal.signal(number, _on_signal)


def _on_signal(number, _):
    if _Signals.depth:
        _Signals.pending = number
    else:
        _leave(number)


def _leave(number):
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


@contextmanager
def held():
    """Signals wait for the end of this block: what it makes is assigned before they unwind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Signals.depth += 1
    try:
        yield
    finally:
        _Signals.depth -= 1
    if _Signals.pending and not _Signals.depth:
        number, _Signals.pending = _Signals.pending, None
        _leave(number)


def run(*argv, timeout_s=120.0):
    """Runs a tool to its end and gives what it printed."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s,
                              start_new_session=True, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HarnessError(f"{argv[0]} did not run to its end: {error}.") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise HarnessError(f"{' '.join(map(str, argv))} failed with code {done.returncode}: {said}")
    return done.stdout.decode(errors="replace")


def spawn(argv, **options):
    """Starts a process; to be called within `held`."""
    return subprocess.Popen(argv, start_new_session=True, **options)


def end(process, wait_s=10.0):
    """Ends one process of ours, by its id: SIGTERM, and SIGKILL when that is not enough."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
