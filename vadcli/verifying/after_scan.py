"""`scan --verify MODEL`: a scan, and then the verification of its output folder with the defaults of `vadcli verify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields

from vadcli.engine.refining import refiner_of
from vadcli.engine.runner import Scan
from vadcli.options import ScanOptions, VerifyOptions
from vadcli.types import VideoResult
from vadcli.verifying import VerifyResult, asker_of, verify_all


def verification_of(options: ScanOptions) -> Callable[[Scan], VerifyResult | None] | None:
    """Returns a function that verifies a scan after its end; None if the options do not ask for a verification.

    The function returns None if the scan was stopped, because the next run continues the scan first.

    Raises:
        UsageError: the model of --verify does not exist.
        DeviceError, WeightsError: the device or the weights are missing.
    """
    if not options.verify:
        return None
    chosen = verify_options(options)
    asker, refiner = asker_of(chosen), refiner_of(chosen)

    def verify(scan: Scan) -> VerifyResult | None:
        return (
            None
            if scan.stop()
            else verify_all(options.out, chosen, asker, refiner=refiner, stop=scan.stop, command=scan.settings.command)
        )

    return verify


def verify_options(options: ScanOptions) -> VerifyOptions:
    """Returns the options of the verification. Options that both commands have are copied from the scan."""
    own = {"model": options.verify, "categories": options.categories}
    shared = (
        "device",
        "precision",
        "decoder",
        "decode_timeout",
        "decode_memory",
        "checkpoint_every",
        "runner",
        "ray_address",
        "ray_cpus",
        "ray_gpus",
        "refine_masks",
        "json",
        "quiet",
        "verbose",
    )
    known = {item.name for item in fields(VerifyOptions)}
    return VerifyOptions(**own, **{name: getattr(options, name) for name in shared if name in known})  # type: ignore[arg-type]


def results_of(scan: Scan, verify: Callable[[Scan], VerifyResult | None] | None) -> Iterator[VideoResult]:
    """Yields the results of a scan, and verifies its output folder at the end."""
    yield from (update for update in scan.run() if isinstance(update, VideoResult))
    if verify is not None:
        verify(scan)
