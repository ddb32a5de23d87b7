"""What tickets, labels, cards, menus, timetables, slides, pages of two columns, signs and screens say."""

from __future__ import annotations

from monkey.data.pages.business import write_paragraphs
from monkey.data.pages.contents import Content, Grid, Room, begin, share_out, state, state_some, state_title
from monkey.data.pages.spelling import DAYS, Writer, write_number
from monkey.data.pages.stated import FACTS, Value

_TICKETS = {
    "train": (
        "from to",
        "departure_date departure_time arrival_time train_number coach seat platform class fare passenger",
    ),
    "flight": (
        "from to",
        "departure_date departure_time boarding_time flight_number gate terminal seat class passenger",
    ),
    "bus": ("from to", "departure_date departure_time platform seat fare duration distance category"),
    "event": ("event", "venue date start_time row seat section entrance price category holder"),
    "parking": ("location", "date start_time end_time fee code"),
}


def write_ticket(writer: Writer, room: Room) -> Content:
    """A ticket for a journey, an event or a place to park. Groups: main, facts, codes."""
    rng = writer.rng
    theme = rng.choice(list(_TICKETS))
    main, facts = (part.split() for part in _TICKETS[theme])
    content = begin(writer, " ".join((*main, *facts, "company ticket_number booking_code barcode title")))
    for key in main:
        make = None if key != "location" else Value(f"{writer.name()} {writer.choice(('Garage', 'Square', 'Station'))}")
        state(content, writer, key, "main", value=make, label="Parking" if make else None)
    most = max(3, min(len(facts), 2 * (room.lines - 6)))
    state_some(content, writer, facts, min(3, most), most, "facts")
    state_some(content, writer, ("ticket_number", "booking_code"), 0, 2, "codes")
    if rng.random() < 0.6:
        state(content, writer, "company", label="")
    else:
        state_title(content, writer, f"{theme.capitalize()} {writer.choice(('ticket', 'Ticket', 'pass'))}")
    place = content.fields[main[-1]][1].text
    kinds = {"event": f"An event ticket for {place}.", "parking": f"A parking ticket of {place}."}
    content.description = kinds.get(theme, f"A {theme} ticket from {content.fields[main[0]][1].text} to {place}.")
    return content


