use image::ImageReader;
use tilevae::io::{Origin, write_tensors};
use tilevae::{HostTensor, metrics};

use super::{Folder, latents, max_diff, root, run, samples};

const EXAMPLE: &str = "examples/latents/chelsea.safetensors";
const PHOTOGRAPH: &str = "examples/images/chelsea.png";

/// An image as samples.
fn image(path: &str) -> HostTensor {
    let image = ImageReader::open(path).unwrap().with_guessed_format().unwrap().decode().unwrap().to_rgb8();
    let [width, height] = [image.width(), image.height()].map(|side| side as usize);
    HostTensor::from_fn([1, 3, 1, height, width], |[_, c, _, y, x]| f32::from(image.get_pixel(x as u32, y as u32)[c]) / 127.5 - 1.0)
}

#[test]
fn the_example_decodes_into_the_photograph() {
    let folder = Folder::new();
    let original = image(root(PHOTOGRAPH).to_str().unwrap());
    for (name, least) in [("out.png", 27.0), ("out.jpg", 27.0), ("out.webp", 27.0), ("out.tiff", 27.0)] {
        let out = folder.path(name);
        run(&["decode", EXAMPLE, "-o", &out]);
        let psnr = metrics::psnr(&image(&out), &original);
        assert!(psnr >= least, "{name}: {psnr} dB");
    }
    assert_eq!(folder.files().len(), 4);
}

#[test]
fn an_image_of_any_size_comes_back_in_its_size() {
    let folder = Folder::new();
    let odd = folder.path("odd.png");
    image::RgbImage::from_fn(45, 37, |x, y| image::Rgb([(5 * x) as u8, (6 * y) as u8, 90])).save(&odd).unwrap();
    let [encoded, decoded, rounded] = ["l.safetensors", "d.png", "r.png"].map(|name| folder.path(name));
    run(&["encode", &odd, "-o", &encoded]);
    let tensor = latents(&encoded);
    assert_eq!((tensor.values.shape(), tensor.origin.size), ([1, 16, 1, 5, 6], Some([37, 45])));
    run(&["decode", &encoded, "-o", &decoded]);
    let printed = run(&["roundtrip", &odd, "-o", &rounded]);
    assert!(printed.starts_with("PSNR ") && printed.contains("SSIM "), "{printed}");
    assert_eq!(image(&decoded).shape(), [1, 3, 1, 37, 45]);
    assert_eq!(image(&decoded), image(&rounded));
}

#[test]
fn raw_tensors_keep_their_rank_and_are_not_rounded() {
    let folder = Folder::new();
    let [flat, tall, npy, out] = ["flat.safetensors", "tall.safetensors", "l.npy", "out.safetensors"].map(|name| folder.path(name));
    let latents = latents(root(EXAMPLE).to_str().unwrap()).values;
    write_tensors(flat.as_ref(), &[("latents", &latents)], 4, Origin::default()).unwrap();
    write_tensors(tall.as_ref(), &[("anything", &latents)], 5, Origin::default()).unwrap();
    write_tensors(npy.as_ref(), &[("latents", &latents)], 4, Origin::default()).unwrap();
    let decoded = [(&flat, 4), (&tall, 5), (&npy, 4)].map(|(input, rank)| {
        run(&["decode", input, "-o", &out]);
        let tensor = samples(&out);
        assert_eq!(tensor.rank, rank);
        tensor.values
    });
    assert_eq!(decoded[0].shape(), [1, 3, 1, 304, 456]);
    assert!(decoded[0] == decoded[1] && decoded[1] == decoded[2]);

    let again = folder.path("again.npy");
    run(&["decode", &flat, "-o", &again]);
    assert_eq!(samples(&again).values, decoded[0]);
    let printed = run(&["roundtrip", &out, "--format", "json"]);
    assert!(printed.contains("\"psnr_db\""), "{printed}");
}

#[test]
fn batches_go_in_and_out() {
    let folder = Folder::new();
    let [a, b, encoded, out] = ["a.png", "b.png", "l.safetensors", "out.png"].map(|name| folder.path(name));
    for (path, shade) in [(&a, 60), (&b, 200)] {
        image::RgbImage::from_fn(24, 16, |x, y| image::Rgb([shade, (x * 9) as u8, (y * 9) as u8])).save(path).unwrap();
    }
    run(&["encode", &a, &b, "-o", &encoded]);
    assert_eq!(latents(&encoded).values.shape(), [2, 16, 1, 2, 3]);
    run(&["decode", &encoded, "-o", &out]);
    assert_eq!(folder.files(), ["a.png", "b.png", "l.safetensors", "out-0.png", "out-1.png"]);

    // Each image is as if it were alone.
    run(&["encode", &a, "-o", &encoded]);
    let alone = folder.path("alone.png");
    run(&["decode", &encoded, "-o", &alone]);
    assert!(max_diff(&image(&alone), &image(&folder.path("out-0.png"))) < 0.01);
}

#[test]
fn a_draw_is_seeded_and_the_same_whatever_the_tiles() {
    let folder = Folder::new();
    let encode = |name: &str, settings: &[&str]| {
        let out = folder.path(name);
        let mut args = vec!["encode", PHOTOGRAPH, "-o", &out];
        args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        run(&args);
        latents(&out).values
    };
    let sample = "io.posterior=sample";
    let (mode, first) = (encode("mode.safetensors", &[]), encode("1.safetensors", &[sample]));
    assert_eq!(first, encode("2.safetensors", &[sample]));
    assert_ne!(first, encode("3.safetensors", &[sample, "io.seed=1"]));
    // Tiles change the moments a little, the noise not at all.
    let (mode_off, off) = (encode("4.safetensors", &["tiling.kind=off"]), encode("5.safetensors", &[sample, "tiling.kind=off"]));
    let noise = |drawn: &HostTensor, mode: &HostTensor| HostTensor::from_fn(mode.shape(), |[_, c, _, y, x]| drawn.row(c, y)[x] - mode.row(c, y)[x]);
    let (tiled, untiled) = (noise(&first, &mode), noise(&off, &mode_off));
    let scale = tiled.data().iter().map(|value| value.abs()).sum::<f32>();
    let differing = tiled.data().iter().zip(untiled.data()).map(|(a, b)| (a - b).abs()).sum::<f32>();
    assert!(scale > 0.0 && differing < 0.2 * scale, "{differing} of {scale}");
}

#[test]
fn other_grids_and_blends() {
    let folder = Folder::new();
    let original = image(root(PHOTOGRAPH).to_str().unwrap());
    for (name, settings) in [
        ("uniform", ["tiling.kind=uniform", "tiling.tile_px=192", "blend.kind=feather"]),
        ("splits", ["tiling.kind=uniform", "tiling.splits=[2, 3]", "blend.kind=cascade"]),
        ("sized", ["tiling={kind=\"diffusers\",tile_px=[128, 256]}", "tiling.overlap=0.5", "tiling.skip_redundant=true"]),
        ("stride", ["tiling={kind=\"diffusers\",tile_px=128}", "tiling.stride_px=[96, 64]", "blend.kind=feather"]),
    ] {
        let out = folder.path(&format!("{name}.png"));
        let mut args = vec!["decode", EXAMPLE, "-o", &out];
        args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        let printed = run(&args);
        assert!(!printed.contains("in 1 tile,"), "{printed}");
        let psnr = metrics::psnr(&image(&out), &original);
        assert!(psnr > 26.0, "{name}: {psnr} dB");
    }
}
