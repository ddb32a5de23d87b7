"""Sheets of an office in HTML: invoices, letters, forms, wide tables, timetables, slides, pages of two columns."""

from __future__ import annotations

import json
import random

from scripts.wild.html_shops import ask_money, page
from scripts.wild.names import FIRMS, PEOPLE, STREETS, TOWNS, code, names
from scripts.wild.sheet import DOLLAR, EURO, EURO_BEHIND, POUND, Sheet, draw_amounts, draw_date, write_date

HIGHEST = "Answer the question using a single word or phrase."


def invoice(rng: random.Random, style: int) -> Sheet:
    """An invoice on A4: English, German, English with a dark band, French."""
    font = ("Open Sans", "Liberation Serif", "Cantarell", "Liberation Sans")[style]
    size = ((900, 1273), (1000, 1414), (760, 1075), (640, 905))[style]
    sheet = Sheet(rng, "invoice", "chromium", size, font=font)
    money = (POUND, EURO_BEHIND, DOLLAR, EURO_BEHIND)[style]
    labels = (
        ("Invoice", "Invoice no.", "Date", "Due date", "Bill to", "Description", "Qty", "Unit price", "Amount", "Subtotal", "VAT 20%", "Total due"),
        ("Rechnung", "Rechnungsnummer", "Datum", "Zahlbar bis", "An", "Bezeichnung", "Menge", "Einzelpreis", "Betrag", "Zwischensumme", "MwSt. 19 %", "Gesamtbetrag"),
        ("INVOICE", "Invoice #", "Issued", "Payment due", "Customer", "Item", "Qty", "Price", "Amount", "Subtotal", "Tax", "Balance due"),
        ("Facture", "Facture n°", "Date", "Échéance", "Client", "Désignation", "Qté", "Prix", "Montant", "Sous-total", "TVA 20 %", "Total TTC"),
    )[style]  # fmt: skip
    items = names(rng, (
        ("Oak shelving", "Fitting service", "Brass hooks", "Delivery", "Varnish"),
        ("Schreibtischlampe", "Drehstuhl", "Aktenschrank", "Lieferung", "Montage"),
        ("Logo design", "Print proofs", "Photo editing", "Web banners", "Rush fee"),
        ("Papier A4", "Encre noire", "Classeurs", "Agrafes", "Livraison"),
    )[style], (3, 4, 4, 3)[style])  # fmt: skip
    quantities = [rng.randint(1, 9) for _ in items]
    prices = draw_amounts(rng, len(items), 12, 240)
    amounts = [round(q * p, 2) for q, p in zip(quantities, prices, strict=True)]
    subtotal = round(sum(amounts), 2)
    tax = round(subtotal * (0.2, 0.19, 0.0825, 0.2)[style], 2)
    total = round(subtotal + tax, 2)
    seller, buyer = rng.choice(FIRMS), rng.choice(PEOPLE)
    issued = draw_date(rng)
    form = ("long", "dots", "us_long", "slashes")[style]
    due = issued.replace(year=issued.year + 1) if issued.month == 12 else issued.replace(month=issued.month + 1)
    number = code(rng, ("HP-####", "RE-2027-###", "#####", "F#####")[style])
    iban = code(rng, "@@## #### #### ####")
    town = rng.choice(TOWNS)
    m = sheet.mark
    rows = "".join(
        f"<tr><td>{m(f'i{i}', n)}</td><td class=n>{m(f'q{i}', str(q))}</td><td class=n>{m(f'p{i}', money.number(p))}</td><td class=n>{m(f'a{i}', money.number(a))}</td></tr>"
        for i, (n, q, p, a) in enumerate(zip(items, quantities, prices, amounts, strict=True))
    )
    head = f"""<div class=head><div class=firm>{m("seller", seller)}</div><div class=right>{rng.choice(STREETS)}<br>{rng.choice(TOWNS)}</div></div>"""
    meta = f"""<div class=meta><div class=to>{labels[4]}<br><b>{m("buyer", buyer)}</b><br>{rng.choice(STREETS)}<br>{m("town", town)}</div>
      <table class=k><tr><td>{labels[1]}<td>{m("number", number)}<tr><td>{labels[2]}<td>{m("date", write_date(issued, form))}<tr><td>{labels[3]}<td>{m("due", write_date(due, form))}</table></div>"""
    body = f"""{head}<h1>{m("title", labels[0])}</h1>{meta}<table class=t><tr class=h><th>{labels[5]}<th class=n>{labels[6]}<th class=n>{labels[7]}<th class=n>{labels[8]}</tr>{rows}</table>
      <table class=s><tr><td>{labels[9]}<td class=n>{m("subtotal", money(subtotal))}<tr><td>{labels[10]}<td class=n>{m("tax", money(tax))}<tr class=g><td>{labels[11]}<td class=n>{m("total", money(total))}</table>
      <p class=f>IBAN {m("iban", iban)}</p>"""
    accent = ("#2a6f77", "#000000", "#3b2a66", "#a33b20")[style]
    css = f"""body{{font:{(25, 28, 21, 18)[style]}px/1.4 '{font}';padding:{(58, 70, 0, 40)[style]}px;height:100vh}}.head,.meta{{display:flex;justify-content:space-between}}
      .firm{{font-size:1.5em;font-weight:700;color:{accent}}}h1{{margin:{(30, 46, 20, 22)[style]}px 0 18px;font-size:1.8em}}.right{{text-align:right;font-size:.9em}}table{{border-collapse:collapse}}
      .k td{{padding:2px 0 2px 18px}}.t{{width:100%;margin:38px 0 24px}}.t td,.t th{{padding:9px 6px;text-align:left;border-bottom:1px solid #aaa}}.t .n,.n{{text-align:right}}
      .s{{margin-left:auto}}.s td{{padding:4px 0 4px 40px}}.g td{{font-weight:700;border-top:2px solid {accent};font-size:1.15em}}.f{{margin-top:60px}}"""
    if style == 2:
        css += ".head{background:#3b2a66;padding:30px 40px}.head .firm,.right{color:#fff}h1,.meta,.t,.f{margin-left:40px;margin-right:40px}.meta{flex-direction:row-reverse}.t{width:calc(100% - 80px)}.s{margin-right:40px}.h{background:#ddd6f0}"
    if style == 3:
        css += ".t td,.t th{border:1px solid #444}.h{background:#f4ddd6}"
    sheet.source = page(css, body)
    ask_money(sheet, money, total, "field", "total", "What is the total?", (
        "How much do I have to pay?", "What sum must be transferred?", "How much does the customer owe in all? Answer the question using a single word or phrase."))  # fmt: skip
    sheet.ask(
        "field",
        "What is the name of the customer?",
        ("Who is this invoice addressed to?", "Who has to pay this?"),
        buyer,
        "buyer",
    )
    sheet.ask(
        "date",
        "What is the due date?",
        ("By when does it have to be paid?", "What is the last day to pay this bill?"),
        write_date(due, form),
        "due",
    )
    most = max(range(len(items)), key=amounts.__getitem__)
    i = rng.randrange(len(items))
    if style == 0:
        sheet.ask("field", "What is the invoice number?", None, number, "number")
        sheet.ask("json", None, 'Give the invoice number and the total as JSON with the keys "number" and "total".',
                  [json.dumps({"number": number, "total": spelling}, ensure_ascii=False) for spelling in money.accepted(total)], "total")  # fmt: skip
        sheet.ask_absent("What is the discount?", None, "discount")
    elif style == 1:
        sheet.ask(
            "field", "What is the invoice number?", "Which reference number does this bill have?", number, "number"
        )
        sheet.ask("cell", f"What is the quantity of {items[i]}?", None, str(quantities[i]), f"q{i}")
        ask_money(sheet, money, tax, "field", "tax", None, "How much value added tax is charged?")
    elif style == 2:
        sheet.ask(
            "comparison",
            "Which item has the highest amount?",
            "Which item makes up the largest part of the bill?",
            items[most],
            f"i{most}",
        )
        sheet.ask("field", "What is the name of the seller?", "Which company sent this invoice?", seller, "seller")
        sheet.ask_absent(None, "Which phone number can I call with questions about it?", "phone")
    else:
        sheet.ask("comparison", "Which item has the highest amount?", None, items[most], f"i{most}")
        ask_money(
            sheet,
            money,
            prices[i],
            "cell",
            f"p{i}",
            f"What is the price of {items[i]}?",
            f"What does one unit of {items[i]} cost?",
        )
        sheet.ask(
            "count", "How many items are there?", "How many lines of goods does this invoice list?", str(len(items))
        )
    sheet.boxes = [("buyer", "total", "seller", "due")[style]]
    sheet.box_texts = [("number", "due", "buyer", "iban")[style]]
    sheet.scan = (
        {},
        {"angle": -0.9, "noise": 6, "blur": 0.5, "grey": 1, "jpeg": 60},
        {},
        {"shadow": 0.3, "noise": 4, "jpeg": 68},
    )[style]
    return sheet


