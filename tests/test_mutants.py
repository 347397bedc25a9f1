"""mutants/: the list of known ways to break the code must not rot.

That the tests notice each of them takes its runner (slow).
"""
from collections import Counter

import pytest
from mutants.run import AREAS, ROOT, Mutant, load_mutants, main

MUTANTS = load_mutants()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_applies(mutant):
    """Its old text occurs exactly once, and what comes out differs and is Python."""
    source = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert mutant.apply(source) != source


def test_mutants_have_names_of_their_own_and_cover_every_module():
    assert [name for name, count in Counter(m.name for m in MUTANTS).items() if count > 1] == []
    places = ("*.py", "report/[a-z]*", "answers/*.py", "plan/*.py", "real_lm/*.py")
    modules = {str(path.relative_to(ROOT)) for place in places for path in ROOT.glob(place)}
    assert {m.area for m in MUTANTS} == set(AREAS) and {m.file for m in MUTANTS} == modules
    assert all(m.pitfall for m in MUTANTS)


def test_stale_mutants_are_refused_by_name():
    for old, new, words in (("x", "y", "'m'.*occurs 2 times in model.py"), ("a", "y", "'m'.*occurs 0 times"),
                            ("= 1", "=", "'m' is not Python")):
        with pytest.raises(ValueError, match=words):
            Mutant("model", "m", "", old, new).apply("x = 1; z = x")
    with pytest.raises(ValueError, match="'m'.*occurs in 0 files of answers/"):
        assert Mutant("answers", "m", "", "no file has this text", "").file


@pytest.mark.slow
@pytest.mark.nightly
def test_every_mutant_is_caught():
    assert main([]) == 0
