"""Sheets in TeX: letters, invoices, tables, charts by pgfplots, slides, menus, cards, labels and more."""

from __future__ import annotations

import json
import random

from scripts.wild.engines import tex_page
from scripts.wild.html_screens import is_valley
from scripts.wild.html_shops import CHEAPEST, DEAREST, TO_PAY, WHERE_BOUGHT
from scripts.wild.names import FIRMS, PEOPLE, STREETS, TOWNS, code, names
from scripts.wild.sheet import (
    DOLLAR,
    EURO,
    EURO_BEHIND,
    FRANC,
    KRONA,
    POUND,
    Sheet,
    draw_amounts,
    draw_date,
    escape_tex,
    write_date,
)  # fmt: skip

SERIF = {
    "TeX Gyre Pagella": r"\usepackage{tgpagella}",
    "TeX Gyre Schola": r"\usepackage{tgschola}",
    "TeX Gyre Bonum": r"\usepackage{tgbonum}",
    "TeX Gyre Termes": r"\usepackage{tgtermes}",
    "Charter": r"\usepackage{charter}",
    "Utopia": r"\usepackage{utopia}",
}
SANS = {
    "TeX Gyre Heros": r"\usepackage{tgheros}\renewcommand{\familydefault}{\sfdefault}",
    "TeX Gyre Heros Condensed": r"\usepackage[condensed]{tgheros}\renewcommand{\familydefault}{\sfdefault}",
    "TeX Gyre Adventor": r"\usepackage{tgadventor}\renewcommand{\familydefault}{\sfdefault}",
    "TeX Gyre Cursor": r"\usepackage{tgcursor}\renewcommand{\familydefault}{\ttdefault}",
}
FACES = SERIF | SANS


def _sheet(rng: random.Random, document: str, size: tuple[int, int], font: str) -> Sheet:
    return Sheet(rng, document, "tex", size, font=font)


def _finish(sheet: Sheet, body: str, letters: float, margin: float = 30, more: str = "") -> Sheet:
    """Set the sheet's source; letters of that many pixels."""
    # The sizes of the class go with letters of ten points.
    sizes = (("large", 1.15), ("Large", 1.3), ("LARGE", 1.5))
    more += "".join(
        rf"\renewcommand{{\{name}}}{{\fontsize{{{letters * by:.1f}px}}{{{letters * by * 1.25:.1f}px}}\selectfont}}"
        for name, by in sizes
    )
    begin = rf"\fontsize{{{letters}px}}{{{letters * 1.28:.1f}px}}\selectfont\raggedright\hyphenpenalty=10000\parskip={letters * 0.5:.0f}px "
    sheet.source = tex_page(begin + body, sheet.size, margin, FACES[sheet.font] + more)
    return sheet


def letter(rng: random.Random, style: int) -> Sheet:
    sheet = _sheet(rng, "letter", ((794, 1123), (700, 990))[style], ("TeX Gyre Termes", "Utopia")[style])
    m, e = sheet.mark, escape_tex
    writer, reader = names(rng, PEOPLE, 2)
    firm, town = rng.choice(FIRMS), rng.choice(TOWNS)
    day, until = write_date(draw_date(rng), "us_long"), write_date(draw_date(rng), "us_long")
    money = DOLLAR if style == 0 else FRANC
    amount = draw_amounts(rng, 1, *((320, 980), (20, 95))[style])[0]
    room = str(rng.randint(101, 480))
    if style == 0:
        subject = "Rent of the workshop"
        text = rf"Your rent for the workshop will rise to {m('amount', money(amount))} a month. The new rent is due from {m('until', until)}.\par We have also put in a new lock. Please fetch your key in room {m('room', room)} of the town hall."
    else:
        subject = "Invitation to a tasting"
        text = rf"We invite you to taste our new cheeses on {m('until', until)}. A seat costs {m('amount', money(amount))}, and wine is included.\par The tasting is held in room {m('room', room)}, up the stairs on the left."
    body = rf"""{{\Large\bfseries {m("firm", firm)}}}\par {e(rng.choice(STREETS))}, {m("town", town)}\par\vspace{{30px}}{m("reader", reader)}\par\hfill {m("date", day)}\par\vspace{{16px}}
      {{\bfseries {m("subject", subject)}}}\par Dear {e(reader)},\par {text}\par\vspace{{16px}}With kind regards,\par\vspace{{30px}}{m("writer", writer)}"""
    sheet.ask(
        "field", "What is the name of the sender?", ("Who signed this letter?", "Who is writing?"), writer, "writer"
    )
    sheet.ask(
        "field",
        "What is the name of the receiver?",
        ("Who is this letter addressed to?", "To whom was it sent?"),
        reader,
        "reader",
    )
    sheet.ask("date", "What is the date?", "When was this letter written?" if style else None, day, "date")
    sheet.ask("field", "What is the subject?", None, subject, "subject")
    sheet.ask(
        "field", None, ("How much will the rent be?", "What does a seat cost?")[style], money.accepted(amount), "amount"
    )
    sheet.ask(
        "field",
        None,
        ("In which room can one get the key?", "In which room is the tasting?")[style],
        [room, f"room {room}"],
        "room",
    )
    sheet.ask_absent("What is the phone number?", None, "phone")
    sheet.boxes = ["writer"] if style else ["subject", "date"]
    sheet.box_texts = ["firm"]
    sheet.scan = ({"angle": 0.8, "noise": 7, "grey": 1, "blur": 0.5, "jpeg": 58}, {})[style]
    return _finish(sheet, body, (27, 25)[style], 70)


