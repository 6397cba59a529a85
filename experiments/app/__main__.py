"""Try a trained model in a browser. The page shows its predictions, attention and run time for your images.

    python -m experiments.app --ckpt runs/…/checkpoints/best.ckpt

The predictions are classes or boxes. The attention shown is that between the feature map and the tokens
(:mod:`mobile_former.bridge`). The page can be opened only on this machine, unless ``--host`` is given. The page loads
nothing from other servers.
"""

import os
import signal
import tempfile
import time

from experiments.app.page import build_page, serve
from experiments.attention.look import load_predictor
from mobile_former.errors import InputError
from mobile_former.training.cli.command import run_command
from mobile_former.training.cli.parser import Parser


def main() -> None:
    """Start the server of the page, and stop it when Ctrl-C is pressed."""
    parser = Parser(prog="python -m experiments.app", description="Try a model in a browser.")
    parser.add_argument(
        "--ckpt_path", "--ckpt", type=str, required=True, help="a run's checkpoints/best.ckpt, of either task"
    )
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", help="address to listen on; 0.0.0.0 also serves other machines"
    )
    parser.add_argument(
        "--port", type=int, default=None, help="port to listen on (default: the first free port from 7860)"
    )
    options = parser.parse_args()
    if options.port is not None and not 1 <= options.port <= 65_535:
        raise InputError(f"--port is {options.port}: give a port from 1 to 65535")

    predictor = load_predictor(options.ckpt_path)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # delete uploaded files after SIGTERM too
    with tempfile.TemporaryDirectory(prefix="mobile-former-app-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = build_page(predictor)
        address = serve(page, options.host, options.port)
        print(f"open {address} (Ctrl-C stops)", flush=True)
        try:
            while True:
                time.sleep(3600)
        finally:
            page.close(verbose=False)


if __name__ == "__main__":
    run_command(main)
