use std::cell::RefCell;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::forms::{Halving, Into, Narrow, Point, Sums, Tiles, Wide};
use crate::memory::{Shared, Target, filled};
use crate::products::{Stretch, multiply};
use crate::reading::{LINE, Line, Picture, Span};
use crate::{CHUNK, CHUNKS, Form, Frame, OCT, Row};

/// Output channels whose sums lie in memory at once.
const CHANNELS: usize = 32;
/// Bytes of transformed input of one place that stay near the processor, and of all places that stay in its last cache.
const NEAR: usize = 512 << 10;
const FAR: usize = 12 << 20;
/// Panels and frames of one task.
const UNITS: usize = 4;
/// Bytes of transformed kernels that are held at once.
const KERNELS: usize = 64 << 20;

thread_local! {
    /// What a task needs, kept for the next one on this thread.
    static SCRATCH: RefCell<Vec<Row>> = const { RefCell::new(Vec::new()) };
    /// Transformed kernels, kept for the next convolution that this thread asks for.
    static TRANSFORMED: RefCell<Vec<[f32; OCT]>> = const { RefCell::new(Vec::new()) };
}

/// A convolution over height and width, or also over frames.
#[derive(Debug, Clone, Copy)]
pub struct Convolution<'a> {
    /// Which kernels, and how.
    pub form: Form,
    /// Output channels, input channels, taps, height and width of the kernel.
    pub weight: &'a [f32],
    /// A value for each output channel.
    pub bias: &'a [f32],
    /// Of the input and of the output.
    pub channels: [usize; 2],
    /// Frames that a frame of the output sees.
    pub taps: usize,
    /// Height and width of the frames that are read.
    pub size: [usize; 2],
    /// Whether each px is read as if it were four.
    pub doubled: bool,
}

/// Which frames a frame of the output sees: up to the one with the index `lead + step * frame`. What would lie before the first is zero.
#[derive(Debug, Clone, Copy)]
pub struct Course {
    /// The last frame that the first one of the output sees.
    pub lead: usize,
    /// Frames of the input from one frame of the output to the next.
    pub step: usize,
    /// Frames of the output.
    pub frames: usize,
}

/// Where output lies, in values.
#[derive(Debug, Clone, Copy)]
pub struct Strides {
    /// From one frame to the next.
    pub frame: usize,
    /// From one channel to the next.
    pub channel: usize,
}

impl Convolution<'_> {
    /// Height and width of what comes out.
    #[must_use]
    pub fn output_size(&self) -> [usize; 2] {
        let times = if self.doubled { 2 } else { 1 };
        self.form.output_size(self.size.map(|side| times * side))
    }

    /// Convolves into memory of its own: `frames` frames of all output channels, laid out as `strides` says.
    #[must_use]
    pub fn run(&self, input: &[Frame], course: Course, strides: Strides) -> Vec<f32> {
        let [height, width] = self.output_size();
        let length = course.frames * self.channels[1] * height * width;
        let mut values = Vec::with_capacity(length);
        self.run_into(input, course, strides, Target::Fresh(&mut values.spare_capacity_mut()[..length]));
        // SAFETY: every px of every channel and frame has been written.
        #[expect(unsafe_code, reason = "to not clear what is overwritten")]
        unsafe {
            filled(values, length)
        }
    }

    /// Convolves onto or into the target.
    ///
    /// # Panics
    /// When lengths do not fit one another.
    pub fn run_into(&self, input: &[Frame], course: Course, strides: Strides, target: Target) {
        match self.form {
            Form::Wide => self.run_as::<4, Wide>(input, course, strides, target),
            Form::Narrow => self.run_as::<2, Narrow>(input, course, strides, target),
            Form::Point => self.run_as::<1, Point>(input, course, strides, target),
            Form::Halving => self.run_as::<1, Halving>(input, course, strides, target),
        }
    }

    fn run_as<const OUT: usize, T: Tiles<OUT>>(&self, input: &[Frame], course: Course, strides: Strides, target: Target) {
        let [channels_in, channels_out] = self.channels;
        let [height, width] = self.size;
        assert_eq!(self.weight.len(), channels_in * channels_out * self.taps * self.form.kernel(), "weights");
        assert_eq!(self.bias.len(), channels_out, "bias");
        assert!(course.frames == 0 || course.lead + course.step * (course.frames - 1) < input.len(), "frames");
        let output = Shared::new(target);
        let size = self.output_size();
        assert_eq!(output.len(), course.frames * channels_out * size[0] * size[1], "output");
        for frame in input {
            assert!(channels_in == 0 || frame.values.len() >= (channels_in - 1) * frame.stride + height * width, "input");
        }
        if output.len() == 0 {
            return;
        }
        let places = places::<OUT>(size, T::IN > T::STEP);
        let rows = T::VALUES * channels_in;
        let octs = channels_out.div_ceil(OCT);
        let octs_at_once = (KERNELS / (octs * T::PLACES * self.taps * rows * OCT * 4).div_ceil(octs).max(1)).clamp(1, octs);
        TRANSFORMED.with_borrow_mut(|transformed| {
            for first in (0..octs).step_by(octs_at_once) {
                let octs = first..(first + octs_at_once).min(octs);
                self.transform_kernels::<OUT, T>(octs.clone(), transformed);
                let whole =
                    Whole { convolution: self, input, course, strides, output: &output, places: &places, first_oct: first, kernels: transformed };
                whole.run::<OUT, T>(octs);
            }
        });
    }

    /// By eight output channels, place, tap, input channel, value.
    fn transform_kernels<const OUT: usize, T: Tiles<OUT>>(&self, octs: Range<usize>, transformed: &mut Vec<[f32; OCT]>) {
        let length = T::PLACES * self.taps * self.channels[0] * T::VALUES;
        if transformed.len() < octs.len() * length {
            transformed.resize(octs.len() * length, [0.0; OCT]);
        }
        transformed[..octs.len() * length].par_chunks_mut(length.max(1)).zip(octs).for_each(|(part, oct)| {
            Arch::new().dispatch(Kernels::<OUT, T> { convolution: self, oct, part, form: std::marker::PhantomData });
        });
    }
}

