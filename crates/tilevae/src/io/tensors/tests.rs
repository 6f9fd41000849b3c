use std::io::{Cursor, Write};

use tempfile::TempDir;
use vae_core::{FrameRule, LatentNorm};

use super::super::{Target, write_tensors};
use super::*;
use crate::Config;

fn spec() -> VaeSpec {
    VaeSpec { latent_norm: LatentNorm { scale: vec![4.0], shift: vec![0.5] }, ..VaeSpec::image(3, 4, 8) }
}

fn values(shape: [usize; 5]) -> HostTensor {
    HostTensor::from_fn(shape, |[b, c, t, y, x]| (b * 100 + c * 20 + t * 7 + y * 3 + x) as f32 / 8.0 - 1.0)
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A `.safetensors` file of tensors, each with its dtype, shape and bytes.
fn safetensors(tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let begin = data.len();
        data.extend(bytes);
        entries.push(format!("{name:?}:{{\"dtype\":{dtype:?},\"shape\":{shape:?},\"data_offsets\":[{begin},{}]}}", data.len()));
    }
    of_header(&format!("{{{}}}", entries.join(",")), &data)
}

fn of_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn npy(version: u8, descr: &str, order: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n");
    let length = if version == 1 { (header.len() as u16).to_le_bytes().to_vec() } else { (header.len() as u32).to_le_bytes().to_vec() };
    [&b"\x93NUMPY"[..], &[version, 0], &length, header.as_bytes(), data].concat()
}

fn npz(members: &[(&str, Vec<u8>)], method: zip::CompressionMethod) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        writer.start_file(*name, zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn from_bytes(folder: &TempDir, name: &str, bytes: &[u8]) -> Result<Tensors, IoError> {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    Tensors::read(&path)
}

fn input(bytes: Vec<u8>, spec: &VaeSpec, settings: &str) -> Result<HostTensor, String> {
    let config = Config::from_toml(&format!("[io]\n{settings}")).unwrap();
    let read = || {
        let folder = tempfile::tempdir().unwrap();
        let input = from_bytes(&folder, "in.latent", &bytes)?.input(Direction::Decode, spec, &config.io)?;
        let shape = input.shape();
        let tensor = input.read()?;
        assert_eq!(tensor.values.shape(), shape);
        Ok(tensor.values)
    };
    read().map_err(|error: IoError| error.to_string())
}

#[test]
fn comfyui_saves_the_vaes_own_latents() {
    let own = values([1, 4, 1, 2, 3]);
    let mark = ("latent_format_version_0", "F32", &[0][..], Vec::new());
    let tensor = |scale: f32| {
        let scaled: Vec<f32> = own.data().iter().map(|value| value * scale).collect();
        ("latent_tensor", "F32", &[1, 4, 2, 3][..], bytes(&scaled))
    };
    let mut passed = own.clone();
    spec().latent_norm.to_diffusion(&mut passed);
    for file in [safetensors(&[tensor(1.0), mark.clone()]), safetensors(&[mark, tensor(1.0)])] {
        assert_eq!(input(file.clone(), &spec(), "latent_space = 'vae'").unwrap(), own);
        assert_eq!(input(file, &spec(), "").unwrap(), passed);
    }
    // Without the mark, as Stable Diffusion 1's were: scaled.
    let old = input(safetensors(&[tensor(0.18215)]), &spec(), "latent_space = 'vae'").unwrap();
    assert!(old.data().iter().zip(own.data()).all(|(a, b)| (a - b).abs() < 1e-5), "{old:?}");
    // What is not ComfyUI's is as the configuration says.
    let named = safetensors(&[("latents", "F32", &[1, 4, 2, 3], bytes(own.data()))]);
    assert_eq!([input(named.clone(), &spec(), "").unwrap(), input(named, &spec(), "latent_space = 'vae'").unwrap()], [own.clone(), own]);
}

#[test]
fn caches_of_trainers_are_read() {
    let latents = values([1, 4, 1, 2, 3]);
    let array = npy(1, "'<f4'", "False", "(4, 2, 3)", &bytes(latents.data()));
    let whole = |descr: &str, count: usize| npy(1, descr, "False", &format!("({count},)"), &vec![0; 8 * count]);
    for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
        let kohya = [("original_size.npy", whole("'<i8'", 2)), ("crop_ltrb.npy", whole("'<i8'", 4)), ("latents.npy", array.clone())];
        assert_eq!(input(npz(&kohya, method), &spec(), "").unwrap(), latents);
        let sized = [("latents_2x3.npy", array.clone()), ("original_size_2x3.npy", whole("'<i8'", 2))];
        assert_eq!(input(npz(&sized, method), &spec(), "").unwrap(), latents);
    }
    let several = npz(&[("latents_2x3.npy", array.clone()), ("latents_4x6.npy", array.clone())], zip::CompressionMethod::Stored);
    let message = input(several.clone(), &spec(), "").unwrap_err();
    assert!(message.contains("latents_2x3, latents_4x6") && message.contains("io.tensor"), "{message}");
    assert_eq!(input(several, &spec(), "tensor = 'latents_4x6'").unwrap(), latents);

    // musubi-tuner says frames, height and width in the name, so that four channels and four frames are not mixed up.
    let clip = VaeSpec { frames: FrameRule::Causal { ratio: 4 }, ..spec() };
    let latents = values([1, 4, 4, 2, 3]);
    let halves: Vec<u8> = latents.data().iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect();
    let musubi = |name| safetensors(&[(name, "BF16", &[4, 4, 2, 3], halves.clone())]);
    assert_eq!(input(musubi("latents_4x2x3_bfloat16"), &clip, "").unwrap(), latents);
    let message = input(musubi("latents"), &clip, "").unwrap_err();
    assert!(message.contains("[4, 4, 2, 3]") && message.contains("io.axes = \"cthw\""), "{message}");
    assert_eq!(input(musubi("latents"), &clip, "axes = 'cthw'").unwrap(), latents);
}

