"""Problems with known answers, and the prompts made of them.

    load_problems("data/aime24.jsonl", DataConfig())        # [{"id": ..., "problem": "...", "answer": "204", other columns}, ...]

A source is a JSON Lines file, a JSON file with a list of objects, a parquet file, or a hub data set, `hub:owner/name[/config][:split]`. Every row is checked
when it is loaded: a gold that nothing could equal would count against the policy for ever. Most of a million rows are quick to check, because a gold
that equals itself needs no algebra and a prompt that is short in bytes is short in tokens.
"""
import gc
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

from answers import gold_of, last_box
from model import ModelConfig

HUB = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:/([\w.-]+))?(?::([\w.\[\]:%+-]+))?")
NAMED = re.compile(r"([\w.-]+)=(.+)")
SURROGATE = re.compile("[\ud800-\udfff]")
BATCH = 1024                                            # prompts tokenised at a time, on all cores


@dataclass(frozen=True)
class DataConfig:
    problem: str = "problem"
    """column with the problem's text; of several names, such as "problem|question", the first that a row has"""
    answer: str = "answer"
    """column (or several, as above) with the gold answer, or with a solution whose last \\boxed{} holds it; if there is none, "solution" is read"""
    skip_bad_rows: bool = False
    """leave out and count rows without a usable problem or answer; false stops at the first"""
    system: str = ""
    """system prompt; empty for none"""
    template: str = "{problem}"
    """user turn; {problem} stands for the problem's text"""


# ------------------------------------------------------------------------------------------------ problems


def check_source(key: str, source: str) -> None:
    """ValueError naming config key `key` if `source` is neither a file nor written like a hub data set; nothing is read."""
    if not (HUB.fullmatch(source) if source.startswith("hub:") else Path(source).is_file()):
        raise ValueError(f"{key} = {source!r} is not a file; name a JSONL, JSON or parquet file with problems and answers, or hub:owner/name[/config][:split]")


def rows_of(source: str) -> tuple[str, Iterable[dict | bytes]]:
    """What a row of `source` is called, "line" or "row", and the rows: the lines of a JSONL file as they are, else objects."""
    if source.startswith("hub:"):
        return "row", hub_rows(source)
    if source.lower().endswith(".parquet"):
        return "row", parquet_rows(source)
    if source.lower().endswith(".json"):
        try:
            rows = json.loads(Path(source).read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"data file {source!r} is not valid JSON: {error}") from None
        if not isinstance(rows, list):
            raise ValueError(f"data file {source!r} must hold a list of objects; a file with an object per line is named .jsonl")
        return "row", rows
    return "line", lines_of(source)


def lines_of(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from file


def parquet_rows(source: str) -> Iterator[dict]:
    from pyarrow import ArrowException, parquet         # comes with datasets

    try:
        for batch in parquet.ParquetFile(source).iter_batches():
            yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"data file {source!r} is not a whole parquet file: {error}") from None


def hub_rows(source: str) -> Iterable[dict]:
    """The rows of a data set that the `datasets` library finds; a split must be named where there are several."""
    from datasets import DatasetDict, load_dataset      # seconds of import that only runs with hub data need

    name, config, split = HUB.fullmatch(source).groups()
    try:
        found = load_dataset(name, config, split=split)
    except Exception as error:                          # offline, no such data set or split, no access: errors of many classes
        raise ValueError(f"data set {source!r} cannot be had: {(str(error).splitlines() or [repr(error)])[0]}") from None
    if isinstance(found, DatasetDict):
        if len(found) > 1:
            raise ValueError(f"data set {source!r} has the splits {', '.join(found)}; name one, as in {source}:{next(iter(found))}")
        found, = found.values()
    return found


def load_problems(source: str, data: DataConfig, skipped: list[str] | None = None) -> list[dict]:
    """Rows of a source with "problem" and "answer" as strings and an "id" (by default their place) beside their other columns.

    Raises ValueError naming file, line (or row) and column for anything missing or malformed and for answers that nothing can equal; with
    `data.skip_bad_rows` such rows are left out, and what was wrong with them goes to `skipped`.
    """
    check_source("data file", source)
    unit, source_rows = rows_of(source)
    rows, complaints, collects = [], [], gc.isenabled()
    gc.disable()                                        # a million new objects are no garbage, and looking through them again and again doubles the time
    try:
        for number, row in enumerate(source_rows, 1):
            if isinstance(row, bytes) and not row.strip():
                continue
            try:
                rows.append(problem_of(row, number, data))
            except ValueError as error:
                complaints.append(f"{source}, {unit} {number}: {error}")
                if not data.skip_bad_rows:
                    raise ValueError(f"{complaints[0]}; mend it, or leave such rows out with data.skip_bad_rows = true") from None
    finally:
        if collects:
            gc.enable()
    if not rows:
        raise ValueError(f"data file {source!r} has no {'usable ' if complaints else ''}rows" + (f" ({complaints[0]})" if complaints else ""))
    if skipped is not None:
        skipped += complaints
    return rows


