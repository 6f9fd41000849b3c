"""Real pipelines of diffusers with tiny seeded weights, patched against unpatched."""

import pickle

import diffusers
import numpy as np
import pipelines
import pytest
import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from models import flux2_vae, kl, noise, qwen, wan

import tilevae

TOLERANCE = 2e-4

CASES = [
    (kl, noise(2, 4, 9, 13), noise(1, 3, 40, 56)),
    (lambda: kl(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False), noise(1, 16, 8, 8), noise(1, 3, 32, 32)),
    (flux2_vae, noise(1, 4, 8, 8), noise(1, 3, 32, 32)),
    (wan, noise(1, 4, 2, 4, 5), noise(1, 3, 6, 32, 16)),
    (lambda: wan(3, (1, 1, 1, 1)), noise(1, 4, 2, 4, 5), noise(1, 3, 5, 16, 32)),
    (qwen, noise(1, 4, 1, 6, 7), noise(1, 3, 1, 32, 48)),
]


@pytest.mark.parametrize("settings", [{}, {"tile_px": 32}, {"executor": "multi-device", "workers": 2, "tile_px": 32}])
@pytest.mark.parametrize("make, latents, samples", CASES)
def test_patched_and_unpatched_agree(make, latents, samples, settings):
    vae = make()
    with torch.no_grad():
        decoded, encoded = vae.decode(latents), vae.encode(samples)
        tilevae.patch(vae, **settings)
        answers = vae.decode(latents), vae.encode(samples)
        as_tuples = vae.decode(latents, return_dict=False), vae.encode(samples, return_dict=False)
    assert type(answers[0]) is DecoderOutput and type(answers[1]) is AutoencoderKLOutput
    assert answers[0].sample.dtype == latents.dtype and answers[0].sample.shape == decoded.sample.shape
    assert (answers[0].sample - decoded.sample).abs().max() < TOLERANCE
    for got, expected in ((answers[1].latent_dist.mean, encoded.latent_dist.mean), (answers[1].latent_dist.logvar, encoded.latent_dist.logvar)):
        assert (got - expected).abs().max() < TOLERANCE
    drawn = [answer.latent_dist.sample(torch.Generator().manual_seed(3)) for answer in (answers[1], encoded)]
    assert (drawn[0] - drawn[1]).abs().max() < TOLERANCE
    assert torch.equal(as_tuples[0][0], answers[0].sample) and torch.equal(as_tuples[1][0].mean, answers[1].latent_dist.mean)
    tilevae.unpatch(vae)
    with torch.no_grad():
        assert torch.equal(vae.decode(latents).sample, decoded.sample)


def test_bf16_rounds_as_bf16():
    vae, latents = kl().to(torch.bfloat16), noise(1, 4, 8, 8).to(torch.bfloat16)
    with torch.no_grad():
        expected = vae.decode(latents).sample
        got = tilevae.patch(vae).decode(latents).sample
    assert got.dtype == torch.bfloat16 and (got.float() - expected.float()).abs().max() < 0.1


@pytest.mark.parametrize(
    "make",
    [
        pipelines.stable_diffusion,
        pipelines.image_to_image,
        pipelines.inpainting,
        pipelines.stable_diffusion_xl,
        pipelines.flux,
        pipelines.flux2,
        pipelines.wan_video,
        pipelines.wan_image_to_video,
        pipelines.qwen_image,
    ],
)
def test_pipelines(make):
    pipe, arguments = make()
    pipe.set_progress_bar_config(disable=True)
    arguments = dict(height=32, width=32, num_inference_steps=2, output_type="np") | arguments
    arguments = {name: value for name, value in arguments.items() if value is not None}

    def run():
        answer = pipe(**arguments, generator=torch.Generator().manual_seed(0))
        return answer.frames if hasattr(answer, "frames") else answer.images

    expected = run()
    kind = type(pipe.vae)
    assert tilevae.patch(pipe) is pipe and type(pipe.vae) is kind
    assert np.abs(run() - expected).max() < TOLERANCE
    pipe.to(torch.float32)
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()
    assert np.abs(run() - expected).max() < TOLERANCE
    tilevae.unpatch(pipe)
    pipe.vae.disable_tiling()
    pipe.vae.disable_slicing()
    assert np.array_equal(run(), expected)


