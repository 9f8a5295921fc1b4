"""Pictures in: what is taken, refused, shown and forgotten."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from serving import BOX, encoded, flat, pixels, rough

from efface.parts.text.detect import TextBox
from efface.verbs.rules import FEATHER_MOST, GROW_MOST

NOWHERE = "0" * 32


def png_of(width, height):
    """Return the header of a PNG that says that it has this size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def files(client):
    root = client.app.state.service.root
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def test_a_picture_is_described_listed_shown_and_forgotten(server, upload):
    picture = upload(name="sign.png")
    assert (picture["width"], picture["height"], picture["format"], picture["channels"]) == (60, 40, "PNG", 3)
    assert server.get(f"/api/pictures/{picture['id']}").json() == picture
    assert picture in server.get("/api/pictures").json()
    shown = server.get(picture["view"])
    assert shown.headers["content-type"] == "image/png"
    assert "immutable" in shown.headers["cache-control"]
    assert (pixels(shown.content) == np.asarray(flat())).all()
    assert server.delete(f"/api/pictures/{picture['id']}").status_code == 204
    assert server.get(f"/api/pictures/{picture['id']}").status_code == 404
    assert not [name for name in files(server) if picture["id"] in name]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\pictures\\sign.png", "sign.png"),
        ('a"b\r\nX: y<script>.png', "a_b__X_ y_script_.png"),
        ("Grüße 写真.png", "Grüße 写真.png"),
        ("/", "picture"),
        ("\u202egnp.exe", "_gnp.exe"),
    ],
)
def test_a_name_is_a_label_and_never_a_path(server, upload, name, label):
    picture = upload(name=name)
    assert picture["name"] == label
    assert [n for n in files(server) if picture["id"] in n] == [
        f"pictures/{picture['id']}/{part}" for part in ("file", "view")
    ]


def test_regions_are_shown_1_to_1_and_wholes_smaller(server, upload):
    view = upload(encoded(rough(size=(300, 200))))["view"]
    all_of_it = np.asarray(rough(size=(300, 200)))
    part = server.get(view, params={"x": 250, "y": 150, "w": 100, "h": 20})
    assert (pixels(part.content) == all_of_it[150:170, 250:]).all()
    assert pixels(server.get(view, params={"size": 60}).content).shape == (40, 60, 3)
    assert pixels(server.get(view, params={"size": 8000}).content).shape == all_of_it.shape
    for wrong in ({"x": 300, "y": 0, "w": 9, "h": 9}, {"x": 0}, {"x": 0, "y": 0, "w": 0, "h": 5}, {"size": 0}):
        assert server.get(view, params=wrong).status_code == 422


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4), ("I;16", 1), ("1", 1)], ids=str
)
def test_every_kind_of_picture_is_shown(server, upload, mode, channels):
    image = Image.fromarray(np.full((5, 7), 0x8080, np.uint16)) if mode == "I;16" else flat().convert(mode)
    picture = upload(encoded(image))
    assert picture["channels"] == channels
    shown = Image.open(io.BytesIO(server.get(picture["view"]).content))
    assert shown.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    if mode == "I;16":
        assert shown.getpixel((0, 0)) == 0x80


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"no picture", "accepted format"),
        (encoded(rough())[:500], "decoded"),
        (png_of(30_000, 30_000), "100 million"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "accepted format"),
    ],
    ids=["empty", "text", "torn", "bomb", "svg"],
)
def test_a_bad_upload_is_refused_by_name_and_leaves_nothing(server, content, says):
    before = files(server)
    answer = server.post("/api/pictures", params={"name": "bad.png"}, content=content)
    assert answer.status_code == 422
    assert says in answer.json()["what"]
    assert answer.json()["where"] == "bad.png"
    assert files(server) == before


def test_limits_hold_while_a_file_streams_in(serve):
    client = serve(max_file_bytes=100_000, max_pictures=2)
    sent = []

    def endless():
        for _ in range(1000):
            sent.append(1)
            yield b"x" * 10_000

    answer = client.post("/api/pictures", params={"name": "big.png"}, content=endless())
    assert answer.status_code == 413
    assert "0.1 MB" in answer.json()["what"]
    assert files(client) == []
    for status in (201, 201, 413):
        answer = client.post("/api/pictures", params={"name": "a.png"}, content=encoded(flat()))
        assert answer.status_code == status
    assert client.post("/api/pictures", params={"name": "x" * 256}, content=b"x").status_code == 422
    assert client.post("/api/pictures", content=b"x").status_code == 422


def test_all_pictures_together_are_bounded(serve):
    client = serve(max_total_bytes=20_000)
    statuses = []
    for _ in range(5):
        answer = client.post("/api/pictures", params={"name": "a.png"}, content=encoded(flat()))
        statuses.append(answer.status_code)
    assert statuses[0] == 201
    assert statuses[-1] == 413


