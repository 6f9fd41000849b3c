use std::ops::Range;

use tiling::{CompositeError, FrameScale};

use super::*;

/// Answers with another shape, `[batch, channels, frames, height, width]` of a piece.
struct Misshapen(fn([usize; 5]) -> [usize; 5]);

impl TileOp for Misshapen {
    fn geometry(&self) -> Geometry {
        Negate.geometry()
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        Negate.chunks(frames)
    }

    fn begin(&self, _: &[usize], _: &Stop) -> TileRun<'_> {
        Box::new(|piece| {
            let piece: HostTensor = piece.take()?;
            Ok(DevicePiece::new(HostTensor::zeros((self.0)(piece.shape()))))
        })
    }
}

#[test]
fn answers_of_another_shape_are_failures() {
    let shapes: [fn([usize; 5]) -> [usize; 5]; 9] = [
        |[b, c, t, h, w]| [2 * b, c, t, h, w],
        |[_, c, t, h, w]| [0, c, t, h, w],
        |[b, c, t, h, w]| if b > 1 { [b - 1, c, t, h, w] } else { [b, c, t, h + 1, w] },
        |[b, _, t, h, w]| [b, 0, t, h, w],
        |[b, c, _, h, w]| [b, c, 0, h, w],
        |[b, c, t, h, w]| [b, c, 2 * t, h, w],
        |[b, c, t, _, w]| [b, c, t, 0, w],
        |[b, c, t, h, w]| [b, c, t, h - 1, w],
        |[b, c, t, h, w]| [b, c, t, h, w + 1],
    ];
    for (index, shape) in shapes.into_iter().enumerate() {
        each(|run, count| {
            let bad = Worker::new("bad", Arc::new(Misshapen(shape)));
            let error = run(Given { workers: vec![bad.clone(); count], ..Given::default() }).unwrap_err();
            assert!(error.in_one_line().contains("failed: the output is"), "{index}: {}", error.in_one_line());
            if count > 1 {
                let mut workers = workers(count);
                workers[0] = bad;
                run(Given { workers, ..Given::default() }).unwrap();
            }
        });
    }
}

/// The pieces of a tile, by its number of frames.
type Pieces = fn(usize) -> Vec<Range<usize>>;

/// Takes a tile in pieces of its own.
struct Chunked(Pieces);

impl TileOp for Chunked {
    fn geometry(&self) -> Geometry {
        Negate.geometry()
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        (self.0)(frames)
    }

    fn begin(&self, tiles: &[usize], stop: &Stop) -> TileRun<'_> {
        Negate.begin(tiles, stop)
    }
}

#[test]
#[expect(clippy::reversed_empty_ranges, clippy::single_range_in_vec_init, reason = "they are wrong on purpose")]
fn pieces_that_do_not_follow_each_other_are_failures() {
    let pieces: [Pieces; 8] = [
        |_| vec![],
        |_| vec![0..0],
        |_| vec![0..1],
        |_| vec![1..2],
        |_| vec![0..1, 0..2],
        |_| vec![0..3],
        |_| vec![0..1, 1..1, 1..2],
        |_| vec![0..1, 2..1],
    ];
    for (index, pieces) in pieces.into_iter().enumerate() {
        each(|run, count| {
            let bad = Worker::new("bad", Arc::new(Chunked(pieces)));
            let error = run(Given { workers: vec![bad.clone(); count], ..Given::default() }).unwrap_err();
            assert!(error.in_one_line().contains("into the pieces"), "{index}: {}", error.in_one_line());
            if count > 1 {
                let mut workers = workers(count);
                workers[0] = bad;
                run(Given { workers, ..Given::default() }).unwrap();
            }
        });
    }
    // A remainder that gives no output frame may be left out.
    let chunks = |frames| crate::checked::chunks(&Chunked(|_| vec![0..1, 1..5]), FrameScale::CausalDown(4), 0, frames).is_ok();
    assert_eq!([5, 8, 9, 4].map(chunks), [true, true, false, false]);
}

/// Reports another shape than it gives, or gives another region than was asked for.
struct Liar([usize; 5], fn(&Region) -> Region);

impl TileSource for Liar {
    fn shape(&self) -> [usize; 5] {
        self.0
    }

    fn read(&self, region: &Region) -> Result<HostTensor, BoxError> {
        Ok(clip().region(&(self.1)(region)))
    }
}

#[test]
fn inputs_of_another_shape_are_refused() {
    each(|run, count| {
        for shape in [[0, 2, 2, 11, 17], [1, 0, 2, 11, 17], [1, 2, 0, 11, 17], [1, 2, 2, 11, 18], [1, 2, 3, 11, 17]] {
            let source = Box::new(Liar(shape, |region| *region));
            let error = run(Given { source, workers: workers(count), ..Given::default() }).unwrap_err();
            assert!(matches!(error, ExecError::InputShape { got, expected: [2, 11, 17] } if got == shape), "{error}");
        }
        let smaller: [fn(&Region) -> Region; 3] = [
            |region| Region { size: [0; 3], ..*region },
            |region| Region { size: [region.size[0], region.size[1] - 1, region.size[2]], ..*region },
            |region| Region { size: [1, 1, 1], ..*region },
        ];
        for (shape, answer) in
            smaller.map(|answer| (clip().shape(), answer)).into_iter().chain([([1, 3, 2, 11, 17], (|region| *region) as fn(&_) -> _)])
        {
            let error = run(Given { source: Box::new(Liar(shape, answer)), workers: workers(count), ..Given::default() }).unwrap_err();
            assert!(matches!(&error, ExecError::Source { .. }) && error.in_one_line().contains("was asked for"), "{}", error.in_one_line());
        }
    });
}

#[test]
fn invalid_weights_end_the_run_before_a_tile_is_run() {
    #[derive(Debug)]
    struct Odd;

    impl BlendPolicy for Odd {
        fn weight(&self, _: usize, _: &tiling::Seam) -> f64 {
            f64::NAN
        }
    }

    each(|run, count| {
        let worker = Arc::new(Scripted::new(Arc::new(Negate), |_| Behavior::Answer));
        let error = run(Given { blend: Box::new(Odd), workers: vec![Worker::new("a", worker.clone()); count], ..Given::default() }).unwrap_err();
        assert!(matches!(error, ExecError::Unfinished(CompositeError::Weight { .. })), "{error}");
        assert_eq!(worker.begun(), 0);
    });
}