def letter(rng: random.Random, style: int) -> Sheet:
    """A letter on A4, English or French."""
    font = ("EB Garamond", "Courier Prime")[style]
    sheet = Sheet(rng, "letter", "chromium", ((800, 1131), (840, 1188))[style], font=font)
    writer, reader = names(rng, PEOPLE, 2)
    firm, town = rng.choice(FIRMS), rng.choice(TOWNS)
    day = draw_date(rng)
    meeting = draw_date(rng)
    amount = EURO(draw_amounts(rng, 1, 200, 900)[0])
    reference = code(rng, "@@/####")
    m = sheet.mark
    if style == 0:
        opening, closing, subject = f"Dear {reader},", "Yours sincerely,", "Repair of the north gutter"
        text = f"""<p>thank you for your call last week. Our team will come on {m("meeting", write_date(meeting, "long"))} to mend the gutter above the library.</p>
          <p>The work should cost {m("amount", amount)} and take about {m("hours", "six")} hours. Please keep the courtyard free of bicycles until we have finished.</p>
          <p>If it rains, we shall ring you before eight.</p>"""
        shown = write_date(day, "long")
    else:
        opening, closing, subject = f"{reader},", "Cordialement,", "Votre commande de tissus"
        text = f"""<p>nous avons bien reçu votre commande. Elle sera livrée le {m("meeting", write_date(meeting, "slashes"))} à l'atelier.</p>
          <p>Le montant de {m("amount", amount)} sera débité après la livraison. Merci de préparer une place pour {m("hours", "quatre")} rouleaux.</p>"""
        shown = write_date(day, "slashes")
    body = f"""<div class=h>{m("firm", firm)}</div><p class=a>{m("reader", reader)}<br>{rng.choice(STREETS)}<br>{town}</p>
      <p class=d>{m("town", rng.choice([name for name in TOWNS if name != town]))}, {m("date", shown)}</p><p>Ref. {m("ref", reference)}</p><p><b>{m("subject", subject)}</b></p><p>{opening}</p>{text}<p>{closing}</p><p class=w>{m("writer", writer)}</p>"""
    sheet.source = page(
        f"body{{font:{(28, 24)[style]}px/1.4 '{font}';padding:70px 80px;height:100vh}}p{{margin:0 0 22px}}.h{{font-size:1.5em;border-bottom:2px solid;margin-bottom:34px}}.d{{text-align:right}}.w{{margin-top:44px}}",
        body,
    )
    sheet.ask(
        "field", "What is the name of the sender?", ("Who wrote this letter?", "Who signed it?"), writer, "writer"
    )
    sheet.ask(
        "field",
        "What is the subject?",
        ("What is this letter about? Copy the heading.", "Read me the subject line, please."),
        subject,
        "subject",
    )
    sheet.ask(
        "date",
        "What is the date?",
        ("When was this letter written?", "Which date does the letter bear?"),
        shown,
        "date",
    )
    sheet.ask("field", "What is the reference?", None, reference, "ref")
    if style == 0:
        sheet.ask("date", None, "On which day will the team come?", write_date(meeting, "long"), "meeting")
        sheet.ask(
            "field", None, "How many hours will the work take?", ["six", "6", "six hours", "about six hours"], "hours"
        )
        sheet.ask_absent("What is the invoice number?", None, "number")
    else:
        sheet.ask(
            "field",
            "What is the amount?",
            "How much money will be charged?",
            EURO.accepted(float(amount[1:].replace(",", ""))),
            "amount",
        )
        sheet.ask_absent(None, "Which email address can one write to?", "email")
    sheet.boxes = ["writer"]
    sheet.box_texts = ["date"]
    sheet.scan = ({"angle": 1.1, "shadow": 0.2, "noise": 5, "jpeg": 66}, {})[style]
    return sheet


