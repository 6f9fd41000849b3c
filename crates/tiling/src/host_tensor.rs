use crate::Region;

/// A dense f32 tensor in host memory, `[batch, channels, frames, height, width]`, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    shape: [usize; 5],
    data: Vec<f32>,
}

impl HostTensor {
    /// Wraps `data`, or returns `None` when its length is not the product of `shape`.
    pub fn new(shape: [usize; 5], data: Vec<f32>) -> Option<Self> {
        let length = shape.iter().try_fold(1usize, |n, &side| n.checked_mul(side))?;
        (length == data.len()).then_some(Self { shape, data })
    }

    /// A tensor of zeros.
    pub fn zeros(shape: [usize; 5]) -> Self {
        Self { shape, data: vec![0.0; shape.iter().product()] }
    }

    /// A tensor whose value at `[b, c, t, y, x]` is `f([b, c, t, y, x])`.
    pub fn from_fn(shape: [usize; 5], mut f: impl FnMut([usize; 5]) -> f32) -> Self {
        let mut data = Vec::with_capacity(shape.iter().product());
        for b in 0..shape[0] {
            for c in 0..shape[1] {
                for t in 0..shape[2] {
                    for y in 0..shape[3] {
                        data.extend((0..shape[4]).map(|x| f([b, c, t, y, x])));
                    }
                }
            }
        }
        Self { shape, data }
    }

    /// A tensor of values in row-major order.
    ///
    /// # Panics
    /// When there are not as many as the shape says.
    pub fn from_data(shape: [usize; 5], values: impl IntoIterator<Item = f32>) -> Self {
        Self::new(shape, values.into_iter().collect()).expect("as many values as the shape says")
    }

    /// `[batch, channels, frames, height, width]`.
    pub fn shape(&self) -> [usize; 5] {
        self.shape
    }

    /// Frames, height and width.
    pub fn extent(&self) -> [usize; 3] {
        [self.shape[2], self.shape[3], self.shape[4]]
    }

    /// All values, row-major.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// All values, row-major, for changing in place.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// All values, row-major.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }

    /// The number of planes: one for each batch item, channel and frame.
    pub fn planes(&self) -> usize {
        self.shape[0] * self.shape[1] * self.shape[2]
    }

    /// The row `y` of plane `plane`; planes count batch items, then channels, then frames.
    pub fn row(&self, plane: usize, y: usize) -> &[f32] {
        let start = (plane * self.shape[3] + y) * self.shape[4];
        &self.data[start..start + self.shape[4]]
    }

    /// The row `y` of plane `plane`, for changing in place.
    pub fn row_mut(&mut self, plane: usize, y: usize) -> &mut [f32] {
        let start = (plane * self.shape[3] + y) * self.shape[4];
        &mut self.data[start..start + self.shape[4]]
    }

    /// A copy of the region in every batch item and channel.
    ///
    /// # Panics
    /// When the region reaches past the tensor.
    #[must_use]
    pub fn region(&self, region: &Region) -> Self {
        let [t, h, w] = region.size;
        let mut data = Vec::with_capacity(self.shape[0] * self.shape[1] * t * h * w);
        for item in 0..self.shape[0] * self.shape[1] {
            for frame in 0..t {
                let plane = item * self.shape[2] + region.start[0] + frame;
                for y in 0..h {
                    data.extend_from_slice(&self.row(plane, region.start[1] + y)[region.start[2]..region.start[2] + w]);
                }
            }
        }
        Self { shape: [self.shape[0], self.shape[1], t, h, w], data }
    }

    /// A copy of `count` frames from `first` on.
    ///
    /// # Panics
    /// When the tensor has fewer frames.
    #[must_use]
    pub fn frames(&self, first: usize, count: usize) -> Self {
        self.region(&Region { start: [first, 0, 0], size: [count, self.shape[3], self.shape[4]] })
    }

    /// Concatenates tensors along frames.
    ///
    /// # Panics
    /// When there is none, or they differ in another side than frames.
    pub fn join_frames(mut pieces: Vec<Self>) -> Self {
        if pieces.len() == 1 {
            return pieces.remove(0);
        }
        let [b, c, _, h, w] = pieces[0].shape;
        assert!(pieces.iter().all(|piece| piece.shape[..2] == [b, c] && piece.shape[3..] == [h, w]), "tensors of one size");
        let frames = pieces.iter().map(|piece| piece.shape[2]).sum();
        let mut data = Vec::with_capacity(b * c * frames * h * w);
        for item in 0..b * c {
            for piece in &pieces {
                let length = piece.shape[2] * h * w;
                data.extend_from_slice(&piece.data[item * length..(item + 1) * length]);
            }
        }
        Self { shape: [b, c, frames, h, w], data }
    }

    /// Concatenates tensors along the batch.
    ///
    /// # Panics
    /// When there is none, or they differ in another side than the batch.
    pub fn join_batch(mut tensors: Vec<Self>) -> Self {
        if tensors.len() == 1 {
            return tensors.remove(0);
        }
        let [_, c, t, h, w] = tensors[0].shape;
        assert!(tensors.iter().all(|tensor| tensor.shape[1..] == [c, t, h, w]), "tensors of one size");
        let items = tensors.iter().map(|tensor| tensor.shape[0]).sum();
        Self { shape: [items, c, t, h, w], data: tensors.into_iter().flat_map(|tensor| tensor.data).collect() }
    }

    /// Splits the batch into `parts` tensors of equal size: the reverse of [`join_batch`](Self::join_batch).
    ///
    /// # Panics
    /// When the batch is not a multiple of `parts`.
    pub fn split_batch(self, parts: usize) -> Vec<Self> {
        if parts == 1 {
            return vec![self];
        }
        let [items, c, t, h, w] = self.shape;
        assert!(items.is_multiple_of(parts), "{items} batch items are not {parts} equal parts");
        let shape = [items / parts, c, t, h, w];
        let length = shape.iter().product::<usize>();
        (0..parts).map(|part| Self { shape, data: self.data[part * length..(part + 1) * length].to_vec() }).collect()
    }

    /// A copy of `height` rows from `y` on and `width` columns from `x` on, all frames.
    pub(crate) fn window(&self, [y, x]: [usize; 2], [height, width]: [usize; 2]) -> Self {
        self.region(&Region { start: [0, y, x], size: [self.shape[2], height, width] })
    }

    /// Its first `height` rows and `width` columns, all frames, moved together in place.
    pub(crate) fn cropped(mut self, [height, width]: [usize; 2]) -> Self {
        let [b, c, t, ..] = self.shape;
        for row in 0..b * c * t * height {
            let from = (row / height * self.shape[3] + row % height) * self.shape[4];
            self.data.copy_within(from..from + width, row * width);
        }
        self.data.truncate(b * c * t * height * width);
        Self { shape: [b, c, t, height, width], data: self.data }
    }

    /// Copies `source` to frame `t`, row `y`, column `x` of every batch item and channel of this tensor.
    ///
    /// # Panics
    /// When it reaches past the tensor, or has other channels.
    pub fn paste(&mut self, source: &Self, [t, y, x]: [usize; 3]) {
        let [_, _, frames, height, width] = source.shape;
        for plane in 0..source.planes() {
            let own = plane / frames * self.shape[2] + t + plane % frames;
            for row in 0..height {
                self.row_mut(own, y + row)[x..x + width].copy_from_slice(source.row(plane, row));
            }
        }
    }
}
