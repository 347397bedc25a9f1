r"""Tokens to trees, by recursive descent.

    member(tokenize("x^2/2"))           # ("/", ("^", ("v", "x"), ("n", 2)), ("n", 2))
    member(tokenize("(1,2]"))           # ("tuple", "(]", ("n", 1), ("n", 2))

Beside the trees that have a value (values.py) there are "tuple" with its brackets, "set", "such" (a set by a
condition), "union", "\cap", "\setminus", "matrix" with its rows, "ratio" and "clock" with a.m. or p.m., "quantities"
side by side (2 hours 30 minutes), "eq" and "rel" (relations.py). All tokens are read, or Unread is raised.
"""
import re
from fractions import Fraction

from .relations import bound_letters, equation, inequality, is_name
from .text import Unread
from .tokens import FUNCTIONS, OPENING, Token, canonical, closing, depths, is_sign, replace, split
from .units import unit_of_words
from .values import CONSTANTS, DEGREE, ONE, Point, replaced, value_at

APPLIED = re.compile(r"f(?:_\w+)?|.*'")                 # letters that are functions of whatever is in brackets
MIXED = re.compile(r"(\d+) (?:(\d+) / (\d+) |\\frac (?:\{ )?(\d+) (?:\} )?(?:\{ )?(\d+) (?:\} )?(?![\^!]))")
DERIVATIVE = re.compile(r"\{ d .*\} \{ d \S+( \^.*)? \}")
SUMS = ("\\sum", "\\prod", "\\int", "\\lim")
STARTERS = {*OPENING, *SUMS, "\\frac", "\\binom", *(f"\\{name}" for name in FUNCTIONS)}
SEVERAL = ("gcd", "lcm", "max", "min")                  # functions of more than one number


