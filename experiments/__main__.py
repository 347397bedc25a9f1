"""What is DRA worth? Trains the arms of plan.toml and makes the tables and figures of docs/experiments.md.

    python -m experiments run [--jobs 2] [--seeds N] [--only WORD ...]    the runs that have no record yet
    python -m experiments tables                            docs/experiments.md and its figures, from the records
    python -m experiments run --quick                       all of it small, in runs/experiments-quick
    python -m experiments bandit                            the push of each rule by exact enumeration, no training
    python -m experiments kernels                           what similarities know, on samples, no training; and tables

Whatever ends it, the same command continues. Records of finished runs are in experiments/records/.
"""
import argparse
from pathlib import Path

import files
from experiments import bandit, kernels, runs, tables
from ranks import run_main

PAGE, FIGURE, FINALISTS = Path("docs/experiments.md"), Path("experiments/front.png"), Path("experiments/finalists.png")
FOLDER, QUICK = Path("runs/experiments"), Path("runs/experiments-quick")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m experiments", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="trains what has no record yet")
    command.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each (default 1)")
    command.add_argument("--seeds", type=int, default=0, help="at most so many of each arm (default: the plan's)")
    command.add_argument("--most", type=int, default=0, help="at most so many runs now (default: all)")
    command.add_argument("--only", nargs="+", default=[], metavar="WORD",
                         help="runs whose name has one of these in it, such as chain_grpo_fast-dra")
    command.add_argument("--keep", action="store_true", help="keep run folders, with samples and checkpoints")
    command.add_argument("--quick", action="store_true", help="a small version of it all, and its tables")
    commands.add_parser("tables", help="tables and figures from the records")
    commands.add_parser("bandit", help="the push of each rule by exact enumeration")
    commands.add_parser("kernels", help="what similarities know of strategies, on samples; and the page")
    return parser


def run(args: argparse.Namespace) -> int:
    plan = runs.read_plan()
    wanted = [run for run in runs.runs_of(plan, args.quick, args.seeds)
              if not args.only or any(word in run.name for word in args.only)]
    if not wanted:
        raise ValueError(f"no run of the plan has {' or '.join(args.only)} in its name")
    if args.jobs < 1 or args.most < 0 or args.seeds < 0:
        raise ValueError("--jobs must be >= 1, --most and --seeds >= 0")
    folder, records = (QUICK, QUICK / "records") if args.quick else (FOLDER, runs.RECORDS)
    failed = runs.make(wanted, folder, records, args.jobs, args.most, args.keep)
    if args.quick:
        results = tables.read_records(records)
        for name, text in tables.tables(results, plan).items():
            print(f"\n{name}\n\n{text}")
        if tables.front(results, plan, QUICK / "front.png", plan["figure"]):
            print(f"\nwritten {QUICK / 'front.png'}")
    return int(failed > 0)


def all_tables(results: list[tables.Result], plan: dict) -> dict[str, str]:
    """Every table of the page by its name there."""
    push = {f"{setting} push": bandit.beside_runs(results, plan, setting)
            for setting in ("chain_grpo_fast", "tiny_grpo")}
    return tables.tables(results, plan) | push | kernels.tables(kernels.figures()) | {"bandit": bandit.pushes()}


def write_page() -> None:
    plan, results = runs.read_plan(), tables.read_records(runs.RECORDS)
    files.write(PAGE, tables.fill(PAGE.read_text(encoding="utf-8"), all_tables(results, plan)))
    tables.front(results, plan, FIGURE, plan["figure"])
    tables.front(results, plan, FINALISTS, ["chain_grpo_fast", "chain_dr_grpo_fast"], plan["finalists"]["arms"])
    print(f"{len(results)} runs: written {PAGE}, {FIGURE} and {FINALISTS}")


def main(argv: list[str]) -> int:
    args = arguments().parse_args(argv)
    match args.command:
        case "run":
            return run(args)
        case "tables":
            write_page()
        case "kernels":
            kernels.measure()
            write_page()
        case "bandit":
            print(bandit.pushes())
    return 0


if __name__ == "__main__":
    run_main(main)