/// Transforms the kernels of eight output channels.
struct Kernels<'a, const OUT: usize, T> {
    convolution: &'a Convolution<'a>,
    oct: usize,
    part: &'a mut [[f32; OCT]],
    form: std::marker::PhantomData<T>,
}

impl<const OUT: usize, T: Tiles<OUT>> WithSimd for Kernels<'_, OUT, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        /// Kernels whose values at a place are written together: two lines of the cache.
        const TOGETHER: usize = 4;
        let Convolution { weight, channels: [channels_in, channels_out], taps, form, .. } = *self.convolution;
        let area = form.kernel();
        let per_place = self.part.len() / T::PLACES;
        let first = OCT * self.oct;
        let outs = (channels_out - first).min(OCT);
        let of_out = |out: usize| &weight[(first + out) * channels_in * taps * area..][..channels_in * taps * area];
        let mut px = [[0.0_f64; OCT]; 9];
        let mut values = [[[0.0_f64; OCT]; 36]; TOGETHER];
        for tap in 0..taps {
            for channel in (0..channels_in).step_by(TOGETHER) {
                let count = (channels_in - channel).min(TOGETHER);
                for (at, values) in values.iter_mut().enumerate().take(count) {
                    let start = ((channel + at) * taps + tap) * area;
                    for lane in 0..outs {
                        for (px, &value) in px.iter_mut().zip(&of_out(lane)[start..start + area]) {
                            px[lane] = f64::from(value);
                        }
                    }
                    T::kernels(&px[..area], &mut values[..T::PLACES * T::VALUES]);
                }
                for place in 0..T::PLACES {
                    let row = (tap * channels_in + channel) * T::VALUES;
                    let rows = &mut self.part[place * per_place + row..][..count * T::VALUES];
                    for (rows, values) in rows.chunks_mut(T::VALUES).zip(&values) {
                        for (row, values) in rows.iter_mut().zip(&values[place * T::VALUES..]) {
                            for (row, &value) in row.iter_mut().zip(values) {
                                *row = value as f32;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Tiles that go through everything together: bands of tiles side by side, one below the other.
#[derive(Debug, Clone, Copy)]
struct Place {
    row: usize,
    column: usize,
    across: usize,
}

impl Place {
    /// Rows of tiles.
    fn down(self) -> usize {
        CHUNK / self.across
    }
}

/// All tiles of an output: down each band, where those below one another share px of the input, and else along the rows.
fn places<const OUT: usize>([height, width]: [usize; 2], down: bool) -> Vec<Place> {
    let [rows, columns] = [height.div_ceil(OUT), width.div_ceil(OUT)];
    let mut places = Vec::new();
    let mut column = 0;
    while column < columns {
        let across = match columns - column {
            0..=4 => 4,
            5..=12 => 8,
            _ => 16,
        };
        places.extend((0..rows).step_by(CHUNK / across).map(|row| Place { row, column, across }));
        column += across;
    }
    if !down {
        places.sort_by_key(|place| (CHUNK - place.across, place.row));
    }
    places
}

/// What the tasks of a convolution share.
struct Whole<'a> {
    convolution: &'a Convolution<'a>,
    input: &'a [Frame<'a>],
    course: Course,
    strides: Strides,
    output: &'a Shared<'a>,
    places: &'a [Place],
    /// The first eight output channels whose kernels are there.
    first_oct: usize,
    kernels: &'a [[f32; OCT]],
}

impl Whole<'_> {
    fn run<const OUT: usize, T: Tiles<OUT>>(&self, octs: Range<usize>) {
        let rows = T::VALUES * self.convolution.channels[0];
        let taps = self.convolution.taps;
        let threads = rayon::current_num_threads();
        let frames = if taps > 1 { self.course.frames.min(UNITS) } else { 1 };
        let seen = (frames - 1) * self.course.step + taps;
        let place = seen * rows * size_of::<Row>();
        let panels = (NEAR / place.max(1)).min(FAR / (T::PLACES * place).max(1)).min(UNITS / frames).max(1);
        let mut ranges = self.places.len().div_ceil(panels * CHUNKS);
        let frame_batches = self.course.frames.div_ceil(frames);
        if ranges * frame_batches < 4 * threads {
            // As much for each thread.
            ranges = ranges.next_multiple_of(threads).min(self.places.len());
        }
        // Something for every thread, where the picture is small.
        let parts = threads.div_ceil(ranges * frame_batches).min(octs.len());
        let share = |whole: usize, of: usize, at: usize| whole * at / of..whole * (at + 1) / of;
        (0..ranges * frame_batches * parts).into_par_iter().for_each(|task| {
            let (range, batch, part) = (task / parts / frame_batches, task / parts % frame_batches, task % parts);
            let octs = share(octs.len(), parts, part);
            let task = Task::<OUT, T> {
                whole: self,
                places: &self.places[share(self.places.len(), ranges, range)],
                frames: share(self.course.frames, frame_batches, batch),
                octs: octs.start..octs.end,
                form: std::marker::PhantomData,
            };
            SCRATCH.with_borrow_mut(|scratch| Arch::new().dispatch(Work { task, scratch }));
        });
    }
}

/// Some tiles of some frames in some output channels.
struct Task<'a, const OUT: usize, T> {
    whole: &'a Whole<'a>,
    places: &'a [Place],
    frames: Range<usize>,
    /// Counted from the first whose kernels are there.
    octs: Range<usize>,
    form: std::marker::PhantomData<T>,
}

struct Work<'a, 's, const OUT: usize, T> {
    task: Task<'a, OUT, T>,
    scratch: &'s mut Vec<Row>,
}

impl<const OUT: usize, T: Tiles<OUT>> WithSimd for Work<'_, '_, OUT, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.task.run(simd, self.scratch);
    }
}

