"""Groups as one stream of distinct tokens, for the learner: each prompt once, then its completions, without padding.

    stream = Stream([(prompt, [completion, completion, ...]), ...], device)
    logp_M = model.stream_logprobs(stream, temperature)           # of every sampled token, in order

Only positions and attention know where a prompt or a completion begins; the model's products see T tokens in a row. The
same log-probs as of padded rows (`Transformer.token_logprobs`), for half the tokens and less where completions are
short or of different lengths.
"""
import math
from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from model import fused_attention, has_varlen

# T tokens of the stream, M sampled tokens, S segments, H query heads, K key/value heads, D head size


class Stream:
    """Groups as one sequence of distinct tokens: each prompt once, then its completions one after the other.

    A segment is a prompt, or a completion without its last token, which predicts nothing. Its tokens see their own past
    and, in a completion, the prompt; positions go on from the prompt's. So `attend` and the positions make each
    completion what it is in a row of its own, and all else in the model sees T tokens, without padding.

    The M sampled tokens are those of the completions in order; `predicting_M` is where in the stream each is predicted
    from: the first of every completion from the prompt's last token. Without groups it is empty, and a pass over it
    gives every parameter a gradient of 0.
    """

    def __init__(self, groups: Sequence[tuple[list[int], Sequence[list[int]]]], device: str | torch.device):
        """`groups` are (prompt, completions), token ids, none of them empty."""
        tokens, positions, predicting, targets, segments = [], [], [], [], []
        for prompt, completions in groups:
            prompt_start, before = len(tokens), len(prompt)
            tokens += prompt
            positions += range(before)
            segments.append((prompt_start, before, prompt_start, 0))
            for completion in completions:
                start, length = len(tokens), len(completion) - 1
                tokens += completion[:-1]
                positions += range(before, before + length)
                predicting += [prompt_start + before - 1, *range(start, start + length)]
                targets += completion
                if length:
                    segments.append((start, length, prompt_start, before))
        long = dict(dtype=torch.long, device=device)
        self.tokens_1T, self.positions_T = torch.tensor([tokens], **long), torch.tensor(positions, **long)
        self.predicting_M, self.targets_M = torch.tensor(predicting, **long), torch.tensor(targets, **long)
        self.segments = segments                        # start, length, start of the prompt, how much of it is seen
        self.attention: PaddedAttention | VarlenAttention | None = None

    def attend(self, layer: int, q_1THD: Tensor, k_1TKD: Tensor, v_1TKD: Tensor) -> Tensor:
        if not self.segments:
            return q_1THD
        if self.attention is None:                      # one for all layers and passes
            kind = VarlenAttention if has_varlen(q_1THD) else PaddedAttention
            self.attention = kind(torch.tensor(self.segments), q_1THD)
        return self.attention(q_1THD[0], k_1TKD[0], v_1TKD[0])[None]


class VarlenAttention:
    """Attention of segments by the ragged kernel, which takes the queries as they stand in the stream.

    Keys and values of a prompt are repeated before those of each completion. With more keys than queries the causal
    mask of the kernel ends at the last of both, so a completion sees all of its prompt.
    """

    def __init__(self, segments_S4: Tensor, like: Tensor):
        keys = [torch.cat((torch.arange(prompt, prompt + before), torch.arange(start, start + length)))
                for start, length, prompt, before in segments_S4.tolist()]
        self.keys = torch.cat(keys).to(like.device)
        queries_S, keys_S = segments_S4[:, 1], segments_S4[:, 1] + segments_S4[:, 3]
        self.starts = [F.pad(n.cumsum(0), (1, 0)).int().to(like.device) for n in (queries_S, keys_S)]
        self.longest = [int(n.max()) for n in (queries_S, keys_S)]

    def __call__(self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        k, v = (x.index_select(0, self.keys) for x in (k_TKD, v_TKD))
        return torch.ops.aten._flash_attention_forward(q_THD, k, v, *self.starts, *self.longest, 0.0, True, False)[0]


class PaddedAttention:
    """The same by SDPA: segments of similar lengths are padded to a block, completions under a mask.

    A block has R segments of at most W tokens, and for each of them K keys: P of a prompt and W of its own. On a CPU
    SDPA is up to four times slower in bf16 than in float32.
    """

    def __init__(self, segments_S4: Tensor, like: Tensor):
        self.dtype = torch.promote_types(like.dtype, torch.float32) if like.device.type == "cpu" else like.dtype

        def shape(segment: list[int]) -> tuple[int, int]:
            """The same for lengths within a fifth or so of each other."""
            return tuple(round(3 * math.log2(tokens + 16)) for tokens in (segment[3], segment[1]))

        self.blocks, order_T, done = [], torch.empty(int(segments_S4[:, 1].sum()), dtype=torch.long), 0
        for _, block in groupby(sorted(segments_S4.tolist(), key=shape), key=shape):
            start_R1, length_R1, prompt_R1, before_R1 = torch.tensor(list(block)).t()[..., None]
            (R, _), W, P = start_R1.shape, int(length_R1.max()), int(before_R1.max())
            place_W, place_P = torch.arange(W), torch.arange(P)
            real_RW, seen_RP = place_W < length_R1, place_P < before_R1             # the rest is padding
            own_RW, prompt_RP = start_R1 + place_W * real_RW, prompt_R1 + place_P * seen_RP
            mask_RWK = torch.cat((seen_RP[:, None].expand(R, W, P), (place_W <= place_W[:, None]).expand(R, W, W)), -1)
            self.blocks.append([None if x is None else x.to(like.device) for x in (
                own_RW, torch.cat((prompt_RP, own_RW), 1), mask_RWK[:, None] if P else None)])
            order_T[own_RW[real_RW]] = done + real_RW.flatten().nonzero()[:, 0]
            done += R * W
        self.order_T = order_T.to(like.device)

    def __call__(self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        outs = []
        for own_RW, keys_RK, mask_R1WK in self.blocks:
            q, k, v = (x.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2).to(self.dtype)
                       for x, index in ((q_THD, own_RW), (k_TKD, keys_RK), (v_TKD, keys_RK)))
            outs.append(fused_attention(q, k, v, mask_R1WK).transpose(1, 2).flatten(0, 1))
        return torch.cat(outs).index_select(0, self.order_T).to(q_THD.dtype)