class Parser:
    """Reads one side of a relation into a tree; `bars`: inside |...|, where a bar closes and cannot open."""

    def __init__(self, tokens: list[Token], bars: bool = False):
        self.tokens, self.i, self.bars = tokens, 0, bars

    def peek(self) -> Token | None:
        return self.tokens[self.i] if self.i < len(self.tokens) else None

    def at(self, *texts: str) -> bool:
        return is_sign(self.peek(), *texts)

    def take(self, *texts: str) -> bool:
        found = self.at(*texts)
        self.i += found
        return found

    def group(self) -> list[Token]:
        """What is in the bracket that opens here, or the one token that is here."""
        end = closing(self.tokens, self.i)
        inner = self.tokens[self.i + 1 : end] if end > self.i else self.tokens[end : end + 1]
        self.i = end + 1
        return inner

    def signed(self, read) -> tuple:
        return ("neg", read()) if self.take("-") else read()

    def whole(self) -> tuple:
        """All tokens as one tree."""
        for sign in ("\\choose", "\\over"):
            parts, found = split(self.tokens, sign)
            if len(found) == 1:
                above, below = (Parser(part).whole() for part in parts)
                return ("f", "binom", above, below) if sign == "\\choose" else ("/", above, below)
        quantities = [self.union()]
        while (token := self.peek()) is not None:
            if quantities[-1][0] != "u" or token.kind != "number":
                raise Unread(f"{token.text} after what was read")
            quantities.append(self.union())
        if len(quantities) > 1 and quantities[-1][0] != "u":
            raise Unread("a quantity without its unit")
        return quantities[0] if len(quantities) == 1 else ("quantities", *quantities)

    def union(self) -> tuple:
        parts = [self.sum()]
        while self.at("\\cup", "\\cap", "\\setminus", "\\backslash"):
            sign = self.peek().text
            self.i += 1
            if sign == "\\cup":
                parts.append(self.sum())
            else:
                parts = [(sign, ("union", *parts) if len(parts) > 1 else parts[0], self.sum())]
        return ("union", *parts) if len(parts) > 1 else parts[0]

    def sum(self) -> tuple:
        tree = self.term()
        while self.at("+", "-"):
            tree = ("+", tree, ("neg", self.term()) if self.take("-") else self.take("+") and self.term())
        return tree

    def term(self) -> tuple:
        """Factors side by side or with signs between them, and a unit at the end."""
        if self.at("+", "-"):
            return ("neg", self.term()) if self.take("-") else self.take("+") and self.term()
        if self.take("\\$"):
            return ("u", self.term(), (("dollar", 1),))
        tree = last = self.factor(first=True)
        while (token := self.peek()) is not None:
            if self.at("*", "/"):
                self.i += 1
                last = self.signed(self.factor)
                tree = (token.text, tree, last)
            elif self.take("\\bmod"):
                tree = last = ("f", "mod", tree, self.factor())
            elif token.kind == "word" or self.at("\\cent") \
                    or self.at("\\frac") and [next.kind for next in self.tokens[self.i + 2 : self.i + 3]] == ["word"]:
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
        return token.kind != "sign" or token.text in STARTERS or token.text == "|" and not self.bars

    def mixed(self) -> tuple | None:
        """A mixed number, 2\\frac{1}{2} or 2 1/2, if one begins here."""
        match = MIXED.match(canonical(self.tokens[self.i : self.i + 8]) + " ")
        if not match or not 0 < int(match[2] or match[4]) < int(match[3] or match[5]):
            return None
        self.i += match.group().count(" ")
        return ("n", int(match[1]) + Fraction(int(match[2] or match[4]), int(match[3] or match[5])))

    def factor(self, first: bool = False) -> tuple:
        """A base with its exponents, !, \\% and degree signs."""
        tree = first and self.mixed() or self.base()
        while self.at("^", "!", "\\%"):
            if self.take("!"):
                tree = ("f", "double factorial" if self.take("!") else "factorial", tree)
            elif self.take("\\%"):
                tree = ("u", tree, (("percent", 1),))
            elif self.take("^") and self.take("\\circ"):
                tree = ("u", tree, DEGREE)
            elif canonical(self.tokens[self.i : self.i + 3]) == "{ \\circ }":
                self.group()
                tree = ("u", tree, DEGREE)
            else:
                tree = ("^", tree, self.power() if not self.take("-") else ("neg", self.factor()))
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
            elif self.take("\\frac"):
                for sign in (1, -1):
                    for name, power in Parser(self.group()).unit():
                        unit[name] = unit.get(name, 0) + sign * power
            elif unit and self.take("^"):
                unit[list(unit)[-1]] *= int(value_at(self.signed(self.base), Point(0)))
            elif not self.take("*"):
                break
        return tuple(sorted(unit.items()))

    def base(self) -> tuple:
        """What exponents belong to: a number, a letter, what is in brackets or bars, a function of what follows."""
        token = self.peek()
        if token is None:
            raise Unread("something is missing at the end")
        if self.at("(", "[", "{", "\\{", "\\lfloor", "\\lceil", "\\langle"):
            inner = self.group()
            return bracket(token.text, inner, self.tokens[self.i - 1].text)
        self.i += 1
        if token.kind == "number":
            return token.value
        if token.kind == "letter":
            return self.letter(token)
        if token.kind == "word" and " " not in token.text:
            return ("v", f"text {token.text}")
        sign = token.text if token.kind == "sign" else ""
        if sign == "|":
            rest = self.tokens[self.i:]
            bars = [j for j, depth in enumerate(depths(rest)) if depth == 0 and is_sign(rest[j], "|")]
            if not bars:
                raise Unread("a bar is missing")
            self.i += bars[0] + 1
            return ("f", "abs", Parser(rest[: bars[0]], bars=True).whole())
        if sign == "\\frac":
            start = self.i
            above, below = self.base(), self.base()
            if above[0] in "*v^" and below[0] in "*v" and DERIVATIVE.fullmatch(canonical(self.tokens[start : self.i])):
                above, below = replaced(above, {"d": "d above"}), replaced(below, {"d": "d below"})
            return ("/", above, below)
        if sign == "\\binom":
            return ("f", "binom", self.base(), self.base())
        if sign == "\\sqrt":
            root = Parser(self.group()).whole() if self.at("[") else ("n", Fraction(2))
            return ("^", self.base(), ("/", ONE, root))
        if sign in SUMS:
            return self.sum_or_integral(sign[1:])
        if sign == "\\begin":
            return self.matrix()
        if sign[1:] in FUNCTIONS:
            return self.function(sign[1:])
        raise Unread(token.text)

    def letter(self, token: Token) -> tuple:
        """A letter, or a function of what follows in brackets: f(2), P(X=1), but k(k+1) is a product."""
        if self.at("("):
            inner = self.tokens[self.i + 1 : closing(self.tokens, self.i)]
            parts = split(inner, ",")[0]
            if len(parts) > 1 or token.text not in CONSTANTS and (len(inner) == 1 or APPLIED.fullmatch(token.text)):
                self.group()
                return ("f", f"letter {token.text}", *map(member, parts))
        return ("set",) if token.text == "\\emptyset" else ("v", token.text)

    def function(self, name: str) -> tuple:
        """\\sin x, \\sin^2(x), \\log_2 8, \\max(a,b): without brackets the argument is the product that follows."""
        base = power = None
        while self.at("_", "^"):
            if self.take("_"):
                base = self.base()
            elif self.take("^"):
                power = self.signed(self.base)
        if power == ("neg", ONE) and name in ("sin", "cos", "tan"):
            name, power = f"arc{name}", None
        if self.at("(", "{", "["):
            tree = self.base()
        else:
            tree = self.factor()
            while (token := self.peek()) is not None and self.starts_factor(token) and token.kind != "word" \
                    and token.text[1:] not in FUNCTIONS:
                tree = ("*", tree, self.factor())
        arguments = tree[2:] if tree[0] == "tuple" else (tree,)
        if len(arguments) > 1 and name not in SEVERAL:
            raise Unread(name)
        if name == "exp":
            tree = ("^", ("v", "e"), tree)
        elif name in ("ln", "log", "lg"):
            base = ("n", Fraction(10)) if name == "lg" else base
            tree = ("/", ("f", "ln", tree), ("f", "ln", base)) if base else ("f", "ln", tree)
        else:
            tree = ("f", name, *arguments)
        return ("^", tree, power) if power else tree

    def sum_or_integral(self, name: str) -> tuple:
        """\\sum_{k=1}^{n} with the product that follows, \\int with all that follows up to its d, \\lim_{x\\to 0}."""
        lower, upper, letter = ("v", "none"), ("v", "none"), "k"
        while self.at("_", "^"):
            below = self.take("_") or not self.take("^")
            inner = self.group()
            if below and len(inner) > 2 and inner[0].kind == "letter" and is_sign(inner[1], "=", "\\to"):
                letter, inner = inner[0].text, inner[2:]
            tree = Parser(inner).whole()
            lower, upper = (tree, upper) if below else (lower, tree)
        if name != "int":
            return ("sum", name, letter, lower, upper, self.term())
        rest = self.tokens[self.i:]
        ends = [j for j in range(len(rest) - 1) if rest[j].text == "d" and rest[j + 1].kind == "letter"]
        if not ends:
            raise Unread("an integral without its d")
        self.i += ends[-1] + 2
        body = Parser(rest[: ends[-1]]).whole() if ends[-1] else ONE
        return ("sum", name, rest[ends[-1] + 1].text, lower, upper, body)

    def matrix(self) -> tuple:
        """\\begin{pmatrix} or an array as rows of trees; cases are read by statements.py."""
        end = closing(self.tokens, self.i - 1)
        name = "".join(token.text for token in self.group())
        if name == "array":
            self.group()                                # its columns
        elif name not in ("pmatrix", "bmatrix", "matrix"):
            raise Unread(name)
        rows = [row for row in split(self.tokens[self.i : end], "\\\\")[0] if row]
        self.i = end + 1
        self.group()                                    # its name again
        return ("matrix", *(tuple(Parser(cell).whole() for cell in split(row, "&")[0]) for row in rows))


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
        return ("set", *map(member, parts))             # {1,2} for \{1,2\}
    if any(is_sign(token, "=") for token in inner):
        raise Unread("an equation in a point")
    return ("tuple", opened.removeprefix("\\")[0] + closed.removeprefix("\\")[0], *map(member, parts))


