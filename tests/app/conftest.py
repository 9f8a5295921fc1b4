"""Servers for tests: one that many share, and new ones with settings of their own."""

import contextlib

import pytest
from serving import BOX, encoded, flat, running


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Write weights of a tiny untrained network, a folder for each method."""
    import torch

    from efface.core.catalogue import entry
    from efface.io.weights import save_weights

    root = tmp_path_factory.mktemp("weights")
    for name in ("strokefill", "deeperaser"):
        torch.manual_seed(0)
        method = entry(name).load()
        method = method(**method.small)
        card = {"method": name, "params": method.params()}
        save_weights(root / name, method.build().state_dict(), card)
    return root


@pytest.fixture(scope="module")
def server(weights):
    """Serve to the tests of one file."""
    with running(weights=weights / "strokefill", workers=2) as client:
        yield client


@pytest.fixture
def serve():
    """Serve with settings of a test's own."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running(**settings))


@pytest.fixture
def upload(server):
    """Upload a picture and return its description; it is removed after the test.

    No text is looked for in it: it has none. With ``known`` false, the server has not looked for any yet.
    """
    added = []

    def send(content=None, name="sign.png", client=server, known=True):
        answer = client.post("/api/pictures", params={"name": name}, content=content or encoded(flat()))
        assert answer.status_code == 201, answer.text
        added.append((client, answer.json()))
        if known:
            client.app.state.service.pictures.get(answer.json()["id"]).texts = []
        return answer.json()

    yield send
    for client, picture in added:
        client.delete(f"/api/pictures/{picture['id']}")


@pytest.fixture
def clean(server):
    """Clean a picture by rules and return the job that ended."""

    def run(picture, client=server, **rules):
        rules = rules or {"texts": False, "boxes": [BOX]}
        answer = client.post("/api/jobs", json={"picture": picture["id"], "rules": rules})
        assert answer.status_code == 202, answer.text
        events = client.get(f"/api/jobs/{answer.json()['id']}/events").text
        return client.get(f"/api/jobs/{answer.json()['id']}").json(), events

    return run
