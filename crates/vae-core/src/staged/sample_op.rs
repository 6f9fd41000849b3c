use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Tensor, TensorData};
use kernels::GroupMoments as HostMoments;
use tiling::{BoxError, DevicePiece, Geometry, HostTensor, Scale, Span, Stop, TileOp, TileRun};

use super::piece::Reader;
use super::store::FeatureStore;
use crate::answer::Answer;
use crate::coder::{Area, CoderSpec, Crops, Flow, FrameCache, StagedPlan, Value, Whole};
use crate::layers::Features;
use crate::operators::GroupMoments;
use crate::{Context, Vae};

/// Estimates the moments of all group norms of a stage from crops that run through it together, as an operation on one tile.
#[derive(Debug, Clone)]
pub struct SampleOp {
    vae: Arc<dyn Vae>,
    shared: Arc<SampleShared>,
    context: Context,
}

/// What the operations on all devices share.
#[derive(Debug)]
pub struct SampleShared {
    /// The stages.
    pub plan: Arc<StagedPlan>,
    /// The stage.
    pub stage: usize,
    /// Where its input is, unless it is the run's own.
    pub store: Arc<FeatureStore>,
    /// The crops.
    pub crops: Crops,
    /// Those of the run's input, if the stage reads that.
    pub input: Option<Vec<HostTensor>>,
    /// Whether it is the decoder's.
    pub is_decoder: bool,
    /// The result: moments by steps.
    pub moments: Mutex<BTreeMap<usize, GroupMoments>>,
}

impl SampleOp {
    /// The operation on one device.
    pub fn new(vae: Arc<dyn Vae>, shared: Arc<SampleShared>, context: Context) -> Self {
        Self { vae, shared, context }
    }

    /// Whether all moments are finite.
    fn run(&self, batch: usize, context: &Context) -> Result<bool, BoxError> {
        let SampleShared { plan, stage, store, crops, input, is_decoder, moments } = &*self.shared;
        let coder = if *is_decoder { self.vae.decoder() } else { self.vae.encoder() };
        let coder = coder.ok_or("the model does not list its layers")?;
        let (device, dtype) = (self.vae.device(), self.vae.dtype());
        let steps = plan.stages()[*stage].steps.clone();
        let scale = plan.scale(steps.start);
        let crop = |at: usize| -> Result<Tensor<5>, BoxError> {
            if let Some(input) = input {
                let data = TensorData::new(input[at].data().to_vec(), input[at].shape());
                return Ok(Tensor::<5>::from_data(data, (&device, DType::F32)).cast(dtype));
            }
            let area = crops.windows[at].map(|span| Span { start: span.start * scale, length: span.length * scale });
            Ok(store.get(steps.start, 0..1, area, Reader { device: &device, dtype, context })?.into())
        };
        let all = (0..crops.count()).map(crop).collect::<Result<Vec<_>, _>>()?;
        let (description, areas) = plan.as_crop(*stage, crops);
        let input = Value::Tensor(Tensor::cat(all, 0));
        let mut estimate = Estimate { spec: coder.spec(), plan, crops, batch, found: BTreeMap::new(), failed: None };
        coder.run_stage(&description, &areas, vec![input], &mut estimate, &mut FrameCache::new(context), context)?;
        let Estimate { found, failed, .. } = estimate;
        if let Some(error) = failed {
            return Err(error);
        }
        let is_finite = found.values().flatten().flat_map(HostMoments::groups).all(|moments| moments.squared_deviations.is_finite());
        let mut moments = moments.lock().unwrap_or_else(PoisonError::into_inner);
        // A stopped run has been replaced by another, whose moments count.
        if !context.is_stopped() {
            *moments = found.into_iter().map(|(step, of)| (step, GroupMoments::Host(of))).collect();
        }
        Ok(is_finite)
    }
}

/// Estimates the moments of each norm from its input.
struct Estimate<'a> {
    spec: &'a CoderSpec,
    plan: &'a StagedPlan,
    crops: &'a Crops,
    batch: usize,
    found: BTreeMap<usize, Vec<HostMoments>>,
    failed: Option<BoxError>,
}

impl Whole for Estimate<'_> {
    type Error = BoxError;

    fn moments(&mut self, step: usize, x: &Features) -> Option<GroupMoments> {
        let Flow::GroupNorm(groups) = self.spec.steps[step].flow else { return None };
        let inside = self.crops.inside.clone().map(|range| range.start * self.plan.scale(step)..range.end * self.plan.scale(step));
        match merged(x, groups, inside.map(|range| Span { start: range.start, length: range.len() }), self.batch) {
            Ok(merged) => {
                let crops = x.dims()[0] / self.batch;
                let of_all = std::iter::repeat_n(&merged, crops).flatten().cloned().collect();
                self.found.insert(step, merged);
                Some(GroupMoments::Host(of_all))
            }
            Err(error) => {
                self.failed.get_or_insert(error);
                None
            }
        }
    }

    fn attend(&mut self, _: Features) -> Result<Features, BoxError> {
        Err("a stage with norms attends to nothing".into())
    }
}

/// The moments of the same batch item in all crops together. Crops follow each other along the batch.
fn merged(x: &Features, groups: usize, [rows, columns]: Area, batch: usize) -> Result<Vec<HostMoments>, BoxError> {
    let inside = x.clone().crop([rows.start, columns.start], [rows.length, columns.length]);
    let mut frames = inside.group_moments(groups).into_host()?.into_iter();
    let mut merged: Vec<HostMoments> = frames.by_ref().take(batch).collect();
    for (at, moments) in frames.enumerate() {
        merged[at % batch].merge(&moments);
    }
    Ok(merged)
}

impl TileOp for SampleOp {
    fn geometry(&self) -> Geometry {
        Geometry::image(Scale::Up(1))
    }

    fn begin(&self, _: &[usize], stop: &Stop) -> TileRun<'_> {
        let context = self.context.with_stop(stop);
        Box::new(move |piece| {
            let px: HostTensor = piece.take()?;
            let is_finite = context.catch_stop(|| self.run(px.shape()[0], &context))??;
            // The executor runs it again in a wider dtype.
            let answer = if is_finite { px } else { HostTensor::from_fn(px.shape(), |_| f32::NAN) };
            Ok(DevicePiece::new(Answer::Host(answer)))
        })
    }

    fn download(&self, answer: DevicePiece) -> Result<HostTensor, BoxError> {
        answer.take::<Answer>()?.download()
    }

    fn check(&self) -> Result<(), BoxError> {
        Ok(self.vae.device().sync()?)
    }
}
