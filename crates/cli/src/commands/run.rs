use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;
use tilevae::io::{self, FileKind, PictureSink, Pictures, Tensors};
use tilevae::tiling::{Canvas, Region, RowSink};
use tilevae::{Config, Direction, Model, Pipeline, RunPlan, RunStats, TileSource, VaeSpec, metrics};

use crate::args::{self, Common};
use crate::commands::UsageError;
use crate::output::{Bar, print};

pub(crate) fn decode(common: &Common, args: &args::Decode) -> anyhow::Result<()> {
    let config = super::configuration(common)?;
    let output = Output::new(&args.output)?;
    let tensor = Tensors::read(&args.latents)?.latents()?;
    let model = super::open_model(&config)?;
    let plan = planned(&config, &model, Direction::Decode, tensor.block.shape())?;
    let crop = tensor.picture_size.filter(|&size| is_padding(size, [plan.output_shape[3], plan.output_shape[4]], model.spec.spatial_ratio));
    let mut sink = output.sink(&plan.output_shape, crop, &config)?;
    let pipeline = Pipeline::load_model(&config, &model)?;
    let stats = pipeline.decode_to(&tensor.block, sink.rows(), &mut Bar::new(common, "decoding"))?;
    let mut shape = plan.output_shape;
    if let (SampleSink::Picture(_), Some(size)) = (&sink, crop) {
        [shape[3], shape[4]] = size;
    }
    let files = sink.write(tensor.rank)?;
    report(common, &files, shape, &stats)
}

pub(crate) fn encode(common: &Common, args: &args::Encode) -> anyhow::Result<()> {
    let config = super::configuration(common)?;
    if FileKind::of(&args.output)?.is_picture() {
        return Err(UsageError(format!("{} would be a picture; latents are written as .safetensors or .npy", args.output.display())).into());
    }
    io::check_writable(&args.output)?;
    if config.io.posterior == tilevae::Posterior::Moments && FileKind::of(&args.output)? == FileKind::Npy {
        return Err(io::IoError::OneTensor { path: args.output.clone() }.into());
    }
    let model = super::open_model(&config)?;
    let samples = Samples::read(&args.samples, &model.spec)?;
    planned(&config, &model, Direction::Encode, samples.source().shape())?;
    let pipeline = Pipeline::load_model(&config, &model)?;
    let encoded = pipeline.encode(samples.source(), &mut Bar::new(common, "encoding"))?;
    let mut tensors = vec![("latents", &encoded.latents)];
    if let Some([mean, log_variance]) = &encoded.moments {
        tensors.extend([("mean", mean), ("logvar", log_variance)]);
    }
    io::write_tensors(&args.output, &tensors, samples.rank(), samples.picture_size())?;
    report(common, std::slice::from_ref(&args.output), encoded.latents.shape(), &encoded.stats)
}

pub(crate) fn roundtrip(common: &Common, args: &args::Roundtrip) -> anyhow::Result<()> {
    let config = super::configuration(common)?;
    let output = args.output.as_deref().map(Output::new).transpose()?;
    let model = super::open_model(&config)?;
    let samples = Samples::read(&args.samples, &model.spec)?;
    let there = planned(&config, &model, Direction::Encode, samples.source().shape())?;
    let [batch, _, frames, height, width] = there.output_shape;
    planned(&config, &model, Direction::Decode, [batch, model.spec.latent_channels, frames, height, width])?;
    let size = samples.size();
    let channels = [model.spec.input_channels, model.spec.output_channels];
    if channels[0] != channels[1] {
        return Err(UsageError(format!("the model takes {} channels and gives {}: they cannot be compared", channels[0], channels[1])).into());
    }
    let mut shape = samples.source().shape();
    [shape[3], shape[4]] = size;
    let sink = output.map(|output| output.sink(&shape, samples.picture_size(), &config)).transpose()?;

    let pipeline = Pipeline::load_model(&config, &model)?;
    let encoded = pipeline.encode(samples.source(), &mut Bar::new(common, "encoding"))?;
    let mut canvas = Canvas::default();
    let stats = pipeline.decode_to(&encoded.latents, &mut canvas, &mut Bar::new(common, "decoding"))?;
    let decoded = canvas.into_block();
    // A side that is no multiple of the ratio comes back shorter from raw samples, and longer (padded) from a picture.
    let common_size = [size[0].min(decoded.shape()[3]), size[1].min(decoded.shape()[4])];
    let whole = |block_frames: usize| Region { start: [0; 3], size: [block_frames, common_size[0], common_size[1]] };
    let original = samples.source().read(&whole(shape[2])).map_err(|error| anyhow::anyhow!(error)).context("the samples could not be read")?;
    let mut back = decoded.region(&whole(decoded.shape()[2]));
    if samples.picture_size().is_some() {
        back.data_mut().iter_mut().for_each(|value| *value = value.clamp(-1.0, 1.0));
    }
    let (psnr, ssim) = (metrics::psnr(&original, &back), metrics::ssim(&original, &back));
    let files = match sink {
        Some(mut sink) => {
            sink.rows().rows(0, back.extent(), back).map_err(|error| anyhow::anyhow!(error))?;
            sink.write(samples.rank())?
        }
        None => Vec::new(),
    };
    let seconds = (encoded.stats.elapsed + stats.elapsed).as_secs_f64();
    let tiles = encoded.stats.tiles + stats.tiles;
    let mut text = format!("PSNR {psnr:.2} dB, SSIM {ssim:.4}, {tiles} tiles in {seconds:.2} s\n");
    for file in &files {
        text += &format!("wrote {}\n", file.display());
    }
    let finite = psnr.is_finite().then_some(psnr);
    print(common, &text, &json!({"psnr_db": finite, "ssim": ssim, "files": files, "tiles": tiles, "seconds": seconds}))
}

