//! Files to files, with three calls of the library each; and a format that is registered from outside.

use std::fs;
use std::path::{Path, PathBuf};

use tilevae::io::{
    self, ClipInfo, DecodeJob, EncodeJob, Format, FormatKind, FrameReader, Frames, ImageWriter, IoError, Output, Pixels8, Reader, RoundTripJob,
    Target, Tensors, Writer, until_error,
};
use tilevae::{Config, Pipeline, RunOptions};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn config() -> Config {
    let mut config = Config::default();
    config.model.path = root("models/demo-kl");
    config
}

const LATENTS: &str = "examples/latents/chelsea.safetensors";
const PHOTOGRAPH: &str = "examples/images/chelsea.png";

#[test]
fn latents_become_a_image() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("out.png");

    let pipeline = Pipeline::load(&config())?;
    let job = DecodeJob::new(&pipeline, root(LATENTS), &Output::samples(&path, None)?)?;
    let written = job.run(&pipeline, RunOptions::default())?;

    // The latents remember the size of the photograph, which is no multiple of 8.
    assert_eq!((&written.files[..], written.shape), (&[path.clone()][..], [1, 3, 1, 300, 451]));
    assert_eq!(io::image_size(&path)?, [300, 451]);
    assert_eq!(fs::read_dir(folder.path())?.count(), 1);
    Ok(())
}

#[test]
fn latents_in_memory_become_an_image() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let (path, other) = (folder.path().join("out.png"), folder.path().join("other.png"));

    let pipeline = Pipeline::load(&config())?;
    let latents = Tensors::read(&root(LATENTS))?.latents()?;
    let written = DecodeJob::of_tensor(&pipeline, latents, &Output::samples(&path, None)?)?.run(&pipeline, RunOptions::default())?;
    DecodeJob::new(&pipeline, root(LATENTS), &Output::samples(&other, None)?)?.run(&pipeline, RunOptions::default())?;

    assert_eq!((&written.files[..], written.shape), (&[path.clone()][..], [1, 3, 1, 300, 451]));
    assert_eq!(fs::read(&path)?, fs::read(&other)?);
    let latents = Tensors::read(&root(LATENTS))?.latents()?;
    let model = Output::samples(root("models/demo-kl/diffusion_pytorch_model.safetensors"), None)?;
    assert!(matches!(DecodeJob::of_tensor(&pipeline, latents, &model), Err(tilevae::Error::Io(IoError::WouldReplace { .. }))));
    Ok(())
}

#[test]
fn an_image_becomes_latents() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("out.safetensors");

    let pipeline = Pipeline::load(&config())?;
    let job = EncodeJob::new(&pipeline, &[root(PHOTOGRAPH)], &Output::latents(&path, None)?)?;
    let written = job.run(&pipeline, RunOptions::default())?;

    let latents = Tensors::read(&path)?.latents()?;
    assert_eq!((latents.values.shape(), latents.rank, latents.origin.size), (written.shape, 4, Some([300, 451])));
    Ok(())
}

