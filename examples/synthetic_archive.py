"""Draw a small synthetic archive: two fixed cameras, people who walk, and sometimes an anomaly.

    python examples/synthetic_archive.py demo/footage

writes six videos of 20 s, and `truth.csv` for `vadcli eval`. `truth.csv` has one row per span in which an anomaly is visible,
with the columns video, start_s, end_s and category. A normal video has a row without times. The same seed makes the same files.

The main parts of this file:

    View       a pinhole camera above the ground; it turns points in metres into pixels
    Scene      the ground that a camera shows, and the people on the ground
    film       draws the frames of one video and encodes them

synthetic_figures.py has the people and objects that move (`Actor`).
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from zlib import crc32

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from synthetic_figures import Actor, Looks, Pose, Stroke, cart, cyclist, person, thrown_bag

FPS = 25
SMOOTH = 2  # pictures are drawn this much larger and then reduced, for smooth edges
THIN_PX = 4  # strokes up to this width get no round ends, because they would not be visible
SUN = np.array([0.55, 0.35])  # length of a shadow in metres per metre of height
SOUND_RATE_HZ = 48_000

Points = NDArray[np.float64]
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class View:
    """A camera `height_m` above the origin that looks along +y and down; +x is to the right, +z is up.

    Attributes:
        width, height: size of the picture in pixels.
        pitch: angle of the view below the horizon, in radians.
        focal: focal length in picture widths.
    """

    width: int
    height: int
    height_m: float
    pitch: float
    focal: float

    def project(self, points: Points) -> Points:
        """Return the pixels (N, 2) of points (N, 3) in metres."""
        x, y, z = points[:, 0], points[:, 1], points[:, 2] - self.height_m
        depth = y * math.cos(self.pitch) - z * math.sin(self.pitch)
        up = y * math.sin(self.pitch) + z * math.cos(self.pitch)
        scale = self.focal * self.width / np.maximum(depth, 0.1)
        return np.stack([self.width / 2 + x * scale, self.height / 2 - up * scale], axis=1)

    def px_per_m(self, points: Points) -> Points:
        """Return (N,) pixels per metre at each of the (N, 3) points."""
        depth = points[:, 1] * math.cos(self.pitch) + (self.height_m - points[:, 2]) * math.sin(self.pitch)
        return np.divide(self.focal * self.width, np.maximum(depth, 0.1))

    def is_near(self, pose: Pose) -> bool:
        """Return False if an actor is so far outside the picture that not even its shadow is visible."""
        at = np.array([(pose.x, pose.y, 0.0)])
        (x, y), metre = self.project(at)[0], float(self.px_per_m(at)[0])
        return bool(-3 * metre < x < self.width + 3 * metre and -3 * metre < y < self.height + 5 * metre)

    def ground(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return x and y (H, W) in metres of the ground at each pixel."""
        column, row = np.meshgrid(np.arange(self.width) + 0.5, np.arange(self.height) + 0.5)
        right = (column - self.width / 2) / (self.focal * self.width)
        up = (self.height / 2 - row) / (self.focal * self.width)
        down = math.sin(self.pitch) - up * math.cos(self.pitch)
        reach = self.height_m / np.maximum(down, 0.02)
        return right * reach, (math.cos(self.pitch) + up * math.sin(self.pitch)) * reach


