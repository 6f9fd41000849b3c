use std::path::Path;

use super::super::IoError;
use super::super::formats::{PictureFile, Seconds};
use super::{ClipInfo, Fps, Frames, gif};

/// What players show a frame for that is to be shown for no more than 10 ms: old files have 0, and mean no haste.
const OF_NONE: Seconds = [1, 10];

pub(super) fn probe(path: &Path) -> Result<ClipInfo, IoError> {
    let picture = PictureFile::open(path)?;
    Ok(ClipInfo { size: picture.size(), frames: picture.frames(), fps: rate(picture.delays()).map(|(fps, _)| fps) })
}

/// The frames of an animated picture, or the pages of a TIFF file, which have no rate. The rate is that of all frames over their time together.
pub(super) fn open(path: &Path) -> Result<(Frames, Option<Fps>), IoError> {
    let picture = PictureFile::open(path)?;
    if picture.is_gif() && picture.frames() > 1 {
        return gif::open(path);
    }
    let rate = rate(picture.delays());
    if let Some((fps, [shortest, longest])) = rate
        && shortest < longest
    {
        warn_of_delays(path, fps, [shortest, longest]);
    }
    Ok((picture.into_frames()?, rate.map(|(fps, _)| fps)))
}

/// Says that a clip gets one rate whose frames are shown for unequal times, in ms.
pub(super) fn warn_of_delays(path: &Path, fps: Fps, [shortest, longest]: [u64; 2]) {
    tracing::warn!("{} shows its frames for {shortest} to {longest} ms: {fps} frames a second make it as long", path.display());
}

/// The rate of an animation, and its shortest and longest frame in ms.
fn rate(delays: &[Seconds]) -> Option<(Fps, [u64; 2])> {
    let delays: Vec<Seconds> = delays.iter().map(|&[n, d]| if u64::from(n) * 100 <= u64::from(d) { OF_NONE } else { [n, d] }).collect();
    let milliseconds = |&[n, d]: &Seconds| u64::from(n) * 1000 / u64::from(d);
    let span = [delays.iter().map(milliseconds).min()?, delays.iter().map(milliseconds).max()?];
    let fps = if delays.windows(2).all(|pair| pair[0] == pair[1]) {
        Fps::of(delays[0][1].into(), delays[0][0].into())
    } else {
        let nanoseconds: u128 = delays.iter().map(|&[n, d]| u128::from(n) * 1_000_000_000 / u128::from(d)).sum();
        Fps::of(delays.len() as u128 * 1_000_000_000, nanoseconds)
    };
    Some((fps?, span))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_animation_keeps_its_length() {
        let of = |delays: &[Seconds]| rate(delays).map(|(fps, span)| (fps.to_string(), span));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[[1, 24], [1, 24]]), Some(("24".to_owned(), [41, 41])));
        assert_eq!(of(&[[1001, 30_000]; 3]), Some(("30000/1001".to_owned(), [33, 33])));
        assert_eq!(of(&[[40, 1000], [120, 1000], [40, 1000]]), Some(("15".to_owned(), [40, 120])));
        assert_eq!(of(&[[0, 100], [10, 1000]]), Some(("10".to_owned(), [100, 100])));
    }
}
