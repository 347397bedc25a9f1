"""The decoder: Qwen2, Qwen3 and Llama from Hugging Face folders, one module for learner, reference and sampler.

    model = Transformer.from_pretrained("tiny/policy")
    logits = model(tokens_NT)                                     # (N, T, V)
    logp, entropy = model.token_logprobs(tokens_NT, mask_NT, temperature=1.0)
    logp = model.stream_logprobs(Stream([(prompt, completions)], "cpu"), temperature=1.0)       # the same (stream.py)
    model.save_pretrained("out")                                  # loads in transformers

Rows are right-padded: under a causal mask a row's tokens never see what comes after them, so no attention mask is
needed and positions are 0..T-1. The learner has no rows but one `Stream` of distinct tokens. Both differ in positions
and in attention alone, so blocks take an `attend`; the sampler passes a third one, over its KV cache. q/k/v and gate/up
are one matrix each (fewer, larger products when the sampler decodes a token at a time) and are split again on saving.
The model knows no ranks and does not sample: the learner shards it from outside.

Not here: sliding windows, mixture of experts, dropout, left padding, `.bin` weights. Each is refused by name.
"""
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# N rows, T tokens, C hidden size, H query heads, K key/value heads, D head size, V vocabulary, M sampled tokens

ARCHITECTURES = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM")
ROPE_TYPES = {"default": ("rope_theta",),                # and the numbers that each needs
              "llama3": ("rope_theta", "factor", "low_freq_factor", "high_freq_factor",
                         "original_max_position_embeddings")}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}

# (layer, q (N, T, H, D), k (N, T, K, D), v (N, T, K, D)) -> (N, T, H, D)
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ModelConfig:
    path: str
    """folder of the policy (config.json, safetensors, tokenizer), or a hub name such as owner/name"""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """compute precision; with bfloat16 the master weights and the optimizer stay in float32 (float64 is for checks)"""
    activation_checkpointing: Annotated[Literal[False, True, "auto"], "free"] = False
    """recompute each block in the backward pass: far less memory for about a quarter more compute in the update; "auto"
    does where memory is too short without"""


