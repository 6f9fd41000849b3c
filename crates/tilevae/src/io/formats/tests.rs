use std::io::Cursor;
use std::path::PathBuf;

use ::tiff::encoder::{Compression, DeflateLevel, TiffEncoder, TiffValue, colortype};
use image::{GrayImage, ImageEncoder, Rgb, RgbImage, RgbaImage};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use tempfile::TempDir;

use super::super::images::{image_size, open_image, read_image};
use super::super::{Fps, IoError};
use super::*;

/// A file with a name that says nothing.
fn file(folder: &TempDir, content: &[u8]) -> PathBuf {
    let path = folder.path().join("image");
    std::fs::write(&path, content).unwrap();
    path
}

fn read(folder: &TempDir, content: &[u8]) -> Result<DynamicImage, IoError> {
    read_image(&file(folder, content))
}

fn frames(folder: &TempDir, content: &[u8]) -> Result<(Vec<RgbaImage>, Option<Fps>), IoError> {
    let image = open_image(&file(folder, content))?;
    let info = image.info();
    let frames = image.frames()?.map(|frame| Ok(frame?.into_rgba8())).collect::<Result<Vec<_>, IoError>>()?;
    assert_eq!(frames.len(), info.frames);
    Ok((frames, info.fps))
}

/// Waves and noise.
fn image(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(9 * x + 5 * y) as u8, (x * x + 3 * y) as u8, ((x * 7) ^ (y * 31)) as u8]))
}

fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut content = Cursor::new(Vec::new());
    image.write_to(&mut content, format).unwrap();
    content.into_inner()
}

/// JPEG files of all kinds, by name.
fn jpegs() -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let (color, grey) = (image(45, 37), GrayImage::from_fn(45, 37, |x, y| image::Luma([(x * 5 + y * y) as u8])));
    for (sampling, name) in [(SamplingFactor::F_1_1, "4:4:4"), (SamplingFactor::F_2_1, "4:2:2"), (SamplingFactor::F_2_2, "4:2:0")] {
        for is_progressive in [false, true] {
            for restart in [0, 4] {
                for (pixels, kind) in [(color.as_raw(), ColorType::Rgb), (grey.as_raw(), ColorType::Luma)] {
                    let mut content = Vec::new();
                    let mut encoder = Encoder::new(&mut content, 85);
                    encoder.set_sampling_factor(sampling);
                    encoder.set_progressive(is_progressive);
                    encoder.set_restart_interval(restart);
                    encoder.set_optimized_huffman_tables(is_progressive);
                    encoder.encode(pixels, 45, 37, kind).unwrap();
                    files.push((format!("{name}, progressive {is_progressive}, restart {restart}, {kind:?}"), content));
                }
            }
        }
    }
    files
}

#[test]
fn cut_jpegs_are_told_by_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in jpegs() {
        let whole = read(&folder, &content).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!([whole.width(), whole.height()], [45, 37]);
        for end in 2..content.len() {
            let cut = &content[..end];
            let fault = jpeg::check(cut).unwrap_err();
            assert!(matches!(&fault, Fault::Incomplete(missing) if missing.starts_with("its ")), "{name}: {end} of {}: {fault:?}", content.len());
            // An end marker makes it whole only where a scan has ended and no component is missing, but for bits that say nothing.
            if jpeg::check(&[cut, &[0xFF, 0xD9]].concat()).is_ok() {
                let next = content[end - 1..].windows(2).take(3).any(|pair| matches!(pair, [0xFF, 0xC4 | 0xDA | 0xD9]));
                assert!(next, "{name}: {end} of {}", content.len());
            }
        }
        let error = read(&folder, &content[..content.len() * 9 / 10]).unwrap_err();
        assert!(error.to_string().contains("is incomplete: its data ends after"), "{name}: {error}");
        let longer = [&content[..], b"what follows the end marker"].concat();
        assert_eq!(read(&folder, &longer).unwrap(), whole, "{name}");
    }
}

