"""checkpoint.py without a run: what is read back is what was written, and nothing else ever counts as a checkpoint."""
import os
import shutil

import pytest
import torch

import checkpoint
import files


def write_policy(folder):
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"policy")


def save(run_dir, step, keep=2, policy=write_policy):
    checkpoint.save(run_dir, step, policy, {"exp_avg.w": torch.full((3, 2), float(step)),
                                            "exp_avg_sq.w": torch.arange(4) / 3}, {"updates": 2 * step}, keep)


def names(run_dir):
    return [folder.name for folder in checkpoint.steps(run_dir)]


def test_load_gives_back_what_was_saved(tmp_path):
    save(tmp_path, 7)
    state = {"exp_avg.w": torch.zeros(3, 2), "exp_avg_sq.w": torch.zeros(4)}
    meta = checkpoint.load(checkpoint.newest_intact(tmp_path), state)
    assert meta["step"] == 7 and meta["updates"] == 14
    assert torch.equal(state["exp_avg.w"], torch.full((3, 2), 7.0))
    assert torch.equal(state["exp_avg_sq.w"], torch.arange(4) / 3)
    assert (checkpoint.folder_of(tmp_path, 7) / "policy" / "weights").read_bytes() == b"policy"


def test_the_optimizer_is_written_in_files_of_limited_size(tmp_path, monkeypatch):
    """Each file is three times in host memory as it is written; a tensor larger than the limit has one of its own."""
    monkeypatch.setattr(checkpoint, "FILE_BYTES", 40)
    state = {f"exp_avg.{i}": torch.full((n,), float(i)) for i, n in enumerate((4, 4, 4, 50, 1, 1))}
    assert list(checkpoint.file_numbers(state).values()) == [1, 1, 1, 2, 3, 3]
    checkpoint.save(tmp_path, 1, write_policy, state, {}, 1)
    folder = checkpoint.newest_intact(tmp_path)
    assert len(list((folder / "state").iterdir())) == 3
    read = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    checkpoint.load(folder, read)
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(keep, tmp_path):
    for step in (1, 2, 10, 11):
        save(tmp_path, step, keep)
    assert names(tmp_path) == [f"step-{step:06d}" for step in (1, 2, 10, 11)][-keep:]
    assert checkpoint.newest_intact(tmp_path).name == "step-000011"


def test_an_unfinished_one_does_not_count(tmp_path, capsys):
    """The writing stops halfway: the checkpoint before it is used without a word, and the next save succeeds."""
    def fails(folder):
        write_policy(folder)
        raise RuntimeError("power cut")

    save(tmp_path, 1)
    with pytest.raises(RuntimeError, match="power cut"):
        save(tmp_path, 2, policy=fails)
    assert names(tmp_path) == ["step-000001"] and checkpoint.newest_intact(tmp_path).name == "step-000001"
    assert not capsys.readouterr().err
    save(tmp_path, 2)
    assert names(tmp_path) == ["step-000001", "step-000002"]


def test_a_change_in_any_file_is_noticed(tmp_path, capsys):
    """One flipped bit, file by file: the checkpoint before is used and the file is named."""
    save(tmp_path / "whole", 1)
    save(tmp_path / "whole", 2)
    newest = checkpoint.newest_intact(tmp_path / "whole")
    contents = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file() and path.name != "meta.json"]
    assert len(contents) >= 2
    for i, name in enumerate(contents):
        shutil.copytree(tmp_path / "whole", tmp_path / str(i))
        path = checkpoint.folder_of(tmp_path / str(i), 2) / name
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert checkpoint.newest_intact(tmp_path / str(i)).name == "step-000001"
        assert str(name) in capsys.readouterr().err


def test_everything_is_on_disk_before_the_name_is(tmp_path, monkeypatch):
    """A power cut after the rename must find the data.

    Every file and folder is synced before it, and the folder that holds the name after it.
    """
    synced, at_rename = [], []
    replace, sync = os.replace, files.sync

    def renamed(part, final):
        at_rename.extend(synced)
        assert {path for path in part.rglob("*")} <= set(synced)
        replace(part, final)

    monkeypatch.setattr("files.sync", lambda path: synced.append(path) or sync(path))
    monkeypatch.setattr("os.replace", renamed)
    save(tmp_path, 1)
    assert at_rename and tmp_path / "checkpoints" in synced[len(at_rename):]