def form(rng: random.Random, style: int) -> Sheet:
    """A form that was filled in: boxes, ruled lines, tick boxes."""
    font = ("Liberation Sans", "B612", "Go")[style]
    sheet = Sheet(rng, "form", "chromium", ((760, 0), (680, 0), (720, 560))[style], font=font)
    person, street, town = rng.choice(PEOPLE), rng.choice(STREETS), rng.choice(TOWNS)
    born = write_date(
        draw_date(rng, *((1958, 2004), (2014, 2020), (2027, 2029))[style]), ("slashes", "dots", "iso")[style]
    )
    title = ("Library card application", "Anmeldung Schwimmkurs", "Lost property report")[style]
    phone = code(rng, ("0#### ######", "0## / #######", "555-0###")[style])
    choices = (("Adult", "Student", "Senior"), ("Anfänger", "Fortgeschritten"), ("Bag", "Phone", "Clothing", "Other"))[
        style
    ]
    chosen = rng.randrange(len(choices))
    extra = (
        ("Postcode", code(rng, "@@# #@@")),
        ("Kosten", f"{rng.randint(40, 90)},00 €"),
        ("Found at", f"Platform {rng.randint(2, 9)}"),
    )[style]
    keys = (
        ("Full name", "Date of birth", "Street", "Town", "Phone"),
        ("Name", "Geburtsdatum", "Straße", "Ort", "Telefon"),
        ("Reported by", "Date", "Address", "Town", "Telephone"),
    )[style]
    values = (person, born, street, town, phone, extra[1])
    m = sheet.mark
    fields = "".join(
        f"<div class=f><label>{key}</label><div class=v>{m(f'v{i}', value)}</div></div>"
        for i, (key, value) in enumerate(zip((*keys, extra[0]), values, strict=True))
    )
    ticks = "".join(
        f"<span class=o><i>{'✗' if i == chosen else '&nbsp;'}</i> {m(f'c{i}', choice)}</span>"
        for i, choice in enumerate(choices)
    )
    css = (
        ".f{margin:12px 0}.v{border:2px solid #333;padding:6px 10px;background:#f7f7ff;color:#1a237e}label{font-size:.85em}",
        ".f{display:flex;margin:10px 0}label{width:38%}.v{flex:1;border-bottom:2px dotted #555;font-family:'Comic Neue'}",
        "#g{display:grid;grid-template-columns:1fr 1fr;gap:12px}.v{border-bottom:2px solid #777;color:#0b3}.v{color:#7a1f1f}label{color:#555;font-size:.8em}",
    )[style]
    sheet.source = page(
        f"body{{font:{(24, 24, 23)[style]}px/1.35 '{font}';padding:32px 38px}}h1{{font-size:1.4em;margin-bottom:14px}}.o{{margin-right:26px}}.o i{{display:inline-block;width:1.3em;height:1.3em;border:2px solid;text-align:center;font-style:normal;line-height:1.15;font-family:'DejaVu Sans'}}"
        + css,
        f"<h1>{m('title', title)}</h1><div id=g>{fields}</div><p style='margin-top:18px'>{ticks}</p>",
    )
    sheet.ask(
        "title",
        "What is the title?",
        ("What is this form for? Copy its heading.", "Which form is this?"),
        title,
        "title",
    )
    sheet.ask("field", "What is the name?", ("Who filled in this form?", "Whose details are these?"), person, "v0")
    sheet.ask(
        "date",
        f"What is the {('date of birth', 'Geburtsdatum', 'date')[style]}?",
        ("When was this person born?", "When was the child born?", "On which day was it reported?")[style],
        born,
        "v1",
    )
    sheet.ask(
        "field",
        "What is the phone number?",
        ("Which number should one call?", "How can this person be reached by telephone?"),
        [phone, phone.replace(" ", "")],
        "v4",
    )
    sheet.ask(
        "field",
        None,
        (("Which kind of card is applied for?",), ("Which level is ticked?",), ("What kind of thing was lost?",))[
            style
        ],
        choices[chosen],
        f"c{chosen}",
    )
    sheet.ask(
        "yes_no", f"Does it give the {('phone number', 'email', 'town')[style]}?", None, ("yes", "no", "yes")[style]
    )
    sheet.ask_absent(
        "What is the email?" if style != 1 else None,
        (
            "What does this person do for a living?",
            "Which school does the child attend?",
            "What colour is the lost object?",
        )[style]
        if style
        else None,
        "absent",
    )
    sheet.boxes = [("v3", "v4", "v2")[style]]
    sheet.box_texts = ["v0"]
    sheet.scan = ({"angle": -1.7, "blur": 0.6, "noise": 5, "grey": 1, "jpeg": 62}, {}, {})[style]
    return sheet


