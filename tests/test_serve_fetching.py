"""Pictures from allowed hosts: nothing but those hosts' public addresses is ever connected to, whatever they say.

No name is looked up and nothing leaves this machine: the resolver is a table, and a connection to a public address
goes to a server on loopback.
"""

from __future__ import annotations

import asyncio
import io
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpcore
import openai
import pytest

from monkey.serving.api.addresses import checked_address, checked_hosts, is_public
from monkey.serving.api.fetching import Fetcher, FetchLimits
from monkey.serving.session import Answerer
from tests.running_server import data_uri, photo, picture_part, running, talkative_model, text_part
from tests.small_processor import refusal, small_processor

PUBLIC, PUBLIC_6 = "93.184.216.34", "2606:4700::1111"

INSIDE = (
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:a00:1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::",
    "2001:0:7f00::1",
    "fc00::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "2001:db8::1",
)


class Host:
    """What a public address leads to in these tests: a table of paths, on loopback."""

    def __init__(self):
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[tuple[str, str]] = []
        """`Host` header and path of every request."""
        self.release = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append((self.headers["Host"], self.path))
                outer.headers = dict(self.headers)
                status, headers, body = outer.pages[self.path]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    for start in range(0, len(body), 1000):
                        self.wfile.write(body[start : start + 1000])
                        self.wfile.flush()
                        if self.path.startswith("/slow"):
                            outer.release.wait(30)
                except OSError:
                    return  # whoever asked has gone, as is right

            def log_message(self, *_):
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def page(self, path: str, body: bytes = b"", status: int = 200, **headers: str) -> None:
        self.pages[path] = (status, {name.replace("_", "-"): value for name, value in headers.items()}, body)

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


class Network(httpcore.AsyncNetworkBackend):
    """Notes what is connected to, and leads it to a host of the tests."""

    def __init__(self, host: Host):
        self.host, self.connected = host, []
        self.unreachable: set[str] = set()

    async def connect_tcp(self, host, port, **options):
        self.connected.append((host, port))
        if host in self.unreachable:
            raise httpcore.ConnectError("unreachable")
        return await httpcore.AnyIOBackend().connect_tcp("127.0.0.1", self.host.server.server_address[1], **options)


