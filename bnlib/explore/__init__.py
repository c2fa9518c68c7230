"""Explorers: one question each, with the formula's knobs under the reader's hand. `base.py` says how one is made."""

from importlib import import_module

_HOME = {  # explorer -> (its module, its class); loaded when first asked for: widgets and pictures load slowly
    "gamma_beta": ("lesson01", "GammaBeta"),
    "class_size": ("lesson01", "ClassSize"),
    "who_shares_a_mean": ("lesson02", "WhoSharesAMean"),
    "loops": ("lesson03", "Loops"),
    "running_statistics": ("lesson03", "RunningStatistics"),
    "train_eval_gap": ("lesson04", "TrainEvalGap"),
    "train_it_yourself": ("lesson05", "TrainItYourself"),
    "inside_the_layers": ("lesson05", "InsideTheLayers"),
    "three_paths": ("lesson06", "ThreePaths"),
    "nudge": ("lesson06", "NudgeOne"),
    "what_a_norm_does_not_see": ("lesson07", "WhatANormDoesNotSee"),
    "who_is_in_the_batch": ("lesson07", "WhoIsInTheBatch"),
    "many_machines": ("lesson08", "ManyMachines"),
    "other_data": ("lesson09", "OtherData"),
}
__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"bnlib.explore has no {name!r}; it has {', '.join(__all__)}")
    module, cls = _HOME[name]
    globals()[name] = getattr(import_module(f".{module}", __name__), cls)
    return globals()[name]


def __dir__():
    return __all__
