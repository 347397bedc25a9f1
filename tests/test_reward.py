"""reward.py: exact vectors, every option and refusal, and that groups never see each other."""
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from answers import Grade
from config import import_function
from dra_grpo import reward_functions
from embedder import Embedder
from grader import Grader
from reward import (OPTIONS, DraConfig, RewardConfig, Rewarder, adjust_rewards, apply_weights, cosine_similarity,
                    diversity_weights, dra_advantages, graph_cut_smi, group_advantages, log_det_smi, redistribute,
                    reward_function, smi_values)

FIXTURES = Path(__file__).parent / "fixtures"
GOLDEN = json.loads((FIXTURES / "dra_golden.json").read_text())
SHARED = json.loads((FIXTURES / "redistribute_golden.json").read_text())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_golden_vectors(case, dtype):
    """Every committed case to 1e-5, in the dtype that came in."""
    rewards, options = torch.tensor(case["rewards"], dtype=dtype), case["options"]
    similarity = cosine_similarity(torch.tensor(case["embeddings"], dtype=dtype))
    correct = rewards > 0 if options["scope"] == "correct" else None
    kernel = (similarity, options["smi"], options["sharpen"], options["clamp"], correct)
    adjusted = adjust_rewards(rewards, similarity, **options)
    for got, key in ((smi_values(*kernel), "smi"), (diversity_weights(*kernel, options["normalize"]), "weights"),
                     (adjusted, "adjusted"),
                     (group_advantages(adjusted), "advantages_std"),
                     (group_advantages(adjusted, "none"), "advantages_none")):
        assert got.dtype == dtype
        torch.testing.assert_close(got, torch.tensor(case[key], dtype=dtype), rtol=0, atol=1e-5, msg=key)


