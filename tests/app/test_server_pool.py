"""Worker processes: bounded, cancelled, killed, and replaced."""

import os
import signal

import psutil
import pytest
from serving import Answer, Die, Hold, Raise, until

from efface.app.serving.pool import Pool
from efface.app.serving.refusing import RequestError
from efface.errors import EffaceError, PictureError

MB = 1 << 20


@pytest.fixture
def pool():
    made = []

    def start(workers=1, *, max_waiting=2, memory=1000 * MB, seconds=60):
        made.append(Pool(workers, max_waiting=max_waiting, memory=memory, seconds=seconds))
        return made[-1]

    yield start
    for one in made:
        one.close()


def holding(pool, megabytes=0):
    ticket = pool.submit(Hold(megabytes))
    until(lambda: ticket.doing == "holding")
    return ticket


def pid(pool):
    until(lambda: pool.workers[0] is not None)
    return pool.workers[0].process.pid


def test_tasks_run_one_after_another_in_one_process_that_stays(pool):
    pool = pool(max_waiting=5)
    before = pid(pool)
    tickets = [pool.submit(Answer(i)) for i in range(5)]
    assert [ticket.future.result(30) for ticket in tickets] == list(range(5))
    assert {(t.state, t.progress) for t in tickets} == {("done", 1.0)}
    assert pid(pool) == before != os.getpid()


def test_too_many_are_refused_and_the_line_moves_on(pool):
    pool = pool(max_waiting=1)
    running = holding(pool)
    waiting = pool.submit(Answer(1))
    with pytest.raises(RequestError, match="waiting") as caught:
        pool.submit(Answer(2))
    assert caught.value.status == 429
    pool.cancel(waiting)
    assert waiting.state == "cancelled"
    after = pool.submit(Answer(3))
    pool.cancel(running)
    assert after.future.result(30) == 3


def test_cancelling_frees_the_memory_within_two_seconds(pool):
    pool = pool()
    ticket = holding(pool, 300)
    process = psutil.Process(pid(pool))
    assert process.memory_info().rss > 300 * MB
    pool.cancel(ticket)
    until(lambda: ticket.over, 2)
    assert ticket.state == "cancelled"
    assert not process.is_running()
    assert pool.submit(Answer(1)).future.result(30) == 1


@pytest.mark.parametrize(
    ("task", "limits", "says"),
    [
        (Hold(400), {"memory": 300 * MB}, "memory"),
        (Hold(0), {"seconds": 3}, "3 s"),
        (Die(), {}, "killed"),
        (Raise(PictureError("is odd", where="x.png")), {}, "x.png: is odd"),
        (Raise(ValueError("odd")), {}, "unexpected ValueError: odd"),
        (Raise(MemoryError()), {}, "not enough memory"),
        (Raise(OSError(28, "No space left on device")), {}, "No space left"),
    ],
    ids=["memory", "time", "killed", "refused", "fault", "no memory", "disk full"],
)
def test_a_task_that_fails_says_why_and_the_next_one_runs(pool, task, limits, says):
    pool = pool(**limits)
    failed, after = pool.submit(task), pool.submit(Answer(1))
    with pytest.raises(EffaceError, match=says):
        failed.future.result(30)
    assert failed.state == "failed"
    assert after.future.result(30) == 1


def test_a_worker_that_is_killed_while_idle_is_replaced(pool):
    pool = pool()
    assert pool.submit(Answer(1)).future.result(30) == 1
    os.kill(pid(pool), signal.SIGKILL)
    until(lambda: not pool.workers[0].process.is_alive())
    assert pool.submit(Answer(2)).future.result(30) == 2


def test_closing_ends_everything(pool):
    pool = pool()
    running, waiting = holding(pool), pool.submit(Answer(1))
    process = psutil.Process(pid(pool))
    pool.close()
    assert (running.state, waiting.state) == ("cancelled", "cancelled")
    assert not process.is_running()
    with pytest.raises(RequestError):
        pool.submit(Answer(2))