@dataclass(frozen=True)
class Geometry:
    """What config.json says about the network."""
    architecture: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    eps: float
    rope: dict
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool

    @classmethod
    def from_folder(cls, path: str | Path) -> "Geometry":
        """That of a Hugging Face folder; ValueError as from `from_json`, and for a missing or broken config.json."""
        return cls.from_json(read_config(Path(path)), str(Path(path) / "config.json"))

    @classmethod
    def from_json(cls, config: dict, where: str = "config.json") -> "Geometry":
        """Reads a Hugging Face config; raises ValueError naming the key for anything this module does not implement."""
        architecture = (config.get("architectures") or ["none"])[0]
        if architecture not in ARCHITECTURES:
            raise ValueError(f"{where}: architecture {architecture!r} is not supported; supported: "
                             f"{', '.join(ARCHITECTURES)}")
        # transformers 5 writes rope_parameters; older files have rope_theta next to rope_scaling
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
            raise ValueError(f"{where}: rope_parameters must be one set for all layers; got {rope!r}")
        rope = {**rope}
        rope["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
        rope["rope_theta"] = rope.get("rope_theta", config.get("rope_theta", 10000.0))
        if rope["rope_type"] not in ROPE_TYPES:
            raise ValueError(f"{where}: RoPE type {rope['rope_type']!r} is not supported; supported: "
                             f"{', '.join(ROPE_TYPES)}")
        original = "original_max_position_embeddings"
        # in this order, as transformers has it
        rope[original] = config.get(original) or rope.get(original) or config.get("max_position_embeddings")
        for key in ROPE_TYPES[rope["rope_type"]]:
            if not isinstance(rope.get(key), int | float) or not 0 < rope[key] < math.inf:
                raise ValueError(f"{where}: RoPE type {rope['rope_type']!r} needs a positive number {key!r}; got "
                                 f"{rope.get(key)!r}")
        sliding = config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or [])
        for unsupported, key in (
            (sliding, "use_sliding_window"),
            (config.get("hidden_act", "silu") != "silu", "hidden_act"),
            (rope.get("partial_rotary_factor", 1.0) != 1.0, "partial_rotary_factor"),
            (config.get("quantization_config") is not None, "quantization_config"),
        ):
            if unsupported:
                raise ValueError(f"{where}: {key} = {config.get(key)!r} is not supported; supported: full attention, "
                                 "silu, full rotary embedding, unquantised weights")
        qwen2, qwen3 = architecture == "Qwen2ForCausalLM", architecture == "Qwen3ForCausalLM"
        bias = bool(config.get("attention_bias", False))
        for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers",
                    "intermediate_size", "vocab_size", "max_position_embeddings"):
            if config.get(key) is not None and (type(config[key]) is not int or config[key] < 1):
                raise ValueError(f"{where}: {key} must be a positive integer; got {config[key]!r}")
        try:
            hidden, heads = config["hidden_size"], config["num_attention_heads"]
            return cls(
                architecture=architecture, layers=config["num_hidden_layers"], hidden=hidden, heads=heads,
                intermediate=config["intermediate_size"], kv_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or (128 if qwen3 else hidden // heads), vocab=config["vocab_size"],
                context=config["max_position_embeddings"], eps=config["rms_norm_eps"], rope=rope,
                tied=bool(config.get("tie_word_embeddings", False)), qkv_bias=qwen2 or bias, o_bias=bias and not qwen2,
                mlp_bias=bool(config.get("mlp_bias", False)), qk_norm=qwen3,
            )
        except KeyError as missing:
            raise ValueError(f"{where}: key {missing} is missing") from None


# ------------------------------------------------------------------------------------------------ the network


def rope_frequencies(geometry: Geometry) -> Tensor:
    """Inverse frequencies (D/2,) in fp32, with the llama3 stretch of long wavelengths where the config asks for it.

    Same operations in the same order as transformers, so that cos and sin come out bit-equal.
    """
    rope, D = geometry.rope, geometry.head_dim
    inv_freq = 1.0 / (rope["rope_theta"] ** (torch.arange(0, D, 2, dtype=torch.float32) / D))
    if rope["rope_type"] == "llama3":
        factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
        original = rope["original_max_position_embeddings"]
        wavelength = 2 * math.pi / inv_freq
        stretched = torch.where(wavelength > original / low, inv_freq / factor, inv_freq)
        smooth = (original / wavelength - low) / (high - low)
        smoothed = (1 - smooth) * stretched / factor + smooth * stretched
        medium = ~(wavelength < original / high) & ~(wavelength > original / low)
        inv_freq = torch.where(medium, smoothed, stretched)
    return inv_freq


def rope_table(inv_freq: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin for integer `positions` (...), each (..., D), computed in fp32 and rounded to `dtype`."""
    angles = positions[..., None].float() * inv_freq
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_NTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the last axis in halves (the Hugging Face layout); cos, sin: (T, 1, D) or (N, T, 1, D).

    The first half of `sin` is negated, so that swapping the halves of `x` is all that is left to do for every layer.
    """
    return x_NTHD * cos + x_NTHD.roll(x_NTHD.shape[-1] // 2, -1) * sin


def causal_attention(layer: int, q_NTHD: Tensor, k_NTKD: Tensor, v_NTKD: Tensor) -> Tensor:
    """Every token sees itself and those before it in its row; right padding needs no mask."""
    # (N, H, T, D), (N, K, T, D), (N, K, T, D)
    q, k, v = (x.to(product_dtype(x)).transpose(1, 2) for x in (q_NTHD, k_NTKD, v_NTKD))
    return fused_attention(q, k, v).transpose(1, 2).to(q_NTHD.dtype)


def fused_attention(q_NHTD: Tensor, k_NKTD: Tensor, v_NKTD: Tensor, mask_N1TT: Tensor | None = None) -> Tensor:
    """SDPA, causal or with a mask that is True for the keys that a query sees."""
    shared = q_NHTD.shape[1] // k_NKTD.shape[1]
    if shared > 1 and q_NHTD.is_cuda and q_NHTD.dtype.itemsize > 2:     # no fused kernel shares heads here
        k_NKTD, v_NKTD, shared = *(x.repeat_interleave(shared, dim=1) for x in (k_NKTD, v_NKTD)), 1
    return F.scaled_dot_product_attention(q_NHTD, k_NKTD, v_NKTD, mask_N1TT, is_causal=mask_N1TT is None,
                                          enable_gqa=shared > 1)


def has_varlen(x: Tensor) -> bool:
    """Whether torch's ragged attention kernel takes queries and keys like `x` (..., D)."""
    half = x.dtype in (torch.bfloat16, torch.float16) and x.shape[-1] % 8 == 0 and x.shape[-1] <= 256
    return x.is_cuda and half and torch.cuda.get_device_capability(x.device) >= (8, 0)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class Block(nn.Module):
    """Attention and gated MLP, each after a norm and added to the residual stream."""
    fused: tuple[Callable, Callable] | None = None      # `before` and `after` for one token a row, compiled

    def __init__(self, g: Geometry, layer: int):
        super().__init__()
        self.g, self.layer = g, layer
        self.attn_norm, self.mlp_norm = RMSNorm(g.hidden, g.eps), RMSNorm(g.hidden, g.eps)
        self.qkv = Linear(g.hidden, (g.heads + 2 * g.kv_heads) * g.head_dim, bias=g.qkv_bias)
        self.o = Linear(g.heads * g.head_dim, g.hidden, bias=g.o_bias)
        self.gate_up = Linear(g.hidden, 2 * g.intermediate, bias=g.mlp_bias)
        self.down = Linear(g.intermediate, g.hidden, bias=g.mlp_bias)
        if g.qk_norm:
            self.q_norm, self.k_norm = RMSNorm(g.head_dim, g.eps), RMSNorm(g.head_dim, g.eps)

    def forward(self, x_NTC: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        before, after = self.fused if self.fused and x_NTC.shape[1] == 1 else (Block.before, Block.after)
        return after(self, x_NTC, attend(self.layer, *before(self, x_NTC, cos, sin)))

    def before(self, x_NTC: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (N, T, H, D) and keys (N, T, K, D), and values (N, T, K, D)."""
        g = self.g
        qkv = self.qkv(self.attn_norm(x_NTC)).unflatten(-1, (-1, g.head_dim))      # (N, T, H + 2K, D)
        if g.qk_norm:
            q, k, v = qkv.split((g.heads, g.kv_heads, g.kv_heads), dim=-2)
            q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        else:
            qk, v = qkv.split((g.heads + g.kv_heads, g.kv_heads), dim=-2)           # (N, T, H + K, D), (N, T, K, D)
            q, k = rotate(qk, cos, sin).split((g.heads, g.kv_heads), dim=-2)
        return q, k, v

    def after(self, x_NTC: Tensor, attended_NTHD: Tensor) -> Tensor:
        x_NTC = x_NTC + self.o(attended_NTHD.flatten(-2))
        gate, up = self.gate_up(self.mlp_norm(x_NTC)).chunk(2, dim=-1)              # each (N, T, intermediate)
        return x_NTC + self.down(F.silu(gate) * up)


class Transformer(nn.Module):
    """A decoder from a Hugging Face config dict; weights are uninitialised until loaded (see `from_pretrained`)."""

    def __init__(self, config: dict, generation_config: dict | None = None, where: str = "config.json"):
        super().__init__()
        self.config, self.generation_config = config, generation_config or {}
        self.g = g = Geometry.from_json(config, where)
        self.embed = nn.Embedding(g.vocab, g.hidden)
        self.blocks = nn.ModuleList(Block(g, layer) for layer in range(g.layers))
        self.norm = RMSNorm(g.hidden, g.eps)
        self.head = None if g.tied else nn.Linear(g.hidden, g.vocab, bias=False)
        self.packed_head: Tensor | None = None
        self.register_buffer("inv_freq", torch.empty(g.head_dim // 2), persistent=False)
        self.checkpoint_activations = False
        self.compute_dtype: torch.dtype | None = None   # other than the weights', which are then cast in every pass
        self.n_tokens = g.vocab                         # ids the tokenizer knows; the rest is never drawn or trained

    @property
    def head_weight(self) -> Tensor:
        return self.embed.weight if self.head is None else self.head.weight

    def hidden(self, tokens_NT: Tensor, positions: Tensor | None = None, attend: Attend = causal_attention) -> Tensor:
        """Normalised last hidden states (N, T, C). `positions` is (T,) or (N, T), by default 0..T-1."""
        if positions is None:
            positions = torch.arange(tokens_NT.shape[1], device=tokens_NT.device)
        x_NTC = self.embed(tokens_NT).to(self.compute_dtype or self.embed.weight.dtype)
        tables = rope_table(self.inv_freq, positions, x_NTC.dtype)
        cos, sin = (table.unsqueeze(-2) for table in tables)                        # (T, 1, D) or (N, T, 1, D)
        sin[..., : self.g.head_dim // 2].neg_()
        for block in self.blocks:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x_NTC = checkpoint(block, x_NTC, cos, sin, attend, use_reentrant=False)
            else:
                x_NTC = block(x_NTC, cos, sin, attend)
        return self.norm(x_NTC)

    def forward(self, tokens_NT: Tensor) -> Tensor:
        """Logits (N, T, V) of the next token, in the compute dtype."""
        return linear(self.hidden(tokens_NT), self.head_weight)

    def next_logits(self, hidden_NC: Tensor) -> Tensor:
        """Logits (N, V), at least float32, without gradient; ids that the tokenizer does not know have -1e30."""
        return head_logits(hidden_NC, self.head_weight, self.n_tokens, self.packed_head)

    def token_logprobs(self, tokens_NT: Tensor, mask_NT: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability of each token where `mask_NT` is True, given those before it, and its distribution's entropy.

        Both (N, T), at least float32, in nats, 0 where the mask is False; the distribution is softmax(logits /
        temperature) over the tokenizer's ids. Only the entropy is without gradient. The LM head runs over masked
        positions only, in chunks, so the logits of a whole batch never exist. Column 0 has no predecessor and must be
        False in the mask.
        """
        assert not mask_NT[:, 0].any(), "the first token of a row has nothing before it to be predicted from"
        hidden_MC = self.hidden(tokens_NT)[:, :-1][mask_NT[:, 1:]]                  # M tokens where the mask is True
        logp_M, entropy_M = self.head_logprobs(hidden_MC, tokens_NT[mask_NT], temperature, True)
        zeros_NT = logp_M.new_zeros(mask_NT.shape)
        return zeros_NT.masked_scatter(mask_NT, logp_M), zeros_NT.masked_scatter(mask_NT, entropy_M)

    def stream_logprobs(self, stream, temperature: float) -> Tensor:
        """Log-probabilities (M,) of the sampled tokens of a `Stream`, in its order; entropies would cost time."""
        hidden_TC = self.hidden(stream.tokens_1T, stream.positions_T, stream.attend)[0]
        return self.head_logprobs(hidden_TC.index_select(0, stream.predicting_M), stream.targets_M, temperature)[0]

    def head_logprobs(self, hidden_MC: Tensor, targets_M: Tensor, temperature: float,
                      entropies: bool = False) -> tuple[Tensor, Tensor | None]:
        rows = max(1, logits_per_chunk(hidden_MC.is_cuda) // self.g.vocab)
        return HeadLogprobs.apply(hidden_MC, targets_M, self.head_weight, temperature, self.n_tokens, rows, entropies)

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: torch.dtype = torch.float32,
                        device: str | torch.device = "cpu") -> "Transformer":
        """The policy in a Hugging Face folder.

        Raises ValueError for anything unsupported, missing or left over in it.
        """
        path = Path(path)
        generation = path / "generation_config.json"
        with torch.device("meta"):
            model = cls(read_config(path), read_json(generation) if generation.is_file() else None,
                        str(path / "config.json"))
        model.to(dtype).to_empty(device=device)
        model.inv_freq = rope_frequencies(model.g).to(device)       # always fp32: .to(dtype) above must not round it
        model.load_tensors(read_tensors(path), where=str(path))
        return model

    def load_tensors(self, tensors: Iterator[tuple[str, Tensor]], where: str = "state") -> None:
        """Copies Hugging Face-named tensors into the fused parameters.

        Raises ValueError for missing, extra or misshapen ones, for values that are not finite, and for an
        lm_head.weight that is not the embedding where config.json ties the two.
        """
        parameters, head = dict(self.named_parameters()), None
        slots = {hf_name: (name, start, size) for name, parts in self.layout() for hf_name, start, size in parts}
        with torch.no_grad():
            for hf_name, tensor in tensors:
                if hf_name.endswith("rotary_emb.inv_freq"):
                    continue                            # some files carry the RoPE table
                if hf_name == "lm_head.weight" and self.g.tied:
                    head = tensor                       # or repeat the tied matrix
                    continue
                if hf_name not in slots:
                    raise ValueError(f"{where}: unexpected tensor {hf_name!r} for {self.g.architecture}")
                name, start, size = slots.pop(hf_name)
                target = parameters[name][start : start + size]
                if target.shape != tensor.shape:
                    raise ValueError(f"{where}: tensor {hf_name!r} has shape {tuple(tensor.shape)}, config.json asks "
                                     f"for {tuple(target.shape)}")
                target.copy_(tensor)
                if not target.isfinite().all():
                    raise ValueError(f"{where}: tensor {hf_name!r} has values that are nan or not finite in "
                                     f"{target.dtype}; such weights are useless")
        if slots:
            raise ValueError(f"{where}: {len(slots)} tensors are missing, among them {', '.join(sorted(slots)[:3])}")
        if head is not None and not torch.equal(head.to(self.embed.weight), self.embed.weight):
            raise ValueError(f"{where}: lm_head.weight differs from model.embed_tokens.weight, and config.json ties "
                             "the two; set tie_word_embeddings to false to keep both matrices, or remove "
                             "lm_head.weight from the file")

    def layout(self) -> Iterator[tuple[str, list[tuple[str, int, int]]]]:
        """For each of our parameters the Hugging Face tensors it holds: (name, first row, rows)."""
        g = self.g
        q, kv = g.heads * g.head_dim, g.kv_heads * g.head_dim
        fused = {
            "qkv": (("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)),
            "gate_up": (("mlp.gate_proj", g.intermediate), ("mlp.up_proj", g.intermediate)),
            "o": (("self_attn.o_proj", g.hidden),), "down": (("mlp.down_proj", g.hidden),),
            "attn_norm": (("input_layernorm", g.hidden),), "mlp_norm": (("post_attention_layernorm", g.hidden),),
            "q_norm": (("self_attn.q_norm", g.head_dim),), "k_norm": (("self_attn.k_norm", g.head_dim),),
            "embed": (("model.embed_tokens", g.vocab),), "norm": (("model.norm", g.hidden),),
            "head": (("lm_head", g.vocab),),
        }
        for name, _ in self.named_parameters():
            *block, module, kind = name.split(".")
            prefix = f"model.layers.{block[1]}." if block else ""
            parts, start = [], 0
            for hf_module, size in fused[module]:
                parts.append((f"{prefix}{hf_module}.{kind}", start, size))
                start += size
            yield name, parts

    def hf_tensors(self, weights: dict[str, Tensor] | None = None) -> Iterator[tuple[str, Tensor]]:
        """The parameters (or `weights` under the same names) under their Hugging Face names, unfused, as views."""
        weights = dict(self.named_parameters()) if weights is None else weights
        for name, parts in self.layout():
            for hf_name, start, size in parts:
                yield hf_name, weights[name].detach()[start : start + size]

    def save_pretrained(self, path: str | Path, weights: dict[str, Tensor] | None = None,
                        dtype: torch.dtype | None = None) -> None:
        """Writes a folder that transformers loads: config.json, generation_config.json, model.safetensors.

        `weights` replaces the parameters (a sharded learner passes its gathered ones); `dtype` rounds them, by default
        they stay.
        """
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.to(device="cpu", dtype=dtype).contiguous() for name, tensor in self.hf_tensors(weights)}
        saved = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
        keys = [key for key in ("dtype", "torch_dtype") if key in self.config] or ["dtype"]
        (path / "config.json").write_text(json.dumps({**self.config, **dict.fromkeys(keys, saved)}, indent=2) + "\n")
        if self.generation_config:
            (path / "generation_config.json").write_text(json.dumps(self.generation_config, indent=2) + "\n")
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    def pack(self) -> None:
        """Copies the matrices into a layout in which products with few rows run up to twice as fast on a CPU.

        Without gradient every later product reads the copies: pack again after the weights have changed. Does nothing
        elsewhere.
        """
        weight = self.norm.weight
        ours = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
        if not (ours and torch.backends.mkldnn.is_available()):
            return
        for module in self.modules():
            if isinstance(module, Linear):
                module.packed = packed(module.weight)
        self.packed_head = packed(self.head_weight)

    @torch.inference_mode()
    def fuse(self) -> None:
        """Compiles what a block does before and after attention to one token of each row: fewer kernels on a GPU.

        One pair of functions for all blocks, in about 15 s (later processes find it in torch's cache). Does nothing
        elsewhere or for small policies; says so where torch.compile does not work.
        """
        weight = self.norm.weight
        if not (weight.is_cuda and find_spec("triton") and sum(p.numel() for p in self.parameters()) >= FUSE_FROM):
            return
        before, after = [torch.compile(function, dynamic=True) for function in (Block.before, Block.after)]
        try:
            for n in (2, 1):                            # a single row is compiled by itself
                x_n1C, table_n11D = weight.new_zeros(n, 1, self.g.hidden), weight.new_ones(n, 1, 1, self.g.head_dim)
                after(self.blocks[0], x_n1C, before(self.blocks[0], x_n1C, table_n11D, table_n11D)[0])
        except Exception as error:                      # no C compiler, a GPU that triton does not know: many classes
            print("torch.compile does not work here, so a decode step has more kernels: "
                  + (str(error).splitlines() or [repr(error)])[0], file=sys.stderr)
            return
        for block in self.blocks:
            block.fused = before, after


FUSE_FROM = 2**28                                       # parameters; the runs of smaller policies are short


# ------------------------------------------------------------------------------------------------ log-probs

LOGITS_PER_CHUNK = 2**26                                # 256 MB in fp32: what the LM head holds at once on a CPU


def logits_per_chunk(gpu: bool) -> int:
    """Logits that the LM head holds at once; twice as many on a GPU, as each chunk reads the whole matrix."""
    return 2 * LOGITS_PER_CHUNK if gpu else LOGITS_PER_CHUNK


def head_logits(hidden_MC: Tensor, weight_VC: Tensor, n_tokens: int, packed_VC: Tensor | None = None,
                temperature: float = 1.0) -> Tensor:
    """Logits / temperature (M, V), at least float32, and -1e30 for the ids from `n_tokens` on.

    `packed_VC` replaces the matrix (see `packed`). The product is over all V rows of the matrix, because a GPU is
    several times slower on an odd number of them. Not -inf: its probability is 0 too, and 0 x -inf would be nan in the
    entropy.
    """
    logits_MV = wide_product(hidden_MC, weight_VC.t()) if packed_VC is None else packed_product(hidden_MC, packed_VC)
    logits_MV = logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32))
    if temperature != 1:
        logits_MV /= temperature
    if n_tokens < logits_MV.shape[-1]:
        logits_MV[:, n_tokens:] = -1e30
    return logits_MV


class HeadLogprobs(torch.autograd.Function):
    """Log-probs (M,) of `targets_M` under softmax(hidden @ weight^T / temperature); entropies (M,) without gradient, or
    None if they are not asked for.

    Both at least float32, in nats, over the first `n_tokens` ids. Logits exist for `rows` rows at a time, and are
    computed again in the backward pass (unless all fit at once), where d logp / d logits = onehot(target) - softmax.
    The gradient of the matrix is summed over the chunks in float32 and rounded once: in bf16 each chunk would add a
    rounding error.
    """

    @staticmethod
    def forward(ctx, hidden_MC: Tensor, targets_M: Tensor, weight_VC: Tensor, temperature: float, n_tokens: int,
                rows: int, entropies: bool) -> tuple[Tensor, Tensor | None]:
        logps, entropy, matrix_VC = [], [], weight_VC.to(hidden_MC.dtype)
        for hidden, targets in zip(hidden_MC.split(rows), targets_M.split(rows)):
            logp_MV = head_logits(hidden, matrix_VC, n_tokens, temperature=temperature).log_softmax(-1)
            logps.append(logp_MV.gather(-1, targets[:, None]).squeeze(-1))
            if entropies:
                entropy.append(-torch.linalg.vecdot(logp_MV.exp(), logp_MV))
        ctx.save_for_backward(hidden_MC, targets_M, weight_VC, logp_MV if len(logps) == 1 else None)
        ctx.settings = temperature, n_tokens, rows
        entropy_M = torch.cat(entropy) if entropies else None
        if entropies:
            ctx.mark_non_differentiable(entropy_M)
        return torch.cat(logps), entropy_M

    @staticmethod
    def backward(ctx, grad_M: Tensor, _) -> tuple[Tensor | None, ...]:
        hidden_MC, targets_M, weight_VC, logp_MV = ctx.saved_tensors
        temperature, n_tokens, rows = ctx.settings
        grad_M = grad_M / temperature
        matrix_VC = weight_VC.to(hidden_MC.dtype)
        dtype = product_dtype(hidden_MC)
        grad_hidden_MC = torch.empty_like(hidden_MC)
        grad_weight_VC = None
        for start in range(0, max(1, len(targets_M)), rows):
            chunk = slice(start, start + rows)
            if logp_MV is None:
                softmax_MV = head_logits(hidden_MC[chunk], matrix_VC, n_tokens, temperature=temperature).softmax(-1)
            else:
                softmax_MV = logp_MV.exp_()
            grad_M1, target_M1 = grad_M[chunk, None], targets_M[chunk, None]
            grad_MV = softmax_MV.mul_(-grad_M1).scatter_add_(-1, target_M1, grad_M1).to(dtype)
            grad_hidden_MC[chunk] = grad_MV @ matrix_VC.to(dtype)
            part_VC = wide_product(grad_MV.t(), hidden_MC[chunk])
            grad_weight_VC = part_VC if grad_weight_VC is None else grad_weight_VC.add_(part_VC)
        return grad_hidden_MC, None, grad_weight_VC.to(weight_VC.dtype), None, None, None, None


# ------------------------------------------------------------------------------------------------ folders


def read_json(path: Path) -> dict:
    """A JSON file of a model folder; ValueError naming it if it is missing or broken."""
    if not path.is_file():
        # of a run, of a checkpoint
        inside = [folder for name in ("final", "policy") if ((folder := path.parent / name) / path.name).is_file()]
        raise ValueError(f"model folder {str(path.parent)!r} has no {path.name}"
                         + (f"; did you mean {inside[0]}?" if inside else ""))
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object; got {found!r:.60}")
    return found


def read_config(path: Path) -> dict:
    """config.json of a model folder; ValueError also for the folder of an adapter, which is no policy by itself."""
    if (path / "adapter_config.json").is_file():
        base = read_json(path / "adapter_config.json").get("base_model_name_or_path")
        raise ValueError(f"model folder {str(path)!r} has an adapter (adapter_config.json) of the base model {base!r}; "
                         "merge the two, as with peft's merge_and_unload, and save that as a folder of its own")
    return read_json(path / "config.json")


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model folder: model.safetensors, or the shards of an index.

    ValueError naming one that is missing.
    """
    names, index = ["model.safetensors"], path / "model.safetensors.index.json"
    # the single file goes first, as in transformers: an index next to it is stale
    if not (path / names[0]).is_file() and index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise ValueError(f"{index} has no weight_map of tensors to files")
        names = sorted(set(shards.values()))
    for name in names:
        if not (path / name).is_file():
            has_bin = any(path.glob("*.bin"))
            raise ValueError(f"model folder {str(path)!r} has no {name}"
                             + ("; .bin weights are not read: convert them to safetensors" if has_bin else ""))
    return [path / name for name in names]


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every safetensors file in a model folder, one tensor in memory at a time."""
    for file in weight_files(path):
        try:
            opened = safe_open(file, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{file} is not a whole safetensors file: {error}") from None
        with opened:
            for key in opened.keys():
                yield key, opened.get_tensor(key)


# ------------------------------------------------------------------------------------------------ products on a CPU

# A sampler decodes a few rows at a time, and then a product takes as long as reading its matrix. oneDNN reads a blocked
# copy up to twice as fast as the plain layout, so `Transformer.pack` keeps one of every large matrix, on a CPU only.
PACK_FROM = 2**18                                       # elements; the call costs more than the layout saves below it
PACKED_FOR_ROWS = 48                                    # oneDNN picks its layout for so many rows and takes any number


class Linear(nn.Linear):
    """y = x W^T + b, from the packed copy of W if it has one (see `Transformer.pack`)."""
    packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is None or torch.is_grad_enabled():
            return linear(x, self.weight, self.bias)
        return packed_product(x, self.packed, self.bias).to(x.dtype)


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype to multiply tensors like `x` in: float32 for bf16 on a CPU without bf16 instructions.

    There bf16 is 10 to 100 times slower, and nothing is lost: such products are summed in float32 and rounded to bf16
    either way.
    """
    emulated = x.dtype == torch.bfloat16 and x.device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.float32 if emulated else x.dtype


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, at least float32: a sum of products of half precision is not rounded to it, if the device can."""
    wide, dtype = torch.promote_types(left.dtype, torch.float32), product_dtype(left)
    if left.is_cuda and dtype != wide:
        return torch.mm(left, right, out_dtype=wide)
    return (left.to(dtype) @ right.to(dtype)).to(wide)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """In the precision of `x`, to which the weights are rounded."""
    dtype = product_dtype(x)
    weight, bias = (None if w is None else w.to(x.dtype).to(dtype) for w in (weight, bias))
    return F.linear(x.to(dtype), weight, bias).to(x.dtype)


def packed(weight: Tensor) -> Tensor | None:
    """A copy in oneDNN's blocked layout, None for a small matrix."""
    if weight.numel() < PACK_FROM:
        return None
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(product_dtype(weight)), PACKED_FOR_ROWS)


def packed_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """In the dtype of the packed matrix."""
    bias = None if bias is None else bias.to(weight.dtype)
    return torch.ops.mkldnn._linear_pointwise.default(x.to(weight.dtype), weight, bias, "none", [], "")