def test_a_request_that_is_no_file_is_small(server, upload):
    body = json.dumps({"picture": upload()["id"], "rules": {"only": "x" * 1_000_000}})
    answer = server.post("/api/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize("id", [NOWHERE, "..", "%2e%2e%2fapp", "..%2f..%2fetc%2fpasswd", "A" * 32, "0" * 31])
@pytest.mark.parametrize("path", ["pictures/{}", "pictures/{}/view", "jobs/{}/download", "jobs/{}/mask"])
def test_only_names_that_the_server_gave_lead_anywhere(server, path, id):
    assert server.get(f"/api/{path.format(id)}").status_code in (404, 422)


class TestMask:
    def test_it_is_taken_as_any_picture_and_given_back_as_png(self, server, upload):
        picture = upload()
        url = f"/api/pictures/{picture['id']}/mask"
        assert server.get(url).status_code == 404
        painted = Image.new("RGB", (60, 40))
        painted.paste((255, 255, 255), (0, 0, 30, 20))
        answer = server.put(url, content=encoded(painted, "JPEG"))
        assert answer.json() == {"width": 60, "height": 40, "masked": 0.25}
        levels = pixels(server.get(url).content)
        assert np.unique(levels).tolist() == [0, 255]
        assert levels[:20, :30].all()
        assert server.delete(url).status_code == 204
        assert server.get(url).status_code == 404

    def test_alpha_is_read_as_the_command_reads_it(self, server, upload):
        url = f"/api/pictures/{upload()['id']}/mask"
        stencil = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
        stencil.paste((0, 0, 0, 255), (0, 0, 30, 20))
        assert server.put(url, content=encoded(stencil)).json()["masked"] == 0.25
        hidden = Image.new("LA", (60, 40), (255, 0))
        hidden.paste((255, 255), (0, 0, 30, 10))
        hidden.paste((0, 255), (30, 0, 60, 10))
        assert server.put(url, content=encoded(hidden)).json()["masked"] == 0.125
        answer = server.put(url, content=encoded(Image.new("L", (60, 40), 1)))
        assert answer.status_code == 422
        assert "all black" in answer.json()["what"]
        assert answer.json()["where"] == "mask"

    def test_one_that_is_refused_leaves_the_one_before(self, server, upload):
        picture = upload()
        url = f"/api/pictures/{picture['id']}/mask"
        server.put(url, content=encoded(Image.new("L", (60, 40), 255)))
        for content, says in ((b"no picture", "accepted"), (encoded(Image.new("L", (61, 40))), "61 x 40")):
            answer = server.put(url, content=content)
            assert answer.status_code == 422
            assert says in answer.json()["what"]
        assert pixels(server.get(url).content).all()
        assert [n for n in files(server) if picture["id"] in n and "mask" not in n] == [
            f"pictures/{picture['id']}/{part}" for part in ("file", "view")
        ]


class TestPreview:
    def test_it_shows_the_weight(self, server, upload):
        url = f"/api/pictures/{upload()['id']}/preview"
        rules = {"texts": False, "boxes": [BOX], "keep": [[8, 8, 4, 4]], "grow": 1, "feather": 2}
        levels = pixels(server.post(url, json=rules).content)
        assert levels.shape == (40, 60)
        assert (levels[13:20, 7:33] == 255).all()
        assert (levels[8:12, 8:12] == 0).all()
        assert 0 < levels[21, 20] < 255
        assert pixels(server.post(url, params={"size": 30}, json=rules).content).shape == (20, 30)

    @pytest.mark.parametrize(
        ("rules", "status"),
        [
            ({}, 409),
            ({"texts": False, "take": [0]}, 409),
            ({"texts": False, "mask": True}, 404),
            ({"texts": False, "boxes": [[50, 0, 20, 20]]}, 422),
            ({"texts": False, "keep": ["("]}, 422),
            ({"texts": False, "keep": ["x{99999999999}"]}, 422),
            ({"texts": False, "grow": GROW_MOST + 1}, 422),
            ({"texts": False, "feather": FEATHER_MOST + 1}, 422),
            ({"texts": False, "colour": 1}, 422),
        ],
    )
    def test_what_cannot_be_is_refused(self, server, upload, rules, status):
        assert server.post(f"/api/pictures/{upload(known=False)['id']}/preview", json=rules).status_code == status


class TestChoose:
    def test_it_says_why_words_stay_as_jobs_will(self, server):
        wanted = {"words": ["Sale", "sale", "Monday", "Sale"], "only": "(?i)sale|day", "keep": ["^S"]}
        answer = server.post("/api/pictures/choose", json=wanted)
        assert answer.json() == ["words to keep", "", "", "words to keep"]
        assert server.post("/api/pictures/choose", json={"words": ["a"], "only": "b"}).json() == ["other words"]
        assert server.post("/api/pictures/choose", json={"words": []}).json() == []

    @pytest.mark.parametrize("pattern", ["(", "x{99999999999}", "x" * 501])
    def test_what_is_no_pattern_is_refused(self, server, pattern):
        assert server.post("/api/pictures/choose", json={"words": [], "only": pattern}).status_code == 422

    def test_a_pattern_that_takes_for_ever_is_given_up(self, server, upload, monkeypatch):
        monkeypatch.setattr("efface.app.serving.routes.pictures.THINK", 0.3)
        monkeypatch.setattr("efface.app.serving.routes.pictures.LOOK", 0.3)
        picture, words, endless = upload(), "a" * 60 + "!", "(a+)+$"
        box = TextBox(np.array([(5, 5), (30, 5), (30, 20), (5, 20)], np.float32), words, 0.9)
        server.app.state.service.pictures.get(picture["id"]).texts = [box]
        for path, body in (
            ("choose", {"words": [words], "only": endless}),
            (f"{picture['id']}/preview", {"only": endless}),
        ):
            answer = server.post(f"/api/pictures/{path}", json=body)
            assert answer.status_code == 422
            assert "0.3 s" in answer.json()["what"]
        assert server.post("/api/pictures/choose", json={"words": [words], "only": "a"}).json() == [""]
