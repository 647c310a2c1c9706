"""Lives of a real broker under load: started, killed or stopped, and started again on the same recorded disk."""

import os
import time
from contextlib import ExitStack

from broker import Broker, CommandFailed, Commands, NotReady, read_all
from check import LiveFailure, judge, live_failure
from clients import STYLES, TOPICS, Churn, Follower, Producer, create_topic
from processes import interruptible
from replay import stream


class Session:
    """One round of load on one recorded disk: lives of the broker, one after another."""

    def __init__(self, options, recorder, history, data_dir, work, round_number):
        self._options, self._recorder, self._history = options, recorder, history
        self._data_dir, self._work = data_dir, work
        self._rng = stream(options.seed, "load", round_number)
        # How lives ended, what producers said that gave up, and places in the log before and after each start.
        self.ends = []
        self.notes = []
        self.starts = []
        self.idle_count = 0
        self.ready_line = None

    def run(self, seconds):
        """Lives until the time is over, then one more, which is read and checked as a whole."""
        stop_at = time.monotonic() + seconds
        while time.monotonic() < stop_at:
            life_s = self._rng.uniform(0.8, 3.0)
            self._live(min(life_s, max(stop_at - time.monotonic(), 0.3)))
        broker = self._start()
        try:
            contents = read_all(Commands(self._options.forebay, broker.address))
            findings = judge(contents, self._history)
            if findings:
                raise LiveFailure(findings)
            self._stop(broker)
        except CommandFailed as error:
            raise live_failure("unreadable", str(error)) from error
        finally:
            broker.kill()

    def _start(self):
        before = self._recorder.entries()
        try:
            broker = Broker(self._options.live_binary, self._data_dir, self._options.serve_arguments,
                            os.path.join(self._work, "live-broker.err"))
        except NotReady as error:
            raise live_failure("refused", f"start after {self.ends[-1:] or ['a power cut']}: {error}") from error
        self.ready_line = broker.ready_line
        self.starts.append((before, self._recorder.entries()))
        return broker

    def _live(self, life_s):
        broker = self._start()
        commands = Commands(self._options.forebay, broker.address)
        clients = Clients()
        try:
            self._make_topics(commands)
            clients.start(commands, self._recorder, self._history, self._rng)
            with interruptible():
                time.sleep(life_s)
            self._end(broker, clients)
        except CommandFailed as error:
            raise live_failure("refused", str(error)) from error
        finally:
            broker.kill()
            try:
                clients.finish(commands)
            finally:
                commands.end_all()
            self.idle_count += not clients.acked_count()

    def _make_topics(self, commands):
        there = commands.topics()
        for name, partition_count, segment_bytes in TOPICS:
            if name not in there:
                create_topic(commands, self._recorder, self._history, name, partition_count, segment_bytes)

    def _end(self, broker, clients):
        """Ends a life in one of four ways: under load or when all is quiet, by SIGKILL or by SIGTERM."""
        is_quiet = self._rng.random() < 0.3
        if is_quiet:
            clients.let_finish()
            time.sleep(self._rng.choice((0.0, 0.003, 0.02)))
        if broker.has_ended():
            raise live_failure("ended", f"the broker ended by itself with code {broker.process.returncode}: "
                                        f"{broker.messages()}")
        self.notes.extend(clients.early_ends())
        if self._rng.random() < 0.6:
            self.ends.append("quiet kill" if is_quiet else "kill")
            broker.kill()
        else:
            self.ends.append("quiet stop" if is_quiet else "stop")
            self._stop(broker)

    def _stop(self, broker):
        code = broker.stop()
        if code != 0:
            raise live_failure("ended", f"after SIGTERM the broker's exit code was {code}: {broker.messages()}")


class Clients:
    """All clients of one life."""

    def __init__(self):
        self._producers, self._followers, self._churn = [], [], None

    def start(self, commands, recorder, history, rng):
        for style in STYLES:
            log = history.topics[style.topic].logs[style.partition]
            run = history.next_run(log)
            own = stream(rng.random(), "producer")
            self._producers.append(Producer(commands, recorder, log, run, style, own))
        for name, *_ in TOPICS:
            self._followers.append(Follower(commands, recorder, history.topics[name].logs[0]))
        self._churn = Churn(commands, recorder, history, stream(rng.random(), "churn"))

    def let_finish(self):
        """No more input; waits until everything that was sent is answered."""
        self._churn.finish()
        for producer in self._producers:
            producer.end_of_input()

    def early_ends(self):
        """Why producers have given up, if any have."""
        return [why for why in (producer.early_end() for producer in self._producers) if why]

    def acked_count(self):
        return sum(producer.acked_count() for producer in self._producers)

    def finish(self, commands):
        """Ends all that is left, all of it even if one of them has something to complain about."""
        with ExitStack() as stack:
            if self._churn:
                stack.callback(self._churn.finish)
                # Before that: its commands would wait long for the broker to return.
                stack.callback(commands.end_all)
                stack.callback(self._churn.stop)
            for client in self._producers + self._followers:
                stack.callback(client.finish)
