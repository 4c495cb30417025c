"""Scenes of any size: read by strips, seen by tiles, blended without seams, written without ever being in memory as a whole."""

from __future__ import annotations

from ovseg.scenes.scene import Scene, segment_scene

__all__ = ["Scene", "segment_scene"]
