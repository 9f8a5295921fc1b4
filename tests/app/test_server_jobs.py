"""Jobs: the same pixels as the verb's own, told as they go, and nothing torn when they are stopped."""

import io
import json
import os
import platform
import shlex
import signal
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image
from serving import BOX, encoded, flat, pixels, rough, running, until

from efface.app import cli
from efface.app.serving.choosing import Means
from efface.app.serving.copying import copies
from efface.app.serving.schemas import Rules
from efface.parts.text.detect import TextBox
from efface.verbs.clean import apply
from efface.verbs.rules import PRESETS
from efface.verbs.rules import Rules as VerbRules

BOXED = {"texts": False, "boxes": [BOX]}


def know(client, picture, *texts):
    """Let the server know texts, as if it had found them."""
    boxes = [
        TextBox(np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], np.float32), words, sure)
        for words, sure, (x, y, w, h) in texts
    ]
    client.app.state.service.pictures.get(picture["id"]).texts = boxes


def followed(events):
    return [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: ")]


def download(client, job, **params):
    answer = client.get(f"/api/jobs/{job['id']}/download", params=params)
    assert answer.status_code == 200, answer.text
    return answer.content


def test_a_job_is_followed_to_its_end_and_its_result_fetched(server, upload, clean):
    picture = upload()
    job, events = clean(picture)
    assert job["state"] == "done"
    told = followed(events)
    assert told[-1] == job
    assert [t["progress"] for t in told] == sorted(t["progress"] for t in told)
    assert job["result"]["flat"] == 1
    assert job["result"]["residual"] == {"before": 0, "recall": None, "left": []}
    expected = np.full((40, 60, 3), (200, 190, 180), np.uint8)
    assert (pixels(download(server, job)) == expected).all()
    assert (pixels(server.get(f"/api/jobs/{job['id']}/view").content) == expected).all()
    mask = server.get(f"/api/jobs/{job['id']}/mask")
    assert pixels(mask.content).sum() == 255 * BOX[2] * BOX[3]
    assert 'filename="sign_mask.png"' in mask.headers["content-disposition"]
    assert job in server.get("/api/jobs").json()


def test_the_download_keeps_format_metadata_and_name(server, upload, clean):
    profile, exif = b"profile" * 20, Image.Exif()
    exif[0x010E] = "Grüße".encode().decode("latin-1")
    content = encoded(flat((64, 48)), "JPEG", quality=80, exif=exif, icc_profile=profile, dpi=(72, 72))
    job, _ = clean(upload(content, name="Grüße.JPG"))
    answer = server.get(f"/api/jobs/{job['id']}/download")
    assert "Gr%C3%BC%C3%9Fe_clean.JPG" in answer.headers["content-disposition"]
    before, after = (Image.open(io.BytesIO(data)) for data in (content, answer.content))
    assert after.format == "JPEG"
    assert (after.info["icc_profile"], after.info["dpi"]) == (profile, (72, 72))
    assert dict(after.getexif()) == dict(before.getexif())
    assert after.quantization == before.quantization


def test_results_come_in_one_archive(server, upload, clean):
    contents = [encoded(flat(colour=(200, level, 180))) for level in (10, 90, 170)]
    jobs = [clean(upload(c, name=n))[0] for c, n in zip(contents, ("a.png", "b.png", "a.png"), strict=True)]
    answer = server.get("/api/jobs/archive", params={"job": [job["id"] for job in jobs]})
    assert answer.headers["content-type"] == "application/zip"
    with ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["a_clean.png", "b_clean.png", "a_clean 2.png"]
        for name, job in zip(archive.namelist(), jobs, strict=True):
            assert archive.read(name) == download(server, job)
    for wrong, status in (("0" * 32, 404), ("x", 422), (f"{jobs[0]['id']}:2", 404), (f"{jobs[0]['id']}:0", 422)):
        assert server.get("/api/jobs/archive", params={"job": wrong}).status_code == status
    assert server.get("/api/jobs/archive").status_code == 422


def test_texts_are_taken_by_rule_and_by_hand(server, upload, clean):
    picture = upload(encoded(Image.new("RGB", (100, 60), "white")))
    places = [(5, 5, 20, 10), (40, 5, 20, 10), (70, 5, 20, 10), (5, 40, 20, 10)]
    know(server, picture, *[(f"text {i}", [0.9, 0.2, 0.9, 0.9][i], place) for i, place in enumerate(places)])

    def taken(**rules):
        job, _ = clean(picture, **rules, grow=0)
        mask = pixels(server.get(f"/api/jobs/{job['id']}/mask").content)
        preview = server.post(f"/api/pictures/{picture['id']}/preview", json={**rules, "grow": 0, "feather": 0})
        assert (pixels(preview.content) == mask).all()
        return [i for i, (x, y, w, h) in enumerate(places) if mask[y + h // 2, x + w // 2]], job

    assert taken(min_confidence=0.5)[0] == [0, 2, 3]
    assert taken(min_confidence=0.1, only="[01]")[0] == [0, 1]
    assert taken(keep=["2", [0, 30, 60, 30]])[0] == [0]
    assert taken(take=[1], leave=[0, 3])[0] == [1, 2]
    assert taken(texts=False, take=[3], boxes=[[0, 0, 30, 20]])[0] == [0, 3]
    assert taken(leave=[0, 1, 2, 3])[0] == []
    assert taken(only="0")[1]["result"]["residual"] == {"before": 1, "recall": 0.0, "left": []}


@pytest.mark.parametrize(
    ("rules", "status", "says"),
    [
        ({"take": [0]}, 409, "not known"),
        ({"mask": True}, 409, "no painted mask"),
        ({"keep": ["("]}, 422, "regular expression"),
        ({"only": "x{99999999999}"}, 422, "regular expression"),
        ({"feather": 101}, 422, "less than or equal to 100"),
        ({"method": "nothing"}, 422, "nothing"),
        ({"method": "strokefill", "iterations": 3}, 422, "not iterative"),
        ({"boxes": [[0, 0, 0, 1]]}, 422, "greater"),
        ({"quality": "worst"}, 422, "fast"),
        ({"memory": 1}, 422, "Extra"),
        ({"weights": "/etc"}, 422, "Extra"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused_at_once(server, upload, rules, status, says):
    answer = server.post("/api/jobs", json={"picture": upload(known=False)["id"], "rules": rules})
    assert answer.status_code == status
    assert says in answer.json()["what"] + str(answer.json()["where"])


def test_a_method_without_weights_is_refused_at_once(server, upload, monkeypatch):
    monkeypatch.setattr("efface.app.serving.catalogue.shipped", lambda name: None)
    job = {"picture": upload()["id"], "rules": {"method": "deeperaser"}}
    answer = server.post("/api/jobs", json=job)
    assert answer.status_code == 422
    assert answer.json()["fix"] == "Known: strokefill"
    usable = [method["name"] for method in server.get("/api/methods").json() if method["usable"]]
    assert usable == ["strokefill"]


def test_the_qualities_are_named_by_what_they_mean_here(serve, weights):
    assert serve().get("/api/about").json()["qualities"] == PRESETS
    qualities = serve(weights=weights / "deeperaser").get("/api/about").json()["qualities"]
    assert qualities == dict.fromkeys(PRESETS, "deeperaser")


def test_a_job_that_fails_says_why_and_leaves_nothing(server, upload, clean):
    picture = upload()
    job, events = clean(picture, texts=False, boxes=[[50, 0, 20, 20]])
    assert job["state"] == followed(events)[-1]["state"] == "failed"
    assert "inside" in job["problem"]["what"]
    assert server.get(f"/api/jobs/{job['id']}/download").status_code == 409
    assert not (server.app.state.service.root / "jobs" / job["id"]).exists()


def test_iterates_of_an_iterative_method_can_be_looked_at(serve, upload, clean, weights):
    client = serve(weights=weights / "deeperaser")
    picture = upload(encoded(rough()), client=client)
    job, _ = clean(picture, client=client, texts=False, boxes=[BOX], iterations=3, method="deeperaser")
    assert job["result"]["iterations"] == 3
    last = download(client, job)
    each = [download(client, job, iteration=k) for k in (1, 2, 3)]
    assert each[2] == last
    assert each[0] != each[1]
    assert client.get(f"/api/jobs/{job['id']}/download", params={"iteration": 4}).status_code == 404
    shown = client.get(f"/api/jobs/{job['id']}/view", params={"iteration": 1})
    assert (pixels(shown.content) == pixels(each[0])).all()
    first, _ = clean(picture, client=client, texts=False, boxes=[BOX], iterations=1)
    assert np.abs(pixels(download(client, first)).astype(int) - pixels(each[0])).max() <= 1


def test_parallel_jobs_each_make_what_the_verb_makes_alone(server, upload, weights, tmp_path):
    contents = [encoded(rough(seed)) for seed in range(8)]
    bodies = [
        {"picture": upload(content)["id"], "rules": {**BOXED, "feather": seed}} for seed, content in enumerate(contents)
    ]
    jobs = [server.post("/api/jobs", json=body).json() for body in bodies]
    for job in jobs:
        server.get(f"/api/jobs/{job['id']}/events")
    for seed, (job, content) in enumerate(zip(jobs, contents, strict=True)):
        rules = VerbRules(boxes=[BOX], feather=seed, weights=weights / "strokefill")
        alone = tmp_path / f"{seed}.png"
        apply(content, rules).save(alone)
        assert download(server, job) == alone.read_bytes()


@pytest.mark.parametrize(
    "rules",
    [
        Rules(texts=False, boxes=[BOX]),
        Rules(texts=False, boxes=[BOX], keep=[(0, 0, 12, 12)], grow=3, feather=0),
        Rules(texts=False, boxes=[BOX], take=[0], keep=[(0, 0, 12, 12), "-x"]),
        Rules(only=".", keep=["'"], min_confidence=0.25),
    ],
    ids=["boxes", "kept", "by hand", "by rule"],
)
def test_the_copied_command_and_python_do_the_same(server, upload, clean, weights, tmp_path, monkeypatch, rules):
    monkeypatch.chdir(tmp_path)
    name, content = "it's.png", encoded(rough())
    (tmp_path / name).write_bytes(content)
    picture = upload(content, name=name)
    know(server, picture, ("words", 0.9, (50, 30, 20, 10)))
    if rules.texts:  # the command would find none in the noise
        know(server, picture)
    job, _ = clean(picture, **rules.model_dump())
    result = job["result"]
    if result["needs_mask"]:
        (tmp_path / "it's_mask.png").write_bytes(server.get(f"/api/jobs/{job['id']}/mask").content)
    wanted = download(server, job)

    assert cli.run(shlex.split(result["command"])[1:]) == 0
    assert (tmp_path / "it's_clean.png").read_bytes() == wanted
    (tmp_path / "it's_clean.png").unlink()
    exec(compile(result["python"], "copied", "exec"), {})
    assert (tmp_path / "it's_clean.png").read_bytes() == wanted


def test_a_copied_command_is_as_short_as_it_can_be():
    same = copies(Rules(), "-a b.jpg", Means(2_000_000_000))
    assert same.command == "efface clean './-a b.jpg'"
    assert same.python == "import efface\n\ncleaned = efface.clean('-a b.jpg')\ncleaned.save('-a b_clean.jpg')\n"
    same = copies(Rules(quality="best", only="a b", keep=["-", (1, 2, 3, 4)]), "a.jpg", Means(10**9))
    assert same.command == "efface clean a.jpg --best --memory 1000000000 --keep=- --keep 1,2,3,4 --only 'a b'"


@pytest.fixture
def stopped(serve, upload):
    """Return a server, a picture in it, and a job whose worker was stopped before it could do anything."""
    client = serve(max_waiting=1)
    service = client.app.state.service
    until(lambda: service.cleaning.workers[0] is not None)
    process = service.cleaning.workers[0].process
    os.kill(process.pid, signal.SIGSTOP)
    picture = upload(client=client)
    job = client.post("/api/jobs", json={"picture": picture["id"], "rules": BOXED}).json()
    until(lambda: client.get(f"/api/jobs/{job['id']}").json()["state"] == "running")
    return client, picture, job, process


def test_too_many_jobs_are_told_to_come_back(stopped):
    client, picture, *_ = stopped
    body = {"picture": picture["id"], "rules": BOXED}
    assert client.post("/api/jobs", json=body).status_code == 202
    answer = client.post("/api/jobs", json=body)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0
    assert len(client.get("/api/jobs").json()) == 2
    assert len([*(client.app.state.service.root / "jobs").iterdir()]) == 2


@pytest.mark.parametrize("what", ["the job", "the picture"])
def test_what_is_removed_is_cancelled_and_leaves_nothing(stopped, clean, upload, what):
    client, picture, job, process = stopped
    path = f"jobs/{job['id']}" if what == "the job" else f"pictures/{picture['id']}"
    assert client.delete(f"/api/{path}").status_code == 204
    until(lambda: not process.is_alive(), 2)
    until(lambda: not (client.app.state.service.root / "jobs" / job["id"]).exists(), 2)
    assert client.get(f"/api/jobs/{job['id']}").status_code == 404
    assert clean(upload(client=client), client=client)[0]["state"] == "done"


def test_a_killed_worker_fails_its_job_and_another_takes_the_next(stopped, clean):
    client, picture, job, process = stopped
    os.kill(process.pid, signal.SIGKILL)
    last = followed(client.get(f"/api/jobs/{job['id']}/events").text)[-1]
    assert last["state"] == "failed"
    assert "killed" in last["problem"]["what"]
    assert not (client.app.state.service.root / "jobs" / job["id"]).exists()
    assert clean(picture, client=client)[0]["state"] == "done"


def test_stopping_the_server_ends_its_workers_and_removes_its_files(clean, upload):
    with running() as client:
        picture = upload(client=client)
        clean(picture, client=client)
        service = client.app.state.service
        processes = [w.process for pool in (service.cleaning, service.looking) for w in pool.workers if w]
    assert not service.root.exists()
    assert not any(process.is_alive() for process in processes)
    with running() as client:
        assert client.get("/api/pictures").json() == []


def test_what_a_killed_server_left_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    prefix = f"efface-{platform.node()}-"
    names = (f"{prefix}{2**22 + 1}-dead", f"{prefix}{os.getpid()}-alive", "efface-other-1-x")
    for name in names:
        (tmp_path / name / "pictures").mkdir(parents=True)
    with running():
        assert [(tmp_path / name).exists() for name in names] == [False, True, True]
