"""Images from allowed hosts: nothing but those hosts' public addresses is ever connected to, whatever they say.

No name is looked up and nothing leaves this machine: the resolver is a table, and what would connect to an address is a
table of pages.
"""

from __future__ import annotations

import asyncio
import io
import socket
import ssl

import httpx
import openai
import pytest

from monkey.serving.access import read_hosts
from monkey.serving.fetching import Fetcher, is_public
from monkey.serving.session import Answerer
from tests.running_server import data_uri, image_part, photo, running, talkative_model, text_part
from tests.small_processor import refusal, small_processor

PUBLIC, PUBLIC_6 = "93.184.216.34", "2606:4700::1111"

INSIDE = (
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1"),
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:a00:1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1"),
    *("2002:7f00:1::", "2001:0:7f00::1", "fc00::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "2001:db8::1"),
)


class Network(httpx.AsyncBaseTransport):
    """What is at the hosts of these tests, and who was asked for what."""

    def __init__(self):
        self.pages: dict[str, tuple[int, dict[str, str], object]] = {"/a.png": (200, {}, b"the image")}
        self.connected: list[tuple[str, int | None]] = []
        self.requests: list[httpx.Request] = []
        self.unreachable: set[str] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.connected.append((request.url.host, request.url.port))
        self.requests.append(request)
        if request.url.host in self.unreachable:
            raise httpx.ConnectError("unreachable")
        status, headers, content = self.pages[request.url.raw_path.decode()]
        return httpx.Response(
            status, headers=headers, content=_sent(content) if isinstance(content, bytes) else content
        )

    def leads(self, path: str, to: str, status: int = 302) -> None:
        self.pages[path] = (status, {"Location": to}, b"")

    @property
    def asked(self) -> list[str]:
        """Host and path of every request, as a server reads them."""
        return [f"{request.headers['Host']}{request.url.raw_path.decode()}" for request in self.requests]


async def _sent(content: bytes):
    for start in range(0, len(content), 1000):
        yield content[start : start + 1000]


class Names:
    """A resolver that is a table; several answers are given one after the other."""

    def __init__(self, **addresses: list[str]):
        self.table = {name.replace("_", "."): [addresses] for name, addresses in addresses.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answers = self.table[host]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if not answer:
            raise socket.gaierror("no such host")
        return answer


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def names():
    return Names(a_example=[PUBLIC], b_example=[PUBLIC_6], inside_example=["10.0.0.1"], none_example=[])


@pytest.fixture
def fetch(names, network):
    """Fetches with hosts a, b, inside and none allowed."""
    hosts = read_hosts("a.example,b.example,inside.example,none.example,a.example:8080")

    def fetch(url: str, max_bytes: int = 50_000, seconds: float = 20.0) -> bytes:
        return asyncio.run(Fetcher(hosts, max_bytes, seconds, resolve=names, transport=network).fetch(url))

    return fetch


def test_an_image_comes_from_the_address_that_was_checked(fetch, names, network):
    names.table["a.example"] = [[PUBLIC], ["127.0.0.1"]]  # a second look would lead inside
    assert fetch("http://a.example/a.png") == b"the image"
    assert (names.asked, network.connected, network.asked) == (["a.example"], [(PUBLIC, None)], ["a.example/a.png"])
    headers = network.requests[0].headers
    assert headers["Accept-Encoding"] == "identity"
    assert not {"authorization", "cookie"} & set(headers)


def test_a_host_may_have_addresses_that_this_machine_cannot_reach(fetch, names, network):
    names.table["a.example"] = [[PUBLIC_6, PUBLIC]]
    network.unreachable.add(PUBLIC_6)
    assert fetch("http://a.example/a.png") == b"the image"
    assert [host for host, _ in network.connected] == [PUBLIC_6, PUBLIC]
    network.unreachable.add(PUBLIC)
    assert "cannot be fetched (ConnectError)" in refusal(lambda: fetch("http://a.example/a.png"))


def test_the_certificate_is_checked_for_the_name_and_not_for_the_address(names, monkeypatch):
    """With the real transport, whose connection ends at a table in place of the network."""
    seen = []

    async def connect(self, host, port, **options):
        seen.append((host, port))
        return self

    async def start_tls(self, ssl_context, server_hostname=None, timeout=None):
        seen.append((server_hostname, ssl_context.check_hostname, ssl_context.verify_mode))
        raise ssl.SSLError("far enough")

    monkeypatch.setattr("httpcore._backends.auto.AutoBackend.connect_tcp", connect)
    monkeypatch.setattr("httpcore._backends.auto.AutoBackend.start_tls", start_tls, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    fetcher = Fetcher({"a.example"}, 100, resolve=names)
    assert "cannot be fetched" in refusal(lambda: asyncio.run(fetcher.fetch("https://a.example/a.png")))
    assert seen == [(PUBLIC, 443), ("a.example", True, ssl.CERT_REQUIRED)]


class TestAddresses:
    @pytest.mark.parametrize("address", INSIDE)
    def test_nothing_inside_is_connected_to(self, fetch, names, network, address):
        assert not is_public(address)
        for answer in ([address], [PUBLIC, address]):
            names.table["a.example"] = [answer]
            assert "has no address or one inside a network" in refusal(lambda: fetch("http://a.example/a.png"))
        assert network.connected == []

    @pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", PUBLIC_6, "2001:4860:4860::8888", "::ffff:8.8.8.8"])
    def test_what_is_public_is(self, address):
        assert is_public(address)

    @pytest.mark.parametrize(
        "url",
        [
            *("file:///etc/passwd", "ftp://a.example/a.png", "gopher://a.example/", "http:///etc/passwd", ""),
            *("http://c.example/a.png", "http://a.example.evil.example/a.png", "http://evil.example/?a.example"),
            *("http://a.example@evil.example/a.png", "http://evil.example#@a.example/a.png", "http://[::1/"),
            *("http://evil.example\\@a.example/a.png", "http://me:secret@a.example/a.png", "http://a.example./a.png"),
            *("http://a.example:22/a.png", "https://a.example:80/a.png", "http://a.example:99999/"),
            *("http://a.example:x/", "http://169.254.169.254/latest/meta-data", "http://[::ffff:169.254.169.254]/"),
            *("http://0x7f.1/", "http://2130706433/", "http://127.0.0.1/", "http://a.example/a b.png"),
            *("http://a.example/\r\nHost: evil", "http://ａ.example/a.png", "http://a%2eexample/a.png"),
        ],
    )
    def test_what_is_not_of_an_allowed_host_is_never_looked_up(self, fetch, names, network, url):
        refusal(lambda: fetch(url))
        assert names.asked == network.connected == []

    def test_a_port_is_allowed_where_it_is_named_and_case_and_a_fragment_mean_nothing(self, fetch, network):
        assert fetch("http://a.example:8080/a.png") == b"the image"
        assert (network.connected, network.asked) == ([(PUBLIC, 8080)], ["a.example:8080/a.png"])
        network.pages["/?q=1"] = (200, {}, b"x")
        assert fetch("HTTP://A.Example?q=1#there") == b"x"

    def test_hosts_are_names_and_read_without_blanks_and_capitals(self):
        assert read_hosts("A.example, localhost:8080") == {"a.example", "localhost:8080"}
        for text in ("", "a.example,", "http://a.example", "a.example/", "*.example", "127.0.0.1", "::1", "-a.b"):
            assert "is not the name of a host" in refusal(lambda text=text: read_hosts(text))


class TestRedirections:
    def test_each_step_is_checked_and_followed(self, fetch, network):
        network.leads("/1", "/2")
        network.leads("/2", "http://b.example/a.png", 308)
        assert fetch("http://a.example/1") == b"the image"
        assert network.asked == ["a.example/1", "a.example/2", "b.example/a.png"]
        assert [host for host, _ in network.connected] == [PUBLIC, PUBLIC, PUBLIC_6]

    @pytest.mark.parametrize(
        ("location", "reason"),
        [
            ("http://169.254.169.254/latest/meta-data", "not at a host"),
            ("http://127.0.0.1:8000/metrics", "not at a host"),
            ("//127.0.0.1/", "not at a host"),
            ("http://inside.example/a.png", "inside a network"),
            ("http://evil.example/a.png", "not at a host"),
            ("file:///etc/passwd", "not of http or https"),
            ("ftp://a.example/a.png", "not of http or https"),
            ("http://none.example/a.png", "cannot be fetched (gaierror)"),
        ],
    )
    def test_none_leads_inside_or_elsewhere(self, fetch, network, location, reason):
        network.leads("/1", location)
        assert reason in refusal(lambda: fetch("http://a.example/1"))
        assert network.connected == [(PUBLIC, None)]

    def test_a_host_that_turns_inside_between_two_steps_is_refused(self, fetch, names, network):
        names.table["a.example"] = [[PUBLIC], ["192.168.0.1"]]
        network.leads("/1", "/a.png")
        assert "inside a network" in refusal(lambda: fetch("http://a.example/1"))
        assert network.connected == [(PUBLIC, None)]

    def test_there_is_an_end_to_them_and_none_leads_from_https_to_http(self, fetch, network):
        network.leads("/round", "/round", 301)
        assert "leads on more than 3 times" in refusal(lambda: fetch("http://a.example/round"))
        assert len(network.requests) == 4
        network.leads("/down", "http://a.example/a.png")
        assert "from https to http" in refusal(lambda: fetch("https://a.example/down"))


class TestLimits:
    @pytest.mark.parametrize("headers", [{}, {"Content-Length": "50001"}])
    def test_an_image_over_the_limit_is_given_up(self, fetch, network, headers):
        network.pages["/large"] = (200, headers, b"x" * 50_001)
        assert "more than the 50,000 bytes allowed" in refusal(lambda: fetch("http://a.example/large"))
        network.pages["/just"] = (200, {}, b"x" * 50_000)
        assert len(fetch("http://a.example/just")) == 50_000

    def test_one_that_never_ends_is_given_up_at_the_limit_of_time(self, fetch, network, names):
        async def slow():
            yield b"x"
            await asyncio.Event().wait()

        async def never(host, port):
            await asyncio.Event().wait()

        network.pages["/slow"] = (200, {}, slow())
        assert "did not arrive within 0.2 seconds" in refusal(lambda: fetch("http://a.example/slow", seconds=0.2))
        fetcher = Fetcher({"a.example"}, 100, 0.2, resolve=never, transport=network)
        assert "within 0.2 seconds" in refusal(lambda: asyncio.run(fetcher.fetch("http://a.example/")))

    def test_packed_content_is_not_unpacked_and_another_status_is_told(self, fetch, network):
        network.pages["/bomb"] = (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b")
        assert "comes packed ('gzip')" in refusal(lambda: fetch("http://a.example/bomb"))
        network.pages["/gone"] = (404, {}, b"secret")
        assert refusal(lambda: fetch("http://a.example/gone")).endswith("answers 404")


def test_through_the_server_a_fetched_image_answers_as_one_that_was_sent(names, network):
    stream = io.BytesIO()
    photo(1).save(stream, "png")
    network.pages |= {"/1.png": (200, {}, stream.getvalue()), "/page": (200, {}, b"<html>secret</html>")}
    fetcher = Fetcher({"a.example"}, 10**6, resolve=names, transport=network)
    with (
        Answerer(talkative_model(), small_processor(), name="tiny") as answerer,
        running(answerer, fetcher=fetcher) as server,
    ):
        fetched = server.text([image_part("http://a.example/1.png"), text_part("What?")])
        assert fetched == server.text([image_part(data_uri(photo(1))), text_part("What?")])
        assert network.asked == ["a.example/1.png"]
        for url in ("http://c.example/1.png", "http://inside.example/", "file:///etc/passwd"):
            with pytest.raises(openai.BadRequestError) as caught:
                server.ask([image_part(url), text_part("What?")])
            assert caught.value.code == "invalid_image_url"
        assert len(network.asked) == 1
        with pytest.raises(openai.BadRequestError, match="is a web page") as caught:
            server.ask([image_part("http://a.example/page"), text_part("What?")])
        assert "secret" not in str(caught.value)
