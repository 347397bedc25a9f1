"""The TRL example of docs/rewards.md as it stands, but small, recorded and evaluated.   [torchrun] trl_example.py OUT

OUT/RANK.json then holds the batches TRL scored on that rank: mode, prompts, answers, texts, token counts and the
advantages it ended up with.
"""
import json
import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import trl  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

RANK, OUT = os.environ.get("RANK", "0"), Path(sys.argv[1])
# 12 completions on a rank are 3 whole groups, which its micro-batches of 6 cut; a group is smaller in evaluation
SMALL = dict(num_generations=4, per_device_train_batch_size=6, steps_per_generation=2, gradient_accumulation_steps=2,
             num_generations_eval=2, per_device_eval_batch_size=4, max_steps=2, learning_rate=1e-4, use_cpu=True,
             bf16=False, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
             gradient_checkpointing=False, dataloader_pin_memory=False)


class Recorder(trl.GRPOTrainer):
    records: list[dict] = []

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        tokens = [ids[mask.bool()] for ids, mask in zip(output["completion_ids"], output["completion_mask"])]
        self.records.append({"training": self.model.training, "prompts": [row["problem"] for row in inputs],
                             "answers": [row["answer"] for row in inputs],
                             "texts": self.processing_class.batch_decode(tokens, skip_special_tokens=True),
                             "lengths": list(map(len, tokens)), "advantages": output["advantages"].tolist()})
        return output


if __name__ == "__main__":
    torch.set_num_threads(1)
    page = (ROOT / "docs/rewards.md").read_text(encoding="utf-8")
    example = next(block for block in page.split("```python\n") if "GRPOTrainer(" in block).split("```")[0]
    GRPOConfig = trl.GRPOConfig
    trl.GRPOTrainer = Recorder
    trl.GRPOConfig = lambda folder, **options: GRPOConfig(str(OUT / "trl"), **{**options, **SMALL})
    names: dict = {}
    exec(example, names)
    trainer = names["trainer"]
    logged = [record for record in trainer.state.log_history if "rewards/dra/mean" in record]
    trainer.evaluate(names["data"].select(range(5)))
    before = AutoModelForCausalLM.from_pretrained("tiny/policy")
    moved = max((p - q).abs().max().item() for p, q in zip(trainer.accelerator.unwrap_model(trainer.model).parameters(),
                                                           before.parameters()))
    config = names["config"]
    config.per_device_train_batch_size, config.reward_weights = 3, [1.0]    # 6 rows on a rank: fine for TRL on two
    refusal = ""
    try:
        names["DraReward"](config, [names["accuracy"]], names["DraConfig"](embedder="tiny/embedder"))
    except ValueError as error:
        refusal = str(error)
    names["grader"].close()
    (OUT / f"{RANK}.json").write_text(json.dumps({"records": trainer.records, "moved": moved, "logged": logged,
                                                  "refusal": refusal}), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
