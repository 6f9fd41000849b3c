use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::features::Features;
use crate::operators::{Activation, GroupMoments, GroupNormParameters};
use crate::parameter::parameter;

/// Group normalisation of each frame, with statistics in f32 for every dtype of the input (torch, `GroupNorm`).
#[derive(Module, Debug)]
pub struct GroupNorm {
    /// `[channels]`.
    pub weight: Param<Tensor<1>>,
    /// `[channels]`.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    groups: usize,
    #[module(skip)]
    epsilon: f64,
}

impl GroupNorm {
    /// Normalises `channels` channels in `groups` groups.
    pub fn new(groups: usize, channels: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: parameter([channels], device), bias: parameter([channels], device), groups, epsilon }
    }

    /// # Shapes
    /// `[b, c, t, h, w]` to the same.
    pub fn forward(&self, x: Features) -> Features {
        self.forward_activated(x, Activation::None)
    }

    /// The norm, then an activation.
    ///
    /// # Shapes
    /// `[b, c, t, h, w]` to the same.
    pub fn forward_activated(&self, x: Features, activation: Activation) -> Features {
        x.group_norm(&self.parameters(), activation)
    }

    /// The norm with given moments, then an activation.
    ///
    /// # Shapes
    /// `[b, c, t, h, w]` to the same.
    ///
    /// # Panics
    /// When the moments have another number of frames or groups.
    pub fn forward_with_moments(&self, x: Features, moments: GroupMoments, activation: Activation) -> Features {
        x.apply_group_norm(moments, &self.parameters(), activation)
    }

    /// Groups of channels.
    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    fn parameters(&self) -> GroupNormParameters {
        let (weight, bias) = (self.weight.val(), self.bias.val());
        GroupNormParameters { groups: self.groups, epsilon: self.epsilon, weight, bias }
    }
}

/// Each px divided by the L2 norm of its channels, times the root of their number and `gamma` (diffusers, `WanRMS_norm`).
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[channels]`.
    pub gamma: Param<Tensor<1>>,
}

impl RmsNorm {
    /// Normalises over `channels` channels.
    pub fn new(channels: usize, device: &Device) -> Self {
        Self { gamma: parameter([channels], device) }
    }

    /// # Shapes
    /// `[b, c, t, h, w]` to the same.
    pub fn forward(&self, x: Features) -> Features {
        self.forward_activated(x, Activation::None)
    }

    /// The norm, then an activation.
    ///
    /// # Shapes
    /// `[b, c, t, h, w]` to the same.
    pub fn forward_activated(&self, x: Features, activation: Activation) -> Features {
        x.rms_norm(self.gamma.val(), activation)
    }
}
