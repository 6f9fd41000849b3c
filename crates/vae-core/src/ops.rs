use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData};
use tiling::{BoxError, DevicePiece, Geometry, HostTensor, Stop, TileOp, TileRun};

use crate::answer::Answer;
use crate::{Context, MathMode, Vae};

/// Decoding a tile of latents or encoding a tile of samples to moments, as a [`TileOp`].
#[derive(Debug, Clone)]
pub struct VaeOp {
    vae: Arc<dyn Vae>,
    kind: Kind,
    frames_per_chunk: usize,
    eight_bits: bool,
    is_single_chunk: bool,
    math_mode: MathMode,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Decode,
    Encode,
}

impl VaeOp {
    /// Latents to samples, by one latent frame at a time.
    pub fn decode(vae: Arc<dyn Vae>) -> Self {
        Self { vae, kind: Kind::Decode, frames_per_chunk: 1, eight_bits: false, is_single_chunk: false, math_mode: MathMode::default() }
    }

    /// Samples to moments, by the frames of one latent frame at a time.
    pub fn encode(vae: Arc<dyn Vae>) -> Self {
        Self { kind: Kind::Encode, ..Self::decode(vae) }
    }

    /// The same with this number of latent frames at once, after the first.
    #[must_use]
    pub fn with_frames_per_chunk(self, frames_per_chunk: usize) -> Self {
        Self { frames_per_chunk, ..self }
    }

    /// The same for tiles whose frames are a single chunk, of which causal models then keep nothing (see [`Context::with_single_chunk`]).
    #[must_use]
    pub fn with_single_chunk(self, is_single_chunk: bool) -> Self {
        Self { is_single_chunk, ..self }
    }

    /// The same with f32 computed as `math_mode` says.
    #[must_use]
    pub fn with_math_mode(self, math_mode: MathMode) -> Self {
        Self { math_mode, ..self }
    }

    /// The same, where a device with a memory of its own may round its outputs to the nearest of 256 values from -1 to 1: fewer bytes are downloaded.
    #[must_use]
    pub fn with_eight_bits(self, eight_bits: bool) -> Self {
        Self { eight_bits, ..self }
    }
}

impl TileOp for VaeOp {
    fn geometry(&self) -> Geometry {
        match self.kind {
            Kind::Decode => self.vae.spec().decode_geometry(),
            Kind::Encode => self.vae.spec().encode_geometry(),
        }
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        self.geometry().frames.chunks(frames, self.frames_per_chunk)
    }

    fn upload(&self, piece: HostTensor) -> Result<DevicePiece, BoxError> {
        let (shape, device) = (piece.shape(), self.vae.device());
        let mut data = TensorData::new(piece.into_data(), shape);
        device.staging(std::iter::once(&mut data));
        Ok(DevicePiece::new(Tensor::<5>::from_data(data, (&device, DType::F32))))
    }

    fn begin(&self, _: &[usize], stop: &Stop) -> TileRun<'_> {
        let context = Context::new(self.math_mode, stop).with_single_chunk(self.is_single_chunk);
        let mut stream = match self.kind {
            Kind::Decode => self.vae.decode_stream(&context),
            Kind::Encode => self.vae.encode_stream(&context),
        };
        Box::new(move |piece| {
            let piece = piece.take()?;
            let values = context.catch_stop(|| stream(piece))??;
            match self.kind {
                Kind::Decode => self.vae.spec().check_decoded(values.dims())?,
                Kind::Encode => self.vae.spec().check_encoded(values.dims())?,
            }
            let answer = Answer::new(values, self.eight_bits);
            let bytes = answer.bytes();
            // The device starts while the host goes on.
            self.vae.device().flush()?;
            Ok(DevicePiece::of_bytes(answer, bytes))
        })
    }

    fn download(&self, answer: DevicePiece) -> Result<HostTensor, BoxError> {
        answer.take::<Answer>()?.download()
    }

    fn check(&self) -> Result<(), BoxError> {
        Ok(self.vae.device().sync()?)
    }
}
