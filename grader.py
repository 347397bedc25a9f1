"""Grades batches of answers in worker processes, each answer within a deadline and a memory limit.

    with Grader(workers=2, timeout_s=5.0) as grader:
        # [Grade(correct=True, reason="equal", answer="1/2")]
        grades = grader.grade_batch(["... so \\\\boxed{1/2}"], ["0.5"])

answers/ says what equals what. What it can settle as text is settled in this process; the rest is read and compared in
others. That work is bounded by the size of the answer, so a verdict does not depend on the hour; the deadline and
the memory limit of a process are for the unforeseen. A process that is late or dies is replaced at once by a
fork of one that has its imports done, and its answer is wrong with the reason "timeout" or "crash". A worker is this
file run as a script that reads and writes JSON lines; nothing is pickled, and no worker imports torch.
"""
import json
import logging
import mmap
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from answers import Grade, Comparison, grade, grade_exact  # noqa: F401  (grade is part of this module's interface)

WORKER_MEMORY = 2 * 2**30                               # bytes of address space; sympy, without a box, needs 0.3 GB
GRACE_S = 2.0                                           # past the deadline, by when a worker should have ended itself
START_S = 120                                           # seconds a worker may take for its imports on a busy machine
FEW = 8                                                 # golds that one worker settles alone
CACHED = 16384                                          # verdicts remembered; the oldest are forgotten first


class Worker:
    """One child process that settles one comparison at a time; started when first needed."""

    def __init__(self, timeout_s: float, require_box: bool = True):
        self.timeout_s, self.require_box, self.process = timeout_s, require_box, None
        self.asked, self.unread = 0, b""                # comparisons so far; each reply carries its number

    def start(self) -> None:
        command = [sys.executable, __file__, str(self.timeout_s), *([] if self.require_box else ["free"])]
        seeded = {**os.environ, "PYTHONHASHSEED": "0"}  # no verdict may depend on the order of sets, sympy's included
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
                                        env=seeded)
        # "ready" once its imports are done: they do not count against the first deadline
        if self.read_line(time.monotonic() + START_S) != b"ready":
            self.stop()
            raise ValueError(f"a grader process did not start in {START_S} seconds; see its message above, or is "
                             "math-verify not installed?")

    def read_line(self, deadline: float) -> bytes | None:
        """The next line, b"" if the process has ended, None at the deadline."""
        output = self.process.stdout.fileno()
        while b"\n" not in self.unread:
            if not select.select([output], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            if not (read := os.read(output, 65536)):
                return b""
            self.unread += read
        line, _, self.unread = self.unread.partition(b"\n")
        return line

    def settle(self, comparison: Comparison) -> Grade:
        if self.process is None:
            self.start()
        self.asked += 1
        deadline = time.monotonic() + self.timeout_s + GRACE_S
        asked = json.dumps([self.asked, comparison.answer, comparison.gold, comparison.shown]).encode() + b"\n"
        number = 0
        try:
            while True:
                if number == 0:                         # again if a process died: it may have read this one
                    self.process.stdin.write(asked)
                    self.process.stdin.flush()
                if not (line := self.read_line(deadline)):
                    break
                number, correct, reason, answer = json.loads(line)
                if number == self.asked:
                    return Grade(correct, reason, comparison.shown if answer is None else answer)
        except (OSError, ValueError):                   # a broken pipe, or a line that is no reply
            line = b""
        self.stop()
        return Grade(False, "timeout" if line is None else "crash", comparison.shown)

    def stop(self) -> None:
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:                  # it has ended already
                pass
            self.process.communicate()
            self.process, self.unread = None, b""


class Grader:
    """Grades batches with `workers` processes; every answer within `timeout_s` seconds, in order. A context manager."""
    reads_answers = True

    def __init__(self, workers: int = 2, timeout_s: float = 5.0, require_box: bool = True):
        self.threads = ThreadPoolExecutor(workers)      # a thread only waits for its worker
        self.idle = [Worker(timeout_s, require_box) for _ in range(workers)]
        self.require_box = require_box
        self.cache: dict[Comparison, Grade] = {}

    def grade_batch(
        self, texts: Sequence[str], golds: Sequence[str | list[str]], progress: bool = False
    ) -> list[Grade]:
        """A grade for each text against its gold, or the best of those against several.

        `progress` shows a bar if it takes more than two seconds.
        """
        found = [[grade_exact(text, one, self.require_box) for one in (gold if isinstance(gold, list) else [gold])]
                 for text, gold in zip(texts, golds, strict=True)]
        new: dict[str, list[Comparison]] = {}             # by gold: one worker reads it once for all answers
        for item in dict.fromkeys(item for items in found for item in items):
            if isinstance(item, Comparison) and item not in self.cache:
                new.setdefault(item.gold, []).append(item)
        run = self.threads.map if len(new) > FEW else map           # a worker takes a moment to start
        for settled in tqdm(run(self.settle, new.values()), total=len(new), desc="grade", unit="gold", leave=False,
                            delay=2, disable=not progress):
            self.cache |= settled
        grades = [
            max(
                (self.cache[item] if isinstance(item, Comparison) else item for item in items),
                key=lambda grade: grade.correct,
            )
            for items in found
        ]
        for old in list(self.cache)[:-CACHED]:
            del self.cache[old]
        return grades

    def grade_rows(self, texts: Sequence[str], rows: Sequence[dict]) -> list[Grade]:
        """A grade for each text against the gold ("answer") of its problem."""
        return self.grade_batch(texts, [row["answer"] for row in rows])

    def settle(self, comparisons: Sequence[Comparison]) -> dict[Comparison, Grade]:
        worker = self.idle.pop()                        # as many workers as threads: one is always idle here
        try:
            return {comparison: worker.settle(comparison) for comparison in comparisons}
        finally:
            self.idle.append(worker)

    def close(self) -> None:
        self.threads.shutdown()
        for worker in self.idle:
            worker.stop()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def serve(timeout_s: float, free: bool) -> None:
    """A worker: imports once, then forks the process that answers, and forks again when that one was late or died."""
    resource.setrlimit(resource.RLIMIT_AS, (WORKER_MEMORY, WORKER_MEMORY))
    if free:
        import math_verify  # noqa: F401
        logging.disable(logging.WARNING)                # it warns at every call that its own timeout is off
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)                                       # whatever else prints must not come between the replies
    answering = mmap.mmap(-1, 8)                        # the number of the comparison that the child is at, 0 for none
    print("ready", file=replies, flush=True)
    while child := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return                                      # the trainer has closed its end
        number = int.from_bytes(answering[:], "little")
        print(json.dumps([number, False, "timeout" if -status == signal.SIGALRM else "crash", None]), file=replies,
              flush=True)
        answering[:] = bytes(8)
    try:
        for line in sys.stdin:
            number, *fields = json.loads(line)
            comparison = Comparison(*fields)
            answering[:] = number.to_bytes(8, "little")
            # no handler: the signal ends the process wherever it is, in C code too
            signal.setitimer(signal.ITIMER_REAL, timeout_s)
            try:
                result = comparison.settle()
            except MemoryError:
                os._exit(1)
            except Exception:                           # raised on nonsense: a wrong answer, counted by its reason
                result = Grade(False, "unparsed", comparison.shown)
            signal.setitimer(signal.ITIMER_REAL, 0)
            print(json.dumps([number, result.correct, result.reason, result.answer]), file=replies, flush=True)
            answering[:] = bytes(8)
    except BrokenPipeError:
        pass
    os._exit(0)


if __name__ == "__main__":
    serve(float(sys.argv[1]), "free" in sys.argv[2:])