#[test]
fn arrays_of_every_order_are_read() {
    let latents = values([1, 4, 1, 2, 3]);
    let at = |c: usize, y: usize, x: usize| latents.row(c, y)[x];
    let fortran: Vec<f32> = (0..24).map(|index| at(index % 4, index / 4 % 2, index / 8)).collect();
    let big: Vec<u8> = latents.data().iter().flat_map(|&value| f64::from(value).to_be_bytes()).collect();
    let halves: Vec<u8> = latents.data().iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect();
    for file in [
        npy(1, "'<f4'", "False", "(4, 2, 3)", &bytes(latents.data())),
        npy(2, "'<f4'", "False", "(1, 4, 2, 3)", &bytes(latents.data())),
        npy(3, "'<f2'", "False", "(1, 4, 1, 2, 3)", &halves),
        npy(1, "'<f4'", "True", "(4, 2, 3)", &bytes(&fortran)),
        npy(1, "'<f4'", "True", "(1, 4, 1, 2, 3)", &bytes(&fortran)),
        npy(1, "'>f8'", "False", "(4, 2, 3)", &big),
    ] {
        assert_eq!(input(file, &spec(), "").unwrap(), latents);
    }
    // 1.5, -0.0625, NaN; 0.25, -2 and infinity: the two kinds of eight bits.
    let eight = safetensors(&[("latents", "F8_E4M3", &[1, 4, 1, 1], vec![0x3c, 0x98, 0x7f, 0])]);
    let read = input(eight, &spec(), "on_non_finite = 'allow'").unwrap();
    assert!(read.data()[..2] == [1.5, -0.0625] && read.data()[2].is_nan(), "{read:?}");
    let eight = safetensors(&[("latents", "F8_E5M2", &[1, 4, 1, 1], vec![0x34, 0xc0, 0x7c, 1])]);
    assert_eq!(input(eight, &spec(), "on_non_finite = 'allow'").unwrap().data(), [0.25, -2.0, f32::INFINITY, 2.0_f32.powi(-16)]);
}

