"""Shared by the tests: the repository root on the path, one thread, no hub, small random models, two short runs."""
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}    # commands too: equal bits need equal threads
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

torch.set_num_threads(1)
CLASSES = {"qwen2": transformers.Qwen2Config, "qwen3": transformers.Qwen3Config, "llama": transformers.LlamaConfig}


BUDGET_S = 15                                           # of processor time, for a test that is not marked slow


@pytest.fixture(autouse=True)
def budget(request) -> Iterator[None]:
    """Keeps the default suite short: processor time, unlike wall time, hardly depends on what else the machine does."""
    def used() -> float:
        usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    start = used()
    yield
    if (seconds := used() - start) > BUDGET_S and not request.node.get_closest_marker("slow"):
        pytest.fail(f"took {seconds:.0f} s of processor time; share its work, make it smaller or mark it slow")


def random_model(architecture: str, folder: Path, std: float = 0.2, seed: int = 0,
                 **settings) -> transformers.PreTrainedModel:
    """A small transformers model with large random weights (a wrong RoPE must move the logits), saved to `folder`."""
    torch.manual_seed(seed)
    defaults = dict(vocab_size=131, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=256, initializer_range=std, bos_token_id=None,
                    eos_token_id=7, pad_token_id=0, tie_word_embeddings=False)
    model = transformers.AutoModelForCausalLM.from_config(CLASSES[architecture](**{**defaults, **settings})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, std)
            elif "norm" in name:
                parameter.normal_(1, std)
    model.generation_config.eos_token_id = 7
    model.save_pretrained(folder)
    return model


def ragged_prompts(vocab: int, lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(8, vocab, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory) -> tuple[transformers.PreTrainedModel, Path]:
    folder = tmp_path_factory.mktemp("qwen2")
    return random_model("qwen2", folder), folder


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess, str]:
    """Three steps of the tiny recipe on one rank: (folder, the command's result, the override for its benchmark)."""
    from test_run import command, few_tests

    folder = tmp_path_factory.mktemp("run")
    result = subprocess.run(command(folder / "r", few_tests(folder)), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder / "r", result, few_tests(folder)


@pytest.fixture(scope="session")
def run_on_two_ranks(run, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess, str]:
    """The same on two ranks."""
    from test_learner import torchrun
    from test_run import command

    folder = tmp_path_factory.mktemp("run")
    result = torchrun(2, "dra_grpo.py", *command(folder / "r", run[2])[2:])
    assert result.returncode == 0, result.stderr[-3000:]
    return folder / "r", result, run[2]
