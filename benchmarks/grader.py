"""Our grader against math-verify alone, its speed, also on hostile completions, and whether each gold equals itself.

    python benchmarks/grader.py [--data FILE.jsonl ...] [--cases FILE.jsonl] [--workers 2] [--rounds 3]
    python benchmarks/grader.py --repeat 20 [--cases FILE.jsonl]

Side by side: on --cases, lines of {"gold", "text", "correct"} (without it the rows of tests/fixtures/answers.tsv), and
on 2,000 pairs of golds of --data that differ as texts, drawn at random. The first pairs that are wrongly accepted are
printed: of golds some are two spellings of one value (0.4 miles and 2/5), others would be mistakes. For math-verify
both sides are parsed in a box and in dollars.

--repeat does nothing but this: it grades all cases and hostile completions so many times with 1, with 2 and with 4
workers, next to as many processes that keep a core busy, and fails unless verdicts and reasons are the same each time.

Ordinary completions: for each gold eight solutions of some 300 words; three end in the gold as it is, one in the gold
with other spaces and spellings, one in x = gold, one in another problem's gold, one in a number that is off by one, one
has no box. Without --data the golds are those of tests/fixtures/answers.tsv. Hostile ones: see HOSTILE below.
"""
import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from answers import gold_of, grade  # noqa: E402
from grader import Grader  # noqa: E402

SHOWN = 5                                               # wrongly accepted answers that are printed
ANSWERS = Path(__file__).parent.parent / "tests" / "fixtures" / "answers.tsv"

POWERS = r"""9^{9^{9^{9}}} 9^{9^9} 10^{10^{10}} 2^{2^{2^{2^{2^{2}}}}} (x+1)^{10^{10^{10}}} 9^{999999999} x^{999999999}
(x+1)^{1000} (x+1)^{99999} (a+b+c+d)^{200} (x+y)^{500} 2^{1000000} 2^{10000000} 7^{77777777} 10^{100000000}
1.1^{100000000} 0.5^{123456789} 9**9**9**9 9^9^9^9 e^{e^{e^{e^{79}}}} 2^{-10000000} (1/3)^{9999999} \sqrt{2^{9999999}+1}
10^{10^{8}}+1 ((((9^9)^9)^9)^9)^9 (((10^{10})^{10})^{10})^{10} 99999^{99999} 123456789^{987654321} i^{99999999999}
\pi^{10^{9}} (1+i)^{1000000} ((x+1)^{20}+(y+1)^{20})^{20} (\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7}+\sqrt{11})^{50}
(a+b+c+d+e+f)^{30} x^{x^{x^{x^{x}}}} 1e999999999 1e-99999999 \frac{1}{3}^{9999999} 12345678901234567890^{20}
\sin(10^{100000}) \cos(9^{9^{9}}) \log_{2}(3^{10^{7}}) \zeta(3)^{1000} \sqrt[1000000]{2} \infty^{\infty} \frac{0}{0}
0^{0}""".split()
FACTORIALS = r"""100000! 999999! (10^6)! ((5!)!)! 10!!!! 99999999! (3!)!!! \frac{100000!}{99999!} (2^{20})! (100!)!
50000!+1 \binom{1000000}{500000} \binom{10^9}{5\cdot10^8} \Gamma(10000000) \frac{(10^5)!}{1}""".split()
NESTED = [before * n + "x" + after * n for n in (100, 3000) for before, after in (
    ("(", ")"), ("{", "}"), ("\\frac{1}{", "}"), ("\\sqrt{", "}"), ("\\{", "\\}"), ("a_{", "}"),
    ("\\left(", "\\right)"), ("x^{", "}"), ("\\sin(", ")"), ("|", "|"))]
