"""Sheets in HTML and SVG: business cards, charts, screens of apps and settings, and images without any text."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence
from math import cos, pi, sin

from scripts.wild.html_shops import page
from scripts.wild.names import FIRMS, PEOPLE, STREETS, TOWNS, code, names
from scripts.wild.sheet import EURO, Sheet, draw_amounts


def business_card(rng: random.Random, style: int) -> Sheet:
    font = ("Cantarell", "EB Garamond", "Go")[style]
    sheet = Sheet(rng, "card", "chromium", ((460, 270), (420, 250), (280, 440))[style], font=font)
    person, firm = rng.choice(PEOPLE), rng.choice(FIRMS)
    job = rng.choice(("Glass restorer", "Harbour pilot", "Tax adviser", "Piano tuner", "Botanist", "Stage designer"))
    phone = code(rng, ("+44 #### ### ###", "+33 # ## ## ## ##", "+49 ### #####")[style])
    # Letters that addresses may have.
    plain = unicodedata.normalize("NFKD", person).encode("ascii", "ignore").decode().lower().replace(" ", ".")
    mail = f"{plain.split('.')[0]}@{''.join(filter(str.isalpha, firm.lower()))[:9]}.example"
    street, town = rng.choice(STREETS), rng.choice(TOWNS)
    m = sheet.mark
    body = f"<h1>{m('person', person)}</h1><p class=j>{m('job', job)}</p><p class=f>{m('firm', firm)}</p><p>{m('phone', phone)}</p><p>{m('mail', mail)}</p>"
    if style != 1:
        body += f"<p>{m('street', street)}, {m('town', town)}</p>"
    sheet.source = page(
        f"body{{font:{(20, 21, 18)[style]}px/1.35 '{font}';padding:24px 28px;height:100vh;overflow:hidden;background:{('#ffffff', '#1d2b26', 'linear-gradient(#fbe3d3,#f6f6f0)')[style]};color:{('#222', '#e8dcc0', '#33212b')[style]};{('border-left:18px solid #b5382c', 'text-align:center', '')[style]}}}h1{{font-size:1.3em}}.j{{font-style:italic}}.f{{font-weight:700;margin:12px 0}}",
        body,
    )
    sheet.ask("field", "What is the name?", ("Whose card is this?", "Who gave me this card?"), person, "person")
    sheet.ask(
        "field",
        "What is the phone number?",
        ("Which number do I dial?", "I want to ring this person. What's the number?"),
        [phone, phone.replace(" ", "")],
        "phone",
    )
    sheet.ask(
        "field",
        "What is the job?",
        ("What does this person do for a living?", "What is this person's profession? Answer with the text only."),
        job,
        "job",
    )
    sheet.ask("field", "What is the company?", "Which firm does this person work for?", firm, "firm")
    sheet.ask("field", "What is the email?", None, mail, "mail")
    if style == 1:
        sheet.ask_absent("What is the address?", "In which street is the office?", "address")
    sheet.boxes = ["phone"] if style else ["person", "firm"]
    sheet.box_texts = ["job"]
    sheet.ask_to_read(True, (None, "Write down everything on this card, line by line.", None)[style])
    sheet.scan = ({}, {}, {"angle": 2.8, "shadow": 0.4, "blur": 0.5, "jpeg": 74})[style]
    return sheet


def _svg(width: int, height: int, font: str, size: int, inner: str, background: str = "#fff") -> str:
    return page(
        f"body{{background:{background}}}svg{{display:block;font:{size}px '{font}'}}",
        f"<svg xmlns='http://www.w3.org/2000/svg' width={width} height={height}>{inner}</svg>",
    )


def _text(sheet: Sheet, name: str | None, x: float, y: float, text: str, more: str = "") -> str:
    """Return a text; its mark is put on the element, since SVG has no span."""
    return f"<text x={x:.1f} y={y:.1f} {more}{f' data-m={chr(34)}{name}{chr(34)}' if name else ''}>{text}</text>"


def bars(rng: random.Random, style: int) -> Sheet:
    """Bars with numbers: upright, lying, grouped by an axis alone."""
    font = ("Cabin", "Liberation Sans", "Yanone Kaffeesatz")[style]
    width, height, size = ((640, 460, 20), (720, 420, 21), (560, 560, 24))[style]
    sheet = Sheet(rng, "bar_chart", "chromium", (width, height), font=font)
    title, unit, labels = (
        ("Visitors per museum", "thousand", ("Clock", "Toy", "Ship", "Lace", "Rail")),
        ("Litres of rain by month", "litres", ("May", "June", "July", "August", "September")),
        ("Votes for the mascot", "votes", ("Fox", "Owl", "Hare", "Newt")),
    )[style]  # fmt: skip
    values = rng.sample(range(12, 96), len(labels))
    if style == 2:
        values = [10 * value for value in rng.sample(range(2, 10), len(labels))]
    inner = _text(
        sheet, "title", width / 2, size * 1.9, title, f"text-anchor=middle font-weight=bold font-size={size * 1.25}"
    )
    colours = ("#3f7fbf", "#d98032", "#5aa469")
    step = (width - 100) / len(labels)
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        if style == 1:
            y, room = 70 + i * 64, width - 300
            inner += f"<rect x=170 y={y} width={room * value / 100} height=40 fill='{colours[1]}'/>"
            inner += _text(sheet, f"l{i}", 158, y + 28, label, "text-anchor=end") + _text(
                sheet, f"v{i}", 180 + room * value / 100, y + 28, str(value)
            )
            continue
        tall = (height - 150) * value / 100
        x = 80 + i * step
        inner += f"<rect x={x} y={height - 60 - tall} width={step * 0.65} height={tall} fill='{colours[style] if style == 0 else ('#c0392b', '#2471a3', '#229954', '#b7950b')[i]}'/>"
        inner += _text(sheet, f"l{i}", x + step * 0.32, height - 32, label, "text-anchor=middle")
        if style == 0:
            inner += _text(sheet, f"v{i}", x + step * 0.32, height - 68 - tall, str(value), "text-anchor=middle")
    if style == 2:
        for tick in range(0, 101, 20):
            y = height - 60 - (height - 150) * tick / 100
            inner = (
                f"<line x1=64 x2={width - 20} y1={y} y2={y} stroke='#ccc'/>"
                + inner
                + _text(sheet, f"t{tick}", 56, y + 8, str(tick), "text-anchor=end")
            )
    sheet.source = _svg(width, height, font, size, inner)
    best, least = values.index(max(values)), values.index(min(values))
    i, j = rng.sample(range(len(labels)), 2)
    sheet.ask("comparison", "Which bar is the highest?" if style != 1 else "Which bar is the longest?", (
        "Which museum had the most visitors?", "Which month was the wettest?", "Which animal won the vote?")[style], labels[best], f"l{best}")  # fmt: skip
    sheet.ask("comparison", None if style else "Which bar is the lowest?", (
        "Which museum is visited least?", "In which month did it rain least?", "Which animal got the fewest votes? Answer the question using a single word or phrase.")[style], labels[least], f"l{least}")  # fmt: skip
    sheet.ask("estimate" if style == 2 else "cell", f"What is the value of {labels[i]}?", (
        f"How many thousand people went to the {labels[i]} museum?", f"How much rain fell in {labels[i]}?", f"About how many votes did the {labels[i]} get?")[style], [str(values[i]), f"{values[i]} {unit}"], f"v{i}" if style != 2 else None)  # fmt: skip
    sheet.ask("yes_no", f"Is {labels[i]} higher than {labels[j]}?", None, "yes" if values[i] > values[j] else "no")
    sheet.ask("count", "How many bars are there?", None, str(len(labels)))
    sheet.ask(
        "title",
        "What is the title?",
        ("What does this chart show? Copy its title.", "Read the heading of the chart."),
        title,
        "title",
    )
    if style == 2:
        sheet.ask_absent("What is the value of Frog?", "How many votes did the Frog receive?", "frog")
    if style == 1:
        sheet.ask(
            "difference",
            None,
            f"How much more or less rain fell in {labels[i]} than in {labels[j]}? Give the difference.",
            [str(abs(values[i] - values[j])), f"{abs(values[i] - values[j])} litres"],
        )
    sheet.boxes = [f"l{j}"]
    sheet.box_texts = ["title"] if style else []
    sheet.scan = ({}, {"contrast": 0.6, "blur": 0.5, "jpeg": 70}, {})[style]
    return sheet


def is_valley(values: Sequence[int], i: int) -> bool:
    """Whether a line comes to a point from above on both sides, so that its number stands free below it."""
    return all(value > values[i] for value in (*values[max(i - 1, 0) : i], *values[i + 1 : i + 2]))


def line_chart(rng: random.Random, style: int) -> Sheet:
    font, width, height = "Open Sans", 760, 440
    sheet = Sheet(rng, "line_chart", "chromium", (width, height), font=font)
    labels = ("2021", "2022", "2023", "2024", "2025", "2026")
    values = rng.sample(range(15, 95), len(labels))
    inner = _text(sheet, "title", 40, 40, "Beehives kept in the city", "font-weight=bold font-size=26")
    points = []
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        x, y = 80 + i * 125, 350 - 2.5 * value
        points.append(f"{x},{y:.0f}")
        inner += (
            f"<circle cx={x} cy={y:.0f} r=6 fill='#7b2d8b'/>"
            + _text(sheet, f"l{i}", x, 420, label, "text-anchor=middle")
            + _text(sheet, f"v{i}", x, y + (28 if is_valley(values, i) else -14), str(value), "text-anchor=middle")
        )
    inner = (
        f"<line x1=50 x2={width - 20} y1=390 y2=390 stroke='#555'/><polyline fill=none stroke='#7b2d8b' stroke-width=4 points='{' '.join(points)}'/>"
        + inner
    )
    sheet.source = _svg(width, height, font, 21, inner)
    best, least = values.index(max(values)), values.index(min(values))
    i = rng.randrange(len(labels))
    sheet.ask(
        "cell",
        f"What is the value of {labels[i]}?",
        f"How many beehives were there in {labels[i]}?",
        str(values[i]),
        f"v{i}",
    )
    sheet.ask(
        "comparison",
        "Which point is the highest?",
        "In which year were there the most beehives?",
        labels[best],
        f"l{best}",
    )
    sheet.ask(
        "comparison",
        "Which point is the lowest?",
        "Which year had the fewest hives? Answer the question using a single word or phrase.",
        labels[least],
        f"l{least}",
    )
    sheet.ask("title", "What is the title?", None, "Beehives kept in the city", "title")
    sheet.ask("yes_no", None, "Were there more hives in 2026 than in 2021?", "yes" if values[-1] > values[0] else "no")
    sheet.ask_absent("What is the value of 2019?", None, "absent")
    sheet.boxes = ["l3", f"v{best}"]
    return sheet


def pie_chart(rng: random.Random, style: int) -> Sheet:
    font, width, height = ("Quicksand", "Liberation Serif")[style], 660, 420
    sheet = Sheet(rng, "pie_chart", "chromium", (width, height), font=font)
    title, labels = (
        ("How staff get to work", ("Bicycle", "Tram", "Car", "On foot")),
        ("Ausgaben des Vereins", ("Miete", "Reisen", "Material", "Kurse")),
    )[style]
    while True:
        cuts = sorted(rng.sample(range(8, 93), 3))
        shares = [b - a for a, b in zip((0, *cuts), (*cuts, 100), strict=True)]
        if min(shares) >= 8 and len(set(shares)) == 4:
            break
    colours = ("#ef6f6c", "#465775", "#f2c14e", "#59a96a")
    inner = _text(sheet, "title", width / 2, 42, title, "text-anchor=middle font-weight=bold font-size=27")
    angle = -pi / 2
    for i, share in enumerate(shares):
        end = angle + 2 * pi * share / 100
        x1, y1, x2, y2 = 200 + 150 * cos(angle), 240 + 150 * sin(angle), 200 + 150 * cos(end), 240 + 150 * sin(end)
        inner += f"<path d='M200 240 L{x1:.1f} {y1:.1f} A150 150 0 {int(share > 50)} 1 {x2:.1f} {y2:.1f} Z' fill='{colours[i]}' stroke='#fff' stroke-width='2'/>"
        y = 140 + i * 58
        inner += (
            f"<rect x=400 y={y - 22} width=28 height=28 fill='{colours[i]}'/>"
            + _text(sheet, f"l{i}", 442, y, labels[i])
            + _text(sheet, f"v{i}", 640, y, f"{share}%", "text-anchor=end")
        )
        angle = end
    sheet.source = _svg(width, height, font, 24, inner)
    best, least = shares.index(max(shares)), shares.index(min(shares))
    i, j = rng.sample(range(4), 2)
    sheet.ask(
        "cell",
        f"What is the value of {labels[i]}?",
        (f"What percentage is given for {labels[i]}?", f"What percentage is spent on {labels[i]}?")[style],
        [f"{shares[i]}%", str(shares[i])],
        f"v{i}",
    )
    sheet.ask(
        "comparison",
        "Which slice is the largest?",
        ("How do most people get to work?", "What is the most money spent on?")[style],
        labels[best],
        f"l{best}",
    )
    sheet.ask(
        "comparison",
        "Which slice is the smallest?",
        ("Which way of travelling is the rarest?", "What is the least money spent on?")[style],
        labels[least],
        f"l{least}",
    )
    sheet.ask(
        "sum",
        None,
        f"What do {labels[i]} and {labels[j]} make together?",
        [f"{shares[i] + shares[j]}%", str(shares[i] + shares[j])],
    )
    sheet.ask("title", "What is the title?", None, title, "title")
    sheet.boxes = [f"l{best}"]
    sheet.box_texts = [f"v{j}"]
    return sheet


def settings_screen(rng: random.Random, style: int) -> Sheet:
    """A list of switches and values, as telephones have it."""
    font = ("Open Sans", "Cantarell")[style]
    sheet = Sheet(rng, "screen", "chromium", ((400, 720), (420, 640))[style], font=font)
    title = ("Settings", "Lamp, hallway")[style]
    entries = (
        ("Wi-Fi", "Bluetooth", "Dark mode", "Location", "Airplane mode"),
        ("Night light", "Motion sensor", "Voice control", "Timer"),
    )[style]
    states = [rng.random() < 0.5 for _ in entries]
    states[0], states[1] = True, False
    extra = (
        (
            ("Network", code(rng, "Fernweh-##")),
            ("Storage", f"{rng.randint(11, 119)} GB of 128 GB"),
            ("Version", code(rng, "#.#.##")),
        )
        if style == 0
        else (("Brightness", f"{rng.randint(11, 97)}%"), ("Colour", "Warm white"), ("Power", f"{rng.randint(4, 12)} W"))
    )
    m = sheet.mark
    rows = "".join(
        f"<div class=r><span>{m(f'e{i}', entry)}</span><b class={'on' if on else 'off'}>{m(f's{i}', 'On' if on else 'Off')}</b></div>"
        for i, (entry, on) in enumerate(zip(entries, states, strict=True))
    )
    rows += "".join(
        f"<div class=r><span>{m(f'k{i}', key)}</span><span>{m(f'x{i}', value)}</span></div>"
        for i, (key, value) in enumerate(extra)
    )
    dark = style == 1
    sheet.source = page(
        f"body{{font:21px/1.3 '{font}';background:{'#16181c' if dark else '#f2f2f7'};color:{'#eee' if dark else '#111'};height:100vh;overflow:hidden}}h1{{font-size:1.5em;padding:26px 20px 16px}}.r{{display:flex;justify-content:space-between;background:{'#24272d' if dark else '#fff'};padding:15px 20px;margin-bottom:2px}}.on{{color:{'#7ee08a' if dark else '#188038'}}}.off{{color:#999}}",
        f"<h1>{m('title', title)}</h1>{rows}",
    )
    i = rng.randrange(len(entries))
    sheet.ask(
        "field",
        f"What is the state of {entries[i]}?",
        f"Is {entries[i]} switched on or off?",
        "On" if states[i] else "Off",
        f"s{i}",
    )
    sheet.ask("yes_no", None, f"Is {entries[1 - style]} on?", ("no", "yes")[style])
    sheet.ask(
        "field",
        f"What is the {extra[0][0].lower()}?",
        ("Which network is the phone connected to?", "How bright is the lamp set?")[style],
        extra[0][1],
        "x0",
    )
    sheet.ask(
        "field",
        f"What is the {extra[2][0].lower()}?",
        ("Which version is installed?", "How much power does the lamp use?")[style],
        [extra[2][1], extra[2][1].removesuffix(" W")],
        "x2",
    )
    sheet.ask("count", "How many switches are on?", "How many of these options are turned on?", str(sum(states)))
    sheet.ask("title", "What is the title?", None, title, "title")
    sheet.ask_absent(
        "What is the battery level?", ("What is the phone number of this telephone?", None)[style], "battery"
    )
    sheet.boxes = ["x0"] if style == 0 else ["e1", "x1"]
    sheet.box_texts = ["x1"] if style == 0 else ["title"]
    return sheet


def payments_screen(rng: random.Random, style: int) -> Sheet:
    """Payments of an account in an app, or a shopping basket on a web page."""
    font = ("Liberation Sans", "Go")[style]
    sheet = Sheet(rng, "screen", "chromium", ((420, 760), (900, 520))[style], font=font)
    m = sheet.mark
    if style == 0:
        shops = names(rng, FIRMS, 5)
        amounts = draw_amounts(rng, 5, 3, 160)
        balance = draw_amounts(rng, 1, 800, 5200)[0]
        days = ("Mon 3 May", "Tue 4 May", "Tue 4 May", "Thu 6 May", "Sat 8 May")
        rows = "".join(
            f"<div class=r><div><b>{m(f'n{i}', shop)}</b><br><small>{m(f'd{i}', day)}</small></div><span>{m(f'a{i}', EURO(a))}</span></div>"
            for i, (shop, a, day) in enumerate(zip(shops, amounts, days, strict=True))
        )
        sheet.source = page(f"body{{font:20px/1.3 '{font}';background:#eef1f6;height:100vh}}.t{{background:#0b4f6c;color:#fff;padding:26px 22px}}.t b{{font-size:1.8em}}.r{{display:flex;justify-content:space-between;background:#fff;margin:10px 14px;padding:14px;border-radius:10px}}small{{font-size:.85em;color:#555}}",
            f"<div class=t>Balance<br><b>{m('balance', EURO(balance))}</b></div>{rows}")  # fmt: skip
        i = rng.randrange(5)
        best, least = amounts.index(max(amounts)), amounts.index(min(amounts))
        sheet.ask(
            "field",
            "What is the balance?",
            ("How much money is left in the account?", "What have I got in my account?"),
            EURO.accepted(balance),
            "balance",
        )
        sheet.ask(
            "cell",
            f"What is the amount of {shops[i]}?",
            f"How much was paid to {shops[i]}?",
            EURO.accepted(amounts[i]),
            f"a{i}",
        )
        sheet.ask(
            "comparison", "Which payment is the largest?", "To whom went the largest payment?", shops[best], f"n{best}"
        )
        sheet.ask("comparison", None, "Which shop was paid the least?", shops[least], f"n{least}")
        sheet.ask("date", None, f"When was {shops[3]} paid?", days[3], "d3")
        sheet.ask("count", "How many payments are there?", None, "5")
        sheet.ask_absent("What is the account number?", "Who owns this account?", "owner")
        sheet.boxes = ["balance", f"n{i}"]
        sheet.box_texts = ["n1"]
        return sheet
    things = names(rng, ("Canvas tent", "Tin mug", "Head torch", "Wool blanket", "Camp stove", "Trail map"), 3)
    amounts = sorted(draw_amounts(rng, 3, 6, 140), reverse=True)
    post = 4.95
    rows = "".join(
        f"<tr><td><i class=q style='background:{colour}'></i></td><td>{m(f'n{i}', thing)}</td><td>{m(f'q{i}', str(i + 1))}</td><td class=n>{m(f'a{i}', EURO(a))}</td></tr>"
        for i, (thing, a, colour) in enumerate(zip(things, amounts, ("#c96", "#69c", "#6b7"), strict=True))
    )
    total = round(sum(amounts) + post, 2)
    sheet.source = page(f"body{{font:23px/1.3 '{font}';padding:24px 34px}}h1{{font-size:1.35em;margin-bottom:10px}}table{{width:100%;border-collapse:collapse}}td{{padding:10px;border-bottom:1px solid #ccc;vertical-align:middle}}.n{{text-align:right}}.q{{display:inline-block;width:56px;height:44px;border-radius:6px}}.b{{background:#f60;color:#fff;padding:12px 22px;border-radius:8px;float:right;margin-top:18px}}",
        f"<h1>{m('title', 'Your basket')}</h1><table>{rows}<tr><td><td>Postage<td><td class=n>{m('post', EURO(post))}<tr><td><td><b>Total</b><td><td class=n><b>{m('total', EURO(total))}</b></table><div class=b>{m('button', 'Buy now')}</div>")  # fmt: skip
    sheet.ask(
        "field",
        "What is the total?",
        ("How much will I be charged?", "What does the whole basket cost?"),
        EURO.accepted(total),
        "total",
    )
    sheet.ask("field", "What is the postage?", "How much is the delivery?", EURO.accepted(post), "post")
    best = amounts.index(max(amounts))
    sheet.ask(
        "comparison",
        "Which item costs the most?",
        "Which thing in the basket is the dearest?",
        things[best],
        f"n{best}",
    )
    sheet.ask("field", None, "What is written on the button?", "Buy now", "button")
    sheet.ask("cell", f"What is the quantity of {things[2]}?", None, "3", "q2")
    sheet.ask(
        "sum",
        None,
        f"What do the lines {things[0]} and {things[1]} come to together?",
        EURO.accepted(amounts[0] + amounts[1]),
    )
    sheet.boxes = ["button"]
    sheet.box_texts = ["n1"]
    return sheet


def without_text(rng: random.Random, style: int) -> Sheet:
    """A scene, a gradient, noise, blurred colours: nothing to read."""
    width, height = (
        (480, 360),
        (640, 400),
        (300, 300),
        (500, 500),
        (420, 640),
        (720, 300),
        (360, 240),
        (600, 600),
        (400, 400),
    )[style]
    sheet = Sheet(rng, "without_text", "chromium", (width, height))
    blobs = "".join(
        f"<circle cx={rng.randrange(width)} cy={rng.randrange(height)} r={rng.randint(30, 140)} fill='hsl({rng.randrange(360)},60%,{rng.randint(25, 75)}%)' opacity='.8'/>"
        for _ in range(16)
    )
    grain = "<filter id=g><feTurbulence type='fractalNoise' baseFrequency='{}' numOctaves='5' seed='7'/><feColorMatrix values='{}'/></filter>"
    hills = "".join(
        f"<path d='M0 {y} C{width * 0.3} {y - rng.randint(40, 110)} {width * 0.6} {y + rng.randint(10, 70)} {width} {y - 30} L{width} {height} L0 {height}Z' fill='{colour}'/>"
        for y, colour in ((height * 0.55, "#6f9a5a"), (height * 0.7, "#4f7f42"), (height * 0.85, "#35602f"))
    )
    scene = (
        # A house on hills.
        f"<rect width={width} height={height} fill='#9fd0f0'/><circle cx=390 cy=70 r=34 fill='#ffe27a'/>{hills}<rect x=150 y=170 width=110 height=90 fill='#c23b2e'/><path d='M140 172 L205 115 L270 172Z' fill='#5a3a2a'/><rect x=190 y=210 width=30 height=50 fill='#3a2418'/>",
        # Blurred lights, as out of focus.
        f"<filter id=b><feGaussianBlur stdDeviation='22'/></filter><rect width={width} height={height} fill='#1b2233'/><g filter='url(#b)'>{blobs}</g>",
        # A gradient.
        "<defs><linearGradient id=l x1=0 y1=0 x2=1 y2=1><stop offset=0 stop-color='#fa8072'/><stop offset=1 stop-color='#2e4a7d'/></linearGradient></defs><rect width=300 height=300 fill='url(#l)'/>",
        # Clouds.
        grain.format("0.012 0.02", "0 0 0 0 .95  0 0 0 0 .97  0 0 0 0 1  1.6 0 0 0 -.5") + "<rect width=500 height=500 fill='#4a86c8'/><rect width=500 height=500 filter='url(#g)'/>",
        # Three balloons over sea.
        f"<rect width={width} height={height} fill='#dff1fa'/><rect y=470 width={width} height=170 fill='#2f6f9f'/>" + "".join(f"<ellipse cx={x} cy={y} rx=52 ry=64 fill='{c}'/><path d='M{x} {y + 64} q12 40 -6 90' stroke='#555' fill=none stroke-width='2'/>" for x, y, c in ((110, 130, "#e94f37"), (220, 210, "#f6c445"), (320, 120, "#e94f37"))),
        # A lake at dusk.
        f"<defs><linearGradient id=s x1=0 y1=0 x2=0 y2=1><stop offset=0 stop-color='#2b1b4d'/><stop offset=.6 stop-color='#e8715c'/><stop offset=1 stop-color='#ffd29a'/></linearGradient></defs><rect width={width} height=190 fill='url(#s)'/><path d='M0 190 L110 95 L210 180 L330 70 L470 185 L600 120 L720 190Z' fill='#1a1730'/><rect y=188 width={width} height=112 fill='#4a3358'/>" + "".join(f"<rect x={rng.randrange(width)} y={rng.randrange(200, 290)} width={rng.randint(20, 90)} height=2 fill='#e8a88c' opacity='.6'/>" for _ in range(40)),
        # Noise.
        grain.format("0.9", "1 0 0 0 0  0 1 0 0 0  0 0 1 0 0  0 0 0 0 1") + f"<rect width={width} height={height} filter='url(#g)'/>",
        # Stone or bark: low frequencies.
        grain.format("0.03 0.12", ".7 0 0 0 .1  .5 0 0 0 .07  .35 0 0 0 .05  0 0 0 0 1") + f"<rect width={width} height={height} filter='url(#g)'/>",
        # A still life.
        "<rect width=400 height=400 fill='#e9dfc9'/><rect y=270 width=400 height=130 fill='#8a5a3a'/><ellipse cx=200 cy=285 rx=150 ry=28 fill='#d8d8e0'/><circle cx=140 cy=235 r=46 fill='#8fbf3f'/><circle cx=225 cy=238 r=44 fill='#d9432f'/><circle cx=185 cy=180 r=42 fill='#f0a830'/>",
    )[style]  # fmt: skip
    sheet.source = _svg(width, height, "sans-serif", 10, scene)
    sheet.ask_absent("What is the total?", ("How much do I have to pay?", "What was the bill?"), "total")
    other = (
        ("What is the date?", "When was this printed?"), ("What is the name of the shop?", "Which shop is it from?"),
        ("What is the phone number?", "Which number should I call?"), ("What is the title?", "What does the headline say?"),
    )[style % 4]  # fmt: skip
    sheet.ask_absent(*other, "other")
    sheet.ask("yes_no", None, ("Is there any writing in this image?", "Can anything be read here?"), "no")
    seen = {0: "a house", 4: "a balloon", 5: "a mountain", 8: "a plate"}.get(style)
    if seen is not None:
        sheet.ask("yes_no", None, f"Is there {seen} in this image?", "yes")
    if style == 0:
        sheet.ask("colour", "What colour is the house?", "Which colour do the walls of the house have?", "red")
    elif style == 4:
        sheet.ask("count", "How many balloons are there?", "Count the balloons.", ["3", "three"])
        sheet.ask("colour", None, "What colour is the balloon in the middle?", "yellow")
    elif style == 8:
        sheet.ask("count", "How many circles are there?", "How many pieces of fruit lie on the plate?", ["3", "three"])
    elif style == 2:
        sheet.ask("yes_no", None, "Is there a table in this picture?", "no")
    return sheet