def _noise(shape: tuple[int, int], grain: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return (H, W) smooth noise in about [-1, 1], with blobs of this many pixels."""
    small = rng.normal(size=(shape[0] // grain + 2, shape[1] // grain + 2)).astype(np.float32)
    big = Image.fromarray(small).resize((shape[1] + grain, shape[0] + grain), Image.Resampling.BICUBIC)
    return np.divide(np.array(big, dtype=np.float64)[: shape[0], : shape[1]], 2)


def _paving(x: NDArray[np.float64], y: NDArray[np.float64], slab_m: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the brightness (H, W) of paving slabs, with dark joints that fade with distance."""
    shades = rng.uniform(-1, 1, size=(64, 64))
    column, row = np.floor(x / slab_m).astype(int), np.floor(y / slab_m).astype(int)
    right, ahead = x / slab_m - column, y / slab_m - row
    edge = np.minimum.reduce([right, 1 - right, ahead, 1 - ahead])
    joint = np.clip(1 - edge * slab_m / 0.035, 0, 1) * np.clip(1.2 - y / 30, 0, 1)
    return np.asarray(7 * shades[column % 64, row % 64] - 34 * joint, dtype=np.float64)


def plaza_ground(view: View, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the ground (H, W, 3) of a square: stone slabs with a darker ring, and a lawn behind them."""
    x, y = view.ground()
    stone = np.array([176.0, 168.0, 156.0]) + (_paving(x, y, 1.0, rng) + 5 * _noise(x.shape, 14, rng))[..., None]
    ring = np.abs(np.hypot(x - 0.5, y - 13.5) - 4.2) < 0.45
    stone[ring] = stone[ring] * 0.72 + np.array([18.0, 12.0, 8.0])
    lawn = np.array([92.0, 118.0, 66.0]) + (16 * _noise(x.shape, 3, rng) + 10 * _noise(x.shape, 24, rng))[..., None]
    ground = np.where((y > 26.0)[..., None], lawn, stone)
    ground[(y > 25.5) & (y < 26.1)] = np.array([206.0, 202.0, 194.0])
    return ground


def walkway_ground(view: View, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the ground (H, W, 3) of a walkway: an asphalt path between lawns, with shadows of leaves."""
    x, y = view.ground()
    asphalt = np.array([112.0, 114.0, 120.0]) + (9 * _noise(x.shape, 2, rng) + 7 * _noise(x.shape, 30, rng))[..., None]
    lawn = np.array([96.0, 128.0, 66.0]) + (18 * _noise(x.shape, 3, rng) + 12 * _noise(x.shape, 26, rng))[..., None]
    ground = np.where((np.abs(x) < 3.4)[..., None], asphalt, lawn)
    ground[(np.abs(x) >= 3.4) & (np.abs(x) < 3.62)] = np.array([188.0, 186.0, 180.0])
    dash = (np.abs(x) < 0.06) & (np.mod(y, 2.4) < 1.2)
    ground[dash] = ground[dash] * 0.4 + 140
    leaves = np.clip(_noise(x.shape, 40, rng) + 0.6 * _noise(x.shape, 14, rng) + 0.15, 0, 0.6) * np.clip(0.3 - x / 3, 0, 1)
    return ground * (1 - 0.6 * leaves[..., None])


@dataclass(frozen=True)
class Scene:
    """The place that a camera shows.

    Attributes:
        ground: function that draws the ground.
        height_m, pitch: the camera, as in `View`.
        ways: (start, end) of the lines on which people walk.
        people_per_minute: how many people enter per minute.
        one_way: share of the people who walk from start to end; the others walk back.
    """

    ground: Callable[[View, np.random.Generator], NDArray[np.float64]]
    height_m: float
    pitch: float
    ways: tuple[tuple[tuple[float, float], tuple[float, float]], ...]
    people_per_minute: float
    one_way: float = 0.5

    def view(self, width: int, height: int) -> View:
        """Return the camera for this picture size."""
        return View(width, height, self.height_m, self.pitch, focal=0.86)

    def crowd(self, seconds: float, rng: np.random.Generator) -> Iterator[Actor]:
        """Yield the people of one video; some of them enter before the video starts."""
        time_s = -30.0
        while time_s < seconds:
            time_s += float(rng.exponential(60 / self.people_per_minute))
            start, end = self.ways[rng.integers(len(self.ways))]
            if rng.random() > self.one_way:
                start, end = end, start
            aside = rng.normal(0, 0.8, size=2)
            looks = Looks.anyone(rng)
            yield Actor(
                partial(person, looks=looks, stride_m=float(rng.uniform(0.62, 0.78))),
                (start[0] + aside[0], start[1] + 0.5 * aside[1]),
                (end[0] + aside[0], end[1] + 0.5 * aside[1]),
                speed=float(rng.uniform(1.05, 1.55)),
                enters_s=time_s,
                sway_m=float(rng.uniform(0.03, 0.14)),
            )


SCENES = {
    "plaza": Scene(
        plaza_ground,
        height_m=7.0,
        pitch=0.56,
        ways=(((-12, 10), (12, 12)), ((-13, 16), (13, 14)), ((-16, 22), (12, 19)), ((-5, 27), (3, 4)), ((6, 27), (-3, 4))),
        people_per_minute=26,
    ),
    "walkway": Scene(
        walkway_ground,
        height_m=6.0,
        pitch=0.5,
        ways=(((-1.8, 31), (-1.6, 3.5)), ((1.6, 31), (1.7, 3.5)), ((0.3, 31), (-0.2, 3.5))),
        people_per_minute=22,
        one_way=0.92,
    ),
}


@dataclass(frozen=True)
class Script:
    """One video: its scene, its name, its anomaly ("" for none), and whether it has sound."""

    scene: str
    name: str
    oddity: str = ""
    sound: bool = False

    @property
    def video(self) -> str:
        """Return the relative path of the video."""
        return f"{self.scene}/{self.name}.mp4"


SCRIPTS = (
    Script("plaza", "morning"),
    Script("plaza", "noon", "cyclist", sound=True),
    Script("plaza", "evening", "cart"),
    Script("walkway", "morning"),
    Script("walkway", "noon", "runner against the flow"),
    Script("walkway", "evening", "thrown bag"),
)


def odd_actor(what: str, enters_s: float, rng: np.random.Generator) -> Actor:
    """Return the actor that is the anomaly; it enters from outside the picture."""
    looks = Looks.anyone(rng)
    if what == "cyclist":
        return Actor(partial(cyclist, looks=looks), (-12, 11), (12, 14), 7.0, enters_s)
    if what == "cart":
        return Actor(partial(cart, paint=(214, 168, 52)), (13, 17), (-12, 10), 6.5, enters_s)
    if what == "runner against the flow":
        return Actor(partial(person, looks=looks, stride_m=1.35), (-2.4, 2), (1.2, 26), 6.5, enters_s, sway_m=0.5)
    if what == "thrown bag":
        return Actor(thrown_bag, (-6.5, 6.5), (3.5, 9), 8.0, enters_s, stays=True)
    raise ValueError(f"unknown anomaly {what!r}")


def film(script: Script, out: Path, *, seconds: float, width: int, seed: int) -> list[tuple[str, float, float, str]]:
    """Make one video, and return its rows of the ground truth: (video, start_s, end_s, category)."""
    height = 2 * round(width * 9 / 32)
    view = SCENES[script.scene].view(width, height)
    times_s = [number / FPS for number in range(round(seconds * FPS))]
    ground = lit_ground(script.scene, width, height, seed)
    crowd, odd = cast_of(script, seconds, seed)
    seen_s = [time_s for time_s in times_s for actor in odd if actor.moves(time_s) and in_view(view, actor, time_s)]
    truth = [(script.video, seen_s[0], seen_s[-1] + 1 / FPS, script.oddity)] if seen_s else []
    grain = Grain(width, height, np.random.default_rng(seed))
    frames = (grain.over(draw(view, ground, crowd + odd, time_s)) for time_s in times_s)
    path = out / script.video
    path.parent.mkdir(parents=True, exist_ok=True)
    encode(path, frames, width, height, hum(seconds, truth) if script.sound else None)
    return truth


def cast_of(script: Script, seconds: float, seed: int) -> tuple[list[Actor], list[Actor]]:
    """Return all actors of a video: the crowd, and the actor that is the anomaly."""
    rng = np.random.default_rng([seed, crc32(script.video.encode())])
    crowd = list(SCENES[script.scene].crowd(seconds, rng))
    return crowd, [odd_actor(script.oddity, enters_s=0.45 * seconds, rng=rng)] if script.oddity else []


def in_view(view: View, actor: Actor, time_s: float) -> bool:
    """Return True if any part of the actor is in the picture."""
    points = np.array([point for stroke in actor.draw(actor.pose(time_s)) for point in stroke.points])
    return bool(np.any(np.all((view.project(points) >= 0) & (view.project(points) < (view.width, view.height)), axis=1)))


@cache
def lit_ground(name: str, width: int, height: int, seed: int) -> Image.Image:
    """Return the ground of a scene, which is the same in all videos of the camera.

    The light is warmer on one side, and darker in the corners.
    """
    scene, rng = SCENES[name], np.random.default_rng([seed, crc32(name.encode())])
    ground = scene.ground(scene.view(width * SMOOTH, height * SMOOTH), rng)
    down, right = np.linspace(-1, 1, ground.shape[0])[:, None], np.linspace(-1, 1, ground.shape[1])
    light = 1.04 - 0.1 * right - 0.1 * (right**2 + down**2)
    ground *= light[..., None] * np.stack([1.02 - 0.02 * right, np.ones_like(right), 0.97 + 0.03 * right], axis=1)
    return Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))


