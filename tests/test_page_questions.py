"""Questions about pages: right by the page's facts, natural in number, and never in a held-out wording in training."""

from __future__ import annotations

import itertools
import json
import random
import re
import string
from collections import Counter
from collections.abc import Mapping
from datetime import date
from fractions import Fraction

import pytest

pytest.importorskip("faker", reason="words of pages are Faker's (requirements.txt)")

from monkey.boxes import located
from monkey.data.pages import questioning, wordings
from monkey.data.pages.drafts import Draft, Sheet, draft_unanswerable
from monkey.data.pages.drawing import SPLITS
from monkey.data.pages.facts import Cell, Field, NumberFormat, Page, Table
from monkey.data.pages.questioning import QUESTION_KINDS, ask, draft_questions
from monkey.data.pages.spelling import Writer
from monkey.data.pages.wordings import Asked, Choices, Form, read_wordings
from monkey.tokenization import QwenTokenizer
from tests.written_pages import HEIGHT, PAGES, SIZE, box_of, chart, letter, receipt, scene, set_lines, timetable

BOOK = read_wordings()
SEEDS = 15


def drafts_of(page: Page, seeds: int = SEEDS) -> list[Draft]:
    """All drafts of a page over several seeds, those of next turns among them."""
    found = []
    for seed in range(seeds):
        rng = random.Random(seed)
        sheet = Sheet(page, Writer(rng, held_out=False))
        for draft in (*draft_questions(sheet, rng), *draft_unanswerable(sheet, rng)):
            found += [draft, *draft.behind]
    return found


def words_of(text: str) -> list[str]:
    return re.sub(r"[^\w]+", " ", text.casefold()).split()


# Wordings


def all_choices() -> dict[str, Choices]:
    """Every list of wordings by its place."""
    found = {f"forms.{name}": form.sentences for name, form in BOOK.forms.items()}
    for section, named in (("things", BOOK.things), ("columns", BOOK.columns)):
        for key, one in named.items():
            found[f"{section}.{key}.names"] = one.names
            found |= {f"{section}.{key}.{own}": texts for own, texts in one.own.items()}
    return found | {f"endings.{name}": texts for name, texts in BOOK.endings.items()}


def test_every_form_has_fifteen_wordings_a_quarter_of_them_held_out():
    for name, form in BOOK.forms.items():
        trained, heldout = form.sentences.trained, form.sentences.heldout
        assert len(trained) + len(heldout) >= 15, name
        assert len(heldout) >= (len(trained) + len(heldout)) / 4, name
    assert {form.kind for form in BOOK.forms.values()} == {*QUESTION_KINDS, "unanswerable"}


def test_no_wording_is_given_twice_or_is_both_trained_and_held_out():
    for place, choices in all_choices().items():
        texts = choices.trained + choices.heldout
        assert len(set(texts)) == len(texts), place
        assert choices.trained, place
        assert choices.heldout, place


SLOTS = {
    "forms": {
        *("name", "label", "column", "row", "one", "many", "value", "first", "second", "word", "line", "count", "text"),
        *("drawn", "colour", "shape", "shapes", "box", "keys"),
    },
    "things": set(),
    "columns": {"row", "one", "many", "first", "second", "heading"},
    "endings": set(),
}


def test_wordings_have_no_slots_but_those_that_are_filled():
    for place, choices in all_choices().items():
        for text in choices.trained + choices.heldout:
            used = {name for _, name, form, turned in string.Formatter().parse(text) if name is not None}
            assert used <= SLOTS[place.split(".")[0]], f"{place}: {text}"
            assert not text.startswith(" ")
            assert not text.endswith(" ")


def test_a_held_out_name_is_the_name_of_no_other_thing():
    names = Counter(name for thing in BOOK.things.values() for name in thing.names.trained)
    assert not [name for thing in BOOK.things.values() for name in thing.names.heldout if names[name]]


def test_things_name_what_they_are_near_to_and_the_endings_of_forms_exist():
    for key, thing in BOOK.things.items():
        assert thing.near <= set(BOOK.things), key
        assert key not in thing.near
    for name, form in BOOK.forms.items():
        assert set(form.endings) <= set(BOOK.endings), name


# Right answers, computed anew


def value_of(page: Page, draft: Draft) -> str:
    (field,) = (field for field in page.fields if field.key == draft.key)
    return field.value