def invoice(rng: random.Random, style: int) -> Sheet:
    sheet = _sheet(rng, "invoice", ((800, 1131), (760, 760))[style], ("TeX Gyre Heros", "TeX Gyre Pagella")[style])
    m, e = sheet.mark, escape_tex
    money = (FRANC, KRONA)[style]
    firm, buyer = rng.choice(FIRMS), rng.choice(PEOPLE)
    items = names(
        rng,
        (
            ("Window frames", "Putty", "Scaffolding", "Transport", "Disposal"),
            ("Piano lesson", "Sheet music", "Room hire", "Metronome", "Recital fee"),
        )[style],
        (4, 3)[style],
    )
    amounts = draw_amounts(rng, len(items), 60, 1900)
    total = round(sum(amounts), 2)
    number = code(rng, ("2027-####", "A-###")[style])
    day = draw_date(rng)
    form = ("dots", "iso")[style]
    due = day.replace(year=day.year + 1)
    rows = "".join(
        rf"{m(f'i{i}', item)} & {m(f'a{i}', money.number(a))} \\"
        for i, (item, a) in enumerate(zip(items, amounts, strict=True))
    )
    body = rf"""{{\LARGE\bfseries {m("seller", firm)}}}\par {e(rng.choice(STREETS))}, {e(rng.choice(TOWNS))}\par\vspace{{24px}}
      {{\Large {m("title", "Invoice " + number)}}}\par Customer: {m("buyer", buyer)}\par Date: {m("date", write_date(day, form))}\par Pay before: {m("due", write_date(due, form))}\par\vspace{{20px}}
      \renewcommand{{\arraystretch}}{{1.35}}\begin{{tabularx}}{{\textwidth}}{{Xr}}\toprule Service & Amount\\\midrule {rows}\midrule \textbf{{Total}} & \textbf{{{m("total", money(total))}}}\\\bottomrule\end{{tabularx}}\par\vspace{{24px}} Thank you for your order."""
    best, least = amounts.index(max(amounts)), amounts.index(min(amounts))
    i = rng.randrange(len(items))
    sheet.ask("field", "What is the total?", TO_PAY, money.accepted(total), "total")
    sheet.ask(
        "field", "What is the name of the customer?", ("Who has to pay?", "Whom is this bill for?"), buyer, "buyer"
    )
    sheet.ask(
        "cell",
        f"What is the amount of {items[i]}?",
        f"What was charged for {items[i]}?",
        money.accepted(amounts[i]),
        f"a{i}",
    )
    sheet.ask("comparison", "Which item costs the most?", "Which service is the dearest?", items[best], f"i{best}")
    if style:
        sheet.ask("comparison", "Which item costs the least?", None, items[least], f"i{least}")
        sheet.ask_absent("What is the tax?", "How much of this is sales tax?", "tax")
    else:
        sheet.ask("date", None, "Until when may I pay?", write_date(due, form), "due")
        sheet.ask(
            "json",
            None,
            'Return a JSON object with the keys "customer" and "date".',
            json.dumps({"customer": buyer, "date": write_date(day, form)}, ensure_ascii=False),
            "date",
        )
    sheet.boxes = ["due"] if style else ["total", "buyer"]
    sheet.box_texts = ["date"]
    return _finish(sheet, body, (27, 26)[style], 60)