class Names:
    """A resolver that is a table; several answers are given one after the other."""

    def __init__(self, **numbers: list[str]):
        self.table = {name.replace("_", "."): [numbers] for name, numbers in numbers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answers = self.table[host]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if not answer:
            raise socket.gaierror("no such host")
        return answer


@pytest.fixture
def host():
    host = Host()
    host.page("/a.png", b"the picture", Content_Type="image/png")
    yield host
    host.close()


@pytest.fixture
def network(host):
    return Network(host)


@pytest.fixture
def names():
    return Names(a_example=[PUBLIC], b_example=[PUBLIC_6], inside_example=["10.0.0.1"], none_example=[])


@pytest.fixture
def fetch(names, network):
    """Fetches with hosts a, b, inside and none allowed."""
    hosts = checked_hosts("a.example,b.example,inside.example,none.example,a.example:8080")

    def fetch(url: str, **limits) -> bytes:
        fetcher = Fetcher(hosts, FetchLimits(**{"max_bytes": 50_000, "seconds": 20.0, **limits}), names, network)
        return asyncio.run(fetcher.fetch(url))

    return fetch


def test_a_picture_comes_from_the_address_that_was_checked(fetch, host, network):
    assert fetch("http://a.example/a.png") == b"the picture"
    assert network.connected == [(PUBLIC, 80)]
    assert host.asked == [("a.example", "/a.png")]
    assert "Authorization" not in host.headers
    assert host.headers["Accept-Encoding"] == "identity"


def test_the_name_is_looked_up_once_so_that_a_second_answer_changes_nothing(fetch, names, network):
    names.table["a.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert fetch("http://a.example/a.png") == b"the picture"
    assert names.asked == ["a.example"]
    assert network.connected == [(PUBLIC, 80)]


def test_a_host_may_have_addresses_that_this_machine_cannot_reach(fetch, names, network):
    names.table["a.example"] = [[PUBLIC_6, PUBLIC]]
    network.unreachable.add(PUBLIC_6)
    assert fetch("http://a.example/a.png") == b"the picture"
    assert network.connected == [(PUBLIC_6, 80), (PUBLIC, 80)]


def test_the_certificate_is_checked_for_the_name_and_not_for_the_number(names):
    seen = []

    class Stream(httpcore.AsyncNetworkStream):
        async def start_tls(self, ssl_context, server_hostname=None, timeout=None):
            seen.append((server_hostname, ssl_context.check_hostname, ssl_context.verify_mode.name))
            raise httpcore.ConnectError("far enough")

        def get_extra_info(self, info):
            return None

        async def aclose(self):
            return

    class Tls(httpcore.AsyncNetworkBackend):
        async def connect_tcp(self, host, port, **options):
            seen.append((host, port))
            return Stream()

    fetcher = Fetcher({"a.example"}, FetchLimits(100), names, Tls())
    assert "ConnectError" in refusal(lambda: asyncio.run(fetcher.fetch("https://a.example/a.png")))
    assert seen == [(PUBLIC, 443), ("a.example", True, "CERT_REQUIRED")]


class TestAddresses:
    @pytest.mark.parametrize("number", INSIDE)
    def test_nothing_inside_is_connected_to(self, fetch, names, network, number):
        assert not is_public(number)
        names.table["a.example"] = [[number]]
        assert "has no address or one inside a network" in refusal(lambda: fetch("http://a.example/a.png"))
        names.table["a.example"] = [[PUBLIC, number]]
        refusal(lambda: fetch("http://a.example/a.png"))
        assert network.connected == []

    @pytest.mark.parametrize("number", [PUBLIC, "8.8.8.8", PUBLIC_6, "2001:4860:4860::8888", "::ffff:8.8.8.8"])
    def test_what_is_public_is(self, number):
        assert is_public(number)

    @pytest.mark.parametrize(
        "url",
        [
            "file:///etc/passwd",
            "ftp://a.example/a.png",
            "gopher://a.example/",
            "http:///etc/passwd",
            "http://c.example/a.png",
            "http://a.example.evil.example/a.png",
            "http://evil.example/?a.example",
            "http://a.example@evil.example/a.png",
            "http://evil.example#@a.example/a.png",
            "http://evil.example\\@a.example/a.png",
            "http://me:secret@a.example/a.png",
            "http://a.example:22/a.png",
            "https://a.example:80/a.png",
            "http://a.example:99999/",
            "http://a.example:x/",
            "http://169.254.169.254/latest/meta-data",
            "http://[::ffff:169.254.169.254]/",
            "http://[::1/",
            "http://0x7f.1/",
            "http://2130706433/",
            "http://127.0.0.1/",
            "http://a.example/a b.png",
            "http://a.example/\r\nHost: evil",
            "http://ａ.example/a.png",
            "http://a.example./a.png",
            "",
        ],
    )
    def test_what_is_not_of_an_allowed_host_is_never_looked_up(self, fetch, names, network, url):
        refusal(lambda: fetch(url))
        assert names.asked == network.connected == []

    def test_a_port_is_allowed_where_it_is_named(self, fetch, network):
        assert fetch("http://a.example:8080/a.png") == b"the picture"
        assert network.connected == [(PUBLIC, 8080)]

    def test_case_and_a_fragment_mean_nothing(self, fetch, host):
        host.page("/?q=1", b"x")
        assert fetch("HTTP://A.Example?q=1#there") == b"x"

    @pytest.mark.parametrize(
        "text",
        ["", "a.example,", "http://a.example", "a.example/", "*.example", "127.0.0.1", "::1", "a b", "-a.example"],
    )
    def test_hosts_that_are_no_names_are_refused_at_the_start(self, text):
        assert "is not the name of a host" in refusal(lambda: checked_hosts(text))

    def test_hosts_are_read_without_blanks_and_capitals(self):
        assert checked_hosts("A.example, localhost:8080") == {"a.example", "localhost:8080"}
        address = checked_address("http://localhost:8080", {"localhost:8080"})
        assert (str(address), address.target) == ("http://localhost:8080/", "/")


class TestRedirections:
    def test_each_step_is_checked_and_followed(self, fetch, host, network):
        host.page("/1", status=302, Location="/2")
        host.page("/2", status=308, Location="http://b.example/a.png")
        assert fetch("http://a.example/1") == b"the picture"
        assert host.asked == [("a.example", "/1"), ("a.example", "/2"), ("b.example", "/a.png")]
        assert network.connected == [(PUBLIC, 80), (PUBLIC, 80), (PUBLIC_6, 80)]

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
    def test_none_leads_inside_or_elsewhere(self, fetch, host, network, location, reason):
        host.page("/1", status=302, Location=location)
        assert reason in refusal(lambda: fetch("http://a.example/1"))
        assert network.connected == [(PUBLIC, 80)]

    def test_a_host_that_turns_inside_between_two_steps_is_refused(self, fetch, host, names, network):
        names.table["a.example"] = [[PUBLIC], ["192.168.0.1"]]
        host.page("/1", status=302, Location="/a.png")
        assert "inside a network" in refusal(lambda: fetch("http://a.example/1"))
        assert network.connected == [(PUBLIC, 80)]

    def test_there_is_an_end_to_them(self, fetch, host):
        host.page("/round", status=301, Location="/round")
        assert "leads on more than 3 times" in refusal(lambda: fetch("http://a.example/round"))
        assert len(host.asked) == 4

    def test_none_leads_from_https_to_http(self, names, network, monkeypatch):
        fetcher = Fetcher({"a.example"}, FetchLimits(100), names, network)

        async def asked(address):
            return b"", "http://a.example/a.png"

        monkeypatch.setattr(fetcher, "_asked", asked)
        assert "from https to http" in refusal(lambda: asyncio.run(fetcher.fetch("https://a.example/1")))


class TestLimits:
    @pytest.mark.parametrize("headers", [{}, {"Content_Length": "50001"}])
    def test_a_picture_over_the_limit_is_given_up(self, fetch, host, headers):
        host.page("/large", b"x" * 50_001, **headers)
        assert "more than the 50,000 bytes allowed" in refusal(lambda: fetch("http://a.example/large"))
        host.page("/just", b"x" * 50_000)
        assert len(fetch("http://a.example/just")) == 50_000

    def test_one_that_never_ends_is_given_up_at_the_limit(self, fetch, host):
        host.page("/slow", b"x" * 3000)
        assert "did not arrive within 0.3 seconds" in refusal(lambda: fetch("http://a.example/slow", seconds=0.3))

    def test_a_lookup_that_never_ends_is_given_up(self, network):
        async def never(host, port):
            await asyncio.Event().wait()

        fetcher = Fetcher({"a.example"}, FetchLimits(100, seconds=0.2), never, network)
        assert "within 0.2 seconds" in refusal(lambda: asyncio.run(fetcher.fetch("http://a.example/")))

    def test_packed_content_is_not_unpacked(self, fetch, host):
        host.page("/bomb", b"\x1f\x8b", Content_Encoding="gzip")
        assert "comes packed ('gzip')" in refusal(lambda: fetch("http://a.example/bomb"))

    def test_another_status_is_told(self, fetch, host):
        host.page("/gone", b"secret", status=404)
        message = refusal(lambda: fetch("http://a.example/gone"))
        assert message.endswith("answers 404")

    def test_a_connection_that_fails_is_told_by_its_kind(self, fetch, network):
        network.unreachable.add(PUBLIC)
        assert "cannot be fetched (ConnectError)" in refusal(lambda: fetch("http://a.example/a.png"))


class TestThroughTheServer:
    @pytest.fixture(scope="class")
    def answerer(self):
        with Answerer(talkative_model(), small_processor(), name="tiny") as answerer:
            yield answerer

    def test_a_fetched_picture_answers_as_one_that_was_sent(self, answerer, host, names, network):
        stream = io.BytesIO()
        photo(1).save(stream, "png")
        host.page("/1.png", stream.getvalue())
        fetcher = Fetcher({"a.example"}, FetchLimits(10**6), names, network)
        with running(answerer, fetcher=fetcher) as server:
            fetched = server.text([picture_part("http://a.example/1.png"), text_part("What?")])
            assert fetched == server.text([picture_part(data_uri(photo(1))), text_part("What?")])
            assert host.asked == [("a.example", "/1.png")]
            for url in ("http://c.example/1.png", "http://inside.example/", "file:///etc/passwd"):
                with pytest.raises(openai.BadRequestError) as caught:
                    server.ask([picture_part(url), text_part("What?")])
                assert caught.value.code == "invalid_image_url"
            assert len(host.asked) == 1

    def test_what_is_fetched_must_be_a_picture(self, answerer, host, names, network):
        host.page("/page", b"<html>secret</html>", Content_Type="image/png")
        with (
            running(answerer, fetcher=Fetcher({"a.example"}, FetchLimits(10**6), names, network)) as server,
            pytest.raises(openai.BadRequestError, match="is a web page") as caught,
        ):
            server.ask([picture_part("http://a.example/page"), text_part("What?")])
        assert "secret" not in str(caught.value)
