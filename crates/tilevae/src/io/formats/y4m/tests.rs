use super::*;
use crate::io::clip_writer::testing::{CANVAS, Limited, levels};

#[test]
#[cfg(unix)]
fn a_disk_without_room_for_all_frames_is_told_before_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.y4m");
    let begin = |frames| FileWriter::new(&Target::new(&path, [1, 3, frames, 64, 64]));
    assert!(begin(2).is_ok());
    for frames in [1 << 50, usize::MAX] {
        assert!(matches!(begin(frames), Err(IoError::NoSpace { .. })));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

fn write(folder: &Path, header: &str, frames: &[Vec<u8>]) -> PathBuf {
    let path = folder.join("clip.y4m");
    let mut bytes = format!("YUV4MPEG2 {header}\n").into_bytes();
    for frame in frames {
        bytes.extend_from_slice(b"FRAME\n");
        bytes.extend_from_slice(frame);
    }
    std::fs::write(&path, bytes).unwrap();
    path
}

fn probe(path: &Path) -> Result<ClipInfo, IoError> {
    Video::open(path).map(|video| video.info())
}

/// Frames, without counting them before.
fn open(path: &Path) -> Result<Frames, IoError> {
    let mut source = Source::new(path)?;
    Ok(until_error(move || source.next_frame()))
}

fn first(path: &Path) -> DynamicImage {
    open(path).unwrap().next().unwrap().unwrap()
}

fn bytes(values: impl IntoIterator<Item = usize>, depth: u32) -> Vec<u8> {
    values.into_iter().flat_map(|value| (value as u16).to_le_bytes()[..if depth > 8 { 2 } else { 1 }].to_vec()).collect()
}

/// RGB of a px of the range from 16 to 235, by the definition of BT.601, from 0 to 1.
fn defined([y, u, v]: [f64; 3]) -> [f64; 3] {
    let [y, u, v] = [(y - 16.0) / 219.0, (u - 128.0) / 224.0, (v - 128.0) / 224.0];
    let (r, b) = (y + 2.0 * (1.0 - 0.299) * v, y + 2.0 * (1.0 - 0.114) * u);
    [r, (y - 0.299 * r - 0.114 * b) / 0.587, b].map(|value| value.clamp(0.0, 1.0))
}

#[test]
fn colour_is_interpolated_from_where_it_lies() {
    let folder = tempfile::tempdir().unwrap();
    let (width, height) = (16, 12);
    // Colour that grows evenly, taken where each kind has its values.
    let u_at = |x: f64, y: f64| 90.0 + 3.0 * x + 2.0 * y;
    for (kind, [down, right], [from_y, from_x], depth) in [
        ("420jpeg", [2, 2], [0.5, 0.5], 8),
        ("420", [2, 2], [0.5, 0.5], 8),
        ("420mpeg2", [2, 2], [0.5, 0.0], 8),
        ("420paldv", [2, 2], [0.0, 0.0], 8),
        ("422", [1, 2], [0.0, 0.0], 8),
        ("411", [1, 4], [0.0, 0.0], 8),
        ("444", [1, 1], [0.0, 0.0], 8),
        ("420p10", [2, 2], [0.5, 0.0], 10),
        ("422p12", [1, 2], [0.0, 0.0], 12),
        ("420p14", [2, 2], [0.5, 0.0], 14),
        ("444p16", [1, 1], [0.0, 0.0], 16),
    ] {
        let scale = f64::from(1_u32 << (depth - 8));
        let [rows, columns] = [height / down, width / right];
        let u = (0..rows * columns).map(|place| {
            let [y, x] = [place / columns * down, place % columns * right].map(|px| px as f64);
            (u_at(x + from_x, y + from_y) * scale).round() as usize
        });
        let luma = std::iter::repeat_n((120.0 * scale) as usize, width * height);
        let v = std::iter::repeat_n((100.0 * scale) as usize, rows * columns);
        let path = write(folder.path(), &format!("W{width} H{height} F5:1 C{kind}"), &[bytes(luma.chain(u).chain(v), depth)]);
        let image = first(&path);
        assert_eq!(image.color().bytes_per_pixel(), if depth > 8 { 6 } else { 3 }, "{kind}");
        let image = image.to_rgb16();
        // At the border there is nothing to interpolate with.
        for (x, y) in (2..9_u32).flat_map(|x| (2..9_u32).map(move |y| (x, y))) {
            let expected = defined([120.0, u_at(f64::from(x), f64::from(y)), 100.0]);
            let tolerance = if depth > 8 { 0.001 } else { 0.006 };
            for (got, expected) in image.get_pixel(x, y).0.into_iter().zip(expected) {
                assert!((f64::from(got) / 65_535.0 - expected).abs() < tolerance, "{kind}, {x}, {y}: {got} {expected}");
            }
        }
    }
}

#[test]
fn grey_and_alpha_are_read_in_all_their_bits() {
    let folder = tempfile::tempdir().unwrap();
    for depth in [8, 9, 10, 12, 14, 16] {
        let kind = if depth == 8 { "mono".to_owned() } else { format!("mono{depth}") };
        let scale = 1_usize << (depth - 8);
        // Black, a value that needs this bit depth, and white.
        let path = write(folder.path(), &format!("W3 H1 C{kind}"), &[bytes([16 * scale, 100 * scale + scale / 2 + 1, 235 * scale], depth)]);
        let image = first(&path);
        assert!(!image.color().has_color(), "{kind}");
        let got = image.to_luma16().into_raw();
        let expected = ((100 * scale + scale / 2 + 1) as f64 / scale as f64 - 16.0) / 219.0 * 65_535.0;
        assert!(got[0] <= 2 && got[2] >= 65_533 && (f64::from(got[1]) - expected).abs() <= if depth > 8 { 3.0 } else { 140.0 }, "{kind}: {got:?}");
        let path = write(folder.path(), &format!("W3 H1 C{kind} XCOLORRANGE=FULL"), &[bytes([0, 255 * scale, 256 * scale - 1], depth)]);
        let got = first(&path).to_luma16().into_raw();
        assert!(got[0] == 0 && got[2] == 65_535, "{kind}: {got:?}");
    }
    let path = write(folder.path(), "W2 H1 C444alpha", &[vec![235, 16, 128, 128, 128, 128, 77, 255]]);
    assert_eq!(first(&path).as_rgba8().unwrap().as_raw(), &[255, 255, 255, 77, 0, 0, 0, 255]);
}

#[test]
fn odd_sizes_and_headers_of_all_sorts_are_read() {
    let folder = tempfile::tempdir().unwrap();
    for (parameters, colour, fps) in [
        ("F5:1 C420jpeg", 4, Fps::new(5, 1)),
        ("C422 F24000:1001 Ip A1:1 XYSCSS=422", 6, Fps::new(24_000, 1001)),
        ("F0:0 Cmono", 0, None),
        ("A0:0 I? XYSCSS=411 XSOMETHING", 3, None),
        ("F25:1 Ib A4:3 XCOLORRANGE=LIMITED", 4, Fps::new(25, 1)),
    ] {
        let path = write(folder.path(), &format!("W3 H3 {parameters}"), &[vec![128; 9 + 2 * colour], vec![128; 9 + 2 * colour]]);
        let frames = open(&path).unwrap();
        let frames: Vec<_> = frames.map(|frame| frame.unwrap().to_rgb8()).collect();
        assert_eq!(frames.len(), 2, "{parameters}");
        assert!(frames[1].dimensions() == (3, 3) && frames[1].pixels().all(|pixel| pixel.0 == [130; 3]), "{parameters}");
        assert_eq!(probe(&path).unwrap(), ClipInfo { size: [3, 3], frames: 2, fps });
    }
}

#[test]
fn kinds_that_are_not_read_are_named_and_not_called_damaged() {
    let folder = tempfile::tempdir().unwrap();
    for kind in ["440", "444p20", "420p7", "mono32", "rgb", "444alphap10", "p10", "mono-8"] {
        let path = write(folder.path(), &format!("W2 H2 F5:1 C{kind}"), &[vec![128; 64]]);
        for error in [open(&path).err().unwrap(), probe(&path).unwrap_err()] {
            let message = error.to_string();
            assert!(message.contains(&format!("`C{kind}`")) && message.contains("not supported") && !message.contains("damaged"), "{message}");
        }
    }
    for header in ["W0 H2", "H2", "Wx H2", "W2 H2 Fx", "W99999999999999999999 H2", "W4000000000 H4000000000"] {
        let path = write(folder.path(), header, &[vec![128; 64]]);
        assert!(matches!(open(&path), Err(IoError::Damaged { .. })), "{header}");
    }
    // Sizes that no memory holds are found by what is not there.
    let path = write(folder.path(), "W16000000 H16000000 C444p16", &[vec![128; 64]]);
    assert!(matches!(open(&path).unwrap().next(), Some(Err(IoError::IncompleteClip { frames: 0, .. }))));
    assert!(matches!(probe(&path), Err(IoError::IncompleteClip { .. })));
}

#[test]
fn what_is_cut_off_is_an_error_that_says_how_much_came() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "W4 H2 F5:1 C420jpeg", &[vec![90; 12], vec![100; 12], vec![110; 12]]);
    let whole = std::fs::read(&path).unwrap();
    let header = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let (read, probed) = (open(&path).map(Iterator::collect::<Result<Vec<_>, _>>), probe(&path));
        if length < header {
            assert!(matches!((read, probed), (Err(IoError::Damaged { .. }), Err(IoError::Damaged { .. }))), "{length}");
            continue;
        }
        let (whole_frames, rest) = ((length - header) / 18, (length - header) % 18);
        match (read.unwrap(), probed) {
            (Ok(frames), Ok(info)) => assert!(rest == 0 && [frames.len(), info.frames] == [whole_frames; 2], "{length}"),
            (Ok(frames), Err(IoError::NoFrames { .. })) => assert!(rest == 0 && frames.is_empty()),
            (Err(read), Err(probed)) => {
                assert!(rest > 0 && read.to_string() == probed.to_string(), "{length}: {read} {probed}");
                assert!(read.to_string().contains(&format!("{whole_frames} frames can be read")), "{read}");
            }
            other => panic!("{length}: {other:?}"),
        }
    }
    std::fs::write(&path, [&whole[..], b"trailing"].concat()).unwrap();
    assert!(matches!(open(&path).unwrap().last(), Some(Err(IoError::Damaged { .. }))));
}

