"""The page of this Space.

It runs on any machine too: pip install -r requirements.txt, then python app.py.
"""

from pathlib import Path

from scumble.ui.space import run

if __name__ == "__main__":
    run(Path(__file__).parent)