def table(rng: random.Random, style: int) -> Sheet:
    sheet = _sheet(
        rng,
        "table",
        ((640, 430), (620, 470), (520, 320))[style],
        ("TeX Gyre Heros Condensed", "TeX Gyre Schola", "TeX Gyre Termes")[style],
    )
    m = sheet.mark
    title = ("Orchard harvest in kilograms", "Exam results", "Opening hours of the baths")[style]
    heads = (
        ("Apples", "Pears", "Plums", "Quinces"),
        tuple(names(rng, [name.split()[0] for name in PEOPLE], 5)),
        ("Main pool", "Sauna", "Gym"),
    )[style]
    columns = (
        ("Crop", "2024", "2025", "2026"),
        ("Student", "Latin", "Physics", "Music"),
        ("Place", "Opens", "Closes"),
    )[style]
    if style == 2:
        hours = rng.sample(range(6, 12), 3), rng.sample(range(15, 23), 3)
        cells = [
            [f"{a}:{rng.choice(('00', '15', '30'))}", f"{b}:{rng.choice(('00', '30', '45'))}"]
            for a, b in zip(*hours, strict=True)
        ]
        values = [float(a) for a in hours[0]]
    else:
        numbers = [rng.sample(range(*((210, 4900), (31, 100))[style]), 3) for _ in heads]
        cells = [[f"{number:,}" for number in row] for row in numbers]
        values = [float(row[1]) for row in numbers]
        if len(set(values)) < len(values):
            return table(rng, style)
    rows = "".join(
        rf"{m(f'h{r}', head)} & "
        + " & ".join(m(f"c{r}-{c}", text) for c, text in enumerate(row))
        + r" \\"
        + (r"\hline " if style == 1 else "")
        for r, (head, row) in enumerate(zip(heads, cells, strict=True))
    )
    spec = (("l" + "r" * (len(columns) - 1)), "|l|" + "c|" * (len(columns) - 1), "l@{\\hskip 60px}r@{\\hskip 50px}r")[
        style
    ]
    top, middle, bottom = (
        (r"\toprule ", r"\midrule ", r"\bottomrule "),
        (r"\hline ", r"\hline ", ""),
        (r"\rowcolor{yellow!40!white}", "", ""),
    )[style]
    body = (
        rf"{{\bfseries\large {m('title', title)}}}\par\vspace{{8px}}\renewcommand{{\arraystretch}}{{1.45}}\setlength{{\tabcolsep}}{{{(24, 18, 6)[style]}px}}\begin{{tabular}}{{{spec}}}{top}"
        + " & ".join(rf"\textbf{{{column}}}" for column in columns)
        + rf" \\{middle}{rows}{bottom}\end{{tabular}}"
    )
    best, least = values.index(max(values)), values.index(min(values))
    r, c = rng.randrange(len(heads)), rng.randrange(len(columns) - 1)
    a, b = rng.sample(range(len(heads)), 2)
    name = columns[2] if style < 2 else columns[1]
    cell = [cells[r][c], cells[r][c].replace(",", "")]
    sheet.ask("cell", f"What is {columns[c + 1]} of {heads[r]}?", (
        f"How many kilograms of {heads[r].lower()} were picked in {columns[c + 1]}?", f"What mark did {heads[r]} get in {columns[c + 1]}?", f"When does the {heads[r].lower()} {('open', 'close')[c % 2]}?")[style], cell, f"c{r}-{c}")  # fmt: skip
    if style < 2:
        sheet.ask(
            "comparison",
            f"Which row has the largest {name}?",
            (
                f"Which fruit gave the biggest harvest in {name}?",
                f"Who was the best in {name}? Answer the question using a single word or phrase.",
            )[style],
            heads[best],
            f"h{best}",
        )
        sheet.ask(
            "comparison",
            f"Which row has the smallest {name}?",
            (f"Which fruit did worst in {name}?", f"Whose mark in {name} is the lowest?")[style],
            heads[least],
            f"h{least}",
        )
        sheet.ask(
            "yes_no",
            f"Is {name} of {heads[a]} more than of {heads[b]}?",
            None,
            "yes" if values[a] > values[b] else "no",
        )
        sheet.ask(
            "count", "How many rows are there?", (None, "How many students took the exam?")[style], str(len(heads))
        )
    else:
        sheet.ask(
            "comparison",
            "Which row has the earliest Opens?",
            "Which place is the first to open in the morning?",
            heads[least],
            f"h{least}",
        )
        sheet.ask(
            "comparison",
            None,
            f"Which opens later, the {heads[a].lower()} or the {heads[b].lower()}?",
            heads[a if values[a] > values[b] else b],
            f"h{a if values[a] > values[b] else b}",
        )
        sheet.ask_absent("What is Price of Sauna?", "How much is a ticket for the sauna?", "price")
    if style == 0:
        sheet.ask(
            "sum",
            None,
            f"How many kilograms of {heads[a].lower()} were there in 2024 and 2025 together?",
            [f"{sum(numbers[a][:2]):,}", str(sum(numbers[a][:2]))],
        )
    sheet.ask("title", "What is the title?", None, title, "title")
    sheet.boxes = [f"h{b}"] if style else ["c1-1", "h2"]
    sheet.box_texts = ["title"]
    sheet.scan = ({"angle": -1.5, "blur": 0.5, "noise": 4, "jpeg": 70}, {}, {})[style]
    return _finish(sheet, body, (28, 27, 25)[style], 30)


def bar_chart(rng: random.Random, style: int) -> Sheet:
    sheet = _sheet(rng, "bar_chart", ((640, 460), (700, 440))[style], ("TeX Gyre Heros", "Charter")[style])
    m = sheet.mark
    title, labels = (
        ("Books lent per day", ("Mon", "Tue", "Wed", "Thu", "Fri")),
        ("Tea exports, tonnes", ("Assam", "Ceylon", "Kenya", "Nepal")),
    )[style]
    values = rng.sample(range(12, 99), len(labels))
    ticks = ",".join(m(f"l{i}", label) for i, label in enumerate(labels))
    if style == 0:
        points = " ".join(f"({i},{value})" for i, value in enumerate(values))
        axis = rf"ybar,bar width=44px,ymin=0,ymax=115,xtick={{0,...,4}},xticklabels={{{ticks}}},enlarge x limits=0.14,ytick=\empty"
        nodes = "".join(
            rf"\node[above] at (axis cs:{i},{value}) {{{m(f'v{i}', str(value))}}};" for i, value in enumerate(values)
        )
        plot = rf"\addplot[fill=teal!70] coordinates {{{points}}};"
    else:
        points = " ".join(f"({value},{i})" for i, value in enumerate(values))
        axis = rf"xbar,bar width=30px,xmin=0,xmax=115,ytick={{0,...,3}},yticklabels={{{ticks}}},enlarge y limits=0.2,xtick={{0,20,...,100}},xmajorgrids"
        nodes = "".join(
            rf"\node[right] at (axis cs:{value},{i}) {{{m(f'v{i}', str(value))}}};" for i, value in enumerate(values)
        )
        plot = rf"\addplot[fill=orange!80!red] coordinates {{{points}}};"
    body = rf"\centering\begin{{tikzpicture}}\begin{{axis}}[width={(590, 580)[style]}px,height={sheet.size[1] - 80}px,title={{{m('title', title)}}},{axis}]{plot}{nodes}\end{{axis}}\end{{tikzpicture}}"
    best, least = values.index(max(values)), values.index(min(values))
    i, j = rng.sample(range(len(labels)), 2)
    higher = i if values[i] > values[j] else j
    sheet.ask(
        "comparison",
        ("Which bar is the highest?", "Which bar is the longest?")[style],
        ("On which day were the most books lent?", "Which origin exports the most tea?")[style],
        labels[best],
        f"l{best}",
    )
    sheet.ask(
        "comparison",
        ("Which bar is the lowest?", "Which bar is the shortest?")[style],
        ("Which day was the quietest?", "Which one exports least? Answer with the name only.")[style],
        labels[least],
        f"l{least}",
    )
    sheet.ask(
        "cell",
        f"What is the value of {labels[i]}?",
        (f"How many books went out on {labels[i]}?", f"How many tonnes came from {labels[i]}?")[style],
        str(values[i]),
        f"v{i}",
    )
    sheet.ask("comparison", f"Which is higher, {labels[i]} or {labels[j]}?", None, labels[higher], f"l{higher}")
    if style == 0:
        sheet.ask(
            "sum",
            None,
            f"How many books were lent on {labels[i]} and {labels[j]} together?",
            str(values[i] + values[j]),
        )
    else:
        sheet.ask_absent(None, "How much tea came from China?", "absent")
    sheet.ask("title", "What is the title?", None, title, "title")
    sheet.boxes = [f"v{j}"] if style else ["l2", "title"]
    return _finish(sheet, body, 22, 24)


