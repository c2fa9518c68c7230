"""The training of bnlib.distributed, killed at chosen places: torchrun ... tests/killed.py "KILL;..." ARGUMENTS.

A KILL is attempt:rank:place:call: at the call-th call of that place the process is killed as the kernel would kill it.
The images are those of small_images. Without torchrun the script does what torchrun does, with a restart for each kill:
two processes under torch's elastic agent, which need not import torch again, being forks of this one.
"""

import os
import signal
import sys

import torch
from small_images import rows
from torch.distributed.launcher import LaunchConfig, elastic_launch

from bnlib import checkpoint, distributed, training


def die(*args, **kwargs):
    os.write(sys.stderr.fileno(), b"KILLED\n")
    os.kill(os.getpid(), signal.SIGKILL)


def half(suffix, prefix, folder, original=checkpoint.tempfile.mkstemp):
    number, _ = original(suffix, prefix, folder)
    os.write(number, b"half a checkpoint")
    die()


def at_call(module, name, number, action):
    """Have the number-th call of `module.name` do `action` instead."""
    original, calls = getattr(module, name), []

    def counted(*args, **kwargs):
        calls.append(1)
        return (action if len(calls) == number else original)(*args, **kwargs)

    setattr(module, name, counted)


def renamed_and_dead(scratch, path):
    os.rename(scratch, path)
    die()


PLACES = {  # what is called there, and what happens then
    "step": (training.F, "cross_entropy", die),
    "message": (torch.distributed, "all_reduce", die),
    "evaluation": (training, "_accuracy", die),
    "loading": (training, "load_checkpoint", die),
    "half written": (checkpoint.tempfile, "mkstemp", half),
    "written": (checkpoint.os, "fsync", die),
    "renamed": (checkpoint.os, "replace", renamed_and_dead),
}


def train(kills, arguments):
    for kill in kills:
        attempt, rank, place, number = kill.split(":")
        if (attempt, rank) == (os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]):
            module, name, action = PLACES[place]
            at_call(module, name, int(number), action)
    distributed.load_images = lambda name: rows()
    distributed.main(arguments)


if __name__ == "__main__":
    kills, arguments = list(filter(None, sys.argv[1].split(";"))), sys.argv[2:]
    if "RANK" in os.environ:
        train(kills, arguments)
    else:
        method = "fork" if sys.platform == "linux" else "spawn"
        agent = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "monitor_interval": 0.1}
        config = LaunchConfig(1, 1, 2, **agent, max_restarts=len(kills), start_method=method)
        elastic_launch(config, train)(kills, arguments)
