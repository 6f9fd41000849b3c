use burn::tensor::Tensor;
use tiling::Span;

use super::cache::FrameCache;
use super::layer::{Coder, Layer};
use super::stage::{Area, Stage, StageAreas};
use super::step::{Flow, Step, Support};
use crate::layers::{Conv3d, Features};
use crate::operators::{Convolution, GroupMoments, TemporalWindow};
use crate::{Context, FrameStream, VaeError};

/// What steps need of the whole picture when they run on a part of it.
pub(crate) trait Whole {
    /// What can go wrong.
    type Error: From<VaeError>;

    /// The moments for the norm of a step with this input; none: those of the input.
    fn moments(&mut self, step: usize, x: &Features) -> Option<GroupMoments>;

    /// Attention over the keys and values that a stage [attends to](Stage::attends_to).
    ///
    /// # Errors
    /// When they cannot be read.
    fn attend(&mut self, queries: Features) -> Result<Features, Self::Error>;
}

/// A run on the whole picture.
struct Itself;

impl Whole for Itself {
    type Error = VaeError;

    fn moments(&mut self, _: usize, _: &Features) -> Option<GroupMoments> {
        None
    }

    fn attend(&mut self, _: Features) -> Result<Features, VaeError> {
        unreachable!("keys and values are kept by branches")
    }
}

/// What layers pass on, as the last of them left it.
#[allow(clippy::large_enum_variant, reason = "few exist at a time; how large a tensor is depends on the backends")]
#[derive(Debug, Clone)]
pub enum Value {
    /// `[b, c, t, h, w]`.
    Tensor(Tensor<5>),
    /// As operators store them.
    Features(Features),
}

impl Value {
    /// As features of a run.
    pub fn into_features(self, context: &Context) -> Features {
        match self {
            Self::Tensor(tensor) => Features::new(tensor, context),
            Self::Features(features) => features,
        }
    }

    /// As a tensor.
    pub fn into_tensor(self) -> Tensor<5> {
        match self {
            Self::Tensor(tensor) => tensor,
            Self::Features(features) => features.into(),
        }
    }

    /// Height and width.
    fn size(&self) -> [usize; 2] {
        let [_, _, _, height, width] = match self {
            Self::Tensor(tensor) => tensor.dims(),
            Self::Features(features) => features.dims(),
        };
        [height, width]
    }

    /// The part `to` of the area `from` that it covers.
    fn crop(self, from: Area, to: Area) -> Self {
        if from == to {
            return self;
        }
        let (start, size) = ([0, 1].map(|axis| to[axis].start - from[axis].start), to.map(|span| span.length));
        match self {
            Self::Tensor(tensor) => Self::Tensor(tensor.narrow(3, start[0], size[0]).narrow(4, start[1], size[1])),
            Self::Features(features) => Self::Features(features.crop(start, size)),
        }
    }
}

