"""CIDEr-D, BLEU-4 and ROUGE-L by hand and against coco-caption; the tokenizer against Stanford's."""

from __future__ import annotations

import math
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from eval.metrics import corpus
from eval.metrics.captions import BLEU_4, CIDER_D, cider_scores, most_agreed, rouge_l
from eval.metrics.corpus import Item
from eval.metrics.penn_treebank import DROPPED, caption_tokens


def items_of(*pairs: tuple[str, tuple[str, ...]]) -> list[Item]:
    return [Item(prediction, references, str(number)) for number, (prediction, references) in enumerate(pairs)]


class TestCiderByHand:
    def test_two_images(self):
        # N = 2. 'a' is in both images' references and weighs log 2 − log 2 = 0, every other n-gram log 2 − log 1 = L.
        # Image 1, 'a cat' for 'a cat': words L·L/(L·L) = 1; pairs of words ('a cat') 1; longer: none, 0. Same length.
        #   10 · (1 + 1 + 0 + 0)/4 = 5.
        # Image 2, 'a cat dog' for 'a dog': the answer weighs cat L and dog L, norm √2·L, the reference dog L.
        #   words L·L/(√2·L·L) = 1/√2; pairs 'a cat', 'cat dog' against 'a dog' 0; lengths differ by 1: exp(−1/72).
        #   10 · exp(−1/72)/√2/4.
        items = items_of(("a cat", ("a cat",)), ("a cat dog", ("a dog",)))
        second = 10 * math.exp(-1 / 72) / math.sqrt(2) / 4
        assert cider_scores(items, [item.references for item in items]) == pytest.approx([5.0, second], abs=1e-12)
        assert corpus.score(CIDER_D, items) == pytest.approx((5.0 + second) / 2, abs=1e-12)

    def test_four_words_right_are_ten(self):
        items = items_of(("one two three four", ("one two three four",)), ("x", ("y",)))
        assert cider_scores(items, [item.references for item in items])[0] == pytest.approx(10.0, abs=1e-12)


class TestOtherCaptionScores:
    def test_bleu_by_hand(self):
        # 'the cat sat on the mat' for 'the cat sat on a mat': words 5/6, pairs 3/5, threes 2/4, fours 1/3; same length.
        items = items_of(("the cat sat on the mat", ("the cat sat on a mat",)))
        expected = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
        assert corpus.score(BLEU_4, items) == pytest.approx(expected, abs=1e-8)

    def test_rouge_by_hand(self):
        # 'a b c d' for 'a c d e': a, c, d in common, 3 of 4 on both sides, so any weighting gives 3/4.
        assert rouge_l("w b c d", ["w c d e"]) == pytest.approx(0.75)
        # 2 of 2 words, 2 of 4: (1 + β²)·1·(1/2)/(1/2 + β²·1), β = 1.2.
        assert rouge_l("one two", ["one x two y"]) == pytest.approx(2.44 * 0.5 / (0.5 + 1.44))

    def test_the_echo_is_the_reference_that_agrees_with_the_others(self):
        references = ("no idea", "a man rides a bike", "a man rides his red bike", "a man on a bike")
        assert most_agreed(references) in references[1:]
        assert most_agreed(("one",)) == "one"


TOKENS = [
    ('A man\'s "red" (big) dog.', "a man 's red -lrb- big -rrb- dog"),
    ("They can't; I'm sure they'll cannot!", "they ca n't i 'm sure they 'll can not"),
    ("Don’t stop…", "do n't stop"),
    ("A T.V. at 5:30 p.m. on 12/25/2010", "a t.v. at 5:30 p.m. on 12/25/2010"),
    ("Dr. Smith paid $5.99, 50% off.", "dr. smith paid $ 5.99 50 % off"),
    ("black-and-white and/or foo.bar", "black-and-white and/or foo.bar"),
    ("No. 5 is no. It is plan B. The end", "no. 5 is no it is plan b the end"),
    ("£5, €3 and 25¢", "# 5 $ 3 and 25 cents"),
    ("Stop!!! Go!", "stop !!! go"),
    ("I'm gonna wanna go", "i 'm gon na wan na go"),
    ("women's boys' '80s 1990's", "women 's boys '80s 1990 's"),
    ("O'Neill at McDonald's, AT&T and R&B", "o'neill at mcdonald 's at&t and r&b"),
    ("a -- b - c", "a b c"),
    ("  two\nlines\t", "two lines"),
    ("", ""),
]


