from __future__ import annotations

import subprocess
import sys
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import ovseg
from ovseg.cli import main
from ovseg.errors import InvalidArgumentError, InvalidImageError, MissingDependencyError, OutputError
from ovseg.jobs import frames
from ovseg.jobs.frames import Frame, is_video, open_video, write_video
from ovseg.jobs.smoothing import CUT, Smoother, changed, color_histogram
from ovseg.jobs.video import Painter, segment_frames, segment_video

av = pytest.importorskip("av")

LABELS = ["sky", "grass", "road"]
Picture = NDArray[np.uint8]


def make_clip(path: Path, pictures: list[Picture], times: list[float] | None = None) -> None:
    """Write with PyAV itself; losslessly but for the colour space."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb" if "libx264rgb" in av.codecs_available else "libx264", rate=10, options={"qp": "0"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "rgb24" if stream.codec_context.name == "libx264rgb" else "yuv444p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(1000 * (times[number] if times else number / 10)), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture
def pictures(scene: Picture) -> list[Picture]:
    return [np.ascontiguousarray(np.roll(scene, 4 * number, axis=1)) for number in range(7)]


@pytest.fixture
def clip(tmp_path: Path, pictures: list[Picture]) -> Path:
    make_clip(tmp_path / "clip.mp4", pictures)
    return tmp_path / "clip.mp4"


def cut(path: Path, part: float) -> Path:
    """Copy the beginning of a file."""
    data = path.read_bytes()
    short = path.with_name(f"cut{path.suffix}")
    short.write_bytes(data[: round(part * len(data))])
    return short


# ---------------------------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("reader", ["av", "cv2"])
def test_frames_come_with_their_pictures_and_times(
    clip: Path, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    pytest.importorskip(reader)
    monkeypatch.setattr(frames, "_has", lambda module: module == reader)
    with open_video(clip) as video:
        found = list(video.frames)
        assert (video.count, video.rate) == (7, 10)
    assert [frame.number for frame in found] == list(range(7))
    assert [frame.time for frame in found] == pytest.approx([number / 10 for number in range(7)])
    for frame, picture in zip(found, pictures, strict=True):
        assert frame.pixels.flags.c_contiguous
        assert np.abs(frame.pixels.astype(int) - picture).mean() < 4  # the colour space of the file
    with open_video(clip, every=3) as video:
        some = list(video.frames)
        assert video.count == 3
    assert [(frame.number, round(frame.time, 6)) for frame in some] == [(0, 0.0), (3, 0.3), (6, 0.6)]
    assert np.array_equal(some[1].pixels, found[3].pixels)


def test_times_of_a_variable_rate_are_kept(tmp_path: Path, pictures: list[Picture]) -> None:
    times = [0, 0.1, 0.15, 0.6, 0.61, 2.0, 2.5]
    make_clip(tmp_path / "clip.mp4", pictures, times)
    with open_video(tmp_path / "clip.mp4") as video:
        assert [frame.time for frame in video.frames] == pytest.approx(times, abs=1e-3)


def noise(count: int) -> list[Picture]:
    """Pictures of one size in bytes, so that half a file is half of the frames."""
    draw = np.random.default_rng(5)
    return [draw.integers(0, 256, (32, 48, 3), np.uint8) for _ in range(count)]


def healthy(path: Path, *, sound: float = 0, rate: int = 10, codec: str = "mpeg4", **options: str) -> Path:
    """Write 40 pictures, and seconds of silence."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate, options={"b": "400k"} if codec == "libvpx-vp9" else {"qmin": "5", "qmax": "5"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        voice = container.add_stream("aac", rate=16000) if sound else None
        for picture in noise(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
        for number in range(round(16000 * sound / 1024)):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.rate, silence.pts = 16000, 1024 * number
            container.mux(voice.encode(silence))
        if voice is not None:
            container.mux(voice.encode())
    return path


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize(
    ("name", "options"),
    [("a.mkv", {}), ("a.mkv", {"sound": 9}), ("a.mp4", {"movflags": "faststart"}), ("a.mov", {"movflags": "faststart"})],
)
def test_a_video_without_its_end_is_told(tmp_path: Path, name: str, options: dict[str, Any], every: int) -> None:
    path = healthy(tmp_path / name, **options)
    for part in (0.3, 0.6):
        told: list[str] = []
        with open_video(cut(path, part), every=every, tell=told.append) as video:
            found = [frame.number for frame in video.frames]
        assert len(told) == 1
        assert f"cut{path.suffix}' " in told[0]
        assert 0.5 * part * 40 - every < found[-1] < 40 - every  # what could be read was given
        assert found == list(range(0, found[-1] + 1, every))
    with pytest.warns(UserWarning, match=f"cut{path.suffix}"), open_video(cut(path, 0.5)) as video:
        list(video.frames)


@pytest.mark.parametrize("reader", ["av", "cv2"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mkv", {}), ("a.mp4", {}), ("a.mov", {"movflags": "faststart"}), ("a.avi", {}), ("a.ts", {}), ("slow.mp4", {"rate": 1}),
        ("a.webm", {"codec": "libvpx-vp9"}), ("parts.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("long.mkv", {"sound": 9}), ("long.mp4", {"sound": 9}), ("short.mkv", {"sound": 2}),  # sound goes on after the pictures, or ends
        ("live.mkv", {"live": "1"}),  # says no duration
    ],
)  # fmt: skip
def test_a_healthy_video_raises_no_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any], reader: str
) -> None:
    pytest.importorskip(reader)
    monkeypatch.setattr(frames, "_has", lambda module: module == reader)
    path = tmp_path / name
    healthy(path, **options)
    told: list[str] = []
    for every in (1, 3):
        with open_video(path, every=every, tell=told.append) as video:
            assert len(list(video.frames)) == -(-40 // every)
    assert told == []


@pytest.mark.parametrize("reader", ["av", "cv2"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_pictures_that_stay_for_long_raise_no_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, reader: str) -> None:
    pytest.importorskip(reader)
    for times in ([0, 5, 10, 40], [0, 0.1, 0.15, 0.6, 0.61, 2.0, 2.5], [3.0], [30, 30.1, 30.2]):
        make_clip(tmp_path / f"a{suffix}", noise(len(times)), times)
        monkeypatch.setattr(frames, "_has", lambda module: module == reader)
        told: list[str] = []
        with open_video(tmp_path / f"a{suffix}", tell=told.append) as video:
            assert len(list(video.frames)) == len(times)
        assert told == []


def test_a_picture_that_cannot_be_decoded_ends_the_video(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packets are the file's own; one has other bytes than a decoder takes."""
    opened = av.open

    class Broken:
        def __init__(self, container: Any, good: int) -> None:
            self._container, self._good = container, good

        def __getattr__(self, name: str) -> Any:
            return getattr(self._container, name)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self._container.close()

        def demux(self) -> Iterator[Any]:
            for number, packet in enumerate(self._container.demux()):
                if number == self._good:
                    raise av.error.InvalidDataError(1094995529, "Invalid data found", "avcodec_send_packet()")
                yield packet

    told: list[str] = []
    monkeypatch.setattr(av, "open", lambda name, *more: opened(name, *more) if more else Broken(opened(name), 0))
    with open_video(clip, tell=told.append) as video, pytest.raises(InvalidImageError, match="clip.mp4' is damaged: .*Invalid data"):
        next(video.frames)
    assert told == []
    make_clip(clip, noise(40))
    monkeypatch.setattr(av, "open", lambda name: Broken(opened(name), 39))
    with open_video(clip, tell=told.append) as video:
        assert 5 < len(list(video.frames)) < 40
    (message,) = told
    assert "clip.mp4' is damaged after 3.9 s" in message


def test_opencv_tells_of_a_missing_end_where_pictures_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2")
    short = cut(healthy(tmp_path / "a.mp4", movflags="faststart"), 0.5)
    monkeypatch.setattr(frames, "_has", lambda module: module == "cv2")
    told: list[str] = []
    with open_video(short, tell=told.append) as video:
        assert 15 <= len(list(video.frames)) <= 21
    assert "says that it lasts 4.0 s: its end is missing" in told[0]


def test_a_picture_of_a_turned_camera_is_upright(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = np.zeros((2, 3, 3), np.uint8)
    marked[0, 0] = 255  # the top left corner of what the sensor saw
    turned = {0: (0, 0), 90: (2, 0), -90: (0, 1), 180: (1, 2)}  # counter-clockwise, as the display matrix says
    for angle, corner in turned.items():
        frame = SimpleNamespace(to_ndarray=lambda **_: marked, rotation=angle, time=0.0)
        stream = SimpleNamespace(average_rate=10, frames=1, thread_type="", index=0)

        class Container:
            streams, duration = SimpleNamespace(video=[stream]), None

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def demux(self, frame: Any = frame) -> list[Any]:
                return [SimpleNamespace(pts=None, stream=self.streams.video[0], decode=lambda: [frame])]

        monkeypatch.setattr(av, "open", lambda *_: Container())
        with open_video(clip) as video:
            (found,) = video.frames
        assert found.pixels[corner].tolist() == [255, 255, 255]


def test_words_that_name_videos(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert all(map(is_video, ["clip.mp4", "camera:0", "camera:12", "rtsp://host/live", "/dev/video0", str(clip)]))
    assert not any(map(is_video, ["none.mp4", "camera", "camera:", "camera:x", "sky", "https://host/a.mp4", "."]))


def test_videos_that_cannot_be_read(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 99)
    for name, message in (("none.mp4", "No such video"), ("bad.mp4", "cannot be read")):
        with pytest.raises(InvalidImageError, match=message), open_video(tmp_path / name):
            pass
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    with pytest.raises(InvalidImageError, match="no pictures"), open_video(tmp_path / "sound.wav"):
        pass
    for every in (0, -1, True, 1.5):
        with pytest.raises(InvalidArgumentError, match="every"), open_video(clip, every=every):
            pass


def test_without_a_reader_the_message_says_what_to_install(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_has", lambda _: False)
    with pytest.raises(MissingDependencyError, match=r"ovseg\[video\]"), open_video(clip):
        pass
    with pytest.raises(MissingDependencyError), write_video(clip.with_name("out.mp4"), 10) as write:
        write(np.zeros((16, 16, 3), np.uint8), 0.0)
    monkeypatch.setattr(frames, "_has", lambda module: module == "av")
    with pytest.raises(MissingDependencyError, match="OpenCV"), open_video("camera:0"):
        pass


def test_a_camera_is_read_through_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2")
    left = [np.full((4, 6, 3), (10 * number, 0, 200), np.uint8) for number in range(3)]  # BGR
    released = []

    class Capture:
        def __init__(self, source: object) -> None:
            assert source == 1

        def isOpened(self) -> bool:
            return True

        def get(self, _: int) -> float:
            return 0.0

        def grab(self) -> bool:
            return bool(left)

        def retrieve(self) -> tuple[bool, Picture]:
            return True, left.pop(0)

        def release(self) -> None:
            released.append(True)

    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    with open_video("camera:1") as video:
        assert (video.count, video.rate) == (None, None)
        found = list(video.frames)
    assert released
    assert [frame.pixels[0, 0].tolist() for frame in found] == [[200, 0, 0], [200, 0, 10], [200, 0, 20]]
    assert [frame.time for frame in found] == sorted(frame.time for frame in found)


@pytest.mark.parametrize(("writer", "suffix"), [("av", ".mp4"), ("av", ".mkv"), ("av", ".webm"), ("av", ".mov"), ("cv2", ".mp4")])
def test_what_is_written_can_be_read(
    tmp_path: Path, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch, writer: str, suffix: str
) -> None:
    pytest.importorskip(writer)
    times = [3 + 0.1 * number + 0.05 * (number > 4) for number in range(7)]
    with monkeypatch.context() as patch:
        patch.setattr(frames, "_has", lambda module: module == writer)
        with write_video(tmp_path / f"out{suffix}", 10) as write:
            for picture, time in zip(pictures, times, strict=True):
                write(picture, time)
            assert not (tmp_path / f"out{suffix}").exists()
    assert [path.name for path in tmp_path.iterdir()] == [f"out{suffix}"]
    with open_video(tmp_path / f"out{suffix}") as video:
        found = list(video.frames)
    assert len(found) == 7
    if writer == "av":  # OpenCV knows no times
        assert [frame.time - found[0].time for frame in found] == pytest.approx([time - 3 for time in times], abs=2e-3)
    for frame, picture in zip(found, pictures, strict=True):
        assert np.abs(frame.pixels.astype(int) - picture).mean() < 12


def test_a_video_that_fails_leaves_nothing_behind(tmp_path: Path, pictures: list[Picture]) -> None:
    with pytest.raises(ZeroDivisionError), write_video(tmp_path / "out.mp4", 10) as write:
        write(pictures[0], 0.0)
        raise ZeroDivisionError
    with pytest.raises(OutputError, match="no frame"), write_video(tmp_path / "out.mp4", 10):
        pass
    with pytest.raises(OutputError, match=".mp4, .mov"), write_video(tmp_path / "out.gif", 10):
        pass
    with pytest.raises(OutputError, match="does not exist"), write_video(tmp_path / "none" / "out.mp4", 10):
        pass
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- smoothing


def features(value: float, image: Picture | None = None) -> ovseg.ImageFeatures:
    picture = np.zeros((4, 6, 3), np.uint8) if image is None else image
    return ovseg.ImageFeatures(np.full((2, 3, 3), value, np.float32), (4, 6), (3.0, 3.0), "mini", picture)


def test_the_average_is_a_low_pass_filter() -> None:
    random = np.random.default_rng(0)
    values, times = random.normal(size=30), np.cumsum(random.uniform(0.01, 0.2, 30))
    smoother, mean = Smoother(0.25), float(values[0])
    for number, (value, time) in enumerate(zip(values, times, strict=True)):
        if number:
            weight = 1 - np.exp(-(time - times[number - 1]) / 0.25)
            mean = (1 - weight) * mean + weight * value
        assert smoother.update(features(value), time).embedding == pytest.approx(mean, abs=1e-6)
    # Two steps towards a constant are one step of their sum: the rate of the frames does not matter.
    once, twice = Smoother(0.5), Smoother(0.5)
    once.update(features(0), 0)
    twice.update(features(0), 0)
    twice.update(features(1), 0.1)
    assert twice.update(features(1), 0.3).embedding == pytest.approx(once.update(features(1), 0.3).embedding)


def test_the_average_begins_anew_at_a_cut_and_where_frames_do_not_follow(scene: Picture) -> None:
    other = np.full_like(scene, 20)
    for second, time in ((features(1, other), 0.1), (features(1, scene), -1.0)):
        smoother = Smoother(1.0)
        smoother.update(features(0, scene), 0.0)
        assert smoother.update(second, time).embedding == pytest.approx(1)
    smoother = Smoother(1.0)
    smoother.update(features(0, scene), 0.0)
    wide = ovseg.ImageFeatures(np.ones((2, 3, 4), np.float32), (4, 6), (3.0, 4.0), "mini", scene)
    assert smoother.update(wide, 0.1).embedding == pytest.approx(1)


def test_motion_and_noise_are_no_cut_and_another_scene_is(scene: Picture) -> None:
    before = color_histogram(scene)
    assert before.sum() == pytest.approx(1)
    assert changed(before, before) == 0
    noise = np.random.default_rng(1).normal(0, 6, scene.shape)
    assert changed(before, color_histogram(np.clip(scene + noise, 0, 255).astype(np.uint8))) < CUT
    assert changed(before, color_histogram(np.roll(scene, 40, axis=1))) < CUT
    assert changed(before, color_histogram(255 - scene)) > CUT
    assert changed(color_histogram(np.zeros((9, 9, 3), np.uint8)), color_histogram(np.full((9, 9, 3), 255, np.uint8))) == 1


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), True, "0.2"])
def test_time_constants_that_make_no_sense(seconds: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="smooth"):
        Smoother(seconds)


# ----------------------------------------------------------------------------------------------------------------- video


def numbered(pictures: list[Picture]) -> Iterator[Frame]:
    return (Frame(number, number / 10, picture) for number, picture in enumerate(pictures))


def test_frames_are_segmented_as_images_are(clip: Path, segmenter: ovseg.Segmenter) -> None:
    with open_video(clip) as video:
        pictures = [frame.pixels for frame in video.frames]
    found = list(segment_video(clip, LABELS, model=segmenter, workers=3, size=64, threshold=0.4))
    assert [(frame.number, round(frame.time, 6)) for frame in found] == [(number, number / 10) for number in range(7)]
    for frame, picture in zip(found, pictures, strict=True):
        assert frame.result == segmenter.segment(picture, LABELS, size=64, threshold=0.4)
        assert np.array_equal(frame.result.image, picture)


def test_smoothing_averages_logits_and_steadies_the_labels(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    random = np.random.default_rng(3)
    pictures = [np.clip(scene + random.normal(0, 40, scene.shape), 0, 255).astype(np.uint8) for _ in range(8)]
    restless = [frame.result for frame in segment_frames(numbered(pictures), segmenter, LABELS, size=64, scores=True)]
    steady = [frame.result for frame in segment_frames(numbered(pictures), segmenter, LABELS, workers=2, smooth=0.5, size=64, scores=True)]

    def flicker(results: list[ovseg.Segmentation]) -> float:
        return float(np.mean([(a.segmentation != b.segmentation).mean() for a, b in zip(results[2:], results[3:], strict=False)]))

    assert flicker(restless) > 0
    assert flicker(steady) < 0.6 * flicker(restless)
    # The scores are those of averaged logits: softmax of the mean of the logarithms, but for a constant in each pixel.
    mean = np.log(restless[0].scores)
    for result, single in zip(steady, restless, strict=True):
        mean = mean + (1 - np.exp(-0.1 / 0.5) if result is not steady[0] else 1) * (np.log(single.scores) - mean)
        expected = np.exp(mean - mean.max(0))
        assert result.scores == pytest.approx(expected / expected.sum(0), abs=2e-4)


def test_a_cut_forgets_the_scene_before(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    pictures = [scene, scene, np.ascontiguousarray(255 - scene), scene]
    found = [frame.result for frame in segment_frames(numbered(pictures), segmenter, LABELS, smooth=5.0, size=64)]
    for result, picture in zip(found, pictures, strict=True):
        assert result == segmenter.segment(picture, LABELS, size=64)


def test_what_smoothing_cannot_do(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    with pytest.raises(InvalidArgumentError, match="multiscale"):
        list(segment_frames(numbered([scene]), segmenter, LABELS, smooth=0.2, window="multiscale"))


def test_overlays_of_a_video_have_one_even_size_and_all_labels(segmenter: ovseg.Segmenter, scene: Picture) -> None:
    painter = Painter()
    sizes = set()
    for picture in (scene[:51, :77], scene[20:71, 30:107]):
        result = segmenter.segment(np.ascontiguousarray(picture), ["sky", "grass", "a label that is not there"], size=64)
        painted = painter.paint(result)
        sizes.add(painted.shape)
        left = (painted.shape[1] - 77) // 2
        assert np.array_equal(painted[:51, left : left + 77], np.asarray(result.overlay(legend=False)))
    ((height, width, _),) = sizes
    assert height % 2 == width % 2 == 0
    assert height > 51


# --------------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def loaded(segmenter: ovseg.Segmenter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ovseg.segmenter.load", lambda *_, **__: segmenter)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("loaded")
def test_the_command_writes_a_video_or_maps(clip: Path, segmenter: ovseg.Segmenter, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", "clip.mp4", "sky", "grass", "--size", "64", "-o", "out.mp4", "--smooth", "0.2", "--frames", "5"]) == 0
    assert "5 frames" in capsys.readouterr().out
    with open_video("out.mp4") as video:
        assert [round(frame.time, 3) for frame in video.frames] == [0, 0.1, 0.2, 0.3, 0.4]
    assert main(["segment", "clip.mp4", "sky", "grass", "--size", "64", "-o", "maps", "--every", "3", "-q", "--format", "png"]) == 0
    found = list(segment_video(clip, ["sky", "grass"], model=segmenter, every=3, size=64))
    assert {path.name for path in Path("maps").iterdir()} == {f"frame_{frame.number:06d}.png" for frame in found}
    for frame in found:
        assert ovseg.Segmentation.load(f"maps/frame_{frame.number:06d}.png") == frame.result


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
def test_what_was_made_of_a_video_without_its_end_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    cut(healthy(tmp_path / name.replace("cut", "a"), movflags="faststart"), 0.5)
    assert main(["segment", name, "sky", "grass", "--size", "32", "-o", "maps", "--every", "4", "-q", "--format", "png"]) == 1
    assert f"{name}' ends after 2." in capsys.readouterr().err
    assert len(list(Path("maps").iterdir())) in (5, 6)
    assert main(["segment", name, "sky", "grass", "--size", "32", "-o", "out.mp4", "-q"]) == 1
    assert "The results up to there are kept." in capsys.readouterr().err
    with open_video("out.mp4") as video:
        assert 15 <= len(list(video.frames)) <= 21
    assert main(["segment", name, "sky", "grass", "--size", "32", "-o", "out.mp4", "-q", "--frames", "10"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["clip.mp4", "sky"], 2, "-o OUT.mp4"),
        (["clip.mp4", "-o", "out.mp4"], 2, "No labels"),
        (["clip.mp4", "sky", "-o", "out.mp4", "--format", "png"], 2, "--format"),
        (["clip.mp4", "sky", "-o", "out.mp4", "--frames", "0"], 2, "--frames"),
        (["clip.mp4", "sky", "-o", "out.mp4", "--every", "0"], 2, "every"),
        (["clip.mp4", "sky", "-o", "out.mp4", "--smooth", "-1"], 2, "smooth"),
        (["clip.mp4", "sky", "-o", "out.mp4", "--recursive"], 2, "--recursive is for a folder"),
        (["clip.mp4", "sky", "-o", "none/out.mp4"], 1, "does not exist"),
        (["bad.mp4", "sky", "-o", "out.mp4"], 1, "cannot be read"),
        (["clip.mp4", "sky", "-o", "./clip.mp4"], 2, "over its input 'clip.mp4'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_goes_wrong_is_said(clip: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, message: str) -> None:
    clip.with_name("bad.mp4").write_bytes(b"no video" * 99)
    assert main(["segment", *words, "-q"]) == status
    assert message in capsys.readouterr().err
    assert not Path("out.mp4").exists()


def test_pictures_need_no_video_package(tmp_path: Path) -> None:
    modules = "import sys, ovseg.jobs.video, ovseg.jobs.folder, ovseg.commands.segment"
    code = "print({'av', 'cv2', 'ray', 'pyarrow', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"{modules}; {code}"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
