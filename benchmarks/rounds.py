"""Contestants in processes of their own that take turns, so that none runs on another's left-over threads or memory."""
import argparse
import json
import statistics
import subprocess
from collections.abc import Iterable
from pathlib import Path

Round = dict[str, dict]                                 # of one round: what each contestant replied


class Child:
    """A process that runs one contestant, once each time it is asked for it in a line; in between it sleeps."""

    def __init__(self, command: list[str], log: Path, cwd: Path | None = None):
        """`command` answers each line on stdin with a JSON object in a line on stdout; `log` gets its stderr."""
        self.log = log
        with open(log, "w") as file:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file,
                                            text=True, cwd=cwd)

    def run(self) -> dict:
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        reply = self.process.stdout.readline()
        if not reply:
            raise RuntimeError(f"{' '.join(self.process.args)} ended:\n{self.log.read_text()[-3000:]}")
        return json.loads(reply)

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def play(children: dict[str, Child], rounds: int) -> list[Round]:
    """What each replied in `rounds` rounds after one that warms up; ends the children."""
    results = [{contestant: child.run() for contestant, child in children.items()} for _ in range(rounds + 1)]
    for child in children.values():
        child.stop()
    return results[1:]


def ratio(rounds: list[Round], contestant: str, first: str, key: str = "seconds") -> float:
    """Median over rounds of a contestant's value over that of the first."""
    return statistics.median(round_[contestant][key] / round_[first][key] for round_ in rounds)


def peak_mib() -> float:
    """This process's largest resident set (Linux)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def arguments(doc: str, workloads: Iterable[str], contestants: Iterable[str]) -> argparse.Namespace:
    """The command line of a benchmark; `--serve` makes it a child."""
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    parser.add_argument("--workloads", nargs="+", choices=workloads, default=list(workloads))
    parser.add_argument("--contestants", nargs="+", choices=contestants, default=list(contestants))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve", choices=contestants, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()
