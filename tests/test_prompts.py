"""prompts.py: ids of the folder's own tokenizer.json, prompts as the chat template writes them, what ends a completion,
files byte for byte."""
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, processors

import prompts
from data import DataConfig
from model import Transformer
from prompts import (
    check_template,
    decode,
    load_tokenizer,
    messages_of,
    opening,
    prompt_text,
    prompt_tokens,
    read_files,
    short_enough,
    stop_ids,
    write_files,
)

TEXTS = [
    "so \\boxed{12}, tens 70+90=160",
    "e\u0301 A\u030a é Å ﬁ",
    "<|user|>82+57<|assistant|></s> don't\n\n  1234567 ",
    "<|endoftext|><unk>",
    "日本 👍🏽\u2028",
]


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny policy to be changed."""
    return Path(shutil.copytree("tiny/policy", tmp_path / "policy"))


def edit(path: Path, **changes) -> None:
    """Sets keys of a JSON file; None takes a key out."""
    content = {**(json.loads(path.read_text()) if path.exists() else {}), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def with_template(text: str):
    tokenizer = load_tokenizer("tiny/policy")
    tokenizer.chat_template = text
    return tokenizer


# ------------------------------------------------------------------------------------------------ the folder


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize(
    "name",
    [
        None,
        "Qwen2Tokenizer",
        "Qwen2TokenizerFast",
        "GPT2TokenizerFast",
        "LlamaTokenizerFast",
        "LlamaTokenizer",
        "PreTrainedTokenizerFast",
        "TokenizersBackend",
        "NoSuchTokenizer",
    ],
)
def test_ids_are_those_of_tokenizer_json_whatever_class_is_named(folder, name, model_type):
    """transformers 5 builds classes of its own for some names, with another normalizer and pre-tokenizer; settings of a
    class change nothing either."""
    edit(folder / "config.json", model_type=model_type)
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class=name,
        add_prefix_space=True,
        add_bos_token=True,
        split_special_tokens=True,
        unk_token="<unk>",
        pad_token="[PAD]",
        extra_special_tokens=["tens"],
        added_tokens_decoder={"300": {"content": "ones", "special": True}},
    )
    tokenizer, reference = load_tokenizer(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        assert (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            == reference.encode(text, add_special_tokens=False).ids
        )
    assert len(tokenizer) == reference.get_vocab_size() == 297


def test_what_tokenizer_json_says_of_truncation_and_padding_is_for_batches_elsewhere(folder):
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(pad_token="so", length=32)
    backend.save(str(folder / "tokenizer.json"))
    for text in TEXTS:
        assert (
            load_tokenizer(folder)([text, "1"], add_special_tokens=False)["input_ids"][0]
            == load_tokenizer("tiny/policy")(text)["input_ids"]
        )


def test_a_named_token_splits_no_text(folder):
    """An ordinary word as the pad token stays an ordinary word; an end token that tokenizer.json does not know is a
    file from elsewhere."""
    edit(folder / "tokenizer_config.json", pad_token={"content": "so", "__type": "AddedToken"})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids("so") and len(
        tokenizer("soso")["input_ids"]
    ) == len(load_tokenizer("tiny/policy")("soso")["input_ids"])
    edit(folder / "tokenizer_config.json", eos_token="<|im_end|>")
    with pytest.raises(ValueError, match="tokenizer.json does not know eos_token '<|im_end|>'"):
        load_tokenizer(folder)


def test_a_folder_without_a_tokenizer_json_is_refused(folder):
    """Where transformers would make an empty one, or one of files that are half there."""
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    for text in (None, "{", '{"model": {}}'):
        (folder / "tokenizer.json").unlink(missing_ok=True)
        if text:
            (folder / "tokenizer.json").write_text(text)
        with pytest.raises(ValueError, match="tokenizer.json"):
            load_tokenizer(folder)


def test_files_of_the_policy_go_on_byte_for_byte(folder, tmp_path):
    """All but weights and what stands in other folders; config.json differs where, and only where, the weights are
    stored in another precision."""
    (folder / "special_tokens_map.json").write_bytes(b'{ "eos_token":"<|end|>"}\r\n')
    (folder / "merges.txt").write_bytes(b"\xef\xbb\xbf#version\n")
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes().replace(b"\n", b"\r\n"))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tools.jinja").write_text("tools")
    (folder / "checkpoint-1").mkdir()
    for name in ("checkpoint-1/optimizer.pt", "training_args.bin", "model.safetensors.index.json", "policy.gguf"):
        (folder / name).write_text("{}")
    model, files = Transformer.from_pretrained("tiny/policy"), read_files(folder)
    for dtype, same in (("float32", True), ("bfloat16", False)):
        out = tmp_path / dtype
        model.save_pretrained(out, dtype=getattr(torch, dtype))
        write_files(files, out)
        written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
        assert written == {
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "special_tokens_map.json",
            "merges.txt",
            "additional_chat_templates/tools.jinja",
        }
        for name in written - {"model.safetensors", *(() if same else ("config.json",))}:
            assert (out / name).read_bytes() == (folder / name).read_bytes(), name
        assert json.loads((out / "config.json").read_text()) == {**json.loads(files["config.json"]), "dtype": dtype}


# ----------------------------------------------------------------------------------------------- what ends a completion


def ends(config=None, generation=None, stop=(), **named) -> list[int]:
    tokenizer = load_tokenizer("tiny/policy")
    tokenizer.eos_token = named.get("eos_token")
    model = SimpleNamespace(
        config={"eos_token_id": config},
        generation_config={"eos_token_id": generation} if generation is not None else {},
        g=SimpleNamespace(vocab=320),
    )
    return stop_ids(model, tokenizer, DataConfig(stop=list(stop)))


def test_stop_ids_unite_all_sources():
    """generation_config.json, config.json and the tokenizer, each a number, a list or nothing; and what data.stop adds
    as text or as ids."""
    assert ends(generation=[3, 5], eos_token="<|end|>") == [0, 3, 5]
    assert ends(config=7) == [7] and ends(config=[7, 9], generation=3) == [3, 7, 9] and ends(eos_token="<|end|>") == [0]
    so, word = (load_tokenizer("tiny/policy").convert_tokens_to_ids(token) for token in ("so", "Ġtens"))
    assert ends(7, stop=["so", " tens", "Ġtens", "<|user|>", 11]) == sorted([7, so, word, 1, 11])


def test_stop_ids_that_are_none_are_refused():
    for stop in ("so so", "", 320, -1):
        with pytest.raises(ValueError, match=f"data.stop: {stop!r}"):
            ends(7, stop=[stop])
    for config in ("0", [True], 1.5):
        with pytest.raises(ValueError, match="eos_token_id in config.json"):
            ends(config)
    with pytest.raises(ValueError, match="nothing in tiny/policy names a token that ends a completion.*data.stop"):
        ends()


def test_only_what_ends_a_completion_is_left_out_of_its_text():
    """Other special tokens, such as </think> in some models, are read by rewards and graders."""
    tokenizer = load_tokenizer("tiny/policy")
    user, so, tens = tokenizer.convert_tokens_to_ids(["<|user|>", "so", "Ġtens"])
    assert decode(tokenizer, [[user, so, tens, 5, 0], [0, 0], [so, 0, 0], []], [0, 5]) == [
        "<|user|>so tens",
        "",
        "so",
        "",
    ]
    assert decode(tokenizer, [[so, user]], [user]) == ["so"]


# ------------------------------------------------------------------------------------------------ prompts


def test_messages_are_the_rows_own_or_made_of_its_problem():
    """data.system is for rows that have none; the user turn's template also goes around the last message."""
    chat = [
        {"role": "system", "content": "Own."},
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+3"},
    ]
    data = DataConfig(system="Add.", template="{problem}, {hint}")
    row = {"problem": "2+3", "hint": "slowly"}
    assert messages_of(row, data) == [{"role": "system", "content": "Add."}, {"role": "user", "content": "2+3, slowly"}]
    assert messages_of({**row, "prompt_messages": chat}, data) == [
        *chat[:3],
        {"role": "user", "content": "2+3, slowly"},
    ]
    assert (
        messages_of({**row, "prompt_messages": chat[1:]}, data)[0] == {"role": "system", "content": "Add."}
        and chat[-1]["content"] == "2+3"
    )
    assert prompt_text(load_tokenizer("tiny/policy"), {**row, "prompt_messages": chat}, data) == (
        "<|system|>Own.<|user|>1+1<|assistant|>2<|user|>2+3, slowly<|assistant|>")


