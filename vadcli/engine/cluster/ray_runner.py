"""The runner of a Ray cluster.

The driver is the process that the user started. It divides the plan into chunks of videos and hands them out to workers (see
`worklist`). A worker has its own detector, scans its chunk with a `LocalRunner`, and sends the updates to the driver.

A camera is fitted once. While a camera has no model, only one of its chunks is handed out, and the worker gets the list of all
videos of the camera. A second fit would take time but give the same model, because `Cameras` locks the fit.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial

from vadcli.detectors import Detector
from vadcli.engine.cluster.ray_cluster import import_ray
from vadcli.engine.cluster.worker import Chunk, Fitted, ScanWork
from vadcli.engine.cluster.worklist import KILLS, Killer, Worklist, drive, hired
from vadcli.engine.local import LocalRunner
from vadcli.engine.runner import Fitting, ScanSettings, Stop
from vadcli.engine.stream import ClipsScored, Update
from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch
from vadcli.types import Status, VideoResult


class RayRunner:
    """Executes a plan on a Ray cluster, or on this machine with Ray if `--ray-address` names no cluster.

    The driver does not load the detector, because each worker makes its own from the options.

    Raises:
        UsageError: ray is not installed, or the detector can't do what the options ask for.
    """

    def __init__(self, settings: ScanSettings, detector: Detector, *, stop: Stop) -> None:
        import_ray()
        self._here = LocalRunner(settings, detector, stop=stop)
        # Every node must use the detector that this machine has chosen, even with --detector auto.
        self.settings = replace(settings, options=replace(settings.options, detector=detector.name))
        self.options, self.stop = self.settings.options, stop
        self._fits = detector.fits_camera
        self._wants_gpu = bool(detector.weights) and self.options.device != "cpu"

    def preview(self) -> Iterator[tuple[str, str]]:
        """See `Runner`."""
        return self._here.preview()

    def updates(self, fitting: Fitting) -> Generator[Update, None, None]:
        """See `Runner`.

        Raises:
            UsageError: no cluster answers at the address, or no node can take part.
        """
        layout, settings = OutputLayout(self.options.out), self.settings
        layout.rename_old_files((unit.video for unit in settings.units), {unit.camera for unit in settings.plan.units})

        def work_of(cpus: int) -> ScanWork:
            return ScanWork(replace(self.options, workers=self.options.workers or cpus))

        with (
            Scratch(layout.scratch) as scratch,
            hired(self.options, scratch, settings.plan.root, work_of, wants_gpu=self._wants_gpu, stop=self.stop) as workers,
        ):
            work = Worklist(
                settings.plan.units,
                settings.units,
                by_cameras=self._fits,
                workers=len(workers.slots),
                decoders=self.options.workers or workers.cores,
            )
            order_of, ended = partial(self._settings_of, work), partial(self._ended, work)
            for item, chunk, node in drive(work, workers, self.stop, order_of, ended):
                if isinstance(item, Fitted):
                    fitting(item.camera, item.frames)
                elif isinstance(item, ClipsScored):
                    chunk.moved = True
                    work.open(chunk.camera)
                    yield item
                elif isinstance(item, VideoResult):
                    chunk.left.pop(item.video, None)
                    yield replace(item, node=node.name)
                elif isinstance(item, Killer):
                    video, camera = item.unit.video, item.unit.camera
                    reason = f"{KILLS} workers died while they scanned this video, the last one on node {node.name}"
                    yield VideoResult(video, Status.FAILED, stage="score", reason=reason, camera=camera, node=node.name)

    def _settings_of(self, work: Worklist, chunk: Chunk) -> ScanSettings:
        """Return the settings for one chunk. If the worker must fit the camera, they have all its videos."""
        units = work.whole[chunk.camera] if chunk.opens else chunk.units
        # Only the chunk that opens the camera may fit it again.
        refit = self.options.refit if chunk.opens or self.options.refit is None else False
        return replace(
            self.settings,
            plan=replace(self.settings.plan, units=units, unusable=(), passed_over={}, notes=()),
            options=replace(self.options, refit=refit, shard=None),
            videos=frozenset(chunk.left),
        )

    def _ended(self, work: Worklist, chunk: Chunk) -> None:
        """Make the next chunks of a camera available if its first chunk ended without a scored clip.

        Then all videos of the chunk were done before or have failed, and the camera may or may not have a model.
        """
        if chunk.opens and not chunk.moved:
            if self._here.is_fitted(chunk.camera):
                work.open(chunk.camera)
            else:
                work.next_of(chunk.camera)
