r"""What equals what: lists without order, points with their brackets, quantities with their units, equations by their
names and values or up to a factor, formulas by their values.

    same_statement(*read("x=2,3"), *read("3 and 2"))            # True
    same(read("9\\text{ ft}")[0].members[0], read("9\\text{ m}")[0].members[0])        # False
"""
import itertools
import re
from collections.abc import Iterator
from fractions import Fraction

from .statements import Statement
from .values import INFINITY, defined, has, letters_of, proportional, replaced, same_formula

PERCENT = ("percent", 1)
ANY_UNIT = {("unit", power) for power in (1, 2, 3)}
RATIOS = {"ratio", "clock"}
PARTS = {"tuple", "such", "rel", "quantities", "\\cap", "\\setminus"}       # equal if all their parts are
NO_FORMULA = {"union", "matrix", "set", *RATIOS, *PARTS}


def matched(a: tuple, b: tuple, equal) -> bool:
    """Whether every member of either has an equal one in the other: order and repetitions do not count."""
    rest = list(b)
    for x in a:
        found = next((i for i, y in enumerate(rest) if equal(x, y)), None)
        if found is not None:
            del rest[found]
        elif not any(equal(x, y) for y in b):
            return False
    return all(any(equal(x, y) for x in a) for y in rest)


# -------------------------------------------------------------------------------- values

def quantity(tree: tuple) -> tuple[tuple, tuple]:
    """(value, unit); () for no unit."""
    if tree[0] == "neg" and tree[1][0] == "u":
        return ("neg", tree[1][1]), tree[1][2]
    return (tree[1], tree[2]) if tree[0] == "u" else (tree, ())


def same_unit(a: tuple, b: tuple) -> bool:
    """No unit equals any; phrases of which one begins with the other are one ("marbles", "marbles in total")."""
    if not a or not b or a == b or ANY_UNIT & {*a, *b}:
        return True
    if len(a) > 1 or len(b) > 1 or a[0][1] != b[0][1]:
        return False
    short, long = sorted((a[0][0], b[0][0]), key=len)
    return long.startswith(short) and len(short) > 3


def same(a: tuple, b: tuple) -> bool:
    """Whether two values are equal: their units, where both have one, and they themselves."""
    if a == b:
        return True
    (a, unit), (b, other) = quantity(a), quantity(b)
    if (PERCENT in unit) != (PERCENT in other):         # 50\% answers 50 and 0.5
        times = ("*", ("n", Fraction(100)), b if PERCENT in unit else a)
        return not (unit and other) and (same(a, b) or same_formula(times, a if PERCENT in unit else b))
    return (PERCENT in unit or same_unit(unit, other)) and same_value(a, b)


def same_value(a: tuple, b: tuple) -> bool:
    """Whether two trees without units are equal, each as what it is."""
    a, b = as_intervals(a), as_intervals(b)
    kinds = {a[0], b[0]}
    if "such" in kinds and len(kinds) == 2:             # its domain is optional
        return same_member(*(tree[2] if tree[0] == "such" else tree for tree in (a, b)))
    if "union" in kinds:
        return matched(*(tree[1:] if tree[0] == "union" else (tree,) for tree in (a, b)), same)
    if kinds == {"set"}:
        return matched(a[1:], b[1:], same_member)
    if kinds & RATIOS:
        return same_ratio(a, b)
    if kinds & {"set", *PARTS}:
        return len(kinds) == 1 and len(a) == len(b) and all(map(same_part, a[1:], b[1:]))
    if has((a, b), "matrix"):
        a, b = matrix(a), matrix(b)
        return bool(a and b) and list(map(len, a)) == list(map(len, b)) and all(
            map(same_formula, itertools.chain(*a), itertools.chain(*b)))
    if kinds == {"base"}:
        return a[2:] == b[2:]
    if INFINITY in (a, b, a[1], b[1]):
        return a == b
    return same_formula(a, b)


def same_part(a: object, b: object) -> bool:
    """Whether two parts of a point or of another whole are equal: members, or the texts of brackets and domains."""
    return same_member(a, b) if isinstance(a, tuple) else a == b


def as_intervals(tree: tuple) -> tuple:
    """\\mathbb{R}, whole or without a number, as intervals; anything else as it is."""
    low = ("neg", INFINITY)
    if tree == ("v", "\\mathbbR"):
        return ("tuple", "()", low, INFINITY)
    if tree[:2] == ("\\setminus", ("v", "\\mathbbR")) and tree[2][0] == "set" and len(tree[2]) == 2:
        return ("union", ("tuple", "()", low, tree[2][1]), ("tuple", "()", tree[2][1], INFINITY))
    return tree


