"""DRA in OpenRLHF: its experience maker, with the rewards adjusted before they become advantages.

Its reward functions are called for one completion at a time, so DRA enters where groups come together. That class is
built inside a Ray actor; three lines below the imports of openrlhf/trainer/ppo_trainer.py put ours in its place:

    from integrations.openrlhf_reward import with_dra
    from reward import DraConfig
    RemoteExperienceMaker = with_dra(RemoteExperienceMaker, DraConfig())

Read from openrlhf 0.11.2, trainer/ppo_utils/{experience_maker,experience}.py: `compute_advantages_and_returns` gets all
micro-batches of a rollout; dynamic batching puts rows in any order, and `index`, a row's place in the rollout, restores
it: the group of a row is index // n_samples_per_prompt, as there. OpenRLHF's length penalties are added after DRA;
what it logs as reward is after both, reward_before_dra before. `apply = "advantage"` needs
`--algo.advantage.estimator dr_grpo`; `scale` takes its place.
"""
import torch

from integrations.groups import GroupRewards, require_unscaled, texts_of
from reward import DraConfig


def with_dra(maker: type, dra: DraConfig, device: str | torch.device = "cpu", scale: str = "std") -> type:
    """A subclass of experience maker class `maker` that adjusts `experience.rewards`."""

    class DraExperienceMaker(maker):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            require_unscaled(dra, "--algo.advantage.estimator dr_grpo",
                             lambda: self.args.algo.advantage.estimator == "dr_grpo")
            self.adjust = GroupRewards(dra, device, self.args.rollout.n_samples_per_prompt, scale)

        @torch.no_grad()
        def compute_advantages_and_returns(self, experiences: list) -> list:
            """Raises ValueError where two prompts would share a group."""
            G = self.args.rollout.n_samples_per_prompt
            groups = [index // G for experience in experiences for index in experience.index]
            prompts = [prompt for experience in experiences for prompt in experience.prompts]
            if len(set(zip(groups, prompts))) > len(set(groups)):
                raise ValueError(f"rows of one group of rollout.n_samples_per_prompt = {G} answer different prompts; "
                                 "DRA needs whole groups in a rollout")
            # action_mask leaves out the first token, which nothing predicts
            texts = [text for experience in experiences
                     for text in texts_of(self.tokenizer, experience.sequences[:, 1:], experience.action_mask)]
            adjusted = self.adjust(texts, torch.cat([experience.rewards for experience in experiences]), groups)
            sizes = [len(experience.rewards) for experience in experiences]
            for experience, rewards in zip(experiences, adjusted.split(sizes), strict=True):
                experience.info["reward_before_dra"], experience.rewards = experience.rewards, rewards
            return super().compute_advantages_and_returns(experiences)

    return DraExperienceMaker
