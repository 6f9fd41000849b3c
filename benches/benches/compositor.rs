//! Output px through the compositor on one core, with tiles of 512 px of which neighbours share a quarter.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tilevae_benches::Nowhere;
use tiling::{BlendPolicy, Cascade, Compositor, Feather, Geometry, HostTensor, Scale, TilePlan, Uniform};

fn compositor(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compositor");
    group.sample_size(20);
    for (size, grid) in [([2048, 2048], Uniform::with_tile([512, 512], [128, 128])), ([1024, 1024], Uniform::with_tile([512, 512], [128, 128]))] {
        let plan = TilePlan::new(&grid, Geometry::image(Scale::Up(1)), [1, size[0], size[1]]).expect("a grid");
        let tiles: Vec<HostTensor> = plan
            .tiles
            .iter()
            .map(|tile| HostTensor::from_fn([1, 3, 1, tile.output.size[1], tile.output.size[2]], |[_, c, _, y, x]| (c + y + x) as f32))
            .collect();
        let values = 3 * size[0] * size[1];
        group.throughput(Throughput::Bytes((values * size_of::<f32>()) as u64));
        for (name, policy) in [("cascade", &Cascade as &dyn BlendPolicy), ("feather", &Feather)] {
            group.bench_function(format!("{name} {}x{}", size[0], size[1]), |bencher| {
                bencher.iter_batched(
                    || tiles.clone(),
                    |tiles| {
                        let mut sink = Nowhere::default();
                        let mut compositor = Compositor::new(&plan, policy, &mut sink);
                        for (index, tile) in tiles.into_iter().enumerate() {
                            compositor.push(index, tile).expect("a planned tile");
                        }
                        compositor.finish().expect("all tiles");
                        assert_eq!(sink.values, values);
                    },
                    BatchSize::LargeInput,
                );
            });
        }
    }
    group.finish();
}

criterion_group!(benches, compositor);
criterion_main!(benches);
