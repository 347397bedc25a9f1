r"""Equations and inequalities: which sides only name the value, which letter lies in which interval.

    x = 3      ("eq", {"x"}, (3,), (x, 3), ())          names, values, all sides, the bound letters of a definition
    1 < x      ("eq", {"x"}, (the interval from 1,), (None,), ())
    x+y < 2    ("rel", ("<",), x+y, 2)                  as it is, rising
"""
import re

from mpmath import mp

from .text import Unread
from .tokens import FUNCTIONS, Token, canonical, is_sign
from .values import CONSTANTS, INFINITY, defined, inexact, letters_of


def outside(tokens: list[Token]) -> list[Token]:
    """The tokens that are in no ( or [."""
    depth, found = 0, []
    for token in tokens:
        depth += is_sign(token, "(", "[") - is_sign(token, ")", "]")
        found += [token] if depth == 0 else []
    return found


def is_name(side: list[Token]) -> bool:
    """Whether a side of an equation only names the value: letters or words, no number but in an index or in brackets,
    no sign before, no known function."""
    free = outside(side)
    if not side or len(side) == 1 and side[0].text in ("\\pi", "\\infty", "\\pm", "e", "i") \
            or any(token.kind == "number" or token.text[1:] in FUNCTIONS for token in free):
        return False
    point = is_sign(side[0], "(") and all(token.kind == "letter" or is_sign(token, "(", ")", ",") for token in side)
    return point or any(token.kind in ("letter", "word") for token in free) and not is_sign(side[0], "+", "-")


def bound_letters(sides: list[list[Token]]) -> dict[str, str]:
    """Of a definition such as f(x) = 2x: its letters by safe names, as f(t) = 2t says the same."""
    head = sides[0]
    arguments = [token.text for token in head[2:-1] if token.kind == "letter"]
    if len(sides) == 2 and head and head[0].kind == "letter" and len(arguments) == len(set(arguments)) > 0 \
            and canonical(head[1:]) == f"( {' , '.join(arguments)} )":
        return {name: f"argument {k}" for k, name in enumerate(arguments)}
    return {}


def is_near(tree: tuple | None, other: tuple | None, side: list[Token]) -> bool:
    """Whether a decimal is the rounded or cut value of the formula before it."""
    decimal = re.fullmatch(r"\d+\.(\d+)", canonical(side))
    if tree is None or other is None or letters_of((tree, other)) or not decimal:
        return False
    a, b = defined(tree), defined(other)
    return a is not None and b is not None and abs(inexact(a) - inexact(b)) <= mp.mpf(10) ** -len(decimal[1])


def equation(sides: list[list[Token]], trees: list[tuple | None], signs: list[str], bound: dict[str, str]) -> tuple:
    """The tree of an equation from its sides as tokens and as trees, None for a name that is no formula."""
    for i in reversed(range(1, len(sides))):            # sqrt(3)/3 = 0.577, nearly
        if signs[i - 1] == "\\approx" and not is_name(sides[i - 1]) and is_near(trees[i], trees[i - 1], sides[i]):
            sides, trees = sides[:i] + sides[i + 1:], trees[:i] + trees[i + 1:]
    if len(trees) == 1:
        return trees[0]
    named = [side for side in sides if is_name(side)]
    values = [tree for side, tree in zip(sides, trees) if not is_name(side)]
    letters = {token.text for side in named for token in outside(side) if token.kind == "letter"}
    if not values and len(trees) == 2 and all(trees) and len(sides[1]) > 1 and trees[0][0] in ("v", "f") \
            and not letters_of(trees[0]) & letters_of(trees[1]):
        named, values, letters = named[:1], trees[1:], letters_of(trees[0])         # F = ma: F names the product
    if named and values and letters & letters_of(values):
        named, values = [], trees                       # x = x^2 names nothing
    back = tuple((new, old) for old, new in bound.items())
    return ("eq", frozenset(map(canonical, named)), tuple(values), tuple(trees), back)


def is_letter(tree: tuple) -> bool:
    return tree[0] == "v" and tree[1] not in CONSTANTS and tree != INFINITY


def inequality(sides: list[tuple], signs: list[str]) -> tuple:
    """Inequalities in one letter as ("eq", its name, an interval or a union of them), others as they are, rising."""
    if all(sign in (">", "\\ge") for sign in signs):
        sides, signs = sides[::-1], [{">": "<", "\\ge": "\\le"}[sign] for sign in signs[::-1]]
    if not set(signs) <= {"<", "\\le"} and signs != ["\\ne"]:
        raise Unread("relations that do not rise")
    letter, values = solved(sides, signs)
    if not is_letter(letter) or letter[1] in letters_of(values):
        return ("rel", tuple(signs), *sides)
    return ("eq", frozenset(letter[1:]), (values,), (None,), ())


def solved(sides: list[tuple], signs: list[str]) -> tuple[tuple, tuple]:
    """(the side that may be a letter, the numbers it stands for)."""
    def interval(low: tuple, first: str, second: str, high: tuple) -> tuple:
        return ("tuple", "[("[first == "<"] + "])"[second == "<"], low, high)

    def around(low: tuple, sign: str, high: tuple) -> tuple:
        return ("union", interval(("neg", INFINITY), "<", sign, low), interval(high, sign, "<", INFINITY))

    low, sign, high = sides[0], signs[0], sides[-1]
    if len(sides) == 3:
        return sides[1], interval(low, sign, signs[1], high)
    if len(sides) > 3:
        return ("rel",), ()
    if sign == "\\ne":
        return (low, around(high, "<", high)) if is_letter(low) else (high, around(low, "<", low))
    if low[:2] == ("f", "abs"):
        return low[2], interval(("neg", high), sign, sign, high)
    if high[:2] == ("f", "abs"):
        return high[2], around(("neg", low), sign, low)
    if is_letter(low):
        return low, interval(("neg", INFINITY), "<", sign, high)
    return high, interval(low, sign, "<", INFINITY)
