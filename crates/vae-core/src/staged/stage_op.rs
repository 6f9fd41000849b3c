use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData};
use kernels::{GroupMoments as HostMoments, Moments};
use tiling::{BoxError, DevicePiece, Geometry, HostTensor, Scale, Sink, Stop, TileOp, TileRun};

use super::attend::KeyGrid;
use super::piece::Reader;
use super::store::{Epoch, FeatureStore, Slot};
use crate::answer::Answer;
use crate::coder::{Coder, FrameCache, StagedPlan, Value, Whole};
use crate::layers::Features;
use crate::operators::GroupMoments;
use crate::{Context, Vae};

/// Values that stand for a moment: its three numbers in f64, each as the sum of two in f32.
const VALUES_PER_MOMENT: usize = 6;

/// One stage of a decoder or an encoder, as an operation on tiles.
///
/// A tile reads what earlier stages gave from the [`FeatureStore`] and writes there what it gives. What passes through the executor is the input of the first
/// stage, the output of the last, and from each stage before that the moments of its tiles, one px for each.
#[derive(Debug, Clone)]
pub struct StageOp {
    vae: Arc<dyn Vae>,
    shared: Arc<StageShared>,
    context: Context,
}

/// What the operations of a stage on all devices share.
#[derive(Debug)]
pub struct StageShared {
    /// The stages.
    pub plan: Arc<StagedPlan>,
    /// The stage.
    pub stage: usize,
    /// Where features are kept between stages.
    pub store: Arc<FeatureStore>,
    /// What the store takes from this stage, until the next begins.
    pub epoch: Epoch,
    /// The moments of the whole, by the steps that need them.
    pub moments: BTreeMap<usize, GroupMoments>,
    /// Whether it is the decoder's.
    pub is_decoder: bool,
    /// Latent frames that run at once after the first.
    pub frames_per_chunk: usize,
    /// Whether the frames are a single chunk.
    pub is_single_chunk: bool,
    /// Whether a device with a memory of its own may round the output of the last stage (see [`VaeOp::with_eight_bits`](crate::VaeOp::with_eight_bits)).
    pub eight_bits: bool,
}

impl StageOp {
    /// The stage on one device, for a run that `stop` ends. Memory is reused from tile to tile.
    pub fn new(vae: Arc<dyn Vae>, shared: Arc<StageShared>, context: Context) -> Self {
        Self { vae, shared, context }
    }

    fn coder(&self) -> Result<Coder<'_>, BoxError> {
        let coder = if self.shared.is_decoder { self.vae.decoder() } else { self.vae.encoder() };
        coder.ok_or_else(|| "the model does not list its layers".into())
    }

    /// Runs the next frames of a tile.
    fn run(
        &self,
        coder: &Coder,
        Chunk { tile, frames, first_given }: Chunk,
        input: Option<Tensor<5>>,
        cache: &mut FrameCache,
        context: &Context,
    ) -> Result<Given, BoxError> {
        let StageShared { plan, stage, store, epoch, .. } = &*self.shared;
        let (areas, description) = (plan.areas(*stage, tile), &plan.stages()[*stage]);
        let device = self.vae.device();
        let reader = Reader { device: &device, dtype: self.vae.dtype(), context };
        let mut input = input.map(|input| input.cast(reader.dtype));
        let read = |(&value, &area): (&usize, &_)| match input.take_if(|_| value == 0) {
            Some(input) => Ok(Value::Tensor(input)),
            None => store.get(value, frames.clone(), area, reader).map(Value::Features),
        };
        let inputs = description.inputs.iter().zip(&areas.inputs).map(read).collect::<Result<Vec<_>, BoxError>>()?;
        let mut whole = OfStore { shared: &self.shared, frames: frames.clone(), reader };
        let outputs = coder.run_stage(description, &areas, inputs, &mut whole, cache, context)?;
        if *stage + 1 == plan.stages().len() {
            let output = outputs.into_iter().next().ok_or("the stage gave nothing")?;
            return Ok(Given::Output(Box::new(output.into_tensor())));
        }
        let mut findings = Vec::new();
        for (at, (output, &area)) in outputs.into_iter().zip(&areas.outputs).enumerate() {
            let features = output.into_features(context).computed();
            match description.moments.filter(|_| at == 0) {
                Some(groups) => findings.push(Finding::Moments(features.group_moments(groups))),
                None if reader.dtype != DType::F32 => findings.push(Finding::Finite(finite(&features))),
                None => {}
            }
            store.put(*epoch, Slot { value: description.outputs[at], tile, first: first_given, area }, reader, features)?;
        }
        Ok(Given::Stored(findings))
    }
}

