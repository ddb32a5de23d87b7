"""Sheets of shops and streets in HTML: receipts, price cards, menus, labels, tickets."""

from __future__ import annotations

import random

from scripts.wild.names import FIRMS, PEOPLE, STREETS, TOWNS, code, names
from scripts.wild.sheet import (
    DOLLAR,
    EURO,
    EURO_BEHIND,
    FRANC,
    KRONA,
    POUND,
    YEN,
    Money,
    Sheet,
    draw_amounts,
    draw_date,
    write_date,
)  # fmt: skip

TO_PAY = (
    "How much do I have to pay?", "What did this purchase come to in the end?", "How much money was spent altogether?",
    "What is the final amount? Answer the question using a single word or phrase.",
    "Tell me the amount due.", "What was the grand total on this bill?",
)  # fmt: skip
WHERE_BOUGHT = (
    "In which shop was this bought?", "Which shop is this receipt from?", "Who issued this receipt?",
    "Please give me the name of the store.",
)  # fmt: skip
DEAREST = (
    "What was the most expensive thing?", "Which of the products has the highest price?",
    "Which article was the priciest? Answer with the name only.",
)  # fmt: skip
CHEAPEST = (
    "What was the cheapest thing?", "Which of these is the least expensive?",
    "Which article has the lowest price? Answer with the name only.",
)  # fmt: skip
WHEN = (
    "When was this?", "On what day was this printed?", "What's the date on this one?",
    "On which date did this take place? Answer the question using a single word or phrase.",
)  # fmt: skip

GROCERIES = (
    "Oat milk", "Rye bread", "Red lentils", "Apricots", "Goat cheese", "Basmati rice", "Mustard", "Sparkling water",
    "Green olives", "Brown eggs", "Dish soap", "Peppermint tea", "Dark chocolate", "Smoked trout", "Baby spinach",
    "Walnut oil",
)  # fmt: skip
HARDWARE = (
    "Claw hammer", "Wood screws", "Masking tape", "Paint roller", "Sandpaper", "Door hinge", "Work gloves",
    "Copper pipe", "Spirit level", "Hex keys",
)  # fmt: skip


def page(css: str, body: str) -> str:
    return (
        "<!DOCTYPE html><html><head><meta charset='utf-8'><style>*{box-sizing:border-box;margin:0;padding:0}"
        f"body{{background:#fff;color:#111}}td,th{{vertical-align:top}}{css}</style></head><body>{body}</body></html>"
    )


def ask_money(sheet: Sheet, money: Money, value: float, kind: str, at: str, trained: str, natural) -> None:
    sheet.ask(kind, trained, natural, money.accepted(value), at)


