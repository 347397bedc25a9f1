"""report/page.py: what curves are made of, which groups are shown, and that nothing a model writes acts in the page."""
import base64
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from report import page
from report.__main__ import main
from report.page import (STYLES, by_recipe, grid, group_rows, lines, most_changed_groups, plain_advantages,
                         side_by_side, smooth, training_figure, values_of, write_page)
from report.read import Evaluation, read_any, read_run

TRAIN = {"reward": 0.5, "accuracy": 0.5, "modes": 2.0, "entropy": 0.1, "length": 9.0, "truncated": 0.0, "kl": 0.0,
         "gap": 1e-7, "zero_advantage": 0.1, "similarity": None, "sample_s": 1.0, "reward_s": 0.1, "update_s": 2.0}


def a_run(folder: Path, seed: int = 0, steps=(1, 2, 3), name: str = "tiny", loss: str = "grpo", lr: float = 1.0,
          groups: list[dict] = (), **values) -> Path:
    """A run folder; `values` are functions of the step."""
    folder.mkdir(parents=True)
    config = {"dra": {"enabled": True}, "learner": {"loss": loss, "lr": lr}, "run": {"seed": seed}}
    records = [{"kind": "run", "step": 0, "config": config,
                "argv": ["dra_grpo.py", "--config", f"configs/{name}.toml", f"run.seed={seed}"]}]
    records += [{"kind": "train", "step": step, **TRAIN, **{key: value(step) for key, value in values.items()}}
                for step in steps]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if groups:
        (folder / "samples.jsonl").write_text("".join(json.dumps(group) + "\n" for group in groups))
    return folder


def a_group(step: int, position: int, rewards: list[float], advantages: list[float], text: str = "text",
            problem: str = "1+1") -> dict:
    return {"step": step, "position": position, "id": f"{step}/{position}", "problem": problem, "answer": "2",
            "completions": [{"text": f"{text} {i}", "correct": reward > 0, "reward": reward, "smi": 1.0 + i,
                             "weight": 1 / (2 + i), "adjusted": reward / (2 + i), "advantage": advantage, "label": text}
                            for i, (reward, advantage) in enumerate(zip(rewards, advantages))]}


def test_seeds_of_a_recipe_are_one_curve_with_a_band(tmp_path):
    """Runs that differ in [run] alone are one recipe: mean, lowest and highest of the steps that both have.

    Another loss is another recipe.
    """
    runs = [read_run(a_run(tmp_path / "a", 0, accuracy=lambda step: step / 10)),
            read_run(a_run(tmp_path / "b", 1, (2, 3, 4), accuracy=lambda step: step / 10 + 0.2)),
            read_run(a_run(tmp_path / "c", 0, loss="dr_grpo"))]
    recipes = by_recipe(runs)
    assert [[run.path.name for run in seeds] for seeds in recipes.values()] == [["a", "b"], ["c"]]
    assert list(recipes) == ["DRA-GRPO", "DRA-Dr. GRPO"]
    steps, values = values_of(runs[:2], "accuracy")
    assert steps.tolist() == [2, 3] and values == pytest.approx(np.array([[0.2, 0.3], [0.4, 0.5]]))
    figure = grid(["t"], list(recipes), lambda ax, i: lines(ax, [(steps, values)], "t"), "step")
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx([0.3, 0.4])
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert {(2.0, 0.2), (2.0, 0.4), (3.0, 0.3), (3.0, 0.5)} <= {tuple(point) for point in band.round(9).tolist()}


