"""What the answer of a text is, and whether it equals the gold one. Without a deadline: grader.py has that.

    grade("... so \\\\boxed{1/2}", "0.5")                  # Grade(correct=True, reason="equal", answer="1/2")

The answer is the last balanced \\boxed{} behind the reasoning. Gold and answer are compared as strings, then as exact
fractions; what is left goes to math-verify, gold first (its `verify` is not symmetric). Answers longer, deeper or larger than
anybody would write are refused before. Where math-verify would read one of two answers, drop a letter as a unit, take R for r
or round a small number to 0, the answer is settled or prepared here. Imports nothing of ours.
"""
import functools
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

FREE_TEXT = 2000                                        # characters at the end of a text without a box in which math-verify looks for an answer


@dataclass(frozen=True)
class Grade:
    correct: bool
    reason: str                                         # "equal" | "different" | "no box" | "too large" | "unparsed" | "gold unparsed" | "timeout" | "crash"
    answer: str | None                                  # what was taken as the answer


# ------------------------------------------------------------------------------------------------ what the answer is

TOKEN = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:\{|[^\s{}\\$]+)?|\\.|[{}]", re.DOTALL)
BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
SPACE = r"(?:[\s$~*(:]|\\[()\[\],;:! ]|\\q?quad(?![a-z])|\\text\w*\{|\})*"
WORD = r"(?:and|or|else|perhaps|maybe|possibly)(?![A-Za-z])"
CONNECTOR = re.compile(rf"{SPACE}(?:(?:[,;&/|]|\\\\|\\l?or(?![a-z])|\\vee(?![a-z])){SPACE}(?:{WORD}{SPACE})*|(?:{WORD}[,/]?{SPACE})+)"
                       rf"(?:(?![,.])[\w{{}}\\^+()\[\]' -]{{1,40}}={SPACE})?", re.IGNORECASE)