def draw(view: View, ground: Image.Image, actors: Sequence[Actor], time_s: float) -> Picture:
    """Return the (H, W, 3) picture at this time."""
    poses = [(actor.pose(time_s), actor) for actor in actors if actor.is_there(time_s)]
    poses = sorted((pair for pair in poses if view.is_near(pair[0])), key=lambda pair: -pair[0].y)  # draw far actors first
    strokes = [stroke for pose, actor in poses for stroke in actor.draw(pose)]
    picture = ground.copy()
    if strokes:
        points = np.array([point for stroke in strokes for point in stroke.points])
        thick_px = np.repeat([stroke.thick_m for stroke in strokes], [len(stroke.points) for stroke in strokes])
        thick_px *= view.px_per_m(points)
        cast = points.copy()
        cast[:, :2] += points[:, 2:] * SUN
        cast[:, 2] = 0.0
        shadow = Image.new("L", (view.width, view.height))
        paint(shadow, strokes, view.project(cast), thick_px, shadows=True)
        darken(picture, shadow)
        paint(picture, strokes, view.project(points) * SMOOTH, thick_px * SMOOTH)
    return np.array(picture.reduce(SMOOTH))


def darken(picture: Image.Image, shadow: Image.Image) -> None:
    """Darken the picture with soft shadows, which are drawn at the size before smoothing."""
    box = shadow.getbbox()
    if box is None:
        return
    soft = shadow.crop(box).filter(ImageFilter.BoxBlur(shadow.width / 640)).point([round(0.46 * value) for value in range(256)])
    place = (box[0] * SMOOTH, box[1] * SMOOTH, box[2] * SMOOTH, box[3] * SMOOTH)
    soft = soft.resize((soft.width * SMOOTH, soft.height * SMOOTH), Image.Resampling.BILINEAR)
    picture.paste((26, 26, 44), place, soft)


