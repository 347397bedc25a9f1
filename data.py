"""Problems with known answers, from the files and data sets that people have.

    # [{"id": ..., "problem": "...", "answer": "204", other columns}, ...]
    load_problems("data/aime24.jsonl", DataConfig())

A source is a JSON Lines file, a JSON file with a list of objects, a parquet file, a pattern that matches several, or a
hub data set, `hub:owner/name[/config][:split]`. A column is named by its name or, inside others, by a path with dots.
Every row is checked when it is loaded: a gold that nothing could equal would count against the policy for ever. Most of
a million rows are quick to check, because a gold that equals itself needs no algebra.
"""
import gc
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from glob import glob
from math import inf
from pathlib import Path

from answers import gold_of, last_box

HUB = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:/([\w.-]+))?(?::([\w.\[\]:%+-]+))?")
KINDS = (".jsonl", ".ndjson", ".json", ".parquet")
WILD = re.compile(r"[*?\[]")
NAMED = re.compile(r"([\w.-]+)=(.+)")
SURROGATE = re.compile("[\ud800-\udfff]")
PROSE = re.compile(r"[^\W\d_]{2,}\s+[^\W\d_]{2,}")      # two words in a row: a solution, not a bare answer
# What a template has in braces: LaTeX's, as in \boxed{x} or x^{n}, is text; {{x}} is the text {x}; {x} is a column
BRACES = re.compile(r"(?:\\[A-Za-z]+|[\^_])(?:\{[^{}]*\})+|\{(\{[^{}]*\})\}|\{\s*([^\W\d][^{}]*?)\s*\}")
TEMPLATE = "data.template (or eval.prompt), where {{x}} is the text {x}"
BATCH = 1024                                            # rows of a parquet file at a time
LARGE = 2**30                                           # bytes of further columns from which on a remark is due


@dataclass(frozen=True)
class DataConfig:
    problem: str = "problem"
    """column with the problem's text, or with a list of messages {"role", "content"} that ends with the user's; of
    several names, such as "problem|question", the first that a row has; a.b is column b inside column a"""
    answer: str = "answer"
    """column (or several, as above) with the gold answer, a list of golds of which one is to be equalled, or a solution
    whose last \\boxed{} holds it; if there is none, "solution" is read"""
    columns: list[str] = field(default_factory=list)
    """columns that reward and label functions get in addition to id, problem and answer; empty for all"""
    skip_bad_rows: bool = False
    """leave out and count rows without a usable problem or answer; false stops at the first"""
    system: str = ""
    """system prompt, for rows whose messages have none; empty for none"""
    template: str = "{problem}"
    """user turn (of messages: the last); {problem} stands for the problem's text, {name} for another column, {{name}}
    for {name} itself"""
    chat_template: str = ""
    """chat template: empty for that of the policy's folder, a .jinja file, or "none" for system prompt and user turn
    alone, as base models are asked"""
    template_args: dict[str, bool | int | float | str] = field(default_factory=dict)
    """arguments of the chat template, such as {enable_thinking = false}"""
    stop: list[str | int] = field(default_factory=list)
    """further tokens that end a completion, as text or ids, in addition to those that the policy's folder names"""


# ------------------------------------------------------------------------------------------------ sources


def files_of(source: str | Sequence[str]) -> list[str]:
    """The files and hub data sets that `source` names, patterns replaced by what they match, in the order of the
    numbers in their names."""
    if not isinstance(source, str):
        return [file for part in source for file in files_of(part)]
    if source.startswith("hub:") or Path(source).exists() or not WILD.search(source):
        return [source]
    return sorted(
        glob(source, recursive=True),
        key=lambda name: [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)],
    )


def check_source(key: str, source: str | Sequence[str]) -> None:
    """ValueError naming config key `key` if `source` has something that is neither a file of a kind that is read nor
    written like a hub data set."""
    remedy = (
        f"name {', '.join(KINDS[:-1])} or {KINDS[-1]} files with problems and answers, a pattern such as DIR/*.parquet,"
        " or hub:owner/name[/config][:split]"
    )
    files = files_of(source)
    if not files:
        raise ValueError(f"{key} = {source!r} names no file; {remedy}")
    for file in files:
        if not (HUB.fullmatch(file) if file.startswith("hub:") else Path(file).is_file()):
            raise ValueError(f"{key} = {file!r} is not a file; {remedy}")
        if not file.startswith("hub:") and not file.lower().endswith(KINDS):
            raise ValueError(f"{key} = {file!r}: files of this kind are not read; {remedy}")


