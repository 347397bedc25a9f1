r"""What a text says: the members of a list, the domain of its letters, the modulus of a congruence.

    read("x=2 or x=3")                              # (Statement of two members,)
    read("\\pi k, k\\in\\mathbb{Z}")[0].domain      # "Z"
"""
import functools
import re
from typing import NamedTuple

from .parser import Parser, expanded
from .text import END, MACRO, Unread
from .tokens import Token, canonical, closing, has_prose, is_sign, replace, split, tokenize


class Statement(NamedTuple):
    members: tuple                                      # trees
    domain: str = ""                                    # of its letters: Z, N, ...
    modulus: tuple | None = None                        # of a congruence


SETS = {"integers": "Z", "integer": "Z", "\\mathbbZ": "Z", "reals": "R", "real": "R", "\\mathbbR": "R",
        "\\mathbbN": "N", "natural": "N", "rational": "Q", "positive": "+"}
QUANTIFIERS = set("for all any every each some arbitrary where with is are an a number numbers only values of and "
                  "nonnegative".split())
TAIL = re.compile(rf"[ ,;(]*(?:{MACRO}\{{[ ,]*(?:for\b|where|with |only)|(?<= |,|\}})for (?=[a-zA-Z])"
                  r"|where |only\b|\\forall(?![a-z])"
                  r"|(?<=[,(; ])[A-Za-z](?:,[A-Za-z])*\\in(?![a-z]))|,[A-Za-z](?:,[A-Za-z])* ?\\in(?![a-z])")
HEAD = re.compile(rf"\\forall(?![a-z])[^,]*,|{MACRO}\{{ ?(?:only|all (?:\w+ )?(?:integers?|numbers?|reals?)) ?\}}")


def cut_domain(text: str) -> tuple[str, str]:
    """`text` without its quantifiers ("for all n", ", k\\in\\mathbb{Z}", "only"), and the domain they speak of."""
    head, tail = HEAD.match(text), TAIL.search(text, 1)
    parts = [(text[head.end():], head.group())] if head else []
    parts += [(text[: tail.start()], text[tail.start():])] if tail else []
    for rest, said in parts:
        domain = domain_of(said, rest)
        if domain is not None:
            return rest, domain
    return text, ""


def domain_of(said: str, rest: str) -> str | None:
    """The domain that a quantifier speaks of, with a condition such as >0; None unless each of its words is known and
    one of its letters is in the rest of the text."""
    flat = re.sub(r"\\mathbb ?\{?([A-Z])\}?", r" \\mathbb\1 ", said)
    flat = re.sub(rf"{MACRO}{END}|\\(?:forall|in){END}|[{{}}(),.;]", " ", flat)
    condition = re.search(r"(\w)((?:>|<|\\ge ?|\\le ?|\\ne ?)\d+)", flat)
    if condition and re.search(r"\b(?:all|every|any)\b|forall", said):             # for all x>0
        flat = flat.replace(condition.group(), f" {condition[1]} ")
    words = set(flat.split())
    letters = {word for word in words if re.fullmatch(r"[B-Zb-z]", word)}
    if words - letters - QUANTIFIERS - SETS.keys() or letters and not any(name in rest for name in letters):
        return None
    return "".join(sorted({SETS[word] for word in words & SETS.keys()})) + (condition[2] if condition else "")


def cut_modulus(tokens: list[Token]) -> tuple[list[Token], tuple | None]:
    """The tokens without a \\pmod{n} (in any spelling) at the end, and n; a \\bmod in a formula without \\equiv is an
    operation."""
    at = next((i for i, token in enumerate(tokens) if is_sign(token, "\\pmod", "\\bmod")), None)
    if at is None:
        return tokens, None
    bracketed = at > 0 and is_sign(tokens[at - 1], "(") and is_sign(tokens[-1], ")")
    if not (bracketed or tokens[at].text == "\\pmod" or any(is_sign(token, "\\equiv") for token in tokens)):
        return tokens, None
    modulus = Parser(tokens[at + 1 : len(tokens) - bracketed]).whole()
    return replace(tokens[: at - bracketed], {"\\equiv": "="}), modulus


def joined_intervals(members: list[tuple]) -> list[tuple]:
    """x<2 or x>3 as one union."""
    if len(members) < 2 or any(tree[0] != "eq" or tree[3] != (None,) or tree[1] != members[0][1] for tree in members):
        return members
    intervals = [part for _, _, (value,), *_ in members for part in (value[1:] if value[0] == "union" else (value,))]
    return [("eq", members[0][1], (("union", *intervals),), (None,), ())]


def statement(text: str, joined: bool) -> Statement:
    """What a normalised text says. Raises Unread."""
    text, domain = cut_domain(text)
    if has_prose(text):
        raise Unread("words between formulas")
    tokens = tokenize(text, joined)
    while is_sign(tokens[0] if tokens else None, "{") and closing(tokens, 0) == len(tokens) - 1:
        tokens = tokens[1:-1]
    tokens, modulus = cut_modulus(tokens)
    if canonical(tokens[:8]) == "\\begin { c a s e s }":
        tokens = replace(tokens[8:-8], {"\\\\": ","})
    if any(is_sign(token, "<", ">", "\\le", "\\ge") for token in split(tokens, "\\cup")[0][0]):
        tokens = replace(tokens, {"\\cup": "or"})       # x<2 \cup x>3
    parts, separators = split(tokens, ",", "and", "or")
    parts = [part for part in parts if part]
    members = [tree for part in parts for tree in expanded(part)]
    if not members or len(parts) > 1 and is_sign(tokens[0], "or"):
        raise Unread("nothing")
    if set(separators) - {"and"} == {"or"}:
        members = joined_intervals(members)
    return Statement(tuple(members), domain, modulus)


THOUSANDS = re.compile(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,])")


@functools.lru_cache(4096)
def read(text: str) -> tuple[Statement, ...]:
    """The readings of a normalised text: usually one, two where a comma may be one of thousands; empty if it is not
    understood."""
    found, others = [], THOUSANDS.sub("", text)
    thousands = others != text and "," not in others and not re.search(r"[(\[|][^()\[\]]*,|\\\{", text)
    for joined in (True, False) if thousands else (False,):
        try:
            found.append(statement(text, joined))
        except (Unread, RecursionError):
            pass
    return tuple(found)
