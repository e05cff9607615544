import threading

import pytest

from tiny_llm.parallel import count_threads, map_in_order


@pytest.mark.parametrize("num_threads", [1, 2, 5, None])
def test_results_come_in_the_order_of_the_items(num_threads):
    gate = threading.Event()

    def work(item):
        if item == 0 and num_threads != 1 and count_threads() > 1:
            gate.wait(5)  # The first item is finished last.
        gate.set()
        return item * item

    results = map_in_order(work, range(50), num_threads)
    assert list(results) == [item * item for item in range(50)]


def test_items_are_taken_only_a_few_ahead():
    taken = []

    def items():
        for item in range(1000):
            taken.append(item)
            yield item

    results = map_in_order(lambda item: item, items(), 2)
    assert next(results) == 0
    assert len(taken) <= 4
    results.close()


def test_a_failure_is_raised_in_place_of_its_result():
    results = map_in_order(lambda item: 1 // item, [2, 1, 0, 1], 2)
    assert next(results) == 0
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_failure_of_the_items_is_raised_and_no_thread_is_left():
    before = threading.active_count()

    def items():
        yield 1
        raise KeyError("two")

    with pytest.raises(KeyError, match="two"):
        list(map_in_order(lambda item: item, items(), 2))
    assert threading.active_count() == before
