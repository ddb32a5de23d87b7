"""The load test of the server: it reports its ratios, and ends where an answer is lost or another's."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from benchmarks import gpu, serving
from monkey.serving.session import Answerer
from tests import forked
from tests.running_server import asking, running, talkative_model
from tests.small_processor import small_processor


@pytest.mark.slow
def test_the_last_line_holds_ratios_and_figures_of_every_number_of_clients(capsys):
    """At the tiny size of the stage of `benchmarks.gpu`."""
    (stage,) = (one for one in gpu.STAGES if one.name == "server")
    forked.start_server()
    assert serving.main(list(stage.tiny[2:])) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = {f"known_{what}_{clients}" for what in ("throughput", "p95") for clients in (1, 2)}
    assert set(result["ratios"]) == names
    assert min(result["ratios"].values()) > 0
    for figures in result["figures"]["known"].values():
        for side in ("one_at_a_time", "batched"):
            assert 0 < figures[side]["median_seconds"] <= figures[side]["p95_seconds"]


def test_every_request_is_sent_once_and_every_answer_belongs_to_its_own():
    options = SimpleNamespace(dtype="float32")
    requests = [
        json.dumps(
            {
                "model": "tiny",
                "max_tokens": 6,
                "stream": True,
                "messages": [{"role": "user", "content": asking(f"{number}?", number)}],
            }
        ).encode()
        for number in range(4)
    ]
    with Answerer(talkative_model(), small_processor(), name="tiny") as answerer, running(answerer) as server:
        expected = [serving.Client(server.url).ask(request) for request in requests]
        assert len(set(expected)) == 4
        load, answers = serving.run_load(server.url, requests, clients=5, total=11)
        assert server.engine.stats.requests == 15
        serving.check(answers, expected, 11, options)
        assert len(load.latencies) == 11
        assert sorted(number for number, _ in answers) == sorted(number % 4 for number in range(11))
        with pytest.raises(SystemExit, match="11 requests were sent, and 10 were answered"):
            serving.check(answers[1:], expected, 11, options)
        with pytest.raises(SystemExit, match="are not those of the request alone"):
            serving.check(answers, expected[::-1], 11, options)
        with pytest.raises(SystemExit, match="a request was lost: the server answers 404"):
            serving.Client(server.url).ask(requests[0].replace(b'"tiny"', b'"other"'))


def test_p95_is_the_time_that_nineteen_in_twenty_stay_below():
    assert serving.Load(2.0, [float(number) for number in range(1, 21)]).p95 == 19.0
    load = serving.Load(2.0, [3.0, 1.0, 2.0])
    assert load.figures() == {"requests_per_second": 1.5, "median_seconds": 2.0, "p95_seconds": 3.0}