def same_ratio(a: tuple, b: tuple) -> bool:
    """Ratios up to a factor, clock times by their parts; a ratio of two equals its quotient."""
    if not {a[0], b[0]} <= RATIOS:
        ratio, other = (a, b) if a[0] in RATIOS else (b, a)
        return not ratio[1] and len(ratio) == 4 and are_formulas(other) and same_formula(("/", *ratio[2:]), other)
    if a[1] and b[1] and a[1] != b[1] or len(a) != len(b):
        return False                                    # a.m. and p.m.
    if a[0] == b[0] == "clock" or a[1] or b[1]:
        return all(map(same, a[2:], b[2:]))
    return all(same_formula(("*", x, b[2]), ("*", y, a[2])) for x, y in zip(a[3:], b[3:]))


def matrix(tree: tuple) -> list[list[tuple]] | None:
    """The rows of a matrix, of a sum of matrices, of a multiple of one; None for anything else."""
    if tree[0] == "matrix":
        return tree[1:]
    if tree[0] not in ("neg", "+", "*", "/"):
        return None
    parts = [matrix(part) for part in tree[1:]]
    if tree[0] == "+":
        a, b = parts
        fits = a and b and list(map(len, a)) == list(map(len, b))
        return [[("+", x, y) for x, y in zip(*rows)] for rows in zip(a, b)] if fits else None
    if sum(part is not None for part in parts) != 1 or tree[0] == "/" and not parts[0]:
        return None
    at = next(i for i, part in enumerate(parts) if part)
    return [[(*tree[: at + 1], cell, *tree[at + 2 :]) for cell in row] for row in parts[at]]


# -------------------------------------------------------------------------------- members: values and relations

def definition(tree: tuple) -> bool:
    return tree[0] == "eq" and bool(tree[1]) and bool(tree[2])


def value_of(tree: tuple) -> tuple:
    """What an equation names, or the tree itself."""
    return tree[2][0] if definition(tree) else tree


def same_member(a: tuple, g: tuple) -> bool:
    """Whether a member of the answer equals one of the gold.

    Equations and inequalities are compared with their kind. A value answers x = value, and the other way round, but
    not an equation whose name is a sum (0 for a+b-c = 0), nor one without a name that has letters. All that an
    answer says must be right.
    """
    if a == g:
        return True
    if a[0] == g[0] == "eq":
        return same_equation(a, g)
    if a[0] == g[0] == "rel":
        return same_relation(a, g)
    if definition(g):
        value = replaced(g[2][0], dict(g[4]))
        return not any({"+", "-"} & set(name.split()) for name in g[1]) and same(a, value)
    if g[0] == "eq":
        return not letters_of(g[3]) and any(side is not None and same(a, side) for side in g[3])
    if a[0] == "eq":
        return (definition(a) or bool(a[2]) and not letters_of(a[3])) and all(
            same(replaced(part, dict(a[4])), g) for part in a[2])
    return same(a, g)


def same_equation(a: tuple, g: tuple) -> bool:
    """By their values where they have a name in common; by their sides where the gold has no letter; else up to a
    factor."""
    if definition(a) and definition(g) and a[1] & g[1]:
        return all(same_member(part, g[2][0]) for part in a[2])
    if not definition(g) and not letters_of(g[3]):      # 0.56 = 56\%
        return None not in (*a[3], *g[3]) and all(any(same(side, other) for other in g[3]) for side in a[2] or a[3])
    return len(a[3]) == len(g[3]) == 2 and are_formulas(*a[3], *g[3]) and proportional(a[3], g[3])


def same_relation(a: tuple, g: tuple) -> bool:
    """Inequalities up to a positive factor, chains of them side by side."""
    if a[1] != g[1] or len(a) != len(g):
        return False
    if len(a) == 4 and are_formulas(*a[2:], *g[2:]):
        return proportional(a[2:], g[2:], positive=a[1] != ("\\ne",))
    return all(map(same, a[2:], g[2:]))


def are_formulas(*trees: tuple | None) -> bool:
    return all(tree is not None and tree[0] not in NO_FORMULA for tree in trees)


# -------------------------------------------------------------------------------- lists

def by_name(members: tuple) -> dict | None:
    """x=1, y=2 and (x,y)=(1,2) as values by name; None for anything else."""
    found = {}
    for tree in members:
        if not definition(tree) or len(tree[1]) != 1 or len(tree[2]) != 1:
            return None
        names = re.sub(r"[() ]", "", *tree[1]).split(",")
        values = tree[2][0][2:] if len(names) > 1 and tree[2][0][0] == "tuple" else tree[2]
        if len(names) != len(values) or set(names) & set(found):
            return None
        found |= dict(zip(names, values))
    return found if len(found) > 1 else None


