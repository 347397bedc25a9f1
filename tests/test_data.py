"""data.py: the same rows from every kind of file, columns wherever they stand, errors with file and line."""
import datetime
import json

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from data import DataConfig, check_source, columns_of, fill, load_benchmarks, load_problems, remarks


@pytest.mark.parametrize(("text", "words"), [
    ('{"problem": "1+1", "answer": "2"}\n{"problem": "1+1"}\n', ["line 2", "'answer'", "data.answer"]),
    ('{"problem": "1+1", "answer": "2"}\n{oops\n', ["line 2", "JSON"]),
    ('{"problem": "", "answer": "2"}\n', ["line 1", "'problem'", "non-empty"]),
    ('[1]\n', ["line 1", "columns", "[1]"]),
    ('{"problem": "1+1", "answer": "\\\\frac{1}{2"}\n', ["line 1", "equal", "brace", "skip_bad_rows"]),
    ('{"problem": "1+1", "answer": "."}\n', ["line 1", "equal"]),
    ('{"problem": "1+1", "solution": "It is 2."}\n', ["line 1", "'solution'", "boxed"]),
    ('{"problem": "1+1", "answer": NaN}\n', ["line 1", "'answer'", "finite"]),
    ('{"problem": "1+1", "answer": 1e999}\n', ["line 1", "'answer'", "finite"]),
    ('{"problem": "1+1", "answer": true}\n', ["line 1", "'answer'", "True"]),
    ('{"problem": "1+\\ud83d", "answer": 1}\n', ["line 1", "'problem'", "surrogate"]),
    ("[" * 100000 + "\n", ["line 1", "JSON"]),
    ("\n", ["no rows"]),
])
def test_load_problems_names_file_line_and_column(tmp_path, text, words):
    path = tmp_path / "d.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        load_problems(str(path), DataConfig())
    for word in [*words, "d.jsonl"]:
        assert word in str(error.value)


def test_load_problems_maps_columns(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"question": "1+1", "gold": 2, "level": 3}\n')
    assert load_problems(str(path), DataConfig(problem="question", answer="gold")) == [
        {"question": "1+1", "gold": 2, "level": 3, "id": 0, "problem": "1+1", "answer": "2"}]


def test_golds_come_from_an_answer_or_the_last_box_of_a_solution(tmp_path):
    path = tmp_path / "d.jsonl"
    rows = [{"answer": "48/2 = <<48/2=24>>24 clips\n#### 72"}, {"answer": "\\frac12"}, {"answer": "$\\boxed{3}$."},
            {"solution": "\\boxed{1}, no: \\boxed{\\{4\\}}."}, {"answer": "5", "solution": "\\boxed{6}"}]
    path.write_text("".join(json.dumps({"problem": "p", **row}) + "\n" for row in rows))
    assert [row["answer"] for row in load_problems(str(path), DataConfig())] == ["72", "\\frac12", "3", "\\{4\\}", "5"]


def test_bad_rows_are_left_out_and_named_if_asked_for(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"problem": "p", "answer": "1"}\n{"problem": "p", "answer": "}{"}\n{"problem": "p", "answer": '
                    '"3"}\nno\n')
    skipped = []
    assert [row["id"] for row in load_problems(str(path), DataConfig(skip_bad_rows=True), skipped)] == [0, 2]
    assert len(skipped) == 2 and "line 2" in skipped[0] and "line 4" in skipped[1]
    path.write_text('{"problem": "p"}\n')
    with pytest.raises(ValueError, match="no usable rows.*line 1"):
        load_problems(str(path), DataConfig(skip_bad_rows=True))


