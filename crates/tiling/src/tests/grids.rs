use crate::{DiffusersGrid, Geometry, Grid, GridError, Off, Overlap, Scale, Span, TilePlan, Uniform, UniformSize};

const SCALES: [Scale; 4] = [Scale::Up(1), Scale::Up(2), Scale::Down(2), Scale::Down(3)];

/// Every promise of [`Grid::spans`] on one axis.
fn check_spans(scale: Scale, length: usize, spans: &[Span], what: &str) {
    assert_eq!((spans[0].start, spans.last().unwrap().end()), (0, length), "{what}");
    for pair in spans.windows(2) {
        assert!(pair[0].start < pair[1].start && pair[1].start <= pair[0].end() && pair[0].end() <= pair[1].end(), "{what}: {spans:?}");
    }
    assert!(spans.iter().all(|span| scale.input(scale.latent_px(span.start)) == span.start && scale.latent_px(span.length) > 0), "{what}: {spans:?}");
}

#[test]
fn every_small_diffusers_grid_covers_its_input() {
    let mut cut = 0;
    for scale in SCALES {
        for length in scale.input(1)..=scale.input(8) + 1 {
            for latent_px in 1..=5 {
                for stride in 1..=latent_px {
                    for skip_redundant in [false, true] {
                        let [tile_px, stride_px] = [latent_px, stride].map(|latent_px| [latent_px * scale.ratio(); 2]);
                        let grid = DiffusersGrid { tile_px, overlap: Overlap::StridePx(stride_px), skip_redundant, unit_px: 1 };
                        let [rows, columns] = grid.spans(scale, [length, length]).unwrap();
                        assert_eq!(rows, columns);
                        let remainder = length - scale.input(scale.latent_px(length));
                        // A last tile without a single output px is left out, and what it would have read with it.
                        let reached = rows.last().unwrap().end();
                        assert!(reached == length || (remainder > 0 && reached >= length - remainder));
                        check_spans(scale, reached, &rows, &format!("{scale:?} {length} {grid:?}"));
                        if rows.len() > 1 {
                            cut += 1;
                            let before_last = rows[rows.len() - 2].end();
                            assert!(!skip_redundant || before_last < length);
                        }
                    }
                }
            }
        }
    }
    assert!(cut > 500);
}

#[test]
fn every_small_uniform_grid_is_balanced() {
    let mut cut = 0;
    for scale in SCALES {
        for length in scale.input(1)..=scale.input(20) + 1 {
            for share in [0.0, 0.25, 0.5, 0.8] {
                for count in 1..=8 {
                    for size in [UniformSize::TilePx([count * scale.ratio(); 2]), UniformSize::Splits([count; 2])] {
                        let grid = Uniform { size, overlap: [share; 2] };
                        let Ok([rows, _]) = grid.spans(scale, [length, length]) else {
                            // More tiles than px, or an overlap that rounds up to the whole tile.
                            let whole = (count as f64 * share).ceil() as usize == count;
                            assert!(count > scale.latent_px(length) || whole, "{scale:?} {length} {grid:?}");
                            continue;
                        };
                        check_spans(scale, length, &rows, &format!("{scale:?} {length} {grid:?}"));
                        let latent_px: Vec<usize> = rows.iter().map(|span| scale.latent_px(span.length)).collect();
                        assert!(latent_px.iter().all(|&side| side == latent_px[0]), "unequal tiles: {rows:?}");
                        for pair in rows.windows(2) {
                            cut += 1;
                            let overlap = scale.latent_px(pair[0].end()) as f64 - scale.latent_px(pair[1].start) as f64;
                            assert!(overlap + 1e-9 >= share * latent_px[0] as f64, "{scale:?} {length} {grid:?}: {rows:?}");
                        }
                        match size {
                            UniformSize::TilePx(_) => assert!(latent_px[0] <= count),
                            UniformSize::Splits(_) => assert!(rows.len() <= count),
                        }
                    }
                }
            }
        }
    }
    assert!(cut > 1000);
}

