"""Tokens to trees."""
import re
from fractions import Fraction

from mpmath import mp

from .text import Unread
from .tokens import CLOSING, FUNCTIONS, OPENING, Token, canonical, closing, is_sign, split
from .units import unit_of_words
from .values import CONSTANTS, DEGREE, ONE, Point, defined, inexact, letters_of, replaced, value_at


RELATIONS = ("=", "<", ">", "\\le", "\\ge", "\\ne", "\\in", "\\notin", "\\approx", "\\equiv")
# letters that are functions, whatever is in the brackets that follow
APPLIED = re.compile(r"f(?:_\w+)?|.*'")
MIXED = re.compile(r"(\d+) (?:(\d+) / (\d+) |\\frac (?:\{ )?(\d+) (?:\} )?(?:\{ )?(\d+) (?:\} )?(?![\^!]))")


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

def is_near(tree: tuple | None, other: tuple | None, side: list[Token]) -> bool:
    """Whether a decimal is the rounded or cut value of the formula before it."""
    decimal = re.fullmatch(r"\d+\.(\d+)", canonical(side))
    if tree is None or other is None or letters_of((tree, other)) or not decimal:
        return False
    a, b = (defined(part, 0, False) for part in (tree, other))
    return a is not None and b is not None and abs(inexact(a) - inexact(b)) <= mp.mpf(10) ** -len(decimal[1])
