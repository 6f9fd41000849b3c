use std::ops::RangeInclusive;

use crate::WeightError;

/// What a VAE, its configuration or its weights can refuse.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaeError {
    /// A tensor with another number of channels.
    #[error("the {what} have {got} channels, this model expects {expected}")]
    Channels {
        /// `latents` or `samples`.
        what: &'static str,
        /// Channels that came.
        got: usize,
        /// Channels of the model.
        expected: usize,
    },
    /// A number of frames that the model does not take.
    #[error("the {what} have {got} frames; an image model takes one, and a video model at least one")]
    Frames {
        /// `latents` or `samples`.
        what: &'static str,
        /// Frames that came.
        got: usize,
    },
    /// A number of sample frames that leaves a remainder.
    #[error("the samples have {got} frames, of which {} do not fill a latent frame: a clip has 1 + {ratio}k frames", (got - 1) % ratio)]
    FrameCount {
        /// Frames that came.
        got: usize,
        /// Sample frames in a latent frame, after the first.
        ratio: usize,
    },
    /// A tensor with a side of zero, or too small for the network.
    #[error("the {what} have the shape {got:?}; height and width must be at least {smallest}")]
    TooSmall {
        /// `latents` or `samples`.
        what: &'static str,
        /// `[batch, channels, frames, height, width]`.
        got: [usize; 5],
        /// The smallest height and width.
        smallest: usize,
    },
    /// A `config.json` that is not the family's.
    #[error("the configuration of the model cannot be read")]
    Config(#[source] serde_json::Error),
    /// A field of the configuration with a value that this family does not implement or that contradicts another.
    #[error("`{field}` in the model's configuration is {got}; {expected}")]
    ConfigValue {
        /// The field.
        field: &'static str,
        /// Its value.
        got: String,
        /// What would be right.
        expected: String,
    },
    /// A [`VaeSpec`](crate::VaeSpec) with which nothing can be computed: a fault of the family.
    #[error("the family says that {field} is {got}; {expected}")]
    Spec {
        /// The field.
        field: &'static str,
        /// Its value.
        got: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A decode or an encode with a model of which only the other component was loaded.
    #[error("the {component} of this model was not loaded")]
    NotLoaded {
        /// `encoder` or `decoder`.
        component: &'static str,
    },
    /// Somebody threw the switch of the run.
    #[error("the run was stopped")]
    Stopped,
    /// Weights that do not fit the configuration.
    #[error(transparent)]
    Weights(#[from] WeightError),
}

impl VaeError {
    /// Checks a number of a configuration, so that what is computed with it stays within memory and time.
    ///
    /// # Errors
    /// [`VaeError::ConfigValue`] when `value` is outside `range`.
    pub fn check_range(field: &'static str, value: usize, range: RangeInclusive<usize>) -> Result<(), Self> {
        let expected = match value {
            _ if range.contains(&value) => return Ok(()),
            _ if value < *range.start() => format!("it must be at least {}", range.start()),
            _ => format!("it must be at most {}", range.end()),
        };
        Err(Self::ConfigValue { field, got: value.to_string(), expected })
    }
}
