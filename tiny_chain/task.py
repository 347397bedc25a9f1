"""Sums of four different digits, added one after the other: the problems, worked solutions, and where a text starts.

The digits stand in a circle and are added once round it; the strategy is the digit that a solution starts at. The four
strategies are equally hard by symmetry, so that what a method does to them is not a choice of the easier one (in
tiny/task.py it is: there the strategies are right between 19 % and 97 % of the time). Each step is written in one of
two ways and joined in one of two ways, so equal strategies do not have equal texts. Demonstrations slip with the same
probability at every step of every strategy: what reinforcement can unlearn without a choice among strategies.

    configs/chain.toml: eval.label = "tiny_chain/task.py:strategy", reward.correct = "tiny_chain/task.py:correct"
"""
import itertools
import random
import re
from collections.abc import Sequence

STRATEGIES = {"first": 0.37, "second": 0.29, "third": 0.21, "fourth": 0.13}        # shares in supervised data
SLIP = 0.13                                             # chance that a step of a demonstration is off by one


def solution(name: str, numbers: Sequence[int], rng: random.Random, slip: float = 0.0) -> str:
    """The four `numbers` added once round, starting at place `name`; a step is off by one with probability `slip`."""
    start = list(STRATEGIES).index(name)
    total, *rest = [*numbers[start:], *numbers[:start]]
    text = ""
    for number in rest:
        result = total + number + (rng.choice((-1, 1)) if rng.random() < slip else 0)
        joint = rng.choice((", ", ", then ")) if text else ""
        text += joint + rng.choice((f"{total}+{number}={result}", f"{total} and {number} make {result}"))
        total = result
    return f"{text}, so \\boxed{{{total}}}"


STEP = r"(\d+)(?:\+| and )(\d+)(?:=| make )(\d+)"
FORM = re.compile(STEP + rf"(?:, (?:then )?{STEP})" * 2 + r", so \\boxed\{(\d+)\}")


def strategy(text: str, problem: dict) -> str | None:
    """Where a completion starts, if it adds the four digits once round; "other order" if it adds them in another one.

    None if it does not show three steps that add the four digits, each once. Whether sums are right does not matter.
    """
    if not (match := FORM.fullmatch(text.strip())):
        return None
    order = [int(match[place]) for place in (1, 2, 5, 8)]
    numbers = list(map(int, problem["problem"].split("+")))
    for start, name in enumerate(STRATEGIES):
        if order == numbers[start:] + numbers[:start]:
            return name
    return "other order" if sorted(order) == sorted(numbers) else None


def correct(texts: Sequence[str], problems: Sequence[dict]) -> list[bool]:
    """Right if the boxed sum is and the digits were added once round.

    Orders that jump over a digit are forbidden, since they are a fifth strategy, rarer and less reliable than the four:
    a bonus for rare right answers would feed it, and its price would not be that of keeping equals.
    """
    return [strategy(text, problem) in STRATEGIES and text.strip().endswith(f"\\boxed{{{problem['answer']}}}")
            for text, problem in zip(texts, problems)]


def problems(seed: int = 0) -> list[dict]:
    """Ordered choices of four different digits 1..9 in a fixed random order: 2,928.

    Left out are the 96 whose sum no other four digits have (10, 11, 29, 30): all their completions can turn wrong at
    once, and a prompt without a right answer gives no gradient back.
    """
    sums = [sum(digits) for digits in itertools.combinations(range(1, 10), 4)]
    rows = [row for row in itertools.permutations(range(1, 10), 4) if sums.count(sum(row)) > 1]
    random.Random(seed).shuffle(rows)
    texts = ["+".join(map(str, row)) for row in rows]
    return [{"id": text, "problem": text, "answer": str(sum(row))} for text, row in zip(texts, rows)]