#[test]
fn what_is_no_float_is_refused_by_name() {
    let zeros = vec![0; 24 * 8];
    for (file, fragments) in [
        (npy(1, "'<i8'", "False", "(4, 2, 3)", &zeros), ["<i8", "expected f64"]),
        (npy(1, "'|b1'", "False", "(4, 2, 3)", &zeros[..24]), ["|b1", "expected f64"]),
        (npy(1, "'<c8'", "False", "(4, 2, 3)", &zeros), ["<c8", "expected f64"]),
        (npy(1, "'<f16'", "False", "(4, 2, 3)", &zeros), ["<f16", "expected f64"]),
        (npy(1, "'|V2'", "False", "(4, 2, 3)", &zeros[..48]), ["bfloat16", "expected f64"]),
        (npy(1, "'|O'", "False", "()", b"\x80\x04N."), ["pickled", "expected f64"]),
        (npy(1, "[('a', '<f4')]", "False", "(4, 2, 3)", &zeros[..96]), ["records", "expected f64"]),
        (npy(1, "'<f4'", "False", "()", &zeros[..4]), ["has the shape []", "expected [batch"]),
        (safetensors(&[("latents", "I64", &[4, 2, 3], zeros.clone())]), ["i64", "expected f64"]),
        (safetensors(&[("latents", "C64", &[4, 2, 3], zeros.clone())]), ["c64", "expected f64"]),
        (safetensors(&[("latents", "F8_E8M0", &[4, 2, 3], zeros[..24].to_vec())]), ["f8_e8m0", "expected f64"]),
        (safetensors(&[("a", "F32", &[1], vec![0; 4]), ("b", "F32", &[1], vec![0; 4])]), ["no tensor named `latents`", "a, b; io.tensor"]),
        (safetensors(&[("latents", "F32", &[1, 4, 0, 3], Vec::new())]), ["[1, 4, 0, 3]", "no values"]),
    ] {
        let message = input(file, &spec(), "").unwrap_err();
        assert!(fragments.iter().all(|fragment| message.contains(fragment)), "{fragments:?}: {message}");
    }
    // By another name, and without a guess where it is not there.
    let named = safetensors(&[("a", "F32", &[1, 4, 1, 1], vec![0; 16]), ("b", "F32", &[1], vec![0; 4])]);
    assert_eq!(input(named.clone(), &spec(), "tensor = 'a'").unwrap().shape(), [1, 4, 1, 1, 1]);
    assert!(input(named, &spec(), "tensor = 'latents'").unwrap_err().contains("holds: a, b"));
}

