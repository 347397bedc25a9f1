"""Verifies answers: extraction of the boxed answer, exact comparison, and math-verify in worker processes.

    with Grader(workers=2, timeout_s=5.0) as grader:
        grades = grader.grade_batch(["... so \\\\boxed{1/2}"], ["0.5"])         # [Grade(correct=True, reason="equal", answer="1/2")]

The answer is the last balanced \\boxed{} behind the reasoning. Gold and answer are compared as strings, then as exact
fractions; what is left goes to math-verify, gold first (its `verify` is not symmetric). math-verify can take minutes and
gigabytes on a hostile answer. So answers longer or deeper than anybody would write are refused, and the rest is compared in
worker processes with a memory limit and a deadline, which is short for what looks like a bomb (towers of powers, factorials).
A process that is late or dies is replaced at once by a fork of one that has its imports done, and its answer is wrong with the
reason "timeout" or "crash". A worker is this file run as a script that reads and writes JSON lines; nothing is pickled, and no
worker imports torch. Imports nothing of ours.
"""
import functools
import json
import logging
import os
import re
import resource
import select
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction

from tqdm import tqdm

WORKER_MEMORY = 2 * 2**30                               # bytes of address space; sympy needs about 0.3 GB of it
SUSPECT_S = 0.2                                         # processor seconds for an answer that looks like a bomb
GRACE_S = 2.0                                           # a worker that did not end itself at the deadline is ended so long after it
CACHED = 16384                                          # verdicts remembered; the oldest are forgotten first
FREE_TEXT = 2000                                        # characters at the end of a text without a box in which math-verify looks for an answer


@dataclass(frozen=True)
class Grade:
    correct: bool
    reason: str                                         # "equal" | "different" | "no box" | "too large" | "unparsed" | "gold unparsed" | "timeout" | "crash"
    answer: str | None                                  # what was taken as the answer


# ------------------------------------------------------------------------------------------------ what the answer is

TOKEN = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:\{|[^\s{}\\$]+)?|\\.|[{}]", re.DOTALL)
BOX = re.compile(r"\\(?:boxed|fbox)\s*")
SPACE = r"(?:[\s$~]|\\[()\[\],;:! ]|\\q?quad)*"
CONNECTOR = re.compile(rf"{SPACE}(?:[,;&]|[,;]?{SPACE}(?:and|or|\\(?:text|textrm|mbox)\{{\s*(?:and|or)\s*\}}))"
                       rf"{SPACE}(?:[A-Za-z](?:_\{{?\w\}}?)?{SPACE}={SPACE})?")


def final_part(text: str) -> str:
    """What stands behind the reasoning: behind the last </think>, and before a <think> that was never closed."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def boxes(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of every balanced \\boxed{...}, \\fbox{...} or \\boxed 42, innermost ones only; one pass over the text."""
    found, unclosed = [], []                            # unclosed braces: None, or (start of the box, start of its content)
    for token in TOKEN.finditer(text):
        word = token.group()
        if opening := BOX.match(word):
            if word.endswith("{"):
                unclosed.append(token.span())
            elif content := word[opening.end():]:
                found.append((*token.span(), content))
        elif word == "{":
            unclosed.append(None)
        elif word == "}" and unclosed and (box := unclosed.pop()):
            if not (found and found[-1][0] > box[0]):   # a box around a box adds nothing
                found.append((box[0], token.end(), text[box[1] : token.start()]))
    return found


def last_box(text: str) -> str | None:
    """Content of the last box behind the reasoning; None if there is none.

    Boxes of one statement, with nothing but a comma, "and" or "or" between them, are one answer: "\\boxed{1} or \\boxed{2}" is "1, 2".
    """
    text = final_part(text)
    found = boxes(text)
    if not found:
        return None
    first = len(found) - 1
    while first and found[first][0] - found[first - 1][1] < 60 and CONNECTOR.fullmatch(text, found[first - 1][1], found[first][0]):
        first -= 1
    return ", ".join(dict.fromkeys(content for *_, content in found[first:]))


# ------------------------------------------------------------------------------------------------ what equals what, without algebra

SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+")
VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
SYMBOLS = {ord(char): text for char, text in {"\u2212": "-", "\u2013": "-", "\u2044": "/", "\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u22c5": "\\cdot ",
           "\u03c0": "\\pi ", "\u221e": "\\infty ", "\u2264": "\\le ", "\u2265": "\\ge ", "\u2260": "\\ne ", "\u222a": "\\cup ", "\u2205": "\\emptyset ",
           "\u00b0": "^\\circ "}.items()}
CANONICAL = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"(?<!\\)\\!", ""), (r"~|(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|\\(?:left|right|displaystyle)(?![A-Za-z])", " "), (r"\\[dt]frac", r"\\frac"),
    (r"\\varnothing", r"\\emptyset"), (r"(?<!\\)\\(?:[()\[\]]|\$)", ""), (r"\s+", " "), (r" ?([-+*/=<>,;:()\[\]^_|]) ?", r"\1"),
    (r"([_^])\{(\w)\}(?!\w)", r"\1\2"), (r"^ ?\\(?:text|textrm|textbf|textit|mathrm|mbox)\{([^{}]*)\}[ .]?$", r"\1"),
    (r"(?<=[\d})]) ?\\(?:text|textrm|mbox|mathrm|operatorname)\{[^{}]*[A-Za-z][^{}]*\}(?:\^\{?-?\d\}?)?$", ""))]            # a unit at the end


def normalize(answer: str) -> str:
    """One form for what prints alike: NFKC, digits of any script, no invisible characters, spacing commands, delimiters or trailing punctuation."""
    if not answer.isascii():
        answer = VULGAR.sub(lambda match: "\\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", match.group()).split("\u2044")), answer)
        answer = SUPERSCRIPT.sub(lambda match: f"^{{{unicodedata.normalize('NFKC', match.group())}}}", answer)      # x\u00b2 is not x2
        answer = unicodedata.normalize("NFKC", answer).translate(SYMBOLS)
        answer = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in answer if unicodedata.category(char) != "Cf")
    for pattern, replacement in CANONICAL:
        answer = pattern.sub(replacement, answer)
    return answer.strip(" $").rstrip(".,;: ").strip(" $")


DECIMAL = re.compile(r"([+-]*)(\d{1,3}(?:(?:,|\{,\}| )\d{3}){1,60}|\d{0,200})(?:(\.)(\d{0,200})(?:\\(?:overline|bar|dot)\{?(\d{1,50})\}?|\((\d{1,50})\))?)?"
                     r"(?:[eE]([+-]?\d{1,3})|(?: ?\\times| ?\\cdot|\*) ?10\^(?:\{([+-]?\d{1,3})\}|([+-]?\d)))?")
QUOTIENT = re.compile(r"([+-]*)(?:(\d{1,20}) ?(?=\\)|(\d{1,20}) )?(?:\\frac ?(?:\{([^{}]*)\}|(\d)) ?(?:\{([^{}]*)\}|(\d))|([^/ ]+)/([^/ ]+))")
NAME = re.compile(r"\\?[A-Za-z]\w*(?:\([^()=]*\))?")
IN_BASE = re.compile(r"([0-9A-F]+)_\{?(\d+)\}?")


def as_decimal(text: str) -> Fraction | None:
    match = DECIMAL.fullmatch(text)
    if not match:
        return None
    signs, whole, _, decimals, *repeating, exponent, power, digit = match.groups()
    whole, decimals, period = re.sub(r"\D", "", whole), decimals or "", repeating[0] or repeating[1] or ""
    if not (whole or decimals or period):
        return None
    value = Fraction(int(whole + decimals or 0), 10 ** len(decimals))
    if period:
        value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(decimals))
    return value * Fraction(10) ** int(exponent or power or digit or 0) * (-1) ** signs.count("-")


def as_fraction(text: str) -> Fraction | None:
    """Normalised `text` as an exact number: a plain, repeating or scientific decimal, a quotient of two, or mixed (2\\frac{1}{2}); else None."""
    if (value := as_decimal(text)) is not None:
        return value
    match = QUOTIENT.fullmatch(text)
    if not match:
        return None
    signs, before_frac, before_slash, *parts = match.groups()
    whole = before_frac or before_slash or ""
    above, below = (as_decimal(next(filter(None, spellings), "")) for spellings in ((parts[0], parts[1], parts[4]), (parts[2], parts[3], parts[5])))
    if above is None or not below or whole and not 0 < above < below:
        return None
    return (int(whole or 0) + above / below) * (-1) ** signs.count("-")


