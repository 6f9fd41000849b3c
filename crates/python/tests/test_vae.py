"""`tilevae.Vae` over arrays, files and frames."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from models import kl, noise, wan

import tilevae

MODELS = os.path.abspath(os.path.join(os.path.dirname(__file__), "../../../models"))
LATENTS = os.path.join(MODELS, "../examples/latents")


def test_settings_are_checked():
    for wrong, kind in (({"memory_mib": 1}, MemoryError), ({"tile_px": -3}, ValueError), ({"norm": "local"}, ValueError), ({"devices": ["gpu:9"]}, ValueError)):
        with pytest.raises(kind):
            vae = tilevae.Vae(kl(), **wrong)
            vae.decode(np.zeros((1, 4, 64, 64), np.float32))
    with pytest.raises(TypeError, match="no setting"):
        tilevae.Vae(kl(), tiles=3)
    with pytest.raises(TypeError, match="memory_mib cannot be"):
        tilevae.Vae(kl(), memory_mib=object())
    with pytest.raises(TypeError, match="path of a checkpoint"):
        tilevae.Vae(3)
    plan = tilevae.Vae(kl(), tile_px=np.array([32, 64]), dtype=torch.bfloat16, devices=torch.device("cpu")).plan((1, 4, 32, 32))
    assert len(plan["tiles"]["tiles"]) == 2
    with pytest.raises(FileNotFoundError):
        tilevae.Vae("nowhere/at/all")


def test_threads_share_a_model():
    vae, latents = tilevae.Vae(kl(), tile_px=32), noise(1, 4, 16, 16).numpy()
    expected = vae.decode(latents)
    answers = [None] * 4

    def run(at):
        answers[at] = vae.decode(latents)

    threads = [threading.Thread(target=run, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(answer, expected) for answer in answers)


class Other:
    """An array of another library."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **settings):
        return self.array.__dlpack__(**settings)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __array_namespace__(self):
        return types.SimpleNamespace(from_dlpack=Other)


def test_arrays_of_many_kinds():
    vae, latents = tilevae.Vae(kl()), noise(1, 4, 8, 8)
    expected = vae.decode(latents)
    assert isinstance(expected, torch.Tensor)
    array = vae.decode(latents.numpy())
    assert isinstance(array, np.ndarray) and np.array_equal(array, expected.numpy())
    out = np.empty_like(array)
    assert vae.decode(latents.numpy()[:, :, ::1], out=out) is out and np.array_equal(out, array)
    assert vae.decode(latents.double().numpy()[:, :, ::-1]).shape == array.shape
    with pytest.raises(ValueError, match="out must be"):
        vae.decode(latents, out=np.empty((1, 3, 4, 4), np.float32))
    with pytest.raises(TypeError):
        vae.decode("latents")
    with pytest.raises(ValueError, match="share memory"):
        shared = np.zeros(768, np.float32)
        vae.decode(shared[:256].reshape(1, 4, 8, 8), out=shared.reshape(1, 3, 16, 16))
    other = vae.decode(Other(latents.numpy()))
    assert isinstance(other, Other) and np.array_equal(other.array, array)
    posterior = vae.encode(array)
    assert np.array_equal(posterior.sample(3), posterior.sample(3)) and not np.array_equal(posterior.sample(3), posterior.sample(4))
    assert posterior.mode() is posterior.mean
    plan = vae.plan((1, 4, 64, 64))
    assert plan["output_shape"] == [1, 3, 1, 128, 128]


def test_progress_is_told_and_its_exceptions_end_the_run():
    vae, seen = tilevae.Vae(kl(), tile_px=32), []
    vae.decode(noise(1, 4, 32, 32), progress=lambda done, all: seen.append((done, all)))
    assert seen[-1][0] == seen[-1][1] > 4

    def fail(done, _):
        raise KeyError("enough")

    with pytest.raises(KeyError):
        vae.decode(noise(1, 4, 32, 32), progress=fail)
    assert vae.decode(noise(1, 4, 8, 8)).shape == (1, 3, 16, 16)


