"""DRA in TRL: one reward function that adjusts the weighted total of yours.

    trainer = GRPOTrainer(policy, DraReward(config, [accuracy, brevity], DraConfig(embedder=...)), config, data)

Read from trl 1.16.0, trainer/grpo_trainer.py: `_calculate_rewards` calls a reward function with rank-local lists, whole
groups one after the other, and weighs its values afterwards. So what DRA adjusts must be added up inside one function,
with `config.reward_weights`, which TRL then sees as [1.0]. Neither the group size nor whether it is training or
evaluation is passed, and the two may have different group sizes: the sizes come from the config, the mode from the
model of the trainer whose method `log_metric` is, where TRL itself looks. `apply = "advantage"` needs
`scale_rewards="none"`; `scale` takes its place. Base functions are plain ones, not async and
not reward models; an environment that changes the prompt of each completion is refused, as its groups cannot be told
from split ones.
"""
import inspect
import math
from collections.abc import Callable, Sequence

import torch

from integrations.groups import GroupRewards, require_unscaled
from reward import DraConfig

# N completions on this rank, G of each prompt, F base reward functions


def whole_groups(group: str, G: int, **numbers: int) -> None:
    """ValueError, saying what to change, unless a rank's completions, the product of `numbers`, are whole groups of G.

    `group` names G.
    """
    rows = math.prod(numbers.values())
    if rows % G:
        remedies = " or ".join(f"{name} = {number} a multiple of {G // math.gcd(rows // number, G)}"
                               for name, number in numbers.items())
        raise ValueError(f"{rows} completions on a rank are no whole groups of {group} = {G}, and DRA compares within "
                         f"a group; make {remedies}")


class DraReward:
    __name__ = "dra"                                    # in TRL's logs: rewards/dra/mean

    def __init__(self, config, functions: Sequence[Callable], dra: DraConfig, device: str | torch.device = "cpu",
                 scale: str = "std"):
        """`config` is the GRPOConfig the trainer will get; its reward_weights, one per function, become [1.0].

        Raises ValueError where groups would be split over ranks, and for what cannot be added up before DRA.
        """
        weights = config.reward_weights or [1.0] * len(functions)
        self.G = {True: config.num_generations, False: config.num_generations_eval or config.num_generations}
        whole_groups("num_generations", self.G[True], per_device_train_batch_size=config.per_device_train_batch_size,
                     steps_per_generation=config.steps_per_generation)
        if config.eval_strategy != "no":
            whole_groups("num_generations_eval", self.G[False],
                         per_device_eval_batch_size=config.per_device_eval_batch_size)
        if config.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(f"multi_objective_aggregation = {config.multi_objective_aggregation!r} does not go with "
                             "DRA; use 'sum_then_normalize'")
        if len(weights) != len(functions):
            raise ValueError(f"reward_weights has {len(weights)} entries for {len(functions)} reward functions; give "
                             "one for each")
        if unfit := [f for f in functions if not callable(f) or isinstance(f, torch.nn.Module)
                     or inspect.iscoroutinefunction(f)]:
            raise ValueError(f"reward functions under DRA are plain Python functions; got {unfit}")
        require_unscaled(dra, 'scale_rewards="none"', lambda: config.scale_rewards in ("none", False))
        self.functions, self.names = list(functions), [getattr(f, "__name__", type(f).__name__) for f in functions]
        self.weights_F, self.adjust = torch.tensor(weights, dtype=torch.float32), GroupRewards(dra, device, scale=scale)
        config.reward_weights = [1.0]

    def __call__(self, prompts: list, completions: list, log_metric: Callable, **columns) -> list[float | None]:
        """As TRL calls it; None for a completion without a reward.

        ValueError where rows of one group answer different prompts.
        """
        G = self.G[log_metric.__self__.model.training]
        for start in range(0, len(prompts), G):
            if len(prompts) - start < G or any(prompt != prompts[start] for prompt in prompts[start : start + G]):
                raise ValueError(f"completions {start} to {start + G - 1} of a rank's {len(prompts)} are not one group "
                                 f"of {G} for one prompt; make the batch size on a rank a multiple of "
                                 "num_generations (in evaluation: of num_generations_eval)")
        values_FN = [f(prompts=prompts, completions=completions, log_metric=log_metric, **columns)
                     for f in self.functions]
        if wrong := [len(values) for values in values_FN if len(values) != len(prompts)]:
            raise ValueError(f"a reward function returned {wrong[0]} values for {len(prompts)} completions")
        # as TRL adds up: None is NaN, what a function leaves out counts as 0, and where all of them do the completion
        # has no reward
        values_FN = torch.tensor([[math.nan if value is None else value for value in values] for values in values_FN],
                                 dtype=torch.float32)
        total_N = (values_FN * self.weights_F[:, None]).nansum(0).masked_fill(values_FN.isnan().all(0), math.nan)
        texts = [text if isinstance(text, str)
                 else "\n".join(m["content"] or "" for m in text if m["role"] == "assistant") for text in completions]
        scored = total_N.isnan().logical_not().nonzero().flatten().tolist()     # the others are nobody's neighbour
        adjusted_N = total_N.clone()
        adjusted_N[scored] = self.adjust([texts[row] for row in scored], total_N[scored], [row // G for row in scored])
        for name, values_N in (*zip(self.names, values_FN), ("total", total_N)):                # what DRA started from
            if not values_N.isnan().all():
                log_metric(f"dra/{name}", values_N.nanmean().item())
        return [None if math.isnan(value) else value for value in adjusted_N.tolist()]
