"""Text to tokens and back: the tokenizer and chat template of a policy's folder, what the policy is asked, what ends
its answer.

    tokenizer = load_tokenizer("tiny/policy")
    prompt_tokens(tokenizer, {"problem": "82+57"}, DataConfig())        # ids of "<|user|>82+57<|assistant|>"

Ids are those of the folder's tokenizer.json, whatever class is named next to it: some classes of transformers 5 put a
normalizer and a pre-tokenizer of their own in place of the file's. A module apart from data.py, which knows no policy.
"""
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from data import DataConfig, fill
from model import ModelConfig, Transformer, read_json

BATCH = 1024                                            # prompts tokenised at a time, on all cores
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")     # of a policy's folder: all but its weights
NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|gguf|h5|msgpack|onnx|npz)(\.index\.json)?")
PLAIN = "{{ messages | map(attribute='content') | join('\\n') }}"
# long, and with what a template could escape, cut or split
PROBE = '"<b> & \\boxed{{{name}}}\n' + " ".join(map(str, range(2000)))


def model_folder(config: ModelConfig, patterns: Sequence[str] = (*SMALL_FILES, "*.safetensors")) -> str:
    """The local folder of `model.path`; if it is a hub name, the files that match `patterns` are fetched. ValueError if
    there is none."""
    if config.path and Path(config.path).is_dir():
        return config.path
    if (Path(config.path).parent / "make.py").is_file():        # tiny/policy, real_lm/policy
        raise ValueError(f"model.path = {config.path!r} does not exist yet; make it: "
                         f"python -m {'.'.join(Path(config.path).parent.parts)}.make")
    if config.path.count("/") != 1 or config.path.startswith((".", "/")):
        raise ValueError(f"model.path = {config.path!r} is neither a folder nor a hub name owner/name")
    from huggingface_hub import snapshot_download       # only runs that name a hub model need it

    try:
        return snapshot_download(config.path, allow_patterns=list(patterns))
    except Exception as error:  # offline, no such repository, no access: hub errors of many classes
        raise ValueError(
            f"model.path = {config.path!r} is not a folder and the hub did not give it: {str(error).splitlines()[0]}; "
            f"download it where the hub can be reached (hf download {config.path} --local-dir FOLDER) and name that"
        ) from None


def read_files(folder: str | Path) -> dict[str, bytes]:
    """What a policy's folder has besides weights, by name: read as a run starts, whatever becomes of the folder
    meanwhile.

    Folders in it are not of the policy (checkpoints, other formats), but for the tokenizer's additional_chat_templates.
    """
    files = [*sorted(Path(folder).iterdir()), *sorted(Path(folder).glob("additional_chat_templates/*.jinja"))]
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in files
        if file.is_file() and not WEIGHTS.fullmatch(file.name)
    }


def write_files(files: dict[str, bytes], out: str | Path) -> None:
    """Puts `files` into a folder that `Transformer.save_pretrained` has written, byte for byte; where the weights there
    have another precision than config.json of `files` says, config.json stays as it is."""
    for name, content in files.items():
        path = Path(out) / name
        if name != "config.json" or json.loads(content) == read_json(path):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)


# ----------------------------------------------------------------------------------------- the folder's tokenizer


def load_tokenizer(folder: str | Path, data: DataConfig = DataConfig()):
    """A transformers tokenizer with the ids of tokenizer.json, the named tokens and the chat template of `folder`, or
    the one that `data` names.

    Raises ValueError for a folder without a tokenizer.json that can be read, or without a chat template if `data` names
    none.
    """
    # seconds of import that --help and config errors should not wait for
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"model folder {str(folder)!r} has no tokenizer.json; copy it there, or have transformers write one from"
            " vocab.json and merges.txt or tokenizer.model:"
            " AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    try:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:                          # tokenizers raises nothing narrower
        raise ValueError(f"{folder / 'tokenizer.json'} is not a tokenizer that can be read: {error}") from None
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    older = read_json(folder / "special_tokens_map.json") if (folder / "special_tokens_map.json").is_file() else {}
    # as transformers has it
    named = {**older, **settings} if "added_tokens_decoder" in settings else {**settings, **older}
    backend.no_truncation()
    backend.no_padding()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.name_or_path = str(folder)
    # set, not handed over: the constructor adds them to the vocabulary, so that texts split elsewhere
    for name in NAMED_TOKENS:
        token = named[name]["content"] if isinstance(named.get(name), dict) else named.get(name)
        if token and backend.token_to_id(token) is not None:
            setattr(tokenizer, name, token)
        elif token and name in ("bos_token", "eos_token"):
            raise ValueError(
                f"{folder}: tokenizer.json does not know {name} {token!r} of tokenizer_config.json or"
                " special_tokens_map.json; one of the files is from elsewhere"
            )
    tokenizer.chat_template = chat_template(folder, settings, data)
    if data.chat_template == "none" and (ids := backend.encode("x").ids) and ids[0] == tokenizer.bos_token_id:
        # what the tokenizer puts before any text, a template has to write
        tokenizer.chat_template = "{{ bos_token }}" + PLAIN
    for name in data.template_args:
        if not re.search(rf"\b{re.escape(name)}\b", tokenizer.chat_template):
            raise ValueError(f"data.template_args.{name}: the chat template of {folder} asks for no {name!r}, so that "
                             "it would change nothing")
    return tokenizer


