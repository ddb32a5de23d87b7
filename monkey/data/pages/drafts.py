"""What can be asked about a page, and the right answers: facts made into drafts of questions, not yet in words.

A draft names a form of wordings.toml and what fills it. Each function here makes the drafts of one sort of fact. What
would be ambiguous on its page (two fields of one key, rows of one name, an extreme that two rows share) is not asked.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise

from monkey.boxes import marked
from monkey.data.pages.amounts import Frame, common_frame, marks_thousands, minutes_of, print_amount, unit_of
from monkey.data.pages.facts import Box, Cell, Field, Page, Table, Word, around
from monkey.data.pages.spelling import Writer
from monkey.data.pages.wordings import NOTHING, Choices, Named, read_wordings

UNANSWERABLE = "unanswerable"
YES, NO = "yes", "no"

LONGEST_READING = 8
"""Lines that are read in one answer."""
LONGEST_ANSWER = 240
"""Characters of an answer."""
LONGEST_ASKED = 60
"""Characters of a text that a question repeats."""
LONGEST_LABEL = 30
LEAST_WORD = 3
"""Letters of a word that is asked for by itself."""
LEAST_DIFFERENCE = 0.1
"""Parts of the largest by which values differ at least that are compared without being printed."""

ADDED = frozenset(("price", "amount", "quantity", "value", "weight", "share", "named"))
"""Keys of columns whose numbers may be added and subtracted."""
COMPARED = ADDED | {"unit_price", "age", "tax_rate"}
"""Keys of columns whose numbers may be compared; times are where the column has wordings for it."""

CHARTS = frozenset(("bars", "lines", "pie", "scatter"))
"""Kinds of page whose tables are drawn as charts."""

NAMED_KINDS = frozenset(("receipt", "invoice", "letter", "ticket", "menu", "slide"))
"""Kinds of page by which questions call it."""

OFTEN_ASKED = (
    *("total", "date", "phone", "seller", "invoice_number", "due_date", "tax", "customer", "price", "address"),
    *("email", "time", "name", "amount", "order_number", "city", "product", "weight"),
)
"""What is asked of an image without text."""


@dataclass(frozen=True)
class Draft:
    """A question that has its answer and not yet its words.

    Attributes:
        form: of wordings.toml.
        answer: as it has to be given.
        height: pixels of the capitals that have to be read for it; 0 where none are.
        slots: what fills its sentences.
        key: of the thing or the column that is asked for.
        own: questions that the thing has of its own.
        names, name_slot: what the thing may be called, and the slot for it.
        kind: another than its form's.
        behind: drafts of which one may follow in a next turn.
    """

    form: str
    answer: str
    height: float = 0.0
    slots: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    own: Choices = NOTHING
    names: Choices = NOTHING
    name_slot: str = "name"
    kind: str = ""
    behind: tuple[Draft, ...] = ()


@dataclass(frozen=True)
class Line:
    """The words of a printed line."""

    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)

    @property
    def height(self) -> float:
        return min(word.height for word in self.words)

    @property
    def box(self) -> Box:
        return around(word.box for word in self.words)


class Sheet:
    """A page with what has to be looked up in it more than once.

    Attributes:
        fields: those whose key no other field has.
        lines: printed lines in reading order.
        spoken: the page's words without marks and capitals, between blanks.
        keys: of all fields and of the columns of all tables.
        writer: makes words of the page's split, for what is asked in vain.
    """

    def __init__(self, page: Page, writer: Writer):
        self.page, self.writer, self.book = page, writer, read_wordings()
        times = Counter(own.key for own in page.fields)
        self.fields = tuple(own for own in page.fields if times[own.key] == 1 and own.value)
        numbered: dict[int, list[Word]] = {}
        for word in page.words:
            numbered.setdefault(word.line, []).append(word)
        self.lines = tuple(Line(tuple(words)) for words in numbered.values())
        self.spoken = f" {' '.join(_spoken(word.text) for word in page.words)} "
        self.keys = {own.key for own in page.fields} | {key for table in page.tables for key in table.column_keys}

    def thing(self, key: str) -> Named:
        """Return how a thing may be asked for: without what would ask for another thing of the page as well."""
        thing = self.book.things[key]
        others = [self.book.things[other] for other in self.keys - {key} if other in self.book.things]
        labels = {_spoken(own.label) for own in self.page.fields if own.key != key}
        taken = {text for other in others for text in (*other.names.trained, *other.names.heldout)} | labels
        asked = {text for other in others for text in (*_own(other).trained, *_own(other).heldout)}
        own = _own(thing).without(asked).that(self._suits)
        return Named(thing.names.without(taken), {"asked": own}, thing.near)

    def _suits(self, question: str) -> bool:
        """Whether a question calls the page no other kind of document than it is."""
        kinds = NAMED_KINDS & set(_spoken(question).split())
        return not kinds or not self.page.words or self.page.kind in kinds

    def states(self, key: str) -> bool:
        """Whether the page may answer a question after a thing: it has it, or something near it, or its name."""
        thing = self.book.things[key]
        near = {other for other in self.keys if other in self.book.things and key in self.book.things[other].near}
        if key in self.keys or near or thing.near & self.keys:
            return True
        names = {*thing.names.trained, *thing.names.heldout, key.replace("_", " ")}
        return any(f" {_spoken(name)} " in self.spoken for name in names)

    def times(self, text: str) -> int:
        """Return how often the words of a text stand on the page, one behind the other."""
        return len(re.findall(rf"(?<= ){re.escape(_spoken(text))}(?= )", self.spoken))


@cache
def _spoken(text: str) -> str:
    """Return the words of a text without capitals and marks."""
    return " ".join(re.sub(r"[^\w]+", " ", text.casefold()).split())


def _own(thing: Named) -> Choices:
    return thing.own.get("asked", NOTHING)


# Fields


def draft_fields(sheet: Sheet, rng: random.Random) -> Iterator[Draft]:
    """Draft what the page states once: values by name and by label, their places, colours and years, and yes or no."""
    by_name = [_by_name(sheet, own, "date" if own.date else "field") for own in sheet.fields]
    labels = Counter(_spoken(own.label) for own in sheet.page.fields)
    for own, draft in zip(sheet.fields, by_name, strict=True):
        followers = [replace(other, form="and_field", own=other.own) for other in by_name if other.key != own.key]
        yield replace(draft, behind=(*_two_of(followers, rng), _where(sheet, own.box)))
        yield replace(draft, form="field_box", answer=_box(sheet, own.box), own=NOTHING)
        label = own.label.rstrip(" :.")
        if 0 < len(label) <= LONGEST_LABEL and labels[_spoken(label)] == sheet.times(label) == 1:
            yield Draft("labelled", own.value, own.height, {"label": label}, own.key)
        year = own.date[:4]
        if year and own.value.count(year) == 1:
            yield replace(draft, form="year", answer=year, own=NOTHING)
        if own.colour:
            yield replace(draft, form="coloured", answer=own.colour, own=NOTHING, height=0.0)
        yield replace(draft, form="has_field", answer=YES, own=NOTHING)
        if len(own.value) <= LONGEST_ASKED:
            yield from _confirmed(sheet, draft, rng)
    for key in sheet.page.absent:
        if not sheet.states(key):
            thing = sheet.thing(key)
            yield Draft("has_field", NO, 0.0, {}, key, names=thing.names)


def _by_name(sheet: Sheet, own: Field, form: str) -> Draft:
    thing = sheet.thing(own.key)
    return Draft(form, own.value, own.height, {}, own.key, _own(thing), thing.names)


def _where(sheet: Sheet, box: Box) -> Draft:
    return Draft("and_where", _box(sheet, box))


def _two_of(drafts: Sequence[Draft], rng: random.Random) -> list[Draft]:
    return rng.sample(drafts, min(2, len(drafts)))


def _confirmed(sheet: Sheet, draft: Draft, rng: random.Random) -> Iterator[Draft]:
    """Ask whether a value is what it is, and whether it is another: one digit off, or that of another field."""
    asked = replace(draft, form="is_value", own=NOTHING)
    yield replace(asked, answer=YES, slots={"value": draft.answer})
    digits = [place for place, character in enumerate(draft.answer) if character in "0123456789"]
    if digits:
        place = rng.choice(digits)
        other = (int(draft.answer[place]) + rng.choice((1, 9))) % 10
        value = f"{draft.answer[:place]}{other}{draft.answer[place + 1 :]}"
    else:
        others = [own.value for own in sheet.fields if own.key != draft.key and not re.search(r"\d", own.value)]
        value = rng.choice(others) if others else ""
    if value and len(value) <= LONGEST_ASKED and _spoken(value) != _spoken(draft.answer):
        yield replace(asked, answer=NO, slots={"value": value})


def draft_pairs(sheet: Sheet, rng: random.Random) -> Iterator[Draft]:
    """Draft questions after several fields at once, answered as JSON."""
    labels = Counter(_spoken(own.label) for own in sheet.page.fields)
    labelled = [own for own in sheet.page.fields if own.label.strip(" :")]
    if len(labelled) >= 2 and all(labels[_spoken(own.label)] == 1 for own in labelled):
        yield from _pairs("pairs_all", {own.label.rstrip(" :"): own.value for own in labelled}, labelled)
    if len(sheet.fields) < 2:
        return
    chosen = rng.sample(sheet.fields, rng.randint(2, min(4, len(sheet.fields))))
    pairs: dict[str, str | None] = {own.key: own.value for own in chosen}
    absent = [key for key in sheet.page.absent if not sheet.states(key)]
    if absent and rng.random() < 0.2:
        pairs[rng.choice(absent)] = None
    # Keys that are words of every sentence are put in quotes, and others now and then.
    is_quoted = rng.random() < 0.5 or {"from", "to"} & pairs.keys()
    *first, last = (f'"{key}"' if is_quoted else key for key in pairs)
    yield from _pairs("pairs_asked", pairs, chosen, {"keys": f"{', '.join(first)} and {last}"})


def _pairs(
    form: str, pairs: Mapping[str, str | None], fields: Sequence[Field], slots: Mapping[str, str] | None = None
) -> Iterator[Draft]:
    answer = json.dumps(pairs, ensure_ascii=False)
    if len(answer) <= LONGEST_ANSWER:
        yield Draft(form, answer, min(own.height for own in fields), slots or {})


# Tables


@dataclass(frozen=True)
class Column:
    """A column that can be asked for: its key, what it is called, its cells and those that name their rows."""

    key: str
    named: Named
    heading: str
    cells: tuple[Cell, ...]
    heads: tuple[Cell, ...]

    @property
    def rows(self) -> tuple[str, ...]:
        return tuple(head.text for head in self.heads)

    def own(self, form: str) -> Choices:
        return self.named.own.get(form, NOTHING)

    def draft(self, form: str, answer: str, own: str = "", height: float = 0.0, **slots: str) -> Draft:
        """Return a draft about this column."""
        slots["heading"] = self.heading
        return Draft(form, answer, height, slots, self.key, self.own(own), self.named.names, "column")


def draft_tables(sheet: Sheet, rng: random.Random) -> Iterator[Draft]:
    """Draft what the page's tables answer: cells, rows, counts, comparisons, sums."""
    everywhere = Counter(_spoken(row[0].text) for table in sheet.page.tables for row in table.rows)
    keys = Counter(table.key for table in sheet.page.tables)
    for table in sheet.page.tables:
        names = tuple(row[0].text for row in table.rows)
        one, many = sheet.book.rows[table.key or "row"]
        columns = [_column(sheet, table, place) for place in range(1, len(table.columns))]
        asked = {place for place, name in enumerate(names) if _spoken(name) and everywhere[_spoken(name)] == 1}
        asked = {place for place in asked if len(names[place]) <= LONGEST_ASKED}
        for column in columns:
            yield from _draft_cells(sheet, column, columns, asked, one, many, rng)
        yield from _draft_colours(sheet, table)
        if keys[table.key] > 1 or len(names) < 2:
            continue
        rows = {"one": one, "many": many}
        yield Draft("count_rows", str(len(names)), 0.0, rows, table.key)
        if sheet.page.kind == "lines" and len(columns) > 1:
            one_line, lines = sheet.book.rows["line"]
            yield Draft("count_rows", str(len(columns)), 0.0, {"one": one_line, "many": lines}, "line")
        if table.shown and all(table.columns) and sheet.page.kind not in CHARTS:
            yield Draft("count_columns", str(len(table.columns)))
        if asked:
            place = rng.choice(sorted(asked))
            yield Draft("has_row", YES, table.rows[place][0].height, {**rows, "value": names[place]}, table.key)
        if strange := invent_name(sheet, names, rng):
            yield Draft("has_row", NO, 0.0, {**rows, "value": strange}, table.key)
        # How many points a group of a scatter plot has is counted by nobody.
        if len(asked) == len(names) and table.key != "series":
            for column in columns:
                yield from _draft_comparisons(sheet, column, rows, rng)