def wide_table(rng: random.Random, style: int) -> Sheet:
    """A table wider than it is high."""
    font = ("Liberation Sans Narrow", "Cantarell", "Vollkorn", "Inconsolata")[style]
    sheet = Sheet(rng, "table", "chromium", ((1000, 0), (860, 0), (900, 0), (720, 0))[style], font=font)
    title = ("Regional sales 2027", "Regatta results", "Bird counts by marsh", "Server load, week 31")[style]
    columns = (
        ("Region", "Q1", "Q2", "Q3", "Q4"), ("Boat", "Skipper", "Time", "Points"),
        ("Marsh", "Herons", "Plovers", "Terns", "Curlews"), ("Host", "CPU %", "Disk GB", "Users"),
    )[style]  # fmt: skip
    heads = (
        ("North", "Coast", "Midlands", "Highlands"), ("Osprey", "Calypso", "Marigold", "Tern Again", "Halcyon"),
        ("Saltby", "Fenmere", "Long Reach", "Otterham"), ("basalt", "granite", "marble", "slate", "flint"),
    )[style]  # fmt: skip
    skippers = names(rng, [name.split()[-1] for name in PEOPLE], len(heads))
    rows: list[list[str]] = []
    numbers: list[list[float]] = []
    for number in range(len(heads)):
        if style == 1:
            minutes, points = rng.randint(61, 99), rng.randint(10, 99)
            numbers.append([0, minutes, points])
            rows.append([skippers[number], f"{minutes // 60}:{minutes % 60:02}:{rng.randint(10, 59)}", str(points)])
        else:
            values = [rng.randint(*((1000, 9900), (0, 1), (3, 240), (5, 98))[style]) for _ in columns[1:]]
            numbers.append([float(value) for value in values])
            rows.append([f"{value:,}" for value in values])
    m = sheet.mark
    table = "<tr>" + "".join(f"<th>{column}</th>" for column in columns) + "</tr>"
    for r, (head, row) in enumerate(zip(heads, rows, strict=True)):
        table += (
            f"<tr><td>{m(f'h{r}', head)}</td>"
            + "".join(f"<td class=n>{m(f'v{r}-{c}', text)}</td>" for c, text in enumerate(row))
            + "</tr>"
        )
    css = (
        "td,th{border:1px solid #888}th{background:#dfe8f0}", "tr:nth-child(even){background:#eef7ee}th{border-bottom:3px solid #265}",
        "td,th{border-bottom:1px solid #c8b}h1{font-style:italic}", "body{background:#14181d;color:#d7e0d0}th{color:#8fd}td{border-top:1px solid #345}",
    )[style]  # fmt: skip
    sheet.source = page(
        f"body{{font:{(27, 24, 25, 25)[style]}px/1.3 '{font}';padding:26px 30px}}h1{{font-size:1.25em;margin-bottom:12px}}table{{border-collapse:collapse;width:100%}}td,th{{padding:8px 12px;text-align:left}}.n,th+th{{text-align:right}}"
        + css,
        f"<h1>{m('title', title)}</h1><table>{table}</table>",
    )
    column = (2, 2, 1, 0)[style]
    values = [row[column] for row in numbers]
    best = max(range(len(heads)), key=values.__getitem__)
    while values.count(values[best]) > 1 or values.count(min(values)) > 1:
        return wide_table(rng, style)
    least = values.index(min(values))
    name = columns[column + 1]
    r, c = rng.randrange(len(heads)), rng.randrange(len(columns) - 1)
    sheet.ask("comparison", f"Which row has the largest {name}?", (
        f"Which region sold the most in {name}?", "Which boat got the most points?", f"In which marsh were the most {name.lower()} seen?", f"Which host is the busiest by {name}?")[style], heads[best], f"h{best}")  # fmt: skip
    sheet.ask("comparison", f"Which row has the smallest {name}?", (
        f"In {name}, which region did worst? {HIGHEST}", f"Who came last? Name the boat with the fewest points. {HIGHEST}", f"Where were {name.lower()} rarest? {HIGHEST}", f"Which host has the lowest {name}? {HIGHEST}")[style], heads[least], f"h{least}")  # fmt: skip
    sheet.ask("cell", f"What is {columns[c + 1]} of {heads[r]}?", (
        f"How much did {heads[r]} sell in {columns[c + 1]}?", f"Look at the row {heads[r]}: what stands under {columns[c + 1]}?", f"How many {columns[c + 1].lower()} were counted at {heads[r]}?", f"What does the table say for {heads[r]} in the column {columns[c + 1]}?")[style], [rows[r][c], rows[r][c].replace(",", "")], f"v{r}-{c}")  # fmt: skip
    sheet.ask("title", "What is the title?", None, title, "title")
    sheet.ask("count", "How many rows are there?", None, str(len(heads)))
    a, b = rng.sample(range(len(heads)), 2)
    if values[a] == values[b]:
        return wide_table(rng, style)
    sheet.ask(
        "yes_no",
        f"Is {name} of {heads[a]} more than of {heads[b]}?",
        f"Does {heads[a]} have a higher value than {heads[b]} in the column {name}?",
        "yes" if values[a] > values[b] else "no",
    )
    if style in (0, 2):
        total = sum(numbers[a])
        sheet.ask("sum", None, f"Add up all the numbers of {heads[a]}.", [f"{total:,.0f}", f"{total:.0f}"])
    if style in (1, 3):
        sheet.ask_absent(f"What is {('Weight', 'Memory')[style == 3]} of {heads[a]}?", None, "absent")
    sheet.boxes = [f"h{a}"] if style else ["h0", "title"]
    sheet.box_texts = [f"h{b}"]
    sheet.scan = ({}, {}, {"angle": 2.2, "blur": 0.5, "shadow": 0.2, "jpeg": 72}, {})[style]
    return sheet


