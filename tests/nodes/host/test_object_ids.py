"""Numbers that name live objects are given once, and plain data is described by its content."""

from pack import pack_module

ObjectIds = pack_module("nodes.host.object_ids").ObjectIds


class Thing:
    pass


def test_no_number_is_given_twice_even_after_death():
    ids, seen = ObjectIds(), set()
    for _ in range(50):
        thing = Thing()  # often at the address of the one before
        number = ids.of(thing)
        assert number == ids.of(thing) and number not in seen
        seen.add(number)
        del thing


def test_what_takes_no_weak_reference_keeps_its_number():
    ids = ObjectIds()
    numbers = {ids.of(object()) for _ in range(50)}
    assert len(numbers) == 50


def test_descriptions_tell_apart_what_differs_and_nothing_else():
    ids, function = ObjectIds(), lambda: None
    options = {"a": 1, "patches": {"b": [function]}, "empty": {}, "none": None}
    assert ids.describe(options) == ids.describe({"patches": {"b": [function]}, "a": 1})
    assert ids.describe(options) != ids.describe({**options, "a": 2})
    assert ids.describe(options) != ids.describe({**options, "patches": {"b": [lambda: None]}})