/// What a stage needs of the whole picture: moments that are known, keys and values of the store.
struct OfStore<'a> {
    shared: &'a StageShared,
    frames: Range<usize>,
    reader: Reader<'a>,
}

impl Whole for OfStore<'_> {
    type Error = BoxError;

    fn moments(&mut self, step: usize, _: &Features) -> Option<GroupMoments> {
        self.shared.moments.get(&step).cloned()
    }

    fn attend(&mut self, queries: Features) -> Result<Features, BoxError> {
        let StageShared { plan, stage, store, .. } = self.shared;
        let keys_and_values = plan.stages()[*stage].attends_to.ok_or("the stage attends to nothing")?;
        let keys = KeyGrid { size: plan.size(keys_and_values[0]), stride: plan.key_stride(keys_and_values[0]) };
        store.attend(queries, keys_and_values, keys, self.frames.clone(), self.reader)
    }
}

/// The frames of a tile that run next.
struct Chunk {
    tile: usize,
    frames: Range<usize>,
    /// The first of the frames that they give.
    first_given: usize,
}

/// What the executor gives to a tile.
enum Taken {
    /// The input of the first stage.
    Input(Box<Tensor<5>>),
    /// Batch items and frames of what later stages read from the store.
    Stored([usize; 2]),
}

/// What the frames of a tile give.
enum Given {
    /// The output of the last stage.
    Output(Box<Tensor<5>>),
    /// Features in the store.
    Stored(Vec<Finding>),
}

/// What has to be known of features in the store.
enum Finding {
    Moments(GroupMoments),
    /// One value, which is finite if all are.
    Finite(Tensor<1>),
}

/// A value that is finite if all of the features are: in 16 bits they may have overflowed.
fn finite(features: &Features) -> Tensor<1> {
    Tensor::<5>::from(features.clone()).mul_scalar(0.0).sum()
}

/// Findings as the values of one px. They are not finite if the features are not.
fn px_of(findings: Vec<Finding>) -> Result<Vec<f32>, BoxError> {
    let mut px = Vec::new();
    let mut is_finite = true;
    for finding in findings {
        match finding {
            Finding::Moments(moments) => px = encode(&moments.into_host()?),
            Finding::Finite(value) => is_finite &= value.try_into_data()?.iter::<f32>().all(f32::is_finite),
        }
    }
    if px.is_empty() {
        px.push(0.0);
    }
    if !is_finite {
        px.fill(f32::NAN);
    }
    Ok(px)
}

impl TileOp for StageOp {
    fn geometry(&self) -> Geometry {
        Geometry { frames: self.shared.plan.frame_scale(self.shared.stage), ..Geometry::image(Scale::Up(1)) }
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        self.geometry().frames.chunks(frames, self.shared.frames_per_chunk)
    }

    fn upload(&self, piece: HostTensor) -> Result<DevicePiece, BoxError> {
        let (shape, device) = (piece.shape(), self.vae.device());
        if self.shared.stage > 0 {
            return Ok(DevicePiece::new(Taken::Stored([shape[0], shape[2]])));
        }
        let input = Tensor::<5>::from_data(TensorData::new(piece.into_data(), shape), (&device, DType::F32));
        Ok(DevicePiece::new(Taken::Input(Box::new(input))))
    }