#[test]
fn the_matrix_fits_the_size_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    for (size, green) in [([576, 4], 145), ([577, 4], 173), ([2, 1279], 145), ([2, 1280], 173)] {
        let colours = [[0, 255, 0], [255, 0, 0], [0, 0, 255], [13, 200, 77], [255; 3], [0; 3]];
        let pixels: Vec<u8> = colours.iter().cycle().take(size[0] * size[1]).flatten().copied().collect();
        let mut encoder = Encoder::new(Vec::new(), size, Fps::DEFAULT).unwrap();
        encoder.write(&pixels).unwrap();
        let bytes = encoder.finish().unwrap();
        let luma = bytes.windows(6).position(|part| part == b"FRAME\n").unwrap() + 6;
        assert_eq!([bytes[luma], bytes[luma + 4], bytes[luma + 5]], [green, 235, 16], "{size:?}");
        let path = folder.path().join("clip.y4m");
        std::fs::write(&path, bytes).unwrap();
        let back = first(&path).to_rgb8().into_raw();
        assert!(pixels.iter().zip(&back).all(|(a, b)| a.abs_diff(*b) <= 2), "{size:?}");
    }
}

#[test]
fn a_full_disk_is_heard_of() {
    let write = |limit: usize| {
        let mut encoder = Encoder::new(BufWriter::new(Limited(limit)), [CANVAS; 2], Fps::DEFAULT)?;
        (0..2).try_for_each(|level| encoder.write(&levels(level)))?;
        encoder.finish().map(|_| ())
    };
    let whole = (0..1 << 20).find(|&limit| write(limit).is_ok()).unwrap();
    let header = "YUV4MPEG2 W8 H8 F16:1 Ip A1:1 C444 XCOLORRANGE=LIMITED\n".len();
    assert_eq!(whole, header + 2 * (6 + 3 * CANVAS * CANVAS));
}
