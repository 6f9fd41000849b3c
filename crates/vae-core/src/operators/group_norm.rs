use burn::tensor::{Device, ExecutionError, Tensor, TensorData};
use kernels::Moments;

/// A group norm: `(x - mean) / sqrt(variance + epsilon) * weight + bias`, with the mean and variance of the channel's group in its frame.
#[derive(Debug, Clone)]
pub struct GroupNormParameters {
    /// Groups of consecutive channels.
    pub groups: usize,
    /// Added to each variance.
    pub epsilon: f64,
    /// `[channels]`.
    pub weight: Tensor<1>,
    /// `[channels]`.
    pub bias: Tensor<1>,
}

/// Count, mean and variance of the values of each group of channels, in each frame of each batch item: of a whole image, or of several tiles of it.
#[expect(clippy::large_enum_variant, reason = "few exist at a time")]
#[derive(Debug, Clone)]
pub enum GroupMoments {
    /// In f64 in host memory, for each frame.
    Host(Vec<kernels::GroupMoments>),
    /// In f32 on a device.
    Device(TensorMoments),
}

/// Moments on a device.
#[derive(Debug, Clone)]
pub struct TensorMoments {
    /// Values of each group.
    pub count: f64,
    /// `[2, frames, groups]`: means, then population variances.
    pub values: Tensor<3>,
}

impl GroupMoments {
    /// The moments of this tile and another together. The result depends on the order of merging in its last bits: merge tiles in a fixed order.
    ///
    /// # Panics
    /// When the numbers of frames or groups differ.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Host(mut frames), Self::Host(other)) => {
                assert_eq!(frames.len(), other.len(), "frames");
                for (moments, other) in frames.iter_mut().zip(&other) {
                    moments.merge(other);
                }
                Self::Host(frames)
            }
            (Self::Device(moments), other) => {
                let device = moments.values.device();
                Self::Device(moments.merge(&other.on(&device)))
            }
            (host, Self::Device(other)) => {
                let device = other.values.device();
                Self::Device(host.on(&device).merge(&other))
            }
        }
    }

    /// The moments in host memory, for each frame.
    ///
    /// # Errors
    /// When the device does not give them.
    pub fn into_host(self) -> Result<Vec<kernels::GroupMoments>, ExecutionError> {
        let TensorMoments { count, values } = match self {
            Self::Host(frames) => return Ok(frames),
            Self::Device(moments) => moments,
        };
        let groups = values.dims()[2];
        let values = values.try_into_data()?.convert::<f32>().try_into_vec::<f32>().unwrap_or_default();
        let (means, variances) = values.split_at(values.len() / 2);
        let of_group = |(&mean, &variance): (&f32, &f32)| Moments { count, mean: mean.into(), squared_deviations: f64::from(variance) * count };
        let all: Vec<Moments> = means.iter().zip(variances).map(of_group).collect();
        Ok(all.chunks(groups.max(1)).map(|frame| kernels::GroupMoments::from(frame.to_vec())).collect())
    }

    /// The moments as a tensor on `device`.
    pub fn on(self, device: &Device) -> TensorMoments {
        match self {
            Self::Device(moments) => moments,
            Self::Host(frames) => {
                let groups = frames.first().map_or(0, |moments| moments.groups().len());
                let all = || frames.iter().flat_map(kernels::GroupMoments::groups);
                let values: Vec<f32> = all().map(|moments| moments.mean as f32).chain(all().map(|moments| moments.variance() as f32)).collect();
                let count = all().next().map_or(0.0, |moments| moments.count);
                TensorMoments { count, values: Tensor::from_data(TensorData::new(values, [2, frames.len(), groups]), device) }
            }
        }
    }
}

impl TensorMoments {
    /// Means and variances, each `[frames, groups]`.
    pub fn mean_and_variance(&self) -> [Tensor<2>; 2] {
        [0, 1].map(|moment| self.values.clone().narrow(0, moment, 1).squeeze_dim(0))
    }

    /// The moments of the union of two disjoint sets.
    ///
    /// Source: T. Chan, G. Golub and R. LeVeque, "Algorithms for Computing the Sample Variance: Analysis and Recommendations", The American Statistician 37
    /// (1983), equations 2.1.
    fn merge(self, other: &Self) -> Self {
        let count = self.count + other.count;
        if count == 0.0 {
            return self;
        }
        let [share, other_share] = [self.count / count, other.count / count];
        let ([mean, variance], [other_mean, other_variance]) = (self.mean_and_variance(), other.mean_and_variance());
        let delta = other_mean - mean.clone();
        let merged_variance = variance * share + other_variance * other_share + delta.clone().square() * (share * other_share);
        Self { count, values: Tensor::stack(vec![mean + delta * other_share, merged_variance], 0) }
    }
}