def line_chart(rng: random.Random, style: int) -> Sheet:
    sheet = _sheet(rng, "line_chart", ((700, 450), (620, 480))[style], ("TeX Gyre Adventor", "TeX Gyre Pagella")[style])
    m = sheet.mark
    title, labels = (
        ("River level in cm", ("1 Apr", "8 Apr", "15 Apr", "22 Apr")),
        ("Members of the choir", ("2018", "2020", "2022", "2024", "2026")),
    )[style]
    values = rng.sample(range(18, 98), len(labels))
    while min(abs(a - b) for i, a in enumerate(values) for b in values[:i]) < 4:
        values = rng.sample(range(18, 98), len(labels))
    ticks = ",".join(m(f"l{i}", label) for i, label in enumerate(labels))
    points = " ".join(f"({i},{value})" for i, value in enumerate(values))
    nodes = "".join(
        rf"\node[{'below' if is_valley(values, i) else 'above'}] at (axis cs:{i},{value}) {{{m(f'v{i}', str(value))}}};"
        for i, value in enumerate(values)
    )
    body = rf"\centering\begin{{tikzpicture}}\begin{{axis}}[width=\textwidth,height={sheet.size[1] - 90}px,title={{{m('title', title)}}},xtick={{0,...,{len(labels) - 1}}},xticklabels={{{ticks}}},ymin=-8,ymax=118,enlarge x limits=0.1,ytick=\empty,ymajorgrids]\addplot[thick,{('blue!70!black', 'red!70!black')[style]},mark={('*', 'square*')[style]}] coordinates {{{points}}};{nodes}\end{{axis}}\end{{tikzpicture}}"
    best, least = values.index(max(values)), values.index(min(values))
    i, j = sorted(rng.sample(range(len(labels)), 2))
    sheet.ask(
        "cell",
        f"What is the value of {labels[i]}?",
        (f"How high was the river on {labels[i]}?", f"How many members were there in {labels[i]}?")[style],
        [str(values[i]), f"{values[i]} {('cm', 'members')[style]}"],
        f"v{i}",
    )
    sheet.ask(
        "comparison",
        "Which point is the highest?",
        ("On which date was the river highest?", "In which year was the choir largest?")[style],
        labels[best],
        f"l{best}",
    )
    sheet.ask(
        "comparison",
        "Which point is the lowest?",
        ("When was the water lowest?", "In what year did the fewest people sing?")[style],
        labels[least],
        f"l{least}",
    )
    sheet.ask(
        "yes_no",
        f"Is {labels[j]} higher than {labels[i]}?",
        ("Did the river rise", "Did the choir grow")[style] + f" from {labels[i]} to {labels[j]}?",
        "yes" if values[j] > values[i] else "no",
    )
    sheet.ask("title", "What is the title?", "What does the chart show? Copy its title.", title, "title")
    sheet.ask("count", "How many points are there?", None, str(len(labels)))
    sheet.boxes = [f"l{i}"]
    sheet.box_texts = ["title"]
    return _finish(sheet, body, 22, 24)


