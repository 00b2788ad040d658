"""Time the attention patch inside ComfyUI, apart from the longer attention that no patch can save.

    ~/ComfyUI/.venv/bin/python -m benchmark cost patch --host ~/ComfyUI --tokens 1024 --frames 3

It runs with ComfyUI's interpreter, on ComfyUI's own Wan network with random weights. Four things are timed in
alternation, so that other programs disturb all alike:

    native     a forward of one image, not patched
    patched    the same with the K/V of earlier frames
    longer     the self-attention calls of the patched forward alone, with their longer K/V
    shorter    those of the native forward alone

Every round gives the ratio patched / (native - shorter + longer): what the patch adds to a native forward that had
the longer calls already. The median of the ratios counts; patched / (native + longer) is printed as well. On a CPU
the time of the process is taken, which leaves out other programs.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from anchoredit_model.config import TransformerConfig
from anchoredit_model.errors import AnchorEditError
from anchoredit_model.memory.frame_kv import FrameKV
from anchoredit_model.memory.visibility import FrameView

from ..run_folder import write_json

PACK = Path(__file__).resolve().parents[2]
STRIDE = 4  # of slots in temporal RoPE; the cost does not depend on it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", type=Path, required=True, metavar="DIR", help="ComfyUI's own folder")
    parser.add_argument("--tokens", type=int, default=1024, help="of an image, a square number (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=3, help="earlier frames that are seen (default: %(default)s)")
    parser.add_argument("--width", type=int, default=1536, help="of the network, a multiple of 128 (default: Wan 1.3B)")
    parser.add_argument("--ffn", type=int, default=8960, help="width of the feed-forward layers (default: Wan 1.3B)")
    parser.add_argument("--layers", type=int, default=1, help="all cost the same (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="number of rounds (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: float32)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file")


def main(args: argparse.Namespace) -> int:
    rows = round(args.tokens**0.5)
    if rows < 1 or rows * rows != args.tokens:
        raise AnchorEditError(f"--tokens must be a square number, got {args.tokens}", "Use 1024 or 4096, for example")
    for name in ("frames", "width", "ffn", "layers", "repeats"):
        if getattr(args, name) < 1:
            raise AnchorEditError(f"--{name} must be 1 or more, got {getattr(args, name)}", "Use 1 or more")
    if args.width % 128:
        raise AnchorEditError(f"--width must be a multiple of 128, got {args.width}", "Use a multiple of 128")

    _find_host(args.host, args.device)
    sizes = TransformerConfig(args.width, args.ffn, args.width // 128, args.layers, text_dim=512)
    with torch.inference_mode():
        works = _works(sizes, rows, args.frames, torch.device(args.device), getattr(torch, args.dtype))
        if works["native"]().equal(works["patched"]()):
            raise RuntimeError("the patched forward must differ from the native one, got the same output")
        rounds = _timed(works, args.repeats, args.device)
    report = _report(rounds)
    median, low, high = (report["ratio"][name] for name in ("median", "lower_quartile", "upper_quartile"))
    print(f"{args.tokens} tokens, {args.frames} earlier frames, width {args.width}, {args.layers} layer(s)")
    for name in works:
        times = [seconds[name] for seconds in rounds]
        print(f"{name:8s} {statistics.median(times):9.4f} s   fastest {min(times):9.4f} s")
    print(f"patched / (native - shorter + longer): {median:.3f} (quartiles {low:.3f} to {high:.3f})")
    print(f"patched / (native + longer):           {report['literal']['median']:.3f}")
    print(f"of the fastest of each:                {report['fastest']:.3f}")
    if args.out:
        write_json({**report, "rounds": rounds}, args.out)
    return 0


def _find_host(folder: Path, device: str) -> None:
    """Put ComfyUI on the import path, with the attention function that it uses on a GPU."""
    if not (folder / "comfy" / "ldm" / "wan" / "model.py").is_file():
        raise AnchorEditError(
            f"--host must be the folder of ComfyUI, got '{folder}'", "Give the folder that has main.py"
        )
    sys.path.insert(0, str(folder.resolve()))
    from comfy.cli_args import args

    args.cpu = device == "cpu"
    args.use_pytorch_cross_attention = True


def _attention_module() -> ModuleType:
    """Import nodes/host/wan/attention.py as part of a package, for its relative imports, but without the node API."""
    for name in ("", ".nodes", ".nodes.host", ".nodes.host.wan"):
        package = ModuleType(f"anchoredit_pack{name}")
        package.__path__ = [str(PACK.joinpath(*name.split(".")))]
        sys.modules[f"anchoredit_pack{name}"] = package
    return importlib.import_module("anchoredit_pack.nodes.host.wan.attention")


def _works(
    sizes: TransformerConfig, rows: int, frames: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Callable[[], Any]]:
    """Return the functions to time, by name."""
    import comfy.ldm.wan.model
    import comfy.ops
    import comfy.patcher_extension
    from comfy.ldm.modules.attention import optimized_attention

    network = comfy.ldm.wan.model.WanModel(
        dim=sizes.dim, ffn_dim=sizes.ffn_dim, num_heads=sizes.num_heads, num_layers=sizes.num_layers,
        text_dim=sizes.text_dim, device=device, dtype=dtype, operations=comfy.ops.manual_cast,
    ).eval()  # fmt: skip
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    for weight in network.parameters():
        weight.copy_(random(*weight.shape) / max(1, weight.shape[-1]) ** 0.5)
    tokens, heads, layers = rows * rows, sizes.num_heads, range(sizes.num_layers)
    kept = (1, tokens, heads, sizes.head_dim)
    past = tuple(
        FrameKV(tuple(random(*kept) for _ in layers), tuple(random(*kept) for _ in layers)) for _ in range(frames)
    )
    view = FrameView(tuple(range(frames)), tuple(range(frames)), frames)
    memory = _attention_module().MemoryAttention(view, past, STRIDE)
    latent, text = random(1, 16, 1, 2 * rows, 2 * rows), random(1, sizes.text_len, sizes.text_dim)
    time_of = torch.full((1,), 500.0, device=device)
    wrapped = {comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL: {"anchoredit": [memory]}}
    queries = random(1, tokens, sizes.dim)
    keys, values = (random(1, (frames + 1) * tokens, sizes.dim) for _ in range(2))

    def forward(options: dict) -> Tensor:
        return network(latent, time_of, text, transformer_options=options)

    def attend(length: int) -> None:
        for _ in layers:
            optimized_attention(queries, keys[:, :length], values[:, :length], heads=heads, transformer_options={})

    return {
        "native": lambda: forward({}),
        "patched": lambda: forward({"wrappers": wrapped}),
        "longer": lambda: attend(keys.shape[1]),
        "shorter": lambda: attend(tokens),
    }


def _timed(works: dict[str, Callable[[], Any]], repeats: int, device: str) -> list[dict[str, float]]:
    """Return the seconds of each function, by round; rounds begin with different ones, and the first warms up."""
    names, rounds = list(works), []
    clock = time.process_time if device == "cpu" else time.perf_counter
    for repeat in range(repeats + 1):
        seconds = {}
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            began = clock()
            works[name]()
            if device != "cpu":
                torch.cuda.synchronize(device)
            seconds[name] = clock() - began
        rounds.append(seconds)
    return rounds[1:]


def _report(rounds: list[dict[str, float]]) -> dict[str, Any]:
    def ratio(seconds: dict[str, float]) -> float:
        return seconds["patched"] / (seconds["native"] - seconds["shorter"] + seconds["longer"])

    ratios = [ratio(seconds) for seconds in rounds]
    literal = [seconds["patched"] / (seconds["native"] + seconds["longer"]) for seconds in rounds]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    spread = {"median": statistics.median(ratios), "lower_quartile": low, "upper_quartile": high}
    fastest = ratio({name: min(seconds[name] for seconds in rounds) for name in rounds[0]})
    return {"ratio": spread, "literal": {"median": statistics.median(literal)}, "fastest": fastest}
