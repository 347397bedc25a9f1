"""The settings of a run: what may change when a run continues, and limits to the number."""
import pytest

from config import dump, load
from dra_grpo import Config, check, check_unchanged

TINY = "configs/tiny.toml"


def test_a_run_continues_only_with_the_settings_it_began_with(tmp_path):
    """What changes its course is refused with all the differences.

    Its length, its folder, its evaluations and how fast it goes may change.
    """
    saved = tmp_path / "config.toml"
    saved.write_text(dump(load(Config, TINY)))
    check_unchanged(load(Config, TINY, ["run.steps=9", "run.dir=elsewhere", "eval.every=3", "sampler.slots=2",
                                        "reward.workers=1", "learner.offload=true"]), saved)
    with pytest.raises(ValueError, match=r"learner.lr: \S+ -> 0.5; run.seed: 0 -> 1\); name another run.dir"):
        check_unchanged(load(Config, TINY, ["learner.lr=0.5", "run.seed=1", "run.steps=9"]), saved)


@pytest.mark.parametrize(("fits", "exceeds", "words"), [
    (["data.max_prompt_tokens=56", "sampler.max_new_tokens=200"],
     ["data.max_prompt_tokens=57", "sampler.max_new_tokens=200"], "exceed the model's context of 256"),
    (["eval.max_new_tokens=255"], ["eval.max_new_tokens=256"],
     "leaves no room for a prompt in the model's context of 256"),
    (["data.prompts_per_step=2"], ["data.prompts_per_step=1"], "less than one prompt for each of 2 ranks"),
    (["dra.smi=log_det"], ["dra.smi=log_det", "dra.sharpen=2"], "does not go with sharpen")])
def test_limits_are_exact(fits, exceeds, words):
    check(load(Config, TINY, fits), 2)
    with pytest.raises(ValueError, match=words):
        check(load(Config, TINY, exceeds), 2)