def pie_chart(rng: random.Random, style: int) -> Sheet:
    sheet = _sheet(rng, "pie_chart", (560, 340), "TeX Gyre Heros")
    m = sheet.mark
    labels = ("Wind", "Hydro", "Solar", "Gas")
    while True:
        cuts = sorted(rng.sample(range(8, 93), 3))
        shares = [b - a for a, b in zip((0, *cuts), (*cuts, 100), strict=True)]
        if min(shares) >= 9 and len(set(shares)) == 4:
            break
    start, parts = 90.0, ""
    for i, (share, colour) in enumerate(
        zip(shares, ("cyan!60", "blue!50", "yellow!80!orange", "gray!50"), strict=True)
    ):
        end = start - 3.6 * share
        parts += (
            rf"\fill[{colour},draw=white,line width=2px] (0,0) -- ({start}:120px) arc ({start}:{end}:120px) -- cycle;"
        )
        parts += rf"\node at ({(start + end) / 2}:76px) {{{m(f'v{i}', f'{share}%')}}};\fill[{colour}] (190px,{70 - 46 * i}px) rectangle +(24px,24px);\node[right] at (222px,{82 - 46 * i}px) {{{m(f'l{i}', labels[i])}}};"
        start = end
    body = rf"\centering {{\bfseries {m('title', 'Where the power comes from')}}}\par\begin{{tikzpicture}}{parts}\end{{tikzpicture}}"
    best, least = shares.index(max(shares)), shares.index(min(shares))
    i = rng.randrange(4)
    sheet.ask(
        "cell",
        f"What is the value of {labels[i]}?",
        f"How many percent come from {labels[i].lower()}?",
        [f"{shares[i]}%", str(shares[i])],
        f"v{i}",
    )
    sheet.ask("comparison", "Which slice is the largest?", "What produces most of the power?", labels[best], f"l{best}")
    sheet.ask("comparison", "Which slice is the smallest?", "Which source matters least?", labels[least], f"l{least}")
    sheet.ask_absent("What is the value of Coal?", "How many percent come from coal?", "coal")
    sheet.ask("count", None, "How many sources are shown?", ["4", "four"])
    sheet.boxes = ["l1", "title"]
    return _finish(sheet, body, 24, 20)


def slide(rng: random.Random, style: int) -> Sheet:
    sheet = _sheet(rng, "slide", ((960, 540), (800, 600))[style], ("TeX Gyre Adventor", "TeX Gyre Heros")[style])
    m = sheet.mark
    title = ("Why roofs should be green", "Results of the first season")[style]
    number = rng.randint(3, 28)
    points = (
        (f"They hold {number} litres of rain", "Bees find food in the city", "Rooms stay cool in summer"),
        (
            f"We planted {number} willow trees",
            "Two pumps had to be replaced",
            "The pond froze in January",
            "Frogs came back in spring",
        ),
    )[style]
    speaker = rng.choice(PEOPLE)
    rows = "".join(rf"\item {m(f'l{i}', point)}" for i, point in enumerate(points))
    ground = (r"\pagecolor{green!12}\color{black!85}", r"\pagecolor{blue!45!black}\color{white}")[style]
    body = rf"{ground}{{\bfseries\fontsize{{44px}}{{54px}}\selectfont {m('title', title)}}}\par\vspace{{22px}}\begin{{itemize}}{rows}\end{{itemize}}\vfill {m('speaker', speaker)}\hfill {m('page', str(rng.randint(2, 30)))}"
    sheet.ask(
        "title", "What is the title?", ("What is the heading of this slide?", "Read me the headline."), title, "title"
    )
    sheet.ask("line", "What is the first point?", None, points[0], "l0")
    sheet.ask(
        "line", f"Which line comes after {points[1]}?", "What is said in the third bullet point?", points[2], "l2"
    )
    sheet.ask("count", "How many points are there?", "How many items does the list have?", str(len(points)))
    sheet.ask(
        "field",
        None,
        ("How many litres of rain do they hold?", "How many willows were planted?")[style],
        [str(number), f"{number} {('litres', 'willow trees')[style]}"],
        "l0",
    )
    sheet.ask("field", "What is the name of the speaker?", "Who is presenting?", speaker, "speaker")
    if style:
        sheet.ask_absent("What is the date?", "When was this talk given?", "date")
        sheet.ask_to_read(False, "Please read out the whole slide.")
    sheet.boxes = ["l1"] if style else ["l2", "speaker"]
    sheet.box_texts = ["speaker"] if style else ["l1"]
    return _finish(sheet, body, (32, 30)[style], 44)


def menu(rng: random.Random, style: int) -> Sheet:
    sheet = _sheet(rng, "menu", ((560, 560), (640, 400))[style], ("TeX Gyre Bonum", "TeX Gyre Pagella")[style])
    m = sheet.mark
    money = (EURO, POUND)[style]
    title = ("Trattoria Zagara", "The Gardener's Arms")[style]
    dishes = (
        ("Ribollita", "Orecchiette", "Saltimbocca", "Caponata", "Panna cotta", "Affogato"),
        ("Pea soup", "Fish pie", "Game sausage", "Plum crumble"),
    )[style]
    prices = draw_amounts(rng, len(dishes), 5, 27, 1)
    rows = "".join(
        rf"{m(f'd{i}', dish)}\ \hrulefill\ {m(f'p{i}', money.number(price))}\par"
        for i, (dish, price) in enumerate(zip(dishes, prices, strict=True))
    )
    note = ("Chiuso il martedì", "Sunday roast from noon")[style]
    paper = ("", r"\pagecolor{brown!15}")[style]
    body = rf"{paper}{{\centering\bfseries\Large {m('title', title)}\par}}\vspace{{18px}}{rows}\vspace{{14px}}{{\centering\itshape {m('note', note)}\par}}"
    best, least = prices.index(max(prices)), prices.index(min(prices))
    i, j = rng.sample(range(len(dishes)), 2)
    sheet.ask(
        "cell",
        f"What does {dishes[i]} cost?",
        f"I would like the {dishes[i]}. What will it cost me?",
        money.accepted(prices[i]),
        f"p{i}",
    )
    sheet.ask("comparison", "Which item costs the most?", DEAREST, dishes[best], f"d{best}")
    sheet.ask("comparison", "Which item costs the least?", CHEAPEST, dishes[least], f"d{least}")
    sheet.ask("title", "What is the title?", "What is the name of this place?", title, "title")
    sheet.ask("sum", None, f"How much are {dishes[i]} and {dishes[j]} together?", money.accepted(prices[i] + prices[j]))
    if style:
        sheet.ask_absent("What is the phone number?", None, "phone")
        sheet.ask_to_read(True, "Type out everything on this menu.")
    sheet.boxes = [f"d{j}"]
    sheet.box_texts = [f"p{j}", "note"]
    sheet.scan = ({"angle": 2.4, "shadow": 0.3, "blur": 0.5, "jpeg": 70}, {})[style]
    return _finish(sheet, body, (29, 28)[style], 44)


