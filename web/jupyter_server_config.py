"""How `make lab` starts JupyterLab's server, beside its defaults: what a kernel says goes to the browser at once.

Without this a small message waits until the one before it has been acknowledged, up to 40 ms after, and a slider's
picture with it (Nagle's algorithm and delayed acknowledgements, RFC 896 and 1122).
"""

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection


class AtOnce(ZMQChannelsWebsocketConnection):
    """The connection of a kernel with a browser, its messages not held back."""

    def connect(self):
        """Connect with the kernel."""
        self.websocket_handler.set_nodelay(True)
        return super().connect()


get_config().ServerApp.kernel_websocket_connection_class = AtOnce  # noqa: F821, Jupyter defines it