def problem_of(row: dict | bytes, number: int, data: DataConfig) -> dict:
    """One row with its problem and gold; ValueError for what is wrong with it."""
    if isinstance(row, bytes):
        try:
            row = json.loads(row)
        except (ValueError, RecursionError) as error:   # of JSON or of UTF-8; nested a thousand deep
            raise ValueError(f"not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"must be an object with columns; got {row!r}")
    problem, answer = (first_column(row, names) for names in (data.problem, data.answer))
    if answer not in row and "solution" in row:
        answer = "solution"
    for key, column in (("data.problem", problem), ("data.answer", answer)):
        if column not in row:
            raise ValueError(f"no column {column!r} (there are {', '.join(map(str, row))}); name the right one with {key}")
        value = row[column]
        if not isinstance(value, str | int | float) or isinstance(value, bool) or value != value or value in (inf, -inf) or not str(value).strip():
            raise ValueError(f"column {column!r} must be a non-empty string or a finite number; got {value!r}")
        if isinstance(value, str) and not value.isascii() and SURROGATE.search(value):
            raise ValueError(f"column {column!r} has half of a surrogate pair in it, which is no text: {ascii(value)[:60]}")
    if answer == "solution" and last_box(row[answer]) is None:
        raise ValueError("column 'solution' has no answer in \\boxed{}; name the column with the answer with data.answer")
    name = row.get("id", number - 1)
    return {**row, "id": name if isinstance(name, str | int | float | list | None) else str(name), "problem": str(row[problem]), "answer": gold_of(str(row[answer]))}


def first_column(row: dict, names: str) -> str:
    """The first of "a|b|c" that `row` has; the first of all if it has none."""
    return names if names in row else next((name for name in names.split("|") if name in row), names.partition("|")[0])


def load_benchmarks(sources: Sequence[str], data: DataConfig, skipped: list[str]) -> dict[str, list[dict]]:
    """The problems of every benchmark by its name: that of the file or data set, or NAME of `NAME=source`. ValueError if two have the same."""
    found: dict[str, list[dict]] = {}
    for text in sources:
        name, source = benchmark_name(text)
        if name in found:
            raise ValueError(f"eval.benchmarks has two of the name {name!r}; give {text!r} another, as in other={source}")
        found[name] = load_problems(source, data, skipped)
    return found


def benchmark_name(text: str) -> tuple[str, str]:
    """(name, source) of an entry of `eval.benchmarks`."""
    if (named := NAMED.fullmatch(text)) and not Path(text).is_file():
        return named.group(1), named.group(2)
    hub = HUB.fullmatch(text)
    return (hub.group(1).partition("/")[2] if hub else Path(text).stem), text


# ------------------------------------------------------------------------------------------------ prompts


def model_folder(config: ModelConfig, patterns: Sequence[str] = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")) -> str:
    """The local folder of `model.path`; if it is a hub name, the files that match `patterns` are fetched. ValueError if there is none."""
    if config.path and Path(config.path).is_dir():
        return config.path
    if config.path.count("/") != 1 or config.path.startswith((".", "/")):
        raise ValueError(f"model.path = {config.path!r} is neither a folder nor a hub name owner/name")
    from huggingface_hub import snapshot_download       # only runs that name a hub model need it

    try:
        return snapshot_download(config.path, allow_patterns=list(patterns))
    except Exception as error:                          # offline, no such repository, no access: hub errors of many classes
        raise ValueError(f"model.path = {config.path!r} is not a folder and the hub did not give it: {str(error).splitlines()[0]}") from None


def load_tokenizer(folder: str):
    from transformers import AutoTokenizer              # seconds of import that --help and config errors should not wait for

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"model folder {folder!r} has no usable tokenizer" + (
            f": {str(error).splitlines()[0]}" if (Path(folder) / "tokenizer.json").is_file() else ", such as a tokenizer.json")) from None
    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer in {folder!r} has no chat template")
    return tokenizer


def prompt_text(tokenizer, problem: str, data: DataConfig) -> str:
    """The chat up to where the assistant begins."""
    system = [{"role": "system", "content": data.system}] if data.system else []
    messages = [*system, {"role": "user", "content": data.template.replace("{problem}", problem)}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def prompt_tokens(tokenizer, problem: str, data: DataConfig) -> list[int]:
    """The tokens of `prompt_text`; the template alone decides about special tokens."""
    return tokenizer(prompt_text(tokenizer, problem, data), add_special_tokens=False)["input_ids"]


def short_enough(tokenizer, rows: Sequence[dict], data: DataConfig, limit: int) -> list[int]:
    """Indices of the rows whose prompt has at most `limit` tokens.

    A token takes at least a byte, so a problem with fewer bytes than the limit has room for needs no tokenizer, and most have; no normaliser lengthens
    ASCII. Of the others, those whose own tokens have room need no chat template. 8 tokens are for what may be split differently where problem and template meet.
    """
    room = limit - len(prompt_tokens(tokenizer, "x", data)) - len(data.template.encode()) - 8

    def long(indices: Sequence[int], most: int, text: Callable[[int], str]) -> Iterator[int]:
        for start in range(0, len(indices), BATCH):
            part = indices[start : start + BATCH]
            tokens = tokenizer([text(i) for i in part], add_special_tokens=False, verbose=False)["input_ids"]
            yield from (i for i, ids in zip(part, tokens) if len(ids) > most)

    unsure = [i for i, row in enumerate(rows) if len(row["problem"]) > room or not row["problem"].isascii()]
    unsure = list(long(unsure, room, lambda i: rows[i]["problem"]))
    too_long = set(long(unsure, limit, lambda i: prompt_text(tokenizer, rows[i]["problem"], data)))
    return [i for i in range(len(rows)) if i not in too_long]


def opening(tokenizer) -> str:
    """What the chat template writes of the assistant's turn from a <think> on, "" if it writes none: completions go on from there."""
    messages = [{"role": "user", "content": "x"}]
    asked, turn = (tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False) for prompt in (False, True))
    _, think, rest = turn.removeprefix(asked).partition("<think>")
    return think + rest
