use super::{compose, compose_to, noise, toy};
use crate::{
    Axis, BlendPolicy, BoxError, Canvas, Cascade, CompositeError, Compositor, Corner, DiffusersGrid, Feather, Geometry, HostTensor, Overlap, Scale,
    ScratchFile, Seam, Sink, Span, TilePlan, Uniform,
};

/// The loops of diffusers' `tiled_decode`: every tile is kept, `blend_v` and `blend_h` change it in place, then all is cropped and joined.
fn diffusers_blend(plan: &TilePlan, answers: &[HostTensor], blend: usize, limit: usize) -> HostTensor {
    let (rows, columns) = (plan.rows.len(), plan.columns.len());
    let mut tiles: Vec<HostTensor> = answers.to_vec();
    let [b, c, t, ..] = tiles[0].shape();
    let mut output = HostTensor::zeros([b, c, t, plan.output[1], plan.output[2]]);
    for i in 0..rows {
        for j in 0..columns {
            let mut tile = tiles[i * columns + j].clone();
            let [.., height, width] = tile.shape();
            if i > 0 {
                let above = &tiles[(i - 1) * columns + j];
                let extent = above.shape()[3].min(height).min(blend);
                for plane in 0..tile.planes() {
                    for y in 0..extent {
                        let ratio = y as f64 / extent as f64;
                        for x in 0..width {
                            let a = above.row(plane, above.shape()[3] - extent + y)[x];
                            let b = tile.row(plane, y)[x];
                            tile.row_mut(plane, y)[x] = a * (1.0 - ratio) as f32 + b * ratio as f32;
                        }
                    }
                }
            }
            if j > 0 {
                let left = &tiles[i * columns + j - 1];
                let extent = left.shape()[4].min(width).min(blend);
                for plane in 0..tile.planes() {
                    for y in 0..height {
                        for x in 0..extent {
                            let ratio = x as f64 / extent as f64;
                            let a = left.row(plane, y)[left.shape()[4] - extent + x];
                            let b = tile.row(plane, y)[x];
                            tile.row_mut(plane, y)[x] = a * (1.0 - ratio) as f32 + b * ratio as f32;
                        }
                    }
                }
            }
            output.paste(&tile.window([0, 0], [height.min(limit), width.min(limit)]), [0, i * limit, j * limit]);
            tiles[i * columns + j] = tile;
        }
    }
    output
}

/// The product of the two ramps as the weight of each tile, added up px by px.
fn separable_blend(plan: &TilePlan, policy: &dyn BlendPolicy, answers: &[HostTensor]) -> HostTensor {
    let policy_weight = |offset: usize, extent: usize| {
        let seam = Seam { scale: plan.geometry.scale, axis: Axis::Height, extent, nominal: extent };
        policy.weight(offset, &seam)
    };
    let weight = |spans: &[crate::Span], i: usize, at: usize| {
        let shared = |i: usize| spans[i - 1].end() - spans[i].start;
        let rising = if i > 0 && at < spans[i].start + shared(i) { policy_weight(at - spans[i].start, shared(i)) } else { 1.0 };
        let falling = match spans.get(i + 1) {
            Some(next) if at >= next.start => 1.0 - policy_weight(at - next.start, shared(i + 1)),
            _ => 1.0,
        };
        rising * falling
    };
    let [b, c, t, ..] = answers[0].shape();
    let mut sums = vec![0.0_f64; b * c * t * plan.output[1] * plan.output[2]];
    let mut weights = sums.clone();
    for (tile, answer) in plan.tiles.iter().zip(answers) {
        let [row, column] = tile.grid_position;
        for plane in 0..answer.planes() {
            for y in 0..tile.output.size[1] {
                for x in 0..tile.output.size[2] {
                    let (oy, ox) = (tile.output.start[1] + y, tile.output.start[2] + x);
                    let at = (plane * plan.output[1] + oy) * plan.output[2] + ox;
                    let share = weight(&plan.rows, row, oy) * weight(&plan.columns, column, ox);
                    sums[at] += share * f64::from(answer.row(plane, y)[x]);
                    weights[at] += share;
                }
            }
        }
    }
    assert!(weights.iter().all(|sum| (sum - 1.0).abs() < 1e-9), "the weights of a px sum to 1");
    HostTensor::new([b, c, t, plan.output[1], plan.output[2]], sums.into_iter().map(|sum| sum as f32).collect()).unwrap()
}

