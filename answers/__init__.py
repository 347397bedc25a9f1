r"""What the answer of a text is, and whether it equals the gold one. Without a deadline: grader.py has that.

    grade("... so \\boxed{1/2}", "0.5")                 # Grade(correct=True, reason="equal", answer="1/2")

Imports nothing of ours: the folder can be copied alone. Each file imports only those before it:

    text        the last box after the reasoning; one form for what prints alike
    units       names and powers from the words of a unit
    tokens      numbers, letters with their indices and primes, words, signs
    values      the value of a formula at a point: an exact fraction where it is rational, else at a precision
    relations   names and values of equations, intervals of inequalities
    parser      trees of one member of a list
    statements  members of a list, domain of a letter, modulus
    equal       what equals what: lists without order, points with their brackets, equations by sides and up to a
                factor, quantities with their units, formulas by values at points that follow from their letters

An answer counts as read only if everything in it was read; what was not is equal as text only. Work is bounded by
size, so a verdict depends on the pair alone.
"""
import re
from dataclasses import dataclass

from .equal import same_statement
from .statements import read
from .text import END, FONT, MACRO, Unread, compare_exact, final_part, last_box, normalize
from .tokens import FUNCTIONS, canonical, tokenize
from .values import TooLarge

FREE_TEXT = 2000                                        # characters at the end of a text without a box to search
LONG, DEEP, MANY_DIGITS = 2000, 24, 1000                # what nobody would write, but for a gold that is near it


@dataclass(frozen=True)
class Grade:
    """A verdict. Reasons: "equal" | "different" | "no box" | "too large" (nobody would write it, or work it out) |
    "unparsed" (some part of the answer was not understood, and as text it is another) | "gold unparsed" (the same for
    the gold) | "timeout" | "crash" (grader.py)."""
    correct: bool
    reason: str
    answer: str | None                                  # what was taken as the answer


@dataclass(frozen=True)
class Comparison:
    """What is left to be read: two normalised texts, or the end of a text without a box and a gold."""
    answer: str
    gold: str
    shown: str | None                                   # the answer as it was written; None for a text without a box

    def settle(self) -> Grade:
        if self.shown is None:
            reason, answer = compare_free(self.answer, self.gold)
        else:
            reason, answer = compare_read(self.answer, self.gold), self.shown
        return Grade(reason == "equal", reason, answer)


def grade(text: str, gold: str, require_box: bool = True) -> Grade:
    """Whether `text` ends in an answer equal to `gold`; `require_box=False` lets math-verify look for one where there
    is no box."""
    result = grade_exact(text, gold, require_box)
    return result if isinstance(result, Grade) else result.settle()


def grade_exact(text: str, gold: str, require_box: bool = True) -> Grade | Comparison:
    """The grade if nothing must be read for it, else what has to be."""
    answer = last_box(text)
    if answer is None:
        rest = "" if require_box else final_part(text).strip()
        return Comparison(rest[-FREE_TEXT:], normalize(gold), None) if rest else Grade(False, "no box", None)
    if is_too_large(answer, gold):
        return Grade(False, "too large", answer[:LONG])
    plain, gold = normalize(answer), normalize(gold)
    equal = compare_exact(plain, gold) if plain else False
    return Comparison(plain, gold, answer) if equal is None else Grade(equal, "equal" if equal else "different", answer)


def is_too_large(answer: str, gold: str) -> bool:
    """Whether an answer is longer, deeper or has longer numbers than anybody would write: what is less is read, and
    its evaluation is bounded."""
    def nesting(text: str) -> int:
        depth = deepest = 0
        for char in text:
            depth += (char in "{([") - (char in "})]")
            deepest = max(deepest, depth)
        return deepest

    def digits(text: str) -> int:
        return max(map(len, re.findall(r"\d+", text)), default=0)

    return len(answer) > max(LONG, 4 * len(gold)) or any(
        of(answer) > max(limit, 2 * of(gold)) for of, limit in ((nesting, DEEP), (digits, MANY_DIGITS)))


TEXTUAL = re.compile(r"[A-Za-z][A-Za-z ,.'-]*")
SURE_WORDS = re.compile(r"^[A-Z]{3,}$|[A-Za-z]{2} [A-Za-z]{2}|^(?=.{4})(?i:[a-z]*[aeiouy][a-z]*)$")
SHORT_WORDS = set("yes no odd even true false none one two six ten red all both".split())


def as_words(text: str) -> tuple[str | None, bool]:
    """(the words of a text without formulas, in one form; None for another, whether it can be nothing but words)."""
    flat = re.sub(rf"(?:{MACRO}|{FONT}){END}|[{{}}]", "", text).strip(" .")
    if not TEXTUAL.fullmatch(flat):
        return None, False
    sure = flat.lower() in SHORT_WORDS or SURE_WORDS.search(flat) \
        or "\\" in text and len(flat) > 1 and flat not in FUNCTIONS
    return re.sub(r"^(?:an?|the) (?=\w)", "", " ".join(flat.lower().split())), bool(sure)


def compare_read(answer: str, gold: str) -> str:
    """The reason of the grade of two normalised texts that were not settled as text: "equal", "different", "too
    large" or whose reading failed."""
    words, gold_words = as_words(answer), as_words(gold)
    if gold_words[1] or words[1]:
        return "equal" if words[0] is not None and words[0] == gold_words[0] else "different"
    golds, answers = read(gold)[:1], read(answer)
    try:
        if not golds or not answers:                    # equal as text only
            if canonical(tokenize(answer, roman=True)) == canonical(tokenize(gold, roman=True)):
                return "equal"
            raise Unread
        return "equal" if any(same_statement(one, golds[0]) for one in answers) else "different"
    except Unread:
        return "unparsed" if golds else "gold unparsed"
    except (TooLarge, RecursionError, MemoryError):
        return "too large"
    except (ZeroDivisionError, ValueError, OverflowError):
        return "different"


def compare_free(text: str, gold: str) -> tuple[str, str | None]:
    """(reason, answer) for a text without a box, in which math-verify looks for an answer by its own rules."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify       # a second of sympy

    sources = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    gold_parsed, parsed = (parse(part, sources, parsing_timeout=None) for part in (f"${gold}$", text))
    if not parsed:
        return "no box", None
    return "equal" if verify(gold_parsed, parsed, timeout_seconds=None) else "different", str(parsed[-1])


PLAIN = re.compile(r"[^\\{}<#]{0,40}[0-9A-Za-z][^\\{}<#]{0,40}")             # short, and no command, brace, tag or mark
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
PROSE = 12                                              # words of an unread gold that make a text of it


def gold_of(value: str) -> str:
    """The gold in a column that holds it, or a solution with it in its last box, in <answer> or after "####" (to the
    end of the line).

    ValueError if no boxed answer could equal it: a brace is missing, there is nothing to compare, or it is prose.
    """
    if PLAIN.fullmatch(value):
        return value
    marked = False
    if (gold := last_box(value)) is None:
        gold = (TAGGED.findall(value) or [value])[-1].strip()
        if marked := "####" in gold:
            gold = gold.rpartition("####")[2].strip().split("\n")[0].strip(" $").rstrip(".")
            gold = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", gold)
    plain = normalize(gold)
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", plain)
    readable = len(words) <= (PROSE if not marked else PROSE // 3) and (re.search(r"\w", plain) or read(plain))
    if not plain or not readable or last_box(f"\\boxed{{{gold}}}") != gold:
        raise ValueError(f"no boxed answer can equal {gold[:200]!r}: is it a text, "
                         "or is something missing in it, such as a brace or the box?")
    return gold
