"""What is wrong with a network's batch normalization: any `nn.Module`, judged by what it does.

A copy of the model is run in both modes, on the reader's data, while two things watch: a function mode, which sees each
call of `torch.nn.functional.batch_norm` with its arguments, from whatever module it comes; and hooks, which try the
model's own modules for batch normalization's behaviour (in training a channel may be stretched and shifted without
effect, and a sample's output hangs on its companions). From then on both kinds are alike: they can be watched, or be
given other statistics. No name, class or buffer of the model is relied upon.

From the ground up: `catalogue`, `report`; `data`, `copies`, `watch`; `patient`; then the checks, which take a patient
and say what they find: `layers`, `evaluation`, `training`, `statistics`.
"""

import torch
from torch import nn

from .catalogue import CODES as CODES
from .catalogue import PAGES as PAGES
from .data import examples
from .evaluation import company, saved
from .layers import find, modes
from .patient import Patient
from .report import SEVERITIES, Examination
from .statistics import hidden, lag, statistics
from .training import decay, graph, training

CHECKS = graph, find, modes, company, saved, hidden, training, statistics, lag, decay  # each may use what came before


def examine(model: nn.Module, data, *, target=None, optimizer=None, batch_size=None) -> Examination:
    """Return what is wrong, doubtful or worth a note in the batch normalization of `model`, which is left as it is.

    model       maps a batch to a tensor, or to a tuple, list or dict of them
    data        training data, of which 512 examples are looked at: what `load_images` returns; a DataLoader; a batch x
                (N, ...); (x, labels). Several inputs as a tuple or dict of tensors
    target      data that the model is to work on, in the same forms, to see whether its statistics are elsewhere
    optimizer   to see whether it decays γ and β
    batch_size  of the training; 64 if not given

    Raises TypeError if `model` is no module or `data` of another kind, ValueError if there is not one example.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size must be a whole number, 1 or more, got {batch_size!r}")
    x, y = examples(data)
    others = examples(target, test=True) if target is not None else (None, None)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        patient = Patient(model, x, y, *others, optimizer, batch_size)
        for check in CHECKS if patient.start() else ():
            try:
                check(patient)
            except Exception as error:  # what a reader's own model may raise, in a mode it was not made for
                patient.failed("BN302", "note", check.__name__, error)
    findings = sorted(patient.table.values(), key=lambda f: (SEVERITIES.index(f.severity), f.code))
    return Examination(findings, patient.names, patient.lags)
