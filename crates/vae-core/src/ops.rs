use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData, bf16, f16};
use half::slice::HalfFloatSliceExt;
use tiling::{BoxError, DevicePiece, Geometry, HostTensor, Stop, TileOp, TileRun};

use crate::eight_bits::{pack, unpack};
use crate::layers::Run;
use crate::{FrameStream, Vae, is_in_host_memory};

/// Decoding a tile of latents, as a [`TileOp`].
#[derive(Debug, Clone)]
pub struct Decode {
    /// The model.
    pub vae: Arc<dyn Vae>,
    /// Latent frames that run at once, after the first.
    pub frames_per_chunk: usize,
    /// Whether a device with a memory of its own may round what it gives to the nearest of 256 values from -1 to 1: there is less to bring back.
    pub eight_bits: bool,
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

    fn upload(&self, piece: HostTensor) -> Result<DevicePiece, BoxError> {
        Ok(upload(self.vae.as_ref(), piece))
    }

    fn begin(&self, stop: &Stop) -> TileRun<'_> {
        let eight_bits = self.eight_bits && !is_in_host_memory(&self.vae.device());
        begin(self.vae.as_ref(), self.vae.decode_stream(), stop, eight_bits)
    }

    fn download(&self, answer: DevicePiece) -> Result<HostTensor, BoxError> {
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

    fn upload(&self, piece: HostTensor) -> Result<DevicePiece, BoxError> {
        Ok(upload(self.vae.as_ref(), piece))
    }

    fn begin(&self, stop: &Stop) -> TileRun<'_> {
        begin(self.vae.as_ref(), self.vae.encode_stream(), stop, false)
    }

    fn download(&self, answer: DevicePiece) -> Result<HostTensor, BoxError> {
        download(answer)
    }

    fn check(&self) -> Result<(), BoxError> {
        check(self.vae.as_ref())
    }
}

fn upload(vae: &dyn Vae, piece: HostTensor) -> DevicePiece {
    let (shape, device) = (piece.shape(), vae.device());
    let mut data = TensorData::new(piece.into_data(), shape);
    device.staging(std::iter::once(&mut data));
    DevicePiece::new(Tensor::<5>::from_data(data, (&device, DType::F32)))
}

/// What a device gives for a piece, before it is brought back.
struct Answer {
    /// As it was computed, or packed.
    values: Tensor<5>,
    /// The channels that were packed, if they were.
    packed: Option<usize>,
}

fn begin<'a>(vae: &'a dyn Vae, mut stream: FrameStream<'a>, stop: &Stop, eight_bits: bool) -> TileRun<'a> {
    let run = Run::new(stop);
    Box::new(move |piece| {
        let piece = piece.take()?;
        let values = run.during(|| stream(piece))??;
        let channels = values.dims()[1];
        let (values, packed) = if eight_bits { (pack(values), Some(channels)) } else { (values, None) };
        let bytes = values.shape().num_elements() * values.dtype().size();
        // The device begins while the host goes on.
        vae.device().flush()?;
        Ok(DevicePiece::of_bytes(Answer { values, packed }, bytes))
    })
}

fn download(answer: DevicePiece) -> Result<HostTensor, BoxError> {
    let Answer { values, packed } = answer.take()?;
    let shape = values.dims();
    let data = values.try_into_data()?;
    let values = match data.dtype() {
        DType::F16 => widened(data.as_slice::<f16>()?),
        DType::BF16 => widened(data.as_slice::<bf16>()?),
        _ => data.try_cast_as::<f32>()?.try_into_vec::<f32>()?,
    };
    let block = HostTensor::new(shape, values).expect("a tensor has as many values as its shape says");
    Ok(match packed {
        Some(channels) => unpack(&block, channels),
        None => block,
    })
}

fn widened<T>(values: &[T]) -> Vec<f32>
where
    [T]: HalfFloatSliceExt,
{
    values.to_f32_vec()
}

fn check(vae: &dyn Vae) -> Result<(), BoxError> {
    Ok(vae.device().sync()?)
}
