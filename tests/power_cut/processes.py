"""Child processes, and signals that are heard only where unwinding is safe.

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
    """A signal that came and was not heard yet, and whether one may unwind right now."""

    pending = None
    may_unwind = False


def defer_signals():
    """From now on a signal unwinds at the next `interruptible`, or within it, and nowhere else.

    So none comes between making a thing and knowing of it, nor into the middle of undoing it.
    """
    for number in SIGNALS:
        signal.signal(number, _on_signal)


def _on_signal(number, _):
    _Signals.pending = number
    if _Signals.may_unwind:
        leave_if_told()


def leave_if_told():
    """Unwinds everything if a signal has come; what comes while that goes on is not heard."""
    if _Signals.pending:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + _Signals.pending)


@contextmanager
def interruptible():
    """To be put around a wait that makes nothing: a signal ends it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        _Signals.may_unwind = True
        leave_if_told()
        yield
    finally:
        _Signals.may_unwind = False


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
    """Starts a process that a Ctrl-C at the terminal does not reach."""
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
