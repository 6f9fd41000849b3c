use safetensors::SafeTensors;
use tilevae::Block;
use tilevae::io::write_tensors;

use super::{Folder, latents, max_diff, root, run, samples};

/// A tensor of a golden file of vae-kl, as `[b, c, 1, h, w]`.
fn golden(config: &str, name: &str) -> Block {
    let bytes = std::fs::read(root(&format!("crates/vae-kl/tests/data/{config}/golden.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let &[b, c, h, w] = view.shape() else { panic!("{name}") };
    let values = view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
    Block::new([b, c, 1, h, w], values.collect()).unwrap()
}

#[test]
fn a_folder_of_save_pretrained_decodes_and_encodes_as_diffusers_does() {
    for (config, case) in [("sd", "1x11x7"), ("sd", "2x7x2"), ("flux", "1x10x9"), ("odd", "1x13x20"), ("odd", "2x9x14")] {
        let folder = Folder::new();
        let model = root(&format!("crates/vae-kl/tests/data/{config}"));
        let model = model.to_str().unwrap();
        let [l, s, out, back] = ["l.safetensors", "s.safetensors", "out.safetensors", "back.safetensors"].map(|name| folder.path(name));
        write_tensors(l.as_ref(), &[("latents", &golden(config, &format!("{case}.latents")))], 4, None).unwrap();
        write_tensors(s.as_ref(), &[("samples", &golden(config, &format!("{case}.samples")))], 4, None).unwrap();

        for (kind, mode) in [("diffusers", "tiled"), ("off", "untiled")] {
            let tiling = format!("tiling.kind=\"{kind}\"");
            let printed = run(&["decode", "--model", model, &l, "-o", &out, "--set", "io.latent_space=\"vae\"", "--set", &tiling]);
            assert!(kind == "off" || !printed.contains("in 1 tile,"), "{printed}");
            let decoded = samples(&out);
            assert_eq!(decoded.rank, 4);
            assert!(max_diff(&decoded.block, &golden(config, &format!("{case}.{mode}.decoded"))) <= 2e-4);

            run(&[
                "encode",
                "--model",
                model,
                &s,
                "-o",
                &back,
                "--set",
                "io.posterior=\"moments\"",
                "--set",
                "io.latent_space=vae",
                "--set",
                &tiling,
            ]);
            let bytes = std::fs::read(&back).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            for (ours, theirs) in [("latents", "mean"), ("mean", "mean"), ("logvar", "logvar")] {
                let one = Folder::new().path("one.safetensors");
                std::fs::create_dir_all(std::path::Path::new(&one).parent().unwrap()).unwrap();
                safetensors::serialize_to_file([("latents", file.tensor(ours).unwrap())], None, one.as_ref()).unwrap();
                assert!(max_diff(&latents(&one).block, &golden(config, &format!("{case}.{mode}.{theirs}"))) <= 2e-4, "{config} {case} {ours}");
            }
        }
    }
}

#[test]
fn latent_spaces_differ_by_the_configured_scaling() {
    let folder = Folder::new();
    let model = root("crates/vae-kl/tests/data/odd");
    let model = model.to_str().unwrap();
    let [s, own, passed] = ["s.safetensors", "own.safetensors", "passed.safetensors"].map(|name| folder.path(name));
    write_tensors(s.as_ref(), &[("samples", &golden("odd", "2x7x8.samples"))], 4, None).unwrap();
    run(&["encode", "--model", model, &s, "-o", &own, "--set", "io.latent_space=vae"]);
    run(&["encode", "--model", model, &s, "-o", &passed]);
    let (own, passed) = (latents(&own).block, latents(&passed).block);
    let (mean, std, scaling) = ([0.1, -0.2, 0.3], [1.5, 0.7, 1.1], 0.18215);
    let [_, c, t, h, w] = own.shape();
    let expected = Block::from_fn(own.shape(), |[b, channel, frame, y, x]| {
        (own.row((b * c + channel) * t + frame, y)[x] - mean[channel]) * scaling / std[channel]
    });
    assert_eq!((h, w), (7, 8));
    assert!(max_diff(&passed, &expected) < 1e-5);
}

#[test]
fn threads_do_not_change_a_bit() {
    let folder = Folder::new();
    let outputs = ["1", "2", "5"].map(|threads| {
        let out = folder.path(&format!("{threads}.safetensors"));
        let status = std::process::Command::new(env!("CARGO_BIN_EXE_tilevae"))
            .args(["decode", "examples/latents/chelsea.safetensors", "-q", "-o", &out])
            .env("RAYON_NUM_THREADS", threads)
            .current_dir(root(""))
            .status();
        assert!(status.unwrap().success());
        std::fs::read(out).unwrap()
    });
    assert!(outputs[0] == outputs[1] && outputs[1] == outputs[2]);
}

#[test]
fn half_types_compute_near_f32() {
    let folder = Folder::new();
    let [a, b] = ["a.safetensors", "b.safetensors"].map(|name| folder.path(name));
    run(&["decode", "examples/latents/chelsea.safetensors", "-o", &a, "--set", "tiling.kind=off"]);
    run(&["decode", "examples/latents/chelsea.safetensors", "-o", &b, "--set", "tiling.kind=off", "--set", "model.dtype=auto"]);
    let psnr = tilevae::metrics::psnr(&samples(&a).block, &samples(&b).block);
    assert!(psnr.is_finite() && psnr > 45.0, "{psnr}");
}

/// Outside the default run, since Burn's ndarray backend takes long to compile: `just ndarray`.
#[cfg(feature = "ndarray")]
#[test]
fn ndarray_decodes_as_diffusers_does() {
    let folder = Folder::new();
    let model = root("crates/vae-kl/tests/data/sd");
    let [l, out] = ["l.safetensors", "out.safetensors"].map(|name| folder.path(name));
    write_tensors(l.as_ref(), &[("latents", &golden("sd", "1x11x7.latents"))], 4, None).unwrap();
    let model = model.to_str().unwrap();
    run(&["decode", "--model", model, &l, "-o", &out, "--device", "ndarray", "--set", "io.latent_space=vae"]);
    assert!(max_diff(&samples(&out).block, &golden("sd", "1x11x7.tiled.decoded")) <= 2e-4);
}