def test_what_cannot_be_taken_over_is_refused_or_left_to_diffusers(tmp_path):
    with pytest.raises(TypeError, match="cannot be taken over"):
        tilevae.patch(diffusers.AutoencoderTiny())

    class Changed(diffusers.AutoencoderKL):
        pass

    with pytest.raises(TypeError, match="cannot be taken over"):
        tilevae.patch(Changed())
    vae, latents = kl(), noise(1, 4, 8, 8)
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    tilevae.patch(vae)
    with pytest.warns(UserWarning, match="gradients"):
        vae.decode(latents.clone().requires_grad_()).sample.sum().backward()
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(vae)
    vae.save_pretrained(tmp_path)
    saved = diffusers.AutoencoderKL.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in saved.state_dict().items())
    with torch.no_grad():
        vae.decoder.conv_out.weight += 0.1
        with pytest.warns(UserWarning, match="changed"):
            vae.decode(latents)
        for wrong in (noise(1, 5, 8, 8), noise(4, 8), torch.zeros(1, 4, 0, 8)):
            with pytest.raises(ValueError):
                tilevae.patch(vae).decode(wrong)


def test_the_weights_of_torch_can_be_freed():
    vae, latents = kl(), noise(1, 4, 8, 8)
    with torch.no_grad():
        expected = vae.decode(latents).sample
        tilevae.patch(vae, free=True)
        assert sum(tensor.numel() for tensor in vae.parameters()) == 0 and vae.dtype == torch.float32 and vae.device.type == "cpu"
        assert (vae.decode(latents).sample - expected).abs().max() < TOLERANCE
    for undo in (tilevae.unpatch, tilevae.patch):
        with pytest.raises(RuntimeError, match="freed"):
            undo(vae)
    with pytest.raises(RuntimeError, match="gradients"):
        vae.decode(latents.requires_grad_())


def peaks(vae, size):
    """Predicted bytes at the peak of a decode through a patched VAE, and its tiles."""
    plan = vae._tilevae.vae(vae).plan((1, vae.config.get("latent_channels") or vae.config.z_dim, *size))
    return plan["peak_bytes"], len(plan["tiles"]["tiles"])


def test_tiling_and_slicing_are_heard():
    vae, latents = wan(), noise(2, 4, 1, 12, 12)
    with torch.no_grad():
        whole = vae.decode(latents).sample
        vae.enable_tiling(64, 64, 48, 48)
        tiled = vae.decode(latents).sample
        assert (tiled - whole).abs().max() > 10 * TOLERANCE

        calls = []
        tilevae.patch(vae, progress=lambda done, all: calls.append((done, all)))
        assert peaks(vae, (1, 12, 12))[1] == 4
        assert (vae.decode(latents).sample - whole).abs().max() < TOLERANCE
        assert calls[0][0] == 0 and calls[-1][0] == calls[-1][1] > 4
        vae.enable_slicing()
        calls.clear()
        assert (vae.decode(latents).sample - whole).abs().max() < TOLERANCE
        samples = whole.clamp(-1, 1)
        encoded = vae.encode(samples).latent_dist.mean
        assert sum(done == all for done, all in calls) == 4
        vae.disable_tiling()
        vae.disable_slicing()
        assert peaks(vae, (1, 12, 12))[1] == 1
        assert (vae.encode(samples).latent_dist.mean - encoded).abs().max() < TOLERANCE

        vae.enable_tiling()
        tilevae.patch(vae, tiling="diffusers")
        vae.enable_tiling(64, 64, 48, 48)
        assert (vae.decode(latents).sample - tiled).abs().max() < TOLERANCE

        tilevae.patch(vae, tile_px=32)
        assert peaks(vae, (1, 12, 12))[1] == 9

        image = kl(sample_size=32)
        expected = image.decode(noise(1, 4, 24, 24)).sample
        image.enable_tiling()
        overlapping = image.decode(noise(1, 4, 24, 24)).sample
        tilevae.patch(image)
        assert peaks(image, (24, 24))[1] == 4
        assert (image.decode(noise(1, 4, 24, 24)).sample - expected).abs().max() < TOLERANCE
        tilevae.patch(image, tiling="diffusers")
        assert (image.decode(noise(1, 4, 24, 24)).sample - overlapping).abs().max() < TOLERANCE