def _draft_colours(sheet: Sheet, table: Table) -> Iterator[Draft]:
    """Draft which colour a bar, slice, line or group of points is drawn in, and which one has a colour."""
    drawn = sheet.book.drawn.get(sheet.page.kind, "")
    by_row = {row[0].text: row[0].colour for row in table.rows}
    by_column = dict(zip(table.columns, table.column_colours, strict=False))
    for names in (by_row, by_column):
        times = Counter(names.values())
        for name, colour in names.items():
            if drawn and colour and name and len(name) <= LONGEST_ASKED:
                yield Draft("colour_of_shape", colour, slots={"shape": f"{drawn} of {name}"})
                if times[colour] == 1:
                    yield Draft("name_of_colour", name, slots={"colour": colour, "drawn": drawn})


def _column(sheet: Sheet, table: Table, place: int) -> Column:
    """Return a column with the names that no other column of its table has."""
    key, heading = table.column_keys[place], table.columns[place].strip(" :")
    if not key or table.column_keys.count(key) > 1:
        key = "named" if heading else "value"
    named = sheet.book.columns[key]
    others = {other for spot, other in enumerate(table.column_keys) if spot != place and other}
    taken = {name for other in others for name in _all_names(sheet.book.columns[other])}
    taken |= {_spoken(other) for spot, other in enumerate(table.columns) if spot != place}
    names = named.names.without(taken)
    if heading and table.shown and key != "named":
        names = Choices((*names.trained, '"{heading}"'), names.heldout)
    cells = tuple(row[place] for row in table.rows)
    return Column(key, replace(named, names=names), heading, cells, tuple(row[0] for row in table.rows))


