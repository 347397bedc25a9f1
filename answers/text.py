r"""What the answer of a text is, and one form for what prints alike.

    last_box("\\boxed{3}. No: $\\boxed{1}$, or \\boxed{2}")         # "1, 2"
    normalize("\\left(\\dfrac12 ,\\; x²\\right).")                  # "(\\frac12,x^2)"
"""
import functools
import re
import unicodedata
from fractions import Fraction


class Unread(Exception):
    """Something in a text was not understood."""


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
    r"""(start, start of the content, its end, end) of every balanced \boxed{...}, \fbox{...} or \boxed 42 that is in
    no other, in one pass. Boxes with nothing in them are left out where another has something."""
    found, unclosed = [], []                            # unclosed braces: None, or (start of the box, of its content)
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
    r"""Content of the last box after the reasoning; None if there is none.

    Boxes of one statement, with nothing but a comma, "and" or "or" between them, are one answer:
    "\boxed{1} or \boxed{2}" is "1, 2".
    """
    text = final_part(text)
    if not (found := boxes(text)):
        return None
    first = len(found) - 1
    while first and found[first][0] - found[first - 1][3] < 100 \
            and CONNECTOR.fullmatch(text, found[first - 1][3], found[first][0]):
        first -= 1
    return ", ".join(dict.fromkeys(BOX.sub("", text[start:end]) for _, start, end, _ in found[first:]))


# -------------------------------------------------------------------------------- one form for what prints alike

GREEK = dict(zip(
    "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩϕϵϑϱ",
    [f"\\{name} " for name in "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma "
     "tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega phi epsilon theta rho"
     .split()]))
SYMBOLS = str.maketrans(GREEK | dict(pair.split(" ", 1) for pair in (
    r"− -|– -|⁄ /|∕ /|÷ / |′ '|’ '|″ ''|× \times |· \cdot |⋅ \cdot |∙ \cdot |± \pm |∓ \mp |∞ \infty |≤ \le |⩽ \le |"
    r"≦ \le |≥ \ge |⩾ \ge |≧ \ge |≠ \ne |≈ \approx |≡ \equiv |∈ \in |∉ \notin |∀ \forall |∪ \cup |∩ \cap |"
    r"∅ \emptyset |∖ \setminus |° ^\circ |˚ ^\circ |º ^\circ |⌊ \lfloor |⌋ \rfloor |⌈ \lceil |⌉ \rceil |¢ \cent |"
    r"ℝ \mathbb{R}|ℤ \mathbb{Z}|ℕ \mathbb{N}|ℚ \mathbb{Q}|ℂ \mathbb{C}|¬ \neg |∠ \angle |△ \triangle |"
    r"∨ \lor |∧ \land ").split("|")))
SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b\u207f]+")
ROOT = re.compile("\u221a(?:\\(([^()]*)\\)|(\\d+|\\w))")
VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
MACRO = r"\\(?:text\w*|mathrm|mathnormal|mbox|operatorname\*?|rm)"
FONT = r"\\(?:mathbf|mathit|mathsf|boldsymbol|bm|underline|textbf|textit)"
END = r"(?![A-Za-z])"                                   # of a command
CANONICAL = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"^\s*\*\*(.*)\*\*\s*$", r"\1"),
    (r",\s*\\!\s*|\\text\{,\}|\{\s*,\s*\}", "{,}"),     # a comma of thousands
    (r"(?<!\\)\\!", ""), (r"\{:\}", ":"),
    (r"(?<!\\)\\(?:left|right) *\.", " "),
    (r"(?<!\\)(?:\\[()\[\]]|\$)|\\\$(?=\s*$)", " "),
    (r"~|(?<!\\)\\[,;: \n]|\\q?quad|"
     rf"\\(?:left|right|[bB]igg?[lrm]?|(?:display|text|script)style|limits|mathstrut){END}", " "),
    (rf"(?<!\\)\\\\(?=(?:[dt]?frac|sqrt|text|pi|cdot|times|left|right|begin|end){END})", r"\\"),
    (r"\\[dtc]frac", r"\\frac"), (r"\\[dt]binom", r"\\binom"), (r"\\varnothing", r"\\emptyset"), (r"(?<!\\)%", r"\\%"),
    (rf"\\degree{END}", r"^\\circ "),
    (rf"\\(?:not *=|neq?{END})", r"\\ne "), (rf"\\not *\\in{END}", r"\\notin "),
    (rf"\\leq(?:slant|q)?{END}|<=", r"\\le "), (rf"\\geq(?:slant|q)?{END}|>=", r"\\ge "),
    (rf"\\lt{END}", "<"), (rf"\\gt{END}", ">"), (r"\*\*", "^"),
    (r"\^(\{[^{}]*\}|\w)_(\{[^{}]*\}|\w)", r"_\2^\1"),  # the index before the power
    (r"(?<![\w}\]])\{(\w|\\[A-Za-z]+)\}(?=_)", r"\1"), (r"\bnp\.", ""),
    (r"(?:\{\}|(?<![\w}]))_\{?(\w+)\}?C_\{?(\w+)\}?", r"\\binom{\1}{\2}"), (r"\\sqrt\(([^()]*)\)", r"\\sqrt{\1}"),
    (rf"({MACRO}|{FONT}) +\{{", r"\1{"), (rf"{FONT}\{{([^{{}}]*)\}}", r"{\1}"), (r"\s+", " "),
    (r" ?([-+*/=<>;:()\[\]^_|]) ?", r"\1"),
    (r" ?, (?!\d{3}(?!\d))| ,", ","),                   # but 1, 234 is no 1,234
    (r"([_^])\{(\w)\}(?!\w)", r"\1\2"), (r"(?i)^(?:the )?(?:final )?answer ?(?:is ?:?|[:=]) ?", ""),
    (r"^\{([^{}\\,]*)\}$", r"\1"))]
DENIAL = r"\b(?:not|\w+n't|no|none|incorrect|wrong|false|never|except|but|anything)\b"
LABEL = re.compile(rf"(?:{MACRO}|{FONT})\{{(?![^{{}}]*{DENIAL})[^{{}}]*(?:[:=]|\bis|\bare) *\}} *(?=.)")


@functools.lru_cache(4096)
def normalize(answer: str) -> str:
    """One form for what prints alike: NFKC, digits of any script, no invisible characters, spacing, delimiters, fonts,
    labels such as "The answer is" (unless they deny) or punctuation at the end."""
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
    label = LABEL.match(answer)
    return answer[label.end() if label else 0:].rstrip(".,;: ")


PLAIN_NUMBER = re.compile(r"([+-]?)(?:(\d{1,300})(?:\.(\d{0,300}))?|\.(\d{1,300})"
                          r"|\\frac\{(\d{1,300})\}\{(\d{1,300})\})")


def as_fraction(text: str) -> Fraction | None:
    r"""A normalised plain decimal or \frac{1}{2} as an exact number; None for anything else, which must be read."""
    match = PLAIN_NUMBER.fullmatch(text)
    if not match:
        return None
    sign, whole, decimals, bare, above, below = match.groups()
    if below and not int(below):
        return None
    decimals = decimals or bare or ""
    value = Fraction(int(above), int(below)) if below else Fraction(int((whole or "") + decimals), 10 ** len(decimals))
    return -value if sign == "-" else value


def compare_exact(answer: str, gold: str) -> bool | None:
    """True or False if two normalised texts are settled as text or as plain numbers, None if they must be read."""
    if answer == gold:
        return bool(answer)
    a, b = as_fraction(answer), as_fraction(gold)
    return None if a is None or b is None else a == b
