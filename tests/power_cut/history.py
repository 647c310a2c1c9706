"""What was sent and what the broker told us of it, each fact with the place in the log where it was already known.

`at` is a count of log entries, read after the fact had arrived. A power cut at or behind it must not undo the fact.
"""

# Of a fact that is not known, and a place behind all facts that are.
NEVER = float("inf")
END = 1 << 62


class Run:
    """One producer process: its lines in order, and what was acknowledged as (offset, number of the line, at)."""

    def __init__(self, number):
        self.number = number
        self.lines = []
        self.acks = []
        # It gave records up, so what it sent may have holes.
        self.gave_up = False


class Log:
    """One partition: what was sent to it, and what a consumer was given."""

    def __init__(self, topic, partition):
        self.name = f"{topic}/{partition}"
        self.topic = topic
        self.partition = partition
        self.runs = {}
        # Line to (number of the run, number of the line): every line that was ever sent, and where it belongs.
        self.sent = {}
        # By offset: (line, at).
        self.delivered = []

    def begin_run(self, number):
        self.runs[number] = Run(number)
        return self.runs[number]

    def add_line(self, run, line):
        """To be called before the line leaves."""
        self.sent[line] = (run.number, len(run.lines))
        run.lines.append(line)


class Topic:
    """A topic, and since when we know that it is there, may be gone, and is gone."""

    def __init__(self, name, partition_count):
        self.name = name
        self.logs = [Log(name, partition) for partition in range(partition_count)]
        self.created_at = NEVER
        self.delete_sent_at = NEVER
        self.deleted_at = NEVER

    def must_exist(self, cut_at):
        return self.created_at <= cut_at <= self.delete_sent_at

    def must_be_gone(self, cut_at):
        return self.deleted_at <= cut_at


class History:
    """All topics, and the next free numbers."""

    def __init__(self):
        self.topics = {}
        self.run_count = 0
        self.scratch_count = 0

    def add_topic(self, name, partition_count):
        """To be called before the topic is asked for."""
        self.topics[name] = Topic(name, partition_count)
        return self.topics[name]

    def next_run(self, log):
        self.run_count += 1
        return log.begin_run(self.run_count)

    def logs(self):
        return [log for topic in self.topics.values() for log in topic.logs]

    def marks(self):
        """Every place where an acknowledgement was known first."""
        places = {at for log in self.logs() for run in log.runs.values() for _, _, at in run.acks}
        return sorted(places)

    def owed_lengths(self, cut_at=END):
        """The length of each acknowledged record, without those of topics that may be deleted."""
        return [len(run.lines[number]) for topic in self.topics.values() if cut_at <= topic.delete_sent_at
                for log in topic.logs for run in log.runs.values() for _, number, at in run.acks if at <= cut_at]

    def continue_from(self, cut_at):
        """Keeps what a cut at this place leaves owed, as known from the start of the next log."""
        for topic in self.topics.values():
            topic.created_at = 0 if topic.created_at <= cut_at else NEVER
            topic.delete_sent_at = 0 if topic.delete_sent_at < cut_at else NEVER
            topic.deleted_at = 0 if topic.deleted_at <= cut_at else NEVER
        for log in self.logs():
            log.delivered = [(line, 0) for line, at in log.delivered if at <= cut_at]
            for run in log.runs.values():
                run.acks = [(offset, number, 0) for offset, number, at in run.acks if at <= cut_at]
