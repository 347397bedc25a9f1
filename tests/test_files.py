"""files.py: one writer at a time, and JSON Lines that come back as they went in. Kills are in test_kill.py."""
import os

import pytest

import files


def test_a_lock_is_held_by_one_and_ends_with_it(tmp_path):
    with files.lock(tmp_path):
        with pytest.raises(ValueError, match=f"run.dir = .*process {os.getpid()} "):
            with files.lock(tmp_path):
                pass
    with files.lock(tmp_path):
        pass


def test_lines_come_back_as_they_went_in(tmp_path):
    """Also with newlines and other scripts inside; what is appended comes last, and writing replaces what is there."""
    records = [{"text": "one\ntwo", "n": 1.5}, {"text": "\u2713 \u2028 \U0001d54f", "n": None}]
    path = tmp_path / "x.jsonl"
    for written in (records, records[:1]):
        files.write_jsonl(path, written)
        files.append_jsonl(path, records)
        assert [record for _, record in files.read_jsonl(path)] == written + records
    assert os.listdir(tmp_path) == ["x.jsonl"]


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    """The last one without its end; a broken line before it is named."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"n": 1}\n{"n": ')
    assert list(files.read_jsonl(path)) == [(f"{path}, line 1", {"n": 1})]
    path.write_text('{"n": 1}\n{"n": \n')
    with pytest.raises(ValueError, match="x.jsonl, line 2: not valid JSON"):
        list(files.read_jsonl(path))