def _all_names(named: Named) -> tuple[str, ...]:
    return named.names.trained + named.names.heldout


def _draft_cells(
    sheet: Sheet,
    column: Column,
    columns: Sequence[Column],
    asked: set[int],
    one: str,
    many: str,
    rng: random.Random,
) -> Iterator[Draft]:
    """Draft questions after single cells: by their row, after their row, and where they are."""
    texts = Counter(_spoken(cell.text) for cell in column.cells)
    by_row = {
        place: column.draft("cell", cell.text, "asked", cell.height, row=column.rows[place])
        for place, cell in enumerate(column.cells)
        if place in asked and cell.text
    }
    for place, draft in by_row.items():
        cell, row = column.cells[place], column.rows[place]
        others = [replace(other, form="and_row", own=NOTHING) for spot, other in by_row.items() if spot != place]
        beside = [
            other.draft("and_column", other.cells[place].text, height=other.cells[place].height, row=row)
            for other in columns
            if other is not column and other.cells[place].text
        ]
        place_of = [] if cell.box is None else [_where(sheet, cell.box)]
        yield replace(draft, behind=(*_two_of(others, rng), *_two_of(beside, rng), *place_of))
        if cell.box is not None:
            yield column.draft("cell_box", _box(sheet, cell.box), height=cell.height, row=row)
        if texts[_spoken(cell.text)] == 1 and _spoken(cell.text) and len(cell.text) <= LONGEST_ASKED:
            height = column.heads[place].height
            yield column.draft("lookup", row, height=height, value=cell.text, one=one, many=many)


