r"""The value of a formula at a point, and whether two formulas have the same values.

    value_at(("/", ("n", Fraction(1)), ("v", "x")), Point(0))       # a Fraction that follows from the name x
    same_formula(a, b)      # True for the trees of \frac{x^2-1}{x-1} and x+1

A tree is a tuple that begins with its kind: ("n", number), ("v", letter), ("+", a, b), *, /, ^, ("neg", a),
("f", function, arguments...), ("u", a, unit), ("base", value, base, digits), ("sum", name, letter, from, to, body);
others have no value (parser.py). Work is bounded by size, so that a verdict depends on the trees alone.
"""
import functools
import hashlib
import math
import operator
import re
from collections.abc import Iterator
from fractions import Fraction

from mpmath import mp

from .text import Unread

BITS = 100_000                                          # of an exact number
STEPS = 20_000                                          # nodes of one evaluation, the terms of sums included
SUM_TERMS = 1000
DIGITS = 30                                             # of the first evaluation; the second has more
CONSTANTS = {"\\pi": lambda: +mp.pi, "e": lambda: +mp.e, "i": lambda: mp.mpc(0, 1), "\\imath": lambda: mp.mpc(0, 1)}
WHOLE = re.compile(r"[abijklmnpqKMN](?![a-z])")         # letters that stand for integers by custom
ONE, INFINITY = ("n", Fraction(1)), ("v", "\\infty")
DEGREE = (("degree", 1),)


class TooLarge(Exception):
    """More digits or more steps than an answer deserves."""


class Point:
    """Numbers for letters and for functions of which nothing is known; they follow from their names and the point's
    own number alone. At point 0 all letters are positive, at point 1 all negative, then they have mixed signs; `whole`
    makes integers of those that stand for integers by custom."""

    def __init__(self, number: int, whole: bool = False):
        self.number, self.whole, self.steps, self.letters = number, whole, 0, {}

    def of(self, name: str) -> Fraction:
        if name not in self.letters:
            bits = int.from_bytes(hashlib.blake2b(f"{self.number} {name}".encode(), digest_size=8).digest(), "big")
            sign = (1, -1)[self.number] if self.number < 2 else 1 - 2 * (bits >> 60 & 1)
            whole = self.whole and WHOLE.match(name)
            self.letters[name] = Fraction(2 + bits % 17) if whole else sign * Fraction(10 + bits % 251, 97)
        return self.letters[name]

    def unknown(self, name: str, *arguments) -> Fraction:
        """The value of a function of which nothing is known but that equal arguments have equal values."""
        return self.of(f"{name}({','.join(mp.nstr(inexact(x), 12) for x in arguments)})")


# -------------------------------------------------------------------------------- trees

def letters_of(tree: object) -> set[str]:
    """Names of the letters of a tree, or of several, constants left out."""
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


def radians(tree: tuple) -> tuple:
    """The argument of a sine with its degrees as what they are."""
    if tree[0] == "u" and tree[2] == DEGREE:
        return ("*", tree[1], ("/", ("v", "\\pi"), ("n", Fraction(180))))
    return tuple(radians(part) if isinstance(part, tuple) else part for part in tree)


# -------------------------------------------------------------------------------- fractions and numbers of mpmath

def inexact(x):
    return mp.mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else x


def alike(a, b) -> tuple:
    """Two fractions as they are, else both as numbers of mpmath."""
    return (a, b) if isinstance(a, Fraction) and isinstance(b, Fraction) else (inexact(a), inexact(b))


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


def extreme(choose):
    def apply(*numbers):
        if any(isinstance(x, mp.mpc) for x in numbers):
            raise ZeroDivisionError
        return choose(*numbers) if all(isinstance(x, Fraction) for x in numbers) else choose(*map(inexact, numbers))
    return apply


def floor(x) -> Fraction:
    if isinstance(x, mp.mpc):
        raise ZeroDivisionError
    n = whole_number(x)
    return Fraction(n if n is not None else math.floor(x) if isinstance(x, Fraction) else int(mp.floor(x)))


def of_mpmath(name: str):
    return lambda x: getattr(mp, name)(inexact(x))


TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")
KNOWN = {
    "factorial": factorial, "double factorial": functools.partial(factorial, step=2), "binom": binomial, "abs": abs,
    "floor": floor, "ceil": lambda x: -floor(-x), "max": extreme(max), "min": extreme(min),
    "gcd": of_integers(math.gcd), "lcm": of_integers(math.lcm), "mod": of_integers(operator.mod),
    "ln": of_mpmath("log"), "arcsin": of_mpmath("asin"), "arccos": of_mpmath("acos"), "arctan": of_mpmath("atan"),
    **{name: of_mpmath(name) for name in (*TRIGONOMETRIC, "sinh", "cosh", "tanh")}}
ARITHMETIC = {"+": operator.add, "*": operator.mul, "/": operator.truediv}


