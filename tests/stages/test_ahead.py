"""Work one step ahead."""

import threading

import pytest

from worldloom.stages.ahead import ahead


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
