r"""A normalised text as tokens: numbers, letters with their indices and primes, words, signs.

    tokenize("x_1'+\\frac12 \\text{cm}")
    # letter x_1' | sign + | sign \frac | number 1 | number 2 | word cm
"""
import re
from fractions import Fraction
from typing import NamedTuple

from .text import FONT, GREEK, MACRO, Unread
from .units import BARE_WORDS, UNIT_NAMES


class Token(NamedTuple):
    kind: str                                           # "number" | "letter" | "word" | "sign"
    text: str                                           # as compared: letters with index and primes
    value: object = None                                # of a number: a tree


LEXEME = {joined: re.compile(
    rf"\s*(?:(?P<base>(?:{MACRO}\{{\d+\}}|\(\d+\)|\d(?:\d|\{{,\}})*)_(?:\d|\{{\(?\d+\)?\}}|\{{{MACRO}\{{\d+\}}\}})"
    rf"|(?:{MACRO}\{{(?=[A-F]*\d)[\dA-F]+\}}|\((?=[A-F]*\d)[\dA-F]+\)|\d[\dA-F]*)_\{{\(?(?:1[1-9]|2\d|3[0-6])\)?\}})"
    rf"|(?P<number>(?:\d{{1,3}}(?:(?:{thousands})\d{{3}})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)"
    rf"|(?P<macro>{MACRO}|{FONT}|\\math(?:bb|cal|frak|scr))(?![A-Za-z])"
    r"|(?P<run>[A-Za-z]+)|(?P<sign>\\[A-Za-z]+|\\.|\S)|$)", re.DOTALL)
    for joined, thousands in ((False, r"\{,\}| "), (True, r"\{,\}|,| "))}
PERIOD = re.compile(r"\\(?:overline|bar|dot)(?:\{(\d{1,50})\}|(\d))|\((\d{1,50})\)")
POWER_OF_TEN = re.compile(r"[eE]([+-]?\d{1,4})(?![\w.])")
RENAMED = dict(pair.split() for pair in (
    r"\cdot *|\times *|\ast *|\div /|; ,|\colon :|\lbrace \{|\rbrace \}|\lbrack [|\rbrack ]|\lor or|\vee or|\land and|"
    r"\wedge and|\varphi \phi|\varepsilon \epsilon|\vartheta \theta|\varrho \rho|\mod \bmod|\tg \tan|\ctg \cot|"
    r"\simeq \approx").split("|")) | {"\\lvert": "|", "\\rvert": "|", "\\vert": "|"}
FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp gcd lcm max min sqrt".split()
WORDS = {name: ("sign", f"\\{name}") for name in FUNCTIONS} | {
    "mod": ("sign", "\\bmod"), "bmod": ("sign", "\\bmod"), "pi": ("letter", "\\pi")}
LETTERS = set(map(str.strip, GREEK.values())) | {f"\\{name}" for name in (
    "ell hbar partial nabla angle triangle odot infty emptyset imath jmath Re Im aleph".split())}
ARGUMENTS = ("\\frac", "\\binom", "\\sqrt")
ACCENTS = [f"\\{name}" for name in "overline bar vec hat tilde dot ddot overrightarrow widehat mathring".split()]
INDEX = re.compile(r"'|_(?=(\{)|(\\[A-Za-z]+|\w))|\^\{?(?:(?:\\prime ?)+|'+)\}?")
JOINERS = {"and": "and", "or": "or", "to": ":"}
PHRASE = re.compile(r"((?:(?:and|or|to)\b|[,;])?)(.*?)((?:\b(?:and|or|to)|[,;])?)")


# what is read by itself, or names the value: the name of an equation has no number in it
NO_PROSE = re.compile(rf"(?:{MACRO}|{FONT}|\\math[a-z]+|\\begin|\\end|_)\{{[^{{}}]*\}}|\\[A-Za-z]+"
                      r"|(?:^|[,;]|\b(?:and|or)\b)[^=,;<>\d]*=")
SPELT = re.compile(rf"(?!(?:and|(?:arc)?(?:{'|'.join(FUNCTIONS)})[a-z]?)(?![a-z]))"
                   r"(?:(?i:add|all|are|but|for|has|not|odd|one|red|row|six|sum|ten|the|two|was|yes)"
                   r"|(?=.{4})[A-Za-z][a-z]*[aeiou][a-z]*)")


