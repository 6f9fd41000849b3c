"""Runs tests of diffusers itself with every VAE patched. Needs a checkout of diffusers of the version in requirements.txt, the package `tilevae` and pytest.

    python tools/diffusers_tests.py CHECKOUT [TEST... and other arguments of pytest]

Without tests those of `AutoencoderKL`, `AutoencoderKLWan`, `AutoencoderKLQwenImage` and `AutoencoderKLFlux2` run; `pipelines` stands for those of the pipelines in
crates/python/tests. Most of these load tiny text encoders from a hub, and fail without one (`HF_HUB_OFFLINE=1` makes them fail at once).
"""

import os
import pathlib
import sys
import types

TESTS = [f"tests/models/autoencoders/test_models_autoencoder_{name}.py" for name in ("kl", "wan", "qwenimage", "flux2")]

PIPELINES = [
    f"tests/pipelines/{test}.py"
    for test in (
        "stable_diffusion/test_stable_diffusion",
        "stable_diffusion/test_stable_diffusion_img2img",
        "stable_diffusion/test_stable_diffusion_inpaint",
        "stable_diffusion_xl/test_stable_diffusion_xl",
        "flux/test_pipeline_flux",
        "flux2/test_pipeline_flux2",
        "wan/test_wan",
        "wan/test_wan_image_to_video",
        "qwenimage/test_qwenimage",
    )
]

#: By class and name.
originals = {}
counts = {"calls": 0}


def pytest_configure(config):
    import diffusers
    import tilevae
    from tilevae import _modules, _patch

    def wrapped(name):
        def method(self, x, *args, **kwargs):
            counts["calls"] += 1
            # For one call: tests copy, pickle and change their models in between.
            tilevae.patch(self)
            try:
                return self.__dict__[name](x, *args, **kwargs)
            finally:
                tilevae.unpatch(self)

        return method

    def original(vae, name):
        return types.MethodType(originals[type(vae), name], vae)

    _patch._original = original
    for class_name in _modules.SUPPORTED:
        kind = getattr(diffusers, class_name)
        for name in ("decode", "encode"):
            originals[kind, name] = getattr(kind, name)
            setattr(kind, name, wrapped(name))


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"{counts['calls']} calls of decode and encode went through tilevae")


def main():
    checkout, *arguments = sys.argv[1:]
    import pytest

    folder = pathlib.Path(checkout).resolve()
    # As a plugin this file is a module of its own.
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    given = [test for argument in arguments for test in (PIPELINES if argument == "pipelines" else [argument])]
    chosen = given if any(not argument.startswith("-") for argument in given) else [*given, *(test for test in TESTS if (folder / test).exists())]
    os.chdir(folder)
    return pytest.main(["-p", "diffusers_tests", "-p", "no:cacheprovider", "-q", *chosen])


if __name__ == "__main__":
    sys.exit(main())
