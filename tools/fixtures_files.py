"""The files of crates/vae-core/tests/data: what `torch.save` writes, in small. Every tensor holds i / 2 - 1 for i = 0, 1, ... in its order."""

import pathlib

import numpy
import torch

DATA = pathlib.Path(__file__).parent.parent / "crates/vae-core/tests/data"


def values(*shape, dtype=torch.float32):
    return (torch.arange(torch.Size(shape).numel()) / 2 - 1).reshape(shape).to(dtype)


class Callback:
    """A class that a reader does not have."""


Callback.__module__ = "lightning.callbacks"


def kinds():
    names = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32", "int16", "int8", "uint8", "bool"]
    names += ["float8_e4m3fnuz", "complex64"]
    wide = torch.full((3, 4), 9.0)
    wide[1:, 1:3] = values(2, 2)
    shared = values(6)
    tensors = {name: values(2, 3, dtype=getattr(torch, name)) for name in names}
    tensors |= {
        "parameter": torch.nn.Parameter(values(2, 2)), "transposed": values(2, 3).t().contiguous().t(), "part": wide[1:, 1:3],
        "shared": shared, "tail": shared[4:], "repeated": values(1).expand(2, 3), "scalar": values(), "none": values(0, 4), "sparse": values(2, 2).to_sparse(),
    }
    callback = Callback()
    callback.state = {"best": torch.tensor(0.5)}
    return {
        "state_dict": tensors, "callbacks": {Callback: {"best": torch.tensor(0.5)}}, "objects": [callback, {1: numpy.float64(0.5), None: "text", (1, 2): b"bytes"}],
        "epoch": 3, "large": 1 << 80, "negative": -(1 << 40), "set": {1.5}, "list": [values(1), values(2)],
    }


def write():
    import sys
    import types

    for name in ["lightning", "lightning.callbacks"]:
        sys.modules[name] = types.ModuleType(name)
    sys.modules["lightning.callbacks"].Callback = Callback
    DATA.mkdir(parents=True, exist_ok=True)
    torch.save(kinds(), DATA / "kinds.pt")
    torch.save(kinds(), DATA / "kinds-4.pt", pickle_protocol=4)
    legacy = kinds()
    torch.save(legacy, DATA / "kinds-legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(values(1, 2, 2, 3), DATA / "bare.pt")
    torch.save({"samples": values(1, 2, 3, 2).transpose(2, 3), "noise_mask": values(2, 3), "batch_index": [0]}, DATA / "latents.pt")
    torch.save(torch.nn.Conv2d(1, 1, 1), DATA / "module.pt")
    torch.jit.save(torch.jit.script(torch.nn.Conv2d(1, 1, 1)), DATA / "script.pt")
