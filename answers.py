"""What the answer of a text is, and whether it equals the gold one. Without a deadline: grader.py has that.

    grade("... so \\\\boxed{1/2}", "0.5")                  # Grade(correct=True, reason="equal", answer="1/2")

The answer is the last balanced \\boxed{} after the reasoning. Gold and answer are compared as text; then both are read:

    normalize    one form for what prints alike
    tokenize     numbers, letters with their indices and primes, words, signs
    statement    members of a list, domain of a letter, modulus; `member` a relation or value, `Parser` one side
    value_at     the value of a formula at a point: an exact fraction where it is rational, else at a precision
    same_...     what equals what: lists without order, points with their brackets, equations by sides and up to a
                 factor, quantities with their units, formulas by values at points that follow from their letters

An answer counts as read only if everything in it was read; what was not is equal as text only. Work is bounded by
size, so a verdict depends on the pair alone. Imports nothing of ours.
"""
import functools
import hashlib
import itertools
import math
import operator
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from mpmath import mp

# characters at the end of a text without a box that are searched
FREE_TEXT = 2000


@dataclass(frozen=True)
class Grade:
    """A verdict. Reasons: "equal" | "different" | "no box" | "too large" (nobody would write it, or work it out) |
    "unparsed" (some part of the answer was not understood, and as text it is another) | "gold unparsed" (the same for
    the gold) | "timeout" | "crash" (grader.py)."""
    correct: bool
    reason: str
    answer: str | None                                  # what was taken as the answer


class Unread(Exception):
    """Something in a text was not understood."""


class TooLarge(Exception):
    """More digits or more steps than an answer deserves."""


# -------------------------------------------------------------------------------- what the answer is

TOKEN = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:\{|[^\s{}\\$]+)?|\\.|[{}]", re.DOTALL)
BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
SPACE = r"(?:[\s$~*(:]|\\[()\[\],;:! ]|\\q?quad(?![a-z])|\\text\w*\{|\})*"
WORD = r"(?:and|or|else|perhaps|maybe|possibly)(?![A-Za-z])"
CONNECTOR = re.compile(rf"{SPACE}(?:(?:[,;&/|]|\\\\|\\l?or(?![a-z])|\\vee(?![a-z])){SPACE}(?:{WORD}{SPACE})*|"
                       rf"(?:{WORD}[,/]?{SPACE})+)(?:(?![,.])[\w{{}}\\^+()\[\]' -]{{1,40}}={SPACE})?", re.IGNORECASE)


