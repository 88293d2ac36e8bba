"""`fastpush demo`: the whole story on one machine, with nothing configured.

A simulated APNs runs in this process, and plays the phone. The gateway is the real one, `fastpush serve` in a
process of its own with a configuration file, and is spoken to as OpManager would: over HTTP. What is drawn
as a banner is what the simulator received.

`open_stage` sets all of it up; `scenes` has the acts, in order. A further scene is a function of the stage.
"""

from fastpush.gateway.demo.scenes import SCENES, closing, draw_all, opening
from fastpush.gateway.demo.stage import DemoFailed, Stage, open_stage

__all__ = ["SCENES", "DemoFailed", "Stage", "closing", "draw_all", "open_stage", "opening"]
