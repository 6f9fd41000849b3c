use std::path::{Path, PathBuf};

use tiling::{HostTensor, TileSource};
use vae_core::{FrameRule, VaeSpec};

use super::clip::open_clip;
use super::images::open_image;
use super::{Clip, ClipInfo, FormatKind, Fps, Images, IoError, Spooled, Tensor, Tensors, format_of, is_stream};
use crate::{Direction, Error, FittedFrames, IoConfig};

/// What is encoded.
#[derive(Debug)]
pub enum Samples {
    /// A batch of images.
    Images(Images),
    /// A clip.
    Clip(Clip),
    /// A raw tensor.
    Tensor(Tensor),
}

impl Samples {
    /// Reads what a model encodes: one file of raw samples, one clip, or a batch of images. Animated images (GIF, WebP, PNG) and TIFF files of several
    /// pages are clips for models of video; for models of images, and in a batch, they are refused. `-` is standard input.
    ///
    /// # Errors
    /// When a file cannot be read, does not go with the others or the model, or holds more frames than the model takes.
    pub fn read(paths: &[PathBuf], spec: &VaeSpec, io: &IoConfig) -> Result<Self, IoError> {
        let is_stdin = |path: &&PathBuf| **path == Path::new("-") || **path == Path::new("/dev/stdin");
        if paths.iter().filter(is_stdin).count() > 1 {
            return Err(IoError::OneStandardInput);
        }
        let inputs = paths.iter().map(|path| Input::open(path)).collect::<Result<Vec<_>, _>>()?;
        let paths: Vec<PathBuf> = inputs.iter().map(|input| input.path().to_owned()).collect();
        if let [path] = &paths[..]
            && let Some(samples) = Self::read_one(path, spec, io)?
        {
            return Ok(samples);
        }
        for path in &paths {
            if !format_of(path)?.is_image() {
                return Err(IoError::NotOneBatch { path: path.clone() });
            }
        }
        Ok(Self::Images(Images::read_over(&paths, spec.input_channels, spec.spatial_ratio, io.background)?))
    }

    /// Reads a file by itself; none for an image that a model of images takes, which is a batch of one.
    fn read_one(path: &Path, spec: &VaeSpec, io: &IoConfig) -> Result<Option<Self>, IoError> {
        let (channels, ratio, background) = (spec.input_channels, spec.spatial_ratio, io.background);
        let format = format_of(path)?;
        // An animation is a clip to a model of video only.
        let is_video = spec.frames != FrameRule::Image;
        Ok(Some(match format.kind() {
            FormatKind::Tensors => Self::Tensor(Tensors::read(path)?.input(Direction::Encode, spec, io)?.read()?),
            FormatKind::Clip if is_video || !format.is_image() => {
                let reader = open_clip(path)?;
                check_frames(path, reader.info(), spec)?;
                Self::Clip(Clip::from_reader(path, reader, channels, ratio, background)?)
            }
            FormatKind::Image if is_video => {
                let reader = open_image(path)?;
                if reader.info().frames > 1 {
                    Self::Clip(Clip::from_reader(path, reader, channels, ratio, background)?)
                } else {
                    Self::Images(Images::from_readers(std::iter::once(Ok((path.to_owned(), reader))), channels, ratio, background)?)
                }
            }
            _ => return Ok(None),
        }))
    }

    /// The samples, padded to whole latent px where they are images or a clip.
    pub fn source(&self) -> &dyn TileSource {
        match self {
            Self::Images(images) => images,
            Self::Clip(clip) => clip,
            Self::Tensor(tensor) => &tensor.values,
        }
    }

    /// 4 (without frames) or 5: the rank in which latents of them are written.
    pub fn rank(&self) -> usize {
        match self {
            Self::Images(_) => 4,
            Self::Clip(_) => 5,
            Self::Tensor(tensor) => tensor.rank,
        }
    }

    /// Height and width before padding, in px.
    pub fn size(&self) -> [usize; 2] {
        let [_, _, _, height, width] = self.source().shape();
        self.image_size().unwrap_or([height, width])
    }

    /// The same of images and clips, which are padded.
    pub fn image_size(&self) -> Option<[usize; 2]> {
        match self {
            Self::Images(images) => Some(images.size()),
            Self::Clip(clip) => Some(clip.size()),
            Self::Tensor(_) => None,
        }
    }

    /// Frames a second of a clip that says it.
    pub fn fps(&self) -> Option<Fps> {
        match self {
            Self::Clip(clip) => clip.fps(),
            Self::Images(_) | Self::Tensor(_) => None,
        }
    }
}

/// An input as a file: what comes through a pipe is spooled.
#[derive(Debug)]
pub enum Input {
    /// A file that others can open by its name.
    File(PathBuf),
    /// What came through a pipe.
    Spooled(Spooled),
}

