"""A normalised text as tokens."""
import re
from fractions import Fraction
from typing import NamedTuple

from .text import FONT, GREEK, MACRO, Unread
from .units import UNIT_NAMES


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


OPENING = ("(", "[", "{", "\\{", "\\lfloor", "\\lceil", "\\langle", "\\begin")
CLOSING = (")", "]", "}", "\\}", "\\rfloor", "\\rceil", "\\rangle", "\\end")


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
