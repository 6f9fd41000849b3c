use sha2::{Digest, Sha256};
use tiling::{BoxError, HostTensor, Sink};

use super::sample_file::little_endian;
use super::{IoError, SampleFile};

/// The SHA-256 of samples or latents: of their values as little-endian f32, row-major, in hexadecimal.
pub fn sha256(tensor: &HostTensor) -> String {
    let mut hasher = Sha256::new();
    hasher.update(bytemuck::cast_slice::<u32, u8>(&little_endian(tensor.data())));
    format!("{:x}", hasher.finalize())
}

impl SampleFile {
    /// The same of all samples here, in memory that does not grow with them.
    ///
    /// # Errors
    /// When the file cannot be read, or some samples never came.
    pub fn sha256(&self) -> Result<String, IoError> {
        let mut hasher = Sha256::new();
        self.for_each_part(|bytes| hasher.update(bytes))?;
        Ok(format!("{:x}", hasher.finalize()))
    }
}

/// A sink that hands everything on and keeps a copy in a scratch file, for its hash.
pub struct HashingSink<'a> {
    sink: &'a mut dyn Sink,
    copy: SampleFile,
}

impl<'a> HashingSink<'a> {
    /// For samples of `shape`.
    ///
    /// # Errors
    /// When there is no room for the copy.
    pub fn new(sink: &'a mut dyn Sink, shape: [usize; 5]) -> Result<Self, IoError> {
        Ok(Self { sink, copy: SampleFile::scratch(shape)? })
    }

    /// The hash of what came (see [`sha256`]).
    ///
    /// # Errors
    /// When the copy cannot be read, or some samples never came.
    pub fn sha256(&self) -> Result<String, IoError> {
        self.copy.sha256()
    }
}

impl Sink for HashingSink<'_> {
    fn take(&mut self, start: [usize; 3], extent: [usize; 3], piece: HostTensor) -> Result<(), BoxError> {
        self.copy.take(start, extent, piece.clone())?;
        self.sink.take(start, extent, piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_of_the_values_whatever_the_pieces() {
        let samples = HostTensor::from_fn([1, 2, 3, 4, 5], |[_, c, t, y, x]| (c * 60 + t * 20 + y * 5 + x) as f32);
        let mut canvas = tiling::Canvas::default();
        let mut hashing = HashingSink::new(&mut canvas, samples.shape()).unwrap();
        assert!(hashing.sha256().is_err(), "nothing came yet");
        for (start, size) in [([0, 0, 0], [3, 4, 2]), ([0, 0, 2], [2, 4, 3]), ([2, 0, 2], [1, 4, 3])] {
            hashing.take(start, [3, 4, 5], samples.region(&tiling::Region { start, size })).unwrap();
        }
        let hash = hashing.sha256().unwrap();
        assert_eq!((canvas.into_tensor(), hash), (samples.clone(), sha256(&samples)));
        // Computed by another tool, of 1, 2 and 3 as f32.
        let three = HostTensor::new([1, 1, 1, 1, 3], vec![1.0, 2.0, 3.0]).unwrap();
        assert_eq!(sha256(&three), "8e628779e6a74ee0b36991c10158f63cafec7d340ad4e075592502c8708524dd");
    }
}