def random_groups(P=5, G=6, D=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(P, G, D, generator=generator,
                       dtype=torch.float64), (torch.rand(P, G, generator=generator) > 0.4).double()


def test_log_det_equals_brute_force_determinants():
    """I({i}; C \\ {i}) = f({i}) + f(C \\ {i}) - f(C) with f = log det(I + alpha S), a determinant per row."""
    similarity = cosine_similarity(random_groups()[0])
    for alpha in (0.5, 1.0, 3.0):
        K = torch.eye(6, dtype=torch.float64) + alpha * similarity
        for i in range(6):
            rest = [j for j in range(6) if j != i]
            brute = K[:, i, i].log() + torch.logdet(K[:, rest][:, :, rest]) - torch.logdet(K)
            torch.testing.assert_close(log_det_smi(similarity, alpha)[:, i], brute, rtol=1e-12, atol=1e-12)


def log_det_by_determinants(similarity, rows):
    """For these rows, a determinant each in float64, of whatever matrices come in; numpy's, since torch.logdet of 255 x
    255 on a CPU is wrong on some numbers of threads."""
    K = torch.eye(similarity.shape[-1], dtype=torch.float64) + similarity.double()
    rest = [[j for j in range(K.shape[-1]) if j != i] for i in rows]
    whole, minors = (torch.from_numpy(np.asarray(np.linalg.slogdet(part.numpy())[1]))
                     for part in (K, torch.stack([K[:, keep][:, :, keep] for keep in rest], 1)))
    return K.diagonal(dim1=-2, dim2=-1)[:, rows].log() + minors - whole[:, None]


@pytest.mark.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
@pytest.mark.parametrize("G", [2, 16, 256])
@pytest.mark.parametrize("kind", ["clones", "half of them clones", "cos 0.999 up to 1e-4",
                                  "fewer dimensions than completions", "from bfloat16", "bfloat16 itself"])
def test_log_det_is_exact_where_it_is_hard(kind, G, device):
    """float32 within 2e-5 of determinants in float64 for singular and nearly singular S, and for S that rounding has
    made indefinite."""
    generator = torch.Generator().manual_seed(G)
    x = torch.randn(1 if G == 256 else 2, G, 3 if kind.startswith("fewer") else 64, generator=generator)
    if kind == "clones":
        x = x[:, :1].expand(-1, G, -1)
    if kind == "half of them clones":
        x = torch.cat((x[:, :1].expand(-1, G // 2, -1), x[:, G // 2 :]), 1)
    if kind.startswith("cos"):
        x = 0.03 * x / 8 + torch.nn.functional.normalize(x[:, :1], dim=-1)
    similarity = cosine_similarity(x.to(device, torch.bfloat16) if "bfloat16" in kind else x.to(device))
    similarity = similarity.bfloat16() if kind == "bfloat16 itself" else similarity
    if kind == "bfloat16 itself" and G == 256:
        assert torch.linalg.eigvalsh(similarity.float()).min() < -1e-3
    got = log_det_smi(similarity)
    assert got.dtype == torch.float32 and got.min() >= 0
    rows = list(range(0, G, 1 if G < 256 else 64))
    torch.testing.assert_close(got.cpu()[:, rows], log_det_by_determinants(similarity.cpu(), rows).float(), rtol=2e-5,
                               atol=2e-5)


def test_log_det_of_256_clones_by_hand():
    """S of ones: K = I + 1 1^T, K_ii = 2, (K^-1)_ii = 1 - 1 / (G + 1)."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        torch.testing.assert_close(log_det_smi(torch.ones(3, 256, 256, dtype=dtype)),
                                   torch.full((3, 256), math.log(2 * (1 - 1 / 257)), dtype=dtype), rtol=0,
                                   atol=tolerance)


def test_graph_cut_equals_a_loop_over_pairs():
    similarity = cosine_similarity(random_groups()[0])
    for p in range(5):
        for i in range(6):
            assert graph_cut_smi(similarity)[p, i].item() == pytest.approx(
                sum(similarity[p, i, j].item() for j in range(6) if j != i))


@pytest.mark.parametrize("options", [{}, {"smi": "log_det"}, {"sharpen": 4.0, "scope": "correct", "normalize": "mean"},
                                     {"clamp": False, "negative": "divide"}])
def test_groups_never_interact_and_order_is_free(options):
    """A group's result is the same alone, in a batch, under more batch axes, and permutes with its completions."""
    embeddings, rewards = random_groups()
    full = adjust_rewards(rewards, cosine_similarity(embeddings), **options)
    for p in range(5):
        torch.testing.assert_close(adjust_rewards(rewards[p], cosine_similarity(embeddings[p]), **options), full[p],
                                   rtol=1e-12, atol=1e-12)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(adjust_rewards(rewards[:, order], cosine_similarity(embeddings[:, order]), **options),
                               full[:, order], rtol=1e-12, atol=1e-12)
    stacked = adjust_rewards(torch.stack((rewards, rewards)), cosine_similarity(torch.stack((embeddings, embeddings))),
                             **options)
    torch.testing.assert_close(stacked[1], full, rtol=1e-12, atol=1e-12)
    for scale in ("std", "none"):
        alone = torch.stack([group_advantages(group, scale) for group in full])
        torch.testing.assert_close(group_advantages(full, scale), alone, rtol=1e-12, atol=1e-12)


def test_inputs_are_not_modified_and_carry_no_gradient():
    embeddings, rewards = random_groups()
    embeddings.requires_grad_()
    before = embeddings.detach().clone(), rewards.clone()
    similarity = cosine_similarity(embeddings)
    kept = similarity.clone()
    adjusted = adjust_rewards(rewards, similarity, sharpen=2.0, scope="correct", normalize="mean")
    group_advantages(adjusted)
    assert torch.equal(embeddings, before[0]) and torch.equal(rewards, before[1]) and torch.equal(similarity, kept)
    assert not similarity.requires_grad and not adjusted.requires_grad


def test_half_precision_is_computed_in_float32():
    embeddings, rewards = random_groups()
    half = embeddings.bfloat16()
    assert cosine_similarity(half).dtype == torch.float32
    expected = adjust_rewards(rewards.float(), cosine_similarity(half.float()))
    assert torch.equal(adjust_rewards(rewards.bfloat16(), cosine_similarity(half)), expected)


def test_groups_of_two_are_left_as_they_are():
    """Both completions have one SMI, so the standard deviation takes the weights off again, and equal rewards stay
    equal; without it advantages shrink alike."""
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    similarity = cosine_similarity(torch.tensor([[1.0, 0.2], [0.5, 1.0]])).expand(3, 2, 2)
    adjusted = adjust_rewards(rewards, similarity)
    torch.testing.assert_close(group_advantages(adjusted), group_advantages(rewards), atol=3e-4, rtol=0)
    torch.testing.assert_close(group_advantages(adjusted, "none"),
                               group_advantages(rewards, "none") / (1 + similarity[0, 0, 1]))


def test_weights_stay_in_their_range():
    """Clamped graph cut: exactly [1/G, 1] for any embeddings, clones, opposites, zeros and huge or tiny norms
    included."""
    embeddings = torch.tensor([[[1.0, 0], [1, 0], [1, 0]], [[1, 0], [-1, 0], [0, 0]],
                               [[1e-30, 0], [1e30, 1e30], [0, 1e-38]]])
    similarity = cosine_similarity(embeddings)
    assert torch.equal(similarity.diagonal(dim1=-2, dim2=-1), torch.ones(3, 3)) and similarity.abs().max() <= 1
    weights = diversity_weights(similarity)
    assert weights.min() >= 1 / 3 and weights.max() <= 1
    torch.testing.assert_close(weights[0], torch.full((3,), 1 / 3))
    torch.testing.assert_close(weights[1], torch.ones(3))
    torch.testing.assert_close(similarity[2, 0, 1], torch.tensor(0.5**0.5))
    torch.testing.assert_close(diversity_weights(similarity, normalize="mean").mean(-1), torch.ones(3))


def test_scope_correct_without_right_answers():
    """No neighbour counts, so nothing is adjusted; a graded mask overrides reward > 0."""
    similarity = cosine_similarity(random_groups()[0])
    zeros = torch.zeros(5, 6)
    assert torch.equal(adjust_rewards(zeros, similarity, scope="correct"), zeros)
    torch.testing.assert_close(diversity_weights(similarity, correct=torch.zeros(5, 6, dtype=torch.bool)),
                               torch.ones(5, 6, dtype=torch.float64))
    rewards = torch.full((5, 6), 0.5)
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[:, 0] = True
    got = adjust_rewards(rewards, similarity, scope="correct", correct=mask)
    torch.testing.assert_close(got[:, 1], 0.5 / (1 + similarity[:, 1, 0].clamp(min=0)), check_dtype=False)
    torch.testing.assert_close(got[:, 0], rewards[:, 0], check_dtype=False)


def test_negative_rewards():
    weights = torch.tensor([0.5, 0.25, 0.5])
    rewards = torch.tensor([-1.0, 0.0, 2.0])
    assert apply_weights(rewards, weights, "keep").tolist() == [-1.0, 0.0, 1.0]
    assert apply_weights(rewards, weights, "divide").tolist() == [-0.5, 0.0, 1.0]


EYE = torch.eye(3)
NAN = torch.full((3,), float("nan"))


@pytest.mark.parametrize(("call", "words"), [
    (lambda: smi_values(EYE, "log_det", sharpen=2.0), ["log_det", "sharpen"]),
    (lambda: adjust_rewards(torch.ones(3), EYE, smi="log_det", scope="correct"), ["log_det", "scope"]),
    (lambda: smi_values(EYE, sharpen=2.0, clamp=False), ["sharpen", "clamp"]),
    (lambda: diversity_weights(torch.tensor([[[1.0, 0], [0, 1]], [[1.0, -1], [-1, 1]]]), clamp=False),
     ["group [1]", "clamp"]),
    (lambda: cosine_similarity(torch.stack((EYE, EYE * float("inf")))), ["group [1]", "finite"]),
    (lambda: smi_values(torch.stack((EYE, EYE * float("nan")))), ["group [1]", "finite"]),
    (lambda: adjust_rewards(torch.stack((torch.ones(3), NAN)), EYE.expand(2, 3, 3)),
     ["rewards of group [1]", "finite"]),
    (lambda: group_advantages(torch.stack((torch.ones(3), NAN))), ["group [1]", "finite"]),
    (lambda: log_det_smi(torch.stack((EYE, EYE - 3))), ["group [1]", "positive definite"]),
    (lambda: smi_values(torch.ones(1, 1)), ["G >= 2"]),
    (lambda: group_advantages(torch.ones(4, 1)), ["G >= 2"]),
    (lambda: smi_values(torch.ones(2, 3)), ["(2, 3)"]),
    (lambda: adjust_rewards(torch.ones(4), EYE), ["(4,)", "(3, 3)"]),
    (lambda: smi_values(EYE, correct=torch.ones(4)), ["(3,)", "(4,)"]),
    (lambda: smi_values(EYE, "facility"), ["smi", "facility"]),
    (lambda: adjust_rewards(torch.ones(3), EYE, scope="right"), ["scope", "right"]),
    (lambda: adjust_rewards(torch.ones(3), EYE, normalize="sum"), ["normalize", "sum"]),
    (lambda: adjust_rewards(torch.ones(3), EYE, negative="flip"), ["negative", "flip"]),
    (lambda: group_advantages(torch.ones(3), "max"), ["scale", "max"]),
])
def test_refusals_name_what_is_wrong(call, words):
    with pytest.raises(ValueError) as error:
        call()
    for word in words:
        assert word in str(error.value)


def test_advantages_by_hand():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0])
    torch.testing.assert_close(group_advantages(rewards, "none"), torch.tensor([0.5, -0.5, -0.5, 0.5]))
    torch.testing.assert_close(group_advantages(rewards), torch.tensor([0.5, -0.5, -0.5, 0.5]) / (1 / 3**0.5 + 1e-4))
    assert group_advantages(torch.full((3, 4), 0.1)).abs().max() < 1e-6


# ------------------------------------------------------------------------------------------------ apply = "advantage"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", SHARED, ids=lambda case: case["name"])
def test_shared_advantages_golden_vectors(case, dtype):
    """Every committed case, made by plain Python loops, to 1e-5, in the dtype that came in."""
    rewards, similarity = (torch.tensor(case[key], dtype=dtype) for key in ("rewards", "similarity"))
    for scale in ("std", "none"):
        smi, weights, adjusted, advantages = dra_advantages(rewards, similarity, torch.tensor(case["correct"]), scale,
                                                            apply="advantage", **case["options"])
        assert torch.equal(adjusted, rewards), "the rewards stay"
        for got, key in ((smi, "smi"), (weights, "weights"), (advantages, f"advantages_{scale}")):
            assert got.dtype == dtype
            torch.testing.assert_close(got, torch.tensor(case[key], dtype=dtype), rtol=0, atol=1e-5, msg=key)


def test_shared_advantages_by_hand():
    """Two clones and a unique right answer share 3 x 0.25 as 1/2 : 1/2 : 1, a wrong one keeps its -0.75."""
    similarity = torch.eye(4)
    similarity[0, 1] = similarity[1, 0] = 1
    rewards = torch.tensor([1.0, 1.0, 1.0, 0.0])
    *_, advantages = dra_advantages(rewards, similarity, rewards > 0, "none", apply="advantage")
    torch.testing.assert_close(advantages, torch.tensor([0.1875, 0.1875, 0.375, -0.75]))
    *_, advantages = dra_advantages(torch.ones(4), similarity, torch.ones(4), "none", apply="advantage", bonus=0.3)
    torch.testing.assert_close(advantages, torch.tensor([0.2, 0.2, 0.4, 0.4]))      # 4 x 0.3 as 1/2 : 1/2 : 1 : 1


def random_kernels(P=40, G=8, seed=0):
    """(similarity, binary rewards, graded rewards, right): some groups are all right, some all wrong."""
    generator = torch.Generator().manual_seed(seed)
    similarity = cosine_similarity(torch.rand(P, G, 5, generator=generator, dtype=torch.float64))
    correct = torch.rand(P, G, generator=generator) < torch.linspace(0, 1, P)[:, None]
    correct[0], correct[-1] = False, True
    graded = correct + torch.randn(P, G, generator=generator, dtype=torch.float64)
    return similarity, correct.double(), graded, correct


@pytest.mark.parametrize("bonus", [0.0, 0.4])
@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("kind", ["binary", "graded"])
def test_sharing_moves_nothing_between_right_and_wrong(kind, scale, bonus):
    """The sum of the right answers' positive advantages stays, those that were not shared stay, no sign changes; a
    bonus is added in all-right groups alone, before the sharing."""
    similarity, binary, graded, correct = random_kernels()
    rewards = binary if kind == "binary" else graded
    plain = group_advantages(rewards, scale)
    *_, shared = dra_advantages(rewards, similarity, correct, scale, apply="advantage", sharpen=8.0, bonus=bonus)
    plain = plain + bonus * correct.all(-1, keepdim=True).double()
    torch.testing.assert_close(shared.sum(-1), plain.sum(-1), rtol=0, atol=1e-12)
    positive = correct & (plain > 0)
    assert torch.equal(shared >= 0, plain >= 0)
    assert torch.equal(shared[~positive], plain[~positive])
    if kind == "binary":
        assert (shared[correct] >= 0).all(), "no right answer is pushed down"
        still = ~correct.any(-1) | (correct.all(-1) if not bonus else torch.tensor(False))
        assert (shared[still] == 0).all() and still.any()
    moved = positive.sum(-1) > 2                     # two are each other's only neighbours: equal weights
    assert ((shared - plain).abs().amax(-1) > 1e-3)[moved].all() and moved.any()
    assert moved[-1] == (bonus > 0 or kind == "graded"), "the group that is all right"


def test_sharing_by_equal_weights_changes_nothing():
    """Whatever the similarity is, if it is the same for all pairs."""
    similarity, binary, graded, correct = random_kernels()
    for value in (0.0, 0.7, 1.0):
        uniform = torch.full_like(similarity, value)
        uniform.diagonal(dim1=-2, dim2=-1).fill_(1)
        for rewards in (binary, graded):
            for scale in ("std", "none"):
                *_, shared = dra_advantages(rewards, uniform, correct, scale, apply="advantage", bonus=0.3)
                plain = group_advantages(rewards, scale) + 0.3 * correct.all(-1, keepdim=True).double()
                torch.testing.assert_close(shared, plain, rtol=1e-12, atol=1e-12)


def test_sharing_is_in_proportion_and_permutes():
    """Of two right answers with equal rewards the rarer gets more, as 1 / (1 + SMI) says; groups never see each other,
    and order is free."""
    similarity, binary, graded, correct = random_kernels()
    smi, weights, _, shared = dra_advantages(binary, similarity, correct, apply="advantage")
    for group in range(1, len(binary) - 1):
        right = correct[group]
        if 1 < right.sum() < len(right):
            ratio = shared[group][right] / weights[group][right]
            torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    torch.testing.assert_close(weights, 1 / (1 + smi))
    order = torch.randperm(binary.shape[-1])
    options = {"apply": "advantage", "sharpen": 4.0, "bonus": 0.3}
    *_, whole = dra_advantages(graded, similarity, correct, **options)
    *_, permuted = dra_advantages(graded[:, order], similarity[:, order][:, :, order], correct[:, order], **options)
    torch.testing.assert_close(permuted, whole[:, order])
    for p in (0, 17, 39):
        *_, alone = dra_advantages(graded[p], similarity[p], correct[p], **options)
        torch.testing.assert_close(alone, whole[p])


@pytest.mark.parametrize(("options", "words"), [
    ({"apply": "loss"}, ["apply", "loss"]), ({"bonus": 0.2}, ["bonus = 0.2", "apply = advantage"]),
    *[({"apply": "advantage", **{key: value}}, ["apply = advantage", f"{key} = {value}"])
      for key, value in (("smi", "log_det"), ("clamp", False), ("normalize", "mean"), ("negative", "divide"))],
    ({"apply": "advantage", "weights_G": torch.tensor([[1.0, 1.0], [0.0, 1.0]])}, ["group [1]", "not > 0"]),
])
def test_options_without_effect_are_refused(options, words):
    """Of what `apply = "advantage"` does not read, and of weights that no sum can be shared out by."""
    with pytest.raises(ValueError) as error:
        dra_advantages(torch.ones(2, 2), torch.eye(2).expand(2, 2, 2), torch.ones(2, 2), **options)
    assert all(word in str(error.value) for word in words)
    assert redistribute(torch.ones(2), torch.tensor([0.0, 1.0]), torch.tensor([False, True])).tolist() == [1, 1]


def test_reward_functions_by_hand():
    grades = [Grade(correct, "", None) for correct in (True, True, False, False, False)]
    lengths = {"lengths": [0, 100, 0, 100, 200], "texts": ["", "x" * 1000, "x" * 2000, "x" * 1000, ""],
               "max_new_tokens": 100}
    assert reward_function("cosine", RewardConfig())(grades=grades, **lengths) == [1.0, 0.5, 0.0, -0.5, -0.5]
    assert reward_function("cosine", RewardConfig(cosine="published"))(grades=grades, **lengths) == [
        1.0, 0.5, 0.0, -0.5, 0.0]
    assert reward_function("accuracy", RewardConfig())(grades=grades) == [1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(("text", "right"), [
    ("a\n</think>\nb", 1), ("<think>\na\nb\n</think>\nc\nd", 1), ("<think>a\n</think>\n", 1), ("a</think>b", 0),
    ("a\n</think>\nb\n</think>\n", 0),
    ("<think><think>a\n</think>\nb", 0), ("a\n</think>\n<think>", 0), ("a", 0), ("", 0),
    ("x" * 10**6 + "\n</think>\n" + "y" * 10**6, 1),
])
def test_format_is_one_closed_reasoning(text, right):
    assert reward_function("format", RewardConfig())(texts=[text]) == [right]
    function = reward_function("format", RewardConfig(format=".*<answer>[^<]*</answer>"))
    assert function(texts=[text, f"{text[:9]}\n<answer>1</answer>"]) == [0, 1]


def test_the_turn_begins_where_the_template_leaves_off(tmp_path):
    """A template that writes <think>: grades and formats see the whole turn, so reasoning that never ends has no
    answer."""
    seen = tmp_path / "seen.py"
    seen.write_text("def seen(texts, **_):\n    return [float(text.startswith('<think>')) for text in texts]\n")
    texts = ["1+1\n</think>\n\\boxed{2}", "maybe \\boxed{2} or"]
    with Grader(1) as grader:
        config = RewardConfig({"accuracy": 1.0, "format": 1.0, f"{seen}:seen": 1.0})
        for begun, accuracy in (("<think>\n", [1.0, 0.0]), ("", [1.0, 1.0])):
            rewarder = Rewarder(reward_functions(config), DraConfig(enabled=False), "none", 64, grader, None, begun)
            scores = rewarder(texts, [{"answer": "2"}], [9, 9], 2)
            assert [part.tolist() for part in scores.parts.values()] == [[accuracy], [[1.0, 0.0]],
                                                                         [[1.0, 1.0] if begun else [0.0, 0.0]]]


@pytest.mark.parametrize("dra",
                         [DraConfig(embedder="tiny/embedder"),
                          DraConfig(embedder="tiny/embedder", scope="correct", sharpen=4.0),
                          DraConfig(embedder="tiny/embedder", apply="advantage", sharpen=4.0, bonus=0.1),
                          DraConfig(enabled=False)])
def test_rewarder_is_the_functions_in_order(dra):
    """What a run computes is what the tested functions give on the same texts, group by group.

    A well formatted wrong answer has a reward and is not right.
    """
    texts = ["so \\boxed{85}", "ones 7+8=15, so \\boxed{85}", "so \\boxed{84}", "ones\n</think>\nnone",
             "ones so \\boxed{1}", "\\boxed{2}", "tens \\boxed{2.0}", "\\boxed{2}"]
    rows = [{"answer": "85"}, {"answer": "2"}]
    with Grader(1) as grader:
        embedder = Embedder("tiny/embedder") if dra.enabled else None
        functions = reward_functions(RewardConfig({"accuracy": 2.0, "format": 1.0}))
        scores = Rewarder(functions, dra, "std", 64, grader, embedder)(texts, rows, [5] * 8, 4)
    raw = torch.tensor([[2.0, 2, 0, 1], [0, 2, 2, 2]])
    assert torch.equal(scores.raw, raw) and torch.equal(scores.correct, raw == 2)
    adjusted, advantage = raw, group_advantages(raw)
    if dra.enabled:
        similarity = cosine_similarity(embedder.encode(texts).view(2, 4, -1))
        _, weight, adjusted, advantage = dra_advantages(raw, similarity, raw == 2,
                                                        **{name: getattr(dra, name) for name in OPTIONS})
        assert not torch.equal(advantage, group_advantages(raw)) and torch.equal(scores.weight, weight)
    if dra.apply == "reward" and dra.enabled:
        assert torch.equal(adjusted, adjust_rewards(raw, similarity, sharpen=dra.sharpen, scope=dra.scope,
                                                    correct=raw == 2)) and not torch.equal(adjusted, raw)
        assert torch.equal(advantage, group_advantages(adjusted))
    assert torch.equal(scores.adjusted, adjusted) and torch.equal(scores.advantage, advantage)
    pairs = ~torch.eye(4, dtype=torch.bool)
    assert scores.similarity == ([pytest.approx(group[pairs].mean().item()) for group in similarity] if dra.enabled
                                 else [None, None])


def test_answers_alone_are_embedded_if_asked_for():
    """dra.text = "answer": words around an answer change no weight; a text without an answer is embedded whole, and a
    right one without an answer is refused."""
    texts = ["ones 7+8=15, so \\boxed{85}", "tens \\boxed{85} or", "ones 7+8=15", "\\boxed{84}"]
    rewards = reward_functions(RewardConfig())
    embedder, rows = Embedder("tiny/embedder"), [{"answer": "85"}]
    with Grader(1) as grader:
        scores = Rewarder(rewards, DraConfig(text="answer"), "std", 64, grader, embedder)(texts, rows, [5] * 4, 4)
    similarity = cosine_similarity(embedder.encode(["85", "85", texts[2], "84"]))
    assert torch.equal(scores.adjusted, adjust_rewards(torch.tensor([[1.0, 1, 0, 0]]), similarity[None]))
    assert scores.adjusted[0, 0] == scores.adjusted[0, 1]

    class Booleans:
        def grade_rows(self, texts, rows):
            return [Grade(True, "right", None)] * len(texts)

    with pytest.raises(ValueError, match="reward.correct return pairs"):
        Rewarder(rewards, DraConfig(text="answer"), "std", 64, Booleans(), embedder)(texts, rows, [5] * 4, 4)


def test_user_reward_functions_get_what_the_docs_say(tmp_path):
    """The example of docs/rewards.md next to accuracy, weighted.

    A wrong number of values is an error that names the function.
    """
    page = (Path(__file__).parent.parent / "docs/rewards.md").read_text(encoding="utf-8")
    example = next(block.split("```")[0] for block in page.split("```python\n") if block.startswith("def brevity"))
    (tmp_path / "my.py").write_text(example + "def short(rows, **_):\n    return [row['bonus'] for row in rows][1:]\n")
    name = f"{tmp_path}/my.py:brevity"
    with Grader(1) as grader:
        def rewarder(functions):
            named = reward_functions(RewardConfig(functions))
            return Rewarder(named, DraConfig(enabled=False), "none", 100, grader, None)
        scores = rewarder({"accuracy": 2.0, name: 0.5})(["\\boxed{1}", "\\boxed{2}"], [{"answer": "1", "bonus": 3}],
                                                        [20, 100], 2)
        torch.testing.assert_close(scores.raw, torch.tensor([[2.4, 0.0]]))
        torch.testing.assert_close(scores.parts[name], torch.tensor([[0.8, 0.0]]))
        parts = rewarder({f"{tmp_path}/my.py:graded": 1.0, f"{tmp_path}/my.py:soft_overlong": 1.0})(
            ["\\boxed{1}", "\\boxed{0}", "\\boxed{7}",
             "no"], [{"answer": "1", "nearly": ["0"]}], [80, 90, 100, 10], 4).parts
        torch.testing.assert_close(torch.cat(list(parts.values())),
                                   torch.tensor([[1.0, 0.5, 0.1, 0.0], [0.0, -0.5, -1.0, 0.0]]))
        with pytest.raises(ValueError, match="short.*1 values for 2"):
            rewarder({f"{tmp_path}/my.py:short": 1.0})(["a", "b"], [{"answer": "1", "bonus": 3}], [1, 1], 2)


VALUES = """import torch, numpy as np
def right(texts, **_): return [1, True, np.float32(0.5), torch.tensor(0.25)]
def array(texts, **_): return np.arange(4)
def tensor(texts, **_): return torch.arange(4.0, requires_grad=True)
def some(texts, **_): return [None, 2.0, None, 0.0]
def none(texts, **_): pass
def nones(texts, **_): return [None] * 4
def dictionary(texts, **_): return {text: 1.0 for text in texts}
def generator(texts, **_): return (1.0 for _ in texts)
def text(texts, **_): return "1111"
def texts_(texts, **_): return ["1"] * 4
def lists(texts, **_): return [[1.0, 0.0]] * 4
def pairs(texts, **_): return [(1.0, "why")] * 4
def table(texts, **_): return torch.ones(4, 2)
def column(texts, **_): return np.ones((4, 1))
def scalar(texts, **_): return torch.tensor(1.0)
def number(texts, **_): return 1.0
def vectors(texts, **_): return [torch.ones(1)] * 4
def nan(texts, **_): return [0.0, float("nan"), 0.0, 0.0]
def large(texts, **_): return [0.0, 0.0, 0.0, 10**400]
def imaginary(texts, **_): return [1j] * 4
async def later(texts, **_): return [1.0] * 4
"""


@pytest.mark.filterwarnings("error")
def test_a_reward_function_returns_one_number_per_completion(tmp_path):
    """Scalars of numpy and torch too; whatever else it returns is a line that names it, not values at other
    completions. None is "not applicable", as in TRL: it is left out of the sum, but some function must have a number.
    """
    (tmp_path / "v.py").write_text(VALUES)

    def rewarder(*names):
        config = RewardConfig({f"{tmp_path}/v.py:{name}": 1.0 for name in names})
        return Rewarder(reward_functions(config), DraConfig(enabled=False), "none", 64, Grader(1), None)

    def scores(*names):
        return rewarder(*names)(["a", "b", "c", "d"], [{"answer": "1"}], [1] * 4, 4)

    for name, values in (("right", [1, 1, 0.5, 0.25]), ("array", [0, 1, 2, 3]), ("tensor", [0, 1, 2, 3])):
        assert scores(name).raw.tolist() == [values] and not scores(name).raw.requires_grad
    both = scores("some", "array")
    assert both.raw.tolist() == [[0, 3, 2, 3]]
    assert [list(both.of(0, i)["rewards"].values()) for i in range(2)] == [[None, 0.0], [2.0, 1.0]]
    for name, words in (
        ("none", "NoneType"), ("dictionary", "type dict"), ("generator", "generator"), ("text", "type str"),
        ("later", "coroutine"), ("table", r"Tensor of shape \(4, 2\)"), ("column", r"ndarray of shape \(4, 1\)"),
        ("scalar", r"shape \(\)"), ("number", "type float"), ("texts_", "returned '1' for completion 0"),
        ("lists", r"returned \[1.0, 0.0\] for completion 0"), ("pairs", r"\(1.0, 'why'\) for completion 0"),
        ("vectors", r"tensor\(\[1.\]\) for"), ("nan", "nan for completion 1"), ("large", "for completion 3"),
        ("imaginary", "1j for completion 0"), ("nones", "got None from all"),
    ):
        with pytest.raises(ValueError, match=f"(?s)^reward function.*v.py:{name}'.*{words}"):
            scores(name)


HOOKS = """import torch
def f(similarity, rewards, rows):
    assert similarity.shape == (2, 2, 2) and len(rows) == 2
    similarity.zero_(), rewards.zero_()
    return torch.full((2, 2), 0.25, dtype=torch.float64, requires_grad=True)
def shape(similarity, rewards, rows): return rewards[0]
def numbers(similarity, rewards, rows): return [[1.0, 1.0], [1.0, 1.0]]
def nothing(similarity, rewards, rows): pass
def integers(similarity, rewards, rows): return torch.ones(2, 2, dtype=torch.long)
def nan(similarity, rewards, rows): return torch.tensor([[1.0, 1.0], [float("nan"), 1.0]])
def fails(similarity, rewards, rows): return similarity @ torch.ones(7)
"""


def test_weights_hook_replaces_the_weights(tmp_path):
    """Whatever precision it answers in, and even if it writes into what it was given.

    Anything but (P, G) finite floats is an error that says so.
    """
    (tmp_path / "hook.py").write_text(HOOKS)
    texts, rows = ["\\boxed{1}", "\\boxed{1}", "\\boxed{2}", "x \\boxed{1}"], [{"answer": "1"}, {"answer": "1"}]
    with Grader(1) as grader:
        def scores(name):
            hook = import_function("dra.weights", f"{tmp_path}/hook.py:{name}") if name else None
            functions, embedder = reward_functions(RewardConfig()), Embedder("tiny/embedder")
            return Rewarder(functions, DraConfig(), "none", 64, grader, embedder, hook=hook)(texts, rows, [5] * 4, 2)
        hooked, plain = scores("f"), scores("")
        assert hooked.adjusted.tolist() == [[0.25, 0.25], [0.0, 0.25]] and hooked.adjusted.dtype == torch.float32
        assert not hooked.advantage.requires_grad
        assert torch.equal(hooked.smi, plain.smi) and torch.equal(hooked.raw, plain.raw)
        assert hooked.similarity == plain.similarity
        for name, words in (("shape", r"shape \(2,\)"), ("numbers", "list"), ("nothing", "NoneType"),
                            ("integers", "int64"), ("nan", r"group \[1\] are not finite"),
                            ("fails", "raised RuntimeError.*hook.py, line")):
            with pytest.raises(ValueError, match=f"dra.weights.*{words}"):
                scores(name)


def test_advantages_hook_replaces_the_advantages(tmp_path):
    """It gets copies of all that a rule may need, the advantages those of the raw rewards, and has the last word.

    Anything but (P, G) finite floats is an error that says so.
    """
    (tmp_path / "hook.py").write_text("""import torch
def f(*, similarity, rewards, correct, advantages, scale, texts, rows, lengths, logprobs):
    assert similarity.shape == (2, 2, 2) and scale == "none" and len(rows) == 2 and len(texts) == 4
    assert torch.equal(advantages, rewards - rewards.mean(-1, keepdim=True)) and correct.dtype == torch.bool
    result = (logprobs / lengths).double().requires_grad_() + 0
    for tensor in (similarity, rewards, correct, advantages): tensor.zero_()
    return result
def shape(rewards, **_): return rewards[0]
def nan(rewards, **_): return rewards / 0
""")
    texts, rows = ["\\boxed{1}", "\\boxed{1}", "\\boxed{2}", "x \\boxed{1}"], [{"answer": "1"}, {"answer": "1"}]
    with Grader(1) as grader:
        def scores(name):
            hook = import_function("dra.advantages", f"{tmp_path}/hook.py:{name}")
            functions, embedder = reward_functions(RewardConfig()), Embedder("tiny/embedder")
            return Rewarder(functions, DraConfig(), "none", 64, grader, embedder, advantages=hook)(
                texts, rows, [1, 2, 4, 8], 2, logprobs=[-1.0, -4.0, -1.0, -2.0])
        found = scores("f")
        assert found.advantage.tolist() == [[-1.0, -2.0], [-0.25, -0.25]] and found.advantage.dtype == torch.float32
        assert not found.advantage.requires_grad and found.correct.tolist() == [[True, True], [False, True]]
        assert found.raw.tolist() == found.adjusted.tolist() == [[1.0, 1.0], [0.0, 1.0]] and (found.weight == 1).all()
        assert (found.smi > 0).any(), "the similarity is logged all the same"
        for name, words in (("shape", r"shape \(2,\)"), ("nan", r"group \[0\] are not finite")):
            with pytest.raises(ValueError, match=f"dra.advantages.*{words}"):
                scores(name)


def test_tiny_embedder_reads_text_only_and_strategies_are_close():
    """Mean cosine between different strategies of one problem at least 0.6.

    They share most words and numbers, as real solutions do.
    """
    from tiny.task import STRATEGIES, problems, solution
    pairs = [tuple(map(int, row["problem"].split("+"))) for row in problems()[:100]]
    vectors = Embedder("tiny/embedder").encode([solution(name, *pair) for pair in pairs for name in STRATEGIES]).view(
        100, 4, -1)
    similarity = cosine_similarity(vectors)
    off_diagonal = similarity[:, ~torch.eye(4, dtype=torch.bool)]
    assert 0.6 <= off_diagonal.mean() < 0.99
