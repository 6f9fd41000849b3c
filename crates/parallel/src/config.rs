use serde::{Deserialize, Serialize};

use crate::{Executor, Sequential};

/// The section `[executor]` of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ExecutorConfig {
    /// See [`Sequential`].
    Sequential {},
}

impl ExecutorConfig {
    /// The executor.
    pub fn build(&self) -> Box<dyn Executor> {
        match self {
            Self::Sequential {} => Box::new(Sequential),
        }
    }
}
