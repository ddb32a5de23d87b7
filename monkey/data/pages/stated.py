"""What a page can state once: for each key of a field the labels it has in print, and how its value is made."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from monkey.data.pages.spelling import DAYS, Writer


@dataclass(frozen=True)
class Value:
    """A value in print, and what it is: a number, an ISO date."""

    text: str
    number: float | None = None
    date: str = ""


Make = Callable[[Writer], Value]


def texts(make: Callable[[Writer], str]) -> Make:
    """Return a maker of values that are texts alone."""
    return lambda writer: Value(make(writer))


def codes(*patterns: str) -> Make:
    """Return a maker of codes: # is a digit, ? a letter."""
    return lambda writer: Value(writer.code(*patterns))


def one_of(*options: str) -> Make:
    """Return a maker of values that both splits share."""
    return lambda writer: Value(writer.choice(options))


def amounts(least: float, most: float) -> Make:
    """Return a maker of amounts of money."""
    return lambda writer: amount(writer, writer.number(least, most))


def counted(least: int, most: int, *units: str, gap: str = " ") -> Make:
    """Return a maker of whole numbers with a unit behind."""

    def make(writer: Writer) -> Value:
        number = writer.integer(least, most)
        return Value(f"{number}{gap}{writer.choice(units)}" if units else str(number), float(number))

    return make


def days(first: int = 2012, last: int = 2031) -> Make:
    """Return a maker of days."""
    return lambda writer: day(writer, writer.day(first, last))


def day(writer: Writer, when: datetime.date) -> Value:
    """Return a day as a value."""
    return Value(writer.write_day(when), date=when.isoformat())


def amount(writer: Writer, number: float) -> Value:
    """Return an amount as a value."""
    number = round(number, writer.numbers.decimals)
    return Value(writer.amount(number), number)


def _percent(writer: Writer) -> Value:
    number = writer.rng.choice((5, 6, 7, 8, 10, 15, 19, 20, 21, 25, 30))
    return Value(f"{number}{writer.choice(('%', ' %'))}", float(number))


def _temperature(writer: Writer) -> Value:
    number = writer.rng.randint(-9, 39)
    return Value(f"{number}{writer.choice(('°C', ' °C', '°'))}", float(number))


def _height(writer: Writer) -> Value:
    number = writer.integer(140, 205)
    return Value(f"{number} cm", float(number))


def _hours(writer: Writer) -> str:
    first = writer.rng.randint(0, 3)
    return f"{DAYS[first][:3]}-{DAYS[first + 3][:3]} {writer.rng.randint(7, 10)}:00-{writer.rng.randint(15, 21)}:00"


def _duration(writer: Writer) -> str:
    return writer.choice(
        (f"{writer.integer(12, 95)} min", f"{writer.rng.randint(1, 9)} h {writer.integer(10, 59)} min")
    )


def _ingredients(writer: Writer) -> str:
    return ", ".join(writer.some(writer.word, writer.rng.randint(3, 6)))


def _iban(writer: Writer) -> str:
    return writer.digits(f"{writer.region.locale[-2:]}## #### #### #### ##")


_DATES, _ANY_YEAR = days(), days(1940, 2005)