impl<'a> Coder<'a> {
    /// A run over the frames of a clip, each frame as a whole. The first call takes one frame, later calls any number that the coder's frames divide; the
    /// output does not depend on the division, float rounding apart.
    pub fn stream(self, context: &Context) -> FrameStream<'a> {
        let (context, mut cache) = (context.clone(), FrameCache::new(context));
        Box::new(move |x| Ok(self.run(Value::Tensor(x), &mut cache, &context)?.into_tensor()))
    }

    /// All layers on the next frames.
    ///
    /// # Errors
    /// When a run of a single chunk of frames gets another one.
    pub fn forward(&self, x: Features, cache: &mut FrameCache) -> Result<Features, VaeError> {
        let context = x.context().clone();
        Ok(self.run(Value::Features(x), cache, &context)?.into_features(&context))
    }

    fn run(&self, x: Value, cache: &mut FrameCache, context: &Context) -> Result<Value, VaeError> {
        let sizes = self.spec.sizes(x.size());
        let (all, core) = (self.spec.all_steps(), |value: usize| sizes[value].map(|length| Span { start: 0, length }));
        let areas = self.spec.areas(&all, &sizes, core);
        let given = x.size().map(|length| Span { start: 0, length });
        let x = x.crop(given, core(0));
        Ok(self.run_stage(&all, &areas, vec![x], &mut Itself, cache, context)?.swap_remove(0))
    }

    /// Runs a stage on the next frames of one tile.
    ///
    /// # Shapes
    /// Inputs and outputs are `[b, c, t, h, w]` with the heights and widths of `areas`.
    ///
    /// # Errors
    /// When a run of a single chunk of frames gets another one, and those of `whole`.
    pub(crate) fn run_stage<W: Whole>(
        &self,
        stage: &Stage,
        areas: &StageAreas,
        inputs: Vec<Value>,
        whole: &mut W,
        cache: &mut FrameCache,
        context: &Context,
    ) -> Result<Vec<Value>, W::Error> {
        cache.rewind()?;
        let start = stage.steps.start;
        let mut inputs = inputs.into_iter().zip(&areas.inputs).map(|(value, &area)| (value, area));
        let (mut x, mut area) = inputs.next().unwrap_or_else(|| panic!("a stage has an input"));
        let mut kept: Vec<(Value, Area)> = inputs.collect();
        let mut at = start;
        while at < stage.steps.end {
            let (layer, step) = (&self.layers[at], &self.spec.steps[at]);
            let wanted = areas.wanted[at + 1 - start];
            match layer {
                Layer::Branch(None) => kept.push((x.clone(), area)),
                Layer::Branch(Some(map)) => {
                    let features = x.into_features(context);
                    let map = map.convolution().expect("a map of each px");
                    kept.push((Value::Features(features.clone().convolve(&map, None)), area));
                    x = Value::Features(features);
                }
                Layer::Attend => {
                    let queries = x.crop(area, wanted).into_features(context);
                    x = Value::Features(if at == start && stage.attends_to.is_some() {
                        whole.attend(queries)?
                    } else {
                        let mut pop = || kept.pop().unwrap_or_else(|| panic!("a branch for step {at}")).0.into_features(context);
                        let (values, keys) = (pop(), pop());
                        queries.attend(keys, values)
                    });
                    area = wanted;
                }
                Layer::Add(shortcut) => {
                    let (other, from) = kept.pop().unwrap_or_else(|| panic!("a branch for step {at}"));
                    let other = shortcut_of(shortcut.as_deref(), step, other, from, wanted, cache, context);
                    let sum = x.crop(area, wanted).into_features(context) + other.into_features(context);
                    (x, area) = (Value::Features(sum), wanted);
                }
                Layer::Map(map) => {
                    let needed = step.support.input(wanted, [usize::MAX; 2]);
                    x = Value::Tensor(map.apply(x.crop(area, needed).into_tensor(), cache.is_first()));
                    area = step.support.of_area(needed);
                }
                layer => {
                    let input = x.into_features(context);
                    let padding = step.support.padding(area, wanted);
                    if matches!(layer, Layer::CausalConv3d(_)) || layer.convolution().is_some() {
                        // Onto what a branch kept, where the sum follows.
                        let add = self.layers.get(at + 1).filter(|_| at + 1 < stage.steps.end);
                        let residual = if let Some(Layer::Add(shortcut)) = add {
                            at += 1;
                            let (other, from) = kept.pop().unwrap_or_else(|| panic!("a branch for step {at}"));
                            Some(shortcut_of(shortcut.as_deref(), &self.spec.steps[at], other, from, wanted, cache, context).into_features(context))
                        } else {
                            None
                        };
                        let input =
                            if step.support == Support::Same { Value::Features(input).crop(area, wanted).into_features(context) } else { input };
                        x = Value::Features(match layer {
                            Layer::CausalConv3d(conv) => convolve_causally(conv, padding, input, cache, residual),
                            layer => input.convolve(&Convolution { padding, ..layer.convolution().expect("a convolution") }, residual),
                        });
                        area = wanted;
                    } else {
                        let moments = if matches!(layer, Layer::GroupNorm(..)) { whole.moments(at, &input) } else { None };
                        x = Value::Features(forward(layer, input, moments, cache));
                        area = step.support.of_area(area);
                    }
                }
            }
            at += 1;
        }
        let main = x.crop(area, areas.outputs[0]);
        let open = kept.split_off(kept.len() + 1 - stage.outputs.len());
        let open = open.into_iter().zip(&areas.outputs[1..]).map(|((value, from), &to)| value.crop(from, to));
        Ok(std::iter::once(main).chain(open).collect())
    }
}