def thermal_receipt(rng: random.Random, style: int) -> Sheet:
    """A narrow till receipt in type of one width."""
    font = ("Courier Prime", "Inconsolata", "Go Mono")[style]
    width = (384, 420, 360)[style]
    sheet = Sheet(rng, "receipt", "chromium", (width, 0), font=font)
    money = (DOLLAR, FRANC, POUND)[style]
    shop, street, town = rng.choice(FIRMS), rng.choice(STREETS), rng.choice(TOWNS)
    items = names(rng, GROCERIES if style != 1 else HARDWARE, (6, 9, 11)[style])
    prices = draw_amounts(rng, len(items), 0.8, 19)
    subtotal = round(sum(prices), 2)
    tax = round(subtotal * (0.07, 0.081, 0.2)[style], 2)
    total = round(subtotal + tax, 2)
    given = float(int(total / 10 + 1) * 10)
    day = write_date(draw_date(rng), ("american", "dots", "short")[style])
    time = f"{rng.randint(8, 20):02}:{rng.randint(10, 59)}"
    m = sheet.mark
    rows = "".join(
        f"<div class=r><span>{m(f'item{i}', name)}</span><span>{m(f'price{i}', money.number(price))}</span></div>"
        for i, (name, price) in enumerate(zip(items, prices, strict=True))
    )
    number = code(rng, "####-##")
    tax_name = ("Sales tax", "VAT 8.1%", "VAT 20%")[style]
    body = f"""<div class=c><b class=big>{m("shop", shop)}</b><br>{street}<br>{m("town", town)}</div><hr>
      <div class=r><span>{m("date", day)}</span><span>{m("time", time)}</span></div>
      <div class=r><span>Receipt</span><span>{m("number", number)}</span></div><hr>{rows}<hr>
      <div class=r><span>Subtotal</span><span>{m("subtotal", money.number(subtotal))}</span></div>
      <div class=r><span>{tax_name}</span><span>{m("tax", money.number(tax))}</span></div>
      <div class="r total"><b>TOTAL</b><b>{m("total", money(total))}</b></div><hr>
      <div class=r><span>Cash</span><span>{m("cash", money.number(given))}</span></div>
      <div class=r><span>Change</span><span>{m("change", money.number(round(given - total, 2)))}</span></div>
      <div class=c style="margin-top:14px">{("Thank you, come again", "Umtausch nur mit Beleg", "Please keep this slip")[style]}</div>"""
    sheet.source = page(
        f"body{{font:{(19, 20, 18)[style]}px/1.35 '{font}',monospace;padding:22px 20px}}.c{{text-align:center}}"
        ".big{font-size:1.35em}.r{display:flex;justify-content:space-between;gap:12px}.total{font-size:1.2em}"
        "hr{border:0;border-top:2px dashed #333;margin:9px 0}",
        body,
    )
    best, least = prices.index(max(prices)), prices.index(min(prices))
    i, j = rng.sample(range(len(items)), 2)
    ask_money(sheet, money, total, "field", "total", "What is the total?", TO_PAY)
    sheet.ask("field", "What is the name of the shop?", WHERE_BOUGHT, shop, "shop")
    sheet.ask("date", "What is the date?", WHEN, day, "date")
    if style == 0:
        sheet.ask("comparison", "Which item costs the most?", DEAREST, items[best], f"item{best}")
        ask_money(sheet, money, prices[i], "cell", f"price{i}", f"What does {items[i]} cost?", None)
        sheet.ask_absent("What is the phone number?", None, "phone")
    elif style == 1:
        sheet.ask("comparison", "Which item costs the least?", CHEAPEST, items[least], f"item{least}")
        sheet.ask("count", "How many items are there?", None, str(len(items)))
        ask_money(sheet, money, tax, "field", "tax", "What is the tax?", "How much of this is VAT?")
    else:
        cheaper = i if prices[i] < prices[j] else j
        sheet.ask("comparison", f"Which is cheaper, {items[i]} or {items[j]}?",
                  f"Did I pay less for {items[i]} or for {items[j]}?", items[cheaper], f"item{cheaper}")  # fmt: skip
        ask_money(sheet, money, round(given - total, 2), "field", "change", "What is the change?",
                  "How much cash was handed back to the customer?")  # fmt: skip
        sheet.ask(
            "sum", None, f"What do {items[i]} and {items[j]} cost together?", money.accepted(prices[i] + prices[j])
        )
    sheet.boxes = ["total", "shop"] if style == 0 else ["number"]
    sheet.box_texts = ["date"]
    sheet.scan = (
        {"angle": 1.4, "blur": 0.5, "noise": 6, "shadow": 0.25, "jpeg": 70},
        {},
        {"contrast": 0.55, "noise": 5, "jpeg": 75},
    )[style]
    return sheet