def _draft_comparisons(sheet: Sheet, column: Column, rows: Mapping[str, str], rng: random.Random) -> Iterator[Draft]:
    """Draft what a whole column of numbers or times answers."""
    values = _comparable(sheet, column)
    if values is None or len(values) < 2:
        return
    are_times = column.key not in COMPARED
    forms = TIME_FORMS if are_times else NUMBER_FORMS
    ordered = sorted(range(len(values)), key=values.__getitem__)
    room = 0.0 if all(cell.text for cell in column.cells) else LEAST_DIFFERENCE * abs(values[ordered[-1]])
    printed = common_frame(column.cells, sheet.page.numbers)
    ends = {"most": (ordered[-1], ordered[-2]), "least": (ordered[0], ordered[1])}
    winners = {own: best for own, (best, following) in ends.items() if abs(values[best] - values[following]) > room}
    found = {
        own: column.draft(forms[own], column.rows[best], own, column.heads[best].height, **rows)
        for own, best in winners.items()
    }
    for own, draft in found.items():
        best = column.cells[winners[own]]
        behind = [replace(found[other], form=forms[f"and_{other}"]) for other in found if other != own]
        if printed is not None:
            behind.append(column.draft("and_winner", best.text, height=best.height))
        yield replace(draft, behind=tuple(behind))
    first, second = rng.sample(range(len(values)), 2)
    if abs(values[first] - values[second]) > room:
        two = {**rows, "first": column.rows[first], "second": column.rows[second]}
        low, high = sorted((first, second), key=values.__getitem__)
        for own, place in (("more", high), ("less", low)):
            yield column.draft(forms[own], column.rows[place], own, column.heads[place].height, **two)
        if not are_times:
            yield column.draft("is_more", YES if first == high else NO, **two)
    if printed is not None and column.key in ADDED:
        yield from _draft_sums(sheet, column, printed, rows, rng)