def final_part(text: str) -> str:
    """What stands after the reasoning: after the last </think>, and before a <think> that was never closed."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def boxes(text: str) -> list[tuple[int, int, int, int]]:
    """Of every balanced \\boxed{...}, \\fbox{...} or \\boxed 42 that is in no other, in one pass: where it starts,
    its content
    starts and ends, it ends. Boxes with nothing in them are left out where another has something."""
    # unclosed braces: None, or (start of the box, start of its content)
    found, unclosed = [], []
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
    return [box for box in found if text[box[1]:box[2]].strip(" {}$\n")] or found


def last_box(text: str) -> str | None:
    """Content of the last box after the reasoning; None if there is none.

    Boxes of one statement, with nothing but a comma, "and" or "or" between them, are one answer:
    "\\boxed{1} or \\boxed{2}" is "1, 2".
    """
    text = final_part(text)
    found = boxes(text)
    if not found:
        return None
    first = len(found) - 1
    while first and found[first][0] - found[first - 1][3] < 100 \
            and CONNECTOR.fullmatch(text, found[first - 1][3], found[first][0]):
        first -= 1
    return ", ".join(dict.fromkeys(BOX.sub("", text[start:end]) for _, start, end, _ in found[first:]))


# -------------------------------------------------------------------------------- one form for what prints alike

GREEK = {char: f"\\{name} " for char, name in zip(
    "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩϕϵϑϱ", "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu "
    "xi pi rho sigma tau "
    "upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega phi epsilon theta "
    "rho".split())}
SYMBOLS = str.maketrans(GREEK | dict(pair.split(" ", 1) for pair in (
    "− -|– -|⁄ /|∕ /|× \\times |· \\cdot |⋅ \\cdot |∙ \\cdot |÷ / |± \\pm |∓ \\mp |∞ \\infty |≤ \\le |⩽ \\le |≦ \\le "
    "|≥ \\ge |⩾ \\ge |≧ \\ge |"
    "≠ \\ne |≈ \\approx |≡ \\equiv |∈ \\in |∉ \\notin |∀ \\forall |∪ \\cup |∩ \\cap |∅ \\emptyset |∖ \\setminus |° "
    "^\\circ |˚ ^\\circ |º ^\\circ |"
    "′ '|’ '|″ ''|⌊ \\lfloor |⌋ \\rfloor |⌈ \\lceil |⌉ \\rceil |¢ \\cent |ℝ \\mathbb{R}|ℤ \\mathbb{Z}|ℕ \\mathbb{N}|"
    "ℚ \\mathbb{Q}|ℂ \\mathbb{C}|"
    "¬ \\neg |∠ \\angle |△ \\triangle |∨ \\lor |∧ \\land ").split("|")))
SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b\u207f]+")
ROOT = re.compile("\u221a(?:\\(([^()]*)\\)|(\\d+|\\w))")
VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
MACRO = r"\\(?:text\w*|mathrm|mathnormal|mbox|operatorname\*?|rm)"
FONT = r"\\(?:mathbf|mathit|mathsf|boldsymbol|bm|underline|textbf|textit)"
CANONICAL = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"^\s*\*\*(.*)\*\*\s*$", r"\1"), (r",\s*\\!\s*|\\text\{,\}|\{\s*,\s*\}", "{,}"), (r"(?<!\\)\\!", ""),
    (r"\{:\}", ":"),
    (r"(?<!\\)\\(?:left|right) *\.", " "), (r"(?<!\\)(?:\\[()\[\]]|\$)|\\\$(?=\s*$)", " "),
    (r"~|(?<!\\)\\[,;: \n]|\\q?quad|"
     r"\\(?:left|right|[bB]igg?[lrm]?|(?:display|text|script)style|limits|mathstrut)(?![A-Za-z])", " "),
    (r"(?<!\\)\\\\(?=(?:[dt]?frac|sqrt|text|pi|cdot|times|left|right|begin|end)(?![A-Za-z]))", r"\\"),
    (r"\\[dtc]frac", r"\\frac"), (r"\\[dt]binom", r"\\binom"), (r"\\varnothing", r"\\emptyset"), (r"(?<!\\)%", r"\\%"),
    (r"\\(?:not *=|neq?(?![A-Za-z]))", r"\\ne "), (r"\\not *\\in(?![A-Za-z])", r"\\notin "),
    (r"\\leq(?:slant|q)?(?![A-Za-z])|<=", r"\\le "),
    (r"\\geq(?:slant|q)?(?![A-Za-z])|>=", r"\\ge "), (r"\\lt(?![A-Za-z])", "<"), (r"\\gt(?![A-Za-z])", ">"),
    (r"\*\*", "^"),
    (r"\^(\{[^{}]*\}|\w)_(\{[^{}]*\}|\w)", r"_\2^\1"), (r"(?<![\w}\]])\{(\w|\\[A-Za-z]+)\}(?=_)", r"\1"),
    (r"\bnp\.", ""),
    (r"(?:\{\}|(?<![\w}]))_\{?(\w+)\}?C_\{?(\w+)\}?", r"\\binom{\1}{\2}"), (r"\\sqrt\(([^()]*)\)", r"\\sqrt{\1}"),
    (rf"({MACRO}|{FONT}) +\{{", r"\1{"), (rf"{FONT}\{{([^{{}}]*)\}}", r"{\1}"), (r"\s+", " "),
    (r" ?([-+*/=<>;:()\[\]^_|]) ?", r"\1"), (r" ?, (?!\d{3}(?!\d))| ,", ","), (r"([_^])\{(\w)\}(?!\w)", r"\1\2"),
    (r"(?i)^(?:the )?(?:final )?answer ?(?:is ?:?|[:=]) ?", ""), (r"^\{([^{}\\,]*)\}$", r"\1"))]


LABEL = re.compile(rf"(?:{MACRO}|{FONT})\{{"
                   r"(?![^{}]*\b(?:not|\w+n't|no|none|incorrect|wrong|false|never|except|but|anything)\b)"
                   r"[^{}]*(?:[:=]|\bis|\bare) *\} *(?=.)")


@functools.lru_cache(4096)
def normalize(answer: str) -> str:
    """One form for what prints alike: NFKC, digits of any script, no invisible characters, spacing, delimiters, fonts
    or punctuation at the end."""
    if not answer.isascii():
        compatible = functools.partial(unicodedata.normalize, "NFKC")
        answer = VULGAR.sub(lambda match: "\\frac{%s}{%s}" % tuple(compatible(match.group()).split("\u2044")), answer)
        answer = SUPERSCRIPT.sub(lambda match: f"^{{{compatible(match.group())}}}", answer)         # x\u00b2 is not x2
        answer = ROOT.sub(r"\\sqrt{\1\2}", answer).translate(SYMBOLS)
        answer = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char
                         for char in compatible(answer).translate(SYMBOLS) if unicodedata.category(char) != "Cf")
    for pattern, replacement in CANONICAL:
        answer = pattern.sub(replacement, answer)
    answer = answer.strip()
    if label := LABEL.match(answer):                    # "The answer is", unless it denies
        answer = answer[label.end():]
    return answer.rstrip(".,;: ")


PLAIN_NUMBER = re.compile(r"([+-]?)(?:(\d{1,300})(?:\.(\d{0,300}))?|\.(\d{1,300})"
                          r"|\\frac\{(\d{1,300})\}\{(\d{1,300})\})")


def as_fraction(text: str) -> Fraction | None:
    """A normalised plain decimal or \\frac{1}{2} as an exact number; None for anything else, which `Parser` reads."""
    match = PLAIN_NUMBER.fullmatch(text)
    if not match:
        return None
    sign, whole, decimals, bare, above, below = match.groups()
    decimals = decimals or bare or ""
    if below and not int(below):
        return None
    value = Fraction(int(above), int(below)) if below else Fraction(int((whole or "") + decimals), 10 ** len(decimals))
    return -value if sign == "-" else value


def compare_exact(answer: str, gold: str) -> bool | None:
    """True or False if two normalised texts are settled as text or as plain numbers, None if they must be read."""
    if answer == gold:
        return bool(answer)
    a, b = as_fraction(answer), as_fraction(gold)
    return None if a is None or b is None else a == b


# -------------------------------------------------------------------------------- text to tokens

class Token(NamedTuple):
    kind: str                                           # "number" | "letter" | "word" | "sign"
    # as it is compared: a letter with its index and primes, a word in small letters
    text: str
    value: object = None                                # of a number: a tree


NUMBER = (r"(?:\d{{1,3}}(?:{separator}\d{{3}})+(?!\d)|\d+)(?:\.\d*)?|\.\d+")
LEXEME = {joined: re.compile(
    rf"(?P<base>(?:{MACRO}\{{\d+\}}|\(\d+\)|\d(?:\d|\{{,\}})*)_(?:\d|\{{\(?\d+\)?\}}|\{{{MACRO}\{{\d+\}}\}})"
    rf"|(?:{MACRO}\{{(?=[A-F]*\d)[\dA-F]+\}}|\((?=[A-F]*\d)[\dA-F]+\)|\d[\dA-F]*)_\{{\(?(?:1[1-9]|2\d|3[0-6])\)?\}})"
    rf"|(?P<number>{NUMBER.format(separator=separator)})"
    rf"|(?P<macro>{MACRO}|{FONT}|\\math(?:bb|cal|frak|scr))(?![A-Za-z])"
    r"|(?P<command>\\[A-Za-z]+|\\.)|(?P<run>[A-Za-z]+)|(?P<sign>\S)", re.DOTALL)
    for joined, separator in ((False, r"(?:\{,\}| )"), (True, r"(?:\{,\}|,| )"))}
PERIOD = re.compile(r"\\(?:overline|bar|dot)(?:\{(\d{1,50})\}|(\d))|\((\d{1,50})\)")
POWER_OF_TEN = re.compile(r"[eE]([+-]?\d{1,4})(?![\w.])")
RENAMED = dict(pair.split() for pair in (
    "\\cdot *|\\times *|\\ast *|\\div /|; ,|\\colon :|\\lbrace \\{|\\rbrace \\}|\\lbrack [|\\rbrack ]|\\lor or|\\vee "
    "or|\\land and|\\wedge and|"
    "\\varphi \\phi|\\varepsilon \\epsilon|\\vartheta \\theta|\\varrho \\rho|\\degree ^\\circ|\\mod \\bmod|\\tg "
    "\\tan|\\ctg \\cot|"
    "\\lg \\log10|\\simeq \\approx").split("|")) | {"\\lvert": "|", "\\rvert": "|", "\\vert": "|"}
FUNCTIONS = ("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp gcd lcm max min sqrt").split()
LETTERS = {name.strip(" \\") for name in GREEK.values()} | set(
    "ell hbar partial nabla angle triangle odot infty emptyset imath jmath Re Im aleph".split())
ARGUMENTS = ("\\frac", "\\binom", "\\sqrt")
ACCENTS = [f"\\{name}" for name in "overline bar vec hat tilde dot ddot overrightarrow widehat mathring".split()]
INDEX = re.compile(r"'|_(?=(\{)|(\\[A-Za-z]+|\w))|\^\{?(?:(?:\\prime ?)+|'+)\}?")
JOINERS = {"and": "and", "or": "or", "to": ":"}
BARE_WORDS = set(                                       # units that need no \text{}
    "cm km kg mm ft inch inches feet foot yard yards mile miles meter meters metre metres centimeters cent cents "
    "dollar dollars "
    "usd yuan unit units degree degrees radians second seconds min minute minutes hour hours day days week weeks "
    "month months "
    "year years people students way ways points square cubic sq mph percent pct percentage litre litres liter liters "
    "gram grams "
    "am pm".split())


def group_end(text: str, start: int) -> int:
    """Where the brace group whose `{` is at `start` ends, its `}` included."""
    depth = 0
    for i in range(start, len(text)):
        if text[i] in "{}" and text[i - 1 : i] != "\\":
            depth += 1 if text[i] == "{" else -1
            if not depth:
                return i + 1
    raise Unread("a brace is missing")


def bare(text: str) -> str:
    """An index or the argument of an accent without fonts, spaces and braces."""
    return re.sub(rf"{MACRO}(?![A-Za-z])|{FONT}(?![A-Za-z])|[\s{{}}]|\\(?=(?:max|min|lim)\b)", "", text)


def number(text: str, written: str, end: int) -> tuple[tuple, int]:
    """The tree of the number `written` that ends at `end` of `text`, with a period and a power of ten that follow,
    and where these end."""
    whole, dot, decimals = re.sub(r"[^\d.]", "", written).partition(".")
    value = Fraction(int(whole + decimals or 0), 10 ** len(decimals))
    if dot and (period := PERIOD.match(text, end)):
        digits, end = period[1] or period[2] or period[3], period.end()
        value += Fraction(int(digits), (10 ** len(digits) - 1) * 10 ** len(decimals))
    if power := POWER_OF_TEN.match(text, end):
        value, end = value * Fraction(10) ** int(power[1]), power.end()
    return ("n", value), end


def base_tree(text: str) -> tuple:
    digits, _, base = text.rpartition("_")
    digits, base = re.sub(rf"{MACRO}|[^\dA-F]", "", digits), int(re.sub(r"\D", "", base))
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        return ("base", None, base, digits)             # 42_{60} or 19_2: a numeral that stands for itself only
    return ("base", Fraction(int(digits, base)), base, digits.lstrip("0"))


def tokenize(text: str, joined: bool = False, roman: bool = False, tokens: list[Token] | None = None) -> list[Token]:
    """Tokens of a normalised text, added to `tokens`; `joined` reads 1,234 as one number, in `roman` text a run of
    letters is a word. Raises Unread."""
    tokens, i = [] if tokens is None else tokens, 0

    def letter(name: str) -> None:
        nonlocal i
        index = primes = ""
        while match := INDEX.match(text, i):
            if match.group()[0] == "_":
                end = group_end(text, match.end()) if match[1] else match.end() + len(match[2])
                index, i = index + bare(text[match.end():end]), end
            else:
                primes, i = primes + "'" * (match.group().count("'") + match.group().count("\\prime")), match.end()
        tokens.append(Token("letter", name + (f"_{index}" if index else "") + primes))

    while i < len(text):
        if text[i].isspace():
            i += 1
            continue
        match = LEXEME[joined].match(text, i)
        i = match.end()
        if match["base"]:
            tokens.append(Token("number", match["base"], base_tree(match["base"])))
        elif match["number"]:
            if tokens and is_sign(tokens[-1], *ARGUMENTS) \
                    or tokens[1:] and tokens[-1].kind != "sign" and is_sign(tokens[-2], *ARGUMENTS[:2]):
                i = match.start() + 1                   # \frac12: its arguments are digits
            tree, i = number(text, text[match.start():i], i)
            tokens.append(Token("number", text[match.start():i], tree))
        elif macro := match["macro"]:
            if text[i : i + 1] != "{":
                if macro.startswith("\\math") or macro == "\\rm":
                    continue                            # \mathrm A: what follows is read by itself
                raise Unread(macro)
            end = group_end(text, i)
            content, i = text[i + 1 : end - 1].strip(), end
            if macro in ("\\mathbb", "\\mathcal", "\\mathfrak", "\\mathscr"):
                letter(f"{macro}{content}")
            elif content.lower() in UNIT_NAMES and after_operand(tokens):
                tokens.append(Token("word", content))
            elif content in FUNCTIONS or content in ("mod", "bmod"):
                tokens.append(Token("sign", f"\\{content}" if content in FUNCTIONS else "\\bmod"))
            elif re.fullmatch(r"[A-Z]{2,}", content) and content.lower() not in (*UNIT_NAMES, "am", "pm"):
                tokenize(content, joined, tokens=tokens)
            elif re.fullmatch(r"[A-Za-z]", content):
                letter(content)
            elif re.match(FONT, macro) and not re.fullmatch(r"[A-Za-z ]{3,}", content):
                tokens.append(Token("sign", "{"))
                tokenize(content, joined, tokens=tokens)
                tokens.append(Token("sign", "}"))
            elif re.search(r"[\d\\${}^=<>()]", content):
                tokenize(content, joined, True, tokens)
            else:
                words(tokens, content)
        elif run := match["run"]:
            before = text[match.start() - 1 : match.start()]
            spaced = before in (" ", "}", ")") or before.isdigit() and run.endswith(("cm", "km", "kg", "mm", "s"))
            if after_operand(tokens) and (run.lower() in BARE_WORDS and spaced or roman and run.lower() in UNIT_NAMES):
                words(tokens, run)
            elif run in FUNCTIONS:
                tokens.append(Token("sign", f"\\{run}"))
            elif run == "pi":
                tokens.append(Token("letter", "\\pi"))
            elif run in JOINERS and tokens:
                tokens.append(Token("sign", JOINERS[run]))
            elif run == "mod":
                tokens.append(Token("sign", "\\bmod"))
            elif roman and len(run) > 1:
                words(tokens, run)
            elif run == "USD" and not tokens:
                tokens.append(Token("sign", "\\$"))
            else:
                i = match.start()
                while i < match.end():
                    i += 1
                    letter(text[i - 1])
        elif (name := RENAMED.get(match.group(), match.group())) in ("\\bmod", "\\pmod"):
            tokens.append(Token("sign", name))
        elif name in ACCENTS:
            end = group_end(text, i) if text[i : i + 1] == "{" else i + 1
            content, i = bare(text[i:end]), end
            letter(f"{name}({content})")
        elif name[1:] in LETTERS and name[0] == "\\":
            letter(name)
        elif name == "^\\circ":
            tokens += [Token("sign", "^"), Token("sign", "\\circ")]
        elif name:
            tokens.append(Token("sign", name))
    return tokens


def after_operand(tokens: list[Token]) -> bool:
    """Whether what follows these tokens can be a unit."""
    return bool(tokens) and (tokens[-1].kind != "sign" or is_sign(tokens[-1], *")}]!/*", "\\}", "\\%"))


def words(tokens: list[Token], content: str) -> None:
    """Adds the words of a \\text{}: "and", "or", "to", commas at its ends are signs, the rest is one word token."""
    content = " ".join(content.lower().split())
    start, middle, end = re.fullmatch(r"((?:(?:and|or|to)\b|[,;])?)(.*?)((?:\b(?:and|or|to)|[,;])?)", content).groups()
    tokens += [Token("sign", JOINERS.get(start, ","))] if start else []
    tokens += [Token("word", middle.strip(" ,"))] if middle.strip(" ,") else []
    if end:
        tokens += [Token("sign", JOINERS.get(end, ","))]


# -------------------------------------------------------------------------------- units

UNIT_NAMES = {spelling: names.split()[0] for names in (
    "m meter metre|cm centimeter centimetre|mm millimeter millimetre|km kilometer kilometre|in inch inches|ft foot "
    "feet|yd yard|mi mile|"
    "g gram gramme|kg kilogram kilo|mg milligram|lb pound|oz ounce|l liter litre L|ml milliliter millilitre|gallon gal|"
    "s second sec|min minute|h hour hr|day|week|month|year yr|dollar $ usd|cent|degree deg|radian rad|percent pct "
    "percentage|unit|"
    "newton N n|joule J j|watt W w|volt V v|K kelvin|A amp ampere|Hz hertz|Pa pascal|C coulomb|T tesla|F farad|ohm|"
    "person people").split("|") for spelling in names.split()}
FRACTION = re.compile(r"halves|(?:thir|quarter|\w*[fnxhe]th)[ds]?s\b|\bun\w+ly\b")
NO_UNIT = set(                                          # words of numbers, conditions, doubts and denials
    "hundred thousand million billion trillion dozen pair pairs couple half twice double doubled triple tripled "
    "halved squared "
    "cubed factorial times plus minus mod modulo base to negative positive more less least most over under above "
    "below than "
    "if unless except when only or but else other otherwise maybe perhaps probably is isn't are not no never false "
    "wrong "
    "incorrect i e x".split())


def unit_of_words(phrase: str, unit: dict[str, int], sign: int) -> int:
    """Adds the units of a phrase such as "square miles per hour" to `unit`; returns the sign of what follows (-1
    after "per")."""
    power = 1
    if NO_UNIT & set(re.findall(r"[\w']+", phrase)) or FRACTION.search(phrase) and not phrase.startswith("month"):
        raise Unread(phrase)
    for word in re.findall(r"/|[^\s/]+", phrase):
        name = word.rstrip(".,")
        if name == "mph":
            unit |= {"mi": 1, "h": -1}
        elif word in ("/", "per"):
            sign = -1
        elif name in ("square", "sq", "cubic", "cu"):
            power = 2 if name[0] == "s" else 3
        elif found := UNIT_NAMES.get(name) or UNIT_NAMES.get(name.removesuffix("s")):
            unit[found] = unit.get(found, 0) + sign * power
            power = 1
        elif unit:                                      # miles from City A
            break
        else:
            unit[phrase] = 1                            # red and blue marbles: a unit of its own
            break
    return sign


# -------------------------------------------------------------------------------- tokens to trees

RELATIONS = ("=", "<", ">", "\\le", "\\ge", "\\ne", "\\in", "\\notin", "\\approx", "\\equiv")
OPENING = ("(", "[", "{", "\\{", "\\lfloor", "\\lceil", "\\langle", "\\begin")
CLOSING = (")", "]", "}", "\\}", "\\rfloor", "\\rceil", "\\rangle", "\\end")
# letters that are functions, whatever is in the brackets that follow
APPLIED = re.compile(r"f(?:_\w+)?|.*'")
MIXED = re.compile(r"(\d+) (?:(\d+) / (\d+) |\\frac (?:\{ )?(\d+) (?:\} )?(?:\{ )?(\d+) (?:\} )?(?![\^!]))")
DEGREE, ONE = (("degree", 1),), ("n", Fraction(1))


def is_sign(token: Token | None, *texts: str) -> bool:
    return token is not None and token.kind == "sign" and token.text in texts


def split(tokens: list[Token], *separators: str) -> tuple[list[list[Token]], list[str]]:
    """The parts of `tokens` between separators outside brackets, and the separators."""
    parts, found, depth, start = [], [], 0, 0
    for i, token in enumerate(tokens):
        depth += is_sign(token, *OPENING) - is_sign(token, *CLOSING)
        if depth == 0 and is_sign(token, *separators):
            parts.append(tokens[start:i])
            found.append(token.text)
            start = i + 1
    return [*parts, tokens[start:]], found


def closing(tokens: list[Token], start: int) -> int:
    """Where the bracket that opens at `start` is closed."""
    depth = 0
    for i in range(start, len(tokens)):
        depth += is_sign(tokens[i], *OPENING) - is_sign(tokens[i], *CLOSING)
        if depth == 0:
            return i
    raise Unread("a bracket is missing")


def canonical(tokens: list[Token]) -> str:
    return " ".join(token.text for token in tokens)


class Parser:
    """Reads one side of a relation into a tree, by recursive descent. Trees are tuples that begin with their kind:

    n number, v letter, + * / ^ neg, f function, u quantity with its unit, base numeral, tuple with its brackets, set,
    union, ratio or clock, matrix, sum, eq and rel for relations.
    """

    def __init__(self, tokens: list[Token], bars: bool = False):
        self.tokens, self.i, self.bars = tokens, 0, bars        # bars: inside |...|, where a bar closes and cannot open

    def peek(self) -> Token | None:
        return self.tokens[self.i] if self.i < len(self.tokens) else None

    def at(self, *texts: str) -> bool:
        return is_sign(self.peek(), *texts)

    def take(self, *texts: str) -> bool:
        found = self.at(*texts)
        self.i += found
        return found

    def whole(self) -> tuple:
        """All tokens as one tree."""
        if not self.tokens:
            raise Unread("nothing")
        for sign in ("\\choose", "\\over"):
            if found := split(self.tokens, sign)[1]:
                above, *below = (Parser(part).whole() for part in split(self.tokens, sign)[0])
                if len(found) > 1:
                    raise Unread(sign)
                return ("f", "binom", above, *below) if sign == "\\choose" else ("/", above, *below)
        tree = self.union()
        if self.peek() is not None:
            raise Unread(self.peek().text)
        return tree

    def union(self) -> tuple:
        parts = [self.sum()]
        while self.at("\\cup", "\\cap", "\\setminus", "\\backslash"):
            sign = self.peek().text
            self.i += 1
            right = self.sum()
            if sign == "\\cup":
                parts.append(right)
            else:
                parts = [(sign, ("union", *parts) if len(parts) > 1 else parts[0], right)]
        return ("union", *parts) if len(parts) > 1 else parts[0]

    def sum(self) -> tuple:
        tree = self.term()
        while self.at("+", "-"):
            minus = self.take("-") or not self.take("+")
            right = self.term()
            tree = ("+", tree, ("neg", right) if minus else right)
        return tree

    def term(self) -> tuple:
        if self.take("-"):
            return ("neg", self.term())
        if self.take("+"):
            return self.term()
        if self.take("\\$"):
            return ("u", self.term(), (("dollar", 1),))
        tree = last = self.factor(first=True)
        while (token := self.peek()) is not None:
            if self.at("*", "/"):
                sign = self.peek().text
                self.i += 1
                last = ("neg", self.factor()) if self.take("-") else self.factor()
                tree = (sign, tree, last)
            elif self.take("\\bmod"):
                tree = last = ("f", "mod", tree, self.factor())
            elif token.kind == "word" or self.at("\\cent") \
                    or self.at("\\frac") and self.tokens[self.i + 2 :][:1] and self.tokens[self.i + 2].kind == "word":
                return ("u", tree, self.unit())
            elif self.starts_factor(token):
                if token.kind == "number" and last[0] in ("n", "base", "u"):
                    raise Unread("two numbers side by side")
                last = self.factor()
                tree = ("*", tree, last)
            else:
                break
        return tree

    def starts_factor(self, token: Token) -> bool:
        if token.kind == "sign":
            return token.text in OPENING or token.text in STARTERS or token.text == "|" and not self.bars
        return True

    def mixed(self) -> tuple | None:
        """A mixed number, 2\\frac{1}{2} or 2 1/2, if one begins here."""
        match = MIXED.match(" ".join(token.text for token in self.tokens[self.i : self.i + 8]) + " ")
        if not match or not 0 < int(match[2] or match[4]) < int(match[3] or match[5]):
            return None
        self.i += match.group().count(" ")
        return ("n", int(match[1]) + Fraction(int(match[2] or match[4]), int(match[3] or match[5])))

    def factor(self, first: bool = False) -> tuple:
        tree = first and self.mixed() or self.base()
        while (token := self.peek()) is not None and token.kind == "sign":
            if self.take("^"):
                if self.take("\\circ") or canonical(self.tokens[self.i : self.i + 3]) == "{ \\circ }":
                    self.i += 3 * self.at("{")
                    tree = ("u", tree, DEGREE)
                    continue
                exponent = ("neg", self.factor()) if self.take("-") else self.power()
                tree = ("^", tree, exponent)
            elif self.take("!"):
                tree = ("f", "double factorial" if self.take("!") else "factorial", tree)
            elif self.take("\\%"):
                tree = ("u", tree, (("percent", 1),))
            else:
                break
        return tree

    def power(self) -> tuple:
        """An exponent: powers of powers bind to the right."""
        tree = self.base()
        return ("^", tree, self.power()) if self.take("^") else tree

    def unit(self) -> tuple:
        """A unit after a quantity, as sorted (name, power) pairs; reads on until something is no unit."""
        unit, sign = {}, 1
        while (token := self.peek()) is not None:
            if token.kind == "word":
                self.i += 1
                sign = unit_of_words(token.text, unit, sign)
            elif self.take("\\cent"):
                unit["cent"] = 1
            elif self.take("/"):
                sign = -1
            elif self.take("*"):
                pass
            elif self.take("\\frac"):
                for sign in (1, -1):
                    end = closing(self.tokens, self.i)
                    inner = Parser(self.tokens[self.i + 1 : end]).unit()
                    self.i = end + 1
                    for name, power in inner:
                        unit[name] = unit.get(name, 0) + sign * power
            elif self.at("^") and unit:
                self.i += 1
                exponent = value_at(("neg", self.base()) if self.take("-") else self.base(), Point(0))
                name = list(unit)[-1]
                unit[name] = unit[name] * int(exponent)
            else:
                break
        return tuple(sorted(unit.items()))

    def base(self) -> tuple:
        token = self.peek()
        if token is None:
            raise Unread("something is missing at the end")
        self.i += 1
        if token.kind == "number":
            return token.value
        if token.kind == "letter":
            return self.letter(token)
        if token.kind == "word":
            if " " in token.text:
                raise Unread(token.text)
            return ("v", f"text {token.text}")
        sign = token.text
        if sign in ("(", "[", "{", "\\{", "\\lfloor", "\\lceil", "\\langle"):
            end = closing(self.tokens, self.i - 1)
            inner, self.i = self.tokens[self.i : end], end + 1
            return bracket(sign, inner, self.tokens[end].text)
        if sign == "|":
            depth, end = 0, self.i
            while end < len(self.tokens) and (depth or not is_sign(self.tokens[end], "|")):
                depth += is_sign(self.tokens[end], *OPENING) - is_sign(self.tokens[end], *CLOSING)
                end += 1
            inner, self.i = self.tokens[self.i : end], end + 1
            if end == len(self.tokens):
                raise Unread("a bar is missing")
            return ("f", "abs", Parser(inner, bars=True).whole())
        if sign == "\\frac":
            tokens, start = self.tokens, self.i
            above, below = self.base(), self.base()
            inner = [token.text for token in tokens[start : self.i]]
            derivative = re.fullmatch(r"\{ d .*\} \{ d \S+( \^.*)? \}", " ".join(inner))
            if derivative and above[0] in "*v^" and below[0] in "*v":
                above, below = replaced(above, {"d": "d above"}), replaced(below, {"d": "d below"})
            return ("/", above, below)
        if sign == "\\binom":
            return ("f", "binom", self.base(), self.base())
        if sign == "\\sqrt":
            if self.at("["):
                end = closing(self.tokens, self.i)
                root, self.i = Parser(self.tokens[self.i + 1 : end]).whole(), end + 1
            else:
                root = ("n", Fraction(2))
            inside = self.base() if self.at("(") else self.base()
            return ("^", inside, ("/", ONE, root))
        if sign in ("\\sum", "\\prod", "\\int", "\\lim"):
            return self.sum_or_integral(sign[1:])
        if sign == "\\begin":
            return self.matrix()
        if sign == "\\neg":
            raise Unread(sign)
        if sign[1:] in FUNCTIONS or sign == "\\log10":
            return self.function(sign[1:])
        raise Unread(sign)

    def letter(self, token: Token) -> tuple:
        """A letter, or a function of what follows in brackets: f(2), P(X=1), but k(k+1) is a product."""
        if self.at("("):
            end = closing(self.tokens, self.i)
            inner = self.tokens[self.i + 1 : end]
            parts = split(inner, ",")[0]
            if len(parts) > 1 or token.text not in CONSTANTS and (len(inner) == 1 or APPLIED.fullmatch(token.text)):
                self.i = end + 1
                return ("f", f"letter {token.text}", *map(member, parts))
        if token.text == "\\emptyset":
            return ("set",)
        return ("v", token.text)

    def function(self, name: str) -> tuple:
        """\\sin x, \\sin^2(x), \\log_2 8, \\max(a,b): without brackets the argument is the product that follows."""
        base = power = None
        while self.at("_", "^"):
            if self.take("_"):
                base = self.base()
            else:
                self.i += 1
                power = ("neg", self.base()) if self.take("-") else self.base()
        if power == ("neg", ONE) and name in ("sin", "cos", "tan"):
            name, power = f"arc{name}", None
        if self.at("(", "{", "["):
            tree = self.base()
            arguments = tree[2:] if tree[0] == "tuple" else (tree,)
        else:
            tree = self.factor()
            while (token := self.peek()) is not None and self.starts_factor(token) and token.kind != "word" \
                    and token.text[1:] not in FUNCTIONS:
                tree = ("*", tree, self.factor())
            arguments = (tree,)
        if name == "log10":
            name, base = "log", ("n", Fraction(10))
        if name == "exp":
            tree = ("^", ("v", "e"), *arguments)
        elif name == "sqrt":
            tree = ("^", *arguments, ("n", Fraction(1, 2)))
        elif name in ("ln", "log"):
            tree = ("f", "ln", *arguments)
            tree = ("/", tree, ("f", "ln", base)) if base else tree
        else:
            tree = ("f", name, *arguments)
        return ("^", tree, power) if power else tree

    def sum_or_integral(self, name: str) -> tuple:
        """\\sum_{k=1}^{n} with the product that follows, \\int with all that follows up to its d, \\lim_{x\\to 0}."""
        lower, upper, letter = ("v", "none"), ("v", "none"), "k"
        while self.at("_", "^"):
            below = self.take("_") or not self.take("^")
            if self.at("{"):
                end = closing(self.tokens, self.i)
                inner, self.i = self.tokens[self.i + 1 : end], end + 1
            else:
                inner, self.i = self.tokens[self.i : self.i + 1], self.i + 1
            if below and len(inner) > 2 and inner[0].kind == "letter" and is_sign(inner[1], "=", "\\to"):
                letter, inner = inner[0].text, inner[2:]
            tree = Parser(inner).whole()
            lower, upper = (tree, upper) if below else (lower, tree)
        if name == "int":
            ends = [j for j in range(self.i, len(self.tokens) - 1)
                    if self.tokens[j].text == "d" and self.tokens[j + 1].kind == "letter"]
            if not ends:
                raise Unread("an integral without its d")
            end, letter = ends[-1], self.tokens[ends[-1] + 1].text
            body, self.i = Parser(self.tokens[self.i : end]).whole() if end > self.i else ONE, end + 2
        else:
            body = self.term()
        return ("sum", name, letter, lower, upper, body)

    def matrix(self) -> tuple:
        """\\begin{pmatrix} or an array as rows of trees; cases are read by `statements`."""
        end = closing(self.tokens, self.i - 1)
        close = closing(self.tokens, self.i)
        name, inner = "".join(token.text for token in self.tokens[self.i + 1 : close]), self.tokens[close + 1 : end]
        self.i = closing(self.tokens, end + 1) + 1
        if name == "array":
            inner = inner[closing(inner, 0) + 1 :]
        elif name not in ("pmatrix", "bmatrix", "matrix"):
            raise Unread(name)
        rows = [row for row in split(inner, "\\\\")[0] if row]
        return ("matrix", *(tuple(Parser(cell).whole() for cell in split(row, "&")[0]) for row in rows))


STARTERS = {f"\\{name}" for name in (*"frac sqrt binom sum prod int lim begin log10".split(), *FUNCTIONS)}


def bracket(opened: str, inner: list[Token], closed: str) -> tuple:
    """What stands in brackets: a group, a point, an interval, a set, a floor."""
    if opened in ("\\lfloor", "\\lceil"):
        return ("f", opened[2:], Parser(inner).whole())
    if opened == "\\{":
        return braces(inner)
    parts = split(inner, ",")[0]
    if len(parts) == 1 and (opened == "{" or opened + closed in ("()", "[]")):
        return Parser(inner).whole()
    if opened == "{":
        return ("set", *(member(part) for part in parts))       # {1,2} for \{1,2\}
    if any(is_sign(token, "=") for token in inner):
        raise Unread("an equation in a point")
    return ("tuple", opened.removeprefix("\\")[0] + closed.removeprefix("\\")[0], *(member(part) for part in parts))


def braces(inner: list[Token]) -> tuple:
    """A set by its members or by a condition."""
    if not inner:
        return ("set",)
    parts, found = split(inner, "\\mid", "|", ":")
    if len(found) == 1 and len(parts[0]) in (1, 3):
        condition, domain = parts[1], parts[0][2:] if len(parts[0]) == 3 and is_sign(parts[0][1], "\\in") else []
        if parts[0][0].kind == "letter":
            tree = member(condition)
            return tree if not domain or domain[0].text == "\\mathbbR" else ("such", canonical(domain), tree)
    return ("set", *(tree for part in split(inner, ",")[0] for tree in expanded(part)))


def expanded(tokens: list[Token]) -> list[tuple]:
    """The members that a part with \\pm stands for: one with the upper, one with the lower signs."""
    if not any(is_sign(token, "\\pm", "\\mp") for token in tokens) or is_sign(tokens[0], "\\{"):
        return [member(tokens)]                         # a set expands its own members
    return [member([Token("sign", signs[token.text]) if is_sign(token, "\\pm", "\\mp") else token for token in tokens])
            for signs in ({"\\pm": "+", "\\mp": "-"}, {"\\pm": "-", "\\mp": "+"})]


def member(tokens: list[Token]) -> tuple:
    """One member of a list: a value, a ratio, or a relation."""
    sides, signs = split(tokens, *RELATIONS)
    if not signs:
        return value(tokens)
    if not sides[0]:
        raise Unread("a relation without a left side")
    if "\\equiv" in signs or "\\notin" in signs:
        raise Unread(signs[0])
    if set(signs) <= {"=", "\\in", "\\approx"}:
        return equation(sides, signs)
    if all(sign in ("<", "\\le", ">", "\\ge", "\\ne") for sign in signs):
        return inequality([value(side) for side in sides], signs)
    raise Unread("mixed relations")


def value(tokens: list[Token]) -> tuple:
    """One side: a tree, or a ratio or clock time with its parts."""
    parts = split(tokens, ":")[0]
    if len(parts) == 1:
        if split(tokens, "\\choose", "\\over")[1]:
            return Parser(tokens).whole()
        quantities, rest = [], Parser(tokens)
        while rest.peek() is not None or not quantities:
            quantities.append(rest.union())
            if rest.peek() is not None and (quantities[-1][0] != "u" or rest.peek().kind != "number"):
                raise Unread(rest.peek().text)
        if len(quantities) > 1 and quantities[-1][0] != "u":
            raise Unread("a quantity without its unit")
        return quantities[0] if len(quantities) == 1 else ("quantities", *quantities)
    half = ""
    if parts[-1] and parts[-1][-1].kind == "word" and (word := re.sub(r"[. ]", "", parts[-1][-1].text)) in ("am", "pm"):
        half, parts[-1] = word, parts[-1][:-1]
    clock = re.fullmatch(r"(?:1?\d|2[0-4]):[0-5]\d", ":".join(map(canonical, parts)))
    return ("clock" if clock else "ratio", half, *(Parser(part).whole() for part in parts))


def is_name(side: list[Token]) -> bool:
    """Whether a side of an equation only names the value: letters or words, no number but in an index or in brackets,
    no sign before, no known function."""
    depth, letters = 0, False
    for i, token in enumerate(side):
        depth += is_sign(token, *OPENING[:2]) - is_sign(token, *CLOSING[:2])
        if depth == 0:
            letters |= token.kind in ("letter", "word")
            if token.kind == "number" or token.text[1:] in FUNCTIONS \
                    or len(side) == 1 and token.text in ("\\pi", "\\infty", "\\pm", "e", "i"):
                return False
    return letters and not is_sign(side[0], "+", "-") or bool(side) and is_sign(side[0], "(") and all(
        token.kind == "letter" or is_sign(token, "(", ")", ",") for token in side)


def equation(sides: list[list[Token]], signs: list[str]) -> tuple:
    """("eq", names, values, sides): texts of the sides that are names, trees of the others, trees of all (None for
    what is no formula)."""
    bound = {}
    if len(sides) == 2 and [token.kind for token in sides[0][:3]] == ["letter", "sign", "letter"]:
        arguments = [token.text for token in sides[0][2:-1] if token.kind == "letter"]
        if canonical(sides[0][1:]) == f"( {' , '.join(arguments)} )" and len(arguments) == len(set(arguments)):
            bound = {name: f"argument {k}" for k, name in enumerate(arguments)}     # f(x) = 2x and f(t) = 2t are one
            sides = [[token._replace(text=bound.get(token.text, token.text)) for token in side] for side in sides]
    names, values, trees, letters = [], [], [], set()
    for side, sign in zip(sides, ["=", *signs]):
        tree = None
        try:
            tree = value(side)
        except Unread:
            if not is_name(side):
                raise
        if sign == "\\approx" and trees and not is_name(sides[len(trees) - 1]) and is_near(tree, trees[-1], side):
            continue                                    # sqrt(3)/3 = 0.577, nearly
        trees.append(tree)
        if is_name(side):
            names.append(canonical(side))
            depth = 0
            for token in side:
                depth += is_sign(token, "(") - is_sign(token, ")")
                letters |= {token.text} if token.kind == "letter" and depth == 0 else set()
        else:
            values.append(tree)
    if len(trees) == 1:
        return trees[0]
    if not values and len(trees) == 2 and trees[1] and len(sides[1]) > 1 and trees[0] and trees[0][0] in ("v", "f") \
                and not letters_of(trees[0]) & letters_of(trees[1]):
        # F = ma: the letter names the product
        names, values, letters = names[:1], trees[1:], letters_of(trees[0])
    if names and values and letters & letters_of(values):
        names, values = [], trees                       # x = x^2 names nothing
    back = {new: old for old, new in bound.items()}
    return ("eq", frozenset(names), tuple(values), tuple(trees), tuple(back.items()))


def is_letter(tree: tuple) -> bool:
    return tree[0] == "v" and tree[1] not in CONSTANTS and tree[1] != "\\infty"


def inequality(sides: list[tuple], signs: list[str]) -> tuple:
    """Inequalities in one letter as ("eq", its name, an interval or a union of them), others as they are, rising."""
    if signs == ["\\ne"] and not is_letter(sides[0]):
        sides = sides[::-1]
    if all(sign in (">", "\\ge") for sign in signs):
        sides, signs = sides[::-1], [{">": "<", "\\ge": "\\le"}[sign] for sign in signs[::-1]]
    infinity = ("v", "\\infty")

    def interval(low: tuple, first: str, second: str, high: tuple) -> tuple:
        return ("tuple", "[("[first == "<"] + "])"[second == "<"], low, high)

    def named(letter: tuple, values: tuple) -> tuple:
        if letter[1] in letters_of(values):
            return ("rel", tuple(signs), *sides)
        return ("eq", frozenset(letter[1:]), (values,), (None,), ())

    def outside(low: tuple, sign: str, high: tuple) -> tuple:
        return ("union", interval(("neg", infinity), "<", sign, low), interval(high, sign, "<", infinity))

    if signs == ["\\ne"]:
        if is_letter(sides[0]):
            return named(sides[0], outside(sides[1], "<", sides[1]))
        return ("rel", ("\\ne",), *sides)
    if not set(signs) <= {"<", "\\le"}:
        raise Unread("relations that do not rise")
    low, high = sides[0], sides[-1]
    if len(sides) == 2:
        for letter, around in ((low, high), (high, low)):
            if letter[:2] == ("f", "abs") and letter[2][0] == "v":
                if letter is low:
                    return named(letter[2], interval(("neg", around), signs[0], signs[0], around))
                return named(letter[2], outside(("neg", around), signs[0], around))
        if is_letter(low):
            return named(low, interval(("neg", infinity), "<", signs[0], high))
        if is_letter(high):
            return named(high, interval(low, signs[0], "<", infinity))
    elif len(sides) == 3 and is_letter(sides[1]):
        return named(sides[1], interval(low, signs[0], signs[1], high))
    return ("rel", tuple(signs), *sides)


class Statement(NamedTuple):
    """What a text says: its members, whether their order counts, the domain of a letter ("" for none), the modulus of
    a congruence."""
    members: tuple
    joint: str                                          # "," | "or" | "and"
    domain: str = ""
    bound: tuple = ()                                   # letters of the domain
    modulus: tuple | None = None


SETS = {"integers": "Z", "integer": "Z", "\\mathbbZ": "Z", "reals": "R", "real": "R", "\\mathbbR": "R",
        "\\mathbbN": "N", "natural": "N", "rational": "Q", "positive": "+"}
QUANTIFIERS = set("for all any every each some arbitrary where with is are an a number numbers only values of and "
                  "nonnegative".split())
TAIL = re.compile(rf"[ ,;(]*(?:{MACRO}\{{[ ,]*(?:for\b|where|with |only)|(?<= |,|\}})for (?=[a-zA-Z])"
                  r"|where |only\b|\\forall(?![a-z])"
                  r"|(?<=[,(; ])[A-Za-z](?:,[A-Za-z])*\\in(?![a-z]))|,[A-Za-z](?:,[A-Za-z])* ?\\in(?![a-z])")
HEAD = re.compile(rf"\\forall(?![a-z])[^,]*,|{MACRO}\{{ ?(?:only|all (?:\w+ )?(?:integers?|numbers?|reals?)) ?\}}")


def cut_domain(text: str) -> tuple[str, str, tuple]:
    """`text` without its quantifiers ("for all n", ", k\\in\\mathbb{Z}", "only"), what they say of the domain, and of
    which letters."""
    head, tail = HEAD.match(text), TAIL.search(text, 1)
    parts = [(text[head.end():], head.group())] if head else []
    parts += [(text[: tail.start()], text[tail.start():])] if tail else []
    for rest, said in parts:
        flat = re.sub(r"\\mathbb ?\{?([A-Z])\}?", r" \\mathbb\1 ", said)
        flat = re.sub(rf"{MACRO}(?![A-Za-z])|\\(?:forall|in)(?![A-Za-z])|[{{}}(),.;]", " ", flat)
        tokens = flat.split()
        condition = re.search(r"(\w)((?:>|<|\\ge ?|\\le ?|\\ne ?)\d+)", flat)
        if condition and re.search(r"\b(?:all|every|any)\b|forall", said):         # for all x>0
            tokens = flat.replace(condition.group(), f" {condition[1]} ").split()
        letters = tuple(dict.fromkeys(token for token in tokens if re.fullmatch(r"[B-Zb-z]", token)))
        if not set(tokens) <= {*QUANTIFIERS, *SETS, *letters} or letters and not any(name in rest for name in letters):
            continue
        domain = "".join(sorted({SETS[token] for token in tokens if token in SETS}))
        return rest, domain + (condition[2] if condition else ""), letters
    return text, "", ()


def statement(text: str, joined: bool) -> Statement:
    """What a normalised text says. Raises Unread."""
    text, domain, bound = cut_domain(text)
    tokens = tokenize(text, joined)
    while is_sign(tokens[0] if tokens else None, "{") and closing(tokens, 0) == len(tokens) - 1:
        tokens = tokens[1:-1]
    tokens, modulus = cut_modulus(tokens)
    if canonical(tokens[:8]) == "\\begin { c a s e s }":
        tokens = [Token("sign", ",") if is_sign(token, "\\\\") else token for token in tokens[8:-8]]
    if any(is_sign(token, "<", ">", "\\le", "\\ge") for token in split(tokens, "\\cup")[0][0]):
        tokens = [Token("sign", "or") if is_sign(token, "\\cup") else token for token in tokens]         # x<2 \cup x>3
    parts, separators = split([token for token in tokens if not is_sign(token, "\\quad")], ",", "and", "or")
    parts, separators = [part for part in parts if part], set(separators)
    members = []
    for part in parts:
        if modulus is not None and any(is_sign(token, "\\equiv") for token in part):
            part = [Token("sign", "=") if is_sign(token, "\\equiv") else token for token in part]
        members += expanded(part)
    if not members or len(parts) > 1 and tokens and is_sign(tokens[0], "or"):
        raise Unread("nothing")
    joint = "or" if separators - {"and"} == {"or"} else "and" if separators == {"and"} else ","
    return Statement(tuple(members), joint, domain, bound, modulus)


def cut_modulus(tokens: list[Token]) -> tuple[list[Token], tuple | None]:
    """The tokens without a \\pmod{n} (in any spelling) at the end, and n; a \\bmod in a formula without \\equiv is an
    operation."""
    at = next((i for i, token in enumerate(tokens) if is_sign(token, "\\pmod", "\\bmod")), None)
    if at is None:
        return tokens, None
    bracketed = at > 0 and is_sign(tokens[at - 1], "(") and is_sign(tokens[-1], ")")
    if not (bracketed or tokens[at].text == "\\pmod" or any(is_sign(token, "\\equiv") for token in tokens)):
        return tokens, None
    return tokens[: at - bracketed], Parser(tokens[at + 1 : len(tokens) - bracketed]).whole()


# -------------------------------------------------------------------------------- the value of a tree at a point

BITS = 100_000                                          # of an exact number
STEPS = 20_000                                          # nodes of one evaluation, the terms of sums included
SUM_TERMS = 1000
# of the first evaluation; the second has twice as many and those of the exponents
DIGITS = 30
CONSTANTS = {"\\pi": lambda: +mp.pi, "e": lambda: +mp.e, "i": lambda: mp.mpc(0, 1), "\\imath": lambda: mp.mpc(0, 1)}


WHOLE = re.compile(r"[abijklmnpqKMN](?![a-z])")


class Point:
    """Numbers for letters and for functions of which nothing is known; they follow from their names and the point's
    own number alone.

    At point 0 all letters are positive, at point 1 all negative, then they have mixed signs; `whole` makes integers of
    those that stand for integers by custom.
    """

    def __init__(self, number: int, whole: bool = False):
        self.number, self.whole, self.steps, self.letters = number, whole, 0, {}

    def of(self, name: str) -> Fraction:
        if name not in self.letters:
            bits = int.from_bytes(hashlib.blake2b(f"{self.number} {name}".encode(), digest_size=8).digest(), "big")
            sign = (1, -1)[self.number] if self.number < 2 else 1 - 2 * (bits >> 60 & 1)
            whole = self.whole and WHOLE.match(name)
            self.letters[name] = Fraction(2 + bits % 17) if whole else sign * Fraction(10 + bits % 251, 97)
        return self.letters[name]


def letters_of(tree: object) -> set[str]:
    """Names of the letters of a tree, constants left out."""
    if not isinstance(tree, (tuple, list)):
        return set()
    if len(tree) == 2 and tree[0] == "v":
        return {tree[1]} - CONSTANTS.keys()
    named = {tree[1]} if tree[:1] == ("f",) and tree[1].startswith("letter ") else ()
    return set().union(*map(letters_of, tree), named)


def has(tree: object, *kinds: str) -> bool:
    """Whether a node of a kind, or a function of a name, is in a tree."""
    if not isinstance(tree, tuple) or not tree:
        return False
    return tree[0] in kinds or tree[0] == "f" and tree[1] in kinds or any(has(part, *kinds) for part in tree)


def replaced(tree: object, names: dict) -> object:
    """The tree with other names, or other trees, for letters."""
    if not isinstance(tree, tuple):
        return tree
    if len(tree) == 2 and tree[0] == "v":
        other = names.get(tree[1], tree)
        return ("v", other) if isinstance(other, str) else other
    return tuple(replaced(part, names) for part in tree)


def inexact(x):
    return mp.mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else x


def sized(x):
    if isinstance(x, Fraction) and x.numerator.bit_length() + x.denominator.bit_length() > BITS:
        raise TooLarge
    return x


def raised(a, b):
    """a^b: exact where it is rational; the real root where a is negative and b has an odd denominator; else the
    principal value."""
    exact = isinstance(a, Fraction) and isinstance(b, Fraction)
    if exact and b.denominator == 1:
        if abs(b) * max(a.numerator.bit_length(), a.denominator.bit_length()) > BITS and abs(a) > 1 or abs(b) > BITS:
            raise TooLarge
        return a ** int(b)
    if exact and b.denominator < 100 and 0 < abs(a) and max(abs(a.numerator), a.denominator) < 2**90:
        root = Fraction(*(round(mp.root(part, b.denominator)) for part in (abs(a.numerator), a.denominator)))
        if root ** b.denominator == abs(a) and (a > 0 or b.denominator % 2):
            return raised(root if a > 0 else -root, Fraction(b.numerator))
    a = inexact(a)
    if isinstance(b, Fraction) and b.denominator % 2 and b.denominator > 1 and isinstance(a, mp.mpf) and a < 0:
        return mp.power(-a, inexact(b)) * (-1) ** b.numerator
    b = inexact(b)
    if a == 0 and mp.re(b) <= 0:
        raise ZeroDivisionError
    if a != 0 and abs(b) * (abs(mp.log(abs(a))) + 1) > 10**12:
        raise TooLarge
    return mp.power(a, b)


def whole_number(x) -> int | None:
    if isinstance(x, Fraction):
        return int(x) if x.denominator == 1 else None
    if isinstance(x, mp.mpf) and abs(x - mp.nint(x)) <= mp.mpf(10) ** (8 - mp.dps) * max(1, abs(x)):
        return int(mp.nint(x))
    return None


def factorial(x, step: int = 1):
    """x!, or x!! for `step` 2; by the Gamma function where x is not whole."""
    n = whole_number(x)
    if abs(inexact(x)) > 3000 or step > 1 and n is None:
        raise TooLarge
    if n is None:
        return mp.gamma(inexact(x) + 1)
    if n < 0:
        raise ZeroDivisionError
    return Fraction(math.prod(range(n, 0, -step)))


def binomial(n, k):
    whole = whole_number(n), whole_number(k)
    if None in whole:
        return inexact(factorial(n)) / (inexact(factorial(k)) * inexact(factorial(inexact(n) - inexact(k))))
    if min(whole) < 0:
        raise ZeroDivisionError
    if min(whole[1], whole[0] - whole[1]) * whole[0].bit_length() > BITS:
        raise TooLarge
    return Fraction(math.comb(*whole))


def of_integers(operation):
    def apply(*numbers):
        whole = [whole_number(x) for x in numbers]
        if None in whole:
            raise ZeroDivisionError
        return Fraction(operation(*whole))
    return apply


def of_reals(operation):
    def apply(*numbers):
        if any(isinstance(x, mp.mpc) for x in numbers):
            raise ZeroDivisionError
        return operation(*(numbers if all(isinstance(x, Fraction) for x in numbers) else map(inexact, numbers)))
    return apply


def rounded(exact, other):
    def apply(x):
        n = whole_number(x)
        return Fraction(n if n is not None else exact(x) if isinstance(x, Fraction) else int(other(x)))
    return of_reals(apply)


def of_mpmath(name: str):
    return lambda x: getattr(mp, name)(inexact(x))


KNOWN = {"factorial": factorial, "double factorial": functools.partial(factorial, step=2), "binom": binomial,
         "floor": rounded(math.floor, mp.floor), "ceil": rounded(math.ceil, mp.ceil), "abs": abs, "max": of_reals(max),
         "min": of_reals(min), "gcd": of_integers(math.gcd), "lcm": of_integers(math.lcm),
         "mod": of_integers(operator.mod), "ln": of_mpmath("log"), "arcsin": of_mpmath("asin"),
         "arccos": of_mpmath("acos"), "arctan": of_mpmath("atan"),
         **{name: of_mpmath(name) for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")}}


def value_at(tree: tuple, point: Point):
    """The value of a formula: a Fraction where it is rational, else a number of mpmath at its working precision.

    Raises ZeroDivisionError where there is none, TooLarge, and Unread for what is no formula.
    """
    point.steps += 1
    if point.steps > STEPS:
        raise TooLarge
    kind = tree[0]
    if kind == "n":
        return tree[1]
    if kind == "v":
        if tree[1] in CONSTANTS:
            return CONSTANTS[tree[1]]()
        if tree[1] == "\\infty":
            raise ZeroDivisionError
        return point.of(tree[1])
    if kind in "+*/":
        a, b = value_at(tree[1], point), value_at(tree[2], point)
        if not (isinstance(a, Fraction) and isinstance(b, Fraction)):
            a, b = inexact(a), inexact(b)
        return sized(a + b if kind == "+" else a * b if kind == "*" else a / b)
    if kind == "neg":
        return -value_at(tree[1], point)
    if kind == "^":
        return raised(value_at(tree[1], point), value_at(tree[2], point))
    if kind == "u":
        return value_at(tree[1], point)
    if kind == "base":
        return point.of(f"{tree[3]} base {tree[2]}") if tree[1] is None else tree[1]
    if kind in ("eq", "rel"):                           # P(X=1)
        sides = tree[3] if kind == "eq" else tree[2:]
        return unknown(point, kind, *(value_at(side, point) for side in sides))
    if kind == "f":
        arguments = [value_at(radians(part) if tree[1] in TRIGONOMETRIC else part, point) for part in tree[2:]]
        if tree[1] not in KNOWN:
            return unknown(point, tree[1], *arguments)
        result = KNOWN[tree[1]](*arguments)
        if not isinstance(result, Fraction) and not mp.isfinite(result):
            raise ZeroDivisionError
        return sized(result)
    if kind == "sum":
        return summed(tree, point)
    raise Unread(kind)


TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")


def radians(tree: tuple) -> tuple:
    """The argument of a sine with its degrees as what they are."""
    if tree[0] == "u" and tree[2] == DEGREE:
        return ("*", tree[1], ("/", ("v", "\\pi"), ("n", Fraction(180))))
    return tuple(radians(part) if isinstance(part, tuple) else part for part in tree)


def unknown(point: Point, name: str, *arguments) -> Fraction:
    """The value of a function of which nothing is known but that equal arguments have equal values."""
    return point.of(f"{name}({','.join(mp.nstr(inexact(x), 12) for x in arguments)})")


def summed(tree: tuple, point: Point):
    """A finite sum or product term by term; another, an integral or a limit stands for itself and equals what has an
    equal body."""
    _, name, letter, lower, upper, body = tree
    indexed = any(other != letter and re.search(rf"[_(].*{re.escape(letter)}", other) for other in letters_of(body))
    if name in ("sum", "prod") and not indexed:
        try:
            first, last = (whole_number(value_at(end, point)) for end in (lower, upper))
        except ZeroDivisionError:
            first = last = None
        if first is not None and last is not None:
            if last - first >= SUM_TERMS:
                raise TooLarge
            total = Fraction(name == "prod")
            for k in range(first, last + 1):
                term = value_at(replaced(body, {letter: ("n", Fraction(k))}), point)
                if not (isinstance(total, Fraction) and isinstance(term, Fraction)):
                    total, term = inexact(total), inexact(term)
                total = sized(total + term if name == "sum" else total * term)
            return total
    ends = (point.of("infinity") if end == ("v", "\\infty") else value_at(end, point) for end in (lower, upper))
    return unknown(point, name, *ends, value_at(replaced(body, {letter: "summed"}), point))


def exponents(tree: object, inside: bool = False) -> int:
    """The largest number in an exponent: so many digits an evaluation must have to see 1 + e^{10^{-400}}."""
    if not isinstance(tree, tuple) or not tree:
        return 0
    if tree[0] == "n":
        return min(abs(int(tree[1])), 10_000) if inside else 0
    if tree[0] == "^":
        return max(exponents(tree[1], inside), exponents(tree[2], True))
    return max((exponents(part, inside) for part in tree), default=0)


def is_zero(trees: tuple, combine) -> bool:
    """Whether two results of `combine` are equal. Exact numbers are compared exactly; of others the difference must
    shrink with the precision."""
    more = exponents(trees)
    with mp.workdps(DIGITS + min(more, 10 * DIGITS)):
        a, b = combine()
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return a == b
        a, b = inexact(a), inexact(b)
        first = abs(a - b)
        if first > mp.mpf("1e-10") * max(abs(a), abs(b), mp.mpf("1e-10")):
            return False                                # what is smaller may be a zero with the errors of rounding
    with mp.workdps(2 * DIGITS + 2 * more):
        a, b = map(inexact, combine())
        return abs(a - b) <= max(first * mp.mpf(10) ** -(DIGITS // 2), abs(a) * mp.mpf(10) ** (10 - mp.dps))


def points(trees: tuple) -> list[tuple[int, bool]]:
    """Where formulas are compared: (number, whole numbers only). More points where steps could agree by chance, one
    if there is no letter."""
    whole = has(trees, "floor", "ceil", "gcd", "lcm", "mod", "sum")
    if not letters_of(trees) and not has(trees, "sum", "base"):
        return [(0, whole)]
    return [(number, whole) for number in range(8 if whole else 4)]


def defined(tree: tuple, number: int, whole: bool):
    """The value of a tree at a point, None if it has none there."""
    try:
        return value_at(tree, Point(number, whole))
    except (ZeroDivisionError, ValueError, OverflowError):
        return None


def same_formula(a: tuple, b: tuple) -> bool:
    """Whether two formulas have the same values wherever they have any."""
    compared = 0
    for number, whole in points((a, b)):
        with mp.workdps(DIGITS):
            found = [defined(tree, number, whole) is not None for tree in (a, b)]
        if found[0] != found[1]:
            return False
        if found[0]:
            compared += 1
            if not is_zero((a, b), lambda: [value_at(tree, Point(number, whole)) for tree in (a, b)]):
                return False
    return compared > 0


def proportional(a: tuple, b: tuple, positive: bool = False) -> bool:
    """Whether the relations a[0] ~ a[1] and b[0] ~ b[1] are one up to a constant factor: their differences have one
    ratio everywhere."""
    a, b = (("+", left, ("neg", right)) for left, right in (a, b))
    found = []
    for number, whole in points((a, b)):
        with mp.workdps(DIGITS):
            values = [defined(tree, number, whole) for tree in (a, b)]
        if (values[0] is None) != (values[1] is None):
            return False
        if values[0] is not None:
            if (abs(values[0]) < 1e-20) != (abs(values[1]) < 1e-20):
                return False
            if abs(values[0]) > 1e-20:
                found.append((number, whole))
                if positive and mp.re(inexact(values[0]) / inexact(values[1])) < 0:
                    return False
    if len(found) < 2:
        return False
    ratio = [lambda at=at: value_at(("/", a, b), Point(*at)) for at in found]
    return all(is_zero((a, b), lambda other=other: [ratio[0](), other()]) for other in ratio[1:])


# -------------------------------------------------------------------------------- what equals what

def is_near(tree: tuple | None, other: tuple | None, side: list[Token]) -> bool:
    """Whether a decimal is the rounded or cut value of the formula before it."""
    decimal = re.fullmatch(r"\d+\.(\d+)", canonical(side))
    if tree is None or other is None or letters_of((tree, other)) or not decimal:
        return False
    a, b = (defined(part, 0, False) for part in (tree, other))
    return a is not None and b is not None and abs(inexact(a) - inexact(b)) <= mp.mpf(10) ** -len(decimal[1])


def matched(a: list, b: list, equal) -> bool:
    """Whether every member of either has an equal one in the other: order and repetitions do not count."""
    rest = list(b)
    for x in a:
        found = next((i for i, y in enumerate(rest) if equal(x, y)), None)
        if found is not None:
            del rest[found]
        elif not any(equal(x, y) for y in b):
            return False
    return all(any(equal(x, y) for x in a) for y in rest)


def quantity(tree: tuple) -> tuple[tuple, tuple]:
    """(value, unit); () for no unit."""
    if tree[0] == "neg" and tree[1][0] == "u":
        return ("neg", tree[1][1]), tree[1][2]
    return (tree[1], tree[2]) if tree[0] == "u" else (tree, ())


def same_unit(a: tuple, b: tuple) -> bool:
    """No unit equals any; phrases of which one begins with the other are one ("marbles", "marbles in total")."""
    if not a or not b or a == b or ("unit", 1) in (*a, *b) or ("unit", 2) in (*a, *b) or ("unit", 3) in (*a, *b):
        return True
    if len(a) > 1 or len(b) > 1 or a[0][1] != b[0][1]:
        return False
    short, long = sorted((a[0][0], b[0][0]), key=len)
    return long.startswith(short) and len(short) > 3


def same(a: tuple, b: tuple) -> bool:
    """Whether two values are equal: each as what it is."""
    if a == b:
        return True
    a, unit = quantity(a)
    b, other = quantity(b)
    percent = ("percent", 1)
    if percent in unit or percent in other:             # 50\% answers 50 and 0.5
        if (percent in unit) == (percent in other):
            return same(a, b)
        hundred = ("n", Fraction(100))
        if unit and other:
            return False
        return same(a, b) or same_formula(*((a, ("*", hundred, b)) if percent in unit else (("*", hundred, a), b)))
    if not same_unit(unit, other):
        return False
    kinds = a[0], b[0]
    if "such" in kinds and kinds[0] != kinds[1]:
        a, b = (tree[2] if tree[0] == "such" else tree for tree in (a, b))
        return same_member(a, b)
    if "union" in kinds:
        return matched(*(tree[1:] if tree[0] == "union" else (tree,) for tree in map(as_union, (a, b))), same)
    if kinds == ("set", "set"):
        return matched(a[1:], b[1:], same_member)
    if set(kinds) & {"ratio", "clock"}:
        return same_ratio(a, b)
    if kinds[0] in PARTS or kinds[1] in PARTS:
        real = ("tuple", "()", ("neg", ("v", "\\infty")), ("v", "\\infty"))
        a, b = (real if tree == ("v", "\\mathbbR") else as_union(tree) for tree in (a, b))
        if a[0] != b[0] or len(a) != len(b):
            return a == b or "union" in (a[0], b[0]) and kinds != (a[0], b[0]) and same(a, b)
        return all(same_member(x, y) if isinstance(x, tuple) and isinstance(x[0], str) else x == y
                   for x, y in zip(a[1:], b[1:]))
    if has((a, b), "matrix"):
        a, b = matrix(a), matrix(b)
        return a is not None and b is not None and [len(row) for row in a] == [len(row) for row in b] and all(
            same_formula(x, y) for row, other in zip(a, b) for x, y in zip(row, other))
    if kinds == ("base", "base"):
        return a[2:] == b[2:]
    signs = [tree[0] == "neg" for tree in (a, b)]
    if ("v", "\\infty") in (a, b) or ("v", "\\infty") in (a[1], b[1]):
        return (a[-1], signs[0]) == (b[-1], signs[1])
    return same_formula(a, b)


PARTS = ("tuple", "set", "such", "rel", "quantities", "\\cap", "\\setminus")


def as_union(tree: tuple) -> tuple:
    """\\mathbb{R} without a number as a union of intervals; anything else as it is."""
    if tree[0] == "\\setminus" and tree[1] == ("v", "\\mathbbR") and tree[2][0] == "set" and len(tree[2]) == 2:
        infinity = ("v", "\\infty")
        return ("union", ("tuple", "()", ("neg", infinity), tree[2][1]), ("tuple", "()", tree[2][1], infinity))
    return tree


def same_ratio(a: tuple, b: tuple) -> bool:
    """Ratios up to a factor, clock times by their parts; a ratio of two equals its quotient."""
    if a[0] not in ("ratio", "clock") or b[0] not in ("ratio", "clock"):
        a, b = (a, b) if a[0] in ("ratio", "clock") else (b, a)
        return not a[1] and len(a) == 4 and b[0] not in PARTS and same_formula(("/", a[2], a[3]), b)
    if a[1] and b[1] and a[1] != b[1] or len(a) != len(b):
        return False
    if a[0] == b[0] == "clock" or a[1] or b[1]:
        return all(map(same, a[2:], b[2:]))
    return all(same_formula(("*", x, b[2]), ("*", y, a[2])) for x, y in zip(a[3:], b[3:]))


def matrix(tree: tuple) -> tuple | None:
    """The rows of a matrix, of a sum of matrices, of a multiple of one; None for anything else."""
    if tree[0] == "matrix":
        return tree[1:]
    if tree[0] == "neg":
        rows = matrix(tree[1])
        return None if rows is None else tuple(tuple(("neg", cell) for cell in row) for row in rows)
    a, b = (matrix(part) for part in tree[1:3]) if tree[0] in ("+", "*", "/") else (None, None)
    if tree[0] == "+":
        if a is None or b is None or [len(row) for row in a] != [len(row) for row in b]:
            return None
        return tuple(tuple(("+", x, y) for x, y in zip(row, other)) for row, other in zip(a, b))
    if (a is None) == (b is None) or tree[0] == "/" and a is None:
        return None
    return tuple(tuple((tree[0], x, tree[2]) if b is None else ("*", tree[1], x) for x in row) for row in (a or b))


def definition(tree: tuple) -> bool:
    return tree[0] == "eq" and bool(tree[1]) and bool(tree[2])


def plain_value(tree: tuple) -> tuple:
    """The value that an equation names, its letters by their own names."""
    return replaced(tree[2][0], dict(tree[4]))


def same_member(a: tuple, g: tuple) -> bool:
    """Whether a member of the answer equals one of the gold: by its value where at most one names it, by name and
    value where both do."""
    if a == g:
        return True
    if a[0] == g[0] == "eq":
        if definition(a) and definition(g) and set(a[1]) & set(g[1]):
            return all(same_member(part, g[2][0]) for part in a[2])
        if not definition(g) and not letters_of(g[3]):
            # 0.56 = 56\%
            return all(side is not None and any(same(side, other) for other in g[3]) for side in a[2] or a[3])
        if len(a[3]) == len(g[3]) == 2 and None not in (*a[3], *g[3]):
            return set(map(formula, (*a[3], *g[3]))) == {True} and proportional(a[3], g[3])
        return False
    if g[0] == "eq":
        if definition(g):                               # 0 does not answer a+b-c=0
            return not any({"+", "-"} & set(name.split()) for name in g[1]) and same(a, plain_value(g))
        return not letters_of(g[3]) and any(same(a, side) for side in g[3])
    if a[0] == "eq":
        if not definition(a) and letters_of(a[3]):
            return False
        return all(same(replaced(part, dict(a[4])), g) for part in a[2])
    if a[0] == g[0] == "rel":
        if len(a[2:]) == len(g[2:]) == 2 and a[1] == g[1] and all(map(formula, (*a[2:], *g[2:]))):
            return proportional(a[2:], g[2:], positive=a[1] != ("\\ne",))
        return a[1] == g[1] and len(a) == len(g) and all(map(same, a[2:], g[2:]))
    return "rel" not in (a[0], g[0]) and same(a, g)


def formula(tree: tuple) -> bool:
    return tree[0] not in ("union", "ratio", "clock", "matrix", *PARTS)


def by_name(members: tuple) -> dict | None:
    """x=1, y=2 and (x,y)=(1,2) as values by name; None for anything else."""
    found = {}
    for tree in members:
        if not definition(tree) or len(tree[1]) != 1 or len(tree[2]) != 1:
            return None
        names = next(iter(tree[1])).replace("(", "").replace(")", "").replace(" ", "").split(",")
        values = tree[2][0][2:] if len(names) > 1 and tree[2][0][0] == "tuple" else (tree[2][0],)
        if len(names) != len(values) or set(names) & set(found):
            return None
        found |= dict(zip(names, values))
    return found if len(found) > 1 else None


def spread_names(members: tuple) -> tuple:
    """The members of a list, each with the name that stands before the first; a set in place of its list."""
    if len(members) == 1:
        tree, name = members[0], None
        if definition(tree) and tree[2][0][0] in ("set", "quantities"):
            tree, name = tree[2][0], tree[1]
        if tree[0] in ("set", "quantities") and len(tree) > 1 and tree[1] != ("set",):
            return tuple(("eq", name, (part,), (None,), ()) if name else part for part in tree[1:])
    name, found = None, []
    for tree in members:
        if definition(tree) and len(tree[2]) == 1:
            name = tree
        elif name and tree[0] not in ("eq", "rel"):
            tree = ("eq", name[1], (tree,), (name[3][0], tree), name[4])
        found.append(tree)
    return tuple(found)


def same_members(a: Statement, g: Statement) -> bool:
    """Whether two lists are equal: by name where members are named, in order where one is a point, else without
    order."""
    members, golds = a.members, g.members
    names = by_name(members), by_name(golds)
    if names[0] and names[1] and set(names[0]) == set(names[1]):
        return all(same(names[0][name], names[1][name]) for name in names[0])
    if names[0] and names[1]:
        return len(members) == len(golds) and matched(members, golds, same_member)
    for one, other, named in ((members, golds, names[0]), (golds, members, names[1])):
        values = tuple(named.values()) if named else one if len(one) > 1 else None
        point = other[0][2][0] if definition(other[0]) else other[0]
        if values and len(other) == 1 and point[:2] == ("tuple", "()"):
            if named or not any(definition(tree) or tree[0] in ("tuple", "set") for tree in one):
                return len(values) == len(point) - 2 and all(map(same, values, point[2:]))
        if named and len(other) > 1:
            return len(values) == len(other) and not by_name(other) and all(map(same, values, other))
    members, golds = joined_inequalities(a), joined_inequalities(g)
    members, golds = spread_names(members), spread_names(golds)
    quantities = len(golds) > 1 and all(tree[0] == "u" for tree in (*members, *golds))
    if quantities and len({tree[2] for tree in golds}) == len(golds):               # 2 hours 30 minutes
        return len(members) == len(golds) and matched(members, golds, lambda x, y: x[2] == y[2] and same(x, y))
    return matched(members, golds, same_member)


def joined_inequalities(a: Statement) -> tuple:
    """x<2 or x>3 as one union."""
    if len(a.members) > 1 and a.joint == "or" and all(
            tree[0] == "eq" and tree[3] == (None,) and tree[1] == a.members[0][1] for tree in a.members):
        parts = [part for tree in a.members for part in (tree[2][0][1:] if tree[2][0][0] == "union" else (tree[2][0],))]
        return (("eq", a.members[0][1], (("union", *parts),), (None,), ()),)
    return a.members


FREE = re.compile(r"[cCkKABD](?:_\w+)?")


def operands(tree: tuple, kind: str) -> list[tuple]:
    """The terms of a sum, or the factors of a product."""
    return operands(tree[1], kind) + operands(tree[2], kind) if tree[0] == kind else [tree]


def free_constants(tree: tuple) -> list[str]:
    """Letters c, C, C_1, ... of an indefinite integral or a general solution: a lone term of a sum, or a factor of a
    power of e."""
    found, terms = [], operands(tree, "+")
    for term in terms:
        factors = operands(term, "*")
        exponential = any(factor[:2] == ("^", ("v", "e")) for factor in factors)
        for factor in factors:
            if factor[0] == "+":
                found += free_constants(factor)
            elif factor[0] == "v" and re.fullmatch(r"[cC](?:_\w+)?", factor[1]):
                found += [factor[1]] if exponential or len(factors) == 1 < len(terms) else []
    return found


def same_statement(a: Statement, g: Statement) -> bool:
    """Whether two statements say the same, up to the names of free constants and of the letters of a domain."""
    if a.domain and g.domain and a.domain != g.domain:
        return False
    if (a.modulus is None) != (g.modulus is None):
        if g.modulus is not None or len(g.members) > 1 or g.members[0][0] != "n" or a.members[0][0] != "n":
            return False
        # 12 (mod 13) for 12
        return a.modulus[0] == "n" and 0 <= a.members[0][1] < a.modulus[1] and a.members == g.members
    if a.modulus is not None:
        return same_formula(a.modulus, g.modulus) and matched(
            spread_names(a.members), spread_names(g.members), lambda x, y: same_residue(x, y, g.modulus))
    if same_members(a, g):
        return True
    mine, theirs = letters_of(a.members), letters_of(g.members)
    if "Z" in a.domain + g.domain:                      # k\pi and n\pi with an integer
        new, old = ([name for name in names if name in set("ijklmn")] for names in (mine - theirs, theirs - mine))
        if len(new) == len(old) == 1:
            return same_members(a._replace(members=replaced(a.members, dict(zip(new, old)))), g)
    value = g.members[0][2][0] if definition(g.members[0]) else g.members[0]
    constants = free_constants(value) if has(value, "^", "ln", "sin", "cos", "tan") else []
    constants = [name for name in constants if str(value).count(f"('v', '{name}')") == 1]
    others = sorted(name for name in mine - theirs if FREE.fullmatch(name))
    missing = [name for name in constants if name not in mine]
    if constants and len(others) == len(missing) and 0 < len(others) < 4:
        return any(same_members(a._replace(members=replaced(a.members, dict(zip(others, order)))), g)
                   for order in itertools.permutations(missing))
    return False


def same_residue(a: tuple, g: tuple, modulus: tuple) -> bool:
    """Whether two members of congruences are one: the same name, and values apart by a multiple of the modulus."""
    if definition(a) and definition(g):
        if a[1] != g[1]:
            return False
        a, g = a[2][0], g[2][0]
    if a[0] == "eq" or g[0] == "eq":
        return same_member(a, g)
    if not letters_of((a, g, modulus)):
        a, g, modulus = (defined(tree, 0, True) for tree in (a, g, modulus))
        return all(isinstance(x, Fraction) for x in (a, g, modulus)) and modulus != 0 and (a - g) % modulus == 0
    return same(a, g)


ARTICLE = re.compile(r"^(?:a|an|the) (?=\w)")
TEXTUAL = re.compile(r"[A-Za-z][A-Za-z ,.'-]*")
SHORT_WORDS = set("yes no odd even true false none one two six ten red all both".split())


def as_words(text: str) -> tuple[str | None, bool]:
    """(the words of a text without formulas, in one form; None for another, whether it can be nothing but words)."""
    flat = re.sub(rf"(?:{MACRO}|{FONT})(?![A-Za-z])|[{{}}]", "", text).strip(" .")
    if not TEXTUAL.fullmatch(flat):
        return None, False
    sure = flat.lower() in SHORT_WORDS or re.fullmatch("[A-Z]{3,}", flat) or re.search("[A-Za-z]{2} [A-Za-z]{2}", flat) \
        or "\\" in text and len(flat) > 1 and flat not in FUNCTIONS \
        or len(flat) > 3 and re.fullmatch(r"(?i)[a-z]*[aeiouy][a-z]*", flat)
    return ARTICLE.sub("", " ".join(flat.lower().split())), bool(sure)


THOUSANDS = re.compile(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,])")


@functools.lru_cache(4096)
def read(text: str) -> tuple:
    """The readings of a normalised text: usually one, two where a comma may be one of thousands; empty if it is not
    understood."""
    found, others = [], THOUSANDS.sub("", text)
    thousands = others != text and "," not in others and not re.search(r"[(\[|][^()\[\]]*,|\\\{", text)
    for joined in (True, False) if thousands else (False,):
        try:
            found.append(statement(text, joined))
        except (Unread, RecursionError):
            pass
    return tuple(found)


def compare_read(answer: str, gold: str) -> str:
    """The reason of the grade of two normalised texts that were not settled as text: "equal", "different", "too
    large" or whose reading failed."""
    words, gold_words = as_words(answer), as_words(gold)
    if gold_words[1] or words[1]:
        return "equal" if words[0] is not None and words[0] == gold_words[0] else "different"
    golds, answers = read(gold)[:1], read(answer)
    if not golds or not answers:
        try:
            if canonical(tokenize(answer, roman=True)) == canonical(tokenize(gold, roman=True)):
                return "equal"
        except Unread:
            pass
        return "unparsed" if golds else "gold unparsed"
    try:
        return "equal" if any(same_statement(one, golds[0]) for one in answers) else "different"
    except (TooLarge, RecursionError, MemoryError):
        return "too large"
    except Unread:
        return "unparsed"
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


