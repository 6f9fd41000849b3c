use safetensors::SafeTensors;
use tilevae::HostTensor;
use tilevae::io::{Origin, write_tensors};

use super::{Folder, latents, max_diff, root, run, samples};

/// A tensor of a golden file of vae-kl or vae-wan.
fn golden(config: &str, name: &str) -> HostTensor {
    let family = if config.starts_with("wan") { "wan" } else { "kl" };
    let path = root(&format!("crates/vae-{family}/tests/data/{config}/golden.safetensors"));
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let one = Folder::new().path("one.safetensors");
    std::fs::create_dir_all(std::path::Path::new(&one).parent().unwrap()).unwrap();
    safetensors::serialize_to_file([("latents", file.tensor(name).unwrap())], None, one.as_ref()).unwrap();
    latents(&one).values
}

#[test]
fn a_folder_of_save_pretrained_decodes_and_encodes_as_diffusers_does() {
    for (config, case) in [("sd", "1x11x7"), ("sd", "2x7x2"), ("flux", "1x10x9"), ("odd", "1x13x20"), ("odd", "2x9x14")] {
        let folder = Folder::new();
        let model = root(&format!("crates/vae-kl/tests/data/{config}"));
        let model = model.to_str().unwrap();
        let [l, s, out, back] = ["l.safetensors", "s.safetensors", "out.safetensors", "back.safetensors"].map(|name| folder.path(name));
        write_tensors(l.as_ref(), &[("latents", &golden(config, &format!("{case}.latents")))], 4, Origin::default()).unwrap();
        write_tensors(s.as_ref(), &[("samples", &golden(config, &format!("{case}.samples")))], 4, Origin::default()).unwrap();

        for (kind, mode) in [("diffusers", "tiled"), ("off", "untiled")] {
            let tiling = format!("tiling.kind=\"{kind}\"");
            let printed = run(&["decode", "--model", model, &l, "-o", &out, "--set", "io.latent_space=\"vae\"", "--set", &tiling]);
            assert!(kind == "off" || !printed.contains("in 1 tile,"), "{printed}");
            let decoded = samples(&out);
            assert_eq!(decoded.rank, 4);
            assert!(max_diff(&decoded.values, &golden(config, &format!("{case}.{mode}.decoded"))) <= 2e-4);

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
                assert!(max_diff(&latents(&one).values, &golden(config, &format!("{case}.{mode}.{theirs}"))) <= 2e-4, "{config} {case} {ours}");
            }
        }
    }
}

