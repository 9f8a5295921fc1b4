"""Who may come in, and what browsers are told."""

import pytest
from serving import encoded, flat, running

EVIL = "http://evil.example"


def test_every_answer_tells_the_browser_what_the_page_may_do(server):
    for path in ("/api/about", "/api/pictures/x", "/nowhere", "/assets/nothing.js", "/openapi.json"):
        headers = server.get(path, headers={"origin": EVIL}).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "[", "", "192.168.0.1:8000"])
def test_a_foreign_name_that_leads_here_is_refused(server, host):
    assert server.get("/api/about", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"])
def test_every_name_of_this_machine_is_good(server, host):
    assert server.get("/api/about", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"origin": EVIL}, {"origin": "null"}, {"origin": "http://127.0.0.1:1"}, {"sec-fetch-site": "cross-site"}],
    ids=str,
)
def test_other_sites_change_nothing(server, headers):
    answer = server.post("/api/pictures", params={"name": "a.png"}, content=encoded(flat()), headers=headers)
    assert answer.status_code == 403
    assert server.get("/api/pictures").json() == []


def test_the_page_itself_may(server, upload):
    answer = server.delete(f"/api/pictures/{upload()['id']}", headers={"origin": "http://127.0.0.1"})
    assert answer.status_code == 204


@pytest.fixture(scope="module")
def guarded():
    with running(host="0.0.0.0", token="sesame") as client:
        yield client


class TestToken:
    @pytest.mark.parametrize("path", ["/", "/api/about", "/api/pictures", "/assets/a.js", "/openapi.json"])
    @pytest.mark.parametrize("token", [None, "", "sesam", "sesame-", "\xff"])
    def test_nothing_is_shown_without_it(self, guarded, path, token):
        headers = {} if token is None else {"authorization": b"Bearer " + token.encode("latin-1")}
        answer = guarded.get(path, headers=headers)
        assert answer.status_code == 401
        assert "token" in answer.json()["what"]
        assert guarded.get(path, params={"token": token or "x"}).status_code == 401

    def test_a_header_lets_in(self, guarded):
        assert guarded.get("/api/about", headers={"authorization": "Bearer sesame"}).status_code == 200

    def test_the_address_lets_a_browser_in_and_is_forgotten(self, guarded):
        answer = guarded.get("/", params={"token": "sesame"}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert guarded.get("/api/about").status_code == 200
        guarded.cookies.clear()
        assert guarded.get("/api/about", params={"token": "sesame"}).status_code == 401