CHILD = """
import numpy as np, tilevae, sys
vae = tilevae.Vae(sys.argv[1])
latents = np.zeros((1, 16, 40, 256, 256) if "frames" in sys.argv[2] else (1, 16, 512, 512), np.float32)
print("ready", flush=True)
try:
    eval(sys.argv[2])
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(7)
"""


@pytest.mark.parametrize("model, run", [("kl", "vae.decode(latents)"), ("kl", "vae.decode_to('out.png', latents)"), ("wan", "list(vae.decode_frames(latents))")])
def test_ctrl_c_ends_a_run(model, run, tmp_path):
    arguments = [sys.executable, "-c", CHILD, os.path.join(MODELS, f"demo-{model}"), run]
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert child.stdout.readline() == "ready\n"
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 7
    assert list(tmp_path.iterdir()) == [], "nothing is left"


def test_the_command_is_there():
    shown = subprocess.run([os.path.join(os.path.dirname(sys.executable), "tilevae"), "models"], capture_output=True, text=True)
    assert shown.returncode == 0 and "AutoencoderKLWan" in shown.stdout


def test_files_are_written(tmp_path):
    vae = tilevae.Vae(os.path.join(MODELS, "demo-kl"))
    latents = np.random.default_rng(0).standard_normal((1, 16, 4, 5), np.float32)
    calls = []
    assert vae.decode_to(tmp_path / "raw.npy", latents, progress=lambda done, all: calls.append(done)) == [tmp_path / "raw.npy"]
    assert np.array_equal(np.load(tmp_path / "raw.npy"), vae.decode(latents)) and calls[-1] == 1
    assert vae.decode_to(str(tmp_path / "image.png"), torch.from_numpy(latents)) == [tmp_path / "image.png"]
    assert (tmp_path / "image.png").read_bytes()[:4] == b"\x89PNG"
    batch = vae.decode_to(tmp_path / "batch.png", np.concatenate([latents] * 2))
    assert len(batch) == 2 and all(file.exists() for file in batch)
    # Latents of a file: the picture of the command.
    diffusion = tilevae.Vae(os.path.join(MODELS, "demo-kl"), tiling="diffusers", latent_space="diffusion")
    diffusion.decode_to(tmp_path / "file.png", os.path.join(LATENTS, "chelsea.safetensors"))
    command = os.path.join(os.path.dirname(sys.executable), "tilevae")
    shown = [command, "decode", os.path.join(LATENTS, "chelsea.safetensors"), "-o", tmp_path / "command.png", "--model", os.path.join(MODELS, "demo-kl")]
    subprocess.run([*shown, "--set", "tiling.kind=diffusers"], check=True, capture_output=True)
    assert (tmp_path / "file.png").read_bytes() == (tmp_path / "command.png").read_bytes()

    clip = tilevae.Vae(os.path.join(MODELS, "demo-wan"))
    video = np.zeros((1, clip.latent_channels, 2, 4, 4), np.float32)
    clip.decode_to(tmp_path / "clip.gif", video, fps=8)
    assert (tmp_path / "clip.gif").read_bytes()[:3] == b"GIF"

    there = sorted(tmp_path.iterdir())
    for path, given, settings, kind in (
        ("none/out.png", latents, {}, FileNotFoundError),
        ("out.xyz", latents, {}, ValueError),
        ("out.png", latents, {"fps": 8}, ValueError),
        ("out.gif", latents, {"fps": "fast"}, ValueError),
        ("out.png", latents[0], {}, ValueError),
        ("out.png", tmp_path / "nothing.safetensors", {}, FileNotFoundError),
        ("out.png", tmp_path / "image.png", {}, ValueError),
        ("image.png/out.png", latents, {}, OSError),
        ("", latents, {}, ValueError),
    ):
        with pytest.raises(kind):
            pytest.fail(f"{path}: {vae.decode_to(tmp_path / path, given, **settings)}")
    with pytest.raises(TypeError):
        vae.decode_to(3, latents)

    def fail(*_):
        raise KeyError("enough")

    with pytest.raises(KeyError):
        vae.decode_to(tmp_path / "image.png", np.zeros((1, 16, 64, 64), np.float32), progress=fail)
    assert sorted(tmp_path.iterdir()) == there, "nothing is left"