def test_a_run_that_has_just_started_is_no_obstacle(tmp_path):
    """No step yet: no seed, unless there is nothing else. No step in common with the others: no curve.

    The table says where curves end.
    """
    runs = [read_run(a_run(tmp_path / name, seed, steps, loss=loss)) for name, seed, steps, loss in
            (("a", 0, (1, 2), "grpo"), ("b", 1, (), "grpo"), ("c", 0, (1, 2, 3), "dapo"), ("d", 1, (4,), "dapo"))]
    assert [[run.path.name for run in seeds] for seeds in by_recipe(runs).values()] == [["a"], ["c", "d"]]
    assert len(write_page(runs, [], tmp_path / "out", 2)) == 4
    assert len(write_page(runs[1:2], [], tmp_path / "one", 2)) == 1
    assert len(write_page(runs[2:], [], tmp_path / "apart", 2)) == 2          # times without a line
    text = (tmp_path / "out" / "index.html").read_text()
    assert "no step yet; left out" in text and "2 seeds, 3 steps (curves end there; the longest has 4)" in text


def test_nothing_is_drawn_in_place_of_another(tmp_path):
    """Recipes and evaluations with the same name keep their own curves, told apart by folder or whole path.

    Recipes are named by their methods only where no two have the same.
    """
    runs = [read_run(a_run(tmp_path / name, lr=lr)) for name, lr in (("a/r", 1.0), ("b/r", 2.0), ("c", 3.0))]
    assert list(by_recipe(runs)) == [f"tiny (r) ({tmp_path}/a/r)", f"tiny (r) ({tmp_path}/b/r)", "tiny (c)"]
    evaluations = [Evaluation(tmp_path / name / "m", "m", {"b": {"pass_at_k": {"1": value, "2": 1.0}}}, {})
                   for name, value in (("x", 0.2), ("y", 0.4))]
    figure = page.pass_figure({}, evaluations)
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines[:2]] == [[0.2, 1], [0.4, 1]]
    assert len(figure.legends[0].get_texts()) == 2


def test_pass_at_k_is_that_of_steps_all_seeds_have(tmp_path):
    """One seed has fewer steps: the last evaluation both have is drawn, and the legend names only what has a curve."""
    runs = []
    for name, seed, steps in (("a", 0, (0, 2, 4)), ("b", 1, (0, 2))):
        folder = a_run(tmp_path / name, seed)
        with open(folder / "metrics.jsonl", "a") as file:
            file.writelines(json.dumps({"kind": "eval", "step": step, "benchmark": "t", "accuracy": 0.5,
                                        "accuracy_se": 0.1, "pass_at_k": {"1": 0.5 + step / 10}}) + "\n"
                            for step in steps)
        runs.append(read_run(folder))
    figure = page.pass_figure(by_recipe(runs), [])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["tiny, step 0", "tiny, step 2"]
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines[:2]] == [[0.5], [0.7]]


def test_more_curves_than_colours_differ():
    assert len({(str(look["linestyle"]), look["marker"]) for look in map(page.style, range(64))}) == 64


