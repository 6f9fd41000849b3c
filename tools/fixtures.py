"""What the writers of golden files share."""

import torch
from safetensors.torch import load_file, save_file


def save_as_half(model, folder):
    """Saves the checkpoint in diffusers' layout, its weights as f16, to which they must have been rounded."""
    model.save_pretrained(folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file({key: value.half() for key, value in load_file(file).items()}, file)


@torch.no_grad()
def half_difference(model, tensors, dtype, set_tiling):
    """The greatest difference that a half type makes in diffusers: the scale of the tolerance for half types."""
    model.to(dtype)
    worst = 0.0
    for key in (key for key in tensors if key.endswith("decoded")):
        case, mode, _ = key.split(".")
        set_tiling(model, mode == "tiled")
        posterior = model.encode(tensors[f"{case}.samples"].to(dtype)).latent_dist
        found = {"decoded": model.decode(tensors[f"{case}.latents"].to(dtype)).sample, "mean": posterior.mean, "logvar": posterior.logvar}
        worst = max(worst, *((value.float() - tensors[f"{case}.{mode}.{what}"]).abs().max().item() for what, value in found.items()))
    model.float()
    return worst


def report(name, tensors):
    """Prints how large golden values are, so that tolerances mean something."""
    for key in ("decoded", "mean", "logvar"):
        sizes = [value.abs().mean().item() for case, value in tensors.items() if case.endswith(key)]
        clamped = [(value.abs() >= 1).float().mean().item() for case, value in tensors.items() if case.endswith(key)]
        print(f"{name}: mean |{key}| {sum(sizes) / len(sizes):.2f}, {sum(clamped) / len(clamped):.1%} at or above 1")