ROWS = [{"question": "1+1\u2028or so", "answer": 2, "level": None}, {"question": "2+2", "answer": 4, "level": 5}]


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """The same rows as JSONL, JSON and parquet files and as a hub data set, which `datasets` is made to find."""
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS))
    (tmp_path / "d.json").write_text(json.dumps(ROWS))
    hub = datasets.Dataset.from_list(ROWS)
    hub.to_parquet(tmp_path / "d.parquet")
    asked = []

    def load_dataset(name, config=None, split=None):
        asked.append((name, config, split))
        if split == "dev":
            raise ValueError("Unknown split dev.\nAnd more")
        if split is not None:
            return hub
        return datasets.DatasetDict(train=hub) if name == "a/one" else datasets.DatasetDict(train=hub, test=hub)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return [*(str(tmp_path / f"d.{kind}") for kind in ("jsonl", "json", "parquet")), "hub:a/one",
            "hub:a/b.c/main:test[:2]"], asked


def test_every_kind_of_source_gives_the_same_rows(sources):
    """A separator that only str.splitlines takes for the end of a line stands inside one."""
    expected = [{**row, "id": i, "problem": row["question"], "answer": str(row["answer"])}
                for i, row in enumerate(ROWS)]
    for source in sources[0]:
        assert load_problems(source, DataConfig(problem="problem|question")) == expected, source
    assert sources[1] == [("a/one", None, None), ("a/b.c", "main", "test[:2]")]


def test_errors_name_source_and_row_in_every_kind_of_source(sources, tmp_path):
    for source, place in zip(sources[0], ("line 1", "row 1", "row 1", "row 1", "row 1")):
        with pytest.raises(ValueError) as error:
            load_problems(source, DataConfig(problem="question", answer="gold"))
        for word in (source, place, "'gold'", "level", "data.answer"):
            assert word in str(error.value)
    for source, words in (("hub:a/two", "train, test.*hub:a/two:train"),
                          ("hub:a/two:dev", "hub:a/two:dev.*Unknown split dev\\.$")):
        with pytest.raises(ValueError, match=words):
            load_problems(source, DataConfig())
    for name, text, words in (("x.json", "{", "x.json.*not valid JSON"), ("y.json", "{}", "y.json.*list"),
                              ("z.parquet", "PAR", "z.parquet.*parquet"),
                              ("Z.PARQUET", "PAR1" + "x" * 99 + "PAR1", "Z.PARQUET.*parquet")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=words):
            load_problems(str(tmp_path / name), DataConfig())
    for source in (
        "none.jsonl",
        "hub:gsm8k",
        "hub:a/b:",
        "hub:a/b/c/d",
        str(tmp_path),
        "",
        f"{tmp_path}/none-*.jsonl",
        [sources[0][0], "none.jsonl"],
        [],
    ):
        with pytest.raises(ValueError, match="data.train"):
            check_source("data.train", source)
    for name in ("d.csv", "d.arrow", "d.jsonl.gz", "d"):
        (tmp_path / name).write_text("problem,answer\n")
        with pytest.raises(ValueError, match=f"{name}'.*\\.jsonl.*\\.parquet"):
            check_source("data.train", str(tmp_path / name))


def test_names_that_json_does_not_know_are_text(tmp_path):
    parquet.write_table(pyarrow.table({"id": [datetime.date(2026, 1, 2)], "problem": ["1+1"], "answer": [2]}),
                        tmp_path / "d.parquet")
    assert load_problems(str(tmp_path / "d.parquet"), DataConfig())[0]["id"] == "2026-01-02"


def test_benchmarks_have_names_of_their_own(sources):
    jsonl, named, hub = sources[0][0], f"mine={sources[0][1]}", sources[0][4]
    settings, skipped = DataConfig(problem="question"), []
    assert list(load_benchmarks([jsonl, named, hub], settings, skipped)) == ["d", "mine", "b.c"]
    with pytest.raises(ValueError, match="'d'.*other="):
        load_benchmarks(sources[0][:2], settings, skipped)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(tmp_path, row, **settings):
    """The one row, loaded."""
    loaded, = load_problems(write(tmp_path / "d.jsonl", [row]), DataConfig(**settings))
    return loaded


