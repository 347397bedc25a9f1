"""What a text says."""
import functools
import re
from typing import NamedTuple

from .parser import expanded
from .text import MACRO, Unread
from .tokens import Token, canonical, closing, is_sign, split, tokenize
from .parser import Parser


class Statement(NamedTuple):
    """What a text says: its members, whether their order counts, the domain of a letter ("" for none), the modulus of
    a congruence."""
    members: tuple
    joint: str                                          # "," | "or" | "and"
    domain: str = ""
    bound: tuple = ()                                   # letters of the domain
    modulus: tuple | None = None


SETS = {"integers": "Z", "integer": "Z", "\\mathbbZ": "Z", "reals": "R", "real": "R", "\\mathbbR": "R",
        "\\mathbbN": "N", "natural": "N", "rational": "Q", "positive": "+"}
QUANTIFIERS = set("for all any every each some arbitrary where with is are an a number numbers only values of and "
                  "nonnegative".split())
TAIL = re.compile(rf"[ ,;(]*(?:{MACRO}\{{[ ,]*(?:for\b|where|with |only)|(?<= |,|\}})for (?=[a-zA-Z])"
                  r"|where |only\b|\\forall(?![a-z])"
                  r"|(?<=[,(; ])[A-Za-z](?:,[A-Za-z])*\\in(?![a-z]))|,[A-Za-z](?:,[A-Za-z])* ?\\in(?![a-z])")
HEAD = re.compile(rf"\\forall(?![a-z])[^,]*,|{MACRO}\{{ ?(?:only|all (?:\w+ )?(?:integers?|numbers?|reals?)) ?\}}")


def cut_domain(text: str) -> tuple[str, str, tuple]:
    """`text` without its quantifiers ("for all n", ", k\\in\\mathbb{Z}", "only"), what they say of the domain, and of
    which letters."""
    head, tail = HEAD.match(text), TAIL.search(text, 1)
    parts = [(text[head.end():], head.group())] if head else []
    parts += [(text[: tail.start()], text[tail.start():])] if tail else []
    for rest, said in parts:
        flat = re.sub(r"\\mathbb ?\{?([A-Z])\}?", r" \\mathbb\1 ", said)
        flat = re.sub(rf"{MACRO}(?![A-Za-z])|\\(?:forall|in)(?![A-Za-z])|[{{}}(),.;]", " ", flat)
        tokens = flat.split()
        condition = re.search(r"(\w)((?:>|<|\\ge ?|\\le ?|\\ne ?)\d+)", flat)
        if condition and re.search(r"\b(?:all|every|any)\b|forall", said):         # for all x>0
            tokens = flat.replace(condition.group(), f" {condition[1]} ").split()
        letters = tuple(dict.fromkeys(token for token in tokens if re.fullmatch(r"[B-Zb-z]", token)))
        if not set(tokens) <= {*QUANTIFIERS, *SETS, *letters} or letters and not any(name in rest for name in letters):
            continue
        domain = "".join(sorted({SETS[token] for token in tokens if token in SETS}))
        return rest, domain + (condition[2] if condition else ""), letters
    return text, "", ()


def statement(text: str, joined: bool) -> Statement:
    """What a normalised text says. Raises Unread."""
    text, domain, bound = cut_domain(text)
    tokens = tokenize(text, joined)
    while is_sign(tokens[0] if tokens else None, "{") and closing(tokens, 0) == len(tokens) - 1:
        tokens = tokens[1:-1]
    tokens, modulus = cut_modulus(tokens)
    if canonical(tokens[:8]) == "\\begin { c a s e s }":
        tokens = [Token("sign", ",") if is_sign(token, "\\\\") else token for token in tokens[8:-8]]
    if any(is_sign(token, "<", ">", "\\le", "\\ge") for token in split(tokens, "\\cup")[0][0]):
        tokens = [Token("sign", "or") if is_sign(token, "\\cup") else token for token in tokens]         # x<2 \cup x>3
    parts, separators = split([token for token in tokens if not is_sign(token, "\\quad")], ",", "and", "or")
    parts, separators = [part for part in parts if part], set(separators)
    members = []
    for part in parts:
        if modulus is not None and any(is_sign(token, "\\equiv") for token in part):
            part = [Token("sign", "=") if is_sign(token, "\\equiv") else token for token in part]
        members += expanded(part)
    if not members or len(parts) > 1 and tokens and is_sign(tokens[0], "or"):
        raise Unread("nothing")
    joint = "or" if separators - {"and"} == {"or"} else "and" if separators == {"and"} else ","
    return Statement(tuple(members), joint, domain, bound, modulus)


def cut_modulus(tokens: list[Token]) -> tuple[list[Token], tuple | None]:
    """The tokens without a \\pmod{n} (in any spelling) at the end, and n; a \\bmod in a formula without \\equiv is an
    operation."""
    at = next((i for i, token in enumerate(tokens) if is_sign(token, "\\pmod", "\\bmod")), None)
    if at is None:
        return tokens, None
    bracketed = at > 0 and is_sign(tokens[at - 1], "(") and is_sign(tokens[-1], ")")
    if not (bracketed or tokens[at].text == "\\pmod" or any(is_sign(token, "\\equiv") for token in tokens)):
        return tokens, None
    return tokens[: at - bracketed], Parser(tokens[at + 1 : len(tokens) - bracketed]).whole()


THOUSANDS = re.compile(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,])")


@functools.lru_cache(4096)
def read(text: str) -> tuple:
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