#[test]
fn holes_in_jpegs_are_found() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in jpegs().into_iter().filter(|(name, _)| name.contains("restart 4")) {
        let restarts: Vec<usize> =
            content.windows(2).enumerate().filter(|(_, pair)| pair[0] == 0xFF && (0xD0..=0xD7).contains(&pair[1])).map(|(at, _)| at).collect();
        // An interval is lost.
        let lost = [&content[..restarts[0]], &content[restarts[1]..]].concat();
        assert!(matches!(read(&folder, &lost), Err(IoError::Damaged { .. } | IoError::Truncated { .. })), "{name}");
    }
}

/// One file of each kind, none of which may be cut anywhere.
fn kinds() -> Vec<(&'static str, Vec<u8>)> {
    let color = DynamicImage::ImageRgb8(image(23, 19));
    let alpha = DynamicImage::ImageRgba8(color.to_rgba8());
    let deep = DynamicImage::ImageRgb16(color.to_rgb16());
    vec![
        ("png", encode(&color, ImageFormat::Png)),
        ("png of 16 bits", encode(&deep, ImageFormat::Png)),
        ("apng", apng(3)),
        ("webp", encode(&color, ImageFormat::WebP)),
        ("webp with alpha", encode(&alpha, ImageFormat::WebP)),
        ("animated webp", animated_webp(3)),
        ("tiff", encode(&color, ImageFormat::Tiff)),
        ("compressed tiff", pages(1, Compression::Lzw)),
        ("tiff of pages", pages(3, Compression::Uncompressed)),
        ("gif", encode(&color, ImageFormat::Gif)),
        ("ppm", encode(&color, ImageFormat::Pnm)),
    ]
}

#[test]
fn no_kind_of_image_may_be_cut() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in kinds() {
        let whole = frames(&folder, &content).unwrap_or_else(|error| panic!("{name}: {error}"));
        for end in (0..content.len()).rev() {
            let Ok(read) = frames(&folder, &content[..end]) else { continue };
            // What pads a file to a whole number of words may be missing.
            assert!(read == whole && end + 4 > content.len(), "{name} was read from {end} of {} bytes", content.len());
        }
    }
}

#[test]
fn damage_to_a_png_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let content = encode(&DynamicImage::ImageRgb8(image(23, 19)), ImageFormat::Png);
    let whole = read(&folder, &content).unwrap();
    for place in 0..content.len() {
        for bit in [0, 5] {
            let mut damaged = content.clone();
            damaged[place] ^= 1 << bit;
            if let Ok(read) = read(&folder, &damaged) {
                assert_eq!(read, whole, "byte {place}");
            }
        }
    }
}

/// Frames whose left columns are those of the frame before.
fn moving(frame: u32) -> RgbaImage {
    RgbaImage::from_fn(16, 8, |x, y| image::Rgba([(x * 16) as u8, (y * 30) as u8, (60 * frame) as u8, 255]))
}

fn apng(count: u32) -> Vec<u8> {
    let mut content = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut content, 16, 8);
    encoder.set_color(::png::ColorType::Rgba);
    encoder.set_animated(count, 0).unwrap();
    let mut writer = encoder.write_header().unwrap();
    for frame in 0..count {
        writer.set_frame_delay(1 + frame as u16, 25).unwrap();
        writer.write_image_data(moving(frame).as_raw()).unwrap();
    }
    writer.finish().unwrap();
    content
}