def timetable(rng: random.Random, style: int) -> Sheet:
    sheet = _sheet(rng, "timetable", (620, 560), "TeX Gyre Heros Condensed")
    m = sheet.mark
    stops = names(rng, TOWNS, 5)
    minute, times = rng.randint(400, 900), []
    for _ in stops:
        times.append(f"{minute // 60}:{minute % 60:02}")
        minute += rng.randint(6, 19)
    line = str(rng.randint(11, 89))
    rows = "".join(
        rf"{m(f's{i}', stop)} & {m(f't{i}', time)} \\" for i, (stop, time) in enumerate(zip(stops, times, strict=True))
    )
    body = rf"{{\bfseries\LARGE Bus {m('line', line)}}}\par Weekdays\par\vspace{{10px}}\renewcommand{{\arraystretch}}{{1.5}}\rowcolors{{1}}{{blue!10}}{{white}}\begin{{tabular}}{{p{{330px}}r}}{rows}\end{{tabular}}"
    i, j = sorted(rng.sample(range(5), 2))
    sheet.ask("cell", f"What is the time of {stops[i]}?", f"When does the bus call at {stops[i]}?", times[i], f"t{i}")
    sheet.ask(
        "comparison",
        f"Which is earlier, {stops[j]} or {stops[i]}?",
        f"Where does the bus stop first, in {stops[j]} or in {stops[i]}?",
        stops[i],
        f"s{i}",
    )
    sheet.ask("field", "What is the number of the bus?", "Which bus is this?", [line, f"Bus {line}"], "line")
    sheet.ask("field", None, "Where does the bus end its journey?", stops[4], "s4")
    sheet.ask("line", f"Which stop comes after {stops[1]}?", None, stops[2], "s2")
    sheet.ask("count", "How many stops are there?", None, "5")
    sheet.ask_absent("What is the price?", "What does a ticket for this bus cost?", "price")
    sheet.boxes = [f"s{j}", f"t{j}"]
    sheet.box_texts = ["s1"]
    return _finish(sheet, body, 30, 36)


def card(rng: random.Random, style: int) -> Sheet:
    sheet = _sheet(rng, "card", ((460, 270), (400, 240))[style], ("TeX Gyre Schola", "TeX Gyre Cursor")[style])
    m = sheet.mark
    person = rng.choice(PEOPLE)
    firm = rng.choice([firm for firm in FIRMS if len(firm) < 15])
    job = rng.choice(("Clockmaker", "Translator", "Beekeeper", "Land surveyor"))
    phone, town = code(rng, ("0### / ### ##", "+1 555 01##")[style]), rng.choice(TOWNS)
    paper = ("", r"\pagecolor{yellow!12}")[style]
    body = rf"{paper}{{\bfseries\large {m('person', person)}}}\par {m('job', job)}\par\vspace{{6px}}{m('firm', firm)}\par {m('town', town)}\par {m('phone', phone)}"
    sheet.ask("field", "What is the name?", ("Who is this?", "Whose business card is it?"), person, "person")
    sheet.ask("field", "What is the job?", "What is this person's trade?", job, "job")
    sheet.ask(
        "field",
        "What is the phone number?",
        "How can I phone this person? Give the number.",
        [phone, phone.replace(" ", "")],
        "phone",
    )
    sheet.ask("field", "What is the town?", "In which town does this person work?", town, "town")
    if style:
        sheet.ask_absent("What is the email?", "What is the web address?", "web")
    sheet.ask_to_read(True, None if style else "What text is on this card?")
    sheet.boxes = ["firm"]
    sheet.box_texts = ["town"]
    return _finish(sheet, body, (24, 22)[style], 24)


def ticket(rng: random.Random, style: int) -> Sheet:
    sheet = _sheet(rng, "ticket", (600, 250), "TeX Gyre Adventor")
    m = sheet.mark
    film = rng.choice(("The Salt Road", "Night of Herons", "Paper Lanterns"))
    day, time = write_date(draw_date(rng), "slashes"), f"{rng.randint(14, 21)}:{rng.choice(('00', '15', '40'))}"
    row, seat, price = rng.choice("ABCDEFGHJK"), str(rng.randint(1, 32)), draw_amounts(rng, 1, 7, 19, 1)[0]
    body = rf"{{\color{{red!60!black}}\bfseries\Large {m('film', film)}}}\par {m('date', day)}\quad {m('time', time)}\par Row {m('row', row)}\quad Seat {m('seat', seat)}\par {m('price', EURO_BEHIND(price))}\hfill {m('number', code(rng, 'K#####'))}"
    sheet.ask("field", "What is the title?", "Which film are they going to see?", film, "film")
    sheet.ask("date", "What is the date?", "On which day is the film shown?", day, "date")
    sheet.ask("field", "What is the seat?", None, [seat, f"Seat {seat}"], "seat")
    sheet.ask("field", "What is the price?", "How much was the cinema ticket?", EURO_BEHIND.accepted(price), "price")
    sheet.ask("field", None, "At what time does it begin?", time, "time")
    sheet.ask_absent("What is the name of the cinema?", None, "cinema")
    sheet.ask_to_read(True)
    sheet.boxes = ["number"]
    return _finish(sheet, body, 26, 26)