def test_weights_that_move_or_round_are_the_same():
    vae, latents = kl(), noise(1, 4, 8, 8)
    with torch.no_grad():
        expected = vae.decode(latents).sample
        tilevae.patch(vae)
        # Warnings are errors here: one would say that diffusers ran the input.
        for dtype in (torch.bfloat16, torch.float32, torch.float16, torch.float32):
            vae.to(dtype)
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr("warnings.warn", lambda text, **_: pytest.fail(text))
                sample = vae.decode(latents.to(dtype)).sample
            assert sample.dtype == dtype and (sample.float() - expected).abs().max() < 0.02
        vae.to(memory_format=torch.channels_last)
        assert not vae._tilevae.weights.have_changed(vae)
        vae.fuse_qkv_projections()
        assert not vae._tilevae.weights.have_changed(vae)
        tilevae.patch(vae.to(torch.float32))
        weight = vae.decoder.conv_out.weight
        weight.data += 1e-4 * weight.data
        with pytest.warns(UserWarning, match="changed"):
            vae.decode(latents)


def test_sdxl_upcasts_a_patched_vae():
    pipe, arguments = pipelines.stable_diffusion_xl()
    pipe.to(torch.float16).set_progress_bar_config(disable=True)
    arguments = {name: value.half() for name, value in arguments.items()} | dict(height=32, width=32, num_inference_steps=2, output_type="np")

    def run():
        return pipe(**arguments, generator=torch.Generator().manual_seed(0)).images

    expected = run()
    tilevae.patch(pipe)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tilevae._patch._original", None)
        assert np.abs(run() - expected).max() < 2e-3
    assert pipe.vae.dtype == torch.float16


def test_hooks_of_accelerate_run():
    accelerate = pytest.importorskip("accelerate")
    vae, before, latents = kl(), torch.nn.Linear(2, 2), noise(1, 4, 8, 8)
    with torch.no_grad():
        expected = vae.decode(latents).sample
        _, first = accelerate.cpu_offload_with_hook(before, torch.device("cpu"))
        vae, _ = accelerate.cpu_offload_with_hook(vae, torch.device("cpu"), prev_module_hook=first)
        # A device that the module before has to leave.
        before.to("meta")
        offloads = []
        first.offload = lambda: offloads.append(1)
        tilevae.patch(vae)
        assert (vae.decode(latents).sample - expected).abs().max() < TOLERANCE and offloads == [1]
        vae.encode(expected)
        assert offloads == [1, 1]

        # As enable_sequential_cpu_offload does.
        vae = tilevae.patch(kl())
        accelerate.cpu_offload(vae, torch.device("cpu"))
        assert next(vae.parameters()).is_meta
        assert (vae.decode(latents).sample - expected).abs().max() < TOLERANCE
        with pytest.raises(ValueError, match="patch before it"):
            tilevae.patch(vae)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_models_are_offloaded():
    pipe, arguments = pipelines.stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    arguments |= dict(height=32, width=32, num_inference_steps=2, output_type="np")

    def run():
        return pipe(**arguments, generator=torch.Generator().manual_seed(0)).images

    expected = run()
    pipe.enable_model_cpu_offload()
    tilevae.patch(pipe)
    assert np.abs(run() - expected).max() < 5e-3 and pipe.vae.device.type == "cpu"


def test_a_budget_counts_the_weights_of_torch():
    vae = kl(block_out_channels=[128, 256])
    held = sum(tensor.numel() * tensor.element_size() for tensor in vae.parameters())
    size = (16, 16)
    both, _ = peaks(tilevae.patch(vae, memory_mib=2000), size)
    with pytest.raises(MemoryError) as refused:
        tilevae.patch(vae, memory_mib=1).decode(noise(1, 4, *size))
    alone, _ = peaks(tilevae.patch(vae, memory_mib=2000, free=True), size)
    assert both - alone == held > 1 << 20
    least = int(str(refused.value).split("at least ")[1].split()[0])
    assert held >> 20 < least <= (both >> 20) + 1
