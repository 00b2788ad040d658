"""The model of AnchorEdit: multi-turn image editing with an anchor memory, without ComfyUI.

pipeline.py    the operations: start, turn, variations, image
networks/      transformer, VAE, text encoder
memory/        a session as a value, its K/V cache, session files
checkpoint/    weights in any format
drift/         how far the images of a session moved away from its source
cli.py         the command line
"""

from pathlib import Path

TINY = Path(__file__).parent / "tiny"  # the bundled model
