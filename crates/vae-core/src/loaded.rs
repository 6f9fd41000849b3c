use std::fmt::Debug;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Tensor};
use tiling::FrameScale;

use crate::coder::Coder;
use crate::{Context, FrameStream, Vae, VaeError, VaeSpec, Weights, backends, stream_frames};

/// The modules of a VAE and how they are run: what the author of a family writes. [`LoadedVae`] makes a [`Vae`] of them.
///
/// A family lists the layers of its [`decoder`](Self::decoder) and [`encoder`](Self::encoder), or writes the streams themselves.
pub trait VaeModules: Module + Debug + Sync + 'static {
    /// The layers of the decoder; `None` when it was not loaded, or the family does not list them.
    fn decoder(&self) -> Option<Coder<'_>> {
        None
    }

    /// The layers of the encoder; `None` when it was not loaded, or the family does not list them.
    fn encoder(&self) -> Option<Coder<'_>> {
        None
    }

    /// One decode; `None` when the decoder was not loaded. Its pieces have a shape that the model takes and the dtype of the weights; its state between
    /// pieces is owned by the closure. By default the layers of the [`decoder`](Self::decoder).
    ///
    /// # Shapes
    /// As [`Vae::decode`]. A piece has one frame at first and then any number where frames are causal; of an image there is one piece.
    fn decode_stream<'a>(&'a self, spec: &'a VaeSpec, context: &Context) -> Option<FrameStream<'a>> {
        let _ = spec;
        Some(self.decoder()?.stream(context))
    }

    /// One encode; `None` when the encoder was not loaded. The same holds as for a decode. Sides that are no multiple of the spatial ratio are to be rounded down.
    /// By default the layers of the [`encoder`](Self::encoder).
    ///
    /// # Shapes
    /// As [`Vae::encode`].
    fn encode_stream<'a>(&'a self, spec: &'a VaeSpec, context: &Context) -> Option<FrameStream<'a>> {
        let _ = spec;
        Some(self.encoder()?.stream(context))
    }
}

/// Modules with their weights on one device: the [`Vae`] of families that need no other.
#[derive(Debug)]
pub struct LoadedVae<M> {
    modules: M,
    spec: VaeSpec,
    dtype: DType,
    device: Device,
}

impl<M: VaeModules> LoadedVae<M> {
    /// Applies `weights` to `modules`, which lie on `device`, to compute in `dtype`.
    ///
    /// # Errors
    /// Those of [`Weights::apply`].
    pub fn load(modules: M, weights: Weights, spec: VaeSpec, device: &Device, dtype: DType) -> Result<Box<dyn Vae>, VaeError> {
        let modules = weights.apply(modules, dtype)?.map(&mut PrepareWeights);
        Ok(Box::new(Self { modules, spec, dtype, device: device.clone() }))
    }

    /// The stream of a component, which takes pieces of any float dtype once `check` accepts their shape.
    fn stream<'a>(
        &'a self,
        component: &'static str,
        stream: Option<FrameStream<'a>>,
        check: fn(&VaeSpec, [usize; 5]) -> Result<(), VaeError>,
    ) -> FrameStream<'a> {
        let Some(mut stream) = stream else { return Box::new(move |_| Err(VaeError::NotLoaded { component })) };
        Box::new(move |piece| {
            check(&self.spec, piece.dims())?;
            stream(piece.cast(self.dtype))
        })
    }
}

impl<M: VaeModules> Vae for LoadedVae<M> {
    fn spec(&self) -> &VaeSpec {
        &self.spec
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn device(&self) -> Device {
        self.device.clone()
    }

    fn decode(&self, latents: Tensor<5>, context: &Context) -> Result<Tensor<5>, VaeError> {
        self.spec.check_latents(latents.dims())?;
        run_whole(latents, self.spec.decode_geometry().frames, context, |context| self.decode_stream(context))
    }

    fn encode(&self, samples: Tensor<5>, context: &Context) -> Result<Tensor<5>, VaeError> {
        self.spec.check_samples(samples.dims())?;
        run_whole(samples, self.spec.encode_geometry().frames, context, |context| self.encode_stream(context))
    }

    fn decode_stream(&self, context: &Context) -> FrameStream<'_> {
        self.stream("decoder", self.modules.decode_stream(&self.spec, context), VaeSpec::check_latents)
    }

    fn encode_stream(&self, context: &Context) -> FrameStream<'_> {
        self.stream("encoder", self.modules.encode_stream(&self.spec, context), VaeSpec::check_sample_piece)
    }

    fn decoder(&self) -> Option<Coder<'_>> {
        self.modules.decoder()
    }

    fn encoder(&self) -> Option<Coder<'_>> {
        self.modules.encoder()
    }

    fn to_device(&self, device: &Device) -> Box<dyn Vae> {
        let modules = self.modules.clone().to_device(device).map(&mut PrepareWeights);
        Box::new(Self { modules, spec: self.spec.clone(), dtype: self.dtype, device: device.clone() })
    }
}

/// Lays weights out as the operators of their device read them.
pub(crate) struct PrepareWeights;

impl ModuleMapper for PrepareWeights {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if D < 2 {
            return parameter;
        }
        parameter.map(|weight| {
            let operators = backends::operators(&weight.device(), weight.dtype());
            Tensor::from_dispatch(operators.prepare_weight(weight.into_dispatch()))
        })
    }
}

/// Streams all frames of `input`, in a context that says whether they are a single chunk.
fn run_whole<'a>(
    input: Tensor<5>,
    frames: FrameScale,
    context: &Context,
    stream: impl FnOnce(&Context) -> FrameStream<'a>,
) -> Result<Tensor<5>, VaeError> {
    let is_single_chunk = frames.chunks(input.dims()[2], 1).len() == 1;
    stream_frames(stream(&context.clone().with_single_chunk(is_single_chunk)), input, frames, 1)
}