def timetable(rng: random.Random, style: int) -> Sheet:
    """A board of departures, or the week of a course."""
    font = ("B612", "Quicksand")[style]
    sheet = Sheet(rng, "timetable", "chromium", ((760, 0), (840, 0))[style], font=font)
    m = sheet.mark
    if style == 0:
        towns = names(rng, TOWNS, 5)
        minutes = sorted(rng.sample(range(6 * 60, 22 * 60), 5))
        times = [f"{minute // 60:02}:{minute % 60:02}" for minute in minutes]
        platforms = [str(number) for number in rng.sample(range(1, 15), 5)]
        notes = ["on time"] * 5
        late = rng.randrange(5)
        notes[late] = "delayed"
        rows = "".join(
            f"<tr><td>{m(f't{i}', times[i])}</td><td>{m(f'd{i}', towns[i])}</td><td>{m(f'p{i}', platforms[i])}</td><td>{m(f'n{i}', notes[i])}</td></tr>"
            for i in range(5)
        )
        sheet.source = page(f"body{{font:25px/1.4 '{font}';background:#0d1b3d;color:#ffd95a;padding:22px}}h1{{font-size:1.3em;color:#fff}}td,th{{text-align:left;padding:7px 10px}}th{{color:#9fb4e8;font-weight:400}}table{{width:100%}}",
            f"<h1>{m('title', 'Departures')}</h1><table><tr><th>Time<th>To<th>Platform<th>Status</tr>{rows}</table>")  # fmt: skip
        i, j = rng.sample(range(5), 2)
        sheet.ask(
            "cell",
            f"What is Platform of {towns[i]}?",
            f"From which platform does the train to {towns[i]} leave?",
            platforms[i],
            f"p{i}",
        )
        sheet.ask("cell", f"What is Time of {towns[j]}?", f"When does the train to {towns[j]} go?", times[j], f"t{j}")
        sheet.ask(
            "comparison",
            f"Which is earlier, {towns[i]} or {towns[j]}?",
            f"Which train leaves first, the one to {towns[i]} or the one to {towns[j]}?",
            towns[min(i, j)],
            f"d{min(i, j)}",
        )
        sheet.ask("comparison", None, "Where does the last train of the list go?", towns[4], "d4")
        sheet.ask("field", None, "Which train is late? Give its destination.", towns[late], f"d{late}")
        sheet.ask("count", "How many rows are there?", "How many departures are listed?", "5")
        sheet.ask_absent("What is the price?", None, "price")
        sheet.boxes = ["d2", f"t{j}"]
    else:
        days = ("Mon", "Tue", "Wed", "Thu")
        pool = names(
            rng,
            (
                "Pottery",
                "Fencing",
                "Choir",
                "Chess",
                "Judo",
                "Ballet",
                "Robotics",
                "Drawing",
                "Drama",
                "Archery",
                "Cooking",
                "Yoga",
            ),
            12,
        )
        hours = ("15:00", "16:30", "18:00")
        rows = ""
        for r, hour in enumerate(hours):
            rows += (
                f"<tr><th>{m(f'h{r}', hour)}</th>"
                + "".join(f"<td>{m(f'c{r}-{c}', pool[4 * r + c])}</td>" for c in range(4))
                + "</tr>"
            )
        sheet.source = page(f"body{{font:25px/1.4 '{font}';padding:26px}}h1{{font-size:1.3em;margin-bottom:10px}}td,th{{border:2px solid #79b;padding:10px;text-align:center}}table{{width:100%;border-collapse:collapse}}th{{background:#e4eef8}}",
            f"<h1>{m('title', 'After-school clubs')}</h1><table><tr><th>" + "".join(f"<th>{m(f'day{c}', day)}" for c, day in enumerate(days)) + f"</tr>{rows}</table>")  # fmt: skip
        r, c = rng.randrange(3), rng.randrange(4)
        s, d = rng.randrange(3), rng.randrange(4)
        sheet.ask(
            "cell",
            f"What is {days[c]} of {hours[r]}?",
            f"Which club meets on {days[c]} at {hours[r]}?",
            pool[4 * r + c],
            f"c{r}-{c}",
        )
        sheet.ask("cell", None, f"At what time does {pool[4 * s + d]} start?", hours[s], f"h{s}")
        sheet.ask("cell", None, f"On which day is {pool[4 * s + d]}?", days[d], f"day{d}")
        sheet.ask("title", "What is the title?", None, "After-school clubs", "title")
        sheet.ask("count", None, "How many different clubs are there in all?", "12")
        sheet.ask(
            "yes_no",
            f"Is {pool[4 * s + d]} on {days[d]}?",
            f"Can I go to {pool[4 * s + d]} on {days[d]}?",
            "yes",
        )
        sheet.ask_absent(f"What is Sat of {hours[r]}?", "Who teaches the clubs?", "absent")
        sheet.boxes = [f"c{r}-{c}"]
        sheet.box_texts = [f"c{(r + 1) % 3}-{c}"]
    return sheet