def test_lists_and_patterns_give_the_rows_of_all_files_in_order(tmp_path):
    """Part 10 comes after part 2; ids are places in the whole, and an error names the part."""
    parts = [
        write(tmp_path / f"part-{i}.jsonl", [{"problem": f"{i}+{j}", "answer": i + j} for j in range(2)])
        for i in (1, 2, 10)
    ]
    expected = ["1+0", "1+1", "2+0", "2+1", "10+0", "10+1"]
    for source in (
        f"{tmp_path}/part-*.jsonl",
        parts,
        [f"{tmp_path}/part-[12].jsonl", parts[2]],
        f"{tmp_path.parent}/**/{tmp_path.name}/part-*.jsonl",
    ):
        rows = load_problems(source, DataConfig())
        assert [row["problem"] for row in rows] == expected and [row["id"] for row in rows] == list(range(6))
    write(tmp_path / "part-2.jsonl", [{"problem": "2+0"}])
    with pytest.raises(ValueError, match="part-2.jsonl, line 1"):
        load_problems(f"{tmp_path}/part-*.jsonl", DataConfig())
    literal = write(tmp_path / "part-[12].jsonl", [{"problem": "7+7", "answer": 14}])
    assert [row["problem"] for row in load_problems(literal, DataConfig())] == [
        "7+7"
    ], "a file whose name looks like a pattern is that file"


def test_a_pattern_is_one_benchmark(tmp_path):
    for i in range(2):
        write(tmp_path / f"math-{i}.jsonl", [{"problem": f"{i}+1", "answer": i + 1}])
    found = load_benchmarks([f"{tmp_path}/math-*.jsonl", f"mine={tmp_path}/*.jsonl"], DataConfig(), [])
    assert {name: len(rows) for name, rows in found.items()} == {"math": 2, "mine": 2}
    with pytest.raises(ValueError, match="eval.benchmarks.*NAME="):
        load_benchmarks([f"{tmp_path}/*.jsonl"], DataConfig(), [])


def test_columns_inside_columns_are_named_by_a_path(tmp_path):
    """Also as the second of several names; a column whose own name has a dot goes first."""
    row = {
        "extra": {"q": {"text": "1+1"}},
        "reward_model": {"style": "rule", "ground_truth": 2},
        "note": {"short": "add"},
    }
    loaded = load(
        tmp_path,
        row,
        problem="prompt|extra.q.text",
        answer="reward_model.ground_truth",
        template="{problem}, {note.short}",
    )
    assert (loaded["problem"], loaded["answer"]) == ("1+1", "2") and fill(
        "{problem}, {note.short}", loaded
    ) == "1+1, add"
    assert (
        load(tmp_path, {**row, "extra.q.text": "3+3"}, problem="extra.q.text", answer="reward_model.ground_truth")[
            "problem"
        ]
        == "3+3"
    )
    for name in ("reward_model.gold", "note.short.text", "reward_model."):
        with pytest.raises(ValueError, match=f"no column '{name}'.*data.answer"):
            load(tmp_path, row, problem="extra.q.text", answer=name)


def test_a_problem_may_be_messages(tmp_path):
    """TRL's and verl's format: the text of the last is the problem, and all are kept; what a parquet file fills in with
    null is left out."""
    turns = [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "82+57"},
    ]
    loaded = load(tmp_path, {"prompt": [{**turn, "name": None} for turn in turns], "answer": 139}, problem="prompt")
    assert loaded["problem"] == "82+57" and loaded["prompt_messages"] == turns
    parts = [{"type": "text", "text": "82"}, {"type": "text", "text": "+57"}]
    assert load(tmp_path, {"problem": [{"role": "user", "content": parts}], "answer": 139})["problem"] == "82+57"
    for messages, words in (
        ([], "user"),
        (turns[:3], "system, user, assistant"),
        ([{"from": "human", "value": "1+1"}], "role"),
        (["1+1"], "role"),
        ([{"role": "user", "content": [{"type": "image"}]}], "'problem'"),
        ([{"role": "user", "content": " "}], "'problem'"),
    ):
        with pytest.raises(ValueError, match=f"line 1.*{words}"):
            load(tmp_path, {"problem": messages, "answer": 139})


