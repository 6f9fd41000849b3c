use std::sync::Arc;

use burn::tensor::{DType, FloatDType, Tensor, TensorData};
use tiling::{Block, BoxError, Emit, Geometry, TileInput, TileOp};

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

    fn run(&self, tile: &TileInput<'_>, emit: &mut Emit<'_>) -> Result<(), BoxError> {
        run(self.vae.as_ref(), self.vae.decode_stream(), self.geometry(), self.frames_per_chunk, tile, emit)
    }
}

impl TileOp for Encode {
    fn geometry(&self) -> Geometry {
        self.vae.spec().encode_geometry()
    }

    fn run(&self, tile: &TileInput<'_>, emit: &mut Emit<'_>) -> Result<(), BoxError> {
        run(self.vae.as_ref(), self.vae.encode_stream(), self.geometry(), self.frames_per_chunk, tile, emit)
    }
}

fn run(
    vae: &dyn Vae,
    mut stream: FrameStream<'_>,
    geometry: Geometry,
    frames_per_chunk: usize,
    tile: &TileInput<'_>,
    emit: &mut Emit<'_>,
) -> Result<(), BoxError> {
    for frames in geometry.frames.chunks(tile.shape()[2], frames_per_chunk) {
        let piece = tile.frames(frames)?;
        let shape = piece.shape();
        let input = Tensor::from_data(TensorData::new(piece.into_data(), shape), (&vae.device(), DType::F32));
        let answer = stream(input)?;
        let shape = answer.dims();
        let data = answer.cast(FloatDType::F32).into_data().try_into_vec::<f32>()?;
        emit(Block::new(shape, data).expect("a tensor has as many values as its shape says"))?;
    }
    Ok(())
}