def rows_of(source: str) -> tuple[str, Iterable[dict | bytes]]:
    """What a row of `source` is called, "line" or "row", and the rows.

    The lines of a JSONL file as they are, else objects.
    """
    if source.startswith("hub:"):
        return "row", hub_rows(source)
    if source.lower().endswith(".parquet"):
        return "row", parquet_rows(source)
    if source.lower().endswith(".json"):
        try:
            rows = json.loads(Path(source).read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"data file {source!r} is not valid JSON ({error}); a file with an object per line is named .jsonl"
            ) from None
        if not isinstance(rows, list):
            raise ValueError(f"data file {source!r} must hold a list of objects; a file with an object per line is "
                             "named .jsonl")
        return "row", rows
    return "line", lines_of(source)


def lines_of(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from file


def parquet_rows(source: str) -> Iterator[dict]:
    from pyarrow import ArrowException, parquet         # comes with datasets

    try:
        for batch in parquet.ParquetFile(source).iter_batches(BATCH):
            yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"data file {source!r} is not a whole parquet file: {error}") from None


def hub_rows(source: str) -> Iterable[dict]:
    """The rows of a data set that the `datasets` library finds; a split must be named where there are several."""
    from datasets import DatasetDict, load_dataset      # seconds of import that only runs with hub data need

    name, config, split = HUB.fullmatch(source).groups()
    try:
        found = load_dataset(name, config, split=split)
    except Exception as error:                          # offline, no such data set or split, no access: many classes
        raise ValueError(
            f"data set {source!r} could not be loaded: {(str(error).splitlines() or [repr(error)])[0]}"
        ) from None
    if isinstance(found, DatasetDict):
        if len(found) > 1:
            raise ValueError(f"data set {source!r} has the splits {', '.join(found)}; name one, as in "
                             f"{source}:{next(iter(found))}")
        found, = found.values()
    return found


# ------------------------------------------------------------------------------------------------ problems


def load_problems(
    source: str | Sequence[str], data: DataConfig, skipped: list[str] | None = None, gold: bool = True
) -> list[dict]:
    """Rows of a source with "problem" as text, "answer" as text or a list of texts, and an "id" (by default their
    place) next to their other columns.

    A row whose problem is a list of messages has it as "prompt_messages", and the text of the last as "problem". Raises
    ValueError naming file, line (or row) and column for anything missing or malformed and for answers that nothing can
    equal; with `data.skip_bad_rows` such rows are left out, and what was wrong with them goes to `skipped`. Without
    `gold` nothing is asked of answers: they stay what the column holds, or None.
    """
    check_source("data file", source)
    rows, complaints, place, collects = [], [], -1, gc.isenabled()
    gc.disable()                                        # a million new objects are no garbage; scans double the time
    try:
        for file in files_of(source):
            unit, source_rows = rows_of(file)
            for number, row in enumerate(source_rows, 1):
                place += 1
                if isinstance(row, bytes) and not row.strip():
                    continue
                try:
                    rows.append(problem_of(row, place, data, gold))
                except ValueError as error:
                    complaints.append(f"{file}, {unit} {number}: {error}")
                    if not data.skip_bad_rows:
                        raise ValueError(
                            f"{complaints[0]}; fix it, or leave such rows out with data.skip_bad_rows = true"
                        ) from None
    finally:
        if collects:
            gc.enable()
    if not rows:
        raise ValueError(f"data file {source!r} has no {'usable ' if complaints else ''}rows"
                         + (f" ({complaints[0]})" if complaints else ""))
    if skipped is not None:
        skipped += complaints
    return rows