/// A frame that covers the right half of the canvas and clears it after itself, between frames that cover it all.
fn animated_webp(count: u32) -> Vec<u8> {
    let chunk = |name: &[u8; 4], content: &[u8]| {
        [&name[..], &(content.len() as u32).to_le_bytes(), content, if content.len().is_multiple_of(2) { &[] } else { &[0] }].concat()
    };
    let three = |value: u32| value.to_le_bytes()[..3].to_vec();
    let mut content = b"WEBP".to_vec();
    content.extend(chunk(b"VP8X", &[&[0x12, 0, 0, 0][..], &three(15), &three(7)].concat()));
    content.extend(chunk(b"ANIM", &[255, 255, 255, 255, 0, 0]));
    for frame in 0..count {
        let [left, clears] = if frame == 1 { [8, 1] } else { [0, 0] };
        let image = image::imageops::crop_imm(&moving(frame), left, 0, 16 - left, 8).to_image();
        let still = encode(&DynamicImage::ImageRgba8(image), ImageFormat::WebP);
        let header = [three(left / 2), three(0), three(15 - left), three(7), three(40 * (frame + 1)), vec![clears as u8]].concat();
        content.extend(chunk(b"ANMF", &[&header[..], &still[12..]].concat()));
    }
    [&b"RIFF"[..], &(content.len() as u32).to_le_bytes(), &content].concat()
}

fn pages(count: u32, compression: Compression) -> Vec<u8> {
    let mut content = Cursor::new(Vec::new());
    let mut encoder = TiffEncoder::new(&mut content).unwrap().with_compression(compression);
    for page in 0..count {
        encoder.write_image::<colortype::RGBA8>(16, 8, moving(page).as_raw()).unwrap();
    }
    content.into_inner()
}

#[test]
fn animations_and_pages_are_read_whole() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [("apng", apng(4)), ("webp", animated_webp(4)), ("tiff", pages(4, Compression::Uncompressed))] {
        let (frames, fps) = frames(&folder, &content).unwrap();
        // Frames of 40, 80, 120 and 160 ms.
        assert_eq!(fps, if name == "tiff" { None } else { Fps::new(10, 1) }, "{name}");
        for (index, image) in (0..).zip(&frames) {
            let whole = moving(index);
            let expected = |x: u32, y: u32| if name == "webp" && index == 1 && x < 8 { *moving(0).get_pixel(x, y) } else { *whole.get_pixel(x, y) };
            assert!(image.enumerate_pixels().all(|(x, y, pixel)| *pixel == expected(x, y)), "{name}, frame {index}");
        }
        let error = read(&folder, &content).unwrap_err();
        assert!(matches!(error, IoError::Animated { frames: 4, .. }) && error.is_usage() && error.to_string().contains("4 frames"), "{error}");
    }
    // An animation that says it has more frames than are there.
    let mut fewer = apng(3);
    let place = fewer.windows(4).position(|name| name == b"acTL").unwrap();
    fewer[place + 7] = 5;
    let checksum = crc(&fewer[place..place + 12]);
    fewer[place + 12..place + 16].copy_from_slice(&checksum.to_be_bytes());
    let error = read(&folder, &fewer).unwrap_err();
    assert!(error.to_string().contains("3 of 5 frames"), "{error}");
}

/// Of PNG chunks.
fn crc(bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(u32::MAX, |sum, &byte| (0..8).fold(sum ^ u32::from(byte), |sum, _| if sum & 1 > 0 { sum >> 1 ^ 0xEDB8_8320 } else { sum >> 1 }))
}

#[test]
fn what_a_frame_clears_is_clear() {
    let folder = tempfile::tempdir().unwrap();
    let mut content = animated_webp(3);
    // The last frame is to cover the left half only, and no more of it to be seen than that.
    let last = content.windows(4).rposition(|name| name == b"ANMF").unwrap();
    let still = encode(&DynamicImage::ImageRgba8(RgbaImage::from_pixel(8, 8, image::Rgba([9, 9, 9, 255]))), ImageFormat::WebP);
    content.truncate(last + 8 + 16);
    content[last + 8 + 6] = 7;
    content.extend(&still[12..]);
    let size = (content.len() - last - 8) as u32;
    content[last + 4..last + 8].copy_from_slice(&size.to_le_bytes());
    let total = (content.len() - 8) as u32;
    content[4..8].copy_from_slice(&total.to_le_bytes());
    let (frames, _) = frames(&folder, &content).unwrap();
    assert!(frames[2].enumerate_pixels().all(|(x, _, pixel)| pixel.0 == if x < 8 { [9, 9, 9, 255] } else { [0; 4] }));
}