def write_label(writer: Writer, room: Room) -> Content:
    """The label of a product or of a parcel. Groups: head, main, facts, foot; at times a table of nutrients."""
    rng = writer.rng
    product = """brand maker weight volume price unit_price expiry_date production_date batch article_number barcode
    origin ingredients storage warning energy material size serial_number model voltage power"""
    parcel = "recipient address sender weight order_number reference date quantity warning barcode"
    if rng.random() < 0.3:
        content = begin(writer, parcel)
        state(content, writer, "recipient", "main", writer.choice(("", "To", "Ship to")))
        state(content, writer, "address", "main", "")
        state_some(
            content, writer, ("sender", "weight", "order_number", "reference", "date", "quantity"), 1, 4, "facts"
        )
        content.description = f"A label of a parcel to {content.fields['recipient'][1].text}."
    else:
        content = begin(writer, "product " + product)
        name = state(content, writer, "product", "main", "").text
        state_some(content, writer, ("brand", "maker"), 0, 1, "head", bare=True)
        keys = rng.choice(
            (
                ("weight", "price", "unit_price", "expiry_date", "production_date", "batch", "origin", "storage"),
                ("ingredients", "weight", "expiry_date", "batch", "origin", "maker", "energy", "storage"),
                ("article_number", "size", "material", "price", "origin"),
                ("model", "serial_number", "voltage", "power", "maker", "origin", "production_date", "warning"),
            )
        )
        most = max(2, min(len(keys), room.lines - 4))
        state_some(content, writer, keys, -(-most // 2), most, "facts")
        if rng.random() < 0.2 and room.lines > 10 and "energy" not in content.fields:
            nutrients = writer.some(
                lambda: rng.choice(("Fat", "Sugar", "Salt", "Protein", "Fibre", "Starch", "Carbs")), 4
            )
            numbers = [writer.number(0.1, 60, 1) for _ in nutrients]
            rows = tuple(
                (Value(name), Value(write_number(number, writer.numbers, 1) + " g", number))
                for name, number in zip(nutrients, numbers, strict=True)
            )
            content.tables.append(Grid("nutrient", ("Nutrition", "per 100 g"), ("", "weight"), rows))
        content.description = f"A label of {name}."
    state_some(content, writer, ("barcode",), 0, 1, "foot", bare=True)
    return content


def write_card(writer: Writer, room: Room) -> Content:
    """A card of a person, a price, a customer, a gift. Groups: main, second, facts, foot."""
    rng = writer.rng
    theme = rng.choice(("business", "business", "price", "price", "loyalty", "gift"))
    if theme == "business":
        content = begin(writer, "name job company phone mobile fax email website address department")
        person = state(content, writer, "name", "main", "")
        state_some(content, writer, ("job", "department"), 0, 1, "second", bare=True)
        state(content, writer, "company", "second", "")
        state_some(content, writer, ("phone", "mobile"), 1, 2, "facts")
        state_some(content, writer, ("email", "website", "address"), 1, 3, "foot", bare=True)
        content.description = f"A business card of {person.text}."
    elif theme == "price":
        content = begin(
            writer, "product price old_price unit_price article_number origin barcode valid_until weight brand"
        )
        product = state(content, writer, "product", "second", "")
        price = state(content, writer, "price", "main", writer.choice(("", "", "Now", "Only", "Price")))
        if rng.random() < 0.3:
            old = price.number * rng.choice((1.1, 1.25, 1.5, 2))
            state(content, writer, "old_price", "facts", value=Value(writer.amount(round(old, 2)), round(old, 2)))
        state_some(content, writer, ("unit_price", "article_number", "origin", "weight", "valid_until"), 0, 3, "facts")
        state_some(content, writer, ("barcode",), 0, 1, "foot", bare=True)
        content.description = f"A price card of {product.text} for {price.text}."
    else:
        gift = theme == "gift"
        content = begin(
            writer, "seller member member_number points member_since valid_until code amount slogan website"
        )
        shop = state(content, writer, "seller", "main", "").text
        value = Value(
            writer.choice(("Gift card", "Voucher"))
            if gift
            else writer.choice(("Member card", "Bonus card", "Club card"))
        )
        state(content, writer, "title", "second", "", value)
        facts = (
            ("amount", "code", "valid_until")
            if gift
            else ("member", "member_number", "points", "member_since", "valid_until")
        )
        state_some(content, writer, facts, 2, len(facts), "facts")
        state_some(content, writer, ("slogan", "website"), 0, 1, "foot", bare=True)
        content.description = f"A {value.text.lower()} of {shop}."
    return content


def write_menu(writer: Writer, room: Room) -> Content:
    """Dishes and drinks with prices, in one to three tables. Groups: head, foot."""
    rng = writer.rng
    content = begin(writer, "title seller slogan opening_hours phone website date note address")
    state(content, writer, "seller", label="")
    if rng.random() < 0.5:
        state_title(
            content, writer, writer.choice(("Menu", "Lunch menu", "Menu of the day", "Our dishes", "Bar", "Card"))
        )
    state_some(content, writer, ("slogan", "date"), 0, 1, "head", bare=True)
    state_some(content, writer, ("opening_hours", "phone", "website"), 0, 2, "foot", bare=True)
    sections = {
        "dish": ("Starters", "Soups", "Salads", "Mains", "Pasta", "Pizza", "Desserts", "Specials"),
        "drink": ("Drinks", "Coffee", "Wine", "Juices", "Cocktails"),
    }
    count = rng.choice((1, 2, 2, 3)) if room.lines > 12 else 1
    keys = rng.sample(("dish", "dish", "drink"), count)
    heads = writer.shuffled(sections["dish"])
    plain = rng.random() < 0.4  # prices without currency
    names = iter(writer.some(writer.goods, 40))
    for key in sorted(keys):
        rows = []
        for _ in range(max(2, share_out(writer, (room.lines - 4) // count - 2))):
            price = round(writer.number(2, 38) * 10) / 10
            text = write_number(price, writer.numbers) if plain else writer.amount(price)
            rows.append((Value(next(names, writer.goods())), Value(text, price)))
        head = heads.pop() if key == "dish" else rng.choice(sections["drink"])
        content.tables.append(Grid(key, (head, "Price"), ("", "price"), tuple(rows[:12])))
    content.description = f"A menu of {content.fields['seller'][1].text}."
    return content


def write_timetable(writer: Writer, room: Room) -> Content:
    """Departures, a week of lessons, or the programme of a day. Groups: head, foot."""
    rng = writer.rng
    content = begin(writer, "title location valid_from valid_until date note phone")
    theme = rng.choice(("departure", "departure", "lesson", "event"))
    count = max(3, share_out(writer, min(14, room.lines - 4)))
    minutes = sorted(rng.sample(range(6 * 60, 23 * 60), count))
    times = [f"{minute // 60:02d}:{minute % 60:02d}" for minute in minutes]
    if theme == "departure":
        columns = {
            "Platform": ("platform", lambda: writer.digits(rng.choice(("#", "##", "#?")))),
            "Train": ("line", lambda: writer.digits(rng.choice(("?? ##", "??#", "?#")))),
            "Via": ("", writer.city), "Arrival": ("arrival", writer.time),
            "Status": ("status", lambda: rng.choice(("On time", "Delayed", "Boarding", "Cancelled"))),
        }  # fmt: skip
        most = max(0, min(3, int((room.width - 12) / 5)))
        heads = rng.sample(list(columns), rng.randint(min(1, most), most))
        names = writer.some(writer.city, count)
        rows = tuple(
            (Value(time), Value(name), *(Value(columns[head][1]()) for head in heads))
            for time, name in zip(times, names, strict=True)
        )
        keys = ("departure", "destination", *(columns[head][0] for head in heads))
        first, second = writer.choice(("Time", "Departure")), writer.choice(("Destination", "To"))
        content.tables.append(Grid("departure", (first, second, *heads), keys, rows))
        state_title(content, writer, writer.choice(("Departures", "Timetable", "DEPARTURES")))
        state(content, writer, "location", "head", "", Value(writer.city()))
    elif theme == "lesson":
        most = max(1, min(5, int((room.width - 4) / 5.5)))
        start = rng.randint(0, 5 - most)
        days = DAYS[start : start + most]
        short = rng.random() < 0.5
        step = rng.choice((45, 50, 60, 90))
        count = min(count, 8)
        first = rng.choice((480, 495, 510, 540))
        subjects = writer.some(writer.name, max(4, count))
        rows = tuple(
            (
                Value(f"{(first + step * row) // 60:02d}:{(first + step * row) % 60:02d}"),
                *(Value(rng.choice(subjects) if rng.random() < 0.88 else "") for _ in days),
            )
            for row in range(count)
        )
        heads = tuple(day[:3] if short else day for day in days)
        content.tables.append(Grid("lesson", ("Time", *heads), ("", *[""] * len(days)), rows))
        state_title(content, writer, f"{writer.choice(('Class', 'Week', 'Timetable'))} {writer.code('#?', '##')}")
    else:
        has_room = room.width > 18 and rng.random() < 0.5
        names = writer.some(lambda: writer.phrase(1, 3), count)
        rows = tuple(
            (Value(name), Value(time), *([FACTS["room"][1](writer)] if has_room else []))
            for time, name in zip(times, names, strict=True)
        )
        rooms = (("Room",), ("room",)) if has_room else ((), ())
        content.tables.append(Grid("event", ("Event", "Time", *rooms[0]), ("", "time", *rooms[1]), rows))
        state_title(content, writer, writer.choice(("Programme", "Schedule", "Agenda", "Today")))
        state(content, writer, "date", "head", "")
    state_some(content, writer, ("valid_from",), 0, 1, "foot")
    content.description = f"A timetable titled {content.fields['title'][1].text}."
    return content


def write_slide(writer: Writer, room: Room) -> Content:
    """A slide with points, or with a small table. Groups: foot."""
    rng = writer.rng
    content = begin(writer, "title subtitle author date company slide_number source")
    state_title(content, writer, writer.phrase(1, 4))
    if rng.random() < 0.3:
        state(content, writer, "subtitle", label="")
    count = max(2, min(6, share_out(writer, int(room.lines * 0.6) - 3)))
    if rng.random() < 0.3:
        rows = []
        for name in writer.some(writer.name, count):
            number = writer.integer(2, 999)
            rows.append((Value(name), Value(str(number), float(number))))
        content.tables.append(Grid("category", (writer.name(), writer.name()), ("", ""), tuple(rows)))
    else:
        words = max(2, min(7, int(room.width / 4)))
        points = writer.some(lambda: writer.phrase(1, words), count)
        content.tables.append(Grid("point_of_list", ("Point",), ("",), tuple((Value(text),) for text in points), False))
    state_some(content, writer, ("author", "date", "company"), 0, 2, "foot", bare=True)
    if rng.random() < 0.4:
        number = rng.randint(1, 60)
        state(content, writer, "slide_number", "foot", "", Value(str(number), float(number)))
    content.description = f"A slide titled {content.fields['title'][1].text}."
    return content


def write_columns(writer: Writer, room: Room) -> Content:
    """A page of running text in two columns. Groups: head, foot."""
    rng = writer.rng
    content = begin(writer, "title subtitle author date page_number company source")
    state_title(content, writer, writer.phrase(2, 5))
    state_some(content, writer, ("author", "date"), 0, 2, "head", bare=True)
    state_some(content, writer, ("page_number",), 0, 1, "foot", bare=True)
    lines = max(4, room.lines - 6)
    content.paragraphs = write_paragraphs(writer, room.width * 1.2, lines, rng.choice((2, 3, 4)))
    content.description = f"A page of text in two columns titled {content.fields['title'][1].text}."
    return content


_SIGNS = (
    "No entry", "Exit", "Open", "Closed", "Parking", "No smoking", "Private", "Push", "Pull", "Sale", "Danger",
    "Reception", "Please ring", "Waiting room", "No parking", "Keep right", "Staff only", "For rent", "Wet paint",
)  # fmt: skip


def write_sign(writer: Writer, room: Room) -> Content:
    """A few large words: a warning, a shop's door, a way to somewhere. Groups: main, facts."""
    rng = writer.rng
    content = begin(writer, "sign seller number opening_hours phone distance to room website speed note slogan")
    theme = rng.choice(("words", "words", "shop", "way", "room"))
    if theme == "words":
        words = max(1, min(3, int(room.width / 4)))
        text = rng.choice(_SIGNS) if rng.random() < 0.3 else writer.phrase(1, words)
        state(content, writer, "sign", "main", "", Value(text if rng.random() < 0.6 else text.upper()))
        state_some(content, writer, ("phone", "opening_hours", "distance", "note"), 0, 1, "facts", bare=True)
    elif theme == "shop":
        state(content, writer, "seller", "main", "")
        state_some(content, writer, ("slogan",), 0, 1, "facts", bare=True)
        state_some(content, writer, ("opening_hours", "phone", "website"), 0, 1, "facts", bare=True)
    elif theme == "way":
        state(content, writer, "to", "main", "")
        state(content, writer, "distance", "facts", "")
    else:
        number = writer.integer(1, 499)
        state(content, writer, "number", "main", "", Value(str(number), float(number)))
        if rng.random() < 0.6:
            state(content, writer, "sign", "facts", "", Value(writer.name()))
    first = content.groups["main"][0]
    content.description = f"A sign that says {content.fields[first][1].text}."
    return content


def write_screen(writer: Writer, room: Room) -> Content:
    """A list on a screen: settings, contacts, messages, files. Groups: bar, foot."""
    rng = writer.rng
    content = begin(writer, "title time battery network username button version language status")
    theme = rng.choice(("setting", "contact", "message", "file", "account"))
    count = max(3, min(10, share_out(writer, int(room.lines * 0.55) - 2)))

    def size() -> Value:
        number = writer.integer(2, 990)
        return Value(f"{number} {rng.choice(('KB', 'MB'))}")

    def choose() -> Value:
        return Value(rng.choice(("On", "Off", "On", "Off", writer.name())))

    makers = {
        "setting": (writer.name, "Setting", "Value", "", choose, ("Settings", "Options", "Preferences")),
        "contact": (writer.person, "Contact", "Phone", "", lambda: Value(writer.phone()), ("Contacts", "People")),
        "message": (writer.person, "Sender", "Time", "time", lambda: Value(writer.time()), ("Messages", "Inbox")),
        "file": (lambda: f"{writer.word()}.{rng.choice(('pdf', 'txt', 'png', 'doc', 'zip'))}", "Name", "Size", "", size,
                 ("Files", "Downloads", "Documents")),
        "account": (writer.name, "Account", "Balance", "amount", lambda: FACTS["balance"][1](writer), ("Accounts",)),
    }  # fmt: skip
    name, first, second, key, make, titles = makers[theme]
    state_title(content, writer, rng.choice(titles))
    state(content, writer, "time", "bar", "")
    state_some(content, writer, ("battery", "network"), 0, 2, "bar", bare=True)
    rows = tuple((Value(text), make()) for text in writer.some(name, count))
    content.tables.append(Grid(theme, (first, second), ("", key), rows, shown=False))
    if rng.random() < 0.5:
        text = writer.choice(("Save", "Cancel", "OK", "Add new", "Sign out", "Back", "Send", "Delete"))
        state(content, writer, "button", "foot", "", Value(text))
    content.description = f"A screen titled {content.fields['title'][1].text}."
    return content