def cafe_receipt(rng: random.Random, style: int) -> Sheet:
    """A bill of a café with quantities, in a proportional face."""
    font = ("Cabin", "Yanone Kaffeesatz", "Comic Neue")[style]
    money = (EURO, EURO_BEHIND, KRONA)[style]
    sheet = Sheet(rng, "receipt", "chromium", ((460, 400, 480)[style], 0), font=font)
    pool = (
        ("Flat white", "Lemon tart", "Tomato soup", "Iced tea", "Cheese toast", "Almond cake", "Orange juice"),
        ("Kaffee Crema", "Apfelstrudel", "Linsensuppe", "Mineralwasser", "Butterbrezel", "Kakao", "Rhabarbersaft"),
        ("Cinnamon bun", "Salmon plate", "Elderflower soda", "Meatballs", "Rye toast", "Black coffee", "Waffles"),
    )[style]
    items = names(rng, pool, (4, 5, 4)[style])
    quantities = [rng.randint(1, 4) for _ in items]
    prices = draw_amounts(rng, len(items), *((2, 12), (2, 12), (28, 160))[style], (1, 1, 0)[style])
    amounts = [round(q * p, 2) for q, p in zip(quantities, prices, strict=True)]
    total = round(sum(amounts), 2)
    shop = ("Café Mirabelle", "Gasthaus Zur Linde", "Kaffestugan Örnen")[style]
    table, guests = str(rng.randint(2, 30)), str(rng.randint(2, 6))
    waiter = rng.choice(PEOPLE).split()[0]
    day = write_date(draw_date(rng), ("long", "dots", "iso")[style])
    words = (
        ("Table", "Guests", "Served by", "TOTAL"),
        ("Tisch", "Gäste", "Kellner", "SUMME"),
        ("Table", "Guests", "Waiter", "To pay"),
    )[style]
    m = sheet.mark
    rows = "".join(
        f"<tr><td>{m(f'q{i}', str(q))} ×</td><td>{m(f'item{i}', name)}</td><td class=n>{m(f'a{i}', money.number(a))}</td></tr>"
        for i, (q, name, a) in enumerate(zip(quantities, items, amounts, strict=True))
    )
    body = f"""<h1>{m("shop", shop)}</h1><p>{m("date", day)}</p>
      <p>{words[0]} {m("table", table)} &nbsp; {words[1]} {m("guests", guests)}</p><p>{words[2]}: {m("waiter", waiter)}</p>
      <table>{rows}<tr class=t><td colspan=2>{words[3]}</td><td class=n>{m("total", money(total))}</td></tr></table>
      <p class=f>{("Service is included", "Vielen Dank!", "Wi-Fi: fika2027")[style]}</p>"""
    sheet.source = page(
        f"body{{font:{(21, 25, 22)[style]}px/1.35 '{font}';padding:26px;background:{('#fffdf6', '#fff', '#f3f7fb')[style]};"
        "text-align:center}h1{font-size:1.5em}table{width:100%;margin:14px 0;text-align:left;border-collapse:collapse}"
        ".n{text-align:right}.t td{border-top:3px double #444;font-weight:700;padding-top:6px;font-size:1.2em}.f{font-style:italic}",
        body,
    )
    most = max(range(len(items)), key=amounts.__getitem__)
    i = rng.randrange(len(items))
    ask_money(sheet, money, total, "field", "total", "What is the total?", TO_PAY)
    sheet.ask(
        "field",
        "What is the table number?",
        ("At which table did they sit?", "Which table was served?"),
        table,
        "table",
    )
    sheet.ask("field", None, ("Who served the guests?", "What is the waiter called?"), waiter, "waiter")
    if amounts.count(max(amounts)) == 1:
        sheet.ask(
            "comparison",
            "Which item has the highest amount?",
            ("On which item was the most money spent?", "Which line of the bill is the largest? Name the item."),
            items[most],
            f"item{most}",
        )
    sheet.ask(
        "cell",
        f"What is the quantity of {items[i]}?",
        f"How many {items[i]} were ordered?",
        str(quantities[i]),
        f"q{i}",
    )
    sheet.ask("date", "What is the date?", None, day, "date")
    if style == 1:
        sheet.ask_absent("What is the tax number?", "What is the street address of this restaurant?", "address")
    sheet.boxes = ["total"]
    sheet.scan = ({}, {"angle": -2.1, "blur": 0.4, "noise": 4, "jpeg": 72}, {})[style]
    if style == 0:
        sheet.ask_to_read(True, "Please copy out everything that is written on this bill.")
    return sheet