def final_part(text: str) -> str:
    """What stands behind the reasoning: behind the last </think>, and before a <think> that was never closed."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def boxes(text: str) -> list[tuple[int, int, int, int]]:
    """Of every balanced \\boxed{...}, \\fbox{...} or \\boxed 42 that is in no other: where it starts, its content starts and ends, it ends; one pass over the text."""
    found, unclosed = [], []                            # unclosed braces: None, or (start of the box, start of its content)
    for token in TOKEN.finditer(text):
        word = token.group()
        if opening := BOX.match(word):
            if word.endswith("{"):
                unclosed.append(token.span())
            elif word[opening.end():]:
                found.append((token.start(), token.start() + opening.end(), token.end(), token.end()))
        elif word == "{":
            unclosed.append(None)
        elif word == "}" and unclosed and (box := unclosed.pop()):
            while found and found[-1][0] > box[0]:
                found.pop()
            found.append((*box, token.start(), token.end()))
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
    while first and found[first][0] - found[first - 1][3] < 100 and CONNECTOR.fullmatch(text, found[first - 1][3], found[first][0]):
        first -= 1
    return ", ".join(dict.fromkeys(BOX.sub("", text[start:end]) for _, start, end, _ in found[first:]))


# ------------------------------------------------------------------------------------------------ what equals what, without algebra

SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+")
ROOT = re.compile("\u221a(?:\\(([^()]*)\\)|(\\d+|\\w))")
VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
SYMBOLS = {ord(char): text for char, text in {"\u2212": "-", "\u2013": "-", "\u2044": "/", "\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u22c5": "\\cdot ",
           "\u03c0": "\\pi ", "\u221e": "\\infty ", "\u2264": "\\le ", "\u2265": "\\ge ", "\u2260": "\\ne ", "\u222a": "\\cup ", "\u2205": "\\emptyset ",
           "\u00b0": "^\\circ "}.items()}
FONT = r"\\(?:mathbf|mathit|mathsf|boldsymbol|bm|underline|textbf|textit)"
TEXT = r"\\(?:text|textrm|textbf|textit|mathrm|mbox|operatorname)"
# at the end, behind a number: text that names a unit, not another answer, a multiple or a letter of the formula
NO_UNIT = r"(?!.*\b(?:or|and|if|is|not|but|to|from|maybe|more|less|mod|base|million|billion|trillion|thousand|hundred|dozen|squared|cubed|factorial|i|e|x)\b)"
UNIT = re.compile(rf"(?<=[\d}}\])]) ?(?:{TEXT}\{{{NO_UNIT}[^{{}}\d]*[A-Za-z][^{{}}\d]*\}}|(?<=[\d}}] )(?:sq(?:uare|\.)? |cubic )?(?:[cmk]m|k?g|m[gl]|ft|in|inch(?:es)?|feet|foot|yards?|"
        r"miles?|met(?:er|re)s?|centimet(?:er|re)s?|units?|degrees?|dollars?|cents?|seconds?|sec|minutes?|min|hours?|days?|weeks?|months?|years?|people|students|ways|points?))"
        r"(?:\^\{?-?\d\}?)?[. ]*$")
CANONICAL = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"^[ $]+|[ $]+$", ""), (r"(?<!\\)\\!", ""), (r"~|(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|\\(?:left|right|displaystyle)(?![A-Za-z])", " "), (rf"({TEXT}|{FONT}) +\{{", r"\1{"),
    (r"\\[dt]frac", r"\\frac"), (r"\\varnothing", r"\\emptyset"), (r"(?<!\\)%", r"\\%"), (r"(?<!\\)\\(?:[()\[\]]|\$)", ""), (r"\\(?:math|text)rm\{([eid])\}", r"\1"),
    (r"(\\sqrt\[[^\]]*\]) ?(\w)", r"\1{\2}"), (r"\s+", " "), (r" ?([-+*/=<>,;:()\[\]^_|]) ?", r"\1"), (r"([_^])\{(\w)\}(?!\w)", r"\1\2"),
    (r"(?<=\d)(?: | ?\\cdot ?)i(?![A-Za-z])", "i"), (rf"^ ?{TEXT}\{{([^{{}}]*)\}}[ .]*$", r"\1"), (rf"{FONT}\{{([^{{}}]*)\}}", r"\1"), (r"^\{([^{}]*)\}$", r"\1"))]


@functools.lru_cache(4096)
def normalize(answer: str) -> str:
    """One form for what prints alike: NFKC, digits of any script, no invisible characters, spacing, delimiters, fonts, units or punctuation at the end."""
    if not answer.isascii():
        answer = VULGAR.sub(lambda match: "\\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", match.group()).split("\u2044")), answer)
        answer = SUPERSCRIPT.sub(lambda match: f"^{{{unicodedata.normalize('NFKC', match.group())}}}", answer)      # x\u00b2 is not x2
        answer = ROOT.sub(r"\\sqrt{\1\2}", answer).replace("\u211d", "\\mathbb{R}")
        answer = unicodedata.normalize("NFKC", answer).translate(SYMBOLS)
        answer = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in answer if unicodedata.category(char) != "Cf")
    for pattern, replacement in CANONICAL:
        answer = pattern.sub(replacement, answer)
    answer = UNIT.sub("", answer) if re.search(r"\d", answer) else answer
    return answer.strip(" $").rstrip(".,;: ").strip(" $")


DECIMAL = re.compile(r"([+-]*+)(\d{1,3}(?:(?:,|\{,\}| )\d{3}){1,60}|\d{0,200})(?:(\.)(\d{0,200})(?:\\(?:overline|bar|dot)\{?(\d{1,50})\}?|\((\d{1,50})\))?)?"
                     r"(?:[eE]([+-]?\d{1,3})|(?: ?\\times| ?\\cdot|\*) ?10\^(?:\{([+-]?\d{1,3})\}|([+-]?\d)))?")
QUOTIENT = re.compile(r"([+-]*+)(?:(\d{1,20}) ?(?=\\)|(\d{1,20}) )?(?:\\frac ?(?:\{([^{}]*)\}|(\d)) ?(?:\{([^{}]*)\}|(\d))|([^/ ]+)/([^/ ]+))")
FIXED_WORD = re.compile(r"[A-Z][a-z]{2,}|yes|no|true|false|even|odd|none")
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


def values(text: str) -> list[str]:
    """The sides of an equation that are not names: x=42, f(x)=42 and a+b=42 have one, 6*7=42 and 41=42 have two; all of an equation of names."""
    sides, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in "{([") - (char in "})]")
        if char == "=" and depth <= 0:
            sides.append(text[start:i])
            start = i + 1
    sides.append(text[start:])

    def is_name(side: str) -> bool:
        bare = re.sub(r"_(?:\{[^{}]*\}|\w)|(?<=[\w'}])[(\[][^()\[\]]*[)\]]|\\mathbb", "", side)
        return bool(re.search("[A-Za-z]", bare)) and not re.search(r"\d|^[+-]|\\(?:pi|infty|pm)(?![a-z])", bare)

    return [side for side in sides if not is_name(side)] if len(sides) > 1 else sides


def compare_exact(answer: str, gold: str) -> bool | None:
    """True or False if two normalised texts are settled as strings, words or exact fractions, None if only algebra can."""
    if answer == gold:
        return bool(answer)
    if ("=" in answer) != ("=" in gold):                # one of them names the unknown
        answer, gold = (sides[0] if len(sides := values(text)) == 1 else text for text in (answer, gold))
        if answer == gold:
            return True
    if FIXED_WORD.fullmatch(answer) or FIXED_WORD.fullmatch(gold):
        return answer.lower() == gold.lower()           # for algebra a word is a product of letters in any order
    if (a := IN_BASE.fullmatch(answer)) and (b := IN_BASE.fullmatch(gold)):
        return a.groups() == b.groups()
    a, b = (as_fraction(text.removesuffix("\\%").rstrip()) for text in (answer, gold))
    if a is None or b is None:
        return None
    if answer.endswith("\\%") != gold.endswith("\\%"):            # 50% answers 50 as well as 0.5
        return a == b or (a == 100 * b if answer.endswith("\\%") else 100 * a == b)
    return a == b


# What nobody would write as an answer. Every limit gives way to a gold that is near it itself.
LONG, DEEP, DIGITS, TERMS, POWER = 2000, 24, 1000, 24, 9999
EXPONENT = re.compile(r"(?:\^|\*\*|(?<=\d)[eE])\{?\(?([+-]?[\d,]{5,})")
TOWER = re.compile(r"\^[{(]*(\d+)(?:\^|\*\*)[{(]*(\d+)")
BOMBS = [re.compile(pattern) for pattern in (
    r"\^(?:(?:[{(]+\w{0,6}|\d{1,6})\^){3}", r"!\)?\}?!\)?\}?!|![)}]{1,2}!|\^\{?\d+\}?\)!",                   # four storeys, factorials of factorials or of powers
    r"\\[dt]?binom[^a-z]{0,4}(?:\d{6}|\d+\^)|\d{6}\}? ?\\choose|\\Gamma\(\d{5}", r"(?:\d{5,}|[3-9]\d{3})[)}]?!")]
TERM = re.compile(r"\\(?:pm|mp|cup|lor|vee)(?![a-z])|\bor\b|[<>=,;]")
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

    def terms(text: str) -> int:
        return len(TERM.findall(text))

    if len(answer) > max(LONG, 4 * len(gold)) or any(bomb.search(answer) and not bomb.search(gold) for bomb in BOMBS):
        return True
    return any(of(answer) > max(limit, 2 * of(gold)) for of, limit in ((nesting, DEEP), (digits, DIGITS), (power, POWER), (terms, TERMS)))


# ------------------------------------------------------------------------------------------------ what equals what, by math-verify

MACRO = r"\\(?:text\w*|math\w+|mbox|operatorname)"
ENUMERATION = re.compile(rf"[,;]? ?(?:{MACRO}\{{ ?,? ?(?:and|or),? ?\}}|\b(?:and|or)\b|\\(?:lor|vee|land|wedge)(?![a-z])),? ?|;")
SCIENTIFIC = re.compile(r"(?<![A-Za-z\\])(\d+\.?\d*)[eE]([+-]?\d{1,3})(?!\d)")
# two answers of which math-verify would read one: words, separators or text between numbers, and what is not mathematics at all
HEDGE = re.compile(r"\d\D*(?<![\\A-Za-z])(?!and\b|mod\b)[A-Za-z]{3,}(?![A-Za-z])\D*(?<!\^)(?<!\^\{)\d|\d ?(?:\||\\\\|\\cup|\$) ?-?\d|\$\$|\|\||\.\.|[?#@&\0]"
                   rf"|\\(?:to|(?:long)?(?:R|r)ightarrow|implies|iff|equiv|sim|mid|[lc]?dots|circ\d)(?![a-z])|[-+*/]$|\\(?:cdot|times)$|{MACRO}\{{[^{{}}]*\d|{MACRO}\{{.*{MACRO}\{{"
                   rf"|{MACRO}\{{[^{{}}]*\bor\b[^{{}}]*[a-z]{{2}}|,.*\\in(?![a-z])|^(?:[<>]|\\[gl]e)|[^\x00-\x7f]|(?i:\\(?:math|text)\w*\{{ ?or ?\}}.*\bor\b)")
OR = re.compile(rf"{MACRO}\{{ ?or ?\}}|\bor\b|\\cup|\\lor|\\vee")
LETTER = re.compile(r"(?!\\(?:pi|infty)(?![a-z]))(?:\\[A-Za-z]+|[A-Za-z])(?:_\{?\w+\}?)?")
RELATION = re.compile(r"(\\(?:leqslant|geqslant|leq|geq|le|ge|lt|gt)(?![A-Za-z])|<=|>=|<|>)")
STRICT, DOWN = ("<", ">", "\\lt", "\\gt"), (">", ">=", "\\gt", "\\ge", "\\geq", "\\geqslant")
SPARE = ("\\xi", "\\eta", "\\kappa", "\\upsilon", "\\iota", "\\varsigma")


def as_interval(text: str) -> str | None:
    """`x<2 or x>3` as `(-\\infty,2)\\cup(3,\\infty)`: inequalities in one letter as a union of intervals; None for anything else."""
    intervals = []
    for statement in OR.split(text):
        sides = [side.strip() for side in RELATION.split(statement)]
        falls = [sign in DOWN for sign in sides[1::2]]
        names = [LETTER.fullmatch(side) is not None for side in sides[::2]]
        if len(sides) not in (3, 5) or any(falls) != all(falls) or len(sides) == 3 and sum(names) != 1:
            return None
        sides = sides[::-1] if all(falls) else sides    # now it rises from left to right
        if len(sides) == 3:
            sides = ["-\\infty", "<", *sides] if LETTER.fullmatch(sides[0]) else [*sides, "<", "\\infty"]
        low, first, letter, second, high = sides
        if not LETTER.fullmatch(letter) or letter in LETTER.findall(low + high):
            return None
        intervals.append("[("[first in STRICT] + f"{low},{high}" + "])"[second in STRICT])
    return "\\cup".join(intervals)


def tell_cases_apart(*texts: str) -> list[str]:
    """The texts with R as another letter where r occurs too: math-verify reads them as one."""
    letters = set("".join(re.sub(r"\\[A-Za-z]+", "", text) for text in texts))
    spare = iter([letter for letter in SPARE if not any(letter in text for text in texts)])
    renamed = {letter: next(spare, letter) + " " for letter in sorted(letters) if letter.isupper() and letter.lower() in letters}
    return [re.sub(r"\\[A-Za-z]+|[A-Z]", lambda match: renamed.get(match.group(), match.group()), text) for text in texts]


@functools.lru_cache(4096)
def parse_math(text: str) -> list:
    """What math-verify reads in a normalised text; empty if nothing."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse       # a second of sympy, needed by the workers only
    from latex2sympy2_extended import NormalizationConfig
    from sympy import Integer

    if re.fullmatch(r"-?\d{1,1000}", text):
        return [Integer(text), text]                    # the parser takes milliseconds
    text = SCIENTIFIC.sub(r"\1\\times 10^{\2}", text)
    # units are gone already, and its own rule for them drops letters: 6m would be 6
    plain = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    return parse(f"${text}$", [LatexExtractionConfig(normalization_config=plain), ExprExtractionConfig()], parsing_timeout=None)