def test_prompt_tokens_are_the_templates_own():
    """A tokenizer that puts its BOS before every text, under a template that has written it already: it stands there
    once."""
    tokenizer = load_tokenizer("tiny/policy")
    bos = tokenizer.convert_tokens_to_ids("<|system|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", bos)]
    )
    tokenizer.chat_template = "<|system|>" + tokenizer.chat_template
    assert tokenizer("1+1")["input_ids"][0] == bos
    expected = tokenizer.convert_tokens_to_ids(["<|system|>", "<|user|>", "1", "+", "2", "<|assistant|>"])
    assert prompt_tokens(tokenizer, "1+2", DataConfig()) == expected


def test_a_base_model_is_asked_without_a_chat_template(folder):
    """Refused with the setting's name, which takes "none" or a file; "none" begins with the BOS that the tokenizer puts
    before every text."""
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match='no chat template.*data.chat_template to "none"'):
        load_tokenizer(folder)
    none = DataConfig(chat_template="none", system="Add.", template="Q: {problem}\nA:")
    assert prompt_text(load_tokenizer(folder, none), "1+2", none) == "Add.\nQ: 1+2\nA:"
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        single="<|system|> $A <|end|>", special_tokens=[("<|system|>", 3), ("<|end|>", 0)]
    )
    backend.save(str(folder / "tokenizer.json"))
    edit(folder / "tokenizer_config.json", bos_token="<|system|>")
    assert prompt_text(load_tokenizer(folder, none), "1+2", none) == "<|system|>Add.\nQ: 1+2\nA:"
    (folder / "mine.jinja").write_text("{{ eos_token }}{{ messages[0].content }}?")
    mine = DataConfig(chat_template=str(folder / "mine.jinja"))
    assert prompt_text(load_tokenizer(folder, mine), "1+2", mine) == "<|end|>1+2?"
    with pytest.raises(ValueError, match="data.chat_template = 'no.jinja'"):
        load_tokenizer(folder, DataConfig(chat_template="no.jinja"))