impl<const OUT: usize, T: Tiles<OUT>> Task<'_, OUT, T> {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, scratch: &mut Vec<Row>) {
        let Whole { convolution, course, .. } = *self.whole;
        let rows = T::VALUES * convolution.channels[0];
        let taps = convolution.taps;
        // Frames of the input that frames of the output see: a row more than there is, so that places do not lie a multiple of a page apart.
        let last = |frame: usize| course.lead + course.step * frame + 1;
        let seen = last(self.frames.start).saturating_sub(taps)..last(self.frames.end - 1);
        let per_place = rows + 1;
        let per_slab = T::PLACES * per_place;
        let panels = self.places.len().div_ceil(CHUNKS);
        let per_sums = CHANNELS + 1;
        let sums_rows = panels * self.frames.len() * T::PLACES * per_sums;
        let needed = panels * seen.len() * per_slab + sums_rows;
        if scratch.len() < needed {
            scratch.resize(needed, Row::ZERO);
        }
        let (transformed, sums) = scratch[..needed].split_at_mut(panels * seen.len() * per_slab);
        for (panel, slabs) in self.places.chunks(CHUNKS).zip(transformed.chunks_mut(seen.len() * per_slab)) {
            for (frame, slab) in self.whole.input[seen.clone()].iter().zip(slabs.chunks_mut(per_slab)) {
                self.read(panel, frame, slab, per_place);
            }
        }
        let per_oct = T::PLACES * taps * rows;
        for first in self.octs.clone().step_by(CHANNELS / OCT) {
            let octs = first..(first + CHANNELS / OCT).min(self.octs.end);
            for place in 0..T::PLACES {
                for (panel, places) in self.places.chunks(CHUNKS).enumerate() {
                    for (at, frame) in self.frames.clone().enumerate() {
                        let end = last(frame);
                        let begin = end.saturating_sub(taps);
                        let missing = taps - (end - begin);
                        let unit = panel * self.frames.len() + at;
                        let sums = &mut sums[(unit * T::PLACES + place) * per_sums..][..CHANNELS];
                        for (oct, sums) in octs.clone().zip(sums.chunks_mut(OCT)) {
                            let kernels = &self.whole.kernels[oct * per_oct + place * taps * rows..][missing * rows..(taps * rows)];
                            let slab =
                                |at: usize| &transformed[((panel * seen.len() + begin + at - seen.start) * T::PLACES + place) * per_place..][..rows];
                            let mut stretches: [Stretch; 3] = [(&[], &[]); 3];
                            for (at, stretch) in stretches.iter_mut().enumerate().take(end - begin) {
                                *stretch = (&kernels[at * rows..][..rows], slab(at));
                            }
                            multiply(simd, &stretches[..end - begin], places.len(), sums);
                        }
                    }
                }
            }
            for (panel, places) in self.places.chunks(CHUNKS).enumerate() {
                for (at, frame) in self.frames.clone().enumerate() {
                    let unit = panel * self.frames.len() + at;
                    let sums = &sums[unit * T::PLACES * per_sums..][..T::PLACES * per_sums];
                    let channel = (self.whole.first_oct + octs.start) * OCT;
                    self.write(places, frame, channel..(channel + octs.len() * OCT).min(convolution.channels[1]), sums, per_sums);
                }
            }
        }
    }

    /// Transforms a panel of one frame.
    #[inline(always)]
    fn read(&self, panel: &[Place], frame: &Frame, slab: &mut [Row], per_place: usize) {
        /// Lines of four bands of tiles.
        const LINES: usize = 18;
        /// Channels that are fetched ahead: they lie far apart, so that the processor does not foresee them.
        const AHEAD: usize = 2;
        let Convolution { channels: [channels, _], size, doubled, .. } = *self.whole.convolution;
        let picture = Picture { frame, size, doubled };
        let lines_of = |place: &Place| T::STEP * (place.down() - 1) + T::IN;
        let span = |place: &Place, y: usize| Span {
            row: (T::STEP * place.row + y).cast_signed() - T::BEFORE.cast_signed(),
            column: (T::STEP * place.column).cast_signed() - T::BEFORE.cast_signed(),
            count: T::STEP * (place.across - 1) + T::IN,
        };
        let mut lines = [Line([0.0; LINE]); LINES];
        for channel in 0..channels {
            if channel + AHEAD < channels {
                for place in panel {
                    for y in 0..lines_of(place) {
                        picture.prefetch(channel + AHEAD, span(place, y));
                    }
                }
            }
            // The line after the last one that was read, and the place where its px begin.
            let mut next = (usize::MAX, usize::MAX);
            for (chunk, place) in panel.iter().enumerate() {
                let count = lines_of(place);
                let top = T::STEP * place.row;
                let mut known = 0;
                if T::IN > T::STEP && next == (place.column, top + T::IN - T::STEP) {
                    known = T::IN - T::STEP;
                    lines.copy_within(count - known..count, 0);
                }
                for (y, line) in lines.iter_mut().enumerate().take(count).skip(known) {
                    picture.read(channel, span(place, y), line);
                }
                next = (place.column, top + count);
                let into = Into { rows: slab, per_place, first: channel * T::VALUES, chunk };
                match place.across {
                    16 => T::input::<16>(&lines, into),
                    8 => T::input::<8>(&lines, into),
                    _ => T::input::<4>(&lines, into),
                }
            }
        }
    }

    /// Writes a panel of one frame in some output channels.
    #[inline(always)]
    fn write(&self, panel: &[Place], frame: usize, channels: Range<usize>, sums: &[Row], per_place: usize) {
        let Whole { convolution, strides, output, .. } = *self.whole;
        let [height, width] = convolution.output_size();
        for (at, channel) in channels.enumerate() {
            let bias = convolution.bias[channel];
            for (chunk, place) in panel.iter().enumerate() {
                let px = T::output(Sums { rows: sums, per_place, at, chunk });
                let (top, left) = (OUT * place.row, OUT * place.column);
                for (y, px) in px.iter().enumerate() {
                    let mut line = [[0.0_f32; OUT]; CHUNK];
                    for (lane, line) in line.iter_mut().enumerate() {
                        *line = std::array::from_fn(|x| px[x][lane] + bias);
                    }
                    let line = line.as_flattened();
                    for band in 0..place.down() {
                        let row = top + OUT * band + y;
                        if row >= height {
                            break;
                        }
                        let count = (OUT * place.across).min(width - left);
                        let start = frame * strides.frame + channel * strides.channel + row * width + left;
                        // SAFETY: no other task has these tiles of this frame in this channel.
                        #[expect(unsafe_code, reason = "see `Shared`")]
                        unsafe {
                            output.put(start, &line[band * OUT * place.across..][..count]);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Norm;

    /// Repeatable values between -1 and 1.
    struct Noise(u64);

    impl Noise {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            self.0 >> 33
        }

        fn below(&mut self, limit: usize) -> usize {
            self.next() as usize % limit
        }

        fn values(&mut self, count: usize) -> Vec<f32> {
            (0..count).map(|_| (self.next() as f64 / f64::from(1_u32 << 30) - 1.0) as f32).collect()
        }
    }

    #[derive(Debug)]
    struct Case {
        form: Form,
        channels: [usize; 2],
        taps: usize,
        size: [usize; 2],
        frames: usize,
        course: Course,
        doubled: bool,
        /// 0: none, 1: channels, 2: px.
        norm: usize,
        silu: bool,
        onto: bool,
    }

    struct Data {
        weight: Vec<f32>,
        bias: Vec<f32>,
        input: Vec<f32>,
        scale: Vec<f32>,
        shift: Vec<f32>,
        inverse: Vec<f32>,
        before: Vec<f32>,
    }

    impl Case {
        fn output_size(&self) -> [usize; 2] {
            self.form.output_size(self.size.map(|side| if self.doubled { 2 * side } else { side }))
        }

        fn data(&self, seed: u64) -> Data {
            let mut noise = Noise(seed);
            let [channels_in, channels_out] = self.channels;
            let area = self.size[0] * self.size[1];
            let [height, width] = self.output_size();
            Data {
                weight: noise.values(channels_in * channels_out * self.taps * self.form.kernel()),
                bias: noise.values(channels_out),
                input: noise.values(channels_in * self.frames * area),
                scale: noise.values(channels_in),
                shift: noise.values(channels_in),
                inverse: noise.values(self.frames * area),
                before: noise.values(channels_out * self.course.frames * height * width),
            }
        }

        fn run(&self, data: &Data) -> Vec<f32> {
            let area = self.size[0] * self.size[1];
            let [height, width] = self.output_size();
            let frames: Vec<Frame> = (0..self.frames)
                .map(|frame| Frame {
                    values: &data.input[frame * area..],
                    stride: self.frames * area,
                    norm: match self.norm {
                        0 => Norm::None,
                        1 => Norm::Channels { scale: &data.scale, shift: &data.shift, silu: self.silu },
                        _ => Norm::Pixels { inverse: &data.inverse[frame * area..][..area], gain: &data.scale, silu: self.silu },
                    },
                })
                .collect();
            let convolution = Convolution {
                form: self.form,
                weight: &data.weight,
                bias: &data.bias,
                channels: self.channels,
                taps: self.taps,
                size: self.size,
                doubled: self.doubled,
            };
            let strides = Strides { frame: height * width, channel: self.course.frames * height * width };
            if self.onto {
                let mut values = data.before.clone();
                convolution.run_into(&frames, self.course, strides, Target::Onto(&mut values));
                values
            } else {
                convolution.run(&frames, self.course, strides)
            }
        }

        /// The definition, in f64.
        fn expected(&self, data: &Data) -> Vec<f64> {
            let [channels_in, channels_out] = self.channels;
            let [height, width] = self.size;
            let px = |channel: usize, frame: usize, y: isize, x: isize| {
                let (y, x) = if self.doubled { (y.div_euclid(2), x.div_euclid(2)) } else { (y, x) };
                if y < 0 || x < 0 || y >= height.cast_signed() || x >= width.cast_signed() {
                    return 0.0;
                }
                let at = y as usize * width + x as usize;
                let value = f64::from(data.input[(channel * self.frames + frame) * height * width + at]);
                let value = match self.norm {
                    0 => return value,
                    1 => value * f64::from(data.scale[channel]) + f64::from(data.shift[channel]),
                    _ => value * f64::from(data.inverse[frame * height * width + at]) * f64::from(data.scale[channel]),
                };
                if self.silu { value / (1.0 + (-value).exp()) } else { value }
            };
            let side = if self.form == Form::Point { 1 } else { 3 };
            let (stride, before) = match self.form {
                Form::Wide | Form::Narrow => (1, 1),
                Form::Point => (1, 0),
                Form::Halving => (2, 0),
            };
            let mut values = Vec::new();
            let [rows, columns] = self.output_size();
            for out in 0..channels_out {
                for frame in 0..self.course.frames {
                    for y in 0..rows {
                        for x in 0..columns {
                            let mut sum = f64::from(data.bias[out]);
                            if self.onto {
                                sum += f64::from(data.before[values.len()]);
                            }
                            for channel in 0..channels_in {
                                for tap in 0..self.taps {
                                    let Some(seen) = (self.course.lead + self.course.step * frame + tap + 1).checked_sub(self.taps) else { continue };
                                    for at in 0..side * side {
                                        let kernel = data.weight[((out * channels_in + channel) * self.taps + tap) * side * side + at];
                                        let (row, column) = (y * stride + at / side, x * stride + at % side);
                                        sum += f64::from(kernel) * px(channel, seen, row.cast_signed() - before, column.cast_signed() - before);
                                    }
                                }
                            }
                            values.push(sum);
                        }
                    }
                }
            }
            values
        }
    }

    fn some_case(noise: &mut Noise) -> Case {
        let form = [Form::Wide, Form::Narrow, Form::Point, Form::Halving][noise.below(4)];
        let taps = if noise.below(3) == 0 { 3 } else { 1 };
        let frames = 1 + noise.below(if taps == 3 { 7 } else { 3 });
        let step = 1 + noise.below(2);
        let lead = noise.below(frames.min(3));
        let doubled = noise.below(4) == 0 && form != Form::Halving;
        let some = if cfg!(miri) { 9 } else { 40 };
        Case {
            form,
            channels: [1 + noise.below(21), 1 + noise.below(if cfg!(miri) { 9 } else { 70 })],
            taps,
            size: if noise.below(5) == 0 { [1 + noise.below(2), 1 + noise.below(2)] } else { [1 + noise.below(some), 1 + noise.below(3 * some)] },
            frames,
            course: Course { lead, step, frames: (frames - lead).div_ceil(step) },
            doubled,
            norm: if doubled { 0 } else { noise.below(3) },
            silu: noise.below(2) == 0,
            onto: noise.below(3) == 0,
        }
    }

    #[test]
    fn every_convolution_equals_its_definition() {
        let mut noise = Noise(1);
        for number in 0..if cfg!(miri) { 6 } else { 150 } {
            let case = some_case(&mut noise);
            let data = case.data(number);
            let (got, expected) = (case.run(&data), case.expected(&data));
            assert_eq!(got.len(), expected.len());
            let root = |sum: f64| (sum / expected.len() as f64).sqrt();
            let scale = root(expected.iter().map(|value| value * value).sum()).max(0.1);
            let error = root(got.iter().zip(&expected).map(|(&got, &expected)| (f64::from(got) - expected).powi(2)).sum());
            assert!(expected.is_empty() || error < 3e-6 * scale, "{case:?}: {error} of {scale}");
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let mut noise = Noise(2);
        for number in 0..if cfg!(miri) { 1 } else { 12 } {
            let case = some_case(&mut noise);
            let data = case.data(number);
            let on = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| case.run(&data));
            let one = on(1);
            assert!(on(2) == one && on(5) == one, "{case:?}");
        }
    }

    #[test]
    fn narrow_tiles_round_less_than_wide_ones() {
        let case = |form| Case {
            form,
            channels: [64, 16],
            taps: 1,
            size: [40, 40],
            frames: 1,
            course: Course { lead: 0, step: 1, frames: 1 },
            doubled: false,
            norm: 0,
            silu: false,
            onto: false,
        };
        let data = case(Form::Wide).data(5);
        let error = |form| {
            let (got, expected) = (case(form).run(&data), case(form).expected(&data));
            (got.iter().zip(&expected).map(|(&got, &expected)| (f64::from(got) - expected).powi(2)).sum::<f64>()
                / expected.iter().map(|value| value * value).sum::<f64>())
            .sqrt()
        };
        let (wide, narrow) = (error(Form::Wide), error(Form::Narrow));
        assert!(wide < 1.6e-6 && narrow < 0.5 * wide, "{wide} {narrow}");
    }
}
