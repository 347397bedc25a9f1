"""Completions in, one vector each out: what DRA measures similarity with.

    # a sentence-transformers model reads the texts
    Embedder("ibm-granite/granite-embedding-small-english-r2", max_new_tokens=3584).encode(texts)
    # the policy reads its own tokens
    PolicyEmbedder(sampler.model).encode(texts, tokens)

Either embeds the whole completion or, with part = "reasoning", what comes before its answer (`reasoning_span`). An
embedder that reads less than the completions, runs code that came with its files, or was left with random weights tells
nothing about diversity, and nothing in a run's figures would show it; so each is refused, or asked for by a key of its
own.
"""
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from model import Transformer

# N completions, n rows of a pass, T tokens, C hidden size of the policy, D embedding size

TOKENS_PER_PASS = 2**13                                 # of the policy: 0.6 GB in the widest layer, 1.5B in bf16
BYTES_PER_PASS = 2**17                                  # of text, padded, for sentence-transformers; 32 rows at most


def reasoning_span(text: str) -> tuple[int, int]:
    """Where the reasoning of a completion begins and ends, in characters.

    It ends before the last </think>, else before the last \\boxed or \\fbox, else with the text; it begins after the
    first <think> before its end, else with the text. A completion with nothing but white space there counts whole: bare
    answers are clones of each other, and a zero embedding would make each of them unique. Copy-pasteable: needs only
    builtins.
    """
    end = text.rfind("</think>")
    end = end if end >= 0 else max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    end = end if end >= 0 else len(text)
    opened = text.find("<think>", 0, end)
    start = opened + len("<think>") if opened >= 0 else 0
    return (start, end) if text[start:end].strip() else (0, len(text))


