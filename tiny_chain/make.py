"""Makes everything in tiny_chain/ from scratch, with the pieces of tiny/make.py: the second task, equal strategies.

    python -m tiny_chain.make [--out tiny_chain]        about 6 minutes on 2 cores

At the end the script checks what the experiments rely on and fails if it does not hold, on the test problems (T = 1, 32
samples each): accuracy in 0.55..0.75, at least 3.2 effective strategies of 4 per problem, strategies that are right
equally often (within 0.08), and an embedder that tells equal from different strategies neither badly nor perfectly (AUC
in 0.6..0.9).
"""
import random

from sentence_transformers import SentenceTransformer

from eval_samples import OwnGrader
from report.kernel import same_label_auc
from reward import cosine_similarity
from tiny.make import SEED, build, evaluation, out_folder
from tiny_chain.task import SLIP, STRATEGIES, problems, solution

TEST = 200
STEPS, BATCH = 1500, 64


def numbers(row: dict) -> list[int]:
    return list(map(int, row["problem"].split("+")))


def main() -> None:
    out, rng = out_folder(__doc__, "tiny_chain"), random.Random(1)
    rows = problems(SEED)
    test, train = rows[:TEST], rows[TEST:]
    solved = [(row, solution(name, numbers(row), rng, SLIP)) for row in train
              for name in random.choices(list(STRATEGIES), list(STRATEGIES.values()), k=8)]
    build(out, test, train, solved, STEPS, BATCH)

    record = evaluation(out, "tiny_chain/task.py:strategy", OwnGrader("tiny_chain/task.py:correct"))
    skills = [record["strategies"][name] / record["labels"][name] for name in STRATEGIES]
    labels = [name for name in STRATEGIES for _ in range(4)]
    embedder = SentenceTransformer(str(out / "embedder"))
    groups = [embedder.encode([solution(name, numbers(row), rng) for name in labels], convert_to_tensor=True)
              for row in test]
    auc = same_label_auc([(cosine_similarity(vectors).numpy(), labels) for vectors in groups])
    print(f"accuracy of each strategy {', '.join(f'{skill:.3f}' for skill in skills)}; AUC of the embedder {auc:.3f}")
    assert 0.55 <= record["accuracy"] <= 0.75, record["accuracy"]
    assert record["effective_strategies"] >= 3.2, record["effective_strategies"]
    assert max(skills) - min(skills) <= 0.08, skills
    assert 0.6 <= auc <= 0.9, auc


if __name__ == "__main__":
    main()