def differ_in_value(a: object, b: object) -> bool:
    """Whether two sympy expressions are real numbers that differ, their letters standing for the same numbers: simplifying would take ten times as long."""
    from sympy import Expr, Product, Sum

    if not (isinstance(a, Expr) and isinstance(b, Expr)) or a.has(Sum, Product) or b.has(Sum, Product):
        return False
    letters = sorted(a.free_symbols | b.free_symbols, key=str)
    numbers = {letter: 0.6180339887 + 0.1414213562 * i for i, letter in enumerate(letters)}
    try:
        a, b = (complex(x.subs(numbers).evalf(15)) for x in (a, b))
        scale = max(abs(a), abs(b), 1 if letters else 1e-60)            # numbers are compared however small; a hidden zero comes out near 1e-125
        return a.imag == b.imag == 0 and abs(a - b) > 1e-4 * scale
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):       # nan, beyond floats, or not a number at all
        return False


def compare_symbolic(answer: str, gold: str) -> str:
    """The reason of the grade of two normalised texts; without a time limit of its own, so call it where somebody else keeps the time."""
    from math_verify import verify

    intervals = as_interval(answer), as_interval(gold)
    if intervals[0] is None and HEDGE.search(answer) and not HEDGE.search(gold):
        return "different"                              # "42, or rather 43": math-verify would read one number and drop the other
    if (intervals[0] is None) != (intervals[1] is None):
        answer, gold = intervals[0] or answer, intervals[1] or gold
    if "\\infty" in answer and "\\infty" not in gold and not re.search(r"\\infty[)\]]", answer):
        return "different"                              # for sympy, infinity to the power of infinity can equal 1
    answer, gold = tell_cases_apart(*(ENUMERATION.sub(",", text) for text in (answer, gold)))
    if not (gold_parsed := parse_math(gold)):
        return "gold unparsed"
    sides = [answer] if "=" in gold or "," in answer else values(answer) or [answer]
    parsed = [parse_math(side) for side in sides]
    if not all(parsed):
        return "unparsed"
    if "%" not in answer + gold and any(differ_in_value(gold_parsed[0], side[0]) for side in parsed):       # 50% may stand for 50 and for 0.5
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
    """The gold in a column that holds it, or a solution with it in its last box or behind "####". ValueError if no boxed answer could equal it."""
    if PLAIN.fullmatch(value):
        return value
    if (gold := last_box(value)) is None:
        gold = value.rpartition("####")[2].strip() if "####" in value else value
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
