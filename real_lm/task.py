"""Open questions with many right answers: what is right, which item it names, and what DRA may compare.

    reward.correct = "real_lm/task.py:right"        eval.label = "real_lm/task.py:item"

A row has the question and its right items, {"problem": "Name a fruit.", "items": ["apple", "kiwi|kiwifruit", ...]}; the
names of one item are separated by "|", and the first of them is its label. So the diversity of right answers has a
truth: how many different items they name. Copy this file and questions.py to make a task of your own.

Strict (`right`, `item`): the answer is one item and nothing else. Loose (`right_among`, `item_among`): it names one
item among at most WORDS words; what else it says is not looked at, as with a grader that reads only a box.
"""
import re
import unicodedata
from functools import lru_cache

WORDS = 6                                               # a longer answer is wrong under the loose rule too


def plain(text: str) -> str:
    """`text` in lower case, without accents and apostrophes, with hyphens as spaces."""
    letters = unicodedata.normalize("NFKD", text.lower())
    letters = "".join(letter for letter in letters if not unicodedata.combining(letter) and letter not in "'\u2019")
    return " ".join(letters.replace("-", " ").split())


def forms(name: str) -> list[str]:
    """A name and its regular plurals; of a name in the plural, the singular too."""
    endings = {"": "s", "s": "", "ss": "sses", "x": "xes", "ch": "ches", "sh": "shes", "o": "oes", "y": "ies",
               "f": "ves", "fe": "ves", "man": "men"}
    return [name, *(name.removesuffix(ending) + other for ending, other in endings.items() if name.endswith(ending))]


@lru_cache(maxsize=None)
def labels_of(items: tuple[str, ...]) -> dict[str, str]:
    """The label of every form of every name; a name that is an item itself is never a form of another."""
    named = {plain(name): item.split("|")[0] for item in items for name in item.split("|")}
    return {form: label for name, label in named.items() for form in forms(name)} | named


@lru_cache(maxsize=None)
def any_form(items: tuple[str, ...]) -> re.Pattern:
    """Finds forms of the items in a text; the longest first, so that a sweet potato is no potato."""
    longest_first = sorted(labels_of(items), key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b")


def item(text: str, row: dict) -> str | None:
    """The item that an answer is, but for an article and a full stop; None for anything more or else."""
    name = re.fullmatch(r"\s*(?:(?:an?|the) )?([^\n]+?)\.?\s*", text, re.IGNORECASE)
    return labels_of(tuple(row["items"])).get(plain(name[1])) if name else None


def item_among(text: str, row: dict) -> str | None:
    """The one item that an answer of at most WORDS words names; None for none, several or a longer answer."""
    items, words = tuple(row["items"]), plain(re.sub(r"[^\w'\u2019-]+", " ", text))
    found = {labels_of(items)[form] for form in any_form(items).findall(words)}
    return found.pop() if len(found) == 1 and len(words.split()) <= WORDS else None


def right(texts: list[str], rows: list[dict]) -> list[tuple[bool, str | None]]:
    """Whether each answer is an item and nothing else, and which."""
    return [(name is not None, name) for name in map(item, texts, rows)]


def right_among(texts: list[str], rows: list[dict]) -> list[tuple[bool, str | None]]:
    """Whether each answer names one item, whatever else it says in WORDS words, and which."""
    return [(name is not None, name) for name in map(item_among, texts, rows)]
