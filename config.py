"""TOML files and `section.key=value` overrides, checked against nested frozen dataclasses.

A config class is a frozen dataclass whose fields are sections, and a section is a frozen dataclass whose fields are
values. Everything a user can get wrong is one `ValueError` that names the key, the value and the remedy. The rules
are in the types:

    @dataclass(frozen=True)
    class SamplerConfig:
        group_size: Annotated[int, ">= 2"] = 8
        \"\"\"completions per prompt (G)\"\"\"                   # the sentence under a field is its --help
        decode: Literal["fast", "slow"] = "fast"

Value types: bool, int, float, str, Literal[...], list[str], dict[str, float], unions such as str | list[str]; bounds by
`Annotated[type, ">= 0", "< 1"]`. `Annotated[type, "free"]`, of a value or a section, says that results do not depend on
it: `changes` leaves it out.
Imports nothing of ours.
"""
import argparse
import ast
import dataclasses
import difflib
import functools
import importlib.util
import inspect
import json
import math
import operator
import textwrap
import tomllib
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

BOUNDS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


def load(cls: type, path: str | Path, overrides: list[str] = ()) -> Any:
    """An instance of dataclass `cls` from the TOML file at `path`, then `overrides` ("section.key=value").

    An override's value is read as TOML if it parses, else taken as a string; then it is checked like the rest. Raises
    ValueError for a missing or broken file, an unknown key, a wrong type, a value out of bounds or a missing key.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"config file {str(path)!r} does not exist")
    try:
        # some editors begin a file with a byte order mark
        tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"config file {str(path)!r} is not valid TOML: {error}") from None
    for text in overrides:
        key, equals, value = text.partition("=")
        section, dot, name = key.strip().partition(".")
        if not (equals and dot and section and name):
            raise ValueError(f"argument {text!r} is not of the form section.key=value")
        if not isinstance(tree.setdefault(section, {}), dict):
            raise ValueError(f"config key {section!r} must be a section ([{section}]); got {tree[section]!r}")
        tree[section][name] = parse_value(value)
    return build(cls, tree)


def parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def build(cls: type, tree: dict, prefix: str = "") -> Any:
    """`tree` (nested dicts) as an instance of dataclass `cls`; `prefix` is the path of the section, for messages."""
    hints = get_type_hints(cls, include_extras=True)
    values = {}
    for name, value in tree.items():
        key = prefix + name
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            known = ", ".join(prefix + name for name in hints)
            hint = f"; did you mean {prefix + near[0]!r}?" if near else f"; known: {known}"
            raise ValueError(f"unknown config key {key!r}{hint}")
        values[name] = check(key, value, hints[name])
    for field in dataclasses.fields(cls):
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name not in values and dataclasses.is_dataclass(section := annotated(hints[field.name])[0]):
            values[field.name] = build(section, {}, f"{prefix}{field.name}.")
        elif field.name not in values and not has_default:
            raise ValueError(f"config key {prefix + field.name!r} is required: {doc(cls)[field.name]}")
    return cls(**values)


def check(key: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint` asks for, or ValueError naming `key`.

    An int serves as a float; nothing else is converted.
    """
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"config key {key!r} must be a section ([{key}]); got {value!r}")
        return build(hint, value, f"{key}.")
    if get_origin(hint) is Literal:
        if (type(value), value) not in [(type(option), option) for option in get_args(hint)]:       # 1 is not true
            raise ValueError(f"{key} must be one of {', '.join(map(option_name, get_args(hint)))}; got {value!r}")
        return value
    if get_origin(hint) is Annotated:
        base, bounds, _ = annotated(hint)
        value = check(key, value, base)
        for bound in bounds:
            sign, limit = bound.split()
            if not BOUNDS[sign](value, float(limit)):
                raise ValueError(f"{key} must be {' and '.join(bounds)}; got {value!r}")
        return value
    if isinstance(hint, UnionType):
        for option in get_args(hint):
            try:
                return check(key, value, option)
            except ValueError:
                continue
        raise ValueError(f"{key} must be of type {type_name(hint)}; got {value!r}")
    if get_origin(hint) is list and isinstance(value, list):
        return [check(f"{key}[{i}]", item, get_args(hint)[0]) for i, item in enumerate(value)]
    if get_origin(hint) is dict and isinstance(value, dict):
        return {name: check(f"{key}.{name}", item, get_args(hint)[1]) for name, item in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        bare = get_origin(hint) is list and isinstance(value, str)
        example = f", such as {key}=[{json.dumps(value)}]" if bare else ""
        raise ValueError(f"{key} must be of type {type_name(hint)}{example}; got {value!r}")
    if hint is float and not math.isfinite(value):
        raise ValueError(f"{key} must be finite; got {value!r}")
    return value


def annotated(hint: Any) -> tuple[Any, list[str], bool]:
    """(type, bounds, whether it is "free") of a field's type."""
    base, *words = get_args(hint) if get_origin(hint) is Annotated else [hint]
    return base, [word for word in words if word != "free"], "free" in words


def type_name(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        base, bounds, _ = annotated(hint)
        return f"{type_name(base)} {' and '.join(bounds)}".rstrip()
    if get_origin(hint) is Literal:
        return " | ".join(map(option_name, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def option_name(option: Any) -> str:
    """An option of a Literal as TOML has it, without quotes."""
    return option if isinstance(option, str) else toml_value(option)


def doc(cls: type) -> dict[str, str]:
    """The sentence under each field of dataclass `cls` and its bases, by field name."""
    sentences = {}
    for part in reversed(cls.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0].body
        for field, text in zip(body, body[1:]):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                sentences[field.target.id] = " ".join(text.value.value.split())
    return sentences


def describe(cls: type) -> str:
    """Every key of config class `cls` with its type, default and sentence, section by section (the body of --help)."""
    lines = []
    for section, section_cls in get_type_hints(cls).items():
        hints, sentences = get_type_hints(section_cls, include_extras=True), doc(section_cls)
        lines.append(f"\n[{section}]")
        for field in dataclasses.fields(section_cls):
            default = field.default if field.default is not dataclasses.MISSING else (
                field.default_factory() if field.default_factory is not dataclasses.MISSING else None)
            shown = "required" if default is None else f"default {toml_value(default)}"
            lines.append(f"  {section}.{field.name}  ({type_name(hints[field.name])}; {shown})")
            lines.append(f"      {sentences[field.name]}")
    return "\n".join(lines)


def parse_args(cls: type, argv: list[str], doc: str,
               extra: Callable[[argparse.ArgumentParser], None] = lambda parser: None) -> argparse.Namespace:
    """--config FILE section.key=value ..., with every key of config class `cls` in --help."""
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0], epilog="config keys:" + describe(cls),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE", help="TOML file with the run's settings")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value",
                        help="settings that replace those of the file")
    extra(parser)
    return parser.parse_intermixed_args(argv)           # settings may come before and after options


def dump(config: Any) -> str:
    """`config` as TOML text that `load` reads back to an equal instance."""
    lines = []
    for section in dataclasses.fields(config):
        lines.append(f"[{section.name}]")
        values = getattr(config, section.name)
        lines += [f"{field.name} = {toml_value(getattr(values, field.name))}" for field in dataclasses.fields(values)]
        lines.append("")
    return "\n".join(lines)


def free_keys(cls: type) -> set[str]:
    """Every "section.key" of config class `cls` that results do not depend on."""
    return {f"{section}.{key}" for section, section_hint in get_type_hints(cls, include_extras=True).items()
            for key, hint in get_type_hints(annotated(section_hint)[0], include_extras=True).items()
            if annotated(section_hint)[2] or annotated(hint)[2]}


def changes(before: Any, now: Any, more_free: Iterable[str] = ()) -> str:
    """"section.key: old -> new" of what differs between two configs of one class, but for free keys; "" for nothing."""
    old, new, free = dataclasses.asdict(before), dataclasses.asdict(now), free_keys(type(now)) | set(more_free)
    return "; ".join(f"{section}.{key}: {old[section][key]!r} -> {value!r}"
                     for section, values in new.items() for key, value in values.items()
                     if old[section][key] != value and f"{section}.{key}" not in free)


def toml_value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml_value(item)}" for key, item in value.items()) + "}"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def import_function(key: str, spec: str) -> Any:
    """The function that `spec` = "path.py:function" names; ValueError naming config key `key` if there is none."""
    file, colon, name = spec.rpartition(":")
    path = Path(file)
    if not (colon and file.endswith(".py") and path.is_file()):
        raise ValueError(f"{key} must be \"path.py:function\" with an existing file, seen from {Path.cwd()}; "
                         f"got {spec!r}")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(module_spec)
    with naming(key, spec, path):
        module_spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{key}: {file} has no function {name!r}")

    @functools.wraps(function)
    def named(*arguments, **options):
        with naming(key, spec, path):
            return function(*arguments, **options)
    return named


@contextmanager
def naming(key: str, spec: str, path: Path) -> Iterator[None]:
    """An error in a user's code becomes a ValueError that says where in the user's file, if it came that far."""
    try:
        yield
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
        raise ValueError(f"{key}: {spec} raised {type(error).__name__}: {error}"
                         + (f" ({path}, line {lines[-1]})" if lines else "")) from error
