"""config.py: what a user can get wrong is one clear ValueError; what is right comes back as dataclasses."""
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

from config import build, changes, describe, dump, free_keys, import_function, load, parse_args


@dataclass(frozen=True)
class Base:
    size: Annotated[int, ">= 2"] = 8
    """how many"""


@dataclass(frozen=True)
class Section(Base):
    rate: Annotated[float, ">= 0", "< 1"] = 0.5
    """how fast"""
    kind: Literal["a", "b"] = "a"
    """which one"""
    on: bool = True
    """whether"""
    mode: Literal[False, True, "auto"] = False
    """whether, or as it comes"""
    names: list[str] = field(default_factory=list)
    """whom"""
    weights: dict[str, float] = field(default_factory=dict)
    """how much"""
    files: str | list[str] = ""
    """from where"""
    options: dict[str, bool | int | str] = field(default_factory=dict)
    """with what"""
    threads: Annotated[int, ">= 1", "free"] = 1
    """how many at a time"""


@dataclass(frozen=True)
class Whole:
    first: Section
    second: Annotated[Section, "free"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('[first]\nsize = 3\nnames = ["x"]\n')
    return path


def test_load_merges_file_defaults_and_overrides(file):
    config = load(Whole, file,
                  ["first.rate=0", "second.kind=b", "second.names=[\"y\", \"z\"]", "second.weights={q = 2}"])
    assert config.first == Section(size=3, rate=0.0, names=["x"])
    assert config.second == Section(kind="b", names=["y", "z"], weights={"q": 2.0})
    assert [load(Whole, file, [f"first.mode={mode}"]).first.mode for mode in ("true", "false", "auto")] == [True, False,
                                                                                                            "auto"]
    assert isinstance(config.first.rate, float), "an int given for a float becomes one"


@pytest.mark.parametrize(("override", "words"), [
    ("first.sise=3", ["first.sise", "did you mean 'first.size'"]),
    ("first.learning=3", ["first.learning", "known: first.size, first.rate, first.kind"]),
    ("frist.size=3", ["frist", "did you mean 'first'"]),
    ("first.mode=1", ["first.mode must be one of false, true, auto; got 1"]),
    ("first.mode=sometimes", ["first.mode must be one of false, true, auto; got 'sometimes'"]),
    ("third.size=3", ["'third'; known: first, second"]),
    ("first.names=x", ["first.names", "list[str], such as first.names=[\"x\"]"]),
    ("first.size=1", ["first.size", ">= 2", "1"]),
    ("first.size=2.5", ["first.size", "int", "2.5"]),
    ("first.size=true", ["first.size", "int", "True"]),
    ("first.on=1", ["first.on", "bool", "1"]),
    ("first.rate=1.0", ["first.rate", "< 1", "1.0"]),
    ("first.rate=nan", ["first.rate", "finite"]),
    ("first.kind=c", ["first.kind", "a, b", "'c'"]),
    ("first.names=[1]", ["first.names[0]", "str", "1"]),
    ("first.weights={q = \"x\"}", ["first.weights.q", "float", "'x'"]),
    ("first.files=3", ["first.files", "str | list[str]", "3"]),
    ("first.files=[\"a\", 3]", ["first.files", "str | list[str]"]),
    ("first.options={a = [1]}", ["first.options.a", "bool | int | str", "[1]"]),
    ("first.size", ["section.key=value", "first.size"]),
    ("size=3", ["section.key=value", "size=3"]),
    ("first=3", ["section.key=value"]),
])
def test_load_names_key_value_and_remedy(file, override, words):
    with pytest.raises(ValueError) as error:
        load(Whole, file, [override])
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_key_may_have_one_of_several_types(file, tmp_path):
    """And keeps the one that it was given: true is no 1, and one file is no list; both come back from the saved
    file."""
    config = load(
        Whole, file, ["first.files=a.jsonl", 'second.files=["a", "b"]', 'first.options={x = true, y = 1, z = "1"}']
    )
    assert config.first.files == "a.jsonl" and config.second.files == ["a", "b"]
    assert [type(value) for value in config.first.options.values()] == [bool, int, str]
    (tmp_path / "again.toml").write_text(dump(config))
    assert load(Whole, tmp_path / "again.toml") == config


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbf[first]\nsize = 3\n")
    assert load(Whole, tmp_path / "bom.toml").first.size == 3


@pytest.mark.parametrize(("text", "words"), [("[first\n", ["not valid TOML", "line 1"]),
                                             ("first = 3\n", ["[first]", "3"]), ("x = 1\n", ["'x'"])])
def test_load_names_broken_files(tmp_path, text, words):
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        load(Whole, path)
    for word in words:
        assert word in str(error.value)
    with pytest.raises(ValueError, match="does not exist"):
        load(Whole, tmp_path / "none.toml")


def test_dump_reads_back_equal(file, tmp_path):
    """The saved config.toml must start the same run again.

    Quotes, unicode, small floats and empty containers included.
    """
    config = load(Whole, file, ['first.names=["a \\"b\\" \\\\boxed{é}", "line\\nbreak"]', "first.rate=1e-7",
                                "second.weights={\"p.py:f\" = 1e20}"])
    (tmp_path / "again.toml").write_text(dump(config))
    assert load(Whole, tmp_path / "again.toml") == config


def test_describe_lists_every_key_with_type_default_and_sentence():
    text = describe(Whole)
    assert "[second]" in text
    assert "first.rate  (float >= 0 and < 1; default 0.5)\n      how fast" in text
    assert "first.kind  (a | b; default \"a\")\n      which one" in text
    assert "first.size  (int >= 2; default 8)\n      how many" in text, "inherited keys are described too"


def test_build_requires_what_has_no_default():
    @dataclass(frozen=True)
    class Needs:
        path: str
        """where"""

    @dataclass(frozen=True)
    class Outer:
        s: Needs

    with pytest.raises(ValueError, match="s.path.*required"):
        build(Outer, {})


def test_settings_may_stand_on_both_sides_of_an_option():
    args = parse_args(Whole, ["first.size=3", "--config", "f.toml", "first.rate=0"], "Does it.\n\nMore.")
    assert (args.config, args.overrides) == ("f.toml", ["first.size=3", "first.rate=0"])


def test_changes_are_those_that_matter(file):
    """By hand: a free section, a free key and those that the caller names are left out; free keys have bounds too."""
    before = load(Whole, file)
    now = load(Whole, file, ["first.size=4", "first.on=false", "first.threads=2", "second.size=9"])
    assert changes(before, now) == "first.size: 3 -> 4; first.on: True -> False"
    assert changes(before, now, ["first.size", "first.on"]) == ""
    assert free_keys(Whole) == {"first.threads"} | {f"second.{name}" for name in Section.__dataclass_fields__}
    with pytest.raises(ValueError, match="first.threads must be >= 1; got 0"):
        load(Whole, file, ["first.threads=0"])
    assert "first.threads  (int >= 1; default 1)" in describe(Whole)


def test_import_function_names_the_key(tmp_path):
    (tmp_path / "f.py").write_text("def g(x):\n    return x + 1\n\n\ndef deep():\n    return g('x')\n")
    assert import_function("a.b", f"{tmp_path}/f.py:g")(1) == 2
    with pytest.raises(ValueError, match=r"a.b: .*f.py:deep raised TypeError: .*f.py, line 2\)"):
        import_function("a.b", f"{tmp_path}/f.py:deep")()
    with pytest.raises(ValueError,
                       match=r"a.b: .*f.py:g raised TypeError: g\(\) missing 1 required positional argument: 'x'$"):
        import_function("a.b", f"{tmp_path}/f.py:g")()
    for spec in (f"{tmp_path}/f.py:h", f"{tmp_path}/none.py:g", f"{tmp_path}/f.py"):
        with pytest.raises(ValueError, match="a.b"):
            import_function("a.b", spec)