#[test]
fn an_image_goes_there_and_back() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("out.npy");

    let pipeline = Pipeline::load(&config())?;
    let job = RoundTripJob::new(&pipeline, &[root(PHOTOGRAPH)], Some(&Output::samples(&path, None)?))?;
    let there_and_back = job.run(&pipeline, RunOptions::default())?;

    assert!(there_and_back.comparison.psnr() > 20.0, "{} dB", there_and_back.comparison.psnr());
    assert_eq!(Tensors::read(&path)?.samples()?.values.shape(), there_and_back.shape);
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_without_weights() {
    let folder = tempfile::tempdir().unwrap();
    let config = config();
    let model = tilevae::open_model(&config).unwrap();
    let latents = folder.path().join("l.safetensors");
    fs::copy(root(LATENTS), &latents).unwrap();
    let job = |output: &Path| DecodeJob::new(&(&config, &model), &latents, &Output::samples(output, None)?).map(|job| job.plan().clone());
    let error = job(&latents).unwrap_err();
    assert!(error.is_usage() && error.kind() == "arguments" && error.to_string().contains("would replace the input"), "{error}");
    let error = job(&folder.path().join("none/out.png")).unwrap_err();
    assert!(error.to_string().contains("cannot be written"), "{error}");
    let error =
        EncodeJob::new(&(&config, &model), &[root("examples/clips/chelsea.gif")], &Output::latents(folder.path().join("o.npy"), None).unwrap());
    assert!(error.err().unwrap().to_string().contains("frames, where one is expected"));
    assert!(matches!(Output::latents(folder.path().join("o.png"), None), Err(IoError::NotLatents { .. })));
    assert_eq!(job(&folder.path().join("out.png")).unwrap().output_shape, [1, 3, 1, 304, 456]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// An image as text: height, width, then a line for each row of grey levels in hexadecimal.
struct Hex;

tilevae::register_format!(Hex);

impl Format for Hex {
    fn name(&self) -> &'static str {
        "hex"
    }

    fn endings(&self) -> &'static [&'static str] {
        &["hex"]
    }

    fn kind(&self) -> FormatKind {
        FormatKind::Image
    }

    fn matches(&self, head: &[u8]) -> bool {
        head.starts_with(b"hex ")
    }

    fn open(&self, path: &Path) -> Result<Reader, IoError> {
        let text = fs::read_to_string(path).map_err(|source| IoError::Read { path: path.to_owned(), source })?;
        let damaged = || IoError::Damaged { path: path.to_owned(), message: "it is no hexadecimal image".to_owned() };
        let mut lines = text.lines();
        let header = lines.next().and_then(|line| line.strip_prefix("hex ")?.split_once(' ')).ok_or_else(damaged)?;
        let [height, width] = [header.0, header.1].map(|side| side.parse().unwrap_or(0));
        let digits: String = lines.collect();
        let levels = (0..digits.len() / 2).map_while(|at| u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok());
        let image = image::GrayImage::from_raw(width, height, levels.collect()).ok_or_else(damaged)?;
        Ok(Reader::Frames(Box::new(HexImage(image))))
    }

    fn create(&self, target: &Target<'_>) -> Result<Box<dyn Writer>, IoError> {
        Ok(Box::new(ImageWriter::new(target, |Pixels8 { bytes, size: [height, width], .. }| {
            let pixels = bytes.chunks(bytes.len() / (height * width) as usize);
            let levels: Vec<String> = pixels.map(|pixel| format!("{:02x}", pixel[0])).collect();
            Ok(format!("hex {height} {width}\n{}\n", levels.join("")).into_bytes())
        })))
    }
}

struct HexImage(image::GrayImage);

impl FrameReader for HexImage {
    fn info(&self) -> ClipInfo {
        ClipInfo { size: [self.0.height() as usize, self.0.width() as usize], frames: 1, fps: None }
    }

    fn frames(self: Box<Self>) -> Result<Frames, IoError> {
        let mut image = Some(self.0.into());
        Ok(until_error(move || Ok(image.take())))
    }
}

#[test]
fn a_format_from_outside_is_written_and_read() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let [image, latents] = ["out.hex", "out.npy"].map(|name| folder.path().join(name));
    let pipeline = Pipeline::load(&config())?;
    let job = DecodeJob::new(&pipeline, root(LATENTS), &Output::samples(&image, None)?)?;
    job.run(&pipeline, RunOptions::default())?;
    assert!(fs::read_to_string(&image)?.starts_with("hex 300 451\n"));
    // The format is recognised by content.
    let renamed = folder.path().join("renamed.png");
    fs::rename(&image, &renamed)?;
    let job = EncodeJob::new(&pipeline, &[renamed], &Output::latents(&latents, None)?)?;
    job.run(&pipeline, RunOptions::default())?;
    assert_eq!(Tensors::read(&latents)?.latents()?.values.shape(), [1, 16, 1, 38, 57]);
    assert_eq!(io::format_named("hex").map(Format::kind), Some(FormatKind::Image));
    assert!(io::endings(Format::is_written).contains(".tiff, .hex, .y4m"));
    Ok(())
}