def problem_of(row: dict | bytes, place: int, data: DataConfig, gold: bool = True) -> dict:
    """One row with its problem and gold, or without `gold` whatever stands there; ValueError for what is wrong."""
    if isinstance(row, bytes):
        try:
            row = json.loads(row)
        except (ValueError, RecursionError) as error:   # of JSON or of UTF-8; nested a thousand deep
            raise ValueError(f"not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"must be an object with columns; got {row!r}")
    name, problem = column(row, data.problem, "data.problem")
    messages = {"prompt_messages": messages_in(name, problem)} if isinstance(problem, list) else {}
    problem = messages["prompt_messages"][-1]["content"] if messages else text_in(name, problem)
    asked = [key for key in columns_of(data.template) if key != "problem"]
    for key in asked:
        text_in(*column(row, key, TEMPLATE))
    answer = golds_of(row, data) if gold else any_answer(row, data)
    if data.columns:
        row = {
            **{key: value for key in data.columns for _, value in columns_in(row, key)},
            **{key: column(row, key, TEMPLATE)[1] for key in asked},
            **({"id": row["id"]} if "id" in row else {}),
        }
    name = row.get("id", place)
    return {**row, "id": name if isinstance(name, str | int | float | list | None) else str(name),
            "problem": problem, "answer": answer, **messages}


def any_answer(row: dict, data: DataConfig) -> object:
    """What the answer's column holds, None if there is none; ValueError if a file of samples could not hold it."""
    for name, answer in columns_in(row, data.answer):
        try:
            json.dumps(answer, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"column {name!r} cannot be written as JSON ({error}); name another with data.answer"
            ) from None
        return answer
    return None


def golds_of(row: dict, data: DataConfig) -> str | list[str]:
    """The gold of a row, or all of several; ValueError for none and for one that nothing can equal."""
    try:
        name, answer = column(row, data.answer, "data.answer")
    except ValueError as missing:
        if "solution" not in row:
            raise ValueError(f"{missing}, or a function that says what is right with reward.correct") from None
        name, answer = "solution", row["solution"]
    golds = [text_in(name, item) for item in (answer if isinstance(answer, list) and answer else [answer])]
    if name == "solution" and any(
        last_box(gold) is None and "####" not in gold and PROSE.search(gold) for gold in golds
    ):
        raise ValueError(
            "column 'solution' has no answer in \\boxed{} and is none by itself; name the column with the answer with"
            " data.answer"
        )
    golds = list(dict.fromkeys(map(gold_of, golds)))
    return golds[0] if len(golds) == 1 else golds


def columns_in(row: dict, names: str) -> Iterator[tuple[str, object]]:
    """(name, value) of those of the columns "a|b.c|d" that `row` has, b.c being c inside b."""
    for name in dict.fromkeys((names, *names.split("|"))):
        value, parts = row, [name] if name in row else name.split(".")
        while parts and isinstance(value, dict) and parts[0] in value:
            value = value[parts.pop(0)]
        if not parts:
            yield name, value


def column(row: dict, names: str, key: str) -> tuple[str, object]:
    """The first of `columns_in`; ValueError naming `key`, where the names come from, if there is none."""
    for found in columns_in(row, names):
        return found
    name = names.partition("|")[0]
    outer, dot, _ = name.partition(".")
    place = f"inside {outer!r} there are " if dot and isinstance(row.get(outer), dict) else "there are "
    raise ValueError(
        f"no column {name!r} ({place}{', '.join(map(str, row[outer] if place[0] == 'i' else row))}); name the right one"
        f" with {key}"
    )


def text_in(name: str, value: object) -> str:
    """`value` of column `name` as text; ValueError if it is none."""
    if (
        not isinstance(value, str | int | float)
        or isinstance(value, bool)
        or value != value
        or value in (inf, -inf)
        or not str(value).strip()
    ):
        raise ValueError(f"column {name!r} must be a non-empty string or a finite number; got {value!r}")
    if isinstance(value, str) and not value.isascii() and SURROGATE.search(value):
        raise ValueError(f"column {name!r} has half of a surrogate pair in it, which is no text: {ascii(value)[:60]}")
    return str(value)


def messages_in(name: str, value: list) -> list[dict]:
    """`value` of column `name` as messages with a role and text, the last of them the user's; ValueError if it is
    none."""
    messages = []
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise ValueError(
                f'column {name!r} must be a string or a list of messages {{"role", "content"}}; got {message!r} in it'
            )
        content = message["content"]
        if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            content = "".join(str(part.get("text")) for part in content)
        # a parquet file gives every message all keys that any has
        messages.append(
            {**{key: item for key, item in message.items() if item is not None}, "content": text_in(name, content)}
        )
    if not messages or messages[-1]["role"] != "user":
        raise ValueError(
            f"column {name!r} must end with a message of the role 'user'; got the roles"
            f" {', '.join(m['role'] for m in messages) or 'of none'}"
        )
    return messages


@lru_cache
def columns_of(template: str) -> tuple[str, ...]:
    """The columns that stand in braces in `template`."""
    return tuple(dict.fromkeys(found[2] for found in BRACES.finditer(template) if found[2]))


def fill(template: str, row: dict) -> str:
    """`template` with the columns of `row` for their names in braces; ValueError naming one that the row does not
    have."""
    def text(found: re.Match) -> str:
        if found[2]:
            return text_in(*column(row, found[2], TEMPLATE))
        return found[1] or found[0]
    return row["problem"] if template == "{problem}" else BRACES.sub(text, template)


def first_gold(gold: str | list[str]) -> str:
    """What a right answer is called where all that are right count as one."""
    return gold if isinstance(gold, str) else gold[0]


def remarks(rows: Sequence[dict]) -> list[str]:
    """What somebody should know about `rows` that are all usable: problems that stand there again, columns that take
    much memory."""
    # by problem: the first gold; how often it stands there; those with another gold
    golds, again, differ, found = {}, {}, {}, []
    for row in rows:
        problem = json.dumps(row["prompt_messages"]) if "prompt_messages" in row else row["problem"]
        if problem in golds:
            again[problem] = again.get(problem, 1) + 1
            if row["answer"] != golds[problem]:
                differ[problem] = True
        golds.setdefault(problem, row["answer"])
    if again:
        found.append(
            f"{len(again)} of {len(golds)} different problems stand there more than once ({sum(again.values())} rows)"
            + (f", {len(differ)} of them with different golds, such as {next(iter(differ))[:80]!r}" if differ else "")
        )
    sample = rows[:: max(1, len(rows) // 100)]
    sizes = {
        name: sum(len(str(row.get(name, ""))) for row in sample) / len(sample) * len(rows)
        for name in sample[0]
        if name not in ("id", "problem", "answer")
    }
    if sum(sizes.values()) > LARGE:
        largest = max(sizes, key=sizes.get)
        found.append(
            f"further columns take about {sum(sizes.values()) / 1e9:.1f} GB of memory, {largest!r}"
            " most; name those that reward functions need with data.columns"
        )
    return found


def load_benchmarks(
    sources: Sequence[str], data: DataConfig, skipped: list[str], gold: bool = True
) -> dict[str, list[dict]]:
    """The problems of every benchmark by its name: that of the file or data set, or NAME of `NAME=source`.

    ValueError if two have the same.
    """
    found: dict[str, list[dict]] = {}
    for text in sources:
        name, source = benchmark_name(text)
        if name in found:
            raise ValueError(f"eval.benchmarks has two of the name {name!r}; give {text!r} another, as in "
                             f"other={source}")
        found[name] = load_problems(source, data, skipped, gold)
    return found


def benchmark_name(text: str) -> tuple[str, str]:
    """(name, source) of an entry of `eval.benchmarks`; ValueError for a pattern that gives no name."""
    if (named := NAMED.fullmatch(text)) and not Path(text).is_file():
        return named.group(1), named.group(2)
    if hub := HUB.fullmatch(text):
        return hub.group(1).partition("/")[2], text
    if WILD.search(text) and not Path(text).exists():
        name = WILD.split(Path(text).name)[0].strip("-_.")
        if not name:
            raise ValueError(
                f"eval.benchmarks: {text!r} is one benchmark of several files and needs a name, as in NAME={text}"
            )
        return name, text
    return Path(text).stem, text