def price_card(rng: random.Random, style: int) -> Sheet:
    """A shelf label or a card with one large price."""
    font = ("Open Sans", "Play", "Quicksand")[style]
    sheet = Sheet(rng, "price_card", "chromium", ((340, 200), (300, 180), (420, 260))[style], font=font)
    money = (DOLLAR, YEN, EURO_BEHIND)[style]
    name = ("Cordless drill", "Bamboo tea tray", "Bergkäse gereift")[style]
    price = (draw_amounts(rng, 1, 40, 160)[0], float(rng.randrange(1200, 9800, 20)), draw_amounts(rng, 1, 3, 9)[0])[
        style
    ]
    unit = (None, None, round(price / 0.4, 2))[style]
    number = code(rng, ("##-#####", "JP ### ###", "Art. ####")[style])
    maker = rng.choice(FIRMS)
    m = sheet.mark
    line = (
        f"<p>{m('weight', '400 g')} &nbsp; 1 kg = {m('unit', money(unit))}</p>"
        if unit
        else f"<p>{m('maker', maker)}</p>"
    )
    body = f"<h2>{m('name', name)}</h2>{line}<div class=p>{m('price', money(price))}</div><p class=s>{m('number', number)}</p>"
    colours = ("#ffe14d", "#ffffff", "#eaf6ea")[style]
    sheet.source = page(
        f"body{{font:{(18, 17, 20)[style]}px/1.3 '{font}';padding:14px 18px;background:{colours};border:4px solid "
        f"{('#b3131b', '#22335c', '#2d6a39')[style]};height:100vh;overflow:hidden}}.p{{font-size:{(54, 46, 62)[style]}px;font-weight:700;"
        "line-height:1.2}.s{font-size:.85em}h2{font-size:1.35em}",
        body,
    )
    ask_money(
        sheet,
        money,
        price,
        "field",
        "price",
        "What is the price?",
        (
            "How much is it?",
            "What would I have to pay for this?",
            "How much does this product cost? Answer with the price only.",
        ),
    )
    sheet.ask(
        "field",
        "What is the product?",
        ("What is being sold here?", "Which article does this price tag belong to?"),
        name,
        "name",
    )
    sheet.ask(
        "field",
        "What is the article number?",
        "Give me the item code printed on the label.",
        [number, number.removeprefix("Art. ")],
        "number",
    )
    if unit:
        ask_money(
            sheet, money, unit, "field", "unit", "What is the price of 1 kg?", "How much would a whole kilogram cost?"
        )
        sheet.ask("field", "What is the weight?", None, "400 g", "weight")
    else:
        sheet.ask("field", "What is the maker?", "Which company makes it?", maker, "maker")
        sheet.ask_absent("What is the discount?", None, "discount")
    sheet.boxes = ["price"]
    sheet.box_texts = ["name"]
    if style != 1:
        sheet.ask_to_read(True, "What does it say on this card?" if style == 0 else None)
    return sheet