def compare_exact(answer: str, gold: str) -> bool | None:
    """True or False if two normalised texts are settled as strings or as exact fractions, None if only algebra can."""
    if answer == gold or answer.lower() == gold.lower() and re.fullmatch(r"[A-Za-z]{2,}", answer):
        return bool(answer)
    if answer.count("=") + gold.count("=") == 1:        # one of them names the unknown: x=42, f(x)=42
        answer, gold = (value if sign and NAME.fullmatch(name) else name + sign + value for name, sign, value in (answer.partition("="), gold.partition("=")))
        if answer == gold:
            return True
    if (a := IN_BASE.fullmatch(answer)) and (b := IN_BASE.fullmatch(gold)):
        return a.groups() == b.groups()
    a, b = as_fraction(answer), as_fraction(gold)
    if a is None or b is None:
        return None
    return a == b


# What nobody would write as an answer. Every limit gives way to a gold that is near it itself.
LONG, DEEP, DIGITS, TERMS, POWER = 2000, 24, 1000, 24, 9999
EXPONENT = re.compile(r"(?:\^|\*\*|(?<=\d)[eE])\{?\(?([+-]?[\d,]{5,})")
TOWER = re.compile(r"\^\{?\(?(\d+)\)?\}?(?:\^|\*\*)\{?\(?(\d+)")
BOMBS = [re.compile(pattern) for pattern in (
    r"\^[^^]{0,6}\^[^^]{0,6}\^[^^]{0,6}\^", r"!\)?\}?!\)?\}?!|![)}]{1,2}!|\^\{?\d+\}?\)!",                   # four storeys, factorials of factorials or of powers
    r"\\[dt]?binom[^a-z]{0,4}(?:\d{6}|\d+\^)|\d{6}\}? ?\\choose|\\Gamma\(\d{5}", rf"(?:\d{{5,}}|[3-9]\d{{3}})[)}}]?!")]
TERM = re.compile(r"\\(?:pm|mp|cup|lor|vee)(?![a-z])|\bor\b|[<>=]")
SUSPECT = re.compile(r"!|\\(?:[dt]?binom|choose|sum|prod|i*int|oint|lim|Gamma|zeta)(?![A-Za-z])|[)}\]]\^\{?\d\d|(?:\^|\*\*)\{?\d{3}|\d{60}|\|{4}"
                     r"|\^\{?\(?[^{}()^]{0,60}\^|(?:\\frac[^\\]*){6}|(?:\\sqrt[^\\]*){4}|(?:[{(\[][^})\]]*){6}|.{300}", re.DOTALL)


def is_too_large(answer: str, gold: str) -> bool:
    """Whether an answer is a bomb by its length, nesting, digits, powers or factorials: parsing alone could take minutes and gigabytes."""
    def nesting(text: str) -> int:
        depth = deepest = 0
        for char in text:
            depth += (char in "{([") - (char in "})]")
            deepest = max(deepest, depth)
        return deepest

    def digits(text: str) -> int:
        return max(map(len, re.findall(r"\d+", text)), default=0)

    def power(text: str) -> float:
        written = [float(number.replace(",", "") or 0) for number in EXPONENT.findall(text)]
        return max([abs(number) for number in written] + [float(base) ** min(int(top[:4]), 60) for base, top in TOWER.findall(text) if len(base) < 5], default=0)

    if len(answer) > max(LONG, 4 * len(gold)):
        return True
    return any(of(answer) > max(limit, 2 * of(gold)) for of, limit in (
        (nesting, DEEP), (digits, DIGITS), (power, POWER), (lambda text: len(TERM.findall(text)), TERMS))) or \
        any(bomb.search(answer) and not bomb.search(gold) for bomb in BOMBS)


# ------------------------------------------------------------------------------------------------ what equals what, by math-verify

