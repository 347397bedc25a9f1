"""What equals what."""
import itertools
import re
from fractions import Fraction

from .statements import Statement
from .values import defined, has, letters_of, proportional, replaced, same_formula


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