def menu(rng: random.Random, style: int) -> Sheet:
    """A menu with dishes, descriptions and prices."""
    font = ("EB Garamond", "Cabin", "Vollkorn")[style]
    sheet = Sheet(rng, "menu", "chromium", ((620, 0), (700, 0), (520, 0))[style], font=font)
    money = (POUND, EURO, FRANC)[style]
    dishes = (
        (("Smoked mackerel", "horseradish, pickled beetroot"), ("Leek tart", "hazelnut and watercress"),
         ("Braised lamb", "barley, mint, young carrots"), ("Roast cauliflower", "tahini and golden raisins"),
         ("Treacle pudding", "clotted cream"), ("Stilton plate", "quince and oatcakes")),
        (("Gazpacho", "cold tomato soup"), ("Croquetas", "ham and bechamel"), ("Pulpo", "octopus with paprika"),
         ("Tortilla", "potato and egg"), ("Churros", "with hot chocolate"), ("Patatas bravas", "spicy sauce"),
         ("Flan casero", "caramel custard")),
        (("Soupe du jour", "selon le marché"), ("Filet de perche", "beurre citronné"), ("Fondue", "deux fromages"),
         ("Mousse au chocolat", "maison"), ("Salade verte", "noix et lardons")),
    )[style]  # fmt: skip
    prices = draw_amounts(rng, len(dishes), 5, 29, 1)
    title = ("The Copper Kettle", "Bodega Luna", "Auberge du Lac")[style]
    note = ("Kitchen closes at 21:30", "Closed on Mondays", "Service 15% inclus")[style]
    m = sheet.mark
    rows = "".join(
        f"<div class=d><div><b>{m(f'd{i}', dish)}</b><br><i>{m(f'x{i}', text)}</i></div><span>{m(f'p{i}', money.number(p))}</span></div>"
        for i, ((dish, text), p) in enumerate(zip(dishes, prices, strict=True))
    )
    sheet.source = page(
        f"body{{font:{(24, 23, 24)[style]}px/1.3 '{font}';padding:34px 42px;background:{('#fbf7ee', '#23303a', '#ffffff')[style]};"
        f"color:{('#2c2216', '#f4efe2', '#1b1b40')[style]}}}h1{{text-align:center;font-size:1.8em;margin-bottom:16px}}"
        ".d{display:flex;justify-content:space-between;margin:9px 0;gap:20px}i{font-size:.9em}.f{text-align:center;margin-top:16px}"
        + (".d>span{border-bottom:2px dotted}" if style == 2 else ""),
        f"<h1>{m('title', title)}</h1>{rows}<p class=f>{m('note', note)}</p>",
    )
    best, least = prices.index(max(prices)), prices.index(min(prices))
    i, j = rng.sample(range(len(dishes)), 2)
    ask_money(
        sheet,
        money,
        prices[i],
        "cell",
        f"p{i}",
        f"What does {dishes[i][0]} cost?",
        f"If I order the {dishes[i][0]}, how much is it?",
    )
    sheet.ask(
        "comparison",
        "Which item costs the most?",
        ("Which dish is the priciest?", "What is the most expensive thing on the menu?"),
        dishes[best][0],
        f"d{best}",
    )
    sheet.ask(
        "comparison",
        None,
        ("What's the cheapest dish here?", "Which dish costs least? Answer with its name only."),
        dishes[least][0],
        f"d{least}",
    )
    sheet.ask("title", "What is the title?", ("What is this restaurant called?", "Whose menu is this?"), title, "title")
    sheet.ask("count", "How many items are there?", "How many dishes can one choose from?", str(len(dishes)))
    if style != 1:
        sheet.ask("line", f"Which line comes after {dishes[j][0]}?", None, dishes[j][1], f"x{j}")
    else:
        sheet.ask("field", None, "On which day of the week are they not open?", ["Mondays", "Monday"], "note")
    if style == 0:
        sheet.ask_absent("What is the phone number?", "Which wines are offered?", "wine")
    sheet.boxes = [f"d{j}", f"p{i}"] if style else [f"d{j}"]
    sheet.scan = ({}, {}, {"angle": 1.8, "shadow": 0.35, "blur": 0.6, "jpeg": 70})[style]
    return sheet