ENUMERATION = re.compile(r"\\(?:text|textrm|mbox)\{ ?(?:and|or),? ?\}|\b(?:and|or)\b")
SCIENTIFIC = re.compile(r"(?<![A-Za-z\\])(\d+\.?\d*)[eE]([+-]?\d{1,3})(?!\d)")
HEDGE = re.compile(r"\d\D*(?<![\\A-Za-z])(?!and\b|mod\b)[A-Za-z]{3,}(?![A-Za-z])\D*(?<!\^)(?<!\^\{)\d|\d ?(?:\||\\\\) ?-?\d")
OR = re.compile(r"\\text\{ ?or ?\}|\bor\b|\\cup|\\lor|\\vee")
RELATION = re.compile(r"(\\(?:leqslant|geqslant|leq|geq|le|ge|lt|gt)(?![A-Za-z])|<=|>=|<|>)")
STRICT, DOWN = ("<", ">", "\\lt", "\\gt"), (">", ">=", "\\gt", "\\ge", "\\geq", "\\geqslant")


def as_interval(text: str) -> str | None:
    """`x<2 or x>3` as `(-\\infty,2)\\cup(3,\\infty)`: inequalities in one letter as a union of intervals; None for anything else."""
    intervals = []
    for statement in OR.split(text):
        sides = [side.strip() for side in RELATION.split(statement)]
        falls = [sign in DOWN for sign in sides[1::2]]
        if len(sides) not in (3, 5) or any(falls) != all(falls) or len(sides) == 3 and sides[0].isalpha() and sides[2].isalpha():
            return None
        sides = sides[::-1] if all(falls) else sides    # now it rises from left to right
        if len(sides) == 3:
            sides = ["-\\infty", "<", *sides] if sides[0].isalpha() else [*sides, "<", "\\infty"]
        low, first, letter, second, high = sides
        if not (len(letter) == 1 and letter.isalpha()) or letter in re.sub(r"\\[A-Za-z]+", "", low + high):
            return None
        intervals.append("[("[first in STRICT] + f"{low},{high}" + "])"[second in STRICT])
    return "\\cup".join(intervals)


@functools.lru_cache(4096)
def parse_math(text: str) -> list:
    """What math-verify reads in a normalised text; empty if nothing."""
    from math_verify import parse                       # a second of sympy, needed by the workers only
    from sympy import Integer

    if re.fullmatch(r"-?\d{1,1000}", text):
        return [Integer(text), text]                    # the parser takes milliseconds
    text = SCIENTIFIC.sub(r"\1\\times 10^{\2}", text)
    return parse(f"${text}$", parsing_timeout=None)


def differ_in_value(a: object, b: object) -> bool:
    """Whether two sympy expressions are real numbers that differ, their letters standing for the same numbers: simplifying would take ten times as long."""
    from sympy import Expr

    if not (isinstance(a, Expr) and isinstance(b, Expr)):
        return False
    letters = sorted(a.free_symbols | b.free_symbols, key=str)
    values = {letter: 0.6180339887 + 0.1414213562 * i for i, letter in enumerate(letters)}
    try:
        a, b = (complex(x.subs(values).evalf(15)) for x in (a, b))
        return a.imag == b.imag == 0 and abs(a - b) > 1e-4 * max(1, abs(a), abs(b))
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):       # nan, beyond floats, or not a number at all
        return False


def compare_symbolic(answer: str, gold: str) -> str:
    """The reason of the grade of two normalised texts; without a time limit of its own, so call it where somebody else keeps the time."""
    from math_verify import verify

    if HEDGE.search(answer) and not HEDGE.search(gold):
        return "different"                              # "42, or rather 43": math-verify would read one number and drop the other
    intervals = as_interval(answer), as_interval(gold)
    if (intervals[0] is None) != (intervals[1] is None):
        answer, gold = intervals[0] or answer, intervals[1] or gold
    answer, gold = (ENUMERATION.sub(",", text) for text in (answer, gold))
    if "\\infty" in answer and "\\infty" not in gold:
        return "different"                              # for sympy, infinity to the power of infinity can equal 1
    if not (gold_parsed := parse_math(gold)):
        return "gold unparsed"
    sides = [answer] if "=" in gold or "," in answer else [side for side in answer.split("=") if not NAME.fullmatch(side)] or [answer]
    parsed = [parse_math(side) for side in sides]       # x=42 and 6*7=42 are 42, 41=42 is not
    if not all(parsed):
        return "unparsed"
    if "%" not in answer + gold and any(differ_in_value(gold_parsed[0], side[0]) for side in parsed):       # 50\\% may stand for 50 and for 0.5
        return "different"
    return "equal" if all(verify(gold_parsed, side, timeout_seconds=None) for side in parsed) else "different"


