"""The benchmark asks a real host: the workflow of the bundled model says the same as the pipeline."""

import json

import torch

from benchmark.__main__ import execute
from benchmark.run_folder import RunFolder

ASKED = ["--sessions", "3", "--turns", "6", "--languages", "en"]


def test_the_workflow_agrees_with_the_pipeline(host, tmp_path):
    reports, images = {}, {}
    url = f"http://127.0.0.1:{host.port}"
    for editor, options in (("pipeline", ()), ("comfyui", ("--server", url))):
        folder = tmp_path / editor
        assert execute(["run", *ASKED, "--editor", editor, *options, "--out", str(folder)]) == 0
        reports[editor] = json.loads((folder / "report.json").read_text())
        opened = RunFolder(folder, reports[editor]["settings"])
        images[editor] = torch.stack([torch.stack(opened.images(name)) for name in opened.names])
    apart = (images["pipeline"] - images["comfyui"]).abs().amax(dim=(2, 3, 4))
    print("largest difference of a pixel by turn, of 255:", (255 * apart.amax(dim=0)).round().tolist())
    assert apart.max() <= 1.5 / 255
    for name in ("success", "followed", "preservation", "identity"):
        shares = [[value["mean"] for value in reports[editor]["by_turn"][name] if value] for editor in reports]
        assert max(abs(one - other) for one, other in zip(*shares, strict=True)) <= 0.01