/// What is added by an `Add`: the area `wanted` of what its branch kept, after the layer of its shortcut.
fn shortcut_of(layer: Option<&Layer>, step: &Step, kept: Value, area: Area, wanted: Area, cache: &FrameCache, context: &Context) -> Value {
    let (Some(layer), Flow::Add(Some(step))) = (layer, &step.flow) else { return kept.crop(area, wanted) };
    // The whole of what it kept bounds nothing here: a shortcut has no border.
    let needed = step.support.input(wanted, [usize::MAX; 2]);
    let kept = kept.crop(area, needed);
    let given = step.support.of_area(needed);
    let y = match layer {
        Layer::Map(map) => Value::Tensor(map.apply(kept.into_tensor(), cache.is_first())),
        layer => Value::Features(kept.into_features(context).convolve(&layer.convolution().expect("a map of each px"), None)),
    };
    y.crop(given, wanted)
}

/// A layer that computes each px from the same px.
fn forward(layer: &Layer, x: Features, moments: Option<GroupMoments>, cache: &mut FrameCache) -> Features {
    match layer {
        Layer::GroupNorm(norm, activation) => match moments {
            Some(moments) => norm.forward_with_moments(x, moments, *activation),
            None => norm.forward_activated(x, *activation),
        },
        Layer::RmsNorm(norm, activation) => norm.forward_activated(x, *activation),
        Layer::UpsampleNearest2x => x.upsample_nearest2x(),
        Layer::DoubleFrames(conv) => double_frames(conv, x, cache.slot()),
        Layer::HalveFrames(conv) => halve_frames(conv, x, cache.slot()),
        other => panic!("{other:?} is run elsewhere"),
    }
}

/// A convolution of three frames that depends on two earlier frames and no later one (diffusers, `WanCausalConv3d`), added to `residual` if there is one.
fn convolve_causally(conv: &Conv3d, padding: crate::operators::Padding, x: Features, cache: &mut FrameCache, residual: Option<Features>) -> Features {
    let kept_frames = conv.frames() - 1;
    let slot = cache.slot();
    let (x, context) = match slot.take() {
        Some(earlier) => {
            let context = earlier.dims()[2];
            (earlier.concat_frames(x), context)
        }
        None => (x, 0),
    };
    *slot = Some(x.last_frames(x.dims()[2].min(kept_frames)));
    x.convolve(&Convolution { padding, ..conv.convolution(TemporalWindow { context, stride: 1 }) }, residual)
}

/// See [`Layer::DoubleFrames`].
fn double_frames(conv: &Conv3d, x: Features, slot: &mut Option<Features>) -> Features {
    let Some(earlier) = slot.take() else {
        // The first frame stays one frame, and those after it do not depend on it.
        *slot = Some(x.zero_frames(2));
        return x;
    };
    let x = earlier.concat_frames(x);
    *slot = Some(x.last_frames(2));
    let [even, odd] = conv.forward_in_parts(&x, TemporalWindow { context: 2, stride: 1 });
    even.interleave_frames(odd)
}

/// See [`Layer::HalveFrames`].
fn halve_frames(conv: &Conv3d, x: Features, slot: &mut Option<Features>) -> Features {
    match slot.replace(x.last_frames(1)) {
        Some(earlier) => conv.forward(earlier.concat_frames(x), TemporalWindow { context: 2, stride: 2 }),
        None => x,
    }
}
