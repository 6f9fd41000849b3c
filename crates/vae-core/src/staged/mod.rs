//! Runs in stages, as operations on tiles: features stay in a store, and what is known of the whole picture passes from one stage to the next.

mod attend;
mod piece;
mod room;
mod sample_op;
mod stage_op;
mod store;
#[cfg(all(test, feature = "flex"))]
mod tests;

pub use sample_op::{SampleOp, SampleShared};
pub use stage_op::{MomentsSink, StageOp, StageShared};
pub use store::{Epoch, FeatureStore, StoredBytes};
