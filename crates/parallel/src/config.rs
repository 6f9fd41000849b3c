use serde::{Deserialize, Serialize};

use crate::{Executor, MultiDevice, Sequential};

/// The section `[executor]` of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ExecutorConfig {
    /// See [`Sequential`].
    Sequential {},
    /// See [`MultiDevice`].
    MultiDevice {
        /// How often a tile may fail before the run does.
        #[serde(default = "default_retries")]
        retries: usize,
    },
}

fn default_retries() -> usize {
    2
}

impl ExecutorConfig {
    /// The executor.
    pub fn build(&self) -> Box<dyn Executor> {
        match *self {
            Self::Sequential {} => Box::new(Sequential),
            Self::MultiDevice { retries } => Box::new(MultiDevice { retries }),
        }
    }
}