def test_chat_templates_are_found_where_folders_have_them(folder):
    """chat_template.jinja goes before tokenizer_config.json, which has one or several by name."""
    edit(
        folder / "tokenizer_config.json",
        chat_template=[
            {"name": "tools", "template": "no"},
            {"name": "default", "template": "yes {{ messages[0].content }}"},
        ],
    )
    assert prompt_text(load_tokenizer(folder), "1", DataConfig()) == "<|user|>1<|assistant|>"
    (folder / "chat_template.jinja").unlink()
    assert prompt_text(load_tokenizer(folder), "1", DataConfig()) == "yes 1"
    edit(folder / "tokenizer_config.json", chat_template="one {{ messages[0].content }}")
    assert prompt_text(load_tokenizer(folder), "1", DataConfig()) == "one 1"


def test_template_arguments_reach_the_template(folder):
    """And what it does not ask for is refused: a misspelt enable_thinking would change nothing."""
    (folder / "chat_template.jinja").write_text(
        "{{ messages[0].content }}{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is false %}"
        "<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    for arguments, begun in (
        ({}, ""),
        ({"enable_thinking": True}, ""),
        ({"enable_thinking": False}, "<think>\n\n</think>\n\n"),
    ):
        data = DataConfig(template_args=arguments)
        tokenizer = load_tokenizer(folder, data)
        assert prompt_text(tokenizer, "1", data) == "1<|assistant|>" + begun and opening(tokenizer, data) == begun
    with pytest.raises(ValueError, match="data.template_args.enable_thinkin:"):
        load_tokenizer(folder, DataConfig(template_args={"enable_thinkin": False}))


@pytest.mark.parametrize(
    ("ending", "begun"),
    [
        ("<|assistant|>", ""),
        ("<|assistant|><think>\n", "<think>\n"),
        ("<|assistant|><think>\n\n</think>\n\n", "<think>\n\n</think>\n\n"),
    ],
)
def test_what_is_written_of_the_reasoning_is_known(ending, begun):
    """By the chat template, or without one at the end of the user turn."""
    assert (
        opening(
            with_template(
                "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}"
                + ending
                + "{% endif %}"
            )
        )
        == begun
    )
    none = DataConfig(chat_template="none", template="Reason in <think> and </think>: {problem}" + ending)
    assert opening(load_tokenizer("tiny/policy", none), none) == begun