@pytest.mark.parametrize(("caption", "expected"), TOKENS)
def test_tokens_are_those_of_the_tokenizer_in_use(caption, expected):
    # Each line recorded from Stanford's PTBTokenizer 3.4.1 as coco-caption calls it.
    assert caption_tokens(caption) == tuple(expected.split())


def captions(count: int) -> list[str]:
    """Sentences with what captions hold beside words: quotes, prices, names, times, contractions."""
    generator = random.Random(5)
    subjects = ["A man", "Two dogs", "The woman's child", "A sign that says", "A bottle of", "Someone's phone with"]
    oddities = [
        *('"Stop!"', "'Coca-Cola'", "McDonald's", "AT&T", "$5.99", "50% off", "No. 23", "U.S. Air Force", "7-Eleven"),
        *("5:30 p.m.", "St. Patrick's", "Dr. Pepper", "www.site.com", "12/25/2010", "'80s", "O'Neill", "blue/red"),
        *("(number 5)", "[Exit]", "100°", '8.5"x11"', "J.K. Rowling", "R&B", "can't", "won't", "cannot", "isn't"),
        *("#1", "vs.", "Mr. Smith", "etc.", "t-shirt", "1990s", "3rd", "Inc.", "--", "well;", "“Open”", "don’t"),
        *("café", "€5", "£10", "½", "1/2", "x-ray", "I'm", "they're", "ladies'", "100,000", "!!!", "?!", "24/7"),
    ]
    verbs = ["is standing next to", "wearing", ", holding", "sits in front of", "near"]
    things = ["a red car", "the beach", "a laptop computer", "some grass", "his skateboard"]
    ends = [".", "", "!", " .", '."', "?"]
    return [
        f"{generator.choice(subjects)} {generator.choice(oddities)} {generator.choice(verbs)} "
        f"{generator.choice(things + oddities)}{generator.choice(ends)}"
        for _ in range(count)
    ]


def test_tokens_are_those_of_the_java_tokenizer(tmp_path):
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    if shutil.which("java") is None:
        pytest.skip("there is no java")
    jar = Path(tokenizer.__file__).parent / tokenizer.STANFORD_CORENLP_3_4_1_JAR
    lines = captions(2000)
    (tmp_path / "captions.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    program = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    result = subprocess.run(
        [*program, "-preserveLines", "-lowerCase", "captions.txt"],
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    theirs = [
        [token for token in line.rstrip().split(" ") if token not in DROPPED] for line in result.stdout.split("\n")
    ]
    assert {
        line: caption_tokens(line)
        for line, tokens in zip(lines, theirs, strict=False)
        if caption_tokens(line) != tuple(" ".join(tokens).split())
    } == {}


def test_scores_are_those_of_coco_caption():
    scorers = {
        name: getattr(pytest.importorskip(f"pycocoevalcap.{name.lower()}.{name.lower()}"), name)
        for name in ("Cider", "Bleu", "Rouge")
    }
    lines = captions(400)
    items = [
        Item(lines[n] if n % 7 else "", (*lines[100 + 5 * n : 103 + 5 * n], *lines[n : n + 1 + n % 3]), f"{n // 2}")
        for n in range(50)
    ]
    answers = {n: [" ".join(caption_tokens(item.prediction))] for n, item in enumerate(items)}
    references = {n: [" ".join(caption_tokens(text)) for text in item.references] for n, item in enumerate(items)}
    mean, scores = scorers["Cider"]().compute_score(references, answers)
    assert cider_scores(items, [item.references for item in items]) == pytest.approx(list(scores), abs=1e-12)
    assert corpus.score(CIDER_D, items) == pytest.approx(mean, abs=1e-12)
    bleu, _ = scorers["Bleu"](4).compute_score(references, answers, verbose=0)
    assert corpus.score(BLEU_4, items) == pytest.approx(bleu[3], abs=1e-12)
    _, rouge = scorers["Rouge"]().compute_score(references, answers)
    assert [rouge_l(item.prediction, item.references) for item in items] == pytest.approx(list(rouge), abs=1e-12)