/// Decodes and encodes what a file of `save_pretrained` holds, tiled and not, and compares with diffusers.
#[test]
fn clips_of_wan_decode_and_encode_as_diffusers_does() {
    for (config, case, tile, stride) in
        [("wan21", "2x2x7x4", 32, 24), ("wan21", "1x4x3x5", 32, 24), ("wan22", "1x1x5x3", 32, 16), ("wan22", "1x2x5x2", 32, 16)]
    {
        let folder = Folder::new();
        let model = root(&format!("crates/vae-wan/tests/data/{config}"));
        let model = model.to_str().unwrap();
        let [l, s, out, back] = ["l.safetensors", "s.safetensors", "out.safetensors", "back.safetensors"].map(|name| folder.path(name));
        write_tensors(l.as_ref(), &[("latents", &golden(config, &format!("{case}.latents")))], 5, Origin::default()).unwrap();
        write_tensors(s.as_ref(), &[("samples", &golden(config, &format!("{case}.samples")))], 5, Origin::default()).unwrap();
        let sizes = ["tiling.kind=diffusers".to_owned(), format!("tiling={{tile_px={tile},stride_px={stride}}}")];
        let modes = [("untiled", vec!["--set", "tiling.kind=off"]), ("tiled", vec!["--set", &sizes[0], "--set", &sizes[1]])];
        for (mode, tiling) in modes {
            for chunk in ["model.frames_per_chunk=1", "model.frames_per_chunk=2"] {
                let common = [&["--model", model, "--set", "io.latent_space=vae", "--set", chunk], &tiling[..]].concat();
                let printed = run(&[&["decode", &l, "-o", &out], &common[..]].concat());
                assert!(mode == "untiled" || !printed.contains("in 1 tile,"), "{printed}");
                let decoded = samples(&out);
                assert_eq!(decoded.rank, 5);
                assert!(max_diff(&decoded.values, &golden(config, &format!("{case}.{mode}.decoded"))) <= 2e-4, "{config} {case} {mode}");
                run(&[&["encode", &s, "-o", &back], &common[..]].concat());
                assert!(max_diff(&latents(&back).values, &golden(config, &format!("{case}.{mode}.mean"))) <= 2e-4, "{config} {case} {mode}");
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
    write_tensors(s.as_ref(), &[("samples", &golden("odd", "2x7x8.samples"))], 4, Origin::default()).unwrap();
    run(&["encode", "--model", model, &s, "-o", &own, "--set", "io.latent_space=vae"]);
    run(&["encode", "--model", model, &s, "-o", &passed]);
    let (own, passed) = (latents(&own).values, latents(&passed).values);
    let (mean, std, scaling) = ([0.1, -0.2, 0.3], [1.5, 0.7, 1.1], 0.18215);
    let [_, c, t, h, w] = own.shape();
    let expected = HostTensor::from_fn(own.shape(), |[b, channel, frame, y, x]| {
        (own.row((b * c + channel) * t + frame, y)[x] - mean[channel]) * scaling / std[channel]
    });
    assert_eq!((h, w), (7, 8));
    assert!(max_diff(&passed, &expected) < 1e-5);
}

#[test]
fn threads_do_not_change_a_bit() {
    for (latents, model) in [("chelsea", "models/demo-kl"), ("chelsea-clip", "models/demo-wan")] {
        let folder = Folder::new();
        let outputs = ["1", "2", "5"].map(|threads| {
            let out = folder.path(&format!("{threads}.safetensors"));
            let status = std::process::Command::new(env!("CARGO_BIN_EXE_tilevae"))
                .args(["decode", &format!("examples/latents/{latents}.safetensors"), "-q", "-o", &out, "--model", model])
                .args(["--set", "tiling.tile_px=128"])
                .env("RAYON_NUM_THREADS", threads)
                .current_dir(root(""))
                .status();
            assert!(status.unwrap().success());
            std::fs::read(out).unwrap()
        });
        assert!(outputs[0] == outputs[1] && outputs[1] == outputs[2], "{latents}");
    }
}

#[test]
fn executors_and_workers_do_not_change_a_bit() {
    for (latents, model) in [("chelsea", "models/demo-kl"), ("chelsea-clip", "models/demo-wan")] {
        let folder = Folder::new();
        let decode = |name: &str, settings: &[&str]| {
            let out = folder.path(name);
            let latents = format!("examples/latents/{latents}.safetensors");
            let mut args = vec!["decode", &latents, "-o", &out, "--model", model, "--set", "tiling={kind=\"diffusers\",tile_px=96,stride_px=64}"];
            args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
            (run(&args), std::fs::read(&out).unwrap())
        };
        let (_, expected) = decode("sequential.npy", &[]);
        let multi = [("multi-device", "1", "1"), ("multi-device", "3", "2"), ("multi-device", "auto", "auto")];
        for (kind, workers, threads) in multi.into_iter().chain([("pipelined", "1", "2"), ("pipelined", "2", "1"), ("pipelined", "8", "1")]) {
            let settings = [format!("devices.cpu.workers={workers}"), format!("devices.cpu.threads_per_worker={threads}")];
            let (printed, got) = decode("many.npy", &[&format!("executor.kind={kind}"), &settings[0], &settings[1]]);
            assert!(got == expected, "{latents} with {workers} workers, {kind}");
            assert!(workers == "auto" || workers == "1" || printed.contains(" workers, "), "{printed}");
        }
        // In stacks, too.
        for batch in ["3", "4"] {
            let (_, got) = decode("stacked.npy", &["executor.kind=multi-device", &format!("executor.batch_tiles={batch}"), "devices.cpu.workers=1"]);
            assert!(got == expected, "{latents} in stacks of {batch}");
        }
        // And an encode.
        let [samples, one, many] = ["s.npy", "one.npy", "many.npy"].map(|name| folder.path(name));
        std::fs::write(&samples, expected).unwrap();
        let common = ["--model", model, "--set", "tiling={kind=\"diffusers\",tile_px=96,stride_px=64}"];
        run(&[&["encode", &samples, "-o", &one], &common[..]].concat());
        for kind in ["multi-device", "pipelined"] {
            let executor = format!("executor.kind={kind}");
            run(&[&["encode", &samples, "-o", &many, "--set", &executor, "--set", "devices.cpu.workers=3"], &common[..]].concat());
            assert!(std::fs::read(&one).unwrap() == std::fs::read(&many).unwrap());
        }
    }
}

#[test]
fn hashes_are_those_of_the_values() {
    let folder = Folder::new();
    let [out, image, back] = ["out.npy", "out.png", "back.npy"].map(|name| folder.path(name));
    let printed = run(&["decode", "examples/latents/chelsea.safetensors", "-o", &out, "--hash"]);
    let hash = tilevae::io::sha256(&samples(&out).values);
    assert!(printed.contains(&format!("sha256 {hash}")), "{printed}");
    // The hash is of the samples, not of the file.
    let printed = run(&["decode", "examples/latents/chelsea.safetensors", "-o", &image, "--hash", "--format", "json"]);
    assert!(printed.contains(&format!("\"sha256\": \"{hash}\"")), "{printed}");
    let printed = run(&["encode", &out, "-o", &back, "--hash"]);
    assert!(printed.contains(&tilevae::io::sha256(&latents(&back).values)), "{printed}");
}

#[test]
fn a_bench_compares_executors() {
    let settings = ["--set", "tiling.tile_px=128", "--workers", "1,3"];
    let printed = run(&[&["bench", "examples/latents/chelsea.safetensors"], &settings[..]].concat());
    let rows: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        rows[1..6].iter().map(|row| (row[0], row[1])).collect::<Vec<_>>(),
        [("sequential", "1"), ("multi-device", "1"), ("multi-device", "3"), ("pipelined", "1"), ("pipelined", "3")]
    );
    assert!(rows[2..6].iter().all(|row| row.last() == rows[1].last()) && printed.ends_with("all gave the same bytes\n"), "{printed}");
    let json = run(&["bench", "5x64x96", "--model", "models/demo-wan", "--direction", "encode", "--workers", "2", "--runs", "2", "--format", "json"]);
    assert!(json.contains("\"same_bytes\": true") && json.contains("\"direction\": \"encode\""), "{json}");
    assert!(super::refused(2, &["bench", "64x64", "--executor", "fast"]).contains("multi-device"));
}

#[test]
fn tiles_that_overflow_in_f16_are_run_again_in_f32() {
    let folder = Folder::new();
    let [large, wide, narrow] = ["large.npy", "wide.npy", "narrow.npy"].map(|name| folder.path(name));
    // Values near the largest of f16: finite, but no sum of them is.
    let mut loud = latents(root("examples/latents/chelsea.safetensors").to_str().unwrap()).values;
    loud.data_mut().iter_mut().for_each(|value| *value *= 12_000.0);
    write_tensors(large.as_ref(), &[("latents", &loud)], 4, Origin::default()).unwrap();
    let common = ["--set", "io.latent_space=vae", "--set", "tiling={kind=\"diffusers\",tile_px=128}"];
    run(&[&["decode", &large, "-o", &wide], &common[..]].concat());
    for executor in ["executor.kind=sequential", "executor.kind=multi-device", "executor.kind=pipelined"] {
        let printed = run(&[&["decode", &large, "-o", &narrow, "--set", "devices.dtype.cpu=f16", "--set", executor], &common[..]].concat());
        assert!(printed.contains("20 tiles were not finite and run again in f32"), "{printed}");
        assert!(std::fs::read(&wide).unwrap() == std::fs::read(&narrow).unwrap(), "{executor}");
    }
    let refused = super::refused(
        1,
        &[&["decode", &large, "-o", &narrow, "--set", "model.dtype=f16", "--set", "model.on_non_finite=fail"], &common[..]].concat(),
    );
    assert!(refused.contains("tile 0 failed: the output for a finite input is not finite"), "{refused}");
}

#[test]
fn fast_convolutions_are_near_direct_ones() {
    for (latents, model) in [("chelsea", "models/demo-kl"), ("chelsea-clip", "models/demo-wan")] {
        let folder = Folder::new();
        let latents = format!("examples/latents/{latents}.safetensors");
        let pair = |command: &str, input: &str| {
            ["fast", "strict"].map(|precision| {
                let (out, setting) = (folder.path(&format!("{command}-{precision}.npy")), format!("model.precision={precision}"));
                run(&[command, input, "-o", &out, "--model", model, "--set", &setting]);
                out
            })
        };
        let decoded = pair("decode", &latents);
        let encoded = pair("encode", &decoded[1]);
        for [fast, strict] in [decoded.map(|path| samples(&path).values), encoded.map(|path| super::latents(&path).values)] {
            // The same values would mean that one of them is not what it says.
            let worst = max_diff(&fast, &strict);
            assert!(worst > 0.0 && worst <= 5e-4, "{model}: {worst}");
            assert!(tilevae::metrics::psnr(&fast, &strict) >= 90.0, "{model}: {} dB", tilevae::metrics::psnr(&fast, &strict));
        }
    }
}

#[test]
fn half_types_compute_near_f32() {
    let folder = Folder::new();
    let [a, b] = ["a.safetensors", "b.safetensors"].map(|name| folder.path(name));
    run(&["decode", "examples/latents/chelsea.safetensors", "-o", &a, "--set", "tiling.kind=off"]);
    run(&["decode", "examples/latents/chelsea.safetensors", "-o", &b, "--set", "tiling.kind=off", "--set", "model.dtype=f16"]);
    let psnr = tilevae::metrics::psnr(&samples(&a).values, &samples(&b).values);
    assert!(psnr.is_finite() && psnr > 45.0, "{psnr}");
}

/// Outside the default run, since Burn's ndarray backend takes long to compile: `just ndarray`.
#[cfg(feature = "ndarray")]
#[test]
fn ndarray_decodes_as_diffusers_does() {
    let folder = Folder::new();
    let model = root("crates/vae-kl/tests/data/sd");
    let [l, out] = ["l.safetensors", "out.safetensors"].map(|name| folder.path(name));
    write_tensors(l.as_ref(), &[("latents", &golden("sd", "1x11x7.latents"))], 4, Origin::default()).unwrap();
    let model = model.to_str().unwrap();
    run(&["decode", "--model", model, &l, "-o", &out, "--device", "ndarray", "--set", "io.latent_space=vae"]);
    assert!(max_diff(&samples(&out).values, &golden("sd", "1x11x7.tiled.decoded")) <= 2e-4);
}