# What nobody would write as an answer, but for a gold that is near it itself.
LONG, DEEP, MANY_DIGITS = 2000, 24, 1000


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

    if len(answer) > max(LONG, 4 * len(gold)):
        return True
    return any(of(answer) > max(limit, 2 * of(gold)) for of, limit in ((nesting, DEEP), (digits, MANY_DIGITS)))


@dataclass(frozen=True)
class Question:
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


def grade_exact(text: str, gold: str, require_box: bool = True) -> Grade | Question:
    """The grade if nothing must be read for it, else what has to be."""
    answer = last_box(text)
    if answer is None:
        rest = "" if require_box else final_part(text).strip()
        return Question(rest[-FREE_TEXT:], normalize(gold), None) if rest else Grade(False, "no box", None)
    if is_too_large(answer, gold):
        return Grade(False, "too large", answer[:LONG])
    plain, gold = normalize(answer), normalize(gold)
    equal = compare_exact(plain, gold) if plain else False
    return Question(plain, gold, answer) if equal is None else Grade(equal, "equal" if equal else "different", answer)


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


def grade(text: str, gold: str, require_box: bool = True) -> Grade:
    """Whether `text` ends in an answer equal to `gold`; `require_box=False` lets math-verify look for one where there
    is no box."""
    result = grade_exact(text, gold, require_box)
    return result if isinstance(result, Grade) else result.settle()