NUMBER_FORMS = {
    "most": "most",
    "least": "least",
    "more": "more_of_two",
    "less": "less_of_two",
    "and_most": "and_highest",
    "and_least": "and_lowest",
}
TIME_FORMS = {
    "most": "latest",
    "least": "earliest",
    "more": "later_of_two",
    "less": "earlier_of_two",
    "and_most": "and_latest",
    "and_least": "and_earliest",
}
"""Forms of comparisons, by what a column calls its own questions of the sort."""


def _comparable(sheet: Sheet, column: Column) -> list[float] | None:
    """Return what the rows of a column are compared by; None where they are not."""
    if column.key in COMPARED:
        values = [cell.number for cell in column.cells]
        units = {unit_of(cell, sheet.page.numbers) for cell in column.cells if cell.text}
        if None in units or len(units) > 1:
            return None
    else:
        values = [minutes_of(cell.text) for cell in column.cells] if column.own("most").trained else []
    return None if None in values else [value for value in values if value is not None]


def _draft_sums(
    sheet: Sheet, column: Column, printed: Frame, rows: Mapping[str, str], rng: random.Random
) -> Iterator[Draft]:
    """Draft the sum and the difference of two rows, and how many rows are above a value."""
    numbers = [cell.number or 0.0 for cell in column.cells]
    is_grouped = marks_thousands(column.cells, sheet.page.numbers)

    def printed_as(value: float) -> str:
        return print_amount(value, printed, sheet.page.numbers, is_grouped)

    low, high = sorted(rng.sample(range(len(numbers)), 2), key=numbers.__getitem__)
    height = min(column.cells[low].height, column.cells[high].height)
    two = {**rows, "first": column.rows[high], "second": column.rows[low]}
    if numbers[low] < numbers[high]:
        difference = printed_as(numbers[high] - numbers[low])
        yield column.draft("difference", difference, "difference", height, **two)
    if rng.random() < 0.5:
        two |= {"first": two["second"], "second": two["first"]}
    yield column.draft("sum", printed_as(numbers[low] + numbers[high]), "sum", height, **two)
    between = [_round_between(*pair) for pair in pairwise(sorted(set(numbers)))]
    bounds = [bound for bound in between if bound is not None]
    if bounds:
        bound = rng.choice(bounds)
        count = sum(number > bound for number in numbers)
        yield column.draft("count_above", str(count), value=printed_as(bound), **rows)