def test_several_golds_and_bare_solutions(tmp_path):
    assert load(tmp_path, {"problem": "p", "answer": ["139", "139.0", 139]})["answer"] == ["139", "139.0"]
    assert load(tmp_path, {"problem": "p", "answer": ["139"]})["answer"] == "139"
    assert load(tmp_path, {"problem": "p", "solution": "139"})["answer"] == "139"
    assert load(tmp_path, {"problem": "p", "solution": "x = \\frac{1}{2}"})["answer"] == "x = \\frac{1}{2}"
    for answer in ([], ["1", None], [["1"]]):
        with pytest.raises(ValueError, match="line 1.*'answer'"):
            load(tmp_path, {"problem": "p", "answer": answer})


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{problem} {hint}", "1+1 carry"),
        ("{ problem } {other|hint}", "1+1 carry"),
        ("{problem}: \\boxed{hint}, \\frac{a}{b}, x^{n}", "1+1: \\boxed{hint}, \\frac{a}{b}, x^{n}"),
        ('{problem} {{hint}} {"answer": 1} {}', '1+1 {hint} {"answer": 1} {}'),
        ("{problem}{level}", "1+13"),
    ],
)
def test_columns_are_filled_into_the_user_turn(tmp_path, template, expected):
    """What LaTeX or JSON has in braces stays, and what a column's text has in braces is not filled in again."""
    row = load(tmp_path, {"problem": "1+1", "answer": 2, "hint": "carry", "level": 3}, template=template)
    assert fill(template, row) == expected and "problem" in columns_of(template)
    assert fill(template, {**row, "problem": "{hint}"}) == expected.replace("1+1", "{hint}", 1)


def test_a_name_in_the_user_turn_that_no_column_has_is_refused(tmp_path):
    for row in ({}, {"hint": None}, {"hint": ["a"]}):
        with pytest.raises(ValueError, match="line 1.*'hint'"):
            load(tmp_path, {"problem": "p", "answer": 1, **row}, template="{problem} {hint}")


def test_only_columns_that_are_asked_for_are_kept(tmp_path):
    """Images and traces that nobody reads would stay in memory for the whole run."""
    row = {"id": "a", "problem": "p", "answer": 1, "trace": "long", "hint": "h", "tests": {"in": [1]}}
    kept = {"id": "a", "problem": "p", "answer": "1"}
    assert load(tmp_path, row, columns=["tests.in", "none"], template="{problem} {hint}") == {
        **kept,
        "tests.in": [1],
        "hint": "h",
    }
    assert load(tmp_path, row)["trace"] == "long"


def test_what_stands_there_again_is_counted(monkeypatch):
    rows = [
        {"id": i, "problem": problem, "answer": answer, "image": "x" * 1000}
        for i, (problem, answer) in enumerate([("a", "1"), ("b", "2"), ("a", "1"), ("b", "3"), ("c", "1")])
    ]
    repeated, = remarks(rows)
    assert (
        "2 of 3 different problems" in repeated
        and "more than once (4 rows)" in repeated
        and "1 of them with different golds, such as 'b'" in repeated
    )
    chats = [
        {
            "id": i,
            "problem": "a",
            "answer": "1",
            "prompt_messages": [{"role": "system", "content": str(i)}, {"role": "user", "content": "a"}],
        }
        for i in range(2)
    ]
    assert remarks(chats) == [] == remarks(rows[:2])
    monkeypatch.setattr("data.LARGE", 4000)
    assert any("'image'" in remark and "data.columns" in remark for remark in remarks(rows))