def test_smooth_is_the_mean_of_what_is_known():
    values = np.array([[1.0, 2.0, np.nan, 4.0, 9.0, np.nan, np.nan, np.nan, 3.0], [2.0] * 9])
    for window in (1, 2, 3, 4, 7):
        found, before = smooth(values, window), (window - 1) - (window - 1) // 2
        for row, result in zip(values, found):
            for i in range(9):
                part = [value for value in row[max(0, i - before) : i + (window - 1) // 2 + 1] if not math.isnan(value)]
                assert result[i] == pytest.approx(np.mean(part)) if part else math.isnan(result[i])


def test_panels_without_values_are_left_out_and_zeros_named(tmp_path):
    recipes = by_recipe([read_run(a_run(tmp_path / "a"))])
    figure, zeros = training_figure(recipes, page.HEALTH, 1)
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == [
        page.HEALTH[key] for key in ("entropy", "length", "gap", "zero_advantage")]
    assert zeros == f"{page.HEALTH['truncated']}, {page.HEALTH['kl']}"
    assert training_figure(recipes, {"similarity": "s"}, 1) == (None, "")


def test_curves_differ_without_colour():
    """Each recipe has its own line style and marker; names that matplotlib reads as formulas or skips are shown."""
    assert len({style for _, style, _ in STYLES}) == len({marker for *_, marker in STYLES}) == len(STYLES)
    figure = grid(["t"], ["_a $x_{$", "b"], lambda ax, i: lines(ax, [(np.arange(3), np.ones((1, 3)))] * 2, "t"), "step")
    figure.draw_without_rendering()
    drawn = figure.axes[0].lines
    assert drawn[0].get_linestyle() != drawn[1].get_linestyle() and drawn[0].get_marker() != drawn[1].get_marker()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [" _a \\$x_{\\$", "b"]


def test_advantages_without_dra_follow_the_settings():
    group = a_group(1, 0, [1.0, 0.0, 0.0], [0, 0, 0])
    assert plain_advantages(group, {"learner": {"loss": "dr_grpo"}}) == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    scaled = [2 / 3 / (math.sqrt(1 / 3) + 1e-4), -1 / 3 / (math.sqrt(1 / 3) + 1e-4)]
    for config in ({"learner": {"loss": "grpo"}}, {}, {"learner": {"loss": "dr_grpo"}, "reward": {"advantage": "std"}}):
        assert plain_advantages(group, config)[:2] == pytest.approx(scaled)


def test_the_groups_that_dra_moved_most_are_shown(tmp_path):
    """Of steps 1, 3 and 5: in turn one with different rewards and one with equal ones.

    The latter's advantages would be 0.
    """
    still = [0.7071, -0.7071]                           # of rewards 1 and 0 without DRA, nearly
    groups = [a_group(step, position, rewards, advantages) for step in range(1, 6)
              for position, (rewards, advantages) in enumerate([
                  ([1.0, 0.0], still), ([1.0, 0.0], [0.9, -0.5]), ([1.0, 1.0], [0.1, -0.1]), ([1.0, 1.0], [2.0, -2.0]),
                  ([1.0, 1.0], [2.0, -2.0])])]
    run = read_run(a_run(tmp_path / "a", groups=groups))
    assert most_changed_groups(run, 3) == [(1, 1), (3, 3), (5, 1)]
    assert most_changed_groups(run, 9)[:2] == [(1, 1), (2, 3)] and len(most_changed_groups(run, 9)) == 5
    only_equal = read_run(a_run(tmp_path / "b", groups=[group for group in groups if group["position"] > 1]))
    assert most_changed_groups(only_equal, 1) == [(1, 3)]


def test_a_group_shows_what_dra_did(tmp_path):
    """Right before wrong, unique before common; bars from the middle, in proportion to the largest of the group."""
    run = read_run(a_run(tmp_path / "a", loss="dr_grpo"))
    rows = group_rows(run, a_group(1, 0, [0.0, 1.0, 1.0], [-0.8, 0.4, 0.2]))
    table = page.template().module.group("run", rows)
    assert [table.index(f"text {i}") for i in (1, 2, 0)] == sorted(table.index(f"text {i}") for i in range(3))
    assert table.count("right") == 2
    assert "-0.667" in table and 'class="down" style="left:8.3%;width:41.7%"' in table
    assert 'class="down" style="left:0.0%;width:50.0%"' in table
    assert "+0.400" in table and 'class="up" style="left:50%;width:25.0%"' in table


class Seen(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_nothing_a_model_writes_acts_in_the_page(tmp_path):
    """Markup in completions, labels, problems and names arrives as text.

    The page holds its pictures and asks for nothing.
    """
    evil = '</pre><script src="http://x/y.js">alert(1)</script><img src=x onerror=alert(1)>"\'&amp;'
    folder = a_run(tmp_path / "<b>r", name="<i>", groups=[a_group(1, 0, [1.0, 0.0], [1.0, -1.0], evil, evil)])
    runs, _ = read_any([folder])
    written = write_page(runs, [], tmp_path / "out", 2)
    text = (tmp_path / "out" / "index.html").read_text()
    seen = Seen(text)
    assert {tag for tag, _ in seen.tags} <= set("html head meta title style body h1 h2 h3 h4 table tr td th figure img "
                                                "figcaption p div section pre span i br".split())
    assert not any(name.startswith("on") or name in ("href", "srcset") for _, attrs in seen.tags for name in attrs)
    images = [attrs["src"] for tag, attrs in seen.tags if tag == "img"]
    assert [base64.b64decode(image.removeprefix("data:image/png;base64,")) for image in images] == [
        path.read_bytes() for path in written[1:]]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:])
    assert len(images) == 3                             # learning, health, time
    assert f"{evil} 0" in seen.text and "<i>" in seen.text and "default-src 'none'" in text


def test_the_same_prompt_stands_side_by_side(tmp_path):
    """Two runs with the same data order: one heading, two tables; a run with another problem in that place has none."""
    a = a_run(tmp_path / "a", groups=[a_group(1, 0, [1.0, 0.0], [1.0, -0.5], "from a")])
    b = a_run(tmp_path / "b", name="other", loss="dapo", groups=[a_group(1, 0, [0.0, 1.0], [-0.7, 0.7], "from b")])
    c = a_run(tmp_path / "c", name="third", loss="dr_grpo",
              groups=[a_group(1, 0, [0.0, 1.0], [-0.7, 0.7], "from c") | {"id": "else"}])
    prompt, = side_by_side(read_any([a, b, c])[0], 3)
    texts = [[row["text"] for row in table["rows"]] for table in prompt["tables"]]
    assert texts == [["from a 0", "from a 1"], ["from b 1", "from b 0"]]
    html = page.template().render(prompts=[prompt])
    assert html.count("<h3>") == 1 and html.count("<table>") == 3 and "from a 0" in html and "from b 0" in html
    assert "from c" not in html
    assert side_by_side(read_any([a])[0], 0) == []
    with pytest.raises(ValueError, match="--groups must be >= 0"):
        write_page([], [], tmp_path / "out", -1)


def test_page_of_the_committed_runs(tmp_path, capsys):
    """Eight runs are four recipes; first evaluations are the same policy's and are drawn once."""
    paths = [str(path) for path in sorted(Path("benchmarks/tiny_runs").glob("*.metrics.jsonl"))]
    assert main(["page", *paths, "--out", str(tmp_path / "out")]) == 0
    assert [line.rsplit("/", 1)[1] for line in capsys.readouterr().out.splitlines()] == [
        "index.html", "learning.png", "health.png", "time.png", "evaluation.png", "pass_at_k.png"]
    recipes = by_recipe([read_run(Path(path)) for path in paths])
    assert list(recipes) == ["DRA-GRPO", "Dr. GRPO", "DRA-Dr. GRPO", "GRPO"]
    assert all(len(seeds) == 2 for seeds in recipes.values())
    figure = page.pass_figure(recipes, [])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["DRA-GRPO, step 0",
                                                                           *(f"{name}, step 200" for name in recipes)]
    learning, _ = training_figure(recipes, page.LEARNING, 10)
    titles = [ax.get_title() for ax in learning.axes]
    assert titles == [page.LEARNING["modes"], "accuracy"], "the reward is the accuracy"
    names = [sorted(text.get_text() for text in ax.texts) for ax in learning.axes]
    assert names == [sorted(recipes)] * 2 and not learning.legends
    ends = {text.get_text(): text.xy[1] for text in learning.axes[0].texts}
    assert sorted(ends, key=ends.get) == ["GRPO", "Dr. GRPO", "DRA-Dr. GRPO", "DRA-GRPO"]
    first = [json.loads(line) for line in Path(paths[0]).read_text().splitlines() if '"kind": "eval"' in line][0]
    assert figure.axes[0].lines[0].get_ydata().tolist() == list(first["pass_at_k"].values())


def test_a_value_that_is_no_number_is_named(tmp_path):
    with pytest.raises(ValueError, match="'entropy' of a train record is 'low', not a number"):
        values_of([read_run(a_run(tmp_path / "a", entropy=lambda step: "low"))], "entropy")
