"""Of the images that masks were put into two stay, and no longer than what they belong to. No host is needed."""

import importlib.util
from pathlib import Path

import torch

FILE = Path(__file__).parents[3] / "nodes" / "editors" / "decode_cache.py"
SPEC = importlib.util.spec_from_file_location("decode_cache", FILE)
module = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(module)


class Thing:
    pass


def test_the_two_last_used_stay_and_belong_to_a_turn_and_a_vae():
    images, vae, turns = module.Images(), Thing(), [Thing() for _ in range(3)]
    shown = [torch.zeros(3, 2, 2) + number for number in range(3)]
    for turn, image in zip(turns[:2], shown):
        images.put(turn, vae, image)
    assert images.get(turns[0], vae) is shown[0] and images.get(turns[0], Thing()) is None
    images.put(turns[2], vae, shown[2])
    assert [images.get(turn, vae) for turn in turns] == [shown[0], None, shown[2]]


def test_none_outlives_its_turn_or_vae():
    images, vaes, turns = module.Images(), [Thing(), Thing()], [Thing(), Thing()]
    for turn, vae in zip(turns, vaes):
        images.put(turn, vae, torch.zeros(3, 2, 2))
    del turn, vae, turns[0]
    assert len(images) == 1
    del vaes[1]
    assert len(images) == 0
