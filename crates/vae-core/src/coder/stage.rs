use std::collections::BTreeSet;
use std::ops::Range;

use tiling::Span;

use super::spec::CoderSpec;
use super::step::Flow;

/// The rows and columns of a part of a picture, in px.
pub type Area = [Span; 2];

/// Steps that run on one tile after the other, or on the whole picture.
///
/// Between stages lies what depends on the whole picture: the moments of a group norm, or attention. *Value* `n` is what step `n` reads, and the value after the
/// last step the output; what a branch keeps after a step of its own has a number beyond these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// The steps.
    pub steps: Range<usize>,
    /// Whether it runs on the whole picture.
    pub is_whole: bool,
    /// The values that it reads: that of its first step, then those that branches kept, from the outermost that it adds to the innermost.
    pub inputs: Vec<usize>,
    /// The keys and values, of the whole picture, that its first step attends to.
    pub attends_to: Option<[usize; 2]>,
    /// The values that it gives: that after its last step, then those that its open branches keep.
    pub outputs: Vec<usize>,
    /// The groups of channels whose moments over the whole of its first output the next stage begins with.
    pub moments: Option<usize>,
}

/// The areas that a stage works on for one tile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageAreas {
    /// Of the values from that of the stage's first step to that after its last.
    pub(super) wanted: Vec<Area>,
    /// Of the inputs.
    pub inputs: Vec<Area>,
    /// Of the outputs.
    pub outputs: Vec<Area>,
}

impl CoderSpec {
    /// All steps as a stage that runs on the whole picture.
    pub(super) fn all_steps(&self) -> Stage {
        let outputs = vec![self.steps.len()];
        Stage { steps: 0..self.steps.len(), is_whole: true, inputs: vec![0], attends_to: None, outputs, moments: None }
    }

    /// The stages, in order; with moments from `sampled` crops a norm does not begin one.
    pub fn stages(&self, sampled: bool) -> Vec<Stage> {
        let (open, whole) = (self.open_branches(), self.whole_steps());
        let is_inside = |at: usize| whole.contains(&at) && at != whole.start;
        let mut cuts = BTreeSet::from([0, self.steps.len()]);
        cuts.extend([whole.start, whole.end]);
        for (at, step) in self.steps.iter().enumerate() {
            match step.flow {
                Flow::GroupNorm(_) if !sampled => drop(cuts.insert(self.before_branches(at))),
                // Up to the sum that it is part of, alone: what follows reads beyond the borders of its tiles.
                Flow::Attend => {
                    let depth = open[at + 1].len().max(1);
                    cuts.extend([at, (at + 1..open.len()).find(|&at| open[at].len() < depth).unwrap_or(at + 1)]);
                }
                _ => {}
            }
        }
        cuts.retain(|&cut| !is_inside(cut));
        let cuts: Vec<usize> = cuts.into_iter().collect();
        let stage = |index: usize| {
            let (start, end) = (cuts[index], cuts[index + 1]);
            let is_whole = |start: usize| !whole.is_empty() && start == whole.start || start == 0 && self.first_norm(0).is_some();
            let attends = self.steps[start].flow == Flow::Attend;
            let closed: Vec<usize> = open[start].iter().filter(|branch| !open[end].contains(branch)).map(|&branch| self.kept_value(branch)).collect();
            let (added, keys_and_values) = closed.split_at(closed.len() - if attends { 2 } else { 0 });
            // A branch without a step at the start keeps what the stage before gave.
            let kept = open[end].iter().map(|&branch| self.kept_value(branch)).filter(|&kept| self.place(kept) >= start && kept != start);
            Stage {
                steps: start..end,
                is_whole: is_whole(start),
                inputs: std::iter::once(start).chain(added.iter().copied()).collect(),
                attends_to: keys_and_values.try_into().ok(),
                outputs: std::iter::once(end).chain(kept).collect(),
                moments: self.first_norm(end).filter(|_| !sampled && !is_whole(end)),
            }
        };
        (0..cuts.len() - 1).map(stage).collect()
    }

    /// The branches that are open before each step and after the last, the outermost first.
    fn open_branches(&self) -> Vec<Vec<usize>> {
        let mut open = vec![Vec::new()];
        for (at, step) in self.steps.iter().enumerate() {
            let mut next = open[at].clone();
            match step.flow {
                Flow::Branch(_) => next.push(at),
                Flow::Add(_) => drop(next.pop()),
                Flow::Attend => next.truncate(next.len().saturating_sub(2)),
                Flow::Straight | Flow::GroupNorm(_) => {}
            }
            open.push(next);
        }
        open
    }

