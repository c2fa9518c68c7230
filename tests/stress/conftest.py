import os
import sys
from contextlib import contextmanager

import pytest
from jupyter_client import KernelManager


class Kernel:
    """A Jupyter kernel, of which `run` executes one cell at a time; nothing answers its widgets, as under nbconvert."""

    def __init__(self, manager):
        self.manager = manager
        self.client = manager.client()
        self.connect()

    def connect(self):
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)

    def restart(self):
        """Choose Kernel > Restart."""
        self.client.stop_channels()
        self.manager.restart_kernel(now=True)
        self.client = self.manager.client()
        self.connect()

    def run(self, source):
        """Return what the cell writes on stdout or gives as text, and what it says on stderr or raises."""
        said, complained = [], []

        def read(message):
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                (complained if content["name"] == "stderr" else said).append(content["text"])
            elif kind in ("execute_result", "display_data"):
                said.append(content["data"].get("text/plain", ""))
            elif kind == "error":
                complained.append(f"{content['ename']}: {content['evalue']}")

        self.client.execute_interactive(source, allow_stdin=False, output_hook=read, timeout=900)
        return "".join(said), "".join(complained)


@pytest.fixture
def start_kernel():
    """A function that starts a kernel in a folder, with more environment variables and a command before its own."""

    @contextmanager
    def start(folder, environment, command=()):
        manager = KernelManager(kernel_name="python3")
        manager.kernel_spec.argv[:1] = [*command, sys.executable]
        usual = {"OMP_NUM_THREADS": "1", "BNLIB_OFFLINE": "1"}  # two threads wait for each other on a busy machine
        manager.start_kernel(cwd=str(folder), env={**os.environ, **usual, **environment})
        kernel = Kernel(manager)
        try:
            yield kernel
        finally:
            kernel.client.stop_channels()
            manager.shutdown_kernel(now=True)

    return start