impl Input {
    /// Opens an input; `-` is standard input.
    ///
    /// # Errors
    /// When a pipe cannot be read, or its content is of no known format.
    pub fn open(path: &Path) -> Result<Self, IoError> {
        Ok(if is_stream(path) { Self::Spooled(Spooled::read(path)?) } else { Self::File(path.to_owned()) })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Spooled(spooled) => spooled.path(),
        }
    }

    /// What a run would take of the input: the direction and the shape `[batch, channels, frames, height, width]`. No values are read.
    ///
    /// Without a direction, latents are decoded, and everything else is encoded. Images and clips count as their latents in a decode.
    ///
    /// # Errors
    /// When it cannot be read, or the model does not take it.
    pub fn shape(&self, direction: Option<Direction>, spec: &VaeSpec, io: &IoConfig) -> Result<(Direction, [usize; 5]), Error> {
        let path = self.path();
        if format_of(path)?.kind() != FormatKind::Tensors {
            let info = check_frames(path, open_clip(path)?.info(), spec)?;
            let direction = direction.unwrap_or(Direction::Encode);
            return Ok((direction, planned_shape(info.frames, info.size, direction, spec, io)?));
        }
        let of_tensor = |direction| Ok::<_, IoError>(Tensors::read(path)?.input(direction, spec, io)?.shape());
        if let Some(direction) = direction {
            return Ok((direction, of_tensor(direction)?));
        }
        Ok(match of_tensor(Direction::Decode) {
            // A file with one tensor says by its channels which it is.
            Ok(shape) if shape[1] != spec.latent_channels && shape[1] == spec.input_channels => (Direction::Encode, shape),
            Ok(shape) => (Direction::Decode, shape),
            Err(IoError::NoTensor { .. }) => (Direction::Encode, of_tensor(Direction::Encode)?),
            // What cannot be latents may be samples.
            Err(error @ IoError::Shape { .. }) => of_tensor(Direction::Encode).map(|shape| (Direction::Encode, shape)).map_err(|_| error)?,
            Err(error) => return Err(error.into()),
        })
    }
}

/// The input shape `[batch, channels, frames, height, width]` of a run over a clip of `frames` frames of `size` (height and width, in px): the samples of an
/// encode, padded to whole latent px and fitted to the frames that a model takes, or the latents of them.
///
/// # Errors
/// When the model does not take that number of frames.
pub fn planned_shape(frames: usize, size: [usize; 2], direction: Direction, spec: &VaeSpec, io: &IoConfig) -> Result<[usize; 5], Error> {
    let clip = HostTensor::zeros([1, 0, frames, 1, 1]);
    let frames = FittedFrames::new(&clip, spec.frames, io.frames)?.shape()[2];
    let [height, width] = size.map(|side| side.next_multiple_of(spec.spatial_ratio));
    Ok(match direction {
        Direction::Encode => [1, spec.input_channels, frames, height, width],
        Direction::Decode => {
            let frames = spec.encode_geometry().frames.output(frames);
            [1, spec.latent_channels, frames, height / spec.spatial_ratio, width / spec.spatial_ratio]
        }
    })
}

fn check_frames(path: &Path, info: ClipInfo, spec: &VaeSpec) -> Result<ClipInfo, IoError> {
    match info.frames {
        frames if frames > 1 && spec.frames == FrameRule::Image => Err(IoError::Animated { path: path.to_owned(), frames }),
        _ => Ok(info),
    }
}

#[cfg(test)]
mod tests {
    use image::codecs::gif::GifEncoder;
    use image::{DynamicImage, Frame, Rgb, RgbImage, Rgba, RgbaImage};
    use tempfile::TempDir;
    use tiff::encoder::{TiffEncoder, colortype};
    use tiling::Region;

    use super::super::Background;
    use super::*;
    use crate::Config;

    fn models() -> [VaeSpec; 2] {
        let image = VaeSpec::image(3, 4, 8);
        [image.clone(), VaeSpec { frames: FrameRule::Causal { ratio: 4 }, ..image }]
    }

    fn read(paths: &[PathBuf], spec: &VaeSpec, background: Background) -> Result<Samples, IoError> {
        Samples::read(paths, spec, &IoConfig { background, ..Config::default().io })
    }

    fn probe(path: &Path, spec: &VaeSpec) -> Result<ClipInfo, IoError> {
        check_frames(path, open_clip(path)?.info(), spec)
    }

    /// A TIFF file with pages of the given widths.
    fn pages(folder: &TempDir, name: &str, widths: &[u32]) -> PathBuf {
        let path = folder.path().join(name);
        let mut encoder = TiffEncoder::new(std::fs::File::create(&path).unwrap()).unwrap();
        for (shade, &width) in (0..).zip(widths) {
            encoder.write_image::<colortype::RGB8>(width, 8, &vec![10 * shade; 24 * width as usize]).unwrap();
        }
        path
    }

    fn gif(folder: &TempDir, name: &str, frames: u32) -> PathBuf {
        let path = folder.path().join(name);
        let mut encoder = GifEncoder::new(std::fs::File::create(&path).unwrap());
        for frame in 0..frames {
            encoder.encode_frame(Frame::new(RgbaImage::from_pixel(8, 8, Rgba([(40 * frame) as u8, 0, 0, 255])))).unwrap();
        }
        path
    }

