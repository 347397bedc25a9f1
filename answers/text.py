"""What the answer of a text is, and one form for what prints alike."""
import functools
import re
import unicodedata
from fractions import Fraction


class Unread(Exception):
    """Something in a text was not understood."""


class TooLarge(Exception):
    """More digits or more steps than an answer deserves."""


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