def parcel_label(rng: random.Random, style: int) -> Sheet:
    """A label on a parcel, or of a product."""
    font = ("Liberation Sans Narrow", "B612")[style]
    sheet = Sheet(rng, "label", "chromium", ((520, 700), (560, 380))[style], font=font)
    sender, receiver = names(rng, PEOPLE, 2)
    street, town = rng.choice(STREETS), rng.choice(TOWNS)
    postcode = code(rng, ("@@# #@@", "#####")[style])
    weight = f"{draw_amounts(rng, 1, 1.1, 18, 1)[0]} kg"
    tracking = code(rng, ("@@ #### #### #", "#### #### ####")[style])
    m = sheet.mark
    bars = "".join(
        f"<i style='width:{rng.choice((2, 3, 5, 7))}px;margin-right:{rng.choice((2, 3, 5))}px'></i>" for _ in range(44)
    )
    date = write_date(draw_date(rng), ("short", "slashes")[style])
    service = ("EXPRESS", "Economy")[style]
    body = f"""<div class=top><b>{m("service", service)}</b><span>{m("weight", weight)}</span></div>
      <p class=s>From: {m("sender", sender)}, {rng.choice(TOWNS)}</p>
      <div class=to>To<br><b>{m("receiver", receiver)}</b><br>{m("street", street)}<br>{m("town", town)}<br>{m("post", postcode)}</div>
      <div class=bars>{bars}</div><p class=n>{m("tracking", tracking)}</p><p class=s>Ship date {m("date", date)}</p>"""
    sheet.source = page(
        f"body{{font:{(27, 20)[style]}px/1.3 '{font}';padding:{(24, 16)[style]}px;border:3px solid #000;height:100vh}}.top{{display:flex;"
        "justify-content:space-between;border-bottom:3px solid;font-size:1.4em;padding-bottom:6px}.s{font-size:.85em;margin:8px 0}"
        f".to{{border:2px solid;padding:10px;margin:8px 0}}.to b{{font-size:1.25em}}.bars{{height:{(110, 40)[style]}px;display:flex;margin-top:10px;overflow:hidden}}"
        ".bars i{background:#000;height:100%;flex:none}.n{letter-spacing:2px}",
        body,
    )
    sheet.ask(
        "field",
        "What is the name of the receiver?",
        ("Who is this parcel for?", "Who will get this package?"),
        receiver,
        "receiver",
    )
    sheet.ask(
        "field",
        "What is the weight?",
        ("How heavy is the parcel?", "How many kilograms does it weigh? Answer with the text only."),
        [weight, weight.removesuffix(" kg")],
        "weight",
    )
    sheet.ask("field", "What is the name of the sender?", "Who sent it?", sender, "sender")
    sheet.ask("field", "What is the tracking number?", None, [tracking, tracking.replace(" ", "")], "tracking")
    sheet.ask("date", None, "When was it shipped?", date, "date")
    sheet.ask_absent("What is the price?", "How much was paid for postage?" if style else None, "postage")
    sheet.boxes = ["receiver", "tracking"]
    sheet.box_texts = ["town"]
    sheet.scan = ({"angle": -1.2, "noise": 7, "blur": 0.7, "jpeg": 65}, {})[style]
    if style:
        sheet.ask_to_read(True)
    return sheet


