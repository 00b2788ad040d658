"""Ids of live objects are unique, and plain data is described by its content."""

from pack import pack_module

ObjectIds = pack_module("nodes.host.object_ids").ObjectIds


class Thing:
    pass


def test_ids_are_unique_even_after_objects_are_deleted():
    ids, seen = ObjectIds(), set()
    for _ in range(50):
        thing = Thing()  # often at the address of the one before
        number = ids.of(thing)
        assert number == ids.of(thing) and number not in seen
        seen.add(number)
        del thing


def test_objects_without_weak_references_get_unique_ids():
    ids = ObjectIds()
    numbers = {ids.of(object()) for _ in range(50)}
    assert len(numbers) == 50


def test_descriptions_differ_exactly_where_contents_do():
    ids, function = ObjectIds(), lambda: None
    options = {"a": 1, "patches": {"b": [function]}, "empty": {}, "none": None}
    assert ids.describe(options) == ids.describe({"patches": {"b": [function]}, "a": 1})
    assert ids.describe(options) != ids.describe({**options, "a": 2})
    assert ids.describe(options) != ids.describe({**options, "patches": {"b": [lambda: None]}})