/// Each tile answers with noise of its own, so that every weight shows.
fn noisy_answers(plan: &TilePlan, [b, c]: [usize; 2]) -> Vec<HostTensor> {
    plan.tiles.iter().map(|tile| noise([b, c, tile.output.size[0], tile.output.size[1], tile.output.size[2]], tile.index + 1)).collect()
}

#[test]
fn the_cascade_is_that_of_diffusers_to_the_last_bit() {
    let (mut cut, mut redundant) = (0, 0);
    for scale in [Scale::Up(1), Scale::Up(3), Scale::Down(2)] {
        for (height, width) in [(5, 5), (7, 4), (11, 6), (6, 13), (9, 9), (10, 10)] {
            for tile in 2..=5 {
                for stride in 1..=tile {
                    let [tile_px, stride_px] = [tile, stride].map(|latent_px| [latent_px * scale.ratio(); 2]);
                    let grid = DiffusersGrid { tile_px, overlap: Overlap::StridePx(stride_px), skip_redundant: false, unit_px: 1 };
                    let plan = TilePlan::new(&grid, Geometry::image(scale), [1, scale.input(height), scale.input(width)]).unwrap();
                    if !plan.is_tiled() {
                        continue;
                    }
                    let answers = noisy_answers(&plan, [2, 1]);
                    let order: Vec<usize> = (0..plan.tiles.len()).collect();
                    let [blend, limit] = [tile - stride, stride].map(|latent_px| scale.output(latent_px));
                    let expected = diffusers_blend(&plan, &answers, blend, limit);
                    assert_eq!(compose(&plan, &Cascade, &answers, &order), expected, "{scale:?} {height}x{width} tile {tile} stride {stride}");
                    cut += 1;
                    redundant += plan.redundant_tiles();
                }
            }
        }
    }
    assert!(cut > 150 && redundant > 100);
}

/// The loops of `AutoencoderTiny._tiled_decode` in diffusers: each tile is laid over the output with a mask.
fn masked_blend(plan: &TilePlan, answers: &[HostTensor], blend: usize) -> HostTensor {
    let [b, c, t, ..] = answers[0].shape();
    let mut output = HostTensor::zeros([b, c, t, plan.output[1], plan.output[2]]);
    let mask = |position: usize, at: usize| if position == 0 { 1.0 } else { (at as f64 / (blend as f64 - 1.0)).min(1.0) as f32 };
    for (tile, answer) in plan.tiles.iter().zip(answers) {
        let ([row, column], [_, top, left]) = (tile.grid_position, tile.output.start);
        let mut laid = output.region(&tile.output);
        for plane in 0..answer.planes() {
            for y in 0..tile.output.size[1] {
                for (x, value) in laid.row_mut(plane, y).iter_mut().enumerate() {
                    let mask = mask(row, y) * mask(column, x);
                    *value = mask * answer.row(plane, y)[x] + (1.0 - mask) * *value;
                }
            }
        }
        output.paste(&laid, [0, top, left]);
    }
    output
}

/// The grid of `AutoencoderTiny` in diffusers: tiles at every multiple of the stride, however small the input.
#[derive(Debug)]
struct EveryStride {
    tile: usize,
    stride: usize,
}

impl crate::Grid for EveryStride {
    fn spans(&self, scale: Scale, input: [usize; 2]) -> Result<[Vec<Span>; 2], crate::GridError> {
        let [tile, stride] = [self.tile, self.stride].map(|latent_px| scale.input(latent_px));
        let is_enough = |span: &Span| scale.latent_px(span.length) > 0;
        Ok(input.map(|side| (0..side).step_by(stride).map(|start| Span { start, length: tile.min(side - start) }).filter(is_enough).collect()))
    }

