/// A box of features that is put into others: frames, rows and columns.
#[derive(Debug, Clone)]
pub struct Part<D> {
    /// The features that it is taken from.
    pub x: D,
    /// Its first frame, row and column there.
    pub from: [usize; 3],
    /// Its first frame, row and column in the others.
    pub to: [usize; 3],
    /// Its frames, rows and columns.
    pub size: [usize; 3],
}

impl<D> Part<D> {
    /// The same box of other features.
    pub fn map<E>(self, of: impl FnOnce(D) -> E) -> Part<E> {
        let Self { x, from, to, size } = self;
        Part { x: of(x), from, to, size }
    }
}
