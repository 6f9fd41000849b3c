"""The freely licensed photographs that the demo models are trained on, the one they never see, and the crops and clips made of them.

From scikit-image (`skimage.data`): astronaut, hubble_deep_field (NASA, public domain), rocket (SpaceX, public domain), coffee (Rachel Michetti,
CC0), camera (Lav Varshney, CC0), retina (CC0), brick, grass and gravel (CC0Textures, CC0). From scikit-learn: china and flower (CC BY 2.0, by
the Flickr users danielbuechele and vultilion). Held out: chelsea (Stefan van der Walt, CC0).
"""

import math

import numpy as np
import skimage.data
import sklearn.datasets
import torch
from PIL import Image

HELD_OUT = "chelsea"


def _rgb(image):
    image = np.asarray(image)
    return np.stack([image] * 3, -1) if image.ndim == 2 else image[..., :3]


def training():
    """Uint8 arrays [height, width, 3], colour photographs first and three times as often as the grey ones."""
    colour = [getattr(skimage.data, name)() for name in ("astronaut", "coffee", "rocket", "hubble_deep_field", "retina")]
    colour += [sklearn.datasets.load_sample_image(f"{name}.jpg") for name in ("china", "flower")]
    grey = [getattr(skimage.data, name)() for name in ("camera", "brick", "grass", "gravel")]
    return [_rgb(image) for image in colour * 3 + grey]


def held_out():
    """The photograph that no training step sees, uint8 [height, width, 3]."""
    return _rgb(getattr(skimage.data, HELD_OUT)())


def to_samples(image):
    """Float samples [1, 3, height, width] in [-1, 1] of a uint8 array [height, width, 3]."""
    return torch.from_numpy(image.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None].contiguous()


def to_uint8(samples):
    """A uint8 array of a tensor in [-1, 1]."""
    return ((samples.clamp(-1, 1) + 1) * 127.5).round().numpy().astype(np.uint8)


def pyramid(image):
    """The photograph at several scales: crops of a smaller copy hold more detail a pixel."""
    picture = Image.fromarray(image)
    sizes = [(max(160, int(picture.width * s)), max(160, int(picture.height * s))) for s in (1.0, 0.75, 0.55)]
    return [np.asarray(picture.resize(size, Image.LANCZOS)) for size in sizes]


def _tint(rng):
    """A factor and a summand for each colour: few photographs hold few colours."""
    kind = rng.random()
    if kind < 0.3:
        return np.ones(3), np.zeros(3)
    if kind < 0.5:
        return np.full(3, rng.uniform(0.7, 1.2)), np.full(3, rng.uniform(-0.2, 0.2))
    return rng.uniform(0.6, 1.2, 3), rng.uniform(-0.35, 0.35, 3)


def crops(levels, count, side, rng):
    """Float samples [count, 3, side, side] in [-1, 1]: random place, scale, flip, turn, colour order and contrast."""
    batch = np.empty((count, side, side, 3), np.float32)
    for item in batch:
        photo = levels[rng.integers(len(levels))]
        image = photo[rng.integers(len(photo))]
        y, x = rng.integers(image.shape[0] - side + 1), rng.integers(image.shape[1] - side + 1)
        crop = np.rot90(image[y : y + side, x : x + side], rng.integers(4))
        crop = crop[:, :: rng.choice([-1, 1])]
        if rng.random() < 0.3:
            crop = crop[..., rng.permutation(3)]
        crop = crop.astype(np.float32) / 127.5 - 1
        gain, shift = _tint(rng)
        item[:] = np.clip(crop * gain + shift, -1, 1)
    return torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous()


def moving_crop(photo, frames, size, centre, velocity, scale, zoom, angle=0.0, spin=0.0):
    """Samples [frames, channels, height, width]: a window that moves over a photo [1, channels, height, width].

    `centre` and `velocity` are (y, x) in photo px and photo px a frame; `scale` is photo px a window px and grows by the factor `zoom` a frame;
    `angle` and `spin` are radians and radians a frame.
    """
    height, width = size
    ys, xs = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    grids = []
    for t in range(frames):
        s, a = scale * zoom**t, angle + spin * t
        y = centre[0] + velocity[0] * t + s * (math.cos(a) * ys - math.sin(a) * xs)
        x = centre[1] + velocity[1] * t + s * (math.sin(a) * ys + math.cos(a) * xs)
        grids.append(torch.stack([2 * x / (photo.shape[3] - 1) - 1, 2 * y / (photo.shape[2] - 1) - 1], -1))
    grid = torch.stack(grids).float()
    photo = photo.expand(frames, -1, -1, -1)
    return torch.nn.functional.grid_sample(photo, grid, "bilinear", "reflection", align_corners=True)


def _random_motion(photo, frames, side, rng):
    scale = math.exp(rng.uniform(math.log(0.5), math.log(1.6)))
    speed, heading = rng.uniform(0, 3) * scale, rng.uniform(0, 2 * math.pi)
    zoom, spin = (math.exp(rng.normal(0, 0.01)) if rng.random() < 0.5 else 1.0), (rng.normal(0, 0.01) if rng.random() < 0.3 else 0.0)
    centre = [rng.uniform(side * scale / 2, extent - side * scale / 2) for extent in photo.shape[2:]]
    velocity = (speed * math.sin(heading), speed * math.cos(heading))
    return moving_crop(photo, frames, (side, side), centre, velocity, scale, zoom, rng.integers(4) * math.pi / 2, spin)


def clips(photos, count, frames, side, rng):
    """Float samples [count, 3, frames, side, side] in [-1, 1]: pans, zooms and turns, a third of them with a second photo that moves in front."""
    batch = torch.empty(count, 3, frames, side, side)
    for item in batch:
        clip = _random_motion(photos[rng.integers(len(photos))], frames, side, rng)
        if rng.random() < 0.33:
            front = photos[rng.integers(len(photos))]
            ys, xs = torch.meshgrid(torch.linspace(-1, 1, front.shape[2]), torch.linspace(-1, 1, front.shape[3]), indexing="ij")
            waves = torch.sin(rng.uniform(4, 12) * ys + rng.uniform(0, 6)) + torch.sin(rng.uniform(4, 12) * xs + rng.uniform(0, 6))
            layer = _random_motion(torch.cat([front, torch.sigmoid(12 * waves)[None, None]], 1), frames, side, rng)
            clip = clip + (layer[:, :3] - clip) * layer[:, 3:]
        if rng.random() < 0.3:
            clip = clip[:, torch.from_numpy(rng.permutation(3))]
        gain, shift = (torch.from_numpy(values.astype(np.float32)).view(1, 3, 1, 1) for values in _tint(rng))
        item[:] = (clip * gain + shift).clamp(-1, 1).transpose(0, 1)
    return batch


def held_out_clip():
    """Seventeen frames, uint8 [17, 128, 192, 3], of a window that pans over the held-out photograph and closes in on it."""
    samples = moving_crop(to_samples(held_out()), 17, (128, 192), (140, 215), (-0.6, 1.0), 0.75, 0.995)
    return to_uint8(samples.permute(0, 2, 3, 1))