#[test]
fn kinds_of_tiff_that_are_not_read_are_named() {
    fn tiff<C: colortype::ColorType>(values: &[C::Inner]) -> Vec<u8>
    where
        [C::Inner]: TiffValue,
    {
        let mut content = Cursor::new(Vec::new());
        TiffEncoder::new(&mut content).unwrap().write_image::<C>(4, 3, values).unwrap();
        content.into_inner()
    }
    let folder = tempfile::tempdir().unwrap();
    let long = tiff::<colortype::RGB32>(&[7; 36]);
    // The tag that says what numbers they are is not asked for: unsigned integers are meant without it.
    let mut untold = long.clone();
    let place = untold.windows(2).position(|tag| tag == 339_u16.to_le_bytes()).unwrap();
    untold[place..place + 2].copy_from_slice(&65_000_u16.to_le_bytes());
    for (content, name) in [
        (long, "32-bit unsigned integers"),
        (untold, "32-bit unsigned integers"),
        (tiff::<colortype::Gray32>(&[7; 12]), "32-bit unsigned integers"),
        (tiff::<colortype::GrayI16>(&[7; 12]), "16-bit signed integers"),
        (tiff::<colortype::GrayI8>(&[7; 12]), "8-bit signed integers"),
        (tiff::<colortype::Gray32Float>(&[0.5; 12]), "32-bit floats"),
        (tiff::<colortype::RGB32Float>(&[0.5; 36]), "32-bit floats"),
        (tiff::<colortype::Gray64Float>(&[0.5; 12]), "64-bit floats"),
        (tiff::<colortype::YCbCr8>(&[7; 36]), "YCbCr"),
    ] {
        let error = read(&folder, &content).unwrap_err();
        assert!(matches!(&error, IoError::Unsupported { message, .. } if message.contains(name)), "{name}: {error}");
    }
    let sixteen = read(&folder, &tiff::<colortype::RGB16>(&[40_000; 36])).unwrap();
    assert_eq!(sixteen.as_rgb16().unwrap().get_pixel(3, 2).0, [40_000; 3]);
    let ink = read(&folder, &tiff::<colortype::CMYK8>(&[0, 255, 51, 0].repeat(12))).unwrap();
    assert_eq!(ink.as_rgb8().unwrap().get_pixel(3, 2).0, [255, 0, 204]);
}

#[test]
fn bits_and_planes_are_put_in_order() {
    assert_eq!(super::tiff::unpacked(&[0b1010_0000, 0b0100_0000], 3, 1), [255, 0, 255, 0, 255, 0]);
    assert_eq!(super::tiff::unpacked(&[0b1101_1000], 4, 2), [255, 85, 170, 0]);
    assert_eq!(super::tiff::unpacked(&[0xF0, 0x30], 3, 4), [255, 0, 51]);
    assert_eq!(super::tiff::interleaved(&[1, 2, 3, 4, 5, 6], 3), [1, 3, 5, 2, 4, 6]);
    let mut values = [50_u8, 100, 200, 128, 7, 7, 7, 0];
    super::tiff::divide_by_alpha(&mut values, 4, 255);
    assert_eq!(values, [99, 199, 255, 128, 7, 7, 7, 0]);
}

