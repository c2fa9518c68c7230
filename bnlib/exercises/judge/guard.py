"""Run what a reader wrote: for a few seconds at most, quietly, and without a trace in anyone's global state."""

import contextlib
import ctypes
import dis
import io
import linecache
import logging
import os
import random
import re
import sys
import threading
import time
import types
import warnings
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch

SLICE = 0.1
SECONDS = 3.0  # for one call; the slowest right answer (loops over a hundred numbers) needs hundredths
LONGEST = 400  # characters of an error's text


@dataclass(frozen=True)
class Trouble:
    """Why a call gave no value: kind is "unanswered", "stopped" or "raised"; text says it; line is the reader's own."""

    kind: str
    text: str
    line: str = ""

    @property
    def located(self):
        """What was raised and on which of the reader's lines."""
        return f"{self.text}, at {self.line}" if self.line else self.text


class Stopped(BaseException):
    """Sent into a call that has run out of time."""


class Guard:
    """Call a reader's function: `call(function, *args)` returns (value, None) or (None, Trouble).

    Each call runs in a thread of its own, so that it can be left behind whatever it is stuck in (on any system, from a
    notebook's main thread too), and starts from the same seeds. What the first call prints is shown, the rest is not;
    what it prints on stderr is shown on stdout.
    """

    def __init__(self):
        self._quiet = False

    def call(self, function, *args):
        """Return (value, None), or (None, Trouble) if `function(*args)` raises or does not return in time."""
        done = {}

        def work():
            try:
                done["value"] = function(*args)
            except BaseException as error:  # SystemExit too: a reader's call must not end the kernel
                done["error"] = error

        printed = io.StringIO() if self._quiet else sys.stdout
        self._quiet = True
        handlers = logging.root.handlers[:]
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.default_generator.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            worker = threading.Thread(target=work, daemon=True)
            worker.start()
            try:
                left = SECONDS
                while worker.is_alive() and left > 0:  # in slices, so that a sleeping laptop costs one and not all
                    worker.join(SLICE)
                    left -= 0.0 if is_importing(worker) else SLICE
            finally:
                stop(worker)
                logging.root.handlers[:] = handlers  # without one that logging made to write into `printed`
        if "value" in done:
            return done["value"], None
        error = done.get("error", Stopped())
        if isinstance(error, Stopped):
            text = f"did not return within {SECONDS:g} seconds and was stopped: look for a loop without an end"
            return None, Trouble("stopped", text)
        return None, what_was_raised(error)


def is_importing(worker):
    """Return whether a thread is loading a module, which may take long, and must not be left half done."""
    frame = sys._current_frames().get(worker.ident)
    while frame is not None and "importlib._bootstrap" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


def stop(worker):
    """End a thread that still runs; one that swallows the exception again and again is left behind after a second."""
    deadline = time.monotonic() + 1
    while worker.is_alive() and time.monotonic() < deadline:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident), ctypes.py_object(Stopped))
        worker.join(0.02)


SWITCHES = (  # (read, write), written back only where they differ: some are slow to write
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
)


@contextlib.contextmanager
def global_state_kept():
    """Put seeds, default dtype, grad mode and torch's other global switches back as they were."""
    of_python, of_numpy, switches = random.getstate(), np.random.get_state(), [read() for read, _ in SWITCHES]
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        for (read, write), value in zip(SWITCHES, switches, strict=True):
            if read() != value:
                write(value)


@contextlib.contextmanager
def nothing_on_stderr():
    """Let nothing reach standard error, whoever writes: Python, loggers and bars, threads, C code, child processes.

    A grader of notebooks (nbgrader) takes whatever a cell writes there for a failure.
    """
    with contextlib.ExitStack() as stack:
        for stream in {sys.stderr, sys.__stderr__} - {None}:  # None: a Python without a console
            stack.enter_context(mock.patch.object(stream, "write", len))  # a log's handler may hold it
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        with contextlib.suppress(OSError):  # no such descriptor, no console again
            stack.callback(os.close, kept := os.dup(2))
            stack.callback(os.dup2, kept, 2)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        if sys.__stderr__ is not None:
            stack.callback(sys.__stderr__.flush)  # while it still leads nowhere
        yield


def is_stub(function) -> bool:
    """Return whether the body of a function is only `...`, `pass` or a docstring."""
    if not isinstance(function, types.FunctionType) or function.__name__ == "<lambda>":
        return False
    steps = list(dis.get_instructions(function))
    constants = [step.argval for step in steps if step.opname in ("LOAD_CONST", "RETURN_CONST")]
    idle = {"RESUME", "NOP", "LOAD_CONST", "POP_TOP", "RETURN_CONST", "RETURN_VALUE"}
    return {step.opname for step in steps} <= idle and all(
        value is None or value is ... or isinstance(value, str) for value in constants
    )


def holds_dots(value) -> bool:
    """Return whether an answer still is, or holds, the `...` of a stub."""
    return value is ... or (isinstance(value, (tuple, list)) and any(part is ... for part in value))


OURS, PYTHONS = (re.escape(str(folder)) for folder in (Path(__file__).parents[2], Path(threading.__file__).parent))
NOT_THE_READERS = re.compile(f"^({OURS}|{PYTHONS}|<frozen|<__array)|site-packages|dist-packages")  # a frame's file


def what_was_raised(error):
    """Return the Trouble for an exception, with the last of the reader's own lines that it passed through."""
    steps = [error.__traceback__]
    while steps[-1].tb_next:
        steps.append(steps[-1].tb_next)
    code = steps[-1].tb_frame.f_code.co_code
    by_raise = code[steps[-1].tb_lasti] == dis.opmap["RAISE_VARARGS"]  # torch raises it too, in another way
    text = re.sub(r"0x[0-9a-fA-F]+", "0x…", " ".join(str(error).split()))  # an address differs from run to run
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
    if (isinstance(error, NotImplementedError) and by_raise) or "ellipsis" in text:
        return Trouble("unanswered", "a `...` is left")
    places = [(step.tb_frame.f_code.co_filename, step.tb_lineno) for step in steps]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    line = ""
    for file, number in [place for place in places if not NOT_THE_READERS.search(place[0])][-1:]:
        cell = "ipykernel_" in file or file.startswith("<")
        source = linecache.getline(file, number).strip()
        line = f"line {number} of {'your cell' if cell else Path(file).name}" + (f": {source}" if source else "")
    return Trouble("raised", f"{type(error).__name__}: {text}" if text else type(error).__name__, line)
