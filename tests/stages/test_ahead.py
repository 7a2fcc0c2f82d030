"""Work one step ahead."""

import threading

import pytest

from worldloom.stages.ahead import Behind, ahead


def test_results_come_in_order():
    assert list(ahead(((lambda i=i: i * i) for i in range(7)), depth=3)) == [i * i for i in range(7)]


def test_work_is_done_before_it_is_asked_for():
    done = threading.Event()
    results = ahead([lambda: 0, done.set, lambda: 2, lambda: 3], depth=1)
    assert next(results) == 0
    assert done.wait(10)
    assert list(results) == [None, 2, 3]


def test_an_error_surfaces_where_its_result_was_due():
    def fail():
        raise ValueError("the second")

    results = ahead([lambda: 1, fail, lambda: 3], depth=2)
    assert next(results) == 1
    with pytest.raises(ValueError, match="the second"):
        next(results)


def test_closing_early_leaves_no_thread():
    results = ahead(((lambda i=i: i) for i in range(100)), depth=2)
    next(results)
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_work_behind_is_done_in_order_and_before_the_end():
    done = []
    with Behind(depth=2) as behind:
        for i in range(7):
            behind.do(lambda i=i: done.append(i))
    assert done == list(range(7))


def test_work_behind_does_not_hold_up_what_comes_next():
    go = threading.Event()
    with Behind(depth=2) as behind:
        behind.do(lambda: go.wait(10))
        behind.do(lambda: None)
        go.set()  # reached although the first job waits for it


def test_nothing_is_done_behind_after_a_failure():
    done = []

    def fail():
        raise ValueError("the second")

    with pytest.raises(ValueError, match="the second"), Behind(depth=5) as behind:
        behind.do(lambda: done.append(1))
        behind.do(fail)
        behind.do(lambda: done.append(3))
    assert done == [1]


def test_an_error_of_the_caller_is_not_hidden_by_one_behind():
    def fail():
        raise ValueError("behind")

    with pytest.raises(KeyError, match="mine"), Behind() as behind:
        behind.do(fail)
        raise KeyError("mine")
