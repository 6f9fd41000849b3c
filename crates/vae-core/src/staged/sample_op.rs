use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Tensor, TensorData};
use kernels::GroupMoments as HostMoments;
use tiling::{BoxError, DevicePiece, Geometry, HostTensor, Scale, Span, Stop, TileOp, TileRun};

use super::store::FeatureStore;
use crate::answer::Answer;
use crate::coder::{Area, Crops, Flow, FrameCache, StagedPlan, Value};
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

    fn run(&self, batch: usize, context: &Context) -> Result<(), BoxError> {
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
            Ok(store.get(steps.start, 0..1, area, &device, dtype, context)?.into())
        };
        let all = (0..crops.count()).map(crop).collect::<Result<Vec<_>, _>>()?;
        let (description, areas) = plan.as_crop(*stage, crops);
        let mut found = BTreeMap::new();
        let mut failed = None;
        let mut estimate = |step: usize, x: &Features| {
            let Flow::GroupNorm(groups) = coder.spec().steps[step].flow else { return None };
            let inside = crops.inside.clone().map(|range| range.start * plan.scale(step)..range.end * plan.scale(step));
            match merged(x, groups, inside.map(|range| Span { start: range.start, length: range.len() }), batch) {
                Ok(merged) => {
                    let crops = x.dims()[0] / batch;
                    let of_all = std::iter::repeat_n(&merged, crops).flatten().cloned().collect();
                    found.insert(step, GroupMoments::Host(merged));
                    Some(GroupMoments::Host(of_all))
                }
                Err(error) => {
                    failed.get_or_insert(error);
                    None
                }
            }
        };
        let input = Value::Tensor(Tensor::cat(all, 0));
        coder.run_steps(&description, &areas, vec![input], &mut estimate, &mut FrameCache::new(context), context)?;
        if let Some(error) = failed {
            return Err(error);
        }
        *moments.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(())
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
            context.catch_stop(|| self.run(px.shape()[0], &context))??;
            Ok(DevicePiece::new(Answer::Host(px)))
        })
    }

    fn download(&self, answer: DevicePiece) -> Result<HostTensor, BoxError> {
        answer.take::<Answer>()?.download()
    }

    fn check(&self) -> Result<(), BoxError> {
        Ok(self.vae.device().sync()?)
    }
}