def compare_free(text: str, gold: str) -> tuple[str, str | None]:
    """(reason, answer) for a text without a box, in which math-verify looks for an answer by its own rules."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    parsed = parse(text, [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()], parsing_timeout=None)
    if not parsed:
        return "no box", None
    return "equal" if verify(parse_math(gold), parsed, timeout_seconds=None) else "different", str(parsed[-1])


@dataclass(frozen=True)
class Question:
    """What is left for math-verify: two normalised texts, or the end of a text without a box and a gold."""
    answer: str
    gold: str
    shown: str | None                                   # the answer as it was written; None for a text without a box

    def settle(self) -> Grade:
        if self.shown is None:
            reason, answer = compare_free(self.answer, self.gold)
        else:
            reason, answer = compare_symbolic(self.answer, self.gold), self.shown
        return Grade(reason == "equal", reason, answer)


def grade_exact(text: str, gold: str, require_box: bool = True) -> Grade | Question:
    """The grade if no algebra is needed for it, else what algebra has to settle."""
    answer = last_box(text)
    if answer is None:
        rest = "" if require_box else final_part(text).strip()
        return Question(rest[-FREE_TEXT:], normalize(gold), None) if rest else Grade(False, "no box", None)
    if is_too_large(answer, gold):
        return Grade(False, "too large", answer[:LONG])
    plain, gold = normalize(answer), normalize(gold)
    equal = compare_exact(plain, gold) if plain else False
    return Question(plain, gold, answer) if equal is None else Grade(equal, "equal" if equal else "different", answer)


PLAIN = re.compile(r"[^\\{}<]{0,1000}[0-9A-Za-z][^\\{}<]{0,1000}")           # no command, brace or tag, and something that normalising leaves


def gold_of(value: str) -> str:
    """The gold in a column that holds it, or holds a solution with the answer in its last box. ValueError if no boxed answer could equal it."""
    if PLAIN.fullmatch(value):
        return value
    gold = value if (boxed := last_box(value)) is None else boxed
    if last_box(f"\\boxed{{{gold}}}") == gold and normalize(gold):
        return gold                                     # it equals itself as text, which a data file of a million rows should not wait longer for
    item = grade_exact(f"\\boxed{{{gold}}}", gold)
    if isinstance(item, Question) or not item.correct:
        raise ValueError(f"no boxed answer can equal {gold!r}: is something missing in it, such as a brace?")
    return gold


def grade(text: str, gold: str, require_box: bool = True) -> Grade:
    """Whether `text` ends in an answer equal to `gold`; `require_box=False` lets math-verify look for one where there is no box.

    Algebra has no deadline here, a hostile answer can stall it: grade those with `Grader`.
    """
    result = grade_exact(text, gold, require_box)
    return result if isinstance(result, Grade) else result.settle()


# ------------------------------------------------------------------------------------------------ processes


class Worker:
    """One child process that settles one question at a time; started when first needed."""

    def __init__(self, timeout_s: float):
        self.timeout_s, self.process = timeout_s, None

    def start(self) -> None:
        command = [sys.executable, __file__, str(self.timeout_s)]
        seeded = {**os.environ, "PYTHONHASHSEED": "0"}  # sympy's verdicts on nonsense can depend on the order of sets
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, env=seeded)
        self.process.stdout.readline()                  # its imports are done: they do not count against the first deadline

    def settle(self, question: Question) -> Grade:
        if self.process is None:
            self.start()
        output = self.process.stdout
        while select.select([output], [], [], 0)[0] and output.readline():
            pass                                        # the report of a process that was killed between two questions
        try:
            self.process.stdin.write(json.dumps([question.answer, question.gold, question.shown]).encode() + b"\n")
            self.process.stdin.flush()
            line = output.readline() if select.select([output], [], [], self.timeout_s + GRACE_S)[0] else None
        except BrokenPipeError:
            line = b""
        if line:
            correct, reason, answer = json.loads(line)
            return Grade(correct, reason, question.shown if answer is None else answer)
        self.stop()
        return Grade(False, "timeout" if line is None else "crash", question.shown)

    def stop(self) -> None:
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:                  # it is gone already
                pass
            self.process.communicate()
            self.process = None


class Grader:
    """Grades batches with `workers` processes; every answer within `timeout_s` seconds, in order. A context manager."""

    def __init__(self, workers: int = 2, timeout_s: float = 5.0, require_box: bool = True):
        self.threads = ThreadPoolExecutor(workers)      # a thread only waits for its worker
        self.idle = [Worker(timeout_s) for _ in range(workers)]
        self.require_box = require_box
        self.cache: dict[Question, Grade] = {}

    def grade_batch(self, texts: Sequence[str], golds: Sequence[str], progress: bool = False) -> list[Grade]:
        """A grade for each text against its gold; `progress` shows a bar if it takes more than two seconds."""
        grades = [grade_exact(text, gold, self.require_box) for text, gold in zip(texts, golds, strict=True)]
        new: dict[str, list[Question]] = {}             # by gold: one worker reads it once and compares all answers with it
        for item in dict.fromkeys(grades):
            if isinstance(item, Question) and item not in self.cache:
                new.setdefault(item.gold, []).append(item)
        for settled in tqdm(self.threads.map(self.settle, new.values()), total=len(new), desc="grade", unit="gold", leave=False, delay=2, disable=not progress):
            self.cache |= settled
        grades = [self.cache[item] if isinstance(item, Question) else item for item in grades]
        for old in list(self.cache)[:-CACHED]:
            del self.cache[old]
        return grades

    def settle(self, questions: Sequence[Question]) -> dict[Question, Grade]:
        worker = self.idle.pop()                        # as many workers as threads: one is always idle here
        try:
            return {question: worker.settle(question) for question in questions}
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


WARM_UP = ("x+1", "\\frac{\\sqrt{3}}{2}", "2^{3}-3x^2+5xy", "(1,2]\\cup[3,\\infty)", "5!", "\\binom{4}{2}", "\\{1,2\\}", "\\log_2 3", "x=1", "(1,\\frac{1}{2})", "2\\pi r", "e^{-x}",
           "-\\frac{1}{2}x+\\frac{3}{4}", "\\frac{a+b}{c(d-1)}", "1,2,3", "x<2", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\sin x \\cos 2x", "3+4i", "90^\\circ", "50\\%", "5 cm")


def serve(timeout_s: float) -> None:
    """A worker: imports once, then forks the process that answers, and forks again when that one was late or died."""
    resource.setrlimit(resource.RLIMIT_AS, (WORKER_MEMORY, WORKER_MEMORY))
    logging.disable(logging.WARNING)                    # math-verify warns at every call that the time is kept elsewhere
    for text in WARM_UP:                                # what the parser learns and what sympy loads when first asked
        compare_symbolic(text, "x^2")
    print("ready", flush=True)
    while child := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return                                      # the trainer has closed its end
        print(json.dumps([False, "timeout" if -status in (signal.SIGALRM, signal.SIGPROF) else "crash", None]), flush=True)
    try:
        for line in sys.stdin:
            question = Question(*json.loads(line))
            signal.setitimer(signal.ITIMER_REAL, timeout_s)         # no handler: the signals end the process wherever it is, in C code too
            signal.setitimer(signal.ITIMER_PROF, SUSPECT_S if SUSPECT.search(question.answer) and not SUSPECT.search(question.gold) else 0)
            try:
                result = question.settle()
            except MemoryError:
                os._exit(1)
            except Exception:                           # whatever sympy raises on nonsense is a wrong answer, counted by its reason
                result = Grade(False, "unparsed", question.shown)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            print(json.dumps([result.correct, result.reason, result.answer]), flush=True)
    except BrokenPipeError:
        pass
    os._exit(0)


if __name__ == "__main__":
    serve(float(sys.argv[1]))