#[test]
fn damaged_files_are_errors() {
    let four = |name: &str, shape: &str, begin: usize, end: usize| {
        format!("{name:?}:{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{begin},{end}]}}")
    };
    let entries = |entries: &[String]| format!("{{{}}}", entries.join(","));
    let twice = entries(&[four("a", "[1]", 0, 4), four("a", "[1]", 4, 8)]);
    let same = entries(&[four("a", "[1]", 0, 4), four("a", "[1]", 0, 4)]);
    let overlapping = entries(&[four("a", "[2]", 0, 8), four("b", "[2]", 4, 12)]);
    let gap = entries(&[four("a", "[1]", 0, 4), four("b", "[1]", 8, 12)]);
    let huge = entries(&[four("a", "[4294967296,4294967296,4294967296]", 0, 4)]);
    let wrapped = entries(&[four("a", "[4611686018427387905]", 0, 4)]);
    let mut zeros = vec![0; 12];
    zeros[0] = 1;
    for (file, fragment) in [
        (of_header(&twice, &zeros[..8]), "names `a` twice"),
        (of_header(&same, &zeros[..4]), "names `a` twice"),
        (of_header(&overlapping, &zeros), ""),
        (of_header(&gap, &zeros), ""),
        (of_header(&huge, &zeros[..4]), ""),
        (of_header(&wrapped, &zeros[..4]), ""),
        (of_header(&entries(&[four("a", "[1]", 0, 4)]), &zeros), "its header speaks of"),
        (of_header("{\"__metadata__\":{},\"__metadata__\":{}}", &[]), "twice"),
        (of_header("{\"a\":", &[]), "EOF"),
        (npy(1, "'<f4'", "False", "(1, 4, 999999999, 999999999)", &zeros), "there are 12"),
        (npy(1, "'<f4'", "False", "(99999999999, 99999999999)", &zeros), "more values than any file"),
        (npy(1, "'<f4'", "False", "(1, 4, 1, 1)", &zeros), "takes 16 bytes"),
        (npy(1, "'<f4'", "False", "(1, 2, 1, 1)", &zeros), "takes 8 bytes"),
        (npy(1, "'<f4'", "False", "(-1, 4)", &zeros), "does not give"),
        (npy(1, "'<f4'", "False", &"(".repeat(5000), &zeros), "no description"),
        ([&b"\x93NUMPY"[..], &[2, 0, 255, 255, 255, 255]].concat(), "its header takes 4294967295 bytes"),
        (b"\x93NUMPY".to_vec(), "cut off"),
        (Vec::new(), ""),
        (b"PK\x03\x04nonsense".to_vec(), ""),
        (npz(&[("a.npy", vec![1])], zip::CompressionMethod::Stored), "cut off"),
    ] {
        let message = input(file, &spec(), "").unwrap_err();
        assert!(message.contains("is damaged") && message.contains(fragment), "{fragment}: {message}");
    }
    for (file, fragment) in [
        ([&u64::MAX.to_le_bytes()[..], b"{}"].concat(), "header"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0".to_vec(), "git lfs pull"),
        (b"<!DOCTYPE html>".to_vec(), "web page"),
        (npz(&[("a.txt", vec![1])], zip::CompressionMethod::Stored), "zip archive"),
    ] {
        let message = input(file, &spec(), "").unwrap_err();
        assert!(message.contains("in.latent") && message.contains(fragment), "{fragment}: {message}");
    }
    // What unfolds to a thousand times its size is not taken at its word.
    let bomb = npy(1, "'<f4'", "False", "(1, 4, 2000, 3000)", &vec![0; 96_000_000]);
    let bomb = npz(&[("latents.npy", bomb)], zip::CompressionMethod::Deflated);
    assert!(bomb.len() < 1_000_000);
    assert!(input(bomb, &spec(), "").unwrap_err().contains("would unfold to"));
    let mut flipped = npz(&[("latents.npy", npy(1, "'<f4'", "False", "(1, 4, 1, 1)", &bytes(&[1.0; 4])))], zip::CompressionMethod::Stored);
    let place = flipped.windows(4).position(|four| four == 1.0_f32.to_le_bytes()).unwrap();
    flipped[place] ^= 1;
    assert!(input(flipped, &spec(), "").unwrap_err().contains("is damaged"));
}

#[test]
fn what_torch_saves_is_read() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vae-core/tests/data");
    let config = |settings: &str| Config::from_toml(&format!("[io]\n{settings}")).unwrap().io;
    let expected: Vec<f32> = (0..12).map(|value| value as f32 / 2.0 - 1.0).collect();
    let bare = data.join("bare.pt");
    let two = VaeSpec::image(3, 2, 8);
    let bytes = std::fs::read(&bare).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let renamed = folder.path().join("renamed.safetensors");
    std::fs::write(&renamed, &bytes).unwrap();
    for tensors in [Tensors::read(&bare).unwrap(), Tensors::read(&renamed).unwrap()] {
        let tensor = tensors.input(Direction::Decode, &two, &config("")).unwrap().read().unwrap();
        assert_eq!((tensor.values.shape(), tensor.values.data()), ([1, 2, 1, 2, 3], &expected[..]));
    }
    // Latents as nodes of ComfyUI pass them, with rows and columns exchanged in memory.
    let nested = Tensors::read(&data.join("latents.pt")).unwrap().input(Direction::Decode, &two, &config("")).unwrap().read().unwrap();
    assert_eq!(nested.values, HostTensor::from_fn([1, 2, 1, 2, 3], |[_, c, _, y, x]| expected[c * 6 + x * 2 + y]));
    for name in ["kinds.pt", "kinds-4.pt", "kinds-legacy.pt"] {
        let open = |settings: &str| {
            let input = Tensors::read(&data.join(name)).unwrap().input(Direction::Decode, &VaeSpec::image(3, 1, 8), &config(settings))?;
            Ok::<_, IoError>(input.read()?.values)
        };
        let message = open("tensor = 'state_dict.complex64'").unwrap_err().to_string();
        assert!(message.contains("complex64") && message.contains("expected f64"), "{message}");
        let message = open("").unwrap_err().to_string();
        assert!(message.contains("no tensor named `latents`") && message.contains("more; io.tensor"), "{message}");
    }
    for (name, fragment) in [("module.pt", "state_dict"), ("script.pt", "state_dict")] {
        let error = Tensors::read(&data.join(name)).unwrap_err();
        assert!(matches!(&error, IoError::Unsupported { path, .. } if path.ends_with(name)), "{error:?}");
        assert!(error.to_string().contains(fragment), "{error}");
    }
    let error = from_bytes(&folder, "l.pt", &bytes[..bytes.len() / 2]).unwrap_err();
    assert!(matches!(&error, IoError::Damaged { path, .. } if path.ends_with("l.pt")), "{error:?}");
}

