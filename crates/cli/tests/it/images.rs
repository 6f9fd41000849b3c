use image::codecs::gif::GifEncoder;
use image::{Frame, Rgb, RgbImage, Rgba, RgbaImage};
use tilevae::HostTensor;
use tilevae::io::{Origin, write_tensors};

use super::{Folder, latents, refused, run, tilevae};

const VIDEO: &str = "crates/vae-wan/tests/data/wan21";

fn animation(folder: &Folder, name: &str, frames: u8) -> String {
    let path = folder.path(name);
    let mut encoder = GifEncoder::new(std::fs::File::create(&path).unwrap());
    for frame in 0..frames {
        encoder.encode_frame(Frame::new(RgbaImage::from_pixel(16, 16, Rgba([40 * frame, 90, 0, 255])))).unwrap();
    }
    drop(encoder);
    path
}

#[test]
fn half_a_image_is_none() {
    let folder = Folder::new();
    let [path, out] = ["photo.jpg", "l.safetensors"].map(|name| folder.path(name));
    RgbImage::from_fn(64, 64, |x, y| Rgb([(x * y) as u8, (3 * x) as u8, (5 * y) as u8])).save(&path).unwrap();
    let content = std::fs::read(&path).unwrap();
    std::fs::write(&path, &content[..content.len() / 2]).unwrap();
    for args in [vec!["encode", &path, "-o", &out], vec!["roundtrip", &path], vec!["plan", &path]] {
        let message = refused(1, &args);
        assert!(message.contains("photo.jpg is incomplete: its data ends after row") && message.contains("of 64"), "{message}");
    }
    assert_eq!(folder.files(), ["photo.jpg"]);
}

#[test]
fn animated_images_are_clips() {
    let folder = Folder::new();
    let out = folder.path("l.safetensors");
    // An image by its name.
    for path in [animation(&folder, "a.png", 5), animation(&folder, "a.gif", 5)] {
        run(&["encode", &path, "-o", &out, "--model", VIDEO]);
        assert_eq!(latents(&out).values.shape(), [1, 4, 2, 2, 2]);
        let planned = run(&["plan", &path, "--model", VIDEO]);
        assert!(planned.contains("1x3x5x16x16"), "{planned}");
        for args in [vec!["encode", &path, "-o", &out], vec!["plan", &path], vec!["encode", &path, &path, "-o", &out, "--model", VIDEO]] {
            let message = refused(2, &args);
            assert!(message.contains("5 frames"), "{message}");
        }
    }
    run(&["encode", &animation(&folder, "still.gif", 1), "-o", &out]);
    assert_eq!(latents(&out).rank, 4);
}

#[test]
fn alpha_is_told_once_and_laid_over_a_colour() {
    let folder = Folder::new();
    let [a, b, out] = ["a.png", "b.png", "l.safetensors"].map(|name| folder.path(name));
    for path in [&a, &b] {
        RgbaImage::from_fn(16, 16, |x, _| Rgba([200, 100, 0, if x < 8 { 0 } else { 255 }])).save(path).unwrap();
    }
    let output = tilevae(&["encode", &a, &b, "-o", &out]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && message.matches("io.background").count() == 1 && message.contains("a.png (and 1 more)"), "{message}");
    let dropped = latents(&out).values;
    let output = tilevae(&["encode", &a, &b, "-o", &out, "--set", "io.background=white"]);
    assert!(output.status.success() && !String::from_utf8_lossy(&output.stderr).contains("transparent"));
    let over = latents(&out).values;

    // What is opaque says nothing, and gives the same.
    RgbaImage::from_pixel(16, 16, Rgba([200, 100, 0, 255])).save(&a).unwrap();
    RgbImage::from_fn(16, 16, |x, _| if x < 8 { Rgb([255; 3]) } else { Rgb([200, 100, 0]) }).save(&b).unwrap();
    let output = tilevae(&["encode", &a, &b, "-o", &out]);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("transparent"));
    let opaque = latents(&out).values;
    let half = |tensor: &HostTensor, item: usize| tensor.data()[item * tensor.data().len() / 2..(item + 1) * tensor.data().len() / 2].to_vec();
    assert_eq!([half(&dropped, 0), half(&over, 0)], [half(&opaque, 0), half(&opaque, 1)]);

    let message = refused(2, &["encode", &a, "-o", &out, "--set", "io.background=red"]);
    assert!(message.contains("io.background") && message.contains("#rrggbb"), "{message}");
}

#[test]
fn what_a_format_cannot_hold_is_refused_before_the_work() {
    let folder = Folder::new();
    let wide = |width: usize| {
        let path = folder.path(&format!("{width}.npy"));
        write_tensors(path.as_ref(), &[("latents", &HostTensor::zeros([1, 16, 1, 1, width]))], 4, Origin::default()).unwrap();
        path
    };
    for (latents, name, limit) in [(wide(2048), "o.webp", "16383"), (wide(8192), "o.jpg", "65535"), (wide(8192), "o.gif", "65535")] {
        let message = refused(2, &["decode", &latents, "-o", &folder.path(name), "--format", "json"]);
        assert!(message.contains(limit) && message.contains(".png") && !message.contains("tile_"), "{message}");
    }
    std::fs::write(folder.path("file"), "no folder").unwrap();
    let message = refused(1, &["decode", &wide(2), "-o", &folder.path("file/out.png"), "--format", "json"]);
    assert!(message.contains("out.png cannot be written") && !message.contains("tile_"), "{message}");
}