def label(rng: random.Random, style: int) -> Sheet:
    sheet = _sheet(
        rng, "label", ((360, 460), (300, 200))[style], ("TeX Gyre Heros Condensed", "TeX Gyre Pagella")[style]
    )
    m = sheet.mark
    if style == 0:
        product = rng.choice(("Hazelnut spread", "Chickpea crisps", "Barley flakes"))
        facts = (
            ("Energy", f"{rng.randint(1200, 2300)} kJ"),
            ("Fat", f"{rng.randint(4, 49)} g"),
            ("Sugar", f"{rng.randint(2, 48)} g"),
            ("Protein", f"{rng.randint(3, 29)} g"),
            ("Salt", f"0.{rng.randint(11, 95)} g"),
        )
        rows = "".join(rf"{m(f'k{i}', key)} & {m(f'v{i}', value)} \\\hline " for i, (key, value) in enumerate(facts))
        body = rf"{{\bfseries\large {m('name', product)}}}\par per 100 g\par\vspace{{6px}}\renewcommand{{\arraystretch}}{{1.35}}\begin{{tabular}}{{|p{{150px}}|r|}}\hline {rows}\end{{tabular}}\par Best before {m('date', write_date(draw_date(rng), 'short_year'))}"
        i = rng.randrange(len(facts))
        key, value = facts[i]
        sheet.ask(
            "field",
            f"What is the {key.lower()}?",
            f"How much {key.lower()} do 100 grams contain?",
            [value, value.split()[0]],
            f"v{i}",
        )
        other, amount = facts[(i + 2) % 5]
        sheet.ask("cell", f"What is the value of {other}?", None, [amount, amount.split()[0]], f"v{(i + 2) % 5}")
        fat, sugar = (int(facts[k][1].split()[0]) for k in (1, 2))
        sheet.ask(
            "comparison",
            "Which is more, Fat or Sugar?" if fat != sugar else None,
            "Does it contain more fat or more sugar?" if fat != sugar else None,
            "Fat" if fat > sugar else "Sugar",
            "k1" if fat > sugar else "k2",
        )
        sheet.ask("count", "How many rows are there?", None, "5")
        sheet.ask_absent("What is the price?", "How many grams of fibre does it have?", "fibre")
        sheet.boxes = ["k3"]
    else:
        product = rng.choice(("Quince jelly", "Walnut mead", "Rosehip syrup"))
        weight, maker = f"{rng.choice((220, 250, 340))} g", rng.choice([firm for firm in FIRMS if len(firm) < 15])
        price, number = EURO(draw_amounts(rng, 1, 3, 12)[0]), code(rng, "Lot ##-###")
        body = rf"\centering\pagecolor{{red!8}}{{\itshape\Large {m('name', product)}}}\par {m('maker', maker)}\par {m('weight', weight)}\quad {m('price', price)}\par {m('number', number)}"
        sheet.ask("field", "What is the weight?", "How much is in the jar?", weight, "weight")
        sheet.ask("field", "What is the maker?", "Who made this?", maker, "maker")
        sheet.ask("field", "What is the price?", "What do they charge for it?", [price, price[1:]], "price")
        sheet.ask_absent("What is the date?", "Until when can it be eaten?", "date")
        sheet.ask_to_read(True, "Copy the label word for word.")
        sheet.boxes = ["maker"]
    sheet.ask(
        "field", "What is the product?", ("What is in the packet?", "What does this jar hold?")[style], product, "name"
    )
    sheet.box_texts = ["name"]
    return _finish(sheet, body, (23, 23)[style], 22)


