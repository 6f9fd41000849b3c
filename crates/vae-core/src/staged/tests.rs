use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use tiling::{Span, Stop};

use super::attend::KeyGrid;
use super::piece::{Piece, Place, Reader};
use super::room::{Room, Scratch};
use super::store::{FeatureStore, Slot};
use crate::Context;
use crate::layers::Features;

fn ramp(shape: [usize; 5], seed: usize) -> Tensor<5> {
    let values = (0..shape.iter().product()).map(|at: usize| ((at * 37 + seed) as f32).sin()).collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

fn span(start: usize, length: usize) -> Span {
    Span { start, length }
}

fn difference(a: impl Into<Tensor<5>>, b: impl Into<Tensor<5>>) -> f32 {
    (a.into().cast(DType::F32) - b.into().cast(DType::F32)).abs().max().into_scalar::<f32>()
}

#[test]
fn features_that_come_late_are_refused() {
    let (store, device) = (FeatureStore::new(u64::MAX, []), Device::flex());
    let slot = Slot { value: 1, tile: 0, first: 0, area: [span(0, 2); 2] };
    let stop = Stop::default();
    let (context, stopped) = (Context::default(), Context::default().with_stop(&stop));
    let put = |epoch, value: f32, context: &Context| {
        let features = Features::new(Tensor::full([1, 3, 1, 2, 2], value, &device), &Context::default());
        store.put(epoch, slot, Reader { device: &device, dtype: DType::F32, context }, features)
    };
    let get = || store.get(1, 0..1, slot.area, Reader { device: &device, dtype: DType::F32, context: &context });
    let first = store.begin_stage();
    put(first, 1.0, &context).unwrap();
    // Of a tile that was taken from its worker, and of a stage that is over.
    stop.stop();
    put(first, 2.0, &stopped).unwrap_err();
    let second = store.begin_stage();
    put(first, 3.0, &context).unwrap_err();
    store.remove(&[1]);
    put(first, 4.0, &context).unwrap_err();
    get().unwrap_err();
    put(second, 5.0, &context).unwrap();
    assert!(Tensor::<5>::from(get().unwrap()).into_data().iter::<f32>().all(|value| value == 5.0));
}

#[test]
fn features_in_a_wider_type_are_not_replaced() {
    let (store, device, context) = (FeatureStore::new(u64::MAX, []), Device::flex(), Context::default());
    let slot = Slot { value: 1, tile: 0, first: 0, area: [span(0, 2); 2] };
    let epoch = store.begin_stage();
    let kept_after = |value: f32, dtype: DType| {
        let features = Features::new(Tensor::<5>::full([1, 3, 1, 2, 2], value, &device).cast(dtype), &context);
        store.put(epoch, slot, Reader { device: &device, dtype, context: &context }, features).unwrap();
        let kept = store.get(1, 0..1, slot.area, Reader { device: &device, dtype: DType::F32, context: &context }).unwrap();
        Tensor::<5>::from(kept).into_data().iter::<f32>().next().unwrap()
    };
    assert!(kept_after(f32::INFINITY, DType::F16).is_infinite());
    assert_eq!(kept_after(2.0, DType::F32), 2.0);
    assert_eq!(kept_after(f32::INFINITY, DType::F16), 2.0);
}

#[test]
fn attention_rests_on_tiles_or_on_an_even_grid() {
    // The second tile lies in the scratch file.
    let (store, context, device) = (FeatureStore::new(500, []), Context::default(), Device::flex());
    let reader = Reader { device: &device, dtype: DType::F32, context: &context };
    let epoch = store.begin_stage();
    let [queries, keys, values] = [1, 2, 3].map(|seed| ramp([1, 5, 1, 7, 9], seed));
    let features = |tensor: &Tensor<5>| Features::new(tensor.clone(), &context);
    for (value, tensor) in [(10, &keys), (11, &values)] {
        for (tile, (top, height)) in [(0, 3), (3, 4)].into_iter().enumerate() {
            let slot = Slot { value, tile, first: 0, area: [span(top, height), span(0, 9)] };
            store.put(epoch, slot, reader, features(&tensor.clone().narrow(3, top, height))).unwrap();
        }
    }
    assert!(store.peak_bytes().scratch > 0);
    let attend = |stride: usize| store.attend(features(&queries), [10, 11], KeyGrid { size: [7, 9], stride }, 0..1, reader).unwrap();
    assert!(difference(attend(1), features(&queries).attend(features(&keys), features(&values))) < 1e-5);
    let grid = |tensor: &Tensor<5>| {
        let columns = Tensor::from_data([1, 4, 7], &device);
        let rows = Tensor::from_data([1, 4, 6], &device);
        features(&tensor.clone().select(3, rows).select(4, columns))
    };
    assert!(difference(attend(3), features(&queries).attend(grid(&keys), grid(&values))) < 1e-5);
}

/// Pieces of every place, in f32 and bf16, next to each other: every reader gets every box of them.
#[test]
fn areas_are_read_from_every_place_in_every_type() {
    let (context, device) = (Context::default(), Device::flex());
    let [b, c, t, h, w] = [2, 11, 4, 6, 8];
    let whole = ramp([b, c, t, h, w], 5).cast(DType::BF16).cast(DType::F32);
    let (room, scratch) = (Arc::new(Room::new(u64::MAX)), Arc::new(Scratch::default()));
    let places: [(&str, &dyn Fn(Tensor<5>) -> Place); 4] = [
        ("device", &|x| Place::Device(device.clone(), Features::new(x, &context), room.take(0).unwrap())),
        ("host", &|x| Place::Host(x.into_data(), room.take(0).unwrap())),
        ("planes", &|x| {
            let data = x.into_data();
            let range = scratch.take(data.as_bytes().len() as u64).unwrap();
            range.file.write_at(range.start, data.as_bytes()).unwrap();
            Place::Planes(range)
        }),
        ("images", &|x| {
            let features = Features::new(x, &context);
            let range = scratch.take(features.bytes()).unwrap();
            let mut offset = range.start;
            for image in features.into_images().unwrap() {
                range.file.write_at(offset, image.values()).unwrap();
                offset += size_of_val(image.values()) as u64;
            }
            Place::Images(range)
        }),
    ];
    // Rows from 0 and 4, columns from 0 and 3, frames from 0 and 1.
    let mut pieces = Vec::new();
    for (frames, area) in [0..1, 1..4].into_iter().flat_map(|frames| {
        let areas = [span(0, 4), span(4, 2)].into_iter().flat_map(|rows| [span(0, 3), span(3, 5)].map(|columns| [rows, columns]));
        areas.map(move |area| (frames.clone(), area))
    }) {
        let at = pieces.len();
        let (_, place) = places[(at + at / 4) % places.len()];
        let x = whole.clone().slice([0..b, 0..c, frames.clone(), area[0].start..area[0].end(), area[1].start..area[1].end()]);
        // Images are in f32; so is every other piece.
        let dtype = if at % 2 == 0 || (at + at / 4) % places.len() == 3 { DType::F32 } else { DType::BF16 };
        let place = Arc::new(place(x.cast(dtype)));
        pieces.push(Piece { tile: at, frames, area, items: [b, c], dtype, place });
    }
    let store = FeatureStore::new(u64::MAX, []);
    store.insert(7, pieces);
    for dtype in [DType::F32, DType::BF16] {
        let reader = Reader { device: &device, dtype, context: &context };
        for frames in [0..1, 0..4, 2..4] {
            for area in [[span(0, 6), span(0, 8)], [span(3, 2), span(2, 2)], [span(4, 2), span(3, 5)], [span(1, 1), span(0, 3)]] {
                let expected = whole.clone().slice([0..b, 0..c, frames.clone(), area[0].start..area[0].end(), area[1].start..area[1].end()]);
                let read = store.get(7, frames.clone(), area, reader).unwrap();
                let (dims, read) = (read.dims(), Tensor::<5>::from(read));
                assert_eq!((dims, read.dtype()), (expected.dims(), dtype));
                assert_eq!(difference(read, expected), 0.0, "{dtype:?} {frames:?} {area:?}");
            }
        }
        store.get(7, 0..5, [span(0, 6), span(0, 8)], reader).unwrap_err();
    }
}
