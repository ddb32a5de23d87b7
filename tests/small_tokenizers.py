"""Small tokenizers of the kinds that decoders have, with chat templates in the forms of their families."""

from __future__ import annotations

import functools
import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from monkey.configuration import MonkeyConfig
from monkey.tokenization_decoder import DecoderTokenizer, prepare_tokenizer
from tests.small_processor import small_config

CORPUS = [
    "What is the total amount on this receipt? The total is 12.50 euros.",
    "You are a helpful assistant. Read the sign: it says stop. The user asks, the assistant answers.",
    "Where is the red box? system user assistant model [INST] [/INST] <<SYS>>",
    "Grüße aus Köln, naïve café; 漢字 и кириллица.",
    "<img> </img> <s> </s> <box> </box> im_start im_end start_of_turn end_of_turn",
] * 4

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for message in rest %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{{ bos_token }}"
    "{% for message in rest %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + (system if loop.index0 >= rest | length - 2 else '') + message['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% set last = messages | length - 1 %}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.index0 == last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


def special(*tokens: str, **flags) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False, **flags) for token in tokens]


def byte_level(size: int = 340) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def smollm() -> PreTrainedTokenizerFast:
    """Byte pairs as of GPT-2, and ChatML."""
    backend = byte_level()
    backend.add_special_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHATML,
    )


def qwen3() -> PreTrainedTokenizerFast:
    """As of Qwen 3: signs of thought are tokens that are not special."""
    tokenizer = smollm()
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>", "<tool_call>")])
    tokenizer.chat_template = THINKING
    return tokenizer


def gpt2() -> PreTrainedTokenizerFast:
    """A base model's, which has no chat template."""
    backend = byte_level()
    backend.add_special_tokens(special("<|endoftext|>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    )


def llama3() -> PreTrainedTokenizerFast:
    """As of tiktoken: split by a regular expression, whole pieces before merges, a beginning of text."""
    backend = byte_level()
    backend.model.ignore_merges = True
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    names = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    backend.add_special_tokens(special(*names))
    bos = backend.token_to_id(names[0])
    backend.post_processor = processors.TemplateProcessing(single=f"{names[0]} $A", special_tokens=[(names[0], bos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=names[0], eos_token="<|end_of_text|>", chat_template=LLAMA_3
    )


@functools.cache
def sentence_pieces(size: int = 420) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of words with ▁, and one token a byte; and its merges."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=names, show_progress=False, limit_alphabet=64)
    backend.train_from_iterator(CORPUS, trainer)

    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def llama2(legacy: bool = False) -> PreTrainedTokenizerFast:
    """Words with ▁ and bytes; `[INST]` of its chat is plain text. `legacy`: a blank before every piece of a text."""
    vocab, merges = sentence_pieces()
    tokenizer = LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True, chat_template=LLAMA_2)
    if legacy:
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def mistral() -> PreTrainedTokenizerFast:
    """`[INST]` is a token, and what the system says stands in the last question."""
    tokenizer = llama2()
    tokenizer.add_special_tokens({"extra_special_tokens": special("[INST]", "[/INST]")})
    tokenizer.chat_template = MISTRAL
    return tokenizer


def phi3() -> PreTrainedTokenizerFast:
    """As Llama 2's older files, with tokens that take in the white space behind them."""
    tokenizer = llama2(legacy=True)
    tokenizer.add_special_tokens(
        {"extra_special_tokens": special("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", rstrip=True)}
    )
    tokenizer.chat_template = PHI
    return tokenizer


def gemma() -> PreTrainedTokenizerFast:
    """No blank in front; line breaks and HTML are tokens that are not special."""
    vocab, merges = sentence_pieces()
    names = {"<s>": "<bos>", "</s>": "<eos>"}
    vocab = {names.get(token, token): id_ for token, id_ in vocab.items()}
    for token in ("<pad>", "<mask>", "\n", "\n\n", "<start_of_turn>", "<end_of_turn>", "<table>"):
        vocab.setdefault(token, len(vocab))
    tokenizer = GemmaTokenizer(vocab=vocab, merges=[*merges, ("\n", "\n")], add_bos_token=True, chat_template=GEMMA)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("\n\n", "<table>")])
    tokenizer.add_special_tokens({"extra_special_tokens": special("<start_of_turn>", "<end_of_turn>")})
    return tokenizer


def unigram() -> PreTrainedTokenizerFast:
    """A vocabulary in which plain text can come to `</s>` and to bytes, and a blank stands before every piece."""
    words = sorted({word for line in CORPUS for word in line.split()})
    letters = sorted({letter for line in CORPUS for letter in line if letter != " "} | set('|_"\\/{}~^*#@%&!=+-\n\t'))
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{byte:02X}>", 0.0) for byte in range(256))]
    pieces += [(f"▁{word}", -5.0) for word in words] + [(letter, -9.0) for letter in letters] + [("▁", -7.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(special("<unk>", "<s>", "</s>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=LLAMA_2
    )


def config_of(tokenizer, **text) -> tuple[MonkeyConfig, DecoderTokenizer]:
    """A model of eight tokens an image for a decoder's tokenizer."""
    prepared = prepare_tokenizer(tokenizer)
    config = small_config(vocab_size=prepared.vocab_size, **text)
    return MonkeyConfig(**(config.to_dict() | prepared.ids | {"grid": (1, 1)})), prepared.tokenizer


KINDS = {
    "smollm": smollm,
    "qwen3": qwen3,
    "gpt2": gpt2,
    "llama2": llama2,
    "legacy": functools.partial(llama2, legacy=True),
    "llama3": llama3,
    "mistral": mistral,
    "phi3": phi3,
    "gemma": gemma,
    "unigram": unigram,
}
