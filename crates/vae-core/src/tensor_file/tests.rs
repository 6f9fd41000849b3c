use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use zip::write::{SimpleFileOptions, ZipWriter};

use super::*;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// The tensors of a file with the content `bytes`.
fn read(bytes: &[u8]) -> Result<BTreeMap<String, StoredTensor>, WeightError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file.bin");
    fs::write(&file, bytes).unwrap();
    Ok(read_tensors(&file)?.into_iter().map(|tensor| (tensor.name().to_owned(), tensor)).collect())
}

fn message(bytes: &[u8]) -> String {
    read(bytes).map(|_| ()).unwrap_err().to_string()
}

/// What the fixtures hold.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| i as f32 / 2.0 - 1.0).collect()
}

#[test]
fn all_that_torch_saves_is_read() {
    for file in ["kinds.pt", "kinds-4.pt", "kinds-legacy.pt"] {
        let tensors: BTreeMap<_, _> = read_tensors(&data(file)).unwrap().into_iter().map(|tensor| (tensor.name().to_owned(), tensor)).collect();
        let get = |name: &str| &tensors[&format!("state_dict.{name}")];
        for (name, dtype) in [
            ("float64", StoredDtype::F64),
            ("float32", StoredDtype::F32),
            ("float16", StoredDtype::F16),
            ("bfloat16", StoredDtype::Bf16),
            ("float8_e4m3fn", StoredDtype::F8E4m3),
            ("float8_e5m2", StoredDtype::F8E5m2),
        ] {
            assert_eq!((get(name).dtype(), get(name).shape()), (&dtype, &[2, 3][..]), "{name} of {file}");
            assert_eq!(get(name).read_f32().unwrap(), values(6), "{name} of {file}");
        }
        for (name, dtype) in [("int64", StoredDtype::I64), ("int32", StoredDtype::I32), ("int16", StoredDtype::I16), ("int8", StoredDtype::I8)] {
            assert_eq!(get(name).dtype(), &dtype);
            assert_eq!(get(name).read_f32().unwrap(), [-1.0, 0.0, 0.0, 0.0, 1.0, 1.0], "{name} of {file}");
        }
        assert_eq!(get("uint8").read_f32().unwrap()[2..], [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(get("bool").read_f32().unwrap(), [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]);
        let shaped = |name: &str| (get(name).shape().to_vec(), get(name).read_f32().unwrap());
        assert_eq!(shaped("parameter"), (vec![2, 2], values(4)));
        assert_eq!(shaped("transposed"), (vec![2, 3], values(6)));
        assert_eq!(shaped("part"), (vec![2, 2], values(4)));
        assert_eq!(shaped("tail"), (vec![2], values(6)[4..].to_vec()));
        assert_eq!(shaped("repeated"), (vec![2, 3], vec![-1.0; 6]));
        assert_eq!(shaped("scalar"), (vec![], vec![-1.0]));
        assert_eq!(shaped("none"), (vec![0, 4], vec![]));
        assert_eq!(get("transposed").read_bytes().unwrap(), values(6).iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
        for (name, kind) in [("float8_e4m3fnuz", "float8_e4m3fnuz"), ("complex64", "ComplexFloatStorage"), ("sparse", "sparse_tensor")] {
            assert_eq!(get(name).dtype(), &StoredDtype::Other(kind.into()), "{file}");
            assert!(get(name).read_f32().unwrap_err().to_string().contains(kind));
        }
        assert_eq!(tensors["list.1"].read_f32().unwrap(), values(2));
    }
}

#[test]
fn a_tensor_by_itself_has_no_name() {
    let [tensor] = &read_tensors(&data("bare.pt")).unwrap()[..] else { panic!("one tensor") };
    assert_eq!((tensor.name(), tensor.shape(), tensor.read_f32().unwrap()), ("", &[1, 2, 2, 3][..], values(12)));
}

#[test]
fn whole_objects_are_named_with_the_way_out() {
    for (file, class) in [("module.pt", "torch.nn.modules.conv.Conv2d"), ("script.pt", "TorchScript")] {
        let error = read_tensors(&data(file)).unwrap_err().to_string();
        assert!(error.contains(class) && error.contains("torch.save(model.state_dict()") && !error.contains("damaged"), "{error}");
    }
}

#[test]
fn eight_bits_are_read_as_they_are_defined() {
    for (dtype, exponent_bits, bias) in [(StoredDtype::F8E4m3, 4, 7), (StoredDtype::F8E5m2, 5, 15)] {
        let fraction_bits = 7 - exponent_bits;
        let mut read = Vec::new();
        dtype.append_f32(&(0..=255).collect::<Vec<u8>>(), &mut read);
        for (byte, &value) in (0_u8..).zip(&read) {
            let (exponent, fraction) =
                (i32::from(byte & 0x7f) >> fraction_bits, f32::from(byte & ((1 << fraction_bits) - 1)) / f32::from(1_u8 << fraction_bits));
            let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
            let expected = match (exponent, &dtype) {
                (0, _) => sign * fraction * 2_f32.powi(1 - bias),
                (15, StoredDtype::F8E4m3) if fraction == 0.875 => f32::NAN,
                (31, _) if fraction == 0.0 => sign * f32::INFINITY,
                (31, _) => f32::NAN,
                _ => sign * (1.0 + fraction) * 2_f32.powi(exponent - bias),
            };
            assert!(value == expected || (value.is_nan() && expected.is_nan()), "{byte:#x} of {dtype} is {value}, not {expected}");
            // What Burn gets has them all.
            assert!(value.is_nan() || half::bf16::from_f32(value).to_f32() == value);
        }
    }
}

/// A safetensors file.
fn safetensors(header: &str, values: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), values].concat()
}

#[test]
fn types_that_nobody_knows_are_no_damage() {
    let header = r#"{"__metadata__":{"format":"pt"},"known":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},"four":{"dtype":"I4","shape":[4,2],"data_offsets":[0,4]},
        "new":{"dtype":"F6_E9M9","shape":[3],"data_offsets":[4,7]},"huge":{"dtype":"Q2","shape":[18446744073709551615,2],"data_offsets":[7,8]}}"#;
    let file = safetensors(header, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128, 63, 0, 0, 0, 64]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.ckpt");
    fs::write(&path, file).unwrap();
    let tensors: BTreeMap<_, _> = read_tensors(&path).unwrap().into_iter().map(|tensor| (tensor.name().to_owned(), tensor)).collect();
    assert_eq!(tensors["known"].read_f32().unwrap(), [1.0, 2.0]);
    let error = tensors["four"].read_f32().unwrap_err().to_string();
    assert!(error.contains("`four` is stored as I4, which is not implemented"), "{error}");
}