def chat_template(folder: Path, settings: dict, data: DataConfig) -> str:
    """The text of the chat template that `data` or `folder` names, `settings` being its tokenizer_config.json;
    ValueError if there is none."""
    if data.chat_template == "none":
        return PLAIN
    if data.chat_template:
        if not Path(data.chat_template).is_file():
            raise ValueError(
                f'data.chat_template = {data.chat_template!r} is not a file; name a .jinja file, or "none" to ask with'
                ' data.template alone'
            )
        return Path(data.chat_template).read_text(encoding="utf-8")
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):                         # several, by name
        found = {item["name"]: item["template"] for item in found}.get("default")
    if not found:
        raise ValueError(
            f'the tokenizer in {str(folder)!r} has no chat template, as that of a base model; set data.chat_template to'
            ' "none" to ask with data.system and data.template alone, or to a .jinja file'
        )
    return found


def stop_ids(model: Transformer, tokenizer, data: DataConfig = DataConfig()) -> list[int]:
    """All ids that end a completion: those of generation_config.json, config.json (some models have several) and the
    tokenizer, and `data.stop`.

    Raises ValueError if there is none, and for one of `data.stop` that is not one token of the vocabulary.
    """
    found = set()
    for where, value in (
        ("generation_config.json", model.generation_config.get("eos_token_id")),
        ("config.json", model.config.get("eos_token_id")),
        ("tokenizer_config.json", tokenizer.eos_token_id),
    ):
        for i in value if isinstance(value, list) else [value]:
            if i is not None and type(i) is not int:
                raise ValueError(
                    f"{tokenizer.name_or_path}: eos_token_id in {where} must be an id or a list of ids; got {i!r}"
                )
            found |= {i} - {None}
    for stop in data.stop:
        if isinstance(stop, int):
            ids = [stop] if 0 <= stop < model.g.vocab else []
        else:
            ids = tokenizer(stop, add_special_tokens=False)["input_ids"]
            known = tokenizer.get_vocab().get(stop)
            ids = ids if len(ids) == 1 or known is None else [known]
        if len(ids) != 1:
            raise ValueError(
                f"data.stop: {stop!r} is {len(ids) or 'not one of the'} tokens of {tokenizer.name_or_path}; name one"
                " token, as text or as its id"
            )
        found.add(ids[0])
    if not found:
        raise ValueError(
            f"nothing in {tokenizer.name_or_path} names a token that ends a completion (eos_token_id in"
            " generation_config.json or config.json, eos_token in tokenizer_config.json); name one with data.stop"
        )
    return sorted(found)


def decode(tokenizer, completions: Sequence[Sequence[int]], stop: Collection[int]) -> list[str]:
    """The texts of completions without the tokens that end them and without padding; every other special token, such as
    </think>, stays."""
    left_out = {*stop, tokenizer.pad_token_id}
    return tokenizer.batch_decode(
        [[i for i in ids if i not in left_out] for ids in completions],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )


# ------------------------------------------------------------------------------------------------ prompts


def messages_of(row: dict, data: DataConfig) -> list[dict]:
    """What the policy is asked about `row`: its own messages, or the problem in a user turn made by `data.template`,
    after a system prompt."""
    *earlier, last = row.get("prompt_messages") or [{"role": "user"}]
    system = (
        [{"role": "system", "content": data.system}]
        if data.system and all(message["role"] != "system" for message in earlier)
        else []
    )
    return [*system, *earlier, {**last, "content": fill(data.template, row)}]


