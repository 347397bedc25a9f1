"""OpenRLHF's experience maker from samples to advantages, with DRA: python trainers_openrlhf.py OUT

Real are its trainer module (with the adapter's lines below its imports), experience maker, experiences and batching.
Stand-ins, as they need a GPU: the modules deepspeed, flash_attn and vllm, and the policy's process group. Tokens and
scores come from OUT/rows.json; OUT/result.json then holds what each row ended up with.
"""
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

OUT = Path(sys.argv[1])
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402
import transformers  # noqa: E402
import transformers.integrations.deepspeed  # noqa: E402, F401      before the stand-in, which it would take as real


class StandIn(ModuleType):
    __path__: list = []
    __version__ = "0.0"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()


class Finder:
    """Any module of the packages that need a GPU."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("deepspeed", "flash_attn", "vllm"):
            return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.append(Finder())

from openrlhf.trainer import ppo_trainer  # noqa: E402
from openrlhf.trainer.ppo_utils import experience_maker  # noqa: E402
from openrlhf.trainer.ppo_utils.experience import Experience  # noqa: E402

experience_maker.ray = SimpleNamespace(get=lambda refs: refs, put=lambda value: value)


class Policy:
    """A process group whose log-probs are 0."""

    def async_run_method_batch(self, method_name, action_mask, **_):
        return [[torch.zeros(mask.shape) for mask in action_mask]]


def samples(rows: list[dict], tokenizer) -> list[Experience]:
    """As the samples generator returns them: one each, whole groups in order. A row is {uid, texts, tool, score}."""
    experiences = []
    for row in rows:
        prompt, tool = tokenizer.encode(row["uid"]), tokenizer.encode(row["tool"])
        answer = tokenizer.encode(row["texts"][-1]) + [tokenizer.eos_token_id]
        sequence = torch.tensor([prompt + tool + answer])
        mask = torch.tensor([[0] * len(prompt + tool) + [1] * len(answer)])
        rewards = torch.tensor([row["score"]])
        experiences.append(Experience(
            sequences=sequence, attention_mask=torch.ones_like(sequence), action_mask=mask[:, 1:].bool(),
            rewards=rewards, scores=rewards, total_length=torch.tensor([sequence.shape[1]]),
            response_length=mask.sum(-1), truncated=torch.tensor([False]), prompts=[row["uid"]], labels=[""],
            info={"reward": rewards}))
    return experiences


def arguments(group_size: int, dynamic: bool) -> SimpleNamespace:
    """The options that the experience maker reads, nested as OpenRLHF's own."""
    of = SimpleNamespace
    return of(
        rollout=of(n_samples_per_prompt=group_size, micro_batch_size=5, max_tokens_per_gpu=64),
        train=of(dynamic_batch_enable=dynamic, colocate_all=False, colocate_actor_ref=False,
                 colocate_critic_reward=False), reward=of(clip_range=None),
        actor=of(num_nodes=1, num_gpus_per_node=1), ds=of(ring_attn_size=1, tensor_parallel_size=1),
        algo=of(kl=of(use_loss=False, estimator="k1"),
                advantage=of(estimator="group_norm", gamma=1.0, lambd=1.0, no_std_norm=False)))


def make(rows: list[dict], group_size: int, dynamic: bool) -> list[Experience]:
    maker = ppo_trainer.RemoteExperienceMaker(Policy(), None, None, None, SimpleNamespace(value=0.0),
                                              SimpleNamespace(args=arguments(group_size, dynamic)), tokenizer)
    return maker.make_experience_batch(samples(rows, tokenizer))


if __name__ == "__main__":
    tokenizer = transformers.AutoTokenizer.from_pretrained("tiny/policy")
    rows = json.loads((OUT / "rows.json").read_text(encoding="utf-8"))
    result: dict = {"batches": {}, "refusals": []}
    for dynamic in (False, True):
        experiences = make(rows, 4, dynamic)
        result["batches"][str(dynamic)] = [
            {"row": row, "reward": e.rewards[i].item(), "advantages": (e.advantages * e.action_mask)[i].tolist(),
             "logged": [e.info[name][i].item() for name in ("reward", "reward_before_dra")],
             "action_mask": e.action_mask[i].int().tolist()} for e in experiences for i, row in enumerate(e.index)]
    for changed, group_size in (([{**rows[0], "score": float("nan")}, *rows[1:]], 4), (rows, 3), (rows, 1)):
        try:
            make(changed, group_size, False)
        except ValueError as error:
            result["refusals"].append(str(error))
    (OUT / "result.json").write_text(json.dumps(result), encoding="utf-8")
