"""Compares what a broker holds with what was promised."""

from history import END

SHOWN_MAX = 6


class Findings:
    """Violations of the promises, counted by kind, with the first few in words."""

    def __init__(self):
        self.counts = {}
        self.examples = []

    def add(self, kind, text):
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if len(self.examples) < SHOWN_MAX:
            self.examples.append(f"{kind}: {text}")

    def __bool__(self):
        return bool(self.counts)

    def summary(self):
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items()))


class LiveFailure(Exception):
    """The broker broke a promise while the power was on."""

    def __init__(self, findings):
        super().__init__(findings.summary())
        self.findings = findings


def live_failure(kind, text):
    findings = Findings()
    findings.add(kind, text)
    return LiveFailure(findings)


def judge(contents, history, cut_at=END):
    """Checks all that a broker holds after a cut at this place, or after none."""
    findings = Findings()
    for name in contents.keys() - history.topics.keys():
        findings.add("phantom topic", f"{name} was never created.")
    for name, topic in history.topics.items():
        if name in contents:
            if topic.must_be_gone(cut_at):
                findings.add("topic back", f"{name} is there; its deletion was acknowledged.")
            judge_topic(contents[name], topic, cut_at, findings)
        elif topic.must_exist(cut_at):
            findings.add("topic lost", f"{name} is not there; its creation was acknowledged.")
    return findings


def judge_topic(partitions, topic, cut_at, findings):
    if len(partitions) != len(topic.logs):
        findings.add("topic changed", f"{topic.name} has {len(partitions)} partitions, not {len(topic.logs)}.")
        return
    for records, log in zip(partitions, topic.logs):
        judge_sent(records, log, findings)
        judge_acked(records, log, cut_at, findings)
        judge_delivered(records, log, cut_at, findings)


def judge_sent(records, log, findings):
    """Every record was sent, byte for byte, is there once, and each producer's stand in their order without a hole."""
    next_number = {number: 0 for number in log.runs}
    found = set()
    for offset, line in enumerate(records):
        origin = log.sent.get(line)
        if origin is None:
            findings.add("phantom", f"{log.name} holds at offset {offset} what nobody sent: {short(line)}.")
            continue
        run, number = origin
        expected = next_number[run]
        if origin in found:
            findings.add("duplicate", f"{log.name} holds line {number} of producer {run} again at offset {offset}.")
        elif number < expected:
            findings.add("disorder", f"{log.name} holds line {number} of producer {run} behind line {expected - 1}.")
        elif number > expected and not log.runs[run].gave_up:
            findings.add("gap", f"{log.name} holds line {number} of producer {run}, and not line {expected} before.")
        found.add(origin)
        next_number[run] = max(expected, number + 1)


def judge_acked(records, log, cut_at, findings):
    """Every acknowledged record is at the offset that its acknowledgement named."""
    for run in log.runs.values():
        for offset, number, at in run.acks:
            if at > cut_at:
                continue
            if offset >= len(records):
                findings.add("lost", f"{log.name} ends at offset {len(records)}; line {number} of producer "
                                     f"{run.number} was acknowledged at offset {offset}, known at entry {at}.")
            elif records[offset] != run.lines[number]:
                findings.add("replaced", f"{log.name} holds at offset {offset} {short(records[offset])}, not the "
                                         f"acknowledged {short(run.lines[number])}, known at entry {at}.")


def judge_delivered(records, log, cut_at, findings):
    """What a consumer was given is still there, at the same offset."""
    for offset, (line, at) in enumerate(log.delivered):
        if at <= cut_at and (offset >= len(records) or records[offset] != line):
            findings.add("delivered and lost", f"{log.name} no longer holds at offset {offset} what was delivered, "
                                               f"known at entry {at}.")


def short(line):
    return repr(line[:60].decode(errors="replace")) + ("..." if len(line) > 60 else "")