/// The plan, so that what cannot be run is refused before weights load.
fn planned(config: &Config, model: &Model, direction: Direction, shape: [usize; 5]) -> Result<RunPlan, tilevae::Error> {
    for name in &config.devices.names {
        tilevae::open_device(name)?;
    }
    RunPlan::new(config, model.entry.name, &model.spec, direction, shape)
}

fn report(common: &Common, files: &[PathBuf], shape: [usize; 5], stats: &RunStats) -> anyhow::Result<()> {
    let seconds = stats.elapsed.as_secs_f64();
    let names = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
    let shape_text = shape.map(|side| side.to_string()).join("x");
    let tiles = if stats.tiles == 1 { "1 tile".to_owned() } else { format!("{} tiles", stats.tiles) };
    let text = format!("wrote {names}: {shape_text} in {tiles}, {seconds:.2} s");
    print(common, &text, &json!({"files": files, "shape": shape, "tiles": stats.tiles, "seconds": seconds}))
}

/// Whether `whole` is `size` padded to a multiple of `ratio`: then a picture that once had that size may be cropped to it.
fn is_padding(size: [usize; 2], whole: [usize; 2], ratio: usize) -> bool {
    (0..2).all(|axis| size[axis] > 0 && size[axis].next_multiple_of(ratio) == whole[axis])
}

/// What is encoded: pictures, or a raw tensor.
enum Samples {
    Pictures(Pictures),
    Raw(io::Tensor),
}

impl Samples {
    fn read(paths: &[PathBuf], spec: &VaeSpec) -> anyhow::Result<Self> {
        let pictures = paths.iter().map(|path| Ok(FileKind::of(path)?.is_picture())).collect::<Result<Vec<bool>, io::IoError>>();
        match pictures?[..] {
            [false] => Ok(Self::Raw(Tensors::read(&paths[0])?.samples()?)),
            ref kinds if kinds.iter().all(|&picture| picture) => Ok(Self::Pictures(Pictures::read(paths, spec.input_channels, spec.spatial_ratio)?)),
            _ => Err(UsageError("several inputs must all be pictures; raw samples come as one file with a batch".to_owned()).into()),
        }
    }

    fn source(&self) -> &dyn TileSource {
        match self {
            Self::Pictures(pictures) => pictures,
            Self::Raw(tensor) => &tensor.block,
        }
    }

    fn rank(&self) -> usize {
        match self {
            Self::Pictures(_) => 4,
            Self::Raw(tensor) => tensor.rank,
        }
    }

    /// Height and width before padding.
    fn size(&self) -> [usize; 2] {
        let [_, _, _, height, width] = self.source().shape();
        self.picture_size().unwrap_or([height, width])
    }

    fn picture_size(&self) -> Option<[usize; 2]> {
        match self {
            Self::Pictures(pictures) => Some(pictures.size()),
            Self::Raw(_) => None,
        }
    }
}

/// Where samples go, checked before work is spent on them.
struct Output {
    path: PathBuf,
    kind: FileKind,
}

impl Output {
    fn new(path: &Path) -> anyhow::Result<Self> {
        let kind = FileKind::of(path)?;
        io::check_writable(path)?;
        Ok(Self { path: path.to_owned(), kind })
    }

    fn sink(self, shape: &[usize; 5], crop: Option<[usize; 2]>, config: &Config) -> anyhow::Result<SampleSink> {
        if self.kind.is_picture() {
            let sink = PictureSink::new(&self.path, [shape[1], shape[2]], crop, config.io.jpeg_quality)?;
            return Ok(SampleSink::Picture(sink));
        }
        Ok(SampleSink::Raw { path: self.path, canvas: Canvas::default() })
    }
}

/// Takes samples and writes them.
enum SampleSink {
    Picture(PictureSink),
    Raw { path: PathBuf, canvas: Canvas },
}

impl SampleSink {
    fn rows(&mut self) -> &mut dyn RowSink {
        match self {
            Self::Picture(sink) => sink,
            Self::Raw { canvas, .. } => canvas,
        }
    }

    fn write(self, rank: usize) -> anyhow::Result<Vec<PathBuf>> {
        match self {
            Self::Picture(sink) => Ok(sink.write()?),
            Self::Raw { path, canvas } => {
                io::write_tensors(&path, &[("samples", &canvas.into_block())], rank, None)?;
                Ok(vec![path])
            }
        }
    }
}
