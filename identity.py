"""What runs and evaluations are made of, by SHA-256: settings name files by paths, where other files may stand when a
run goes on.

An identity is a dict {"section.key: file": digest}. The files are those named by settings, not what they import or
include; a data set from the hub counts as its problems and answers, a model from the hub as the files fetched.
"""
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import files
from data import benchmark_name, files_of

POLICY = (".safetensors", ".json", ".jinja", ".model", ".txt")          # files of a policy's folder that matter


def of_policy(folder: str) -> dict[str, str]:
    """The digest of each file of a policy's folder, by its name."""
    paths = [path for path in sorted(Path(folder).iterdir()) if path.suffix in POLICY and path.is_file()]
    return {path.name: files.digest(path) for path in paths}


def of_functions(config) -> dict[str, str]:
    """The files of the user's functions and chat template that the settings of training or of an evaluation name."""
    named = [("eval.label", config.eval.label), ("reward.correct", config.reward.correct)]
    named += [("reward.functions", name) for name in getattr(config.reward, "functions", ()) if ":" in name]
    named += [("dra.weights", config.dra.weights)] if hasattr(config, "dra") else []
    found = [(key, spec.rpartition(":")[0]) for key, spec in named if spec]
    if config.data.chat_template not in ("", "none"):
        found.append(("data.chat_template", config.data.chat_template))
    return {f"{key}: {file}": files.digest(Path(file)) for key, file in found}


def of_rows(rows: Iterable[dict]) -> str:
    """Of problems, as JSON lines."""
    return hashlib.sha256(files.json_lines(rows)).hexdigest()


def of_source(key: str, source: str | Sequence[str], rows: Sequence[dict]) -> dict[str, str]:
    """The files of a source of problems; `rows` is what was read from all of it."""
    named = files_of(source)
    known = of_rows({name: row[name] for name in ("id", "problem", "answer")} for row in rows
                    ) if any(file.startswith("hub:") for file in named) else ""
    return {f"{key}: {file}": known if file.startswith("hub:") else files.digest(Path(file)) for file in named}


def of_run(config, folder: str, problems: Sequence[dict], benchmarks: dict[str, list[dict]]) -> dict[str, str]:
    """All that decides about the course of a training run with the policy in `folder`."""
    found = {f"model.path: {name}": digest for name, digest in of_policy(folder).items()}
    found |= of_source("data.train", config.data.train, problems) | of_functions(config)
    for benchmark in config.eval.benchmarks:
        name, source = benchmark_name(benchmark)
        found |= of_source("eval.benchmarks", source, benchmarks[name])
    if config.dra.enabled and Path(config.dra.embedder).is_dir():
        paths = [path for path in sorted(Path(config.dra.embedder).rglob("*")) if path.is_file()]
        found |= {f"dra.embedder: {path}": files.digest(path) for path in paths}
    return found


def differences(before: dict[str, str], now: dict[str, str], may_change: str = " ") -> str:
    """What of one identity is not that of another, in words, "" for nothing. Of settings that begin with `may_change`,
    only files that both have are compared."""
    return "; ".join(f"{name} is " + ("gone" if name not in now else "new" if name not in before else "another")
                     for name in {**before, **now} if before.get(name) != now.get(name)
                     and not (name.startswith(may_change) and (name not in before or name not in now)))