def slide(rng: random.Random, style: int) -> Sheet:
    """A slide of a talk, four by three or sixteen by nine."""
    font = ("Play", "Open Sans")[style]
    sheet = Sheet(rng, "slide", "chromium", ((960, 540), (800, 600))[style], font=font)
    speaker, month = rng.choice(PEOPLE), rng.choice(("March", "June", "October"))
    title = ("Moving to solar ovens", "Three habits of quiet teams")[style]
    share = rng.randint(21, 79)
    points = (
        (f"Fuel use fell by {share}%", "Bread takes ten minutes longer", f"Next trial starts in {month}"),
        ("Write before you meet", f"Keep meetings under {share} minutes", "Let the newest person speak first"),
    )[style]
    m = sheet.mark
    rows = "".join(f"<li>{m(f'l{i}', point)}</li>" for i, point in enumerate(points))
    number = str(rng.randint(3, 28))
    sheet.source = page(
        f"body{{font:{(34, 31)[style]}px/1.35 '{font}';padding:54px 64px;height:100vh;overflow:hidden;background:{('linear-gradient(120deg,#123c36,#1f6b52)', '#fff8ec')[style]};color:{('#f2fff8', '#33261a')[style]}}}h1{{font-size:1.45em;margin-bottom:30px;{('', 'border-left:14px solid #e0812b;padding-left:20px')[style]}}}li{{margin:16px 0 16px 30px}}.f{{position:absolute;left:64px;right:64px;bottom:26px;display:flex;justify-content:space-between;font-size:.7em}}",
        f"<h1>{m('title', title)}</h1><ul>{rows}</ul><div class=f><span>{m('speaker', speaker)}</span><span>{m('number', number)}</span></div>",
    )
    sheet.ask(
        "title",
        "What is the title?",
        ("What is the talk about? Copy the heading.", "What does the heading say?"),
        title,
        "title",
    )
    sheet.ask("line", f"Which line comes after {points[0]}?", "What does the second bullet point say?", points[1], "l1")
    sheet.ask("line", "What is the last point?", None, points[2], "l2")
    sheet.ask("count", "How many points are there?", "How many bullet points are on this slide?", "3")
    sheet.ask("field", None, ("Who gives this talk?", "Which person is named at the bottom?"), speaker, "speaker")
    sheet.ask("field", "What is the page number?", None, number, "number")
    if style == 0:
        sheet.ask("field", None, "By how much did fuel use fall?", [f"{share}%", str(share)], "l0")
        sheet.ask_absent("What is the date?", None, "date")
    else:
        sheet.ask(
            "field",
            None,
            "How long may a meeting last at most?",
            [f"{share} minutes", str(share), f"under {share} minutes"],
            "l1",
        )
        sheet.ask_to_read(True, "Transcribe all the words on this slide.")
    sheet.boxes = ["title"] if style == 0 else ["speaker", "l0"]
    sheet.box_texts = ["speaker"] if style == 0 else ["l2"]
    return sheet


