"""Real pipelines of diffusers with tiny seeded weights, patched against unpatched."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput

import tilevae

TOLERANCE = 2e-4


def kl(**config):
    torch.manual_seed(0)
    sizes = dict(block_out_channels=[32, 64], down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, layers_per_block=1)
    return diffusers.AutoencoderKL(**(sizes | dict(sample_size=64) | config)).eval()


def wan(base_dim=16, dim_mult=(1, 2, 2, 2)):
    torch.manual_seed(0)
    return diffusers.AutoencoderKLWan(base_dim=base_dim, z_dim=4, dim_mult=list(dim_mult), num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4).eval()


def qwen():
    torch.manual_seed(0)
    return diffusers.AutoencoderKLQwenImage(base_dim=16, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4).eval()


def flux2_vae():
    torch.manual_seed(0)
    sizes = dict(block_out_channels=[32, 64], down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, layers_per_block=1)
    return diffusers.AutoencoderKLFlux2(**sizes, latent_channels=4, sample_size=64).eval()


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


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


NO_TEXT = dict(text_encoder=None, tokenizer=None)
EMBEDS = dict(prompt_embeds=noise(1, 7, 32), negative_prompt_embeds=noise(1, 7, 32))


def unet(**config):
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=16, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=32, **config,
    )  # fmt: skip


def stable_diffusion(kind=diffusers.StableDiffusionPipeline):
    scheduler = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
    return kind(unet=unet(), vae=kl(), scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False, **NO_TEXT), EMBEDS


def image_to_image():
    pipe, arguments = stable_diffusion(diffusers.StableDiffusionImg2ImgPipeline)
    return pipe, arguments | dict(image=noise(1, 3, 32, 32).clamp(-1, 1) / 2 + 0.5, strength=0.9, height=None, width=None)


def inpainting():
    pipe, arguments = stable_diffusion(diffusers.StableDiffusionInpaintPipeline)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, :] = 1
    return pipe, arguments | dict(image=noise(1, 3, 32, 32).clamp(-1, 1) / 2 + 0.5, mask_image=mask)


def stable_diffusion_xl():
    conditioned = unet(addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=80, use_linear_projection=True)
    scheduler = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
    pipe = diffusers.StableDiffusionXLPipeline(
        unet=conditioned, vae=kl(force_upcast=True), scheduler=scheduler, text_encoder_2=None, tokenizer_2=None, add_watermarker=False, **NO_TEXT
    )
    return pipe, EMBEDS | dict(pooled_prompt_embeds=noise(1, 32), negative_pooled_prompt_embeds=noise(1, 32))


def flux():
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    vae = kl(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=1.5)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = diffusers.FluxPipeline(scheduler=scheduler, vae=vae, text_encoder_2=None, tokenizer_2=None, transformer=transformer, **NO_TEXT)
    return pipe, dict(prompt_embeds=noise(1, 7, 32), pooled_prompt_embeds=noise(1, 32), guidance_scale=1.0)


def flux2():
    torch.manual_seed(0)
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
        timestep_guidance_channels=256, axes_dims_rope=[4, 4, 4, 4],
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.Flux2Pipeline(scheduler=scheduler, vae=flux2_vae(), transformer=transformer, **NO_TEXT), dict(prompt_embeds=noise(1, 7, 16))


def wan_video():
    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=32, freq_dim=256, ffn_dim=32,
        num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    pipe = diffusers.WanPipeline(transformer=transformer, vae=wan(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0), **NO_TEXT)
    return pipe, EMBEDS | dict(num_frames=5)


def wan_image_to_video():
    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=12, out_channels=4, text_dim=32, freq_dim=256, ffn_dim=32,
        num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    pipe = diffusers.WanImageToVideoPipeline(
        transformer=transformer, vae=wan(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0), image_encoder=None, image_processor=None, **NO_TEXT
    )
    return pipe, EMBEDS | dict(num_frames=5, image=noise(1, 3, 32, 32).clamp(-1, 1) / 2 + 0.5)


def qwen_image():
    torch.manual_seed(0)
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
        guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    pipe = diffusers.QwenImagePipeline(transformer=transformer, vae=qwen(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), **NO_TEXT)
    return pipe, dict(prompt_embeds=noise(1, 7, 16), prompt_embeds_mask=torch.ones(1, 7, dtype=torch.long), true_cfg_scale=1.0)


@pytest.mark.parametrize(
    "make", [stable_diffusion, image_to_image, inpainting, stable_diffusion_xl, flux, flux2, wan_video, wan_image_to_video, qwen_image]
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


def test_settings_are_checked():
    for wrong, kind in (({"memory_mib": 1}, MemoryError), ({"tile_px": -3}, ValueError), ({"norm": "local"}, ValueError), ({"devices": ["gpu:9"]}, ValueError)):
        with pytest.raises(kind):
            vae = tilevae.Vae(kl(), **wrong)
            vae.decode(np.zeros((1, 4, 64, 64), np.float32))
    with pytest.raises(TypeError, match="no setting"):
        tilevae.Vae(kl(), tiles=3)
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
print("ready", flush=True)
try:
    vae.decode(np.zeros((1, 16, 512, 512), np.float32))
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(7)
"""


def test_ctrl_c_ends_a_run():
    model = os.path.join(os.path.dirname(__file__), "../../../models/demo-kl")
    child = subprocess.Popen([sys.executable, "-c", CHILD, model], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    threading.Event().wait(1)
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 7
    gc.collect()


def test_the_command_is_there():
    shown = subprocess.run([os.path.join(os.path.dirname(sys.executable), "tilevae"), "models"], capture_output=True, text=True)
    assert shown.returncode == 0 and "AutoencoderKLWan" in shown.stdout
