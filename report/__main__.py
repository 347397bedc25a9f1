"""What the files of runs and evaluations show: reads metrics.jsonl, samples.jsonl and results.jsonl, needs no policy.

    python -m report compare EVAL EVAL ...      paired bootstrap over problems; checkpoints of one run as a curve
    python -m report page RUN_OR_EVAL ...       curves and completion groups in one HTML page, and its PNGs
    python -m report consistency SAMPLES        do rewards differ where texts do? (Figure 2 of arXiv:2505.09655)
    python -m report kernel SAMPLES             is this embedder fit for DRA on these texts?
    python -m report regrade RUN_OR_EVAL        grades all saved completions again

RUN is a run's folder or a metrics.jsonl, EVAL a folder that eval.py wrote, SAMPLES the samples.jsonl of either or its
folder.
"""
import argparse
from pathlib import Path

from ranks import run_main


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("compare", help="evaluations on the same problems against the first; checkpoints of "
                                                  "a run as a curve")
    command.add_argument("paths", nargs="+", type=Path, metavar="EVAL_OR_RUN")
    command = commands.add_parser("page", help="curves and completion groups in one HTML page")
    command.add_argument("paths", nargs="+", type=Path, metavar="RUN_OR_EVAL")
    command.add_argument("--out", type=Path, default=Path("runs/page"),
                         help="folder for index.html and its PNGs (default runs/page)")
    command.add_argument("--groups", type=int, default=4,
                         help="prompts whose completions are shown, 0 for none (default 4)")
    for name, text in (("consistency", "do rewards differ where texts do?"),
                       ("kernel", "is this embedder fit for DRA on these texts?")):
        command = commands.add_parser(name, help=text)
        command.add_argument("path", type=Path, metavar="SAMPLES")
        command.add_argument("overrides", nargs="*", metavar="dra.key=value",
                             help="settings instead of those in config.toml next to the samples")
        command.add_argument("--groups", type=int, default=1000,
                             help="groups that are looked at, evenly spaced over the file (default 1000)")
        if name == "kernel":
            command.add_argument("--label", default="",
                                 help='"path.py:function" called with (text, problem row) as eval.label is, instead of '
                                      'the labels in the file')
    command = commands.add_parser("regrade", help="grades all saved completions again")
    command.add_argument("path", type=Path, metavar="RUN_OR_EVAL")
    command.add_argument("--opening", help="what the chat template writes of the assistant's turn; by default that of "
                                           "the tokenizer at model.path")
    command.add_argument("--correct", help='"path.py:function" called with (texts, problem rows), instead of '
                                           'reward.correct in config.toml or the grader')
    command.add_argument("--golds", action="append", default=[], metavar="[NAME=]FILE",
                         help="problems with corrected golds, found by their id; NAME is the benchmark, of several")
    command.add_argument("--out", type=Path, help="folder for samples and results with the new verdicts")
    return parser


def output_of(args: argparse.Namespace) -> str:
    """What the command prints; each imports what it needs, so that none waits for another's plots or models."""
    match args.command:
        case "compare":
            from report.compare import compare

            return compare(args.paths)
        case "page":
            from report.page import write_page
            from report.read import read_any

            return "\n".join(f"written {path}" for path in write_page(*read_any(args.paths), args.out, args.groups))
        case "consistency":
            from report.kernel import consistency

            return consistency(args.path, args.overrides, args.groups)
        case "kernel":
            from report.kernel import kernel

            return kernel(args.path, args.overrides, args.groups, args.label)
        case "regrade":
            from report.regrade import regrade

            return regrade(args.path, args.opening, args.out, args.correct, args.golds)


def main(argv: list[str]) -> int:
    parser = arguments()
    args, more = parser.parse_known_args(argv)
    if more and not ("overrides" in args and all(text.startswith("dra.") for text in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:                                            # overrides after options, where argparse does not look for them
        args.overrides = args.overrides + more
    try:
        print(output_of(args))
    except OSError as error:
        raise ValueError(f"{error.filename}: {error.strerror}") from error
    return 0


if __name__ == "__main__":
    run_main(main)