#[test]
fn published_grids() {
    // FLUX.1 at 2048x2048 with tiles of 1024 px; SD 1.x at 2048x2048 with tiles of 512 px, eleven of them redundant.
    for (tile, tiles, redundant, work) in [(1024, 9, 0, 1.5625), (512, 36, 11, 1.7227)] {
        let grid = |skip_redundant| DiffusersGrid { tile_px: [tile; 2], overlap: Overlap::Share([0.25; 2]), skip_redundant, unit_px: 1 };
        let plan = |skip| TilePlan::new(&grid(skip), Geometry::image(Scale::Up(8)), [1, 256, 256]).unwrap();
        assert_eq!((plan(false).tiles.len(), plan(false).redundant_tiles()), (tiles, redundant));
        assert!((plan(false).work_ratio() - work).abs() < 1e-4);
        assert_eq!((plan(true).tiles.len(), plan(true).redundant_tiles()), (tiles - redundant, 0));
    }
}

#[test]
fn what_does_not_line_up_is_refused_with_the_nearest_that_does() {
    let spans =
        |scale, tile_px, overlap| DiffusersGrid { tile_px: [tile_px; 2], overlap, skip_redundant: false, unit_px: 1 }.spans(scale, [4000, 4000]);
    let (up, down) = (Scale::Up(8), Scale::Down(8));
    assert!(matches!(spans(up, 500, Overlap::Share([0.25; 2])), Err(GridError::TileUnaligned { nearest: 504, .. })));
    assert!(matches!(spans(up, 3, Overlap::Share([0.25; 2])), Err(GridError::TileUnaligned { nearest: 8, .. })));
    assert!(matches!(spans(down, 0, Overlap::Share([0.25; 2])), Err(GridError::TileUnaligned { nearest: 8, .. })));
    assert!(matches!(spans(up, 256, Overlap::StridePx([300; 2])), Err(GridError::StrideIllegal { nearest: 256, .. })));
    assert!(matches!(spans(up, 256, Overlap::StridePx([100; 2])), Err(GridError::StrideIllegal { nearest: 104, .. })));
    assert!(matches!(spans(down, 256, Overlap::StridePx([0; 2])), Err(GridError::StrideIllegal { nearest: 8, .. })));
    assert!(matches!(spans(up, 256, Overlap::Share([1.0; 2])), Err(GridError::OverlapOutOfRange { .. })));
    // A tile of 30 latent px with a quarter of overlap: 22 latent px are 176 px, the crop is 180 px.
    for scale in [up, down] {
        let Err(GridError::OverlapUnaligned { nearest, .. }) = spans(scale, 240, Overlap::Share([0.25; 2])) else { panic!("{scale:?}") };
        assert!((nearest - 0.25).abs() < 0.04);
        assert!(spans(scale, 240, Overlap::Share([nearest; 2])).is_ok());
    }
    let too_small = TilePlan::new(&Off, Geometry::image(down), [1, 7, 64]);
    assert!(matches!(too_small, Err(GridError::InputTooSmall { length: 7, minimum: 8, .. })));
    let splits = Uniform { size: UniformSize::Splits([0, 1]), overlap: [0.25; 2] };
    assert!(matches!(splits.spans(up, [4, 4]), Err(GridError::SplitsIllegal { splits: 0, latent_px: 4, .. })));
}

#[test]
fn tiles_may_count_in_patches() {
    let grid = DiffusersGrid { tile_px: [256; 2], overlap: Overlap::StridePx([192; 2]), skip_redundant: false, unit_px: 2 };
    let starts = |px: usize| {
        let [rows, _] = grid.spans(Scale::Down(16), [px, px]).unwrap();
        rows.iter().map(|span| (span.start, span.length)).collect::<Vec<_>>()
    };
    // Up to 256 px nothing is cut; up to the stride of 384 px there is one tile, and then a redundant one.
    assert_eq!([starts(256), starts(300)], [vec![(0, 256)], vec![(0, 300)]]);
    assert_eq!(starts(512), [(0, 512), (384, 128)]);
    assert_eq!(starts(1024), [(0, 512), (384, 512), (768, 256)]);
}