def two_columns(rng: random.Random, style: int) -> Sheet:
    sheet = _sheet(rng, "two_columns", (900, 760), "Charter")
    m = sheet.mark
    author, town = rng.choice(PEOPLE), rng.choice(TOWNS)
    count = str(rng.randint(14, 88))
    body = rf"""{{\centering\bfseries\LARGE {m("title", "On the Sounds of Old Bridges")}\par}}{{\centering {m("author", author)}\par}}\vspace{{10px}}\begin{{multicols}}{{2}}\raggedright
      {{\bfseries {m("h1", "1 Method")}}}\par We listened to {m("count", count)} bridges near {m("town", town)}. Each was struck with a {m("tool", "wooden")} hammer, and the sound was kept on tape.\par\columnbreak
      {{\bfseries {m("h2", "2 Findings")}}}\par Iron bridges ring for {m("long", "nine")} seconds, stone bridges for less than one. The wind changed little.\par {{\bfseries {m("h3", "3 Outlook")}}}\par Next year we shall go back in the frost.\end{{multicols}}"""
    sheet.ask("title", "What is the title?", "What is the paper called?", "On the Sounds of Old Bridges", "title")
    sheet.ask(
        "field", "What is the name of the author?", ("Who wrote this paper?", "Whose work is this?"), author, "author"
    )
    sheet.ask("field", None, "How many bridges were listened to?", [count, f"{count} bridges"], "count")
    sheet.ask(
        "field",
        None,
        "What kind of hammer was used? Answer the question using a single word or phrase.",
        ["wooden", "a wooden hammer", "wooden hammer"],
        "tool",
    )
    sheet.ask(
        "field",
        None,
        "For how long do iron bridges ring?",
        ["nine seconds", "nine", "9 seconds", "for nine seconds"],
        "long",
    )
    sheet.ask("count", "How many headings are there?", "Into how many numbered sections is it divided?", ["3", "three"])
    sheet.ask_absent("What is the date?", "In which year was it published?", "year")
    sheet.boxes = ["h2", "author"]
    sheet.box_texts = ["h3"]
    sheet.scan = {"angle": -1.0, "noise": 6, "grey": 1, "blur": 0.5, "jpeg": 60}
    return _finish(sheet, body, 30, 56)


def receipt(rng: random.Random, style: int) -> Sheet:
    sheet = _sheet(rng, "receipt", (400, 830), "TeX Gyre Cursor")
    m = sheet.mark
    shop, town = rng.choice([firm for firm in FIRMS if len(firm) < 15]), rng.choice(TOWNS)
    items = names(
        rng, ("Bread", "Candles", "Honey", "Lemons", "Soap", "Matches", "Ginger", "Coffee", "Pasta", "Salt"), 8
    )
    prices = draw_amounts(rng, 8, 0.6, 14)
    total = round(sum(prices), 2)
    day = write_date(draw_date(rng), "short_year")
    rows = "".join(
        rf"{m(f'i{i}', item)}\hfill {m(f'p{i}', EURO_BEHIND.number(price))}\par"
        for i, (item, price) in enumerate(zip(items, prices, strict=True))
    )
    body = rf"\centering\textbf{{{m('shop', shop)}}}\par {m('town', town)}\par {m('date', day)}\par\raggedright\hrulefill\par {rows}\hrulefill\par \textbf{{SUMME}}\hfill \textbf{{{m('total', EURO_BEHIND(total))}}}\par bar bezahlt\par\centering Beleg {m('number', code(rng, '#####'))}"
    best, least = prices.index(max(prices)), prices.index(min(prices))
    i = rng.randrange(8)
    sheet.ask("field", "What is the total?", TO_PAY, EURO_BEHIND.accepted(total), "total")
    sheet.ask("field", "What is the name of the shop?", WHERE_BOUGHT, shop, "shop")
    sheet.ask(
        "cell",
        f"What does {items[i]} cost?",
        f"How much did the {items[i].lower()} cost?",
        EURO_BEHIND.accepted(prices[i]),
        f"p{i}",
    )
    sheet.ask("comparison", "Which item costs the most?", None, items[best], f"i{best}")
    sheet.ask("comparison", None, CHEAPEST[1], items[least], f"i{least}")
    sheet.ask("yes_no", f"Is {items[i]} on the receipt?", f"Did they buy {items[i].lower()}?", "yes")
    sheet.boxes = ["total", f"i{i}"]
    sheet.box_texts = [f"i{least}"]
    sheet.scan = {"angle": 1.2, "contrast": 0.5, "noise": 5, "blur": 0.4, "jpeg": 68}
    return _finish(sheet, body, 25, 28)


def form(rng: random.Random, style: int) -> Sheet:
    sheet = _sheet(rng, "form", (760, 520), "TeX Gyre Schola")
    m = sheet.mark
    person, town = rng.choice(PEOPLE), rng.choice(TOWNS)
    arrival, nights = write_date(draw_date(rng), "american"), str(rng.randint(2, 14))
    room, car = str(rng.randint(11, 79)), code(rng, "@@## @@@")
    rows = "".join(
        rf"{key}\hfill\fcolorbox{{black}}{{blue!6}}{{\makebox[420px][l]{{\strut {m(name, value)}}}}}\par "
        for key, name, value in (
            ("Guest", "guest", person),
            ("Home town", "town", town),
            ("Arrival", "arrival", arrival),
            ("Nights", "nights", nights),
            ("Room", "room", room),
            ("Car", "car", car),
        )
    )
    body = rf"{{\bfseries\Large {m('title', 'Registration card')}}}\par\vspace{{8px}}{rows}"
    sheet.ask(
        "field", "What is the name?", ("Who is staying at the hotel?", "What is the guest called?"), person, "guest"
    )
    sheet.ask("date", "What is the date?", "When did the guest arrive?", arrival, "arrival")
    sheet.ask("field", "What is the room?", "In which room does the guest sleep?", room, "room")
    sheet.ask("field", None, "For how many nights does this person stay?", [nights, f"{nights} nights"], "nights")
    sheet.ask("count", "How many fields are there?", None, "6")
    sheet.ask(
        "json",
        None,
        'Give guest and room as JSON: {"guest": …, "room": …}',
        json.dumps({"guest": person, "room": room}, ensure_ascii=False),
        "room",
    )
    sheet.ask_absent("What is the phone number?", None, "phone")
    sheet.boxes = ["town", "car"]
    sheet.box_texts = ["title"]
    return _finish(sheet, body, 27, 40)