    fn nominal_overlap(&self, scale: Scale) -> Option<[usize; 2]> {
        Some([scale.input(self.tile - self.stride); 2])
    }
}

/// The ramp of the masks of `AutoencoderTiny` in diffusers, which knows full tiles only.
#[derive(Debug)]
struct Masked;

impl BlendPolicy for Masked {
    fn weight(&self, offset: usize, seam: &Seam) -> f64 {
        (offset as f64 / (seam.nominal as f64 - 1.0)).min(1.0)
    }

    fn corner(&self) -> Corner {
        Corner::Mask
    }
}

#[test]
fn masks_are_laid_over_each_other_as_in_autoencoder_tiny() {
    let mut cut = 0;
    for scale in [Scale::Up(2), Scale::Up(4), Scale::Down(2)] {
        for (height, width) in [(5, 5), (7, 4), (11, 6), (6, 13), (17, 17), (2, 9)] {
            for (tile, stride) in [(4, 2), (5, 3), (6, 4), (8, 5)] {
                let plan =
                    TilePlan::new(&EveryStride { tile, stride }, Geometry::image(scale), [3, scale.input(height), scale.input(width)]).unwrap();
                let answers = noisy_answers(&plan, [2, 2]);
                let expected = masked_blend(&plan, &answers, scale.output(tile - stride));
                let order: Vec<usize> = (0..plan.tiles.len()).collect();
                let got = compose(&plan, &Masked, &answers, &order);
                let worst = got.data().iter().zip(expected.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-6, "{scale:?} {height}x{width} tile {tile} stride {stride}: {worst}");
                cut += usize::from(plan.rows.len() > 1 && plan.columns.len() > 1);
            }
        }
    }
    assert!(cut > 30, "{cut}");
}

#[test]
fn the_feather_is_a_partition_of_unity() {
    let mut compared = 0;
    for tile in 2..=6 {
        for overlap in 0..=tile / 2 {
            let plan = TilePlan::new(&Uniform::with_tile([2 * tile; 2], [2 * overlap; 2]), Geometry::image(Scale::Up(2)), [1, 11, 14]).unwrap();
            assert!(plan.is_tiled());
            // The plain mask knows pairs of neighbours only.
            let pairs = [&plan.rows, &plan.columns].iter().all(|spans| spans.windows(3).all(|three| three[0].end() <= three[2].start));
            let answers = noisy_answers(&plan, [1, 2]);
            let order: Vec<usize> = (0..plan.tiles.len()).collect();
            let got = compose(&plan, &Feather, &answers, &order);
            if pairs {
                let expected = separable_blend(&plan, &Feather, &answers);
                let worst = got.data().iter().zip(expected.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-6, "tile {tile} overlap {overlap}: {worst}");
                compared += 1;
            }
        }
    }
    assert!(compared > 8);
}

/// A hard edge in the middle of each overlap, as a downstream crate might write it.
#[derive(Debug)]
struct Crop(Corner);

impl BlendPolicy for Crop {
    fn weight(&self, offset: usize, seam: &Seam) -> f64 {
        if 2 * offset < seam.extent { 0.0 } else { 1.0 }
    }

    fn corner(&self) -> Corner {
        self.0
    }
}

