use std::path::{Path, PathBuf};

use vae_core::{FrameRule, VaeSpec};

use super::clip::open_clip;
use super::pictures::open_picture;
use super::{Background, Clip, ClipInfo, FormatKind, IoError, Pictures, format_of};

/// What pictures and clips are encoded as.
#[derive(Debug)]
pub enum Media {
    /// A batch of pictures.
    Pictures(Pictures),
    /// A clip.
    Clip(Clip),
}

impl Media {
    /// Reads pictures or a clip for a model. Animated pictures (GIF, WebP, PNG) and TIFF files of several pages are clips for models of video; for models of
    /// pictures, and in a batch, they are refused.
    ///
    /// # Errors
    /// When a file cannot be read, does not go with the others or the model, or holds more frames than the model takes.
    pub fn read(paths: &[PathBuf], spec: &VaeSpec, background: Background) -> Result<Self, IoError> {
        let (channels, ratio) = (spec.input_channels, spec.spatial_ratio);
        if let [path] = paths {
            let format = format_of(path)?;
            // An animation is a clip to a model of video only.
            let is_video = spec.frames != FrameRule::Image;
            if format.kind() == FormatKind::Clip && (is_video || !format.is_picture()) {
                let reader = open_clip(path)?;
                check_frames(path, reader.info(), spec)?;
                return Clip::from_reader(path, reader, channels, ratio, background).map(Self::Clip);
            }
            if is_video && format.is_picture() {
                let reader = open_picture(path)?;
                return if reader.info().frames > 1 {
                    Clip::from_reader(path, reader, channels, ratio, background).map(Self::Clip)
                } else {
                    Pictures::from_readers(std::iter::once(Ok((path.clone(), reader))), channels, ratio, background).map(Self::Pictures)
                };
            }
        }
        for path in paths {
            if !format_of(path)?.is_picture() {
                return Err(IoError::NotOneBatch { path: path.clone() });
            }
        }
        Ok(Self::Pictures(Pictures::read_over(paths, channels, ratio, background)?))
    }

    /// What is known of a picture or a clip for a model without decoding it.
    ///
    /// # Errors
    /// When it cannot be read, or holds more frames than the model takes.
    pub fn probe(path: &Path, spec: &VaeSpec) -> Result<ClipInfo, IoError> {
        check_frames(path, Clip::probe(path)?, spec)
    }
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
    use tiling::{Region, TileSource};

    use super::*;

    fn models() -> [VaeSpec; 2] {
        let image = VaeSpec::image(3, 4, 8);
        [image.clone(), VaeSpec { frames: FrameRule::Causal { ratio: 4 }, ..image }]
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
            let read = |spec, paths: &[PathBuf]| Media::read(paths, spec, Background::None);
            let Ok(Media::Clip(clip)) = read(&video, std::slice::from_ref(&path)) else { panic!("{path:?} is no clip") };
            assert_eq!(clip.shape(), [1, 3, 5, 8, 8]);
            for (spec, paths) in [(&image, vec![path.clone()]), (&image, vec![path.clone(); 2]), (&video, vec![path.clone(); 2])] {
                let error = read(spec, &paths).unwrap_err();
                assert!(matches!(error, IoError::Animated { frames: 5, .. }) && error.is_usage(), "{error}");
            }
            let info = Media::probe(&path, &video).unwrap();
            assert_eq!((info.frames, info.size, info.fps), (5, [8, 8], clip.fps()));
            assert!(matches!(Media::probe(&path, &image), Err(IoError::Animated { frames: 5, .. })));
        }
        for path in [pages(&folder, "page.tif", &[8]), gif(&folder, "still.gif", 1)] {
            let Ok(Media::Pictures(pictures)) = Media::read(&[path.clone(), path.clone()], &image, Background::None) else { panic!("{path:?}") };
            assert_eq!(pictures.shape(), [2, 3, 1, 8, 8]);
            assert!(matches!(Media::read(&[path], &image, Background::None), Ok(Media::Pictures(_))));
        }
        let error = Media::read(&[pages(&folder, "sizes.tif", &[8, 16])], &video, Background::None).unwrap_err();
        assert!(matches!(error, IoError::PictureSize { .. }), "{error}");
        let frames = folder.path().join("frames");
        std::fs::create_dir(&frames).unwrap();
        for name in ["1.png", "2.png"] {
            RgbImage::from_pixel(8, 8, Rgb([9; 3])).save(frames.join(name)).unwrap();
        }
        assert!(matches!(Media::read(std::slice::from_ref(&frames), &image, Background::None), Err(IoError::Animated { frames: 2, .. })));
        assert!(matches!(Media::read(&[frames.join("1.png"), frames], &video, Background::None), Err(IoError::NotOneBatch { .. })));
    }

    #[test]
    fn a_background_lies_below_what_is_transparent() {
        let folder = tempfile::tempdir().unwrap();
        let [image, video] = models();
        let frames = folder.path().join("frames");
        std::fs::create_dir(&frames).unwrap();
        let path = frames.join("1.png");
        RgbaImage::from_pixel(8, 8, Rgba([200, 100, 0, 51])).save(&path).unwrap();
        let first = |media: Media| {
            let region = Region { start: [0; 3], size: [1, 1, 1] };
            let block = match &media {
                Media::Pictures(pictures) => pictures.read(&region),
                Media::Clip(clip) => clip.read(&region),
            };
            block.unwrap().into_data().into_iter().map(|value| ((value + 1.0) * 127.5).round() as u8).collect::<Vec<_>>()
        };
        for (background, expected) in [("none", [200, 100, 0]), ("black", [40, 20, 0]), ("white", [244, 224, 204]), ("#00ff0a", [40, 224, 8])] {
            for (spec, path) in [(&image, &path), (&video, &frames)] {
                assert_eq!(first(Media::read(std::slice::from_ref(path), spec, background.parse().unwrap()).unwrap()), expected, "{background}");
            }
        }
        let four = VaeSpec::image(4, 4, 8);
        assert_eq!(first(Media::read(&[path], &four, Background::Color([0; 3])).unwrap()), [200, 100, 0, 51]);
    }

    #[test]
    fn sixteen_bits_are_rounded_to_eight() {
        let folder = tempfile::tempdir().unwrap();
        let [_, video] = models();
        RgbImage::from_pixel(8, 8, Rgb([7; 3])).save(folder.path().join("1.png")).unwrap();
        // The first frame has 8 bits, and so has the clip.
        let deep = image::ImageBuffer::<Rgb<u16>, _>::from_pixel(8, 8, Rgb([128, 129, 65_535 - 128]));
        DynamicImage::ImageRgb16(deep).save(folder.path().join("2.png")).unwrap();
        let Ok(Media::Clip(clip)) = Media::read(&[folder.path().to_owned()], &video, Background::None) else { panic!("no clip") };
        let block = clip.read(&Region { start: [1, 0, 0], size: [1, 1, 1] }).unwrap();
        let values: Vec<f32> = block.data().iter().map(|value| ((value + 1.0) * 127.5 * 1000.0).round() / 1000.0).collect();
        assert_eq!(values, [0.0, 1.0, 255.0]);
    }
}