def chat(tokenizer, messages: Sequence[dict], data: DataConfig, ask: bool = True) -> str:
    """`messages` as the chat template writes them, with `ask` up to where the assistant begins. ValueError for what the
    template refuses."""
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=ask, tokenize=False, **data.template_args)
    except Exception as error:                          # a template is a program of its author's
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} does not take messages of the roles"
            f" {', '.join(m['role'] for m in messages)} ({type(error).__name__}: {error}); change data.system or"
            " data.template_args, or name another template with data.chat_template"
        ) from None


def prompt_text(tokenizer, row: dict | str, data: DataConfig) -> str:
    """The prompt of a row, or of a problem's text, up to where the assistant begins."""
    return chat(tokenizer, messages_of({"problem": row} if isinstance(row, str) else row, data), data)


def prompt_tokens(tokenizer, row: dict | str, data: DataConfig) -> list[int]:
    """The tokens of `prompt_text`; the template alone decides about special tokens."""
    return tokenizer(prompt_text(tokenizer, row, data), add_special_tokens=False)["input_ids"]


def check_template(tokenizer, rows: Sequence[dict], data: DataConfig) -> None:
    """ValueError if the chat template refuses a sequence of roles that occurs in `rows`, or writes less of a message
    than all."""
    kinds: dict[tuple, dict] = {}
    for row in rows:
        kinds.setdefault(tuple(message["role"] for message in row.get("prompt_messages", ())), row)
    for row in kinds.values():
        # of an assistant's turns before, templates leave out the reasoning
        own = messages_of(row, data)
        probes = [{**message, "content": PROBE.format(name=i)} for i, message in enumerate(own)]
        for messages in (own, probes):
            written = chat(tokenizer, messages, data)
            for i, message in enumerate(messages):
                if message["content"].strip() not in written and (messages is probes or message["role"] != "assistant"):
                    what = f"the message of the role {message['role']!r}"
                    if i == 0 and data.system and own[0]["content"] == data.system:
                        what = "data.system"
                    raise ValueError(
                        f"the chat template of {tokenizer.name_or_path} leaves out {what}, or part of it: it makes"
                        f" {written[:200]!r} of {own[i]['content'][:80]!r}; name another with data.chat_template"
                        + (", or empty data.system" if what == "data.system" else "")
                    )


def short_enough(tokenizer, rows: Sequence[dict], data: DataConfig, limit: int) -> list[int]:
    """Indices of the rows whose prompt has at most `limit` tokens.

    A token takes at least a byte, so a user turn with fewer bytes than the limit has room for needs no tokenizer, and
    most have; no normalizer lengthens ASCII. Of the others, those whose own tokens have room need no chat template. 8
    tokens are for what may be split differently where the two meet.
    """
    room = limit - len(prompt_tokens(tokenizer, "x", replace(data, template="{problem}"))) - 8
    turns = [fill(data.template, row) for row in rows]

    def long(indices: Sequence[int], most: int, text: Callable[[int], str]) -> Iterator[int]:
        for start in range(0, len(indices), BATCH):
            part = indices[start : start + BATCH]
            tokens = tokenizer([text(i) for i in part], add_special_tokens=False, verbose=False)["input_ids"]
            yield from (i for i, ids in zip(part, tokens) if len(ids) > most)

    chats = [i for i, row in enumerate(rows) if "prompt_messages" in row]
    unsure = [
        i
        for i, turn in enumerate(turns)
        if (len(turn) > room or not turn.isascii()) and "prompt_messages" not in rows[i]
    ]
    too_long = set(
        long([*chats, *long(unsure, room, turns.__getitem__)], limit, lambda i: prompt_text(tokenizer, rows[i], data))
    )
    return [i for i in range(len(rows)) if i not in too_long]


def opening(tokenizer, data: DataConfig = DataConfig()) -> str:
    """What is written of the assistant's turn from a <think> on before a completion, "" if nothing: completions go on
    from there."""
    if data.chat_template == "none":                    # the user turn goes over into the assistant's
        return found[0] if (found := re.search(r"<think>\s*(</think>\s*)?$", data.template)) else ""
    asked, turn = (chat(tokenizer, [{"role": "user", "content": "x"}], data, ask) for ask in (False, True))
    _, think, rest = turn.removeprefix(asked).partition("<think>")
    return think + rest