class Embedder:
    """A sentence-transformers model that reads texts."""

    def __init__(self, name_or_path: str, max_tokens: int = 0, trust_remote_code: bool = False,
                 device: str | torch.device = "cpu", part: str = "completion", max_new_tokens: int = 0,
                 dtype: torch.dtype | None = None, section: str = "dra"):
        """`max_tokens` cuts texts there, in the embedder's tokens; 0 is as far as it reads.

        `part`: "reasoning", or all of the text for anything else. `max_new_tokens`: how long completions may become.
        `dtype`: by default bfloat16 on a GPU, float32 elsewhere. `section`: of the config, for messages.

        Raises ValueError if the model cannot be loaded, needs code from its files that `trust_remote_code` does not
        allow, finds no value for a weight in its files, reads fewer than `max_tokens` tokens, or, unless `max_tokens`
        says that cutting is meant, fewer than `max_new_tokens`.
        """
        # takes seconds, and runs without DRA do not need it
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()                          # one for its weights, a line for each of them in a log file
        key = f"{section}.embedder = {name_or_path!r}"
        dtype = dtype or (torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32)
        try:
            self.model = SentenceTransformer(name_or_path, device=str(device), trust_remote_code=trust_remote_code,
                                             model_kwargs={"dtype": dtype})
        except Exception as error:                      # no such folder or name, broken files, offline: many classes
            if "trust_remote_code" in str(error):
                raise ValueError(f"{key} comes with Python code of its own; read it and set "
                                 f"{section}.trust_remote_code = true, or name another") from None
            raise ValueError(f"{key} cannot be loaded: {(str(error).splitlines() or [repr(error)])[0]}") from None
        network = self.model.transformers_model         # None for a table of vectors
        # transformers marks what it found in the files and only warns about the rest. The pooler is not used:
        # sentence-transformers pools itself
        random = [name for name, weight in (network.named_parameters() if network is not None else ())
                  if not getattr(weight, "_is_hf_initialized", False) and not name.startswith("pooler.")]
        if random:
            raise ValueError(f"{key}: its files have no values for {len(random)} weights of {type(network).__name__} "
                             f"({random[0]}, ...), which would stay random; if it comes with Python code of its "
                             f"own, read it and set {section}.trust_remote_code = true, or name another")
        context = self.model.max_seq_length or math.inf
        if max_tokens > context:
            raise ValueError(f"{section}.max_tokens = {max_tokens} exceeds the {context} tokens that {key} reads")
        if max_tokens and network is None:
            raise ValueError(f"{section}.max_tokens = {max_tokens}: {key} has no limit of its own to be lowered; use 0")
        if not max_tokens and max_new_tokens > context:
            raise ValueError(f"{key} reads {context} tokens, fewer than sampler.max_new_tokens = {max_new_tokens}, so "
                             "completions that begin alike would count as clones; name one with a longer context, or "
                             f"set {section}.max_tokens = {context} to compare beginnings")
        if max_tokens:
            self.model.max_seq_length = max_tokens
        self.limit, self.part = max_tokens or context, part

    def read(self, texts: list[str]) -> list[str]:
        """The part of each text that is embedded."""
        return [text[slice(*reasoning_span(text))] for text in texts] if self.part == "reasoning" else texts

    def encode(self, texts: list[str], tokens: Sequence[list[int]] | None = None) -> Tensor:
        """(N, D) in float32 on the CPU, not normalised; `tokens` are for `PolicyEmbedder`."""
        texts = self.read(texts)                        # sentence-transformers sorts them by length
        longest = min(max((len(text.encode()) for text in texts), default=1), self.limit)
        batch = int(min(32, max(1, BYTES_PER_PASS // max(longest, 1))))
        return self.model.encode(texts, batch_size=batch, convert_to_tensor=True, show_progress_bar=False).float().cpu()

    def cut(self, texts: list[str], tokens: Sequence[list[int]] | None = None) -> list[bool]:
        """Which of the texts `encode` reads only the beginning of."""
        # a token takes at least a byte, so only long texts are counted; 8 for special tokens
        return [len(text.encode()) + 8 > self.limit
                and len(self.model.tokenizer(text, verbose=False)["input_ids"]) > self.limit
                for text in self.read(texts)]


class PolicyEmbedder:
    """The mean of the policy's last hidden states over a completion's own tokens (without its prompt): no second model.

    The states are those after the last norm, so no token outweighs the others by its size. `model` is the sampler's
    copy and follows `Sampler.load_weights`. No logits are computed. States of a decoder tend to point the same way:
    look at `similarity` in the metrics before comparing its weights with those of a sentence embedder.
    """

    def __init__(self, model: Transformer, decode: Callable[[list[int]], str] | None = None, max_tokens: int = 0,
                 part: str = "completion"):
        """`max_tokens`: the policy reads so many tokens of a completion, 0 for all.

        `part`: "completion" or "reasoning", which needs `decode`, the text of tokens.
        """
        self.model, self.decode, self.limit, self.part = model, decode, max_tokens or math.inf, part

    def read(self, texts: list[str], tokens: Sequence[list[int]]) -> list[list[int]]:
        """The tokens of each completion that make up the part embedded; text is never tokenised again."""
        if self.part == "completion":
            return list(tokens)
        return [self.span(ids, *reasoning_span(text), len(text)) for text, ids in zip(texts, tokens, strict=True)]

    def span(self, ids: list[int], start: int, end: int, length: int) -> list[int]:
        """The tokens between two characters of their text; one that straddles a border is left out."""
        def chars(n: int) -> int:
            return len(self.decode(ids[:n]))

        first = bisect_left(range(len(ids)), start, key=chars) if start else 0
        last = bisect_right(range(len(ids) + 1), end, key=chars) - 1 if end < length else len(ids)
        return ids[first:last] or ids

    @torch.inference_mode()
    def encode(self, texts: list[str], tokens: Sequence[list[int]]) -> Tensor:
        """(N, C), at least float32, on the CPU. `tokens` are the completions as sampled, `texts` what they decode to.

        No token: a row of zeros.
        """
        rows = [ids[: int(min(self.limit, len(ids)))] for ids in self.read(texts, tokens)]
        device = self.model.norm.weight.device
        order = sorted((i for i, row in enumerate(rows) if row), key=lambda i: -len(rows[i]))
        means_NC = torch.zeros(len(rows), self.model.g.hidden,
                               dtype=torch.promote_types(self.model.norm.weight.dtype, torch.float32))
        while order:                                    # longest first, so that a pass has little padding
            n = max(1, TOKENS_PER_PASS // len(rows[order[0]]))
            batch, order = order[:n], order[n:]
            length_n = torch.tensor([len(rows[i]) for i in batch], device=device)
            tokens_nT = pad_sequence([torch.tensor(rows[i]) for i in batch], batch_first=True).to(device)
            hidden_nTC = self.model.hidden(tokens_nT).to(means_NC.dtype)
            inside_nT = torch.arange(tokens_nT.shape[1], device=device) < length_n[:, None]
            means_NC[batch] = ((hidden_nTC * inside_nT[..., None]).sum(1) / length_n[:, None]).cpu()
        return means_NC

    def cut(self, texts: list[str], tokens: Sequence[list[int]]) -> list[bool]:
        """Which of the completions `encode` reads only the beginning of."""
        return [len(ids) > self.limit for ids in self.read(texts, tokens)]
