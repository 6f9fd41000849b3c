"""Runs tests of diffusers itself with every VAE patched. Needs a checkout of diffusers of the version in requirements.txt, the package `tilevae` and pytest.

    python tools/diffusers_tests.py CHECKOUT [--offline] [--unpatched] [TEST... and other arguments of pytest]

Without tests those of `AutoencoderKL`, `AutoencoderKLWan`, `AutoencoderKLQwenImage` and `AutoencoderKLFlux2` run; `pipelines` stands for those of the pipelines in
crates/python/tests. Most of these load tiny text encoders from a hub. With --offline tokenizers of letters and an empty configuration of T5 take the places of three of them: tests
then fail that expect certain numbers. With --unpatched the same tests run without tilevae, for comparison.
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


def stand_ins():
    """By their names on the hub."""
    from transformers import CLIPTokenizer, Qwen2Tokenizer, T5Config, T5Tokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    clip = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    qwen = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "\u0120", "\u010a"]
    t5 = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((letter, -3.0) for letter in letters)]

    def numbered(tokens):
        return {token: at for at, token in enumerate(tokens)}

    return {
        "hf-internal-testing/tiny-random-clip": {"tokenizer": lambda: CLIPTokenizer(vocab=numbered(clip), merges=[], model_max_length=77)},
        "hf-internal-testing/tiny-random-Qwen2VLForConditionalGeneration": {"tokenizer": lambda: Qwen2Tokenizer(vocab=numbered(qwen), merges=[])},
        "hf-internal-testing/tiny-random-t5": {
            "tokenizer": lambda: T5Tokenizer(vocab=t5, extra_ids=0, model_max_length=512),
            "config": lambda: T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4),
        },
    }


def go_offline():
    from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

    known = stand_ins()
    for kind, what in ((AutoConfig, "config"), (AutoTokenizer, "tokenizer"), (PreTrainedTokenizerBase, "tokenizer")):
        original = kind.from_pretrained.__func__

        def load(cls, name, *args, original=original, what=what, **settings):
            made = known.get(str(name), {}).get(what)
            return original(cls, name, *args, **settings) if made is None else made()

        kind.from_pretrained = classmethod(load)


def pytest_configure(config):
    import diffusers
    import tilevae
    from tilevae import _modules, _patch

    if "TILEVAE_OFFLINE" in os.environ:
        go_offline()
    if "TILEVAE_UNPATCHED" in os.environ:
        return

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
    for flag in ("--offline", "--unpatched"):
        if flag in arguments:
            arguments.remove(flag)
            os.environ["TILEVAE_" + flag[2:].upper()] = "1"
    if "TILEVAE_OFFLINE" in os.environ:
        os.environ["HF_HUB_OFFLINE"] = "1"
    given = [test for argument in arguments for test in (PIPELINES if argument == "pipelines" else [argument])]
    has_tests = any((folder / argument.split("::")[0]).exists() for argument in given)
    chosen = given if has_tests else [*given, *(test for test in TESTS if (folder / test).exists())]
    os.chdir(folder)
    return pytest.main(["-p", "diffusers_tests", "-p", "no:cacheprovider", "-q", *chosen])


if __name__ == "__main__":
    sys.exit(main())
