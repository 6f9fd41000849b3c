#![expect(unsafe_code, reason = "tests of the functions that are unsafe")]

use super::*;
use crate::image::BlockedImage;

#[test]
fn threads_write_and_add_side_by_side() {
    const PER_THREAD: usize = 3;
    let of = |at: usize| Lanes([at as f32; 16]);
    let shared = SharedBuffers::uninitialised(2, 4 * PER_THREAD, &Workspace::default());
    assert_eq!(shared.size(), [2, 12]);
    let write = |thread: usize, add: bool| {
        for buffer in 0..2 {
            let first = thread * PER_THREAD;
            let mut lanes: Vec<Lanes> = (first..first + PER_THREAD).map(|at| of(at + buffer)).collect();
            // SAFETY: each thread has a range of its own; values that are added to were written before.
            unsafe { shared.write(buffer, first, &mut lanes, add) };
            let times = if add { 2.0 } else { 1.0 };
            assert!(lanes.iter().enumerate().all(|(at, lanes)| lanes.0 == [times * (first + at + buffer) as f32; 16]));
        }
    };
    for add in [false, true] {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || write(thread, add));
            }
        });
    }
    // SAFETY: all values were written.
    let buffers = unsafe { shared.into_vecs() };
    assert!(
        buffers.iter().enumerate().all(|(buffer, lanes)| lanes.iter().enumerate().all(|(at, lanes)| lanes.0 == [2.0 * (at + buffer) as f32; 16]))
    );
}

#[test]
fn nothing_is_written_beyond_the_end() {
    let shared = SharedBuffers::initialised(vec![vec![1.0_f32; 5]]);
    for (at, count) in [(5, 1), (4, 2), (0, 6), (usize::MAX, 1)] {
        let beyond = std::panic::AssertUnwindSafe(|| {
            // SAFETY: no other thread writes; the buffer is initialised.
            unsafe { shared.write(0, at, &mut vec![2.0; count], true) };
        });
        assert!(std::panic::catch_unwind(beyond).is_err(), "{at} {count}");
    }
    // SAFETY: the buffer was initialised.
    assert_eq!(unsafe { shared.into_vecs() }, [vec![1.0; 5]]);
}

fn image(channels: usize, size: [usize; 2], workspace: &Workspace) -> BlockedImage {
    BlockedImage::zeros(channels, size, workspace)
}

#[test]
fn memory_is_recycled_for_the_next_image_of_its_size() {
    let (workspace, size) = (Workspace::default(), [300, 300]);
    let first = image(16, size, &workspace);
    let place = first.lanes().as_ptr();
    drop(first.clone());
    assert_eq!(workspace.free_bytes(), 0);
    drop(first);
    assert_eq!(workspace.free_bytes(), 300 * 300 * size_of::<Lanes>());
    let next = image(16, size, &workspace);
    assert_eq!(next.lanes().as_ptr(), place);
    assert_eq!(workspace.free_bytes(), 0);
}

#[test]
fn recycling_does_not_exceed_the_peak_in_use() {
    let workspace = Workspace::default();
    let free_rows = || workspace.free_bytes() / size_of::<Lanes>() / 1000;
    let rows = |rows: usize| image(16, [rows, 1000], &workspace);
    drop([rows(100), rows(200)]);
    assert_eq!(free_rows(), 300);
    // The oldest are returned to the system.
    let other = rows(150);
    assert_eq!(free_rows(), 0);
    drop(other);
    let [first, second, third] = [rows(100), rows(70), rows(80)];
    assert_eq!(free_rows(), 0);
    drop((first, second));
    assert_eq!(free_rows(), 170);
    let fourth = rows(90);
    assert_eq!(free_rows(), 70);
    // Small images are not recycled.
    drop(rows(1));
    assert_eq!(free_rows(), 70);
    drop((third, fourth));
    assert_eq!(free_rows(), 240);
}

#[test]
fn memory_returns_to_the_system_with_the_last_image() {
    let workspace = Workspace::default();
    let inner = Arc::downgrade(&workspace.0);
    workspace.scratch().lanes(123);
    let [first, last] = [image(16, [300, 300], &workspace), image(16, [300, 300], &workspace)];
    drop(workspace);
    drop(first);
    let free = inner.upgrade().map(|inner| Workspace(inner).free_bytes());
    assert_eq!(free, Some((123 + 300 * 300) * size_of::<Lanes>()));
    drop(last);
    assert!(inner.upgrade().is_none());
}

#[test]
fn scratch_is_recycled_by_its_size() {
    let workspace = Workspace::default();
    let [mut small, mut large] = [(); 2].map(|()| workspace.scratch());
    small.lanes(10).fill(Lanes([1.0; 16]));
    large.lanes(1000).fill(Lanes([2.0; 16]));
    drop((small, large));
    let mut scratch = workspace.scratch();
    assert_eq!(scratch.lanes(5), [Lanes([1.0; 16]); 5]);
    assert_eq!(scratch.lanes(11), [Lanes([2.0; 16]); 11]);
    assert_eq!(scratch.lanes(1001), vec![Lanes::ZERO; 1001]);
    drop(scratch);
    assert_eq!(workspace.free_bytes(), (10 + 1001) * size_of::<Lanes>());
}

#[test]
fn allocations_have_the_capacity_asked_for() {
    for count in [0, 1, (5 << 20) / size_of::<Lanes>()] {
        let mut lanes = Workspace::default().allocate(count);
        let before = lanes.as_ptr();
        lanes.resize(count, Lanes::ZERO);
        assert_eq!(lanes.as_ptr(), before);
    }
}
