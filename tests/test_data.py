"""data.py: the same rows from every kind of file, errors with file and line, and prompts as the chat template writes them."""
import datetime
import json

import datasets
import pyarrow
import pytest
from pyarrow import parquet
from tokenizers import processors

import data
from data import DataConfig, check_source, load_benchmarks, load_problems, load_tokenizer, opening, prompt_tokens, short_enough


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
    rows = [{"answer": "48/2 = <<48/2=24>>24 clips\n#### 72"}, {"answer": "\\frac12"}, {"answer": "$\\boxed{3}$."}, {"solution": "\\boxed{1}, no: \\boxed{\\{4\\}}."}, {"answer": "5", "solution": "\\boxed{6}"}]
    path.write_text("".join(json.dumps({"problem": "p", **row}) + "\n" for row in rows))
    assert [row["answer"] for row in load_problems(str(path), DataConfig())] == ["72", "\\frac12", "3", "\\{4\\}", "5"]


def test_bad_rows_are_left_out_and_named_if_asked_for(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"problem": "p", "answer": "1"}\n{"problem": "p", "answer": "}{"}\n{"problem": "p", "answer": "3"}\nno\n')
    skipped = []
    assert [row["id"] for row in load_problems(str(path), DataConfig(skip_bad_rows=True), skipped)] == [0, 2]
    assert len(skipped) == 2 and "line 2" in skipped[0] and "line 4" in skipped[1]
    path.write_text('{"problem": "p"}\n')
    with pytest.raises(ValueError, match="no usable rows.*line 1"):
        load_problems(str(path), DataConfig(skip_bad_rows=True))


@pytest.mark.parametrize(("ending", "begun"), [("<|assistant|>", ""), ("<|assistant|><think>\n", "<think>\n"), ("<|assistant|><think>\n\n</think>\n\n", "<think>\n\n</think>\n\n")])
def test_what_the_template_writes_of_the_reasoning_is_known(ending, begun):
    tokenizer = load_tokenizer("tiny/policy")
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}" + ending + "{% endif %}"
    assert opening(tokenizer) == begun


def test_prompt_tokens_are_the_templates_own():
    """A tokenizer that puts its BOS before every text, under a template that has written it already: it stands there once."""
    tokenizer = load_tokenizer("tiny/policy")
    bos = tokenizer.convert_tokens_to_ids("<|system|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<|system|> $A", special_tokens=[("<|system|>", bos)])
    tokenizer.chat_template = "<|system|>" + tokenizer.chat_template
    assert tokenizer("1+1")["input_ids"][0] == bos
    expected = tokenizer.convert_tokens_to_ids(["<|system|>", "<|user|>", "1", "+", "2", "<|assistant|>"])
    assert prompt_tokens(tokenizer, "1+2", DataConfig()) == expected


ROWS = [{"question": "1+1\u2028or so", "answer": 2, "level": None}, {"question": "2+2", "answer": 4, "level": 5}]


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """The same rows as JSONL, JSON and parquet files and as a hub data set, which the `datasets` library is told to find."""
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS))
    (tmp_path / "d.json").write_text(json.dumps(ROWS))
    hub = datasets.Dataset.from_list(ROWS)
    hub.to_parquet(tmp_path / "d.parquet")
    asked = []

    def load_dataset(name, config=None, split=None):
        asked.append((name, config, split))
        if split == "dev":
            raise ValueError("Unknown split dev.\nAnd more")
        return {"a/one": datasets.DatasetDict(train=hub)}.get(name, datasets.DatasetDict(train=hub, test=hub)) if split is None else hub
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return [*(str(tmp_path / f"d.{kind}") for kind in ("jsonl", "json", "parquet")), "hub:a/one", "hub:a/b.c/main:test[:2]"], asked


def test_every_kind_of_source_gives_the_same_rows(sources):
    """A separator that only str.splitlines takes for the end of a line stands inside one."""
    expected = [{**row, "id": i, "problem": row["question"], "answer": str(row["answer"])} for i, row in enumerate(ROWS)]
    for source in sources[0]:
        assert load_problems(source, DataConfig(problem="problem|question")) == expected, source
    assert sources[1] == [("a/one", None, None), ("a/b.c", "main", "test[:2]")]


def test_errors_name_source_and_row_in_every_kind_of_source(sources, tmp_path):
    for source, place in zip(sources[0], ("line 1", "row 1", "row 1", "row 1", "row 1")):
        with pytest.raises(ValueError) as error:
            load_problems(source, DataConfig(problem="question", answer="gold"))
        for word in (source, place, "'gold'", "level", "data.answer"):
            assert word in str(error.value)
    for source, words in (("hub:a/two", "train, test.*hub:a/two:train"), ("hub:a/two:dev", "hub:a/two:dev.*Unknown split dev\\.$")):
        with pytest.raises(ValueError, match=words):
            load_problems(source, DataConfig())
    for name, text, words in (("x.json", "{", "x.json.*not valid JSON"), ("y.json", "{}", "y.json.*list"), ("z.parquet", "PAR", "z.parquet.*parquet"),
                              ("Z.PARQUET", "PAR1" + "x" * 99 + "PAR1", "Z.PARQUET.*parquet")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=words):
            load_problems(str(tmp_path / name), DataConfig())
    for source in ("none.jsonl", "hub:gsm8k", "hub:a/b:", "hub:a/b/c/d", str(tmp_path)):
        with pytest.raises(ValueError, match="data.train"):
            check_source("data.train", source)


def test_names_that_json_does_not_know_are_text(tmp_path):
    parquet.write_table(pyarrow.table({"id": [datetime.date(2026, 1, 2)], "problem": ["1+1"], "answer": [2]}), tmp_path / "d.parquet")
    assert load_problems(str(tmp_path / "d.parquet"), DataConfig())[0]["id"] == "2026-01-02"


def test_benchmarks_have_names_of_their_own(sources):
    jsonl, named, hub = sources[0][0], f"mine={sources[0][1]}", sources[0][4]
    settings, skipped = DataConfig(problem="question"), []
    assert list(load_benchmarks([jsonl, named, hub], settings, skipped)) == ["d", "mine", "b.c"]
    with pytest.raises(ValueError, match="'d'.*other="):
        load_benchmarks(sources[0][:2], settings, skipped)


def test_prompts_are_measured_as_if_all_were_tokenised(monkeypatch):
    """Texts of all lengths around the limit, some of whose characters take several tokens, under two templates; most need no tokenizer."""
    tokenizer, asked = load_tokenizer("tiny/policy"), []
    rows = [{"problem": text * n} for text in ("1", "+ 7", "\u00e9", "ones and tens ") for n in range(1, 60)]
    for settings in (DataConfig(), DataConfig(template="please: {problem}, carefully", system="ones")):
        lengths = [len(prompt_tokens(tokenizer, row["problem"], settings)) for row in rows]
        assert min(lengths) < 50 < max(lengths)
        assert short_enough(tokenizer, rows, settings, 50) == [i for i, length in enumerate(lengths) if length <= 50]
    texts = data.prompt_text
    monkeypatch.setattr(data, "prompt_text", lambda *arguments: asked.append(arguments[1]) or texts(*arguments))
    assert len(short_enough(tokenizer, [{"problem": "12+34"}] * 1000, DataConfig(), 50)) == 1000 and asked == ["x"]