    fn begin(&self, tiles: &[usize], stop: &Stop) -> TileRun<'_> {
        let context = self.context.with_stop(stop).with_single_chunk(self.shared.is_single_chunk);
        let coder = self.coder();
        let mut tiles: Vec<(usize, FrameCache)> = tiles.iter().map(|&tile| (tile, FrameCache::new(&context))).collect();
        let mut first = [0, 0];
        let last_value = self.shared.plan.stages()[self.shared.stage].steps.clone();
        Box::new(move |piece| {
            let coder = coder.as_ref().map_err(ToString::to_string)?;
            let (piece, [items, frames]) = match piece.take::<Taken>()? {
                Taken::Stored(sides) => (None, sides),
                Taken::Input(piece) => {
                    let [items, _, frames, ..] = piece.dims();
                    (Some(*piece), [items, frames])
                }
            };
            let items = items / tiles.len();
            let given = tiles.iter_mut().enumerate().map(|(at, (tile, cache))| {
                let input = piece.clone().map(|piece| piece.narrow(0, at * items, items));
                let chunk = Chunk { tile: *tile, frames: first[0]..first[0] + frames, first_given: first[1] };
                context.catch_stop(|| self.run(coder, chunk, input, cache, &context))?
            });
            let given = given.collect::<Result<Vec<_>, BoxError>>()?;
            // Frames of the first chunk are few where frames grow.
            let of_clip = |frames| coder.spec().steps[last_value.clone()].iter().fold(frames, |frames, step| step.frames.output(frames));
            first = [first[0] + frames, of_clip(first[0] + frames)];
            let mut outputs = Vec::new();
            let mut stored = Vec::new();
            for given in given {
                match given {
                    Given::Output(output) => outputs.push(*output),
                    Given::Stored(findings) => stored.push(findings),
                }
            }
            let answer = if outputs.is_empty() {
                Answer::Later(Box::new(move || {
                    let tiles = stored.into_iter().map(px_of).collect::<Result<Vec<_>, BoxError>>()?;
                    let shape = [items * tiles.len(), tiles[0].len(), frames, 1, 1];
                    Ok(HostTensor::from_fn(shape, |[item, channel, ..]| tiles[item / items][channel]))
                }))
            } else {
                Answer::new(Tensor::cat(outputs, 0), self.shared.eight_bits)
            };
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

/// Moments as values of one px.
fn encode(frames: &[HostMoments]) -> Vec<f32> {
    let numbers = frames.iter().flat_map(HostMoments::groups).flat_map(|moments| [moments.count, moments.mean, moments.squared_deviations]);
    numbers.flat_map(|number| [number as f32, (number - f64::from(number as f32)) as f32]).collect()
}

/// Takes the moments of the tiles of a stage, in raster order, and merges them to those of the whole.
#[derive(Debug, Default)]
pub struct MomentsSink {
    /// Groups of channels; none where the next stage needs no moments.
    groups: Option<usize>,
    merged: Vec<HostMoments>,
    is_not_finite: bool,
}

impl MomentsSink {
    /// A sink for a stage whose moments are those of so many groups.
    pub fn new(groups: Option<usize>) -> Self {
        Self { groups, ..Self::default() }
    }

    /// The moments of the whole, if they were asked for, and whether all values of the stage are finite as far as is known.
    pub fn finish(self) -> (Option<GroupMoments>, bool) {
        (self.groups.map(|_| GroupMoments::Host(self.merged)), !self.is_not_finite)
    }
}

impl Sink for MomentsSink {
    fn take(&mut self, _: [usize; 3], _: [usize; 3], piece: HostTensor) -> Result<(), BoxError> {
        let [items, channels, ..] = piece.shape();
        self.is_not_finite |= piece.data().iter().any(|value| !value.is_finite());
        let Some(groups) = self.groups else { return Ok(()) };
        // The values of one px and frame. Every item has all of them.
        let values = &piece.data()[..piece.data().len() / items];
        if values.len() != channels {
            return Err("moments of several frames".into());
        }
        let moments = decode(values, groups);
        if self.merged.is_empty() {
            self.merged = moments;
        } else {
            self.merged.iter_mut().zip(&moments).for_each(|(merged, moments)| merged.merge(moments));
        }
        Ok(())
    }
}

/// Moments of `groups` groups from the values of one px.
fn decode(values: &[f32], groups: usize) -> Vec<HostMoments> {
    let numbers: Vec<f64> = values.as_chunks::<2>().0.iter().map(|[high, low]| f64::from(*high) + f64::from(*low)).collect();
    let moments: Vec<Moments> =
        numbers.as_chunks::<3>().0.iter().map(|&[count, mean, squared_deviations]| Moments { count, mean, squared_deviations }).collect();
    debug_assert_eq!(values.len(), moments.len() * VALUES_PER_MOMENT);
    moments.chunks(groups).map(|frame| HostMoments::from(frame.to_vec())).collect()
}
