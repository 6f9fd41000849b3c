//! A decoder or an encoder as a list of layers, in the order in which the reference code runs them.
//!
//! Everything else about a coder follows from its list: the run over a whole picture and over the chunks of a clip, what is kept between chunks, the area that an
//! area of the output depends on, the multiply-adds, and the [stages](Stage) in which a picture runs tile by tile with the result of the whole.
//!
//! ```text
//! modules -> Coder (layers with weights) -> CoderSpec (steps without weights) -> Stage -> StageAreas
//!                \____________________________________________________________________/
//!                                     Coder::run_stage
//! ```

mod cache;
mod crops;
mod layer;
mod memory;
mod plan;
mod run;
mod spec;
mod stage;
mod step;

pub use cache::FrameCache;
pub use crops::Crops;
pub use layer::{Coder, Layer, PxMap};
pub use memory::{Reading, StagedMemory};
pub use plan::StagedPlan;
pub use run::Value;
pub(crate) use run::Whole;
pub use spec::CoderSpec;
pub use stage::{Area, Stage, StageAreas};
pub use step::{Flow, FrameChange, Step, Support};