def two_columns(rng: random.Random, style: int) -> Sheet:
    """A page of a newsletter."""
    font = "Vollkorn"
    sheet = Sheet(rng, "two_columns", "chromium", (900, 640), font=font)
    name, other = names(rng, PEOPLE, 2)
    town = rng.choice(TOWNS)
    total, when = rng.randint(120, 980), write_date(draw_date(rng), "us_long")
    m = sheet.mark
    body = f"""<h1>{m("title", "The Mossgate Courier")}</h1><p class=d>{m("date", when)} &nbsp; No. {m("issue", str(rng.randint(40, 300)))}</p><div class=c>
      <h2>{m("first", "Old ferry returns")}</h2><p>After nine years in a shed, the ferry of {m("town", town)} is back on the river. Its new captain, {m("captain", name)}, has painted it {m("colour", "yellow")}. On the first day it carried {m("people", str(total))} people.</p>
      <h2>{m("second", "Seeds to share")}</h2><p>The seed library opens on Friday in the town hall. {m("seeds", other)} asks everyone to bring a jar and a label. Beans and marigolds are most wanted.</p></div>"""
    sheet.source = page(
        f"body{{font:27px/1.35 '{font}';padding:40px 46px}}h1{{text-align:center;font-size:1.9em}}.d{{text-align:center;border-bottom:3px double;padding-bottom:8px;margin-bottom:16px}}.c{{columns:2;column-gap:40px}}h2{{font-size:1.2em;margin-bottom:6px}}p{{margin-bottom:16px}}",
        body,
    )
    sheet.ask("title", "What is the title?", "What is this newspaper called?", "The Mossgate Courier", "title")
    sheet.ask("date", "What is the date?", "When did this issue appear?", when, "date")
    sheet.ask("field", None, "Who is the captain of the ferry?", name, "captain")
    sheet.ask(
        "field", None, "How many people were carried on the first day?", [str(total), f"{total} people"], "people"
    )
    sheet.ask("field", None, "What colour is the ferry painted?", "yellow", "colour")
    sheet.ask("yes_no", "Does the word marigolds occur?", None, "yes")
    sheet.ask_absent("What is the price?", None, "price")
    sheet.boxes = ["second", "captain"]
    sheet.box_texts = ["first"]
    return sheet