FACTS: Mapping[str, tuple[tuple[str, ...], Make]] = {
    # who
    "seller": (("Seller", "Vendor", "Supplier"), texts(Writer.shop)),
    "company": (("Company", "Firm", "Organisation"), texts(Writer.company)),
    "customer": (("Customer", "Bill to", "Client", "Buyer"), texts(Writer.person)),
    "name": (("Name", "Full name"), texts(Writer.person)),
    "first_name": (("First name", "Given name"), texts(lambda writer: writer.person().split()[0])),
    "last_name": (("Last name", "Surname", "Family name"), texts(lambda writer: writer.person().split()[-1])),
    "recipient": (("To", "Recipient"), texts(Writer.person)),
    "sender": (("From", "Sender"), texts(Writer.person)),
    "signature": (("Signature", "Signed"), texts(Writer.person)),
    "author": (("Author", "By", "Written by"), texts(Writer.person)),
    "contact": (("Contact", "Contact person"), texts(Writer.person)),
    "cashier": (("Cashier", "Operator", "Served by"), texts(lambda writer: writer.person().split()[0])),
    "server": (("Server", "Waiter"), texts(lambda writer: writer.person().split()[0])),
    "passenger": (("Passenger", "Traveller", "Name"), texts(Writer.person)),
    "holder": (("Card holder", "Holder"), texts(Writer.person)),
    "member": (("Member", "Name"), texts(Writer.person)),
    "guest": (("Guest", "Name"), texts(Writer.person)),
    "employee": (("Employee", "Name"), texts(Writer.person)),
    "patient": (("Patient", "Patient name"), texts(Writer.person)),
    "department": (("Department", "Dept", "Division"), texts(Writer.name)),
    "job": (("Position", "Job title", "Occupation"), texts(lambda writer: writer.drawn(writer.english.job))),
    # money
    "amount": (("Amount", "Sum"), amounts(5, 4000)),
    "balance": (("Balance", "Account balance"), amounts(5, 9000)),
    "deposit": (("Deposit", "Down payment"), amounts(20, 900)),
    "salary": (("Salary", "Monthly pay"), amounts(900, 9000)),
    "price": (("Price",), amounts(1, 300)),
    "old_price": (("Was", "Before", "Old price"), amounts(1, 300)),
    "unit_price": (("Unit price", "Price per kg", "Per unit"), amounts(1, 60)),
    "fare": (("Fare", "Price"), amounts(2, 400)),
    "fee": (("Fee", "Service fee", "Charge"), amounts(1, 60)),
    "shipping": (("Shipping", "Delivery", "Postage"), amounts(2, 40)),
    "tip": (("Tip", "Gratuity"), amounts(1, 20)),
    "payment_method": (
        ("Payment", "Paid by", "Method"),
        one_of("Cash", "Card", "VISA", "Mastercard", "Bank transfer", "PayPal"),
    ),
    "payment_terms": (("Terms", "Payment terms"), one_of("14 days", "30 days", "7 days net", "On receipt", "60 days")),
    "card_number": (
        ("Card no", "Card number"),
        texts(lambda writer: writer.digits(writer.choice(("**** ####", "#### #### #### ####")))),
    ),
    "account": (("IBAN", "Account", "Account no"), texts(_iban)),
    "bank": (("Bank",), texts(lambda writer: f"{writer.name()} Bank")),
    "bic": (("BIC", "SWIFT"), codes("??????##", "????????")),
    "vat_number": (("VAT no", "Tax ID", "VAT ID"), codes("??#########", "##-#######", "### ### ###")),
    # when
    "date": (("Date", "Dated"), _DATES),
    "due_date": (("Due date", "Due", "Pay by", "Payable until"), _DATES),
    "delivery_date": (("Delivery date", "Delivered"), _DATES),
    "expiry_date": (("Best before", "Use by", "Expiry date", "EXP"), _DATES),
    "production_date": (("Produced", "Packed on", "MFG"), _DATES),
    "valid_until": (("Valid until", "Valid to", "Expires"), _DATES),
    "valid_from": (("Valid from",), _DATES),
    "birth_date": (("Date of birth", "Birth date", "Born"), _ANY_YEAR),
    "departure_date": (("Date", "Travel date"), _DATES),
    "start_date": (("Start date", "Starts", "From"), _DATES),
    "end_date": (("End date", "Ends", "Until"), _DATES),
    "arrival_date": (("Arrival", "Check-in"), _DATES),
    "member_since": (("Member since", "Since"), texts(lambda writer: str(writer.rng.randint(1985, 2027)))),
    "time": (("Time",), texts(Writer.time)),
    "departure_time": (("Departure", "Departs", "Dep"), texts(Writer.time)),
    "arrival_time": (("Arrival", "Arrives", "Arr"), texts(Writer.time)),
    "boarding_time": (("Boarding", "Boarding time"), texts(Writer.time)),
    "start_time": (("Start", "Begins", "Doors open"), texts(Writer.time)),
    "end_time": (("End", "Closes"), texts(Writer.time)),
    "opening_hours": (("Open", "Opening hours", "Hours"), texts(_hours)),
    "duration": (("Duration", "Length"), texts(_duration)),
    # numbers of things
    "invoice_number": (("Invoice no", "Invoice number", "Invoice", "Invoice #"), codes()),
    "receipt_number": (("Receipt no", "Receipt", "Bill no", "Ticket"), codes()),
    "order_number": (("Order no", "Order", "Order number", "PO"), codes()),
    "customer_number": (("Customer no", "Client ID", "Customer ID"), codes()),
    "member_number": (("Member no", "Membership no", "No"), codes("#### ####", "########", "??######")),
    "ticket_number": (("Ticket no", "Ticket", "No"), codes()),
    "document_number": (("Document no", "Doc. no"), codes()),
    "case_number": (("Case no", "File no"), codes("####/##", "??-####")),
    "id_number": (("ID", "ID number"), codes()),
    "booking_code": (("Booking", "Booking code", "PNR"), codes("??????", "???###")),
    "reference": (("Reference", "Ref", "Our ref"), codes()),
    "transaction": (("Transaction", "Trans. no", "Trans"), codes("######", "########")),
    "serial_number": (("Serial no", "S/N"), codes("??########", "############")),
    "article_number": (("Article no", "Item no", "SKU"), codes()),
    "barcode": (("",), codes("# ###### ######", "#############")),
    "code": (("Code", "Voucher code"), codes("????##", "???-###", "########")),
    "batch": (("Batch", "Lot", "Batch no"), codes()),
    "page_number": (("Page",), counted(2, 99)),
    # reaching somebody
    "phone": (("Phone", "Tel", "Telephone", "T"), texts(Writer.phone)),
    "mobile": (("Mobile", "Cell", "M"), texts(Writer.phone)),
    "email": (("Email", "E-mail", "Mail"), texts(Writer.email)),
    "website": (("Web", "Website", "www"), texts(Writer.website)),
    "address": (("Address",), texts(Writer.address)),
    "customer_address": (("Address", "Billing address"), texts(Writer.address)),
    "seller_address": (("Address",), texts(Writer.address)),
    "delivery_address": (("Deliver to", "Ship to"), texts(Writer.address)),
    "street": (("Street", "Street address"), texts(Writer.street)),
    "city": (("City", "Town"), texts(Writer.city)),
    "postcode": (("Postcode", "ZIP code", "Postal code"), texts(Writer.postcode)),
    "country": (("Country",), texts(Writer.country)),
    "nationality": (("Nationality", "Citizenship"), texts(Writer.country)),
    "birthplace": (("Place of birth", "Birthplace"), texts(Writer.city)),
    # travel and events
    "from": (("From", "Origin"), texts(Writer.city)),
    "to": (("To", "Destination"), texts(Writer.city)),
    "seat": (("Seat",), codes("##?", "#?", "##")),
    "row": (("Row",), counted(2, 45)),
    "section": (("Section", "Block"), codes("?", "?#", "###")),
    "entrance": (("Entrance", "Door"), codes("?", "#", "?#")),
    "coach": (("Coach", "Carriage"), counted(2, 24)),
    "gate": (("Gate",), codes("?##", "?#", "##")),
    "terminal": (("Terminal",), codes("#", "?")),
    "platform": (("Platform", "Track"), codes("#", "##", "#?")),
    "class": (("Class",), one_of("Economy", "Business", "First", "Second", "2nd", "1st")),
    "train_number": (("Train",), codes("?? ###", "??? ##")),
    "flight_number": (("Flight",), codes("?? ###", "??####")),
    "event": (("Event",), texts(lambda writer: writer.phrase(2, 3))),
    "venue": (
        ("Venue", "Location"),
        texts(lambda writer: f"{writer.name()} {writer.choice(('Hall', 'Arena', 'Theatre', 'Club'))}"),
    ),
    "room": (("Room",), counted(10, 499)),
    "table_number": (("Table",), counted(1, 60)),
    "guests": (("Guests", "Covers"), counted(1, 12)),
    # goods
    "product": (("Product", "Item"), texts(lambda writer: f"{writer.name()} {writer.goods().lower()}")),
    "brand": (("Brand",), texts(Writer.name)),
    "maker": (("Made by", "Manufacturer", "Producer"), texts(Writer.company)),
    "model": (("Model", "Type"), codes("??-###", "?####", "??##?")),
    "ingredients": (("Ingredients", "Contains"), texts(_ingredients)),
    "material": (
        ("Material", "Fabric"),
        one_of("Cotton", "100% wool", "Polyester", "Linen", "Steel", "Oak", "Leather"),
    ),
    "warning": (
        ("Warning", "Caution"),
        one_of("Keep dry", "Fragile", "Keep away from children", "Do not freeze", "Flammable"),
    ),
    "storage": (
        ("Storage",),
        one_of("Store in a cool place", "Keep refrigerated", "Keep frozen", "Room temperature"),
    ),
    "origin": (("Origin", "Made in", "Product of"), texts(Writer.country)),
    "weight": (("Weight", "Net weight", "Net wt"), counted(11, 990, "g", "kg")),
    "size": (("Size",), one_of("XS", "S", "M", "L", "XL", "38", "40", "42")),
    "quantity": (("Quantity", "Qty", "Pieces"), counted(2, 99)),
    "energy": (("Energy",), counted(11, 900, "kcal", "kJ")),
    "category": (("Category", "Kind"), one_of("Standard", "Premium", "Basic", "Adult", "Student", "Senior", "Child")),
    "power": (("Power",), counted(11, 2400, "W")),
    "voltage": (("Voltage", "Input"), one_of("230 V", "12 V", "5 V", "110 V", "24 V")),
    # of people
    "age": (("Age",), counted(18, 99)),
    "gender": (("Gender", "Sex"), one_of("Male", "Female", "M", "F")),
    "height": (("Height",), _height),
    "purpose": (("Purpose", "Reason"), texts(lambda writer: writer.phrase(2, 3))),
    "note": (("Note", "Remarks", "Comment"), texts(lambda writer: writer.phrase(3, 5))),
    "slogan": (("",), texts(lambda writer: writer.phrase(2, 5))),
    "thanks": (
        ("",),
        one_of(
            "Thank you!",
            "Thank you for your visit",
            "Please come again",
            "Have a nice day!",
            "Thanks for shopping",
            "See you soon",
        ),
    ),
    "points": (("Points", "Bonus points"), counted(12, 4900)),
    "discount": (("Discount", "Saving"), _percent),
    "temperature": (("Temperature", "Temp"), _temperature),
    "distance": (("Distance",), counted(11, 950, "km", "m", "miles")),
    "battery": (("Battery",), counted(11, 100, "%", gap="")),
    "status": (("Status", "State"), one_of("Active", "Pending", "Done", "Open", "Closed", "Paid", "Shipped")),
    "network": (("Network", "Wi-Fi"), texts(Writer.name)),
    "title": (("Title",), texts(lambda writer: writer.phrase(2, 4))),
    "subtitle": (("Subtitle",), texts(lambda writer: writer.phrase(2, 5))),
    "subject": (("Subject", "Re"), texts(lambda writer: writer.phrase(2, 5))),
}
"""Key to labels and maker. Those without a label are never printed with one."""