#[test]
fn what_is_not_finite_is_refused_where_it_lies() {
    let mut wrong: Vec<f64> = vec![0.5; 24];
    wrong[7] = 1e300;
    wrong[20] = f64::NAN;
    let data: Vec<u8> = wrong.iter().flat_map(|value| value.to_le_bytes()).collect();
    let file = safetensors(&[("latents", "F64", &[1, 4, 2, 3], data)]);
    let message = input(file.clone(), &spec(), "").unwrap_err();
    assert!(message.contains("in.latent, 2 of 24 values are NaN or infinite") && message.contains("[0, 1, 0, 0, 1]"), "{message}");
    let read = input(file, &spec(), "on_non_finite = 'allow'").unwrap();
    assert!(read.data()[7] == f32::INFINITY && read.data()[20].is_nan());
}

#[test]
fn batches_are_told_from_clips() {
    let folder = tempfile::tempdir().unwrap();
    let samples = values([2, 3, 1, 4, 5]);
    for name in ["s.npy", "s.safetensors"] {
        let path = folder.path().join(name);
        let mut sink = format_of(&path).unwrap().create(&Target { rank: 4, ..Target::new(&path, samples.shape()) }).unwrap();
        sink.take([0; 3], [1, 4, 5], samples.clone()).unwrap();
        sink.finish().unwrap();
        let written = std::fs::read(&path).unwrap();
        write_tensors(&path, &[("samples", &samples)], 4, Origin::default()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), written);
        let read = Tensors::read(&path).unwrap().samples().unwrap();
        assert_eq!((read.values, read.rank), (samples.clone(), 4));
    }
    // A batch that a video model could take for frames says that it is one.
    let video = VaeSpec { frames: FrameRule::Causal { ratio: 4 }, ..spec() };
    let config = Config::default();
    let shape =
        |name: &str| Tensors::read(&folder.path().join(name)).unwrap().input(Direction::Encode, &video, &config.io).map(|input| input.shape());
    assert_eq!(shape("s.safetensors").unwrap(), [2, 3, 1, 4, 5]);
    let error = shape("s.npy").unwrap_err();
    assert!(matches!(&error, IoError::Ambiguous { .. }) && error.is_usage(), "{error:?}");
    let torch = folder.path().join("s.pt");
    assert!(matches!(format_of(&torch).unwrap().create(&Target::new(&torch, [1; 5])), Err(IoError::UnknownKind { .. })));
}

#[test]
fn a_disk_without_room_is_found_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["s.npy", "s.safetensors"] {
        for shape in [[1 << 20, 3, 1, 1 << 15, 1 << 15], [usize::MAX, 3, 1, 8, 8]] {
            let path = folder.path().join(name);
            let error = format_of(&path).unwrap().create(&Target::new(&path, shape)).err().unwrap();
            assert!(matches!(&error, IoError::NoSpace { needed, free, .. } if needed > free), "{error:?}");
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
