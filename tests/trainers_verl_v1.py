"""verl's V1 trainer from rollout to advantages, with DRA, as far as no GPU is needed: python trainers_verl_v1.py OUT

Real are its configuration, registry, agent-loop outputs, TransferQueue on Ray, replay buffer, padding and balancing;
stand-ins are the engines: tokens and scores come from OUT/rows.json. OUT/result.json then holds what the trainer ended
up with, key by key.
"""
import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace

OUT = Path(sys.argv[1])
sys.path.insert(0, str(Path(__file__).parent.parent))

import hydra  # noqa: E402
import ray  # noqa: E402
import transfer_queue as tq  # noqa: E402
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput  # noqa: E402
from verl.trainer.ppo.v1 import get_trainer_cls  # noqa: E402
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ  # noqa: E402

SETTINGS = ["actor_rollout_ref.model.path=tiny/policy", "actor_rollout_ref.rollout.n=4",
            "actor_rollout_ref.actor.ppo_mini_batch_size=2", "algorithm.adv_estimator=grpo",
            "transfer_queue.backend.SimpleStorage.num_data_storage_units=1"]


class Worker(AgentLoopWorkerTQ.__ray_metadata__.modified_class):
    """Puts rows into TransferQueue as the agent loops do, without an inference engine."""

    def __init__(self):
        self.processor = None

    async def _compute_score(self, outputs, kwargs):
        outputs[-1].reward_score = kwargs["score"]
        outputs[-1].extra_fields["reward_extra_info"] = {}

    async def _compute_teacher_logprobs(self, *arguments, **options):
        pass


def put(rows: list[dict], tokenizer) -> None:
    """A row is {uid, session, texts (one for each output), tool, score}; tokens of `tool` are not the policy's."""
    for row in rows:
        outputs = []
        for text in row["texts"]:
            ids, tool = tokenizer.encode(text) + [tokenizer.eos_token_id], tokenizer.encode(row["tool"])
            outputs.append(AgentLoopOutput(
                prompt_ids=tokenizer.encode(row["uid"]), response_ids=tool + ids, num_turns=2,
                response_mask=[0] * len(tool) + [1] * len(ids), metrics=AgentLoopMetrics(),
                extra_fields={"min_global_steps": 1, "max_global_steps": 1}))
        columns = {"uid": row["uid"], "session_id": row["session"], "global_steps": 1, "score": row["score"]}
        asyncio.run(Worker()._agent_loop_postprocess(outputs, False, **columns))
    tags = {uid: {"is_prompt": True, "status": "finished", "global_steps": 1} for uid in {row["uid"] for row in rows}}
    tq.kv_batch_put(keys=list(tags), partition_id="train", tags=list(tags.values()))


def advantages(trainer, prompts: int) -> dict[str, dict]:
    """One local step of the trainer up to its advantages."""
    metrics: dict = {}
    batch, _ = trainer.replay_buffer.sample(global_steps=1, partition_id="train", batch_size=prompts)
    batch = trainer._balance_batch(batch, metrics)
    tags = batch.tags
    trainer._compute_advantage(batch, metrics)
    fields = ["advantages", "rm_scores", "response_mask"]
    data = tq.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=fields)
    columns = {name: [row.tolist() for row in data[name].unbind()] for name in fields}
    return {key: {"padding": tags[i].get("is_padding", False), **{name: rows[i] for name, rows in columns.items()}}
            for i, key in enumerate(batch.keys)}


if __name__ == "__main__":
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose("ppo_trainer", SETTINGS)
    ray.init(num_cpus=16, include_dashboard=False)      # TransferQueue's actors claim some; the number is only counted
    tq.init(config.transfer_queue)
    trainer = get_trainer_cls("sync")(config=config)
    trainer._init_tokenizer()
    trainer.global_steps, trainer.actor_rollout_wg = 1, SimpleNamespace(_dispatch_info={"actor": [0, 1]})
    rows = json.loads((OUT / "rows.json").read_text(encoding="utf-8"))
    result: dict = {"bases": [base.__name__ for base in type(trainer).__mro__]}
    put(rows, trainer.tokenizer)
    result["rows"] = advantages(trainer, len({row["uid"] for row in rows}))
    tq.kv_clear(keys=[*tq.kv_list("train")["train"]], partition_id="train")
    put([{**row, "score": float("nan") if i == 0 else row["score"]} for i, row in enumerate(rows)], trainer.tokenizer)
    try:
        advantages(trainer, len({row["uid"] for row in rows}))
    except ValueError as error:
        result["refusal"] = str(error)
    (OUT / "result.json").write_text(json.dumps(result), encoding="utf-8")
    tq.close()
    ray.shutdown()