#[test]
fn headers_promise_no_more_than_data_can_hold() {
    let folder = tempfile::tempdir().unwrap();
    let small = DynamicImage::ImageRgb8(image(16, 16));
    let mut bombs = Vec::new();
    let mut png = encode(&small, ImageFormat::Png);
    png[16..24].copy_from_slice(&[0, 0, 0xFF, 0xFF, 0, 0, 0xFF, 0xFF]);
    let checksum = crc(&png[12..29]);
    png[29..33].copy_from_slice(&checksum.to_be_bytes());
    bombs.push(("png", png));
    let mut gif = encode(&small, ImageFormat::Gif);
    gif[6..10].fill(0xFF);
    bombs.push(("gif", gif));
    let mut webp = encode(&small, ImageFormat::WebP);
    webp[21..24].fill(0xFF);
    bombs.push(("webp", webp));
    let mut jpeg = jpegs().remove(0).1;
    let frame = jpeg.windows(2).position(|marker| marker == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].fill(0xFF);
    bombs.push(("jpeg", jpeg));
    let mut tiff = encode(&small, ImageFormat::Tiff);
    for tag in [256_u16, 257, 278] {
        let place = tiff.windows(2).position(|bytes| bytes == tag.to_le_bytes()).unwrap();
        tiff[place + 8..place + 10].fill(0xFF);
    }
    bombs.push(("tiff", tiff));
    bombs.push(("ppm", b"P6 60000 60000 255\n1234".to_vec()));
    for (name, bomb) in bombs {
        let begun = std::time::Instant::now();
        let error = read(&folder, &bomb).err().unwrap_or_else(|| panic!("{name} was read"));
        assert!(matches!(error, IoError::Damaged { .. } | IoError::Truncated { .. } | IoError::Unsupported { .. }), "{name}: {error:?}");
        assert!(begun.elapsed().as_secs() < 5, "{name}");
    }
}

#[test]
fn images_of_one_colour_are_read_however_small_their_files() {
    let folder = tempfile::tempdir().unwrap();
    let flat = RgbImage::from_pixel(4096, 4096, Rgb([10, 200, 30]));
    let mut png = Vec::new();
    image::codecs::png::PngEncoder::new_with_quality(&mut png, image::codecs::png::CompressionType::Best, image::codecs::png::FilterType::NoFilter)
        .write_image(flat.as_raw(), 4096, 4096, image::ExtendedColorType::Rgb8)
        .unwrap();
    let mut tiff = Cursor::new(Vec::new());
    let deflate = Compression::Deflate(DeflateLevel::Best);
    TiffEncoder::new(&mut tiff).unwrap().with_compression(deflate).write_image::<colortype::RGB8>(4096, 4096, flat.as_raw()).unwrap();
    let mut jpeg = Vec::new();
    let mut encoder = Encoder::new(&mut jpeg, 85);
    encoder.set_progressive(true);
    encoder.set_optimized_huffman_tables(true);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.encode(flat.as_raw(), 4096, 4096, ColorType::Rgb).unwrap();
    let gif = encode(&DynamicImage::ImageRgb8(flat.clone()), ImageFormat::Gif);
    for (name, content) in [("png", png), ("tiff", tiff.into_inner()), ("jpeg", jpeg), ("gif", gif)] {
        let image = read(&folder, &content).unwrap_or_else(|error| panic!("{name} of {} bytes: {error}", content.len()));
        assert_eq!([image.width(), image.height()], [4096; 2]);
    }
}

#[test]
fn images_are_turned_as_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let mut content = Vec::new();
    let mut encoder = Encoder::new(&mut content, 95);
    encoder.add_app_segment(1, b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".to_vec()).unwrap();
    encoder.encode(&[[250; 48], [0; 48]].concat(), 16, 2, ColorType::Rgb).unwrap();
    assert_eq!(image_size(&file(&folder, &content)).unwrap(), [16, 2]);
    let image = read(&folder, &content).unwrap().into_rgb8();
    assert!(image.get_pixel(1, 5).0[0] > 200 && image.get_pixel(0, 5).0[0] < 50);
}

#[test]
fn what_is_no_image_is_told() {
    let folder = tempfile::tempdir().unwrap();
    for (content, part) in [
        (&b""[..], "it is empty"),
        (b"<!DOCTYPE html><html>", "no known image format"),
        (b"BM not an image that is known", "Bmp"),
        (b"\0\0\0\x1Cftypavif\0\0\0\0avifmif1miaf", "Avif"),
    ] {
        let error = read(&folder, content).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
