"""Run stages of the curriculum in a process of its own, for test_engine.py:

    engine_worker.py CONFIG OUT STAGE [--die-at STEP] [--interrupt STEP] [--parallel ddp fsdp]

`--interrupt` sends Ctrl-C to the last process twice, as torchrun does, after the processes have agreed in that step.
`--parallel` runs the stage once per kind, in OUT/<kind>, and asserts that the weights are wrapped or sharded.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from train.__main__ import leave
from train.config_io import load_config
from train.curriculum import Curriculum
from train.engine import Engine
from train.stages.stage import RandomStreams


def die_at(step: int) -> None:
    """Kill this process by SIGKILL after that many steps."""
    train_step = Engine.train_step

    def dying(self):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(self)

    Engine.train_step = dying


def interrupt_at(step: int) -> None:
    due = Engine._due

    def interrupted(self, seconds):
        if self.step == step and self.accelerator.is_last_process:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
        return due(self, seconds)

    Engine._due = interrupted


def check_parallel(kind: str) -> None:
    """Assert before the first step that all networks are sharded, or wrapped."""
    train = Engine.train

    def checked(self):
        for network in self.stage.networks.values():
            parameters = [*network.module.parameters(), *network.ema.network.module.parameters()]
            assert all(isinstance(parameter, DTensor) for parameter in parameters) == (kind == "fsdp")
            assert isinstance(network.forward, DistributedDataParallel) == (kind == "ddp")
        if kind == "fsdp":
            gradients_are_shards(self)
        return train(self)

    Engine.train = checked


def gradients_are_shards(engine: Engine) -> None:
    """Assert that no process keeps whole gradients, not even after a micro-batch that is not the last of its step."""
    network, micro = engine.stage.main, engine.accelerator.process_index
    network.sync_gradients(False)
    rng = RandomStreams.of(1, "check", "model", 0, micro, engine.accelerator.device)
    engine.stage.loss("model", engine.source.batch(0, micro), rng, 0.0).backward()
    for parameter in network.trainable().values():
        assert isinstance(parameter.grad, DTensor)
        parameter.grad = None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("out", type=Path)
    parser.add_argument("stage")
    parser.add_argument("--die-at", type=int)
    parser.add_argument("--interrupt", type=int)
    parser.add_argument("--parallel", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.die_at:
        die_at(options.die_at)
    if options.interrupt:
        interrupt_at(options.interrupt)
    for kind in options.parallel or [None]:
        changes = [f"engine.parallel={kind}"] if kind else []
        if kind:
            train = Engine.train
            check_parallel(kind)
        curriculum = Curriculum(load_config(options.config, changes), options.out / (kind or ""))
        assert curriculum.run(options.stage) == (not options.interrupt)
        if kind:
            Engine.train = train


if __name__ == "__main__":
    main()
    leave(0)