@pytest.mark.parametrize("settings", [{}, {"tile_px": 32}, {"tile_px": 32, "executor": "multi-device", "workers": 2}])
def test_frames_come_as_they_are_finished(settings):
    vae, latents = tilevae.Vae(wan(), **settings), noise(2, 4, 4, 6, 8)
    expected = vae.decode(latents)
    calls = []
    pieces = list(vae.decode_frames(latents, progress=lambda done, all: calls.append((done, all))))
    assert len(pieces) >= 4 and all(isinstance(piece, torch.Tensor) for piece in pieces)
    assert torch.equal(torch.cat(pieces, dim=2), expected)
    assert calls[-1][0] <= calls[-1][1]
    assert all(isinstance(piece, np.ndarray) for piece in vae.decode_frames(latents.numpy()))
    # The loop may use the same model, and other loops over it.
    for piece, other in zip(vae.decode_frames(latents), vae.decode_frames(latents)):
        assert torch.equal(piece, other) and torch.equal(vae.decode(latents), expected)
    with pytest.raises(ValueError, match="of a clip"):
        vae.decode_frames(latents[:, :, 0])
    with pytest.raises(ValueError):
        vae.decode_frames(noise(2, 5, 4, 6, 8))
    with pytest.raises(ValueError, match="NaN"):
        list(vae.decode_frames(torch.full((1, 4, 2, 4, 4), torch.nan)))


def test_frames_that_nobody_takes_end_the_run():
    vae, latents = tilevae.Vae(wan()), noise(1, 4, 60, 16, 16)
    threads = threading.active_count()

    def native():
        return len(os.listdir("/proc/self/task"))

    before = native()
    for _ in vae.decode_frames(latents):
        break
    frames = vae.decode_frames(latents)
    next(frames)
    frames.close()
    with pytest.raises(KeyError):
        for _ in vae.decode_frames(latents):
            raise KeyError("enough")

    def fail(*_):
        raise KeyError("enough")

    with pytest.raises(KeyError):
        list(vae.decode_frames(latents, progress=fail))
    vae.decode_frames(latents)
    deadline = time.monotonic() + 20
    while native() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert native() <= before and threading.active_count() == threads


def test_a_process_ends_in_the_midst_of_frames():
    script = "import numpy as np, tilevae, sys\nframes = tilevae.Vae(sys.argv[1]).decode_frames(np.zeros((1, 16, 30, 32, 32), np.float32))\nnext(frames)\n"
    for end in ("", "raise SystemExit(0)", "import time; time.sleep(3)"):
        subprocess.run([sys.executable, "-c", script + end, os.path.join(MODELS, "demo-wan")], check=True, timeout=60)


def test_plans_are_drawn():
    vae = tilevae.Vae(kl(), tile_px=32)
    plan = vae.plan((1, 4, 40, 24))
    assert isinstance(plan, dict) and plan["output_shape"] == [1, 3, 1, 80, 48] and json.loads(json.dumps(plan)) == plan
    assert "6 tiles" in repr(plan) and "1x3x1x80x48" in repr(plan)
    drawing = ElementTree.fromstring(plan._repr_svg_())
    assert len(drawing) > 6 and any("6 tiles" in (element.text or "") for element in drawing)
    for settings in ({"tiling": "diffusers"}, {"tiling": "off"}, {"memory_mib": 300}):
        ElementTree.fromstring(tilevae.Vae(kl(), **settings).plan((1, 4, 400, 240), "encode" if "off" in settings else "decode")._repr_svg_())
    for wrong in ((1, 4), (1, 5, 8, 8), (1, 4, -8, 8), (1, 4, 0, 8), (1, 4, 1 << 40, 8)):
        with pytest.raises(ValueError):
            vae.plan(wrong)


def test_a_bar_is_shown(capsys, monkeypatch):
    vae = tilevae.Vae(kl(), tile_px=32)
    vae.decode(noise(1, 4, 32, 32), progress=True)
    assert "decode: 100%" in capsys.readouterr().err
    vae.decode(noise(1, 4, 8, 8), progress=False)
    with pytest.raises(TypeError, match="callable"):
        vae.decode(noise(1, 4, 8, 8), progress=3)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="needs tqdm"):
        vae.decode(noise(1, 4, 8, 8), progress=True)