#[test]
fn tiles_that_agree_make_the_whole_whatever_grid_and_blend() {
    for scale in [Scale::Up(1), Scale::Up(2), Scale::Down(2), Scale::Down(3)] {
        for (height, width) in [(4, 9), (9, 4), (12, 12), (1, 10)] {
            let whole = noise([1, 1, 1, scale.input(height) + usize::from(matches!(scale, Scale::Down(_))), scale.input(width)], 5);
            let grids: [Box<dyn crate::Grid>; 4] = [
                Box::new(DiffusersGrid { tile_px: [4 * scale.ratio(); 2], overlap: Overlap::Share([0.25; 2]), skip_redundant: false, unit_px: 1 }),
                Box::new(DiffusersGrid { tile_px: [4 * scale.ratio(); 2], overlap: Overlap::Share([0.5; 2]), skip_redundant: true, unit_px: 1 }),
                Box::new(Uniform { size: crate::UniformSize::TilePx([5 * scale.ratio(), 3 * scale.ratio()]), overlap: [0.3, 0.4] }),
                Box::new(Uniform { size: crate::UniformSize::Splits([1, 3]), overlap: [0.2; 2] }),
            ];
            for grid in grids {
                let plan = TilePlan::new(grid.as_ref(), Geometry::image(scale), whole.extent()).unwrap();
                assert!(plan.is_tiled());
                let answers: Vec<HostTensor> = plan.tiles.iter().map(|tile| toy(scale, &whole.region(&tile.input))).collect();
                let order: Vec<usize> = (0..plan.tiles.len()).collect();
                let expected = toy(scale, &whole);
                for policy in [&Cascade as &dyn BlendPolicy, &Feather, &Crop(Corner::Cascade), &Crop(Corner::Separable), &Crop(Corner::Mask)] {
                    let got = compose(&plan, policy, &answers, &order);
                    assert_eq!(got.shape(), expected.shape());
                    let worst = got.data().iter().zip(expected.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(worst <= 1e-6, "{scale:?} {height}x{width} {grid:?} {policy:?}: {worst}");
                }
            }
        }
    }
}

#[test]
fn the_order_of_tiles_does_not_matter() {
    let plan = TilePlan::new(&Uniform::with_tile([6, 8], [2, 4]), Geometry::image(Scale::Up(2)), [2, 7, 9]).unwrap();
    let answers = noisy_answers(&plan, [1, 3]);
    let count = plan.tiles.len();
    assert!(count >= 9);
    let raster: Vec<usize> = (0..count).collect();
    for policy in [&Cascade as &dyn BlendPolicy, &Feather] {
        let expected = compose(&plan, policy, &answers, &raster);
        for step in (1..200).filter(|step| step % count != 0) {
            // A walk that visits every tile once when the step shares no divisor with their number.
            let mut order: Vec<usize> = (0..count).map(|i| (i * step + step / count) % count).collect();
            order.sort_by_key(|&index| (index * 7919 + step * 104_729) % 1009);
            order.dedup();
            let mut all: Vec<usize> = order.clone();
            all.extend(raster.iter().filter(|index| !order.contains(index)));
            assert_eq!(compose(&plan, policy, &answers, &all), expected);
        }
    }
}

/// Remembers where pieces lay.
#[derive(Default)]
struct Pieces(Vec<[[usize; 3]; 2]>);

impl Sink for Pieces {
    fn take(&mut self, start: [usize; 3], _: [usize; 3], piece: HostTensor) -> Result<(), BoxError> {
        self.0.push([start, piece.extent()]);
        Ok(())
    }
}

#[test]
fn finished_parts_go_on_while_later_tiles_are_missing() {
    let plan = TilePlan::new(&Uniform::with_tile([4, 4], [2, 2]), Geometry::image(Scale::Up(1)), [3, 10, 10]).unwrap();
    let answers = noisy_answers(&plan, [1, 1]);
    for policy in [&Cascade as &dyn BlendPolicy, &Feather] {
        let mut pieces = Pieces::default();
        let mut compositor = Compositor::new(&plan, policy, &mut pieces);
        compositor.push(0, answers[0].frames(0, 2)).unwrap();
        compositor.push(1, answers[1].clone()).unwrap();
        drop(compositor);
        assert_eq!(pieces.0, [[[0, 0, 0], [1, 2, 2]], [[1, 0, 0], [1, 2, 2]]]);

        let mut pieces = Pieces::default();
        let order: Vec<usize> = (0..plan.tiles.len()).collect();
        compose_to(&plan, policy, &answers, &order, &mut pieces);
        assert_eq!(pieces.0.iter().map(|[_, size]| size.iter().product::<usize>()).sum::<usize>(), 3 * 10 * 10);
    }
}

#[test]
fn frames_may_come_in_pieces_and_strips_lie_in_a_file() {
    let plan = TilePlan::new(&Uniform::with_tile([6, 8], [2, 4]), Geometry::image(Scale::Up(2)), [5, 9, 11]).unwrap();
    let answers = noisy_answers(&plan, [2, 3]);
    let order: Vec<usize> = (0..plan.tiles.len()).collect();
    assert!(plan.rows.len() > 2 && plan.columns.len() > 2);
    for policy in [&Cascade as &dyn BlendPolicy, &Feather] {
        let expected = compose(&plan, policy, &answers, &order);
        for in_file in [false, true] {
            let mut canvas = Canvas::default();
            let mut compositor = Compositor::new(&plan, policy, &mut canvas);
            if in_file {
                compositor = compositor.with_scratch(ScratchFile::new().unwrap());
            }
            // The second half of the tiles comes first, and each in pieces of one frame and four.
            for &index in order.iter().skip(order.len() / 2).chain(order.iter().take(order.len() / 2)) {
                compositor.push(index, answers[index].frames(0, 1)).unwrap();
                compositor.push(index, answers[index].frames(1, 4)).unwrap();
            }
            compositor.finish().unwrap();
            assert_eq!(canvas.into_tensor(), expected);
        }
    }
}

#[test]
fn patches_are_blended_as_one_px() {
    // The outputs of an operation that puts 2x2 patches together last, blended before (as patches of 4 channels) and after.
    let grid = DiffusersGrid { tile_px: [8, 12], overlap: Overlap::StridePx([4, 8]), skip_redundant: false, unit_px: 1 };
    let geometry = Geometry { blend_unit: 2, ..Geometry::image(Scale::Up(4)) };
    let plan = TilePlan::new(&grid, geometry, [1, 5, 7]).unwrap();
    let coarse_grid = DiffusersGrid { tile_px: [4, 6], overlap: Overlap::StridePx([2, 4]), skip_redundant: false, unit_px: 1 };
    let coarse = TilePlan::new(&coarse_grid, Geometry::image(Scale::Up(2)), [1, 5, 7]).unwrap();
    assert!(plan.is_tiled() && plan.tiles.len() == coarse.tiles.len());
    let patches = noisy_answers(&coarse, [1, 4]);
    let unfold = |block: &HostTensor| {
        let [b, _, t, h, w] = block.shape();
        HostTensor::from_fn([b, 1, t, 2 * h, 2 * w], |[_, _, _, y, x]| block.row(2 * (x % 2) + y % 2, y / 2)[x / 2])
    };
    let order: Vec<usize> = (0..plan.tiles.len()).collect();
    let answers: Vec<HostTensor> = patches.iter().map(unfold).collect();
    for policy in [&Cascade as &dyn BlendPolicy, &Feather] {
        assert_eq!(compose(&plan, policy, &answers, &order), unfold(&compose(&coarse, policy, &patches, &order)));
    }
}

#[test]
fn what_does_not_belong_is_refused() {
    let plan = TilePlan::new(&Uniform::with_tile([4, 4], [1, 1]), Geometry::image(Scale::Up(1)), [1, 6, 6]).unwrap();
    let answers = noisy_answers(&plan, [1, 1]);
    let mut canvas = Canvas::default();
    let mut compositor = Compositor::new(&plan, &Cascade, &mut canvas);
    compositor.push(1, answers[1].clone()).unwrap();
    assert!(matches!(compositor.push(1, answers[1].clone()), Err(CompositeError::UnexpectedTile { tile: 1 })));
    assert!(matches!(compositor.push(9, answers[1].clone()), Err(CompositeError::UnexpectedTile { tile: 9 })));
    assert!(matches!(compositor.push(0, noise([1, 1, 1, 2, 2], 1)), Err(CompositeError::TileShape { tile: 0, .. })));
    let [.., height, width] = answers[0].shape();
    assert!(matches!(compositor.push(0, noise([1, 2, 1, height, width], 1)), Err(CompositeError::TileChannels { tile: 0, .. })));
    assert!(matches!(compositor.finish(), Err(CompositeError::Unfinished { missing: 3, total: 4 })));
}