LONG = ["1" * 100_000, "9" * 5000, "1" * 1500 + "/7", "0." + "3" * 50_000, "x" * 100_000, "x+" * 3000 + "x",
        "-" * 5000 + "1", "1+" * 2000 + "1", "2^" * 300 + "2", " " * 100_000 + "x",
        "\\ " * 50_000 + "x", "\u200b" * 100_000 + "x", "\u0661" * 3000, "\\text{" + "a" * 50_000 + "}", "{}" * 5000,
        "\\\\" * 3000, "$" * 5000, "\\pm" * 500 + "1", "1<" * 200 + "2",
        ",".join(map(str, range(3000))), "\\cup".join(f"({i},{i + 1})" for i in range(500)),
        "x<1 \\text{ or } " * 100 + "x>2", "x=" * 200 + "1", "\\boxed{" * 5000 + "1", "\0" * 1000]
CALCULUS = [r"\sum_{n=1}^{\infty} \frac{1}{n^{n}}", r"\prod_{n=1}^{100000} n", r"\int_0^1 e^{-x^2} \sin(x^3) dx",
            r"\int \frac{1}{x^{7}+x+1} dx", r"\int_0^1\int_0^1\frac{1}{1-xyz}dxdy",
            r"\lim_{x\to 0} \frac{\sin(\tan x)-\tan(\sin x)}{x^7}", r"\sum_{k=0}^{500}\binom{500}{k}^3",
            r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^{100000}",
            "__import__('os').system('sleep 9')", "while True: pass", "\\input{/etc/passwd}", "41 or 42",
            "42, maybe 43", "41=42"]
# the gold is 42, and none is right
HOSTILE = [f"so \\boxed{{{answer}}}" for answer in POWERS + FACTORIALS + NESTED + LONG + CALCULUS]


def ordinary(golds: list[str], seed: int = 0) -> tuple[list[str], list[str]]:
    """(completions, golds), eight for each gold, with prose before the answer."""
    pick = random.Random(seed)
    texts = []
    for gold in golds:
        respelt = gold.replace("\\frac", "\\dfrac").replace(",", ", ").replace("+", " + ")
        off = re.sub(r"\d+", lambda match: str(int(match.group()) + 1), gold, count=1)
        for answer in (gold, gold, gold, respelt, f"x = {gold}", pick.choice(golds), off, None):
            prose = " ".join(pick.choices(("so", "then", "$x+1$", "we get", "by {symmetry}", "hence \\frac{1}{2}"),
                                          k=300))
            texts.append(f"{prose}\n</think>\nThe answer is " + (f"$\\boxed{{{answer}}}$." if answer else f"{gold}."))
    return texts, [gold for gold in golds for _ in range(8)]


def by_math_verify(text: str, gold: str) -> bool:
    """What math-verify alone says of a completion with a box; a pair that it cannot parse is wrong."""
    from math_verify import parse, verify
    try:
        return bool(verify(parse(f"${gold.strip().strip('$')}$"), parse(text)))
    except Exception:                                   # on some pairs it raises
        return False


def compare(name: str, pairs: list[tuple[str, str, bool]]) -> None:
    """Prints how our grader, and math-verify alone in this process, grade (completion, gold, right) triples."""
    for grader, judge in (("ours", lambda text, gold: grade(text, gold).correct), ("math-verify", by_math_verify)):
        judge("\\boxed{x+1}", "1+x")                    # its imports
        start = time.perf_counter()
        verdicts = [judge(text, gold) for text, gold, _ in pairs]
        seconds = time.perf_counter() - start
        accepted = [(text, gold) for verdict, (text, gold, right) in zip(verdicts, pairs) if verdict and not right]
        refused = sum(right and not verdict for verdict, (_, _, right) in zip(verdicts, pairs))
        print(f"{name}, {grader}: agree {len(pairs) - len(accepted) - refused} of {len(pairs)}; wrong accepted "
              f"{len(accepted)}; right refused {refused}; {len(pairs) / seconds:.0f} per second in one process")
        for text, gold in accepted[:SHOWN]:
            print(f"    accepted: {text[-80:]!r} for {gold!r}")


