"""What laps have published, moved out of the way, and removed when a run is over.

Where files or folders are made, ext4 looks past every inode that was freed in the last minutes. Laps after a large
removal would pay for that: twice the processor seconds of the system in a backfill. Nobody removes a store just before
a cycle.
"""

import shutil
from pathlib import Path
from time import time_ns

FOLDER = "aside"


def set_aside(path: Path) -> None:
    """Moves a folder out of the way, if there is one."""
    if path.exists():
        aside = path.parent / FOLDER
        aside.mkdir(exist_ok=True)
        path.rename(aside / f"{path.name}-{time_ns()}")


def remove_aside(home: Path) -> None:
    """Removes all that was set aside in the folders of a run."""
    for folder in home.glob(f"*/{FOLDER}"):
        shutil.rmtree(folder)
