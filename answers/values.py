"""The value of a formula at a point."""
import functools
import hashlib
import math
import operator
import re
from fractions import Fraction

from mpmath import mp

from .text import TooLarge, Unread


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


DEGREE, ONE = (("degree", 1),), ("n", Fraction(1))
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
