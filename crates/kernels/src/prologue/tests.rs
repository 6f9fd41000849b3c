use super::*;
use crate::group_moments::GroupMoments;
use crate::memory::Workspace;

const ACTIVATIONS: [Activation; 3] = [Activation::None, Activation::Silu, Activation::Relu];

fn values(count: usize, offset: f32) -> Vec<f32> {
    (0..count).map(|at| (at as f32 * 0.37).sin() * 2.0 + offset).collect()
}

fn planes(image: &BlockedImage) -> Vec<f32> {
    let mut values = vec![0.0; image.channels() * image.area()];
    image.to_planes(&mut values, image.area());
    values
}

/// The definitions.
fn activated(x: f64, activation: Activation) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Relu => x.max(0.0),
    }
}

#[test]
fn group_norm_equals_its_definition() {
    for (channels, groups, size, offset) in [(6, 3, [5, 7], 0.5), (4, 2, [1, 1], 0.0), (40, 8, if cfg!(miri) { [3, 5] } else { [20, 33] }, 100.0)] {
        let area = size[0] * size[1];
        let (input, weight, bias) = (values(channels * area, offset), values(channels, 0.1), values(channels, 0.7));
        for activation in ACTIVATIONS {
            let image = BlockedImage::from_planes(&input, area, channels, size, &Workspace::default());
            let norm = Norm::group_norm(&GroupMoments::of_image(&image, groups), &weight, &bias, 1e-6);
            let got = planes(&Prologue { norm: Some(Arc::new(norm)), activation, upsample: false }.applied(image));
            for (group, input) in input.chunks(channels / groups * area).enumerate() {
                let count = input.len() as f64;
                let mean = input.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
                let variance = input.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / count;
                for (at, &value) in input.iter().enumerate() {
                    let channel = group * (channels / groups) + at / area;
                    let y = (f64::from(value) - mean) / (variance + 1e-6).sqrt() * f64::from(weight[channel]) + f64::from(bias[channel]);
                    let error = (f64::from(got[group * input.len() + at]) - activated(y, activation)).abs();
                    assert!(error < 2e-5 + f64::from(offset) * 2e-6, "{channels} {size:?} {activation:?}: {error}");
                }
            }
        }
    }
}

#[test]
fn rms_norm_equals_its_definition() {
    for (channels, size) in [(6, [5, 7]), (3, [1, 1]), (40, if cfg!(miri) { [3, 5] } else { [20, 33] })] {
        let area = size[0] * size[1];
        let (mut input, gamma) = (values(channels * area, 0.5), values(channels, 0.1));
        // A px whose channels are all zero.
        input.iter_mut().step_by(area).for_each(|value| *value = 0.0);
        for activation in ACTIVATIONS {
            let image = BlockedImage::from_planes(&input, area, channels, size, &Workspace::default());
            let norm = Norm::rms_norm(&image, &gamma);
            let got = planes(&Prologue { norm: Some(Arc::new(norm)), activation, upsample: false }.applied(image));
            for px in 0..area {
                let x = |channel: usize| f64::from(input[channel * area + px]);
                let length = (0..channels).map(|channel| x(channel).powi(2)).sum::<f64>().sqrt().max(1e-12);
                for channel in 0..channels {
                    let y = x(channel) / length * (channels as f64).sqrt() * f64::from(gamma[channel]);
                    assert!((f64::from(got[channel * area + px]) - activated(y, activation)).abs() < 2e-6);
                }
            }
        }
    }
}

#[test]
fn activation_and_upsampling_need_no_norm() {
    let (channels, size) = (17, [3, 5]);
    let input = values(channels * 15, 0.1);
    for activation in ACTIVATIONS {
        for upsample in [false, true] {
            let image = BlockedImage::from_planes(&input, 15, channels, size, &Workspace::default());
            let got = planes(&Prologue { norm: None, activation, upsample }.applied(image));
            let factor = if upsample { 2 } else { 1 };
            assert_eq!(got.len(), input.len() * factor * factor);
            for (at, &got) in got.iter().enumerate() {
                let (row, column) = (at / (5 * factor), at % (5 * factor));
                // Planes lie below one another, so that the row counts over all channels.
                let expected = activated(f64::from(input[row / factor * 5 + column / factor]), activation);
                assert!((f64::from(got) - expected).abs() < 1e-6, "{activation:?} {upsample}");
            }
        }
    }
}

#[test]
fn tiles_with_merged_moments_are_normalised_alike() {
    let (channels, [height, width]) = (8, [6, 10]);
    let input = values(channels * height * width, 3.0);
    let workspace = Workspace::default();
    let image = BlockedImage::from_planes(&input, height * width, channels, [height, width], &workspace);
    let (weight, bias) = (values(channels, 0.1), values(channels, 0.7));
    let applied = |image: BlockedImage, moments: &GroupMoments| {
        let norm = Norm::group_norm(moments, &weight, &bias, 1e-6);
        planes(&Prologue { norm: Some(Arc::new(norm)), ..Prologue::default() }.applied(image))
    };
    let whole = applied(image.clone(), &GroupMoments::of_image(&image, 2));
    let halves: Vec<BlockedImage> =
        [0, 3].iter().map(|top| BlockedImage::from_planes(&input[top * width..], height * width, channels, [3, width], &workspace)).collect();
    let mut moments = GroupMoments::of_image(&halves[0], 2);
    moments.merge(&GroupMoments::of_image(&halves[1], 2));
    for (half, image) in halves.into_iter().enumerate() {
        for (at, got) in applied(image, &moments).into_iter().enumerate() {
            let (channel, px) = (at / (3 * width), at % (3 * width));
            let expected = whole[channel * height * width + half * 3 * width + px];
            assert!((got - expected).abs() < 1e-6, "{got} {expected}");
        }
    }
}
