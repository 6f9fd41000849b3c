use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Tensor, TensorData};
use kernels::GroupMoments as HostMoments;
use tiling::{BoxError, DevicePiece, Geometry, HostTensor, Region, Scale, Span, Stop, TileOp, TileRun};

use super::cache::FrameCache;
use super::plan::StagedPlan;
use super::run::Value;
use super::stage::Area;
use super::step::Flow;
use super::store::FeatureStore;
use crate::answer::Answer;
use crate::layers::Features;
use crate::operators::GroupMoments;
use crate::{Context, Vae};

/// Side of a crop's inside, whose moments count, and the px around it, in latent px.
const INSIDE: usize = 4;
const BORDER: usize = 2;

/// The most crops. Their number counts more than their size.
const MOST_CROPS: usize = 64;

/// The largest share of a picture's px that crops take, borders included: a quarter.
const SHARE: usize = 4;

/// Crops of a picture, at its own scale and spread evenly over it, from which moments are estimated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crops {
    /// Rows and columns of each, in latent px.
    windows: Vec<Area>,
    /// Rows and columns of a window that count.
    inside: [Range<usize>; 2],
}

impl Crops {
    /// Crops of a picture of a height and width in latent px.
    pub(super) fn new(size: [usize; 2]) -> Self {
        let window = size.map(|side| side.min(INSIDE + 2 * BORDER));
        let inside = window.map(|side| if side == INSIDE + 2 * BORDER { BORDER..BORDER + INSIDE } else { 0..side });
        let most = (size[0] * size[1] / SHARE / (window[0] * window[1])).clamp(1, MOST_CROPS);
        // As many rows and columns of crops as the picture is high and wide.
        let rows = ((most as f64 * size[0] as f64 / size[1] as f64).sqrt().round() as usize).clamp(1, most);
        let counts = [rows, (most / rows).max(1)];
        let starts = |axis: usize| {
            let room = size[axis] - window[axis];
            let count = counts[axis].min(room + 1);
            (0..count).map(move |at| if count == 1 { room / 2 } else { at * room / (count - 1) })
        };
        let span = |axis: usize, start: usize| Span { start, length: window[axis] };
        let windows = starts(0).flat_map(|top| starts(1).map(move |left| [span(0, top), span(1, left)])).collect();
        Self { windows, inside }
    }

    /// The number of crops.
    pub fn count(&self) -> usize {
        self.windows.len()
    }

    /// Height and width of a crop, in latent px.
    pub(super) fn size(&self) -> [usize; 2] {
        self.windows[0].map(|span| span.length)
    }
}

impl StagedPlan {
    /// The regions of the input that the crops of the first stage read.
    pub fn crop_regions(&self, crops: &Crops) -> Vec<Region> {
        let scale = self.scale(0);
        let region = |&[rows, columns]: &Area| Region {
            start: [0, rows.start * scale, columns.start * scale],
            size: [self.frames(0), rows.length * scale, columns.length * scale],
        };
        crops.windows.iter().map(region).collect()
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_take_at_most_a_quarter_and_reach_both_ends() {
        for size in [[1, 1], [3, 40], [16, 16], [64, 64], [128, 128], [100, 37], [300, 1000]] {
            let crops = Crops::new(size);
            let [height, width] = crops.size();
            assert!(crops.count() == 1 || crops.count() * height * width * SHARE <= size[0] * size[1], "{size:?}: {}", crops.count());
            assert!(crops.windows.iter().all(|window| (0..2).all(|axis| window[axis].end() <= size[axis])), "{size:?}");
            if crops.count() >= 4 {
                let last = &crops.windows[crops.count() - 1];
                assert_eq!([0, 1].map(|axis| (crops.windows[0][axis].start, last[axis].end())), [(0, size[0]), (0, size[1])], "{size:?}");
            }
        }
        assert_eq!(Crops::new([128, 128]).count(), 64);
    }
}