def has_prose(text: str) -> bool:
    """Whether words of a language stand outside \\text{}: as products of letters, "carry 1" would be "1 carry".

    Words are short ones that are known, and runs of four letters or more with a vowel after the first; abcd, mgh and
    LRAC are products.
    """
    return any(SPELT.fullmatch(run) and run.lower() not in BARE_WORDS
               and "".join(sorted(run)) not in "abcdefghijklmnopqrstuvwxyz"
               for run in re.findall(r"[A-Za-z]{3,}", NO_PROSE.sub(" ", text)))


def tokenize(text: str, joined: bool = False, roman: bool = False, tokens: list[Token] | None = None) -> list[Token]:
    """Tokens of a normalised text, added to `tokens`; `joined` reads 1,234 as one number, in `roman` text a run of
    letters is a word. Raises Unread."""
    tokenizer = Tokenizer(text, joined, roman, [] if tokens is None else tokens)
    while kind := (match := LEXEME[joined].match(text, tokenizer.i)).lastgroup:
        tokenizer.i = match.end()
        getattr(tokenizer, kind)(match[kind], match.start(kind))
    return tokenizer.tokens


class Tokenizer:
    """One method for each group of LEXEME: it adds the tokens of what matched, and may move `i` on over what belongs
    to them."""

    def __init__(self, text: str, joined: bool, roman: bool, tokens: list[Token]):
        self.text, self.joined, self.roman, self.tokens, self.i = text, joined, roman, tokens, 0

    def add(self, kind: str, text: str, value: tuple | None = None) -> None:
        self.tokens.append(Token(kind, text, value))

    def base(self, written: str, _: int) -> None:
        """36_7, (36)_{7}, 3F_{16}; 42_{60} and 19_2 are numerals that stand for themselves only."""
        digits, _, base = written.rpartition("_")
        digits, base = re.sub(rf"{MACRO}|[^\dA-F]", "", digits), int(re.sub(r"\D", "", base))
        known = 2 <= base <= 36 and all(int(digit, 36) < base for digit in digits)
        value, digits = (Fraction(int(digits, base)), digits.lstrip("0")) if known else (None, digits)
        self.add("number", written, ("base", value, base, digits))

    def number(self, _: str, start: int) -> None:
        """A number with a period and a power of ten that follow; arguments such as those of \\frac12 are digits."""
        before, last = [None, None, *self.tokens][-2:]
        if is_sign(last, *ARGUMENTS) or is_sign(before, *ARGUMENTS[:2]) and last.kind != "sign":
            self.i = start + 1
        end = self.i
        whole, dot, decimals = re.sub(r"[^\d.]", "", self.text[start:end]).partition(".")
        value = Fraction(int(whole + decimals or 0), 10 ** len(decimals))
        if dot and (period := PERIOD.match(self.text, end)):
            digits, self.i = period[1] or period[2] or period[3], period.end()
            value += Fraction(int(digits), (10 ** len(digits) - 1) * 10 ** len(decimals))
        if power := POWER_OF_TEN.match(self.text, self.i):
            value, self.i = value * Fraction(10) ** int(power[1]), power.end()
        self.add("number", self.text[start:end], ("n", value))

    def macro(self, name: str, _: int) -> None:
        """\\text{...} and fonts: letters, functions, units, words, or formulas."""
        if self.text[self.i : self.i + 1] != "{":
            if name.startswith(("\\math", "\\rm")):
                return                                  # \mathrm A: what follows is read by itself
            raise Unread(name)
        start, self.i = self.i + 1, group_end(self.text, self.i)
        content = self.text[start : self.i - 1].strip()
        is_unit = content.lower() in UNIT_NAMES
        if name in ("\\mathbb", "\\mathcal", "\\mathfrak", "\\mathscr"):
            self.letter(f"{name}{content}")
        elif is_unit and self.after_operand():
            self.add("word", content)
        elif content in WORDS:
            self.add(*WORDS[content])
        elif re.fullmatch(r"[A-Za-z]", content):
            self.letter(content)
        elif re.fullmatch(r"[A-Z]{2,}", content) and not is_unit and content not in ("AM", "PM"):
            tokenize(content, self.joined, tokens=self.tokens)
        elif re.match(FONT, name) and not re.fullmatch(r"[A-Za-z ]{3,}", content):
            self.add("sign", "{")
            tokenize(content, self.joined, tokens=self.tokens)
            self.add("sign", "}")
        elif re.search(r"[\d\\${}^=<>()]", content):
            tokenize(content, self.joined, True, self.tokens)
        else:
            self.words(content)

    def run(self, letters: str, start: int) -> None:
        """Letters without a macro: a function or a unit, else each by itself."""
        before, name = self.text[start - 1 : start], letters.lower()
        spaced = before in (" ", "}", ")") or before.isdigit() and letters.endswith(("cm", "km", "kg", "mm", "s"))
        if self.after_operand() and (name in BARE_WORDS and spaced or self.roman and name in UNIT_NAMES):
            self.words(letters)
        elif letters in WORDS:
            self.add(*WORDS[letters])
        elif letters in JOINERS and self.tokens:
            self.add("sign", JOINERS[letters])
        elif self.roman and len(letters) > 1:
            self.words(letters)
        elif letters == "USD" and not self.tokens:
            self.add("sign", "\\$")
        else:
            self.i, end = start, self.i
            while self.i < end:                         # an index may reach beyond
                self.i += 1
                self.letter(self.text[self.i - 1])

    def sign(self, name: str, _: int) -> None:
        name = RENAMED.get(name, name)
        if name in ACCENTS:
            end = group_end(self.text, self.i) if self.text[self.i : self.i + 1] == "{" else self.i + 1
            argument, self.i = bare(self.text[self.i : end]), end
            self.letter(f"{name}({argument})")
        elif name in LETTERS:
            self.letter(name)
        else:
            self.add("sign", name)

    def letter(self, name: str) -> None:
        """The letter `name` with the indices and primes that follow."""
        index = primes = ""
        while match := INDEX.match(self.text, self.i):
            mark, self.i = match.group(), match.end()
            if mark == "_":
                end = group_end(self.text, self.i) if match[1] else self.i + len(match[2])
                index, self.i = index + bare(self.text[self.i : end]), end
            else:
                primes += "'" * (mark.count("'") + mark.count("\\prime"))
        self.add("letter", name + (f"_{index}" if index else "") + primes)

    def words(self, content: str) -> None:
        """The words of a \\text{}: "and", "or", "to", commas at its ends are signs, the rest is one word token."""
        start, middle, end = PHRASE.fullmatch(" ".join(content.lower().split())).groups()
        for kind, text in (("sign", JOINERS.get(start, start and ",")), ("word", middle.strip(" ,")),
                           ("sign", JOINERS.get(end, end and ","))):
            if text:
                self.add(kind, text)

    def after_operand(self) -> bool:
        """Whether what follows can be a unit."""
        last = self.tokens[-1] if self.tokens else None
        return last is not None and (last.kind != "sign" or is_sign(last, *")}]!/*", "\\}", "\\%"))


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