    /// The steps that run on the whole picture: those of a coder that keeps frames up to its attention, where px are the fewest. In tiles, queries, keys and values
    /// of all its frames would be stored.
    fn whole_steps(&self) -> Range<usize> {
        let keeps_frames = self.steps.iter().any(|step| step.kept_frames > 0);
        let attends = |at: &usize| keeps_frames && self.steps[*at].flow == Flow::Attend;
        let count = self.steps.len();
        let (Some(first), Some(last)) = ((0..count).find(attends), (0..count).rfind(attends)) else { return 0..0 };
        let open = self.open_branches();
        if self.grows() {
            0..(last + 1..=count).find(|&at| open[at].is_empty()).unwrap_or(count)
        } else {
            (0..=first).rfind(|&at| open[at].is_empty()).unwrap_or(0)..count
        }
    }

    /// The first of the plain branches that directly precede a step, or the step itself.
    fn before_branches(&self, at: usize) -> usize {
        let branches = self.steps[..at].iter().rev().take_while(|step| step.flow == Flow::Branch(None)).count();
        at - branches
    }

    /// The number of plain branches that begin one after the other at a step.
    pub fn branches_at(&self, at: usize) -> usize {
        self.steps[at..].iter().take_while(|step| step.flow == Flow::Branch(None)).count()
    }

    /// The groups of the norm that a stage from step `at` on begins with.
    fn first_norm(&self, at: usize) -> Option<usize> {
        match self.steps[at..].iter().map(|step| &step.flow).find(|flow| **flow != Flow::Branch(None)) {
            Some(Flow::GroupNorm(groups)) => Some(*groups),
            _ => None,
        }
    }

    /// The areas that a stage works on to give `core`, the tile's own area of each value, of a picture whose values have these `sizes`.
    pub fn areas(&self, stage: &Stage, sizes: &[[usize; 2]], core: impl Fn(usize) -> Area) -> StageAreas {
        let (start, end) = (stage.steps.start, stage.steps.end);
        let mut wanted = vec![core(end)];
        let mut kept = Vec::new();
        for at in stage.steps.clone().rev() {
            let (step, output) = (&self.steps[at], wanted[wanted.len() - 1]);
            wanted.push(match &step.flow {
                Flow::Branch(_) => hull(output, kept.pop().unwrap_or_else(|| core(at))),
                Flow::Add(shortcut) => {
                    // A shortcut has no border, so the size of what its branch kept bounds nothing.
                    kept.push(shortcut.as_ref().map_or(output, |shortcut| shortcut.support.input(output, [usize::MAX; 2])));
                    output
                }
                Flow::Attend => {
                    if at > start || stage.attends_to.is_none() {
                        kept.extend([sizes[at].map(|length| Span { start: 0, length }); 2]);
                    }
                    output
                }
                Flow::Straight | Flow::GroupNorm(_) => step.support.input(output, sizes[at]),
            });
        }
        wanted.reverse();
        let inputs = std::iter::once(wanted[0]).chain(kept).collect();
        let outputs = stage.outputs.iter().map(|&value| core(self.place(value))).collect();
        debug_assert_eq!((wanted.len(), start), (end - start + 1, stage.steps.start));
        StageAreas { wanted, inputs, outputs }
    }

    /// The same for values whose sizes are given from step `first` on.
    pub(super) fn areas_from(&self, stage: &Stage, first: usize, sizes: &[[usize; 2]], core: impl Fn(usize) -> Area) -> StageAreas {
        let all: Vec<[usize; 2]> = std::iter::repeat_n([0, 0], first).chain(sizes.iter().copied()).collect();
        self.areas(stage, &all, core)
    }

    /// Multiply-adds of a stage for one tile, of a picture whose values have these `sizes`, and all frames of a clip that begins with `frames`.
    pub(super) fn stage_multiply_adds(&self, stage: &Stage, areas: &StageAreas, sizes: &[[usize; 2]], frames: usize) -> f64 {
        let frames = self.frames(frames);
        let of_step = |(step, at): (usize, usize)| {
            let size = areas.wanted[step + 1].map(|span| span.length);
            self.steps[at].total_multiply_adds(size, sizes[at + 1], frames[at + 1])
        };
        stage.steps.clone().enumerate().map(of_step).sum()
    }
}

/// The smallest area that holds both.
fn hull(a: Area, b: Area) -> Area {
    std::array::from_fn(|axis| {
        let start = a[axis].start.min(b[axis].start);
        Span { start, length: a[axis].end().max(b[axis].end()) - start }
    })
}