    #[test]
    fn animations_are_clips_for_models_of_video_only() {
        let folder = tempfile::tempdir().unwrap();
        let [image, video] = models();
        // The name says nothing.
        for path in [pages(&folder, "pages.tif", &[8; 5]), gif(&folder, "moving.png", 5), gif(&folder, "moving.gif", 5)] {
            let read = |spec, paths: &[PathBuf]| read(paths, spec, Background::None);
            let Ok(Samples::Clip(clip)) = read(&video, std::slice::from_ref(&path)) else { panic!("{path:?} is no clip") };
            assert_eq!(clip.shape(), [1, 3, 5, 8, 8]);
            for (spec, paths) in [(&image, vec![path.clone()]), (&image, vec![path.clone(); 2]), (&video, vec![path.clone(); 2])] {
                let error = read(spec, &paths).unwrap_err();
                assert!(matches!(error, IoError::Animated { frames: 5, .. }) && error.is_usage(), "{error}");
            }
            let info = probe(&path, &video).unwrap();
            assert_eq!((info.frames, info.size, info.fps), (5, [8, 8], clip.fps()));
            assert!(matches!(probe(&path, &image), Err(IoError::Animated { frames: 5, .. })));
        }
        for path in [pages(&folder, "page.tif", &[8]), gif(&folder, "still.gif", 1)] {
            let Ok(Samples::Images(images)) = read(&[path.clone(), path.clone()], &image, Background::None) else { panic!("{path:?}") };
            assert_eq!(images.shape(), [2, 3, 1, 8, 8]);
            assert!(matches!(read(&[path], &image, Background::None), Ok(Samples::Images(_))));
        }
        let error = read(&[pages(&folder, "sizes.tif", &[8, 16])], &video, Background::None).unwrap_err();
        assert!(matches!(error, IoError::ImageSize { .. }), "{error}");
        let frames = folder.path().join("frames");
        std::fs::create_dir(&frames).unwrap();
        for name in ["1.png", "2.png"] {
            RgbImage::from_pixel(8, 8, Rgb([9; 3])).save(frames.join(name)).unwrap();
        }
        assert!(matches!(read(std::slice::from_ref(&frames), &image, Background::None), Err(IoError::Animated { frames: 2, .. })));
        assert!(matches!(read(&[frames.join("1.png"), frames], &video, Background::None), Err(IoError::NotOneBatch { .. })));
    }

    #[test]
    fn a_background_lies_below_what_is_transparent() {
        let folder = tempfile::tempdir().unwrap();
        let [image, video] = models();
        let frames = folder.path().join("frames");
        std::fs::create_dir(&frames).unwrap();
        let path = frames.join("1.png");
        RgbaImage::from_pixel(8, 8, Rgba([200, 100, 0, 51])).save(&path).unwrap();
        let first = |samples: Samples| {
            let region = Region { start: [0; 3], size: [1, 1, 1] };
            let tensor = samples.source().read(&region);
            tensor.unwrap().into_data().into_iter().map(|value| ((value + 1.0) * 127.5).round() as u8).collect::<Vec<_>>()
        };
        for (background, expected) in [("none", [200, 100, 0]), ("black", [40, 20, 0]), ("white", [244, 224, 204]), ("#00ff0a", [40, 224, 8])] {
            for (spec, path) in [(&image, &path), (&video, &frames)] {
                assert_eq!(first(read(std::slice::from_ref(path), spec, background.parse().unwrap()).unwrap()), expected, "{background}");
            }
        }
        let four = VaeSpec::image(4, 4, 8);
        assert_eq!(first(read(&[path], &four, Background::Color([0; 3])).unwrap()), [200, 100, 0, 51]);
    }

    #[test]
    fn sixteen_bits_are_rounded_to_eight() {
        let folder = tempfile::tempdir().unwrap();
        let [_, video] = models();
        RgbImage::from_pixel(8, 8, Rgb([7; 3])).save(folder.path().join("1.png")).unwrap();
        // The first frame has 8 bits, and so has the clip.
        let deep = image::ImageBuffer::<Rgb<u16>, _>::from_pixel(8, 8, Rgb([128, 129, 65_535 - 128]));
        DynamicImage::ImageRgb16(deep).save(folder.path().join("2.png")).unwrap();
        let Ok(Samples::Clip(clip)) = read(&[folder.path().to_owned()], &video, Background::None) else { panic!("no clip") };
        let tensor = clip.read(&Region { start: [1, 0, 0], size: [1, 1, 1] }).unwrap();
        let values: Vec<f32> = tensor.data().iter().map(|value| ((value + 1.0) * 127.5 * 1000.0).round() / 1000.0).collect();
        assert_eq!(values, [0.0, 1.0, 255.0]);
    }
}