def paint(picture: Image.Image, strokes: Sequence[Stroke], points: Points, thick_px: Points, *, shadows: bool = False) -> None:
    """Draw strokes in their order. `points` (N, 2) are the pixels of all their points.

    Shadows are drawn in white.
    """
    draw = ImageDraw.Draw(picture)
    corners, widths = [(x, y) for x, y in points.tolist()], thick_px.tolist()
    first = 0
    for stroke in strokes:
        chain, width = corners[first : first + len(stroke.points)], max(1, round(widths[first]))
        first += len(stroke.points)
        fill = 255 if shadows else stroke.colour
        if not stroke.thick_m:
            draw.polygon(chain, fill=fill)
            continue
        if len(chain) > 1:
            draw.line(chain, fill=fill, width=width, joint="curve")
        if len(chain) == 1 or width > THIN_PX:
            half = width / 2
            for x, y in {chain[0], chain[-1]}:
                draw.ellipse((x - half, y - half, x + half, y + half), fill=fill)


class Grain:
    """A camera's noise: one large sheet, of which a random part is added to each picture."""

    def __init__(self, width: int, height: int, rng: np.random.Generator) -> None:
        self._rng, self._slack = rng, 40
        shape = (height + self._slack, width + self._slack)
        self._sheet = (rng.normal(0, 2.2, size=(*shape, 1)) + rng.normal(0, 0.8, size=(*shape, 3))).round().astype(np.int16)

    def over(self, picture: Picture) -> Picture:
        """Return the picture with noise added."""
        height, width = picture.shape[:2]
        down, right = self._rng.integers(self._slack, size=2)
        noise = self._sheet[down : down + height, right : right + width]
        return np.asarray(np.clip(picture + noise, 0, 255), dtype=np.uint8)


