"""Every word that the demo shows, in English and in Chinese."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """The demo in one language. Names in braces are filled in by `str.format`."""

    heading: str
    """Markdown, as are `guide` and `terms`."""
    guide_title: str
    guide: str
    terms: str
    model: str
    """About the open checkpoint: name, height and width in pixels, rows, columns, tokens, device."""

    picture: str
    conversation: str
    conversation_hint: str
    question: str
    question_hint: str
    ask: str
    stop: str
    clear: str
    describe: str
    settings: str
    seed: str
    seed_hint: str

    described: str
    """What the conversation says in the asker's place when a description was wanted."""
    no_answer: str
    stopped: str
    """Added to an answer that was stopped."""

    no_picture: str
    bad_picture: str
    gone_picture: str
    no_question: str
    long_question: str
    refused: str
    bad_seed: str
    out_of_memory: str
    timed_out: str


ENGLISH = Wording(
    heading="# Monkey\nAsk about a picture, or have it described.",
    guide_title="How to use it",
    guide=(
        "1. **Give it a picture.** Drop a file on the left, click to choose one, or paste one from the clipboard.\n"
        "2. **Ask.** Type a question and press Enter. *What is the total?* gets a short answer; the shorter and more "
        "concrete the question, the better the answer. English works best, and other languages may.\n"
        "3. **Or press *Generate description*** for a paragraph about the whole picture. Its words are drawn at "
        "random from a seed: the same seed gives the same text, another seed another one.\n\n"
        "Each question is answered by itself: the model sees the picture and that question, not the conversation "
        "above it. A new picture begins a new conversation. *Stop* ends an answer early, *Clear* removes picture and "
        "conversation."
    ),
    terms=(
        "**Terms.** The released Monkey weights are for research only; commercial use is not allowed. Answers can be "
        "wrong, however sure they sound, and can repeat what is offensive in a picture or in the training data: check "
        "them before you rely on them, and do not try to make the model produce anything harmful. Pictures and "
        "questions go to the machine that runs this page; pictures are deleted there after an hour, and when the demo "
        "ends."
    ),
    model="Model: {name}, reading {height}×{width} pixels in {rows}×{columns} windows as {tokens} tokens, on {device}.",
    picture="Picture",
    conversation="Conversation",
    conversation_hint="Answers appear here.",
    question="Question",
    question_hint="What does the sign say?",
    ask="Ask",
    stop="Stop",
    clear="Clear",
    describe="Generate description",
    settings="Description settings",
    seed="Seed",
    seed_hint="A whole number; empty for another description every time.",
    described="Generate description",
    no_answer="(The model gave no answer.)",
    stopped="(stopped)",
    no_picture="There is no picture yet. Upload one first.",
    bad_picture="This picture cannot be used: {reason}.",
    gone_picture="The picture is no longer on the server, where pictures stay for an hour. Upload it again.",
    no_question="There is no question yet. Type one first.",
    long_question="The question has {length} characters, more than the {limit} allowed. Shorten it.",
    refused="The model cannot take this: {reason}.",
    bad_seed="The seed must be a whole number from 0 to {limit}, or empty.",
    out_of_memory="The memory of the machine did not suffice for this answer. Try a shorter question, or again later.",
    timed_out="The model took too long and was stopped: {reason}.",
)

CHINESE = Wording(
    heading="# Monkey\n就图片提问，或让模型描述图片。",
    guide_title="使用说明",
    guide=(
        "1. **给一张图片。** 把文件拖到左侧、点击选择，或从剪贴板粘贴。\n"
        "2. **提问。** 输入问题后按回车。问题越短、越具体，回答越好。英文提问效果最好，中文等其他语言也可以尝试。\n"
        "3. **或点击“生成描述”**，得到一段对整张图片的描述。描述的用词由随机种子决定：种子相同，文字相同；"
        "换一个种子，就换一段文字。\n\n"
        "每个问题都单独回答：模型只看到图片和当前问题，看不到上面的对话。换一张图片即开始新的对话。“停止”提前结束回答，“清空”移除图片和对话。"
    ),
    terms=(
        "**使用条款。** 已发布的 Monkey 权重仅供研究使用，不得用于商业用途。回答听起来再肯定也可能有误，"
        "也可能复述图片或训练数据中的不当内容：采信前请核实，请勿诱导模型生成有害内容。"
        "图片和问题会发送到运行本页面的机器；图片在一小时后以及演示结束时从该机器上删除。"
    ),
    model="模型：{name}，以 {rows}×{columns} 个窗口读取 {height}×{width} 像素，共 {tokens} 个 token，运行于 {device}。",
    picture="图片",
    conversation="对话",
    conversation_hint="回答会显示在这里。",
    question="问题",
    question_hint="招牌上写着什么？",
    ask="提问",
    stop="停止",
    clear="清空",
    describe="生成描述",
    settings="描述设置",
    seed="随机种子",
    seed_hint="整数；留空则每次得到不同的描述。",
    described="生成描述",
    no_answer="（模型没有给出回答。）",
    stopped="（已停止）",
    no_picture="还没有图片，请先上传一张。",
    bad_picture="这张图片无法使用：{reason}。",
    gone_picture="图片在服务器上只保留一小时，现已删除，请重新上传。",
    no_question="还没有问题，请先输入。",
    long_question="问题有 {length} 个字符，超过了 {limit} 个的上限，请缩短。",
    refused="模型无法处理：{reason}。",
    bad_seed="随机种子须为 0 到 {limit} 的整数，或留空。",
    out_of_memory="机器内存不足，无法完成这次回答。请缩短问题，或稍后再试。",
    timed_out="模型用时过长，已停止：{reason}。",
)

LANGUAGES = {"en": ENGLISH, "zh": CHINESE}
NAMES = (("English", "en"), ("中文", "zh"))
"""Languages as the page offers them, and their keys."""


def wording_of(language: object) -> Wording:
    """The wording of a key, English for anything else."""
    return LANGUAGES.get(language, ENGLISH) if isinstance(language, str) else ENGLISH


def preferred_language(accepted: str | None) -> str:
    """Key of the language that a browser's `Accept-Language` header puts first, English if we do not have it."""
    first = (accepted or "").split(",")[0].strip().lower()
    return "zh" if first.startswith("zh") else "en"