def column_of(page: Page, draft: Draft) -> dict[str, Cell]:
    """The cells of the column that a draft asks for, by the names of their rows."""
    (table,) = page.tables
    place = table.column_keys.index(draft.key)
    return {row[0].text: row[place] for row in table.rows}


def numbers_of(page: Page, draft: Draft) -> dict[str, float]:
    cells = column_of(page, draft)
    return {
        row: float(cell.text.replace(":", "")) if cell.number is None else cell.number for row, cell in cells.items()
    }


def euros(value: Fraction) -> str:
    cents = round(value * 100)
    whole = re.sub(r"(?<=\d)(?=(\d{3})+$)", ".", str(cents // 100))
    return f"{whole},{cents % 100:02d} €"


def added(page: Page, draft: Draft, sign: int) -> str:
    exact = {row: Fraction(str(value)) for row, value in numbers_of(page, draft).items()}
    return euros(exact[draft.slots["first"]] + sign * exact[draft.slots["second"]])


def above(page: Page, draft: Draft) -> str:
    bound = float(draft.slots["value"].removesuffix(" €").replace(".", "").replace(",", "."))
    return str(sum(value > bound for value in numbers_of(page, draft).values()))


def extreme(choose):
    return lambda page, draft: choose(numbers_of(page, draft).items(), key=lambda pair: pair[1])[0]


def of_two(choose):
    def right(page: Page, draft: Draft) -> str:
        return choose((draft.slots["first"], draft.slots["second"]), key=numbers_of(page, draft).__getitem__)

    return right


def lines_of(page: Page) -> list[str]:
    return [" ".join(word.text for word in words) for _, words in itertools.groupby(page.words, lambda word: word.line)]


def line_after(page: Page, draft: Draft) -> str:
    lines = lines_of(page)
    return lines[lines.index(draft.slots["line"]) + 1]


def stretch(page: Page, draft: Draft) -> str:
    lines = lines_of(page)
    start = lines.index(draft.slots["line"]) + 1 if "line" in draft.slots else 0
    return "\n".join(lines[start : start + int(draft.slots["count"])])


def line_with(page: Page, draft: Draft) -> str:
    (line,) = (line for line in lines_of(page) if draft.slots["word"].casefold() in words_of(line))
    return line


def word_after(page: Page, draft: Draft) -> str:
    words = line_with(page, draft).split()
    place = [words_of(word) for word in words].index(words_of(draft.slots["word"]))
    return words[place + 1].strip(".,:")


def box_text(page: Page, box) -> str:
    """A box in thousandths, written without the project's own code."""
    across, down = page.image.size
    left, top, right, bottom = (round(1000 * value / side) for value, side in zip(box, (across, down) * 2, strict=True))
    return f"<box>({left},{top}),({right},{bottom})</box>"


def box_of_text(page: Page, draft: Draft) -> str:
    marked = {text.strip(".,:"): box_of(page.words, text) for text in (word.text for word in page.words)}
    text = draft.slots["text"]
    return box_text(page, marked[text] if text in marked else box_of(page.words, text))


def text_in_box(page: Page, draft: Draft) -> str:
    (found,) = located(draft.slots["box"])
    across, down = page.image.size
    left, top, right, bottom = (value * side / 1000 for value, side in zip(found.box, (across, down) * 2, strict=True))
    inside = [
        word.text
        for word in page.words
        if left - 1 <= word.box[0] and top - 1 <= word.box[1] and word.box[2] <= right + 1 and word.box[3] <= bottom + 1
    ]
    return " ".join(inside)


def yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


def by_label(page: Page, draft: Draft) -> str:
    (field,) = (field for field in page.fields if field.label.rstrip(":") == draft.slots["label"])
    return field.value


def rows_with(page: Page, draft: Draft) -> str:
    (row,) = (row for row, cell in column_of(page, draft).items() if cell.text == draft.slots["value"])
    return row


def pairs_asked(page: Page, draft: Draft) -> str:
    keys = [key.strip('"') for key in re.split(", | and ", draft.slots["keys"])]
    values = {field.key: field.value for field in page.fields}
    return json.dumps({key: values.get(key) for key in keys}, ensure_ascii=False)


def pairs_all(page: Page, draft: Draft) -> str:
    return json.dumps({one.label.rstrip(":"): one.value for one in page.fields if one.label}, ensure_ascii=False)


def cell(page: Page, draft: Draft) -> str:
    return column_of(page, draft)[draft.slots["row"]].text


RIGHT = {
    "field": value_of,
    "date": value_of,
    "and_field": value_of,
    "labelled": by_label,
    "year": lambda page, draft: {"date": "2026"}[draft.key],
    "coloured": lambda page, draft: {"seller": "blue"}[draft.key],
    "has_field": lambda page, draft: yes(draft.key in {field.key for field in page.fields}),
    "is_value": lambda page, draft: yes(value_of(page, draft) == draft.slots["value"]),
    "field_box": lambda page, draft: box_text(page, next(one.box for one in page.fields if one.key == draft.key)),
    "cell": cell,
    "and_row": cell,
    "and_column": cell,
    "lookup": rows_with,
    "cell_box": lambda page, draft: box_text(page, column_of(page, draft)[draft.slots["row"]].box),
    "count_rows": lambda page, draft: str(len(page.tables[0].rows)),
    "count_columns": lambda page, draft: str(len(page.tables[0].columns)),
    "has_row": lambda page, draft: yes(draft.slots["value"] in {row[0].text for row in page.tables[0].rows}),
    **dict.fromkeys(("most", "latest", "and_highest", "and_latest"), extreme(max)),
    **dict.fromkeys(("least", "earliest", "and_lowest", "and_earliest"), extreme(min)),
    **dict.fromkeys(("more_of_two", "later_of_two"), of_two(max)),
    **dict.fromkeys(("less_of_two", "earlier_of_two"), of_two(min)),
    "is_more": lambda page, draft: yes(
        numbers_of(page, draft)[draft.slots["first"]] > numbers_of(page, draft)[draft.slots["second"]]
    ),
    "sum": lambda page, draft: added(page, draft, 1),
    "difference": lambda page, draft: added(page, draft, -1),
    "count_above": above,
    "first_line": lambda page, draft: lines_of(page)[0],
    "last_line": lambda page, draft: lines_of(page)[-1],
    "line_after": line_after,
    "line_with": line_with,
    "word_after": word_after,
    "has_word": lambda page, draft: yes(
        draft.slots["word"].casefold() in {word for one in page.words for word in words_of(one.text)}
    ),
    "read_all": lambda page, draft: "\n".join(lines_of(page)),
    "read_first": stretch,
    "read_after": stretch,
    "text_box": box_of_text,
    "text_in_box": text_in_box,
    "pairs_all": pairs_all,
    "pairs_asked": pairs_asked,
    "describe": lambda page, draft: page.description,
    "document_kind": lambda page, draft: {"bars": "bar chart"}.get(page.kind, page.kind),
    "count_shapes": lambda page, draft: str(len(page.shapes)),
    "count_shape": lambda page, draft: {"circles": "1", "boxes": "2"}[draft.slots["shapes"]],
    "colour_of_shape": lambda page, draft: {
        "circle": "red",
        "bar of Alpha": "red",
        "bar of Bravo": "blue",
        "bar of Carol": "blue",
        "bar of Delta": "green",
    }[draft.slots["shape"]],
    "name_of_colour": lambda page, draft: {"red": "Alpha", "green": "Delta"}[draft.slots["colour"]],
    "shape_of_colour": lambda page, draft: {"red": "circle", "orange": "box", "blue": "box"}[draft.slots["colour"]],
    "has_shape": lambda page, draft: yes(draft.slots["colour"] in ("red", "orange", "blue")),
    "shape_box": lambda page, draft: box_text(
        page, next(one.box for one in page.shapes if (one.colour, one.name) == shape_in(draft))
    ),
}
"""The right answer of each form, from the facts alone; `and_where` and `and_winner` have a test of their own."""


def shape_in(draft: Draft) -> tuple[str, str]:
    return draft.slots["colour"], draft.slots["shape"]


@pytest.mark.parametrize("make", PAGES)
def test_every_answer_is_right(make):
    page = make()
    for draft in drafts_of(page):
        if draft.kind != "unanswerable" and draft.form in RIGHT:
            assert draft.answer == RIGHT[draft.form](page, draft), draft


def test_the_written_pages_have_every_form_of_question():
    found = {draft.form for make in PAGES for draft in drafts_of(make())}
    assert found == set(BOOK.forms)
    assert set(BOOK.forms) - set(RIGHT) == {"and_where", "and_winner", "no_text"}


def test_a_next_turn_about_the_place_or_the_value_is_about_what_was_answered():
    for make in (receipt, timetable):
        page = make()
        for draft in drafts_of(page):
            for follower in draft.behind:
                if follower.form == "and_where":
                    assert follower.answer in {box_text(page, box_of(page.words, draft.answer))}
                if follower.form == "and_winner":
                    assert follower.answer == column_of(page, draft)[draft.answer].text


def test_a_chart_without_numbers_is_compared_and_not_read():
    drafts = drafts_of(chart())
    assert not {draft.form for draft in drafts if draft.key == "value"} & {"cell", "sum", "difference", "lookup"}
    # Bravo and Carol are as good as equal: neither is the highest, and nobody is asked which of them is.
    assert "most" not in {draft.form for draft in drafts}
    assert {draft.answer for draft in drafts if draft.form == "least"} == {"Alpha"}
    two = [draft for draft in drafts if draft.form in ("more_of_two", "less_of_two", "is_more")]
    assert two
    assert all({draft.slots["first"], draft.slots["second"]} != {"Bravo", "Carol"} for draft in two)


# Wordings in use


def texts_of(form: Form, slots: Mapping[str, str], own: Choices, names: Choices, name_slot: str) -> set[str]:
    """Every text, its ending and its capitals aside, that training may ask something in."""
    called = [name.format_map(slots) for name in names.trained] or [""]
    texts = {
        sentence.format_map({**slots, name_slot: name})
        for sentence in form.sentences.trained + own.trained
        for name in called
    }
    return {with_articles(text) for text in texts}


def with_articles(text: str) -> str:
    return re.sub(r"\ba (?=[\"]?[aeio])", "an ", text.casefold()).removesuffix("?")


ENDINGS = Choices(
    tuple(text for own in BOOK.endings.values() for text in own.trained),
    tuple(text for own in BOOK.endings.values() for text in own.heldout),
)


def without_ending(text: str, endings) -> str:
    for ending in endings:
        if text.endswith(f" {ending}"):
            return text.removesuffix(f" {ending}")
    return text


@pytest.fixture
def worded(monkeypatch) -> list[tuple[str, set[str], Asked]]:
    """What is put into words during a test: its split, the texts of training for it, and how it was asked."""
    seen = []

    def word(rng, form, slots, wording, own, names, name_slot):
        asked = wordings.word(rng, form, slots, wording, own, names, name_slot)
        seen.append((wording, texts_of(form, slots, own, names, name_slot), asked))
        return asked

    monkeypatch.setattr(questioning, "word", word)
    return seen


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_wordings_are_asked_in_the_held_out_split_alone(split, worded):
    for make in PAGES:
        for seed in range(SEEDS):
            ask(make(), random.Random(seed), split, 8)
    parts = Counter(asked.wording for _, _, asked in worded)
    assert set(parts) == ({"trained", "heldout"} if split == "heldout" else {"trained"})
    for _, texts, asked in worded:
        text = without_ending(asked.text, ENDINGS.trained)
        if asked.wording == "trained":
            assert with_articles(text) in texts, asked
        else:
            assert with_articles(without_ending(text, ENDINGS.heldout)) not in texts, asked


def test_an_ending_never_changes_the_answer_and_prompts_are_mostly_the_published_one():
    prompts, ended = Counter(), 0
    answers: dict[str, set[str]] = {}
    for seed in range(200):
        for question in ask(receipt(), random.Random(seed), "train", 8):
            prompts[question.prompt] += 1
            text = without_ending(question.text, ENDINGS.trained)
            ended += text != question.text
            if not question.follows:
                answers.setdefault(text, set()).add(question.answer)
    assert all(len(found) == 1 for found in answers.values())
    assert 0.08 < ended / prompts.total() < 0.3
    assert prompts["<img></img> {question} Answer: "] > prompts.total() / 2
    assert len(prompts) >= 5


def test_a_thing_is_not_called_what_another_thing_of_the_page_is_called():
    words = set_lines([["From Cy"], ["By Di"], ["Name Ada"], ["Passenger Bo"]])
    fields = tuple(
        Field(key, value, box_of(words, value), HEIGHT, label)
        for key, value, label in (
            ("sender", "Cy", "From"), ("author", "Di", "By"), ("customer", "Ada", "Name"),
            ("passenger", "Bo", "Passenger"),
        )
    )  # fmt: skip
    page = Page("form", "hand", receipt().image, words, fields)
    sheet = Sheet(page, Writer(random.Random(0), held_out=False))
    sender, author = sheet.thing("sender"), sheet.thing("author")
    assert "writer" in BOOK.things["sender"].names.trained
    assert not set(sender.names.trained) & set(author.names.trained)
    assert "Who wrote this?" not in sender.own["asked"].trained + author.own["asked"].trained
    texts = {question.text for seed in range(200) for question in ask(page, random.Random(seed), "train", 6)}
    assert "What is the sender?" in texts
    assert "What is the writer?" not in texts


# What is not there


def random_page(rng: random.Random) -> Page:
    """A page of random fields, with running text that names some things, and every other thing as absent."""
    keys = rng.sample(sorted(BOOK.things), rng.randint(1, 8))
    fields, lines = [], []
    for key in keys:
        name = rng.choice(BOOK.things[key].names.trained)
        lines.append([f"{name}: {''.join(rng.choices(string.ascii_lowercase, k=7))}"])
    for _ in range(rng.randint(0, 4)):
        named = BOOK.things[rng.choice(sorted(BOOK.things))].names
        lines.append([f"We spoke of the {rng.choice(named.trained + named.heldout)} and left."])
    words = set_lines(lines)
    for key, (line,) in zip(keys, lines, strict=False):
        label, value = line.split(": ")
        fields.append(Field(key, value, box_of(words, value), HEIGHT, label))
    absent = tuple(key for key in BOOK.things if rng.random() < 0.5)
    return Page("form", "hand", receipt().image, words, tuple(fields), absent=absent)


def is_on(page: Page, key: str) -> bool:
    """Whether a page has a thing, by keys, labels and words, looked for without the project's own code."""
    thing = BOOK.things[key]
    text = " " + " ".join(words_of(" ".join(word.text for word in page.words))) + " "
    present = {field.key for field in page.fields} | {key for table in page.tables for key in table.column_keys}
    names = (*thing.names.trained, *thing.names.heldout, key.replace("_", " "))
    labels = {" ".join(words_of(field.label)) for field in page.fields}
    return (
        key in present
        or any(f" {' '.join(words_of(name))} " in text for name in names)
        or any(" ".join(words_of(name)) in labels for name in names)
        or any(other in thing.near or key in BOOK.things[other].near for other in present if other in BOOK.things)
    )


def test_unanswerable_is_never_what_a_page_has_on_a_thousand_pages():
    asked = 0
    for seed in range(1000):
        rng = random.Random(seed)
        page = random_page(rng)
        for question in ask(page, rng, rng.choice(list(SPLITS)), 8):
            if question.answer == "unanswerable":
                asked += 1
                assert not is_on(page, question.key), question
            elif question.kind == "field" and question.key:
                assert question.answer in {field.value for field in page.fields if field.key == question.key}
    assert asked > 300


@pytest.mark.parametrize("make", [receipt, timetable, letter, chart])
def test_written_pages_are_asked_for_nothing_absent_that_they_have(make):
    page = make()
    found = {draft.key for draft in drafts_of(page) if draft.kind == "unanswerable" and draft.form == "field"}
    assert not {key for key in found if is_on(page, key)}
    # The receipt has a subtotal although it says that it has none; the letter's text speaks of totals and dates.
    assert not found & {"subtotal", "cash"}
    if make is letter:
        assert not found & {"total", "date", "sender"}
        assert "phone" in found


def test_a_row_that_is_asked_for_in_vain_is_not_in_the_table():
    found = [draft for draft in drafts_of(receipt()) if draft.kind == "unanswerable" and "row" in draft.slots]
    assert found
    text = " ".join(word.text for word in receipt().words).casefold()
    assert not [draft for draft in found if draft.slots["row"].casefold() in text]


def test_a_natural_part_of_questions_is_unanswerable():
    for make, low, high in ((receipt, 0.05, 0.11), (timetable, 0.05, 0.11), (scene, 0.25, 0.5)):
        questions = [one for seed in range(400) for one in ask(make(), random.Random(seed), "train", 8)]
        part = sum(one.answer == "unanswerable" for one in questions) / len(questions)
        assert low < part < high, make.__name__


def test_yes_and_no_are_as_frequent():
    for make in (receipt, letter):
        answers = Counter(
            question.answer
            for seed in range(200)
            for question in ask(make(), random.Random(seed), "train", 8)
            if question.kind == "yesno"
        )
        assert set(answers) == {"yes", "no"}
        assert 0.6 < answers["yes"] / answers["no"] < 1.7


# Turns, numbers, tokens


def test_a_question_that_follows_stands_behind_one_and_a_third_turn_asks_as_the_second():
    seen = 0
    for seed in range(400):
        questions = ask(receipt(), random.Random(seed), "train", 8)
        assert len(questions) <= 8
        assert not questions[0].follows
        for first, second, third in zip(questions, questions[1:], questions[2:], strict=False):
            if second.follows and third.follows:
                seen += 1
                assert not first.follows
                assert second.kind == third.kind != "box"
    assert seen > 20


@pytest.mark.parametrize(
    ("numbers", "texts", "values", "total", "difference"),
    [
        (NumberFormat("€", False, True, ",", "."), ("999,50 €", "0,50 €"), (999.5, 0.5), "1.000,00 €", "999,00 €"),
        (NumberFormat("$"), ("$1,204.10", "$3.40"), (1204.1, 3.4), "$1,207.50", "$1,200.70"),
        (NumberFormat("CHF", True, True, ".", "'"), ("CHF 1'250.00", "CHF 2'750.05"), (1250.0, 2750.05),
         "CHF 4'000.05", "CHF 1'500.05"),
        (NumberFormat("kr", False, True, ",", ""), ("1200,00 kr", "0,10 kr"), (1200.0, 0.1),
         "1200,10 kr", "1199,90 kr"),
        (NumberFormat(decimals=0), ("17", "4"), (17.0, 4.0), "21", "13"),
        (NumberFormat(), ("45 %", "5 %"), (45.0, 5.0), "50 %", "40 %"),
        (NumberFormat("$"), ("12.5", "0.75"), (12.5, 0.75), None, None),
        (NumberFormat("$"), ("$12.50", "0.75"), (12.5, 0.75), None, None),
        (NumberFormat("$"), ("twelve", "two"), (12.0, 2.0), None, None),
    ],
)  # fmt: skip
def test_sums_are_printed_as_their_parts_are(numbers, texts, values, total, difference):
    words = set_lines([["Alder", texts[0]], ["Birch", texts[1]]])
    rows = tuple(
        (Cell(name, box_of(words, name), HEIGHT), Cell(text, box_of(words, text), HEIGHT, value))
        for name, text, value in zip(("Alder", "Birch"), texts, values, strict=True)
    )
    table = Table("item", ("Item", "Price"), ("", "price"), rows, shown=False)
    page = Page("receipt", "hand", receipt().image, words, tables=(table,), numbers=numbers)
    answers = {draft.form: draft.answer for draft in drafts_of(page, seeds=5)}
    assert (answers.get("sum"), answers.get("difference")) == (total, difference)


def test_the_same_random_numbers_ask_the_same():
    for make in PAGES:
        assert ask(make(), random.Random(7), "train", 6) == ask(make(), random.Random(7), "train", 6)
        assert ask(make(), random.Random(7), "train", 6) != ask(make(), random.Random(8), "train", 6)


@pytest.fixture(scope="module")
def tokenizer() -> QwenTokenizer:
    return QwenTokenizer.from_pretrained("models/small")


def test_answers_go_through_the_small_models_tokens_and_back(tokenizer):
    texts = {one.answer for make in PAGES for seed in range(20) for one in ask(make(), random.Random(seed), "train", 8)}
    for text in texts:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_page_of_no_facts_is_asked_nothing_and_a_year_is_that_of_the_date():
    blank = Page("noise", "hand", receipt().image.resize(SIZE))
    assert [one for one in ask(blank, random.Random(0), "train", 6) if one.answer != "unanswerable"] == []
    words = set_lines([["Date 3 May 2024"]])
    field = Field("date", "3 May 2024", box_of(words, "3 May 2024"), HEIGHT, "Date", date=date(2024, 5, 3).isoformat())
    page = Page("letter", "hand", receipt().image, words, (field,))
    assert {draft.answer for draft in drafts_of(page, 3) if draft.form == "year"} == {"2024"}
