use std::sync::Arc;

use burn::tensor::{DType, FloatDType, Tensor, TensorData};
use tiling::{Block, BoxError, Geometry, TileOp};

use crate::{Vae, VaeError};

/// Decoding a tile of latents, as a [`TileOp`].
#[derive(Debug, Clone)]
pub struct Decode(pub Arc<dyn Vae>);

/// Encoding a tile of samples to moments, as a [`TileOp`].
#[derive(Debug, Clone)]
pub struct Encode(pub Arc<dyn Vae>);

impl TileOp for Decode {
    fn geometry(&self) -> Geometry {
        self.0.spec().decode_geometry()
    }

    fn run(&self, tile: Block) -> Result<Block, BoxError> {
        run(self.0.as_ref(), tile, |vae, latents| vae.decode(latents))
    }
}

impl TileOp for Encode {
    fn geometry(&self) -> Geometry {
        self.0.spec().encode_geometry()
    }

    fn run(&self, tile: Block) -> Result<Block, BoxError> {
        run(self.0.as_ref(), tile, |vae, samples| vae.encode(samples))
    }
}

fn run(vae: &dyn Vae, tile: Block, f: impl Fn(&dyn Vae, Tensor<5>) -> Result<Tensor<5>, VaeError>) -> Result<Block, BoxError> {
    let shape = tile.shape();
    let input = Tensor::from_data(TensorData::new(tile.into_data(), shape), (&vae.device(), DType::F32));
    let answer = f(vae, input)?;
    let shape = answer.dims();
    let data = answer.cast(FloatDType::F32).into_data().try_into_vec::<f32>()?;
    Ok(Block::new(shape, data).expect("a tensor has as many values as its shape says"))
}
