use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, FloatDType, Tensor, TensorData};
use tiling::{Block, BoxError, Geometry, Resident, TileOp, TileRun};

use crate::{FrameStream, Vae};

/// Decoding a tile of latents, as a [`TileOp`].
#[derive(Debug, Clone)]
pub struct Decode {
    /// The model.
    pub vae: Arc<dyn Vae>,
    /// Latent frames that run at once, after the first.
    pub frames_per_chunk: usize,
}

/// Encoding a tile of samples to moments, as a [`TileOp`].
#[derive(Debug, Clone)]
pub struct Encode {
    /// The model.
    pub vae: Arc<dyn Vae>,
    /// Latent frames that run at once, after the first.
    pub frames_per_chunk: usize,
}

impl TileOp for Decode {
    fn geometry(&self) -> Geometry {
        self.vae.spec().decode_geometry()
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        self.geometry().frames.chunks(frames, self.frames_per_chunk)
    }

    fn upload(&self, piece: Block) -> Result<Resident, BoxError> {
        Ok(upload(self.vae.as_ref(), piece))
    }

    fn begin(&self) -> TileRun<'_> {
        begin(self.vae.decode_stream())
    }

    fn download(&self, answer: Resident) -> Result<Block, BoxError> {
        download(answer)
    }

    fn check(&self) -> Result<(), BoxError> {
        check(self.vae.as_ref())
    }
}

impl TileOp for Encode {
    fn geometry(&self) -> Geometry {
        self.vae.spec().encode_geometry()
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        self.geometry().frames.chunks(frames, self.frames_per_chunk)
    }

    fn upload(&self, piece: Block) -> Result<Resident, BoxError> {
        Ok(upload(self.vae.as_ref(), piece))
    }

    fn begin(&self) -> TileRun<'_> {
        begin(self.vae.encode_stream())
    }

    fn download(&self, answer: Resident) -> Result<Block, BoxError> {
        download(answer)
    }

    fn check(&self) -> Result<(), BoxError> {
        check(self.vae.as_ref())
    }
}

fn upload(vae: &dyn Vae, piece: Block) -> Resident {
    let shape = piece.shape();
    Resident::new(Tensor::<5>::from_data(TensorData::new(piece.into_data(), shape), (&vae.device(), DType::F32)))
}

fn begin(mut stream: FrameStream<'_>) -> TileRun<'_> {
    Box::new(move |piece| Ok(Resident::new(stream(piece.take()?)?.cast(FloatDType::F32))))
}

fn download(answer: Resident) -> Result<Block, BoxError> {
    let answer: Tensor<5> = answer.take()?;
    let shape = answer.dims();
    let data = answer.try_into_data()?.try_into_vec::<f32>()?;
    Ok(Block::new(shape, data).expect("a tensor has as many values as its shape says"))
}

fn check(vae: &dyn Vae) -> Result<(), BoxError> {
    Ok(vae.device().sync()?)
}