def in_order(members: tuple, others: tuple, named: dict | None) -> bool | None:
    """Whether the values of named members are those of a list, or members those of a single point, in their order; None
    where it is neither."""
    values, point = tuple(named.values()) if named else members, value_of(others[0])
    if len(others) == 1 and len(values) > 1 and point[:2] == ("tuple", "()") and (
            named or not any(definition(tree) or tree[0] in ("tuple", "set") for tree in members)):
        others = point[2:]
    elif not named or len(others) == 1:
        return None
    return len(values) == len(others) and all(map(same, values, others))


def spread_names(members: tuple) -> tuple:
    """The members of a list, each with the name that stands before the first; a set in place of its list."""
    value = value_of(members[0])
    if len(members) == 1 and value[0] in ("set", "quantities") and len(value) > 1 and value[1] != ("set",):
        if definition(members[0]):
            return tuple(("eq", members[0][1], (part,), (None,), ()) for part in value[1:])
        return value[1:]
    first, found = None, []
    for tree in members:
        if definition(tree) and len(tree[2]) == 1:
            first = tree
        elif first and tree[0] not in ("eq", "rel"):
            tree = ("eq", first[1], (tree,), (first[3][0], tree), first[4])
        found.append(tree)
    return tuple(found)


def same_members(members: tuple, golds: tuple) -> bool:
    """Whether two lists are equal: by name where members are named, in order where one is a point, else without
    order."""
    names, gold_names = by_name(members), by_name(golds)
    if names and gold_names:
        if set(names) == set(gold_names):
            return all(same(names[name], gold_names[name]) for name in names)
        return len(members) == len(golds) and matched(members, golds, same_member)
    for found in (in_order(members, golds, names), in_order(golds, members, gold_names)):
        if found is not None:
            return found
    members, golds = spread_names(members), spread_names(golds)
    quantities = len(golds) > 1 and all(tree[0] == "u" for tree in members + golds)
    if quantities and len({tree[2] for tree in golds}) == len(golds):               # 2 hours 30 minutes
        return len(members) == len(golds) and matched(members, golds, lambda x, y: x[2] == y[2] and same(x, y))
    return matched(members, golds, same_member)


# -------------------------------------------------------------------------------- statements

def same_statement(a: Statement, g: Statement) -> bool:
    """Whether two statements say the same, up to the names of free constants and of the letters of a domain."""
    if a.domain and g.domain and a.domain != g.domain:
        return False
    if a.modulus or g.modulus:
        return same_congruence(a, g)
    return same_members(a.members, g.members) or any(
        same_members(replaced(a.members, names), g.members) for names in renamings(a, g))


def renamings(a: Statement, g: Statement) -> Iterator[dict[str, str]]:
    """Other names for the letters that an answer may name as it likes."""
    mine, theirs = letters_of(a.members), letters_of(g.members)
    if "Z" in a.domain + g.domain:                      # k\pi and n\pi with an integer
        new, old = ([name for name in names if name in set("ijklmn")] for names in (mine - theirs, theirs - mine))
        if len(new) == len(old) == 1:
            yield {new[0]: old[0]}
            return
    value = value_of(g.members[0])
    constants = free_constants(value) if has(value, "^", "ln", "sin", "cos", "tan") else []
    constants = [name for name in constants if str(value).count(f"('v', '{name}')") == 1]
    missing = [name for name in constants if name not in mine]
    others = sorted(name for name in mine - theirs if re.fullmatch(r"[cCkKABD](?:_\w+)?", name))
    if len(others) == len(missing) and 0 < len(others) < 4:
        yield from (dict(zip(others, order)) for order in itertools.permutations(missing))


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


def same_congruence(a: Statement, g: Statement) -> bool:
    """Whether moduli and residues are one; 12 (mod 13) answers 12."""
    if not a.modulus:
        return False
    if not g.modulus:
        return a.members == g.members and a.modulus[0] == a.members[0][0] == "n" and 0 <= a.members[0][1] < a.modulus[1]
    return same_formula(a.modulus, g.modulus) and matched(
        spread_names(a.members), spread_names(g.members), lambda x, y: same_residue(x, y, g.modulus))


def same_residue(a: tuple, g: tuple, modulus: tuple) -> bool:
    """Whether two members of congruences are one: the same name, and values apart by a multiple of the modulus."""
    if definition(a) and definition(g):
        if a[1] != g[1]:
            return False
        a, g = a[2][0], g[2][0]
    if "eq" in (a[0], g[0]):
        return same_member(a, g)
    if letters_of((a, g, modulus)):
        return same(a, g)
    a, g, modulus = (defined(tree, 0, True) for tree in (a, g, modulus))
    return all(isinstance(x, Fraction) for x in (a, g, modulus)) and modulus != 0 and (a - g) % modulus == 0
