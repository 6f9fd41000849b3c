//! What the benches share: an operation that costs nothing, and a sink that keeps nothing.
//!
//! `cargo bench --manifest-path benches/Cargo.toml` runs them.

use tiling::{BoxError, DevicePiece, Geometry, HostTensor, Scale, Sink, Stop, TileOp, TileRun};

/// Answers each tile with one that was made before, moved and not copied where it can be.
#[derive(Debug, Clone, Copy)]
pub struct Free;

impl TileOp for Free {
    fn geometry(&self) -> Geometry {
        Geometry::image(Scale::Up(1))
    }

    fn begin(&self, _: &[usize], _: &Stop) -> TileRun<'_> {
        Box::new(|piece: DevicePiece| Ok(piece))
    }
}

/// Takes everything and keeps nothing.
#[derive(Debug, Default)]
pub struct Nowhere {
    /// Values that came.
    pub values: usize,
}

impl Sink for Nowhere {
    fn take(&mut self, _: [usize; 3], _: [usize; 3], piece: HostTensor) -> Result<(), BoxError> {
        self.values += std::hint::black_box(piece).data().len();
        Ok(())
    }
}
