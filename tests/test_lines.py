"""Lines of code, settings and prose have at most 120 columns: two files fit side by side, and GitHub cuts none."""
import re

import pytest
from conftest import ROOT

OTHERS = {"runs", "shared", "site-packages", "encoder"}         # and folders that begin with a dot
FILES = [path for path in sorted(ROOT.rglob("*.*")) if path.suffix in (".py", ".md", ".toml")
         and not any(part in OTHERS or part.startswith(".") for part in path.relative_to(ROOT).parts)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_have_at_most_120_columns(path):
    """Characters, not bytes. Markdown cannot break a row of a table or an image."""
    lines = enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
    if path.suffix == ".md":
        lines = [(number, line) for number, line in lines if not re.match(r"\||!\[", line)]
    assert [number for number, line in lines if len(line) > 120] == []