def ticket(rng: random.Random, style: int) -> Sheet:
    """A ticket of a train, of a concert, of a car park."""
    font = ("Go", "Vollkorn", "Inconsolata")[style]
    sheet = Sheet(rng, "ticket", "chromium", ((640, 260), (600, 240), (300, 0))[style], font=font)
    m = sheet.mark
    day = write_date(draw_date(rng), ("short", "us_long", "dots")[style])
    number = code(rng, ("@@@###", "#######", "P-####")[style])
    first, second = names(rng, TOWNS, 2)
    at = [f"{rng.randint(6, 21):02}:{rng.randint(10, 59)}" for _ in range(2)]
    at.sort()
    money = (POUND, DOLLAR, EURO_BEHIND)[style]
    price = draw_amounts(rng, 1, *((12, 80), (25, 95), (2, 14))[style], (1, 0, 1)[style])[0]
    money = Money(money.form, money.decimal, money.thousands, (2, 2, 2)[style])
    seat, coach = code(rng, "##") + rng.choice("ABCD"), rng.choice("BCDEFGH")
    place = ("Orchard Hall", "Tivoli Theatre", "Parkhaus Altmarkt")
    if style == 0:
        body = f"""<div class=bar>{m("kind", "Off-Peak Return")}</div><table><tr><th>From<th>To<th>Date<tr><td>{m("from", first)}<td>{m("to", second)}<td>{m("date", day)}
          <tr><th>Departs<th>Coach / Seat<th>Price<tr><td>{m("time", at[0])}<td>{m("coach", coach)} / {m("seat", seat)}<td>{m("price", money(price))}</table>
          <p>Booking ref. {m("number", number)}</p>"""
        css = ".bar{background:#e8702a;color:#fff;padding:6px 16px;font-weight:700}table{width:100%;padding:8px 12px}th{font-size:.75em;text-align:left;color:#555}td{font-weight:700}p{padding:0 16px}"
        sheet.ask(
            "field",
            "What is the destination?",
            ("Where does this train go?", "Which town is the passenger travelling to?"),
            second,
            "to",
        )
        sheet.ask(
            "field",
            "What is the seat?",
            ("Which seat is reserved?", "Where do I have to sit?"),
            [seat, f"{coach} / {seat}"],
            "seat",
        )
        sheet.ask("field", "What is the time of departure?", "When does the train leave?", at[0], "time")
        ask_money(sheet, money, price, "field", "price", "What is the price?", "What did the ticket cost?")
        sheet.ask("yes_no", f"Is {first} the destination?", None, "no")
        sheet.ask_absent(None, "At which platform does it leave? Answer with a single word or phrase.", "platform")
    elif style == 1:
        act = rng.choice(("The Hollow Reeds", "Marguerite Vane Trio", "Sister Cartography"))
        body = f"""<div class=l><h1>{m("act", act)}</h1><p>{m("place", place[1])}, {m("town", first)}</p><p>{m("date", day)}, doors {m("doors", at[0])}</p></div>
          <div class=rr><p>Row {m("row", coach)}</p><p>Seat {m("seat", seat[:2])}</p><p class=b>{m("price", money(price))}</p><p class=s>No. {m("number", number)}</p></div>"""
        css = "body{display:flex;height:100vh;background:#f2ead9}.l{flex:1;padding:26px}.rr{border-left:3px dashed #835;padding:22px 26px}.b{font-weight:800;font-size:1.3em}.s{font-size:.8em}h1{color:#6b1d3a;font-size:1.5em;line-height:1.15;margin-bottom:12px}"
        sheet.ask("field", "What is the title?", ("Who is playing?", "Which band is this ticket for?"), act, "act")
        sheet.ask("date", "What is the date?", "When is the concert?", day, "date")
        sheet.ask("field", None, "At which venue does it take place?", [place[1], f"{place[1]}, {first}"], "place")
        sheet.ask("field", "What is the row?", "In which row is my seat?", coach, "row")
        sheet.ask("field", "What is the ticket number?", None, number, "number")
        ask_money(sheet, money, price, "field", "price", None, "How much did one pay to get in?")
    else:
        plate = code(rng, "@@-@@ ###")
        body = f"""<h2>{m("place", place[2])}</h2><p>Ticket {m("number", number)}</p><hr><p>Einfahrt</p><p class=b>{m("in", at[0])}</p><p>Ausfahrt</p><p class=b>{m("out", at[1])}</p>
          <p>{m("date", day)}</p><p>Kennzeichen {m("plate", plate)}</p><hr><p>Betrag</p><p class=b>{m("price", money(price))}</p>"""
        css = "body{text-align:center;padding:18px 10px}.b{font-weight:700;font-size:1.5em}hr{margin:8px 0}h2{font-size:1.15em}"
        sheet.ask("field", "What is the amount?", TO_PAY[:2], money.accepted(price), "price")
        sheet.ask(
            "field",
            "What is the number plate?",
            "Which car is this ticket for? Give the licence plate.",
            plate,
            "plate",
        )
        sheet.ask("field", None, ("At what time did the car drive in?", "When did the car enter?"), at[0], "in")
        sheet.ask("field", "What is the time under Ausfahrt?", "At what time did the car leave?", at[1], "out")
        sheet.ask("date", "What is the date?", None, day, "date")
        sheet.ask_absent("What is the email?", None, "email")
        sheet.scan = {"angle": 2.6, "contrast": 0.6, "noise": 4, "jpeg": 70}
    sheet.source = page(f"body{{font:{(22, 22, 21)[style]}px/1.35 '{font}'}}" + css, body)
    sheet.boxes = ["price"]
    sheet.box_texts = ["date"]
    return sheet
