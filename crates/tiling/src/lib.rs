//! Cuts a tensor into tiles and blends the outputs where they overlap: grids, plans, blend policies and the compositor.
//!
//! Nothing here knows a VAE, a device or a thread. A [`TileOp`] is the operation on one tile. A [`Grid`] makes a [`TilePlan`], the places of all tiles, from
//! integers alone. A [`BlendPolicy`] weighs tiles where they overlap, and the [`Compositor`] hands finished parts to a [`Sink`] while later tiles still
//! run.
//!
//! ```
//! use tiling::{HostTensor, Canvas, Cascade, Compositor, Geometry, Grid, Scale, Uniform, TilePlan};
//!
//! let source = HostTensor::from_fn([1, 1, 1, 6, 10], |[_, _, _, y, x]| (10 * y + x) as f32);
//! let geometry = Geometry::image(Scale::Up(1));
//! let grid = Uniform::with_tile([4, 4], [2, 2]);
//! let plan = TilePlan::new(&grid, geometry, [1, 6, 10])?;
//! let mut canvas = Canvas::default();
//! let mut compositor = Compositor::new(&plan, &Cascade, &mut canvas);
//! for tile in &plan.tiles {
//!     compositor.push(tile.index, source.region(&tile.input))?;
//! }
//! compositor.finish()?;
//! assert_eq!(canvas.into_tensor(), source);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod blend;
mod choice;
mod compositor;
mod config;
mod error;
mod geometry;
mod grid;
mod guard;
mod host_tensor;
mod op;
mod per_axis;
mod plan;
mod scratch_file;
mod spill_store;
mod stop;

pub use blend::{BlendPolicy, Cascade, Corner, Feather, Seam};
pub use choice::{Choice, Kind, SettingsError};
pub use compositor::{Canvas, Compositor};
pub use config::{
    BlendConfig, BlendEntry, BlendKind, DiffusersKind, GridConfig, GridContext, GridEntry, GridKind, MemoryBudget, NormMoments, SeamlessKind,
    UniformKind,
};
pub use error::{BoxError, CompositeError, GridError};
pub use geometry::{FrameScale, Geometry, Region, Scale};
pub use grid::{Axis, DiffusersGrid, Grid, GridDefaults, Off, Overlap, Seamless, Span, Uniform, UniformSize};
pub use guard::{Panicked, Party, catch, guard, is_guarded};
pub use host_tensor::HostTensor;
#[doc(hidden)]
pub use inventory;
pub use op::{DevicePiece, Sink, TileOp, TileRun, TileSource};
pub use per_axis::{AxisNumber, PerAxis};
pub use plan::{Tile, TilePlan};
pub use scratch_file::{ScratchError, ScratchFile};
pub use stop::Stop;

#[cfg(test)]
mod tests;
