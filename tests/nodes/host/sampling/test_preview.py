"""Previews are limited in rate and size, however short the steps are. No host is needed."""

import torch
from pack import pack_module

preview = pack_module("nodes.host.sampling.preview")


class Previewer:
    def decode_latent_to_preview_image(self, kind: str, x0: torch.Tensor):
        assert x0.shape == (1, 16, 1, 4, 6)
        return kind, "an image", 512


def shown(monkeypatch, seconds: float, steps: int, previewer) -> list:
    """What the host is told during a turn whose steps take `seconds` each."""
    clock, told, checks = [100.0], [], []
    monkeypatch.setattr(preview.time, "monotonic", lambda: clock[0])
    callback = preview.step_callback(previewer, lambda *step: told.append(step), lambda: checks.append(1))
    for step in range(1, steps + 1):
        clock[0] += seconds
        callback(step, steps, torch.zeros(1, 16, 1, 4, 6))
    assert [(step, total) for step, total, _ in told] == [(step, steps) for step in range(1, steps + 1)]
    assert len(checks) == steps  # an interrupt is noticed at every step
    return [image for *_, image in told if image]


def test_previews_come_at_most_five_times_a_second_and_no_larger_than_the_result(monkeypatch):
    assert shown(monkeypatch, 1 / 64, 4, Previewer()) == []
    assert shown(monkeypatch, 1 / 64, 100, Previewer()) == [("JPEG", "an image", 48)] * 7  # every 13th
    assert len(shown(monkeypatch, 1.0, 4, Previewer())) == 4
    assert shown(monkeypatch, 1.0, 4, None) == []