def _round_between(low: float, high: float) -> float | None:
    """Return the roundest number between two, none of them itself; None where they have two digits in common."""
    for step in (1000, 500, 100, 50, 10, 5, 1):
        bound = float(int(high // step) * step)
        if low < bound < high:
            return bound
    return None


# Running text


def draft_text(sheet: Sheet, rng: random.Random) -> Iterator[Draft]:
    """Draft what is copied: lines and the words in them, the whole text or a stretch of it."""
    lines = sheet.lines
    yield from _draft_words(sheet, rng)
    if not lines or sheet.page.kind in CHARTS:  # whose texts have no order
        return
    texts = [line.text for line in lines]
    short = [0 < len(text) <= LONGEST_ANSWER for text in texts]
    once = Counter(map(_spoken, texts))
    if len(lines) > 1:
        for form, place in (("first_line", 0), ("last_line", -1)):
            if short[place]:
                yield Draft(form, texts[place], lines[place].height)
    known = [
        place
        for place in range(len(lines) - 1)
        if once[_spoken(texts[place])] == 1 and len(texts[place]) <= LONGEST_ASKED and _spoken(texts[place])
    ]
    for place in rng.sample(known, min(2, len(known))):
        if short[place + 1]:
            yield Draft("line_after", texts[place + 1], lines[place + 1].height, {"line": texts[place]})
    alone = [(line, spot) for line in lines for spot, one in enumerate(line.words) if _can_be_named(sheet, one)]
    for line, spot in rng.sample(alone, min(3, len(alone))):
        word = _bare(line.words[spot].text)
        if len(line.words) > 1 and len(line.text) <= LONGEST_ANSWER:
            yield Draft("line_with", line.text, line.height, {"word": word})
        if spot + 1 < len(line.words) and _spoken(line.words[spot + 1].text):
            follower = line.words[spot + 1]
            yield Draft("word_after", _bare(follower.text), follower.height, {"word": word})
    yield from _draft_readings(lines, known, rng)


def _draft_words(sheet: Sheet, rng: random.Random) -> Iterator[Draft]:
    """Draft whether a word stands on the page, of one that does and one that does not."""
    known = [word for word in sheet.page.words if _can_be_named(sheet, word)]
    if known:
        word = rng.choice(known)
        yield Draft("has_word", YES, word.height, {"word": _bare(word.text)})
    if strange := invent_name(sheet, [_bare(word.text) for word in known], rng):
        yield Draft("has_word", NO, 0.0, {"word": strange})


def _can_be_named(sheet: Sheet, word: Word) -> bool:
    bare = _bare(word.text)
    return len(bare) >= LEAST_WORD and bare.isalnum() and not bare.isdecimal() and sheet.times(word.text) == 1


def _bare(text: str) -> str:
    """Return a word without the marks around it."""
    return text.strip(".,;:!?\"'()[]“”„‘’»«")


def _draft_readings(lines: Sequence[Line], known: Sequence[int], rng: random.Random) -> Iterator[Draft]:
    texts = [line.text for line in lines]
    if len(lines) <= LONGEST_READING and len("\n".join(texts)) <= LONGEST_ANSWER:
        yield Draft("read_all", "\n".join(texts), min(line.height for line in lines))
        return
    starts = [("read_first", 0, {}), *(("read_after", place + 1, {"line": texts[place]}) for place in known)]
    for form, start, slots in [starts[0], *rng.sample(starts[1:], min(1, len(starts) - 1))]:
        most = 0
        while (
            most < min(LONGEST_READING, len(lines) - start)
            and len("\n".join(texts[start : start + most + 1])) <= LONGEST_ANSWER
        ):
            most += 1
        if most >= 2:
            count = rng.randint(2, most)
            part = lines[start : start + count]
            answer = "\n".join(line.text for line in part)
            yield Draft(form, answer, min(line.height for line in part), {**slots, "count": str(count)})


def draft_places(sheet: Sheet, rng: random.Random) -> Iterator[Draft]:
    """Draft where a text is, and which text is in a place: words, lines, values."""
    spots = [(_bare(word.text), word.box, word.height) for word in sheet.page.words if _can_be_named(sheet, word)]
    spots = rng.sample(spots, min(2, len(spots)))
    lines = [line for line in sheet.lines if len(line.words) > 1 and len(line.text) <= LONGEST_ASKED]
    lines = [line for line in lines if sheet.times(line.text) == 1]
    spots += [(line.text, line.box, line.height) for line in rng.sample(lines, min(1, len(lines)))]
    for text, box, height in spots:
        if '"' not in text and "<" not in text:
            yield Draft("text_box", _box(sheet, box), height, {"text": text})
    inside = [(word.text, word.box, word.height) for word in sheet.page.words if _spoken(word.text)]
    inside = rng.sample(inside, min(1, len(inside)))
    inside += [(own.value, own.box, own.height) for own in rng.sample(sheet.fields, min(1, len(sheet.fields)))]
    inside += [(line.text, line.box, line.height) for line in rng.sample(lines, min(1, len(lines)))]
    for text, box, height in inside:
        if len(text) <= LONGEST_ANSWER:
            yield Draft("text_in_box", text, height, {"box": _box(sheet, box)})


def _box(sheet: Sheet, box: Box) -> str:
    return marked(None, box, sheet.page.image.size)


def invent_name(sheet: Sheet, names: Sequence[str], rng: random.Random) -> str:
    """Return a name like these that is not on the page: another one of its split, or one of theirs a little changed."""
    words = [word for name in names for word in name.split() if word.isalpha() and len(word) >= 4]
    while words:
        word = rng.choice(words)
        made = sheet.writer.word()
        if rng.random() < 0.5:
            made = word[: (len(word) + 1) // 2] + made[len(made) // 2 :]
        made = made.upper() if word.isupper() else made.capitalize() if word[0].isupper() else made
        if _spoken(made) not in sheet.spoken:
            return made
    return ""


# Images as a whole


def draft_image(sheet: Sheet, rng: random.Random) -> Iterator[Draft]:
    """Draft what is asked of the image as a whole: what it is, and the shapes of a scene."""
    if sheet.page.description:
        yield Draft("describe", sheet.page.description)
    if sheet.page.kind in sheet.book.documents:
        yield Draft("document_kind", sheet.book.documents[sheet.page.kind])
    shapes = sheet.page.shapes
    if not shapes:
        return
    by_name, by_colour = Counter(one.name for one in shapes), Counter(one.colour for one in shapes)
    both = Counter((one.colour, one.name) for one in shapes)
    yield Draft("count_shapes", str(len(shapes)))
    for one in shapes:
        slots = {"shape": one.name, "colour": one.colour}
        if by_name[one.name] == 1:
            yield Draft("colour_of_shape", one.colour, slots=slots)
        if by_colour[one.colour] == 1:
            yield Draft("shape_of_colour", one.name, slots=slots)
        if both[one.colour, one.name] == 1:
            yield Draft("shape_box", _box(sheet, one.box), slots=slots)
    for name, count in by_name.items():
        yield Draft("count_shape", str(count), slots={"shapes": _plural(name)})
    for colour in (rng.choice(sorted(by_colour)), rng.choice(COLOURS)):
        yield Draft("has_shape", YES if by_colour[colour] else NO, slots={"colour": colour})


COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "brown", "white", "grey", "pink")
"""Colours that are asked for where none is there."""


def _plural(name: str) -> str:
    return name + ("es" if name.endswith(("s", "x", "ch", "sh", "z")) else "s")


# What is not there


def draft_unanswerable(sheet: Sheet, rng: random.Random) -> Iterator[Draft]:
    """Draft questions that the page does not answer: things it has not, rows that are not there, text where is none."""
    keys = sheet.page.absent or (() if sheet.page.words else OFTEN_ASKED)
    for key in keys:
        if not sheet.states(key):
            thing = sheet.thing(key)
            yield Draft("field", UNANSWERABLE, 0.0, {}, key, _own(thing), thing.names, kind=UNANSWERABLE)
    if not sheet.page.words:
        yield Draft("no_text", UNANSWERABLE)
    for table in sheet.page.tables:
        names = [row[0].text for row in table.rows]
        strange = invent_name(sheet, names, rng)
        if strange and len(table.columns) > 1:
            column = _column(sheet, table, rng.randrange(1, len(table.columns)))
            if any(cell.text for cell in column.cells):
                draft = column.draft("cell", UNANSWERABLE, "asked", row=strange)
                yield replace(draft, kind=UNANSWERABLE)
