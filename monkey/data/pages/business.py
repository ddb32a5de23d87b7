"""What receipts, invoices, forms, letters and tables say."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from monkey.data.pages.contents import Content, Grid, Room, begin, share_out, state, state_some, state_title
from monkey.data.pages.spelling import MONTHS, Writer, write_number
from monkey.data.pages.stated import FACTS, Value, amount

_TOTALS = ("Total", "TOTAL", "Total due", "Grand total", "Sum", "To pay", "Amount due", "Total amount")


def _sell(content: Content, writer: Writer, count: int, columns: str, most: float) -> float:
    """Add a table of what is sold, and return what it comes to.

    Args:
        columns: `price`, `quantity` with the price of all pieces, or `unit` with the price of one and of all.
        most: the highest price of one piece.
    """
    rng, shows_currency = writer.rng, writer.rng.random() < 0.5

    def money(number: float) -> Value:
        return Value(writer.amount(number) if shows_currency else write_number(number, writer.numbers), number)

    rows, total = [], 0.0
    behind = writer.choice(("", "", " x", " pcs"))
    for name in writer.some(writer.goods, count):
        quantity = 1 if columns == "price" else rng.choice((1, 1, 1, 2, 2, 3, 4, 6, 8, 10, 12))
        price = writer.number(0.4, most)
        both = round(price * quantity, 2)
        total += both
        pieces = Value(f"{quantity}{behind}", float(quantity))
        cells = {"price": (), "quantity": (pieces,), "unit": (pieces, money(price))}[columns]
        rows.append((Value(name), *cells, money(both)))
    names = {
        "price": ((writer.choice(("Price", "Amount")),), ("price",)),
        "quantity": ((writer.choice(("Qty", "Quantity")), writer.choice(("Price", "Amount"))), ("quantity", "price")),
        "unit": (
            (writer.choice(("Qty", "Quantity")), writer.choice(("Unit price", "Price", "Rate")), "Amount"),
            ("quantity", "unit_price", "amount"),
        ),
    }
    heads, keys = names[columns]
    first = writer.choice(("Item", "Article", "Description", "Product"))
    content.tables.append(
        Grid("item", (first, *heads), ("", *keys), tuple(rows), columns == "unit" or rng.random() < 0.5)
    )
    return round(total, 2)


def _sum_up(content: Content, writer: Writer, subtotal: float, extras: str) -> float:
    """Add the lines between the goods and the total, and the total, which is right; return it."""
    rng, total = writer.rng, subtotal
    if rng.random() < 0.6:
        state(
            content, writer, "subtotal", "sums", writer.choice(("Subtotal", "Sub-total", "Net")), amount(writer, total)
        )
    if rng.random() < 0.25:
        reduction = round(subtotal * rng.choice((0.05, 0.1, 0.15, 0.2)), 2)
        total -= reduction
        state(content, writer, "discount", "sums", value=amount(writer, -reduction))
    for key in extras.split():
        if rng.random() < 0.2:
            extra = round(rng.uniform(1, 12), rng.choice((0, 2)))
            total += extra
            state(content, writer, key, "sums", value=amount(writer, extra))
    if rng.random() < 0.65:
        rate = rng.choice((5, 7, 8, 10, 19, 20, 21))
        tax = round(total * rate / 100, 2)
        total += tax
        label = writer.choice((f"VAT {rate}%", "Tax", "VAT", f"Tax {rate}%", "Sales tax"))
        state(content, writer, "tax", "sums", label, amount(writer, tax))
    total = round(total, 2)
    state(content, writer, "total", "", writer.choice(_TOTALS), amount(writer, total))
    return total


def write_receipt(writer: Writer, room: Room) -> Content:
    """A shop, what was bought, and what it came to. Groups: head, facts, sums, paid, foot."""
    rng = writer.rng
    content = begin(
        writer,
        """seller seller_address phone website vat_number date time receipt_number cashier server table_number guests
        order_number transaction subtotal tax discount tip total cash change payment_method card_number points thanks
        barcode""",
    )
    state(content, writer, "seller", label="")
    state_some(content, writer, ("seller_address", "website"), 0, 2, "head", bare=True)
    state_some(content, writer, ("phone", "vat_number"), 0, 2, "head")
    facts = (
        "date",
        "time",
        "receipt_number",
        rng.choice(("cashier", "server")),
        "table_number",
        "guests",
        "transaction",
    )
    state_some(content, writer, (*facts, "order_number"), 1, 5, "facts")
    used = sum(map(len, content.groups.values())) + 8
    columns = rng.choice(("price", "price", "quantity"))
    total = _sum_up(
        content, writer, _sell(content, writer, share_out(writer, min(28, room.lines - used)), columns, 60), "tip"
    )
    if rng.random() < 0.35:
        note = rng.choice((5, 10, 20, 50))
        cash = float(-(-total // note) * note)
        state(content, writer, "cash", "paid", writer.choice(("Cash", "Cash given", "Paid")), amount(writer, cash))
        state(content, writer, "change", "paid", writer.choice(("Change", "Change due")), amount(writer, cash - total))
    else:
        state_some(content, writer, ("payment_method", "card_number", "points"), 0, 2, "paid")
    state_some(content, writer, ("thanks",), 0, 1, "foot", bare=True)
    content.description = f"A receipt of {content.fields['seller'][1].text} over {content.fields['total'][1].text}."
    return content


def write_invoice(writer: Writer, room: Room) -> Content:
    """Who sold what to whom, and how to pay. Groups: seller, customer, facts, sums, foot."""
    rng = writer.rng
    content = begin(
        writer,
        """title seller seller_address phone email website vat_number customer customer_address invoice_number date
        due_date order_number customer_number reference payment_terms contact subtotal discount shipping fee tax total
        account bank bic note delivery_date""",
    )
    state_title(content, writer, writer.choice(("Invoice", "INVOICE", "Tax invoice", "Bill", "Invoice")))
    state(content, writer, "seller", label="", value=Value(writer.company()))
    state_some(content, writer, ("seller_address",), 0, 1, "seller", bare=True)
    state_some(content, writer, ("phone", "email", "website"), 0, 1, "seller", bare=True)
    state(content, writer, "customer", "", writer.choice(("Bill to", "Customer", "Invoice to", "Client")))
    state_some(content, writer, ("customer_address",), 0, 1, "customer", bare=True)
    state(content, writer, "invoice_number", "facts")
    state(content, writer, "date", "facts", writer.choice(("Date", "Invoice date", "Issued")))
    facts = ("due_date", "order_number", "customer_number", "reference", "payment_terms", "contact", "delivery_date")
    state_some(content, writer, facts, 0, 1 if room.lines < 20 else 4, "facts")
    columns = rng.choice(("price", "quantity", "unit", "unit")) if room.width > 19 else "price"
    count = share_out(writer, min(14, room.lines - 12))
    _sum_up(content, writer, _sell(content, writer, count, columns, 900), "shipping fee")
    state_some(content, writer, ("account", "bank", "bic", "vat_number"), 0, 1 if room.lines < 20 else 3, "foot")
    state_some(content, writer, ("note",), 0, 1, "foot")
    fields = content.fields
    content.description = f"An invoice of {fields['seller'][1].text} to {fields['customer'][1].text}."
    return content


_FORMS = {
    "application registration membership": """name first_name last_name birth_date birthplace nationality gender age
    street postcode city country phone mobile email job company start_date id_number signature date""",
    "patient medical hospital": """patient birth_date age gender height weight phone contact room department date time
    case_number note signature address temperature""",
    "repair service device": """customer phone email model serial_number product date delivery_date order_number fee
    deposit status note employee battery voltage""",
    "travel booking hotel": """guest phone email arrival_date end_date guests room country id_number booking_code
    deposit payment_method card_number purpose""",
    "staff employee leave": """employee department job start_date end_date salary account bank email phone purpose
    id_number signature date""",
    "delivery transport parcel": """sender recipient delivery_address weight quantity delivery_date order_number
    reference status distance note""",
}


def write_form(writer: Writer, room: Room) -> Content:
    """A title over labelled values. Groups: head, facts."""
    rng = writer.rng
    theme = rng.choice(list(_FORMS))
    content = begin(writer, "title company document_number " + _FORMS[theme])
    word = rng.choice(theme.split())
    if rng.random() < 0.85:
        end = writer.choice(("form", "record", "sheet", "request", "card"))
        state_title(
            content, writer, f"{word.capitalize()} {end}" if rng.random() < 0.5 else f"{writer.name()} {word} {end}"
        )
    state_some(content, writer, ("company",), 0, 1, "head", bare=True)
    state_some(content, writer, ("document_number",), 0, 1, "head")
    keys = _FORMS[theme].split()
    most = max(2, min(len(keys), room.lines - 4))
    state_some(content, writer, keys, -(-most * 2 // 3), most, "facts")
    title = f" titled {content.fields['title'][1].text}" if "title" in content.fields else ""
    content.description = f"A form{title}."
    return content


def write_letter(writer: Writer, room: Room) -> Content:
    """A letter with or without the head of a company. Groups: head, address, facts, close."""
    rng = writer.rng
    content = begin(
        writer,
        """company seller_address phone email website recipient address date reference subject greeting signature job
        customer_number""",
    )
    if rng.random() < 0.75:
        state(content, writer, "company", label="")
        state_some(content, writer, ("seller_address", "phone", "email", "website"), 0, 2, "head", bare=True)
    recipient = state(content, writer, "recipient", "address", label="")
    state_some(content, writer, ("address",), 0, 1, "address", bare=True)
    state(content, writer, "date", "facts", writer.choice(("", "Date")))
    state_some(content, writer, ("reference", "customer_number"), 0, 1, "facts")
    if rng.random() < 0.7:
        state(content, writer, "subject", label=writer.choice(("", "Subject", "Re")))
    dear = writer.choice(("Dear {}", "Hello {}", "Dear Mr {}", "Dear Ms {}"))
    name = recipient.text if dear.startswith(("Hello", "Dear {")) else recipient.text.split()[-1]
    state(content, writer, "greeting", label="", value=Value(dear.format(name) + ","))
    lines = max(2, room.lines - 13)
    content.paragraphs = write_paragraphs(writer, room.width, lines, rng.choice((1, 2, 2, 3)))
    content.paragraphs.append(
        writer.choice(("Yours sincerely,", "Best regards,", "Kind regards,", "Yours faithfully,"))
    )
    state(content, writer, "signature", "close", label="")
    state_some(content, writer, ("job",), 0, 1, "close", bare=True)
    content.description = f"A letter to {recipient.text} from {content.fields['signature'][1].text}."
    return content


def write_paragraphs(writer: Writer, width: float, lines: int, count: int) -> list[str]:
    """Return so many paragraphs, together of about so many lines of a width in em."""
    room, found = lines * width / 0.53 / count, []
    for _ in range(count):
        text = writer.sentence()
        while len(text) < room - 35:
            text += " " + writer.sentence()
        found.append(text)
    return found


_ROWS = {
    "product": ("Product", Writer.goods), "country": ("Country", Writer.country), "city": ("City", Writer.city),
    "employee": ("Employee", Writer.person), "student": ("Student", Writer.person), "team": ("Team", Writer.name),
    "player": ("Player", Writer.person), "company": ("Company", Writer.company), "category": ("Category", Writer.name),
    "service": ("Service", lambda writer: writer.phrase(1, 2)), "task": ("Task", lambda writer: writer.phrase(1, 3)),
    "nutrient": ("Nutrient", Writer.name), "plan": ("Plan", Writer.name), "station": ("Station", Writer.city),
}  # fmt: skip
"""What tables are about: a key of the wordings, the head of the first column, and who names a row."""


def _plain(least: float, most: float, decimals: int) -> Callable[[Writer], Value]:
    def make(writer: Writer) -> Value:
        number = writer.number(least, most, decimals)
        return Value(write_number(number, writer.numbers, decimals), number)

    return make


def _whole(least: int, most: int, end: str = "") -> Callable[[Writer], Value]:
    def make(writer: Writer) -> Value:
        number = writer.integer(least, most)
        return Value(f"{number}{end}", float(number))

    return make


_COLUMNS: Mapping[str, tuple[str, Callable[[Writer], Value]]] = {
    "Price": ("price", FACTS["price"][1]),
    "Quantity": ("quantity", _whole(2, 999)),
    "Age": ("age", _whole(18, 99)),
    "Weight": ("weight", FACTS["weight"][1]),
    "Year": ("year", _whole(1950, 2030)),
    "Status": ("status", FACTS["status"][1]),
    "Code": ("code", lambda writer: Value(writer.code("??-###", "####", "?##"))),
    "Date": ("date", FACTS["date"][1]),
    "Points": ("", _whole(1, 400)),
    "Score": ("", _plain(1, 99, 1)),
    "Share": ("share", _whole(1, 99, "%")),
    "Room": ("room", FACTS["room"][1]),
    "Value": ("value", _plain(1, 9000, 0)),
    "Rate": ("", _plain(1, 90, 1)),
    "Amount": ("amount", FACTS["amount"][1]),
    "Contact": ("person", lambda writer: Value(writer.person())),
}
"""Heads of columns, their keys of the wordings, and who fills a cell."""


def write_table(writer: Writer, room: Room) -> Content:
    """A table of any matter, with a title or not. Groups: none; title, subtitle and source stand alone."""
    rng = writer.rng
    content = begin(writer, "title subtitle source unit date note author")
    key = rng.choice(list(_ROWS))
    first, name = _ROWS[key]
    if rng.random() < 0.75:
        state_title(content, writer, writer.phrase(1, 3))
        if rng.random() < 0.2:
            state(content, writer, "subtitle", label="")
    most = max(2, min(7, int(room.width / 5.5)))
    count = rng.randint(2, most) - 1
    if rng.random() < 0.35:
        makers = [_plain(*rng.choice(((1, 99, 0), (1, 900, 0), (1, 99, 1), (0.1, 9, 2), (100, 90000, 0))))] * count
        start = rng.randint(0, 11)
        heads = rng.choice(
            (
                [str(year) for year in range(2010 + start, 2010 + start + count)],
                [MONTHS[(start + index) % 12][:3] for index in range(count)],
                [f"Q{index + 1}" for index in range(count)][:4] + [writer.name() for _ in range(count - 4)],
                writer.some(writer.name, count),
            )
        )
        keys = [""] * count
    else:
        heads = rng.sample(list(_COLUMNS), count)
        keys, makers = [_COLUMNS[head][0] for head in heads], [_COLUMNS[head][1] for head in heads]
    names = writer.some(lambda: name(writer), share_out(writer, min(18, room.lines - 3), least=2))
    rows = tuple((Value(row), *(make(writer) for make in makers)) for row in names)
    content.tables.append(Grid(key, (first, *heads), ("", *keys), rows))
    if rng.random() < 0.25:
        state(content, writer, "source", label="Source", value=Value(writer.company()))
    title = f" titled {content.fields['title'][1].text}" if "title" in content.fields else ""
    content.description = f"A table{title} with {len(rows)} rows and {count + 1} columns."
    return content
