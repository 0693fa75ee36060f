"""The demo: storms of its own, a product file a reader may keep, one full cycle, a table and a picture."""

from pathlib import Path

import numpy as np

from jobs import show
from jobs.command import is_done
from jobs.nowcast import forecast
from jobs.outcome import Exit
from jobs.picture import draw_cycle
from pipelines.storms import write_storms

REFERENCE_TIME = np.datetime64("2024-06-01T13:30", "ns")

PRODUCT = """\
# A product: what one published forecast is made of. Relative paths start at this file.
name: rain-demo
input:
  store: storms.zarr            # Zarr, dims (time, y, x)
  variable: precip_rate
  history: [-10min, -5min, 0min]
model:
  package: builtin:advection    # or the folder of your own model.onnx and model.yaml
lead_times: {step: 5min, until: 90min}
output:
  store: forecasts              # forecasts/rain-demo/2024/06/01/1330.zarr
  variable: precip_rate
  keep: 48h
deadline: 4min
"""


def run_demo(folder: Path) -> Exit:
    """Make storms in `folder`, forecast them and draw the forecast; the exit code of the cycle."""
    file, storms, picture = folder / "rain-demo.yaml", folder / "storms.zarr", folder / "forecast.png"
    folder.mkdir(parents=True, exist_ok=True)
    if not storms.exists():
        with show.err.status("making storms"):
            write_storms(storms)
    file.write_text(PRODUCT)
    with show.progress("rain-demo", quiet=False) as progress:
        report = forecast(file, [], REFERENCE_TIME, replace=False, progress=progress, tell=progress.tell)
    show.cycle_table(report)
    for text in report.warnings:
        show.warning(text)
    if is_done(f"no picture in {picture}", lambda: draw_cycle(file, [], REFERENCE_TIME, picture)):
        show.out.print(f"\npicture       {picture}", end="")
    show.out.print(f"\nproduct file  {file}\nagain with    squall run {file} --time 2024-06-01T13:45Z")
    return Exit.GAPS if report.gaps else Exit.PUBLISHED
