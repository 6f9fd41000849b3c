"""The freely licensed photographs that the demo models are trained on, and the one they never see.

From scikit-image (`skimage.data`): astronaut, hubble_deep_field (NASA, public domain), rocket (SpaceX, public domain), coffee (Rachel Michetti,
CC0), camera (Lav Varshney, CC0), retina (CC0), brick, grass and gravel (CC0Textures, CC0). From scikit-learn: china and flower (CC BY 2.0, by
the Flickr users danielbuechele and vultilion). Held out: chelsea (Stefan van der Walt, CC0).
"""

import numpy as np
import skimage.data
import sklearn.datasets

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