def braces(inner: list[Token]) -> tuple:
    """A set by its members or by a condition."""
    if not inner:
        return ("set",)
    parts, found = split(inner, "\\mid", "|", ":")
    if len(found) == 1 and parts[0] and parts[0][0].kind == "letter" \
            and (len(parts[0]) == 1 or len(parts[0]) == 3 and is_sign(parts[0][1], "\\in")):
        tree, domain = member(parts[1]), canonical(parts[0][2:])
        return ("such", domain, tree) if domain not in ("", "\\mathbbR") else tree
    return ("set", *(tree for part in split(inner, ",")[0] for tree in expanded(part)))


def expanded(tokens: list[Token]) -> list[tuple]:
    """The members that a part with \\pm stands for: one with the upper, one with the lower signs."""
    if not any(is_sign(token, "\\pm", "\\mp") for token in tokens) or is_sign(tokens[0], "\\{"):
        return [member(tokens)]                         # a set expands its own members
    return [member(replace(tokens, {"\\pm": upper, "\\mp": lower})) for upper, lower in ("+-", "-+")]


def member(tokens: list[Token]) -> tuple:
    """One member of a list: a value or a relation."""
    sides, signs = split(tokens, "=", "<", ">", "\\le", "\\ge", "\\ne", "\\in", "\\notin", "\\approx", "\\equiv")
    if not signs:
        return value(tokens)
    if set(signs) <= {"=", "\\in", "\\approx"}:
        bound = bound_letters(sides)
        sides = [[token._replace(text=bound.get(token.text, token.text)) for token in side] for side in sides]
        return equation(sides, [value_or_name(side) for side in sides], signs, bound)
    if set(signs) <= {"<", "\\le", ">", "\\ge", "\\ne"}:
        return inequality([value(side) for side in sides], signs)
    raise Unread(f"relations {signs}")


def value_or_name(side: list[Token]) -> tuple | None:
    """The tree of a side, None for a name that is no formula."""
    try:
        return value(side)
    except Unread:
        if not is_name(side):
            raise
    return None


def value(tokens: list[Token]) -> tuple:
    """One side: a tree, or a ratio or clock time with its parts."""
    parts = split(tokens, ":")[0]
    if len(parts) == 1:
        return Parser(tokens).whole()
    half, last = "", parts[-1][-1:]
    if last and last[0].kind == "word" and (word := re.sub(r"[. ]", "", last[0].text)) in ("am", "pm"):
        half, parts[-1] = word, parts[-1][:-1]
    clock = re.fullmatch(r"(?:1?\d|2[0-4]):[0-5]\d", ":".join(map(canonical, parts)))
    return ("clock" if clock else "ratio", half, *(Parser(part).whole() for part in parts))