#[test]
fn what_is_cut_or_contradicts_itself_is_damaged() {
    let sound = safetensors(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &[0; 8]);
    assert!(read(&sound).is_ok());
    let is_damaged = |bytes: &[u8], why: &str| {
        let error = message(bytes);
        assert!(error.contains("is damaged") && error.contains(why), "{error}");
    };
    is_damaged(&[], "empty");
    is_damaged(&sound[..sound.len() - 1], "8 bytes of values belong to it, of which 7 are there");
    is_damaged(&sound[..30], "its header has 54 bytes, the file 30");
    for (header, why) in [
        (r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, "shape and offsets of `a`"),
        (r#"{"a":{"dtype":"F32","shape":[4611686018427387906],"data_offsets":[0,8]}}"#, "shape and offsets of `a`"),
        (r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[8,0]}}"#, "offsets of `a`"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, "in one place"),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, "names `a` twice"),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, "4 bytes before byte 4"),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, "its header speaks of"),
        (r#"{"__metadata__":{},"__metadata__":{},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, "comes twice"),
        (r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#, "header"),
        (r#"{"a":"#, "header"),
    ] {
        is_damaged(&safetensors(header, &[0; 8]), why);
    }
    for file in ["kinds.pt", "kinds-legacy.pt"] {
        let bytes = fs::read(data(file)).unwrap();
        is_damaged(&bytes[..bytes.len() / 2], "");
        is_damaged(&bytes[..bytes.len() - 100], "");
        is_damaged(&bytes[..10], "");
    }
    // A flipped bit of a value is seen where there is a checksum.
    let mut bytes = fs::read(data("bare.pt")).unwrap();
    let place = bytes.windows(4).position(|window| window == 1.5_f32.to_le_bytes()).unwrap();
    bytes[place] ^= 1;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, bytes).unwrap();
    let tensor = read_tensors(&path).unwrap().remove(0);
    assert!(tensor.read_f32().unwrap_err().to_string().contains("checksum") && tensor.read_bytes().is_err());
}

#[test]
fn other_files_are_called_by_their_names() {
    let long_text = "ä".repeat(400);
    for (content, what) in [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n".as_slice(), "a Git LFS pointer, not a checkpoint; `git lfs pull`"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\xef\xbb\xbf \r\n<html lang=\"en\">", "a web page"),
        (b"Entry not found", "a text (`Entry not found`)"),
        (long_text.as_bytes(), "a text"),
        (br#"{"error":"Invalid username or password."}"#, "a JSON file"),
        (b"GGUF\x03\0\0\0", "a GGUF file"),
        (b"\x1f\x8b\x08\0", "a compressed archive, not a checkpoint; unpack it"),
        (b"\x89PNG\r\n\x1a\n", "an image"),
        (b"\x80\x03}q\0.", "a pickle that `torch.save` has not written"),
        (&[7; 100], "of an unknown kind (it begins with 07 07 07"),
    ] {
        let error = message(content);
        assert!(error.contains(what) && !error.contains("damaged"), "{error}");
    }
    let error = message(&archive(&[("a.npy", b"x")]));
    assert!(error.contains("a zip archive that `torch.save` has not written"), "{error}");
}

/// A zip archive.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(io::Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored)).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn hostile_pickles_end_soon() {
    let nested = |open: &[u8], close: &[u8], depth: usize| [&[0x80, 2][..], &open.repeat(depth), &close.repeat(depth), b"."].concat();
    // Each list holds the one before it twice: 2^40 ways through it.
    let mut tangled = b"\x80\x02]q\x00".to_vec();
    for _ in 0..40 {
        tangled.extend_from_slice(b"0](h\x00h\x00eq\x00");
    }
    tangled.push(b'.');
    // A dictionary in itself.
    let endless = b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.".to_vec();
    // One long key before a hundred thousand dictionaries.
    let key = "k".repeat(100_000);
    let mut long = [b"\x80\x02}X".as_slice(), &(key.len() as u32).to_le_bytes(), key.as_bytes(), b"}("].concat();
    for i in 0..100_000_u32 {
        long.extend_from_slice(&[b"J".as_slice(), &i.to_le_bytes(), b"}"].concat());
    }
    long.extend_from_slice(b"us.");
    let text = [b"\x80\x02X".as_slice(), &u32::MAX.to_le_bytes(), b"abc."].concat();
    for (what, pickle) in [
        ("deep tuples", nested(b")", b"\x85", 200_000)),
        ("deep lists", [b"\x80\x02".as_slice(), &b"]".repeat(200_000), &b"a".repeat(199_999), b"."].concat()),
        ("marks", nested(b"(", b"", 30_000_000)),
        ("dictionaries", nested(b"}", b"", 4_000_000)),
        ("copies", [b"\x80\x02}".as_slice(), &b"2".repeat(20_000_000), b"."].concat()),
        ("notes", [b"\x80\x02}".as_slice(), &b"\x94".repeat(4_000_000), b"."].concat()),
        ("tangled", tangled),
        ("endless", endless),
        ("long", long),
        ("text", text),
        ("numbers", b"\x80\x02\x8b\xff\xff\xff\xff.".to_vec()),
        ("calls", b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00exit\x85R.".to_vec()),
    ] {
        let begun = Instant::now();
        let read = read(&archive(&[("a/data.pkl", &pickle)]));
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        assert!(read.is_err() || read.is_ok_and(|tensors| tensors.is_empty()), "{what}");
    }
}

#[test]
fn views_reach_no_further_than_their_storage() {
    let pickle = |offset: u8, shape: &[u8], strides: &[u8]| {
        let tuple = |lengths: &[u8]| [b"(".as_slice(), &lengths.iter().flat_map(|&length| [b'K', length]).collect::<Vec<_>>(), b"t"].concat();
        [b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK".as_slice(), &[
            offset,
        ], &tuple(shape), &tuple(strides), b"\x89NtR."]
        .concat()
    };
    let file = |pickle: &[u8], storage: &[u8]| archive(&[("a/data.pkl", pickle), ("a/data/0", storage)]);
    let storage: Vec<u8> = values(4).iter().flat_map(|value| value.to_le_bytes()).collect();
    for (offset, shape, strides) in [(1, &[4][..], &[1][..]), (0, &[2, 2], &[3, 1]), (5, &[1], &[1]), (0, &[255, 2], &[255, 255])] {
        let error = message(&file(&pickle(offset, shape, strides), &storage));
        assert!(error.contains("reaches past its storage"), "{error}");
    }
    let error = message(&file(&pickle(0, &[4], &[1]), &storage[..12]));
    assert!(error.contains("shorter than it should be"), "{error}");
    assert!(message(&archive(&[("a/data.pkl", &pickle(0, &[4], &[1]))])).contains("which is missing"));
    // A view may repeat a value, but not without end.
    let path = tempfile::NamedTempFile::new().unwrap();
    fs::write(path.path(), file(&pickle(0, &[200, 200, 200, 2], &[0, 0, 0, 1]), &storage)).unwrap();
    let error = read_tensors(path.path()).unwrap()[0].read_f32().unwrap_err().to_string();
    assert!(error.contains("save its `.contiguous()`"), "{error}");
}

#[test]
fn mutated_files_never_panic() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let small = safetensors(
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F8_E4M3","shape":[2,1],"data_offsets":[8,10]}}"#,
        &[0; 10],
    );
    for sound in [fs::read(data("kinds.pt")).unwrap(), fs::read(data("kinds-legacy.pt")).unwrap(), fs::read(data("bare.pt")).unwrap(), small] {
        for _ in 0..500 {
            let mut bytes = sound.clone();
            for _ in 0..=next(4) {
                let at = next(bytes.len());
                match next(4) {
                    0 => bytes[at] ^= 1 << next(8),
                    1 => bytes[at] = 0xff,
                    2 => bytes.truncate(at.max(1)),
                    _ => bytes.extend_from_within(at..),
                }
            }
            fs::write(&path, bytes).unwrap();
            for tensor in read_tensors(&path).into_iter().flatten() {
                tensor.read_f32().ok();
                tensor.read_bytes().ok();
            }
        }
    }
}