ONE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}<|assistant|>"


@pytest.mark.parametrize(
    ("template", "system", "words"),
    [
        ("{% for m in messages %}{{ m['text'] }}{% endfor %}", "", "leaves out the message of the role 'user'"),
        ("{% for m in messages %}{{ m.content[:40] }}{% endfor %}", "", "leaves out the message of the role 'user'"),
        ("{% for m in messages %}{{ m.content | e }}{% endfor %}", "", "leaves out the message of the role 'user'"),
        ("{% for m in messages %}{{ m.content | lower }}{% endfor %}", "Add.", "leaves out data.system"),
        ("{{ messages[-1].content }}", "Add.", "leaves out data.system"),
        ("{{ raise_exception('no') }}", "", "does not take messages of the roles user.*no"),
        (
            (
                "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{"
                " messages[0].content }}"
            ),
            "Add.",
            "roles system, user.*no system.*data.system",
        ),
        ("{{ messages[0].content + 1 }}", "", "TypeError"),
        ("{% for m in messages %}", "", "TemplateSyntaxError"),
        ("{{ nothing.at.all }}", "", "UndefinedError"),
    ],
)
def test_a_template_that_raises_or_leaves_out_is_refused(template, system, words):
    with pytest.raises(ValueError, match=f"chat template of .*{words}"):
        check_template(with_template(template), [{"problem": "82+57"}], DataConfig(system=system))


def test_a_template_is_tried_with_all_sequences_of_roles():
    """A system turn in one of a thousand rows; and white space around a text, or the reasoning of an earlier turn, may
    go."""
    rows = [{"problem": " 82+57\n"}] * 1000 + [
        {
            "problem": "x",
            "prompt_messages": [{"role": role, "content": "<think>a</think>b"} for role in ("system", "user")],
        }
    ]
    check_template(with_template(ONE), rows, DataConfig(system=" Add. "))
    with pytest.raises(ValueError, match="leaves out the message of the role 'system'"):
        check_template(
            with_template("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"),
            rows,
            DataConfig(),
        )
    turns = [{"role": role, "content": f"<think>a</think>{role}"} for role in ("user", "assistant", "user")]
    check_template(
        with_template(
            "{% for m in messages %}{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}{%"
            " endfor %}"
        ),
        [{"problem": turns[-1]["content"], "prompt_messages": turns}],
        DataConfig(),
    )
    with pytest.raises(ValueError, match="'assistant'"):
        check_template(with_template("{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}"),
                       [{"problem": turns[-1]["content"], "prompt_messages": turns}], DataConfig())


def test_prompts_are_measured_as_if_all_were_tokenised(monkeypatch):
    """Texts of all lengths around the limit, some of whose characters take several tokens, under several templates;
    most need no tokenizer."""
    tokenizer, asked = load_tokenizer("tiny/policy"), []
    rows = [
        {"problem": text * n, "hint": "tens " * (n % 7 + 1)}
        for text in ("1", "+ 7", "\u00e9", "ones and tens ")
        for n in range(1, 60)
    ]
    chats = [
        {
            **row,
            "prompt_messages": [
                {"role": "system", "content": row["hint"]},
                {"role": "user", "content": row["problem"]},
            ],
        }
        for row in rows
    ]
    for settings in (
        DataConfig(),
        DataConfig(template="please: {problem}, carefully", system="ones"),
        DataConfig(template="{problem} {hint}"),
    ):
        for some in (rows, chats, rows + chats):
            lengths = [len(prompt_tokens(tokenizer, row, settings)) for row in some]
            assert min(lengths) < 50 < max(lengths)
            assert short_enough(tokenizer, some, settings, 50) == [
                i for i, length in enumerate(lengths) if length <= 50
            ]
    texts = prompts.prompt_text
    monkeypatch.setattr(prompts, "prompt_text", lambda *arguments: asked.append(arguments[1]) or texts(*arguments))
    assert len(short_enough(tokenizer, [{"problem": "12+34"}] * 1000, DataConfig(), 50)) == 1000 and asked == ["x"]