# -------------------------------------------------------------------------------- the value of a tree

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
        if tree == INFINITY:
            raise ZeroDivisionError
        return CONSTANTS[tree[1]]() if tree[1] in CONSTANTS else point.of(tree[1])
    if kind in ARITHMETIC:
        return sized(ARITHMETIC[kind](*alike(value_at(tree[1], point), value_at(tree[2], point))))
    if kind == "neg":
        return -value_at(tree[1], point)
    if kind == "^":
        return raised(value_at(tree[1], point), value_at(tree[2], point))
    if kind == "u":
        return value_at(tree[1], point)
    if kind == "base":
        return point.of(f"{tree[3]} base {tree[2]}") if tree[1] is None else tree[1]
    if kind in ("eq", "rel"):                           # P(X=1)
        return point.unknown(kind, *(value_at(side, point) for side in (tree[3] if kind == "eq" else tree[2:])))
    if kind == "f":
        arguments = [value_at(radians(part) if tree[1] in TRIGONOMETRIC else part, point) for part in tree[2:]]
        if tree[1] not in KNOWN:
            return point.unknown(tree[1], *arguments)
        result = KNOWN[tree[1]](*arguments)
        if not isinstance(result, Fraction) and not mp.isfinite(result):
            raise ZeroDivisionError
        return sized(result)
    if kind == "sum":
        return summed(tree, point)
    raise Unread(kind)


def summed(tree: tuple, point: Point):
    """A finite sum or product term by term; another, an integral or a limit stands for itself and equals what has an
    equal body."""
    _, name, letter, lower, upper, body = tree
    ends = [point.of("infinity") if end == INFINITY else value_at(end, point) for end in (lower, upper)]
    indexed = any(other != letter and re.search(rf"[_(].*{re.escape(letter)}", other) for other in letters_of(body))
    first, last = map(whole_number, ends)
    if name not in ("sum", "prod") or indexed or first is None or last is None:
        return point.unknown(name, *ends, value_at(replaced(body, {letter: "summed"}), point))
    if last - first >= SUM_TERMS:
        raise TooLarge
    total = Fraction(name == "prod")
    for k in range(first, last + 1):
        term = value_at(replaced(body, {letter: ("n", Fraction(k))}), point)
        total = sized(ARITHMETIC["+" if name == "sum" else "*"](*alike(total, term)))
    return total


# -------------------------------------------------------------------------------- whether two formulas are one

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
        a, b = alike(*combine())
        if isinstance(a, Fraction):
            return a == b
        first = abs(a - b)
        if first > mp.mpf("1e-10") * max(abs(a), abs(b), mp.mpf("1e-10")):
            return False                                # what is smaller may be a zero with the errors of rounding
    with mp.workdps(2 * DIGITS + 2 * more):
        a, b = map(inexact, combine())
        return abs(a - b) <= max(first * mp.mpf(10) ** -(DIGITS // 2), abs(a) * mp.mpf(10) ** (10 - mp.dps))


def defined(tree: tuple, number: int = 0, whole: bool = False):
    """The value of a tree at a point, None if it has none there."""
    try:
        return value_at(tree, Point(number, whole))
    except (ZeroDivisionError, ValueError, OverflowError):
        return None


def common_points(a: tuple, b: tuple) -> Iterator[tuple[tuple[int, bool], list] | None]:
    """(point, values there) where both formulas have values, None where only one has. A point is (number, whole numbers
    only): one if there is no letter, more where steps could agree by chance."""
    whole = has((a, b), "floor", "ceil", "gcd", "lcm", "mod", "sum")
    lettered = letters_of((a, b)) or has((a, b), "sum", "base")
    for number in range(1 if not lettered else 8 if whole else 4):
        with mp.workdps(DIGITS):
            values = [defined(tree, number, whole) for tree in (a, b)]
        missing = sum(value is None for value in values)
        if missing < 2:
            yield None if missing else ((number, whole), values)


def same_formula(a: tuple, b: tuple) -> bool:
    """Whether two formulas have the same values wherever they have any."""
    compared = False
    for found in common_points(a, b):
        if found is None or not is_zero((a, b), lambda: [value_at(tree, Point(*found[0])) for tree in (a, b)]):
            return False
        compared = True
    return compared


def proportional(a: tuple, b: tuple, positive: bool = False) -> bool:
    """Whether the relations a[0] ~ a[1] and b[0] ~ b[1] are one up to a constant factor, which may have to be
    `positive`: their differences have one ratio everywhere."""
    a, b = (("+", left, ("neg", right)) for left, right in (a, b))
    ratios = []
    for found in common_points(a, b):
        if found is None or len({abs(value) < 1e-20 for value in found[1]}) == 2:
            return False
        if abs(found[1][0]) >= 1e-20:
            if positive and mp.re(operator.truediv(*map(inexact, found[1]))) < 0:
                return False
            ratios.append(lambda at=found[0]: value_at(("/", a, b), Point(*at)))
    return len(ratios) > 1 and all(is_zero((a, b), lambda: [ratios[0](), ratio()]) for ratio in ratios[1:])
