"""verl's RayPPOTrainer from scores to advantages, with DRA: python trainers_verl.py OUT

Real are its DataProto, the function by which its trainer takes the scores (up to 0.7.0 a reward manager) and its
advantages; tokens, order and scores come from OUT/rows.json. OUT/result.json then holds what each row ended up with.
"""
import json
import runpy
import sys
from pathlib import Path

OUT = Path(sys.argv[1])
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

if not hasattr(transformers, "AutoModelForVision2Seq"):     # verl up to 0.7.1 imports it, transformers 5 has dropped it
    transformers.AutoModelForVision2Seq = transformers.AutoModelForImageTextToText

import verl  # noqa: E402
from verl import DataProto  # noqa: E402
from verl.trainer.ppo import ray_trainer  # noqa: E402


def proto(rows: list[dict], tokenizer) -> DataProto:
    """A row is {uid, texts, tool, score}; tokens of `tool` are not the policy's. Prompts are padded left."""
    prompts = [tokenizer.encode(row["uid"]) for row in rows]
    tools = [tokenizer.encode(row["tool"]) for row in rows]
    responses = [tool + tokenizer.encode(row["texts"][-1]) + [tokenizer.eos_token_id] for row, tool in zip(rows, tools)]
    P, L = max(map(len, prompts)), max(map(len, responses)) + 2
    batch = {name: torch.zeros(len(rows), width, dtype=torch.long)
             for name, width in (("prompts", P), ("responses", L), ("attention_mask", P + L), ("response_mask", L))}
    for i, (prompt, response) in enumerate(zip(prompts, responses)):
        batch["prompts"][i, P - len(prompt):] = torch.tensor(prompt)
        batch["responses"][i, : len(response)] = torch.tensor(response)
        batch["attention_mask"][i, P - len(prompt): P + len(response)] = 1
        batch["response_mask"][i, len(tools[i]): len(response)] = 1
    others = {"uid": [row["uid"] for row in rows], "data_source": ["sums"] * len(rows),
              "reward_model": [{"ground_truth": row["score"]} for row in rows]}
    return DataProto.from_dict(batch, {key: np.array(values, dtype=object) for key, values in others.items()})


def scores_of(data: DataProto, tokenizer) -> torch.Tensor:
    """(B, L), by the way that this version's trainer goes."""
    if not hasattr(ray_trainer, "extract_reward"):          # up to 0.7.0
        from verl.workers.reward_manager import get_reward_manager_cls

        for _ in range(2):                              # verl may run the file again, and refuses another class
            runpy.run_path(str(OUT / "my_dra.py"))
        manager = get_reward_manager_cls("dra")(tokenizer=tokenizer, num_examine=0, reward_fn_key="data_source",
                                                compute_score=lambda ground_truth, **_: ground_truth)
        return ray_trainer.compute_reward(data, manager)[0]
    # as the reward loop leaves them: at the last token
    scores = torch.zeros(data.batch["responses"].shape)
    ends = data.batch["attention_mask"][:, -scores.shape[1]:].sum(-1) - 1
    golds = [item["ground_truth"] for item in data.non_tensor_batch["reward_model"]]
    scores[range(len(scores)), ends] = torch.tensor(golds)
    data.batch["rm_scores"] = scores
    result = ray_trainer.extract_reward(data)[0]
    assert torch.equal(data.batch["rm_scores"], scores), "the batch's own stay"
    return result


if __name__ == "__main__":
    tokenizer = transformers.AutoTokenizer.from_pretrained("tiny/policy")
    rows = json.loads((OUT / "rows.json").read_text(encoding="utf-8"))
    data = proto(rows, tokenizer)
    data.batch["token_level_rewards"] = scores_of(data, tokenizer)
    ray_trainer.compute_advantage(data, adv_estimator="grpo", config={})
    fields = ("token_level_rewards", "advantages", "response_mask")
    result = {"version": verl.__version__, **{name: data.batch[name].tolist() for name in fields}}
    data = proto(rows, tokenizer)
    data.meta_info["validate"] = True
    result["validation"] = scores_of(data, tokenizer).sum(-1).tolist()
    rows[0]["score"] = float("nan")
    try:
        scores_of(proto(rows, tokenizer), tokenizer)
    except ValueError as error:
        result["refusal"] = str(error)
    (OUT / "result.json").write_text(json.dumps(result), encoding="utf-8")
