"""The described API as a whole: nothing that its description allows or forbids is a fault of the server's."""

import contextlib

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from serving import BOX, encoded, flat, running


@pytest.fixture(scope="module")
def known():
    """Serve a picture with a mask, and a job that is done; give the client, and the two ids by what they are of."""
    with running(max_file_bytes=100_000, max_pictures=20, seconds=10) as client:
        picture = client.post("/api/pictures", params={"name": "a.png"}, content=encoded(flat())).json()["id"]
        client.app.state.service.pictures.get(picture).texts = []
        assert client.put(f"/api/pictures/{picture}/mask", content=encoded(flat())).status_code == 200
        body = {"picture": picture, "rules": {"texts": False, "boxes": [BOX]}}
        job = client.post("/api/jobs", json=body).json()["id"]
        client.get(f"/api/jobs/{job}/events")
        yield client, {"pictures": picture, "jobs": job}


def operations(client):
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    return [found.ok() for found in schema.get_all_operations()]


def test_the_description_says_what_every_route_does_and_answers(known):
    for operation in operations(known[0]):
        described = operation.definition.raw
        assert described["description"]
        assert "4XX" in described["responses"]


def test_every_method_has_a_page_and_is_listed_with_what_filters_need(known):
    client, _ = known
    listed = client.get("/api/methods").json()
    assert {"Network", "Editor", "Eraser"} >= {method["kind"] for method in listed}
    for method in listed:
        page = client.get(f"/api/methods/{method['name']}").json()
        assert {name: page[name] for name in method} == method
        if page["plot"]:
            assert client.get(page["plot"]).headers["content-type"] == "image/png"
        assert method["kind"] == "Network" or not method["usable"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("ids", ["of nothing", "known"])
def test_no_request_makes_the_server_fail(known, mode, ids):
    client, places = known

    def check(operation):
        @given(operation.as_strategy(generation_mode=mode))
        @settings(max_examples=10, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def ask(case):
            if ids == "known":
                case.path_parameters["id"] = places[operation.path.split("/")[2]]
            sent = case.as_transport_kwargs(base_url="http://127.0.0.1")
            if isinstance(sent.get("data"), bytes | str):
                sent["content"] = sent.pop("data")
            answer = client.request(**{name: value for name, value in sent.items() if name != "cookies"})
            assert answer.status_code < 500, answer.text
            assert answer.status_code < 400 or answer.json()["what"]

        with contextlib.suppress(Unsatisfiable):  # nothing can be wrong about a request without parameters
            ask()

    for operation in operations(client):
        if ids == "of nothing" or ("{id}" in operation.path and operation.method.upper() != "DELETE"):
            check(operation)