# -------------------------------------------------------------------------------- lists of tokens

OPENING = ("(", "[", "{", "\\{", "\\lfloor", "\\lceil", "\\langle", "\\begin")
CLOSING = (")", "]", "}", "\\}", "\\rfloor", "\\rceil", "\\rangle", "\\end")


def is_sign(token: Token | None, *texts: str) -> bool:
    return token is not None and token.kind == "sign" and token.text in texts


def canonical(tokens: list[Token]) -> str:
    return " ".join(token.text for token in tokens)


def depths(tokens: list[Token]) -> list[int]:
    """In how many brackets each token is; an opening bracket counts itself, a closing one does not."""
    depth, found = 0, []
    for token in tokens:
        depth += is_sign(token, *OPENING) - is_sign(token, *CLOSING)
        found.append(depth)
    return found


def split(tokens: list[Token], *separators: str) -> tuple[list[list[Token]], list[str]]:
    """The parts of `tokens` between separators outside brackets, and the separators."""
    cuts = [i for i, depth in enumerate(depths(tokens)) if depth == 0 and is_sign(tokens[i], *separators)]
    parts = [tokens[start + 1 : end] for start, end in zip([-1, *cuts], [*cuts, len(tokens)])]
    return parts, [tokens[i].text for i in cuts]


def closing(tokens: list[Token], start: int) -> int:
    """Where the bracket that opens at `start` is closed."""
    try:
        return start + depths(tokens[start:]).index(0)
    except ValueError:
        raise Unread("a bracket is missing") from None


def replace(tokens: list[Token], signs: dict[str, str]) -> list[Token]:
    """The tokens with other signs for some."""
    return [Token("sign", signs[token.text]) if is_sign(token, *signs) else token for token in tokens]
