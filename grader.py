"""Verifies answers: extraction of the boxed answer, exact comparison, and math-verify in worker processes.

    with Grader(workers=2, timeout_s=5.0) as grader:
        grades = grader.grade_batch(["... so \\\\boxed{1/2}"], ["0.5"])         # [Grade(correct=True, reason="equal", answer="1/2")]

The answer is the last balanced \\boxed{} behind the last </think>. Gold and answer are compared as strings, then as exact
fractions, and only then by math-verify, gold first (its `verify` is not symmetric). math-verify can take minutes on a
hostile answer, so it runs in worker processes with a memory limit and a hard deadline: a worker that is late or dies is
replaced, and its answer is wrong with the reason "timeout" or "crash". A worker is this file run as a script that reads and
writes JSON lines; nothing is pickled, and no worker imports torch. Imports nothing of ours.
"""
import json
import logging
import re
import resource
import select
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction

WORKER_MEMORY = 2 * 2**30                               # bytes of address space; sympy needs about 0.3 GB of it
BOX = re.compile(r"\\(?:boxed|fbox)\s*")
ZERO_WIDTH = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))
NUMBER = re.compile(r"([+-]?)(\d{1,200})(?:\.(\d{0,200}))?(?:/(\d{1,200}))?")


@dataclass(frozen=True)
class Grade:
    correct: bool
    reason: str                                         # "equal" | "different" | "no box" | "unparsed" | "timeout" | "crash"
    answer: str | None                                  # what was taken as the answer


def last_box(text: str) -> str | None:
    """Content of the last balanced \\boxed{...} (or \\fbox{...}, or \\boxed 42) behind the last </think>; None if there is none."""
    text = text.rpartition("</think>")[2]
    for match in reversed(list(BOX.finditer(text))):
        rest = text[match.end():]
        if not rest.startswith("{"):
            token = re.match(r"[^\s{}\\$]+", rest)
            if token:
                return token.group()
            continue
        depth = 0
        for i, char in enumerate(rest):
            depth += (char == "{") - (char == "}")
            if depth == 0:
                return rest[1:i]
    return None


def normalize(answer: str) -> str:
    """NFKC, without zero-width characters, spaces around, math delimiters and trailing punctuation."""
    answer = unicodedata.normalize("NFKC", answer).translate(ZERO_WIDTH).replace("~", " ").strip()
    return answer.strip("$").strip().rstrip(".,;:").rstrip()


def as_fraction(text: str) -> Fraction | None:
    """`text` as an exact number if it is a plain decimal or quotient of at most 200 digits a part, else None."""
    match = NUMBER.fullmatch(text.replace(" ", ""))
    if not match:
        return None
    sign, whole, decimals, denominator = match.groups()
    value = Fraction(int(whole + (decimals or "")), 10 ** len(decimals or ""))
    if denominator is not None:
        if int(denominator) == 0:
            return None
        value /= int(denominator)
    return -value if sign == "-" else value


def compare_exact(answer: str, gold: str) -> bool | None:
    """True or False if string equality or exact fractions settle it, None if only algebra can."""
    answer, gold = normalize(answer), normalize(gold)
    if answer == gold:
        return bool(answer)
    a, b = as_fraction(answer), as_fraction(gold)
    return a == b if a is not None and b is not None else None


def compare_symbolic(answer: str, gold: str) -> Grade:
    """Equality by math-verify; without a time limit of its own, so call it where somebody else keeps the time."""
    from math_verify import parse, verify               # a second of sympy, needed by the workers only

    gold_parsed, answer_parsed = (parse(f"${normalize(text)}$", parsing_timeout=None) for text in (gold, answer))
    if not answer_parsed:
        return Grade(False, "unparsed", answer)
    equal = verify(gold_parsed, answer_parsed, timeout_seconds=None)
    return Grade(equal, "equal" if equal else "different", answer)


def grade(text: str, gold: str) -> Grade:
    """Whether `text` ends in an answer equal to `gold`. Unbounded in time on hostile answers: `Grader` keeps the deadline."""
    quick = grade_exact(text, gold)
    return compare_symbolic(last_box(text), gold) if quick is None else quick


def grade_exact(text: str, gold: str) -> Grade | None:
    """The grade if no algebra is needed for it, else None."""
    answer = last_box(text)
    if answer is None:
        return Grade(False, "no box", None)
    equal = compare_exact(answer, gold)
    return None if equal is None else Grade(equal, "equal" if equal else "different", answer)


class Worker:
    """One child process that answers one (answer, gold) at a time; started when first needed, replaced when it fails."""

    def __init__(self, timeout_s: float):
        self.timeout_s, self.process = timeout_s, None

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self.process.stdout.readline()                  # its imports are done: they do not count against the first deadline

    def compare(self, answer: str, gold: str) -> Grade:
        if self.process is None:
            self.start()
        try:
            self.process.stdin.write(json.dumps([answer, gold]).encode() + b"\n")
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], self.timeout_s)
            line = self.process.stdout.readline() if ready else None
        except BrokenPipeError:
            line = b""
        if not line:
            self.stop()
            return Grade(False, "timeout" if line is None else "crash", answer)
        correct, reason = json.loads(line)
        return Grade(correct, reason, answer)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


class Grader:
    """Grades batches with `workers` processes; every answer within `timeout_s` seconds, in order. A context manager."""

    def __init__(self, workers: int = 2, timeout_s: float = 5.0):
        self.threads = ThreadPoolExecutor(workers)      # a thread only waits for its worker
        self.idle = [Worker(timeout_s) for _ in range(workers)]
        self.cache: dict[tuple[str, str], Grade] = {}

    def grade_batch(self, texts: Sequence[str], golds: Sequence[str]) -> list[Grade]:
        grades = [grade_exact(text, gold) for text, gold in zip(texts, golds, strict=True)]
        hard = [i for i, quick in enumerate(grades) if quick is None]
        keys = {i: (last_box(texts[i]), golds[i]) for i in hard}
        new = [key for key in dict.fromkeys(keys.values()) if key not in self.cache]
        self.cache.update(zip(new, self.threads.map(self.compare, new)))
        for i in hard:
            grades[i] = self.cache[keys[i]]
        return grades

    def compare(self, key: tuple[str, str]) -> Grade:
        worker = self.idle.pop()                        # as many workers as threads: one is always idle here
        try:
            return worker.compare(*key)
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


def serve() -> None:
    """The worker's loop: one JSON line in, one out."""
    resource.setrlimit(resource.RLIMIT_AS, (WORKER_MEMORY, WORKER_MEMORY))
    logging.disable(logging.WARNING)                    # math-verify warns at every call that the time is kept elsewhere
    compare_symbolic("1", "1")
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            result = compare_symbolic(*json.loads(line))
        except Exception as error:                      # whatever sympy raises on nonsense is a wrong answer, counted by its reason
            result = Grade(False, "crash" if isinstance(error, MemoryError) else "unparsed", None)
        print(json.dumps([result.correct, result.reason]), flush=True)


if __name__ == "__main__":
    serve()