def different_golds(golds: list[str], count: int, seed: int = 0) -> list[tuple[str, str, bool]]:
    """`count` pairs of golds that differ as texts, numbers or formulas on both sides."""
    pick, kinds = random.Random(seed), {}
    for gold in dict.fromkeys(golds):
        kinds.setdefault(bool(re.fullmatch(r"-?\d+", gold)), []).append(gold)
    kinds = [kind for kind in kinds.values() if len(kind) > 1]
    return [(f"so \\boxed{{{answer}}}", gold, False)
            for answer, gold in (pick.sample(pick.choice(kinds), 2) for _ in range(count))]


def repeat(pairs: list[tuple[str, str]], runs: int) -> None:
    """Prints whether (completion, gold) pairs are graded alike in all runs; exits with 1 if not."""
    texts, golds = zip(*pairs)
    found = [set() for _ in pairs]
    for busy in (1, 2, 4):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            for _ in range(runs):
                with Grader(busy) as grader:
                    for seen, item in zip(found, grader.grade_batch(texts, golds)):
                        seen.add((item.correct, item.reason))
        finally:
            for process in others:
                process.kill()
                process.wait()
    differ = [(pair, seen) for pair, seen in zip(pairs, found) if len(seen) > 1]
    print(f"{len(pairs)} answers, {runs} runs with each of 1, 2 and 4 workers and busy cores: {len(differ)} with more "
          f"than one verdict or reason; {dict(Counter(reason for seen in found for _, reason in seen))}")
    for (text, gold), seen in differ:
        print(f"{text[:80]} for {gold}: {seen}")
    sys.exit(bool(differ))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", nargs="*", default=[], metavar="FILE", help="JSONL files with an answer per line")
    parser.add_argument("--cases", metavar="FILE", help="JSONL with gold, text and correct per line")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=0, metavar="RUNS",
                        help="instead of all else: whether so many runs give the same verdicts and reasons")
    args = parser.parse_args()
    rows = [json.loads(line) for path in args.data for line in Path(path).read_text(encoding="utf-8").splitlines()]
    table = [line.split("\t") for line in ANSWERS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    cases = [(case["text"], gold_of(case["gold"]), case["correct"])
             for case in map(json.loads, Path(args.cases).read_text(encoding="utf-8").splitlines())] \
        if args.cases else [(f"so \\boxed{{{answer}}}", gold, right == "1") for answer, gold, right in table]
    if args.repeat:
        repeat([(text, gold) for text, gold, _ in cases] + [(text, "42") for text in HOSTILE], args.repeat)
    golds = [gold_of(str(row["answer"])) for row in rows] or [gold for _, gold, _ in table]
    refused = [gold for gold in golds if not grade(f"\\boxed{{{gold}}}", gold).correct]
    print(f"{len(golds)} golds, boxed as they are: {len(refused)} not graded as right {refused[:10]}")
    compare("cases", cases)
    compare("different golds", different_golds(golds, 2000))
    for name, (texts, truths) in (("ordinary", ordinary(golds)), ("hostile", (HOSTILE, ["42"] * len(HOSTILE)))):
        seconds = []
        for _ in range(args.rounds):
            with Grader(args.workers) as grader:
                # starts the workers
                grader.grade_batch(["\\boxed{x+1}", "\\boxed{x+2}"][: args.workers], ["1+y"] * min(2, args.workers))
                start = time.perf_counter()
                grades = grader.grade_batch(texts, truths)
                seconds.append(time.perf_counter() - start)
        median = statistics.median(seconds)
        print(f"{name}: {len(texts)} completions, {args.workers} workers, median of {args.rounds} rounds "
              f"{median:.2f} s ({min(seconds):.2f}..{max(seconds):.2f}), "
              f"{len(texts) / median / args.workers:.0f} per second and "
              f"worker; {dict(Counter(grade.reason for grade in grades))}")
        assert name != "hostile" or not any(grade.correct for grade in grades)


if __name__ == "__main__":
    main()
