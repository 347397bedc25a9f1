"""Two-digit addition with four strategies: the problems, their worked solutions, and the strategy a text shows.

The strategies share most of their words and numbers, as real solutions do, so what tells them apart is how they combine
them. `strategy` is the labeller of the tiny recipes (`eval.label`): the truth about diversity that real benchmarks
lack.
"""
import random
import re

STRATEGIES = {"columns": 0.35, "rounding": 0.30, "splitting": 0.20, "counting": 0.15}    # shares in supervised data


def solution(name: str, a: int, b: int) -> str:
    """A right solution of a + b (both in 10..99) by strategy `name`."""
    (a10, a1), (b10, b1) = divmod(a, 10), divmod(b, 10)
    match name:
        case "columns":
            carry = (a1 + b1) // 10
            text = f"ones {a1}+{b1}={a1 + b1}, tens {a10}+{b10}+{carry}={a10 + b10 + carry}"
        case "rounding":
            up = -b % 10
            text = f"round {b}+{up}={b + up}, tens {a}+{b + up}={a + b + up}, less {a + b + up}-{up}={a + b}"
        case "splitting":
            text = (f"tens {10 * a10}+{10 * b10}={10 * (a10 + b10)}, ones {a1}+{b1}={a1 + b1}, "
                    f"both {10 * (a10 + b10)}+{a1 + b1}={a + b}")
        case "counting":
            text = f"tens {', '.join(str(a + 10 * i) for i in range(b10 + 1))}, ones {a + 10 * b10}+{b1}={a + b}"
    return f"{text}, so \\boxed{{{a + b}}}"


PATTERNS = {
    "columns": r"ones \d\+\d=\d+, tens \d\+\d\+\d=\d+",
    "rounding": r"round \d+\+\d=\d+, tens \d+\+\d+=\d+, less \d+-\d=\d+",
    "splitting": r"tens \d0\+\d0=\d+, ones \d\+\d=\d+, both \d+\+\d+=\d+",
    "counting": r"tens \d+(?:, \d+)*, ones \d+\+\d=\d+",
}


def strategy(text: str, problem: dict | None = None) -> str | None:
    """The strategy a completion shows, by its form alone; None if it shows none of the four in full."""
    for name, pattern in PATTERNS.items():
        if re.fullmatch(pattern + r", so \\boxed\{\d+\}", text.strip()):
            return name
    return None


def problems(seed: int = 0) -> list[dict]:
    """All 8,100 sums of two numbers in 10..99 in a fixed random order."""
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    random.Random(seed).shuffle(pairs)
    return [{"id": f"{a}+{b}", "problem": f"{a}+{b}", "answer": str(a + b)} for a, b in pairs]
