use std::ops::RangeInclusive;

use tiling::BoxError;

use crate::WeightError;

/// Why a VAE refuses its configuration, its weights or an input, or fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaeError {
    /// A tensor with another number of channels.
    #[error("the {what} have {got} channels, this model expects {expected}")]
    Channels {
        /// `latents` or `samples`.
        what: &'static str,
        /// Channels of the tensor.
        got: usize,
        /// Channels of the model.
        expected: usize,
    },
    /// An output of a decoder or an encoder with a number of channels that its [`VaeSpec`](crate::VaeSpec) does not predict: a fault of the family.
    #[error("the {component} returned {got} channels, its spec predicts {expected}")]
    AnswerChannels {
        /// `decoder` or `encoder`.
        component: &'static str,
        /// Channels of the output.
        got: usize,
        /// Channels by the spec.
        expected: usize,
    },
    /// A number of frames that the model does not take.
    #[error("the {what} have {got} frames; an image model takes one, and a video model at least one")]
    Frames {
        /// `latents` or `samples`.
        what: &'static str,
        /// Frames of the tensor.
        got: usize,
    },
    /// A number of sample frames that leaves a remainder.
    #[error("the samples have {got} frames, of which {} do not fill a latent frame: a clip has 1 + {ratio}k frames", (got - 1) % ratio)]
    FrameCount {
        /// Frames of the tensor.
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
    /// A `config.json` whose fields do not have the types that the family expects.
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
    /// A [`VaeSpec`](crate::VaeSpec) that nothing can be computed with: a fault of the family.
    #[error("`{field}` in the family's spec is {got}; {expected}")]
    Spec {
        /// The field.
        field: &'static str,
        /// Its value.
        got: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A decode without the decoder loaded, or an encode without the encoder.
    #[error("the {component} of this model was not loaded")]
    NotLoaded {
        /// `encoder` or `decoder`.
        component: &'static str,
    },
    /// The run was stopped.
    #[error("the run was stopped")]
    Stopped,
    /// A failure that only the family knows, in its own words. [`VaeError::family`] makes it.
    #[error(transparent)]
    Family(BoxError),
    /// Weights that do not fit the configuration.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// A second chunk of frames for a run whose context promises a single one (see [`Context::with_single_chunk`](crate::Context::with_single_chunk)).
    #[error("the run has a single chunk of frames, and another one was given")]
    SecondChunk,
}

impl VaeError {
    /// A failure of a family's own: a message, or an error that is kept with its sources.
    pub fn family(error: impl Into<BoxError>) -> Self {
        Self::Family(error.into())
    }

    /// Checks a number of a configuration, so that a model of that size stays within memory and time.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_a_family_keeps_its_words_and_sources() {
        assert_eq!(VaeError::family("the table has no entry 7").to_string(), "the table has no entry 7");
        let config = VaeError::family(VaeError::Config(serde::de::Error::custom("an integer is expected")));
        assert_eq!(std::error::Error::source(&config).unwrap().to_string(), "an integer is expected");
    }
}