def hum(seconds: float, truth: Sequence[tuple[str, float, float, str]]) -> NDArray[np.float32]:
    """Return the samples of a low hum, with a bell while an anomaly is visible."""
    time_s = np.arange(round(seconds * SOUND_RATE_HZ)) / SOUND_RATE_HZ
    sound = 0.05 * np.sin(2 * np.pi * 110 * time_s) + 0.03 * np.sin(2 * np.pi * 165 * time_s)
    for _, start_s, end_s, _ in truth:
        ringing = (time_s >= start_s) & (time_s < end_s)
        stroke = np.mod(time_s - start_s, 0.5)
        sound += ringing * 0.35 * np.exp(-7 * stroke) * np.sin(2 * np.pi * 1320 * stroke)
    return sound.astype(np.float32)


def encode(path: Path, frames: Iterator[Picture], width: int, height: int, sound: NDArray[np.float32] | None) -> None:
    """Write an H.264 MP4, with the sound as AAC."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "23", "preset": "veryfast", "threads": "1"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        if sound is not None:
            audio = container.add_stream("aac", rate=SOUND_RATE_HZ, layout="mono")
            tone = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            tone.sample_rate, tone.pts, tone.time_base = SOUND_RATE_HZ, 0, Fraction(1, SOUND_RATE_HZ)
            container.mux(audio.encode(tone))
            container.mux(audio.encode(None))
        for picture in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))


def make_archive(out: Path, *, seconds: float = 20.0, width: int = 640, seed: int = 7, jobs: int | None = None) -> Path:
    """Write all videos and truth.csv into a folder, and return the path of truth.csv."""
    work = partial(film, out=out, seconds=seconds, width=width, seed=seed)
    if jobs == 1:
        truths = list(map(work, SCRIPTS))
    else:
        with ProcessPoolExecutor(max_workers=jobs) as pool:
            truths = list(pool.map(work, SCRIPTS))
    rows = [(video, f"{start_s:.2f}", f"{end_s:.2f}", what) for truth in truths for video, start_s, end_s, what in truth]
    rows += [(script.video, "", "", "") for script, truth in zip(SCRIPTS, truths, strict=True) if not truth]  # normal videos
    path = out / "truth.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("video", "start_s", "end_s", "category"), *rows])
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make a small synthetic video archive for trying vadcli out.")
    parser.add_argument("out", type=Path, help="folder to write the footage and truth.csv to")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each video (default: %(default)s)")
    parser.add_argument("--width", type=int, default=640, help="width in pixels, 16:9 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="another seed makes other people (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=None, help="number of processes (default: one per core)")
    options = parser.parse_args(arguments)
    if options.width < 64 or options.width % 2:
        parser.error(f"--width {options.width}: give an even number of at least 64")
    truth = make_archive(**vars(options))
    print(f"{len(SCRIPTS)} videos in {options.out}; ground truth: {truth}")


if __name__ == "__main__":
    main()
