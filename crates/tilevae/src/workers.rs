use std::ops::Range;
use std::sync::{Arc, LazyLock, OnceLock};

use burn::backend::StreamId;
use parallel::{Executor, Worker, WorkerLock};
use tiling::{BoxError, DevicePiece, Geometry, HostTensor, Stop, TileOp, TileRun};
use vae_core::{DeviceName, VaeError};

#[cfg(feature = "flex")]
use crate::Count;
use crate::config::{CpuConfig, DevicesConfig};
use crate::{Error, OpenDevice};

/// Does `work` on the one queue of each GPU. By default each thread has a queue: each run would leave the memory of its own behind, and what one reads of another
/// costs events. CubeCL (0.11.3) also may read what another queue has not written yet.
pub(crate) fn on_queue<T>(work: impl FnOnce() -> T) -> T {
    static QUEUE: LazyLock<StreamId> = LazyLock::new(StreamId::allocate);
    QUEUE.executes(work)
}

/// A worker without what it is to do: its name, the device that it runs on, and what is its own there.
#[derive(Debug)]
pub(crate) struct WorkerSlot {
    name: String,
    /// The device's place among those that are there.
    pub(crate) device: usize,
    #[cfg(feature = "flex")]
    pool: Option<Arc<rayon::ThreadPool>>,
    /// A pool with the threads of all workers on the CPU.
    #[cfg(feature = "flex")]
    all_threads: Option<Arc<rayon::ThreadPool>>,
    /// Shared by all runs that use this worker.
    lock: WorkerLock,
}

impl WorkerSlot {
    fn new(name: String, device: usize) -> Self {
        Self {
            name,
            device,
            #[cfg(feature = "flex")]
            pool: None,
            #[cfg(feature = "flex")]
            all_threads: None,
            lock: WorkerLock::default(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The worker that does `op` here, and `upcast` where that is not enough.
    pub(crate) fn worker(&self, op: Arc<dyn TileOp>, upcast: Option<Arc<dyn TileOp>>) -> Worker {
        let pinned = |op| -> Arc<dyn TileOp> {
            Arc::new(PinnedOp {
                op,
                #[cfg(feature = "flex")]
                pool: self.pool.clone(),
            })
        };
        Worker {
            name: self.name.clone(),
            op: pinned(op),
            upcast: upcast.map(pinned),
            device: Some(self.device),
            speed: 1.0,
            near_tiles: Vec::new(),
            lock: self.lock(),
        }
    }

    /// The worker that does `op` with all threads of the machine's workers: for work that cannot be divided among them.
    pub(crate) fn worker_with_all_threads(&self, op: Arc<dyn TileOp>, upcast: Option<Arc<dyn TileOp>>) -> Worker {
        #[cfg(feature = "flex")]
        let slot = Self { pool: self.all_threads.clone(), name: self.name.clone(), lock: self.lock.clone(), all_threads: None, ..*self };
        #[cfg(feature = "flex")]
        return slot.worker(op, upcast);
        #[cfg(not(feature = "flex"))]
        self.worker(op, upcast)
    }

    /// The lock for a run of the calling thread. A thread of a rayon pool takes on other work, possibly other runs, while it waits for its pool. The run that holds
    /// the worker may depend on such a thread, so runs of these threads must not wait for the worker and get a lock of their own.
    fn lock(&self) -> WorkerLock {
        #[cfg(feature = "flex")]
        if rayon::current_thread_index().is_some() {
            return WorkerLock::default();
        }
        self.lock.clone()
    }
}

/// The limit of threads of all workers of a CPU: the cores of a large machine. Many more take minutes to start, or cannot be started.
pub const MOST_THREADS: usize = 1024;

/// Whether the executor can use the configured devices.
///
/// # Errors
/// When a device is named twice, a dtype is set for one that is not named, there are too many or too few, or a CPU has too many threads.
pub(crate) fn check_devices(config: &DevicesConfig, executor: &dyn Executor) -> Result<(), Error> {
    let names = &config.names;
    executor.check_workers(names.len())?;
    if let Some(twice) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        let message = format!("{} is named twice; `devices.cpu.workers` says how many workers share a CPU", twice.1);
        return Err(Error::ConfigValue { key: "devices.use".to_owned(), message });
    }
    if let Some(name) = config.dtype.keys().find(|name| !names.contains(name)) {
        let message = format!("{name} is not among the devices of `devices.use`");
        return Err(Error::ConfigValue { key: "devices.dtype".to_owned(), message });
    }
    let [workers, threads] = share_cpu(config.cpu, executor);
    if names.contains(&DeviceName::CPU) && workers.saturating_mul(threads) > MOST_THREADS {
        let message =
            format!("{workers} workers with {threads} threads each are more than {MOST_THREADS} threads in all, which is the most; give fewer");
        return Err(Error::ConfigValue { key: "devices.cpu".to_owned(), message });
    }
    Ok(())
}

/// The workers of the open devices: one each, and for a CPU the configured number.
///
/// # Errors
/// When the executor cannot use that number.
pub(crate) fn worker_slots(config: &DevicesConfig, devices: &[OpenDevice], executor: &dyn Executor) -> Result<Vec<WorkerSlot>, Error> {
    let mut worker_slots = Vec::new();
    for (device, open) in devices.iter().enumerate() {
        if open.name == DeviceName::CPU {
            worker_slots.extend(cpu_slots(device, config.cpu, executor)?);
        } else {
            worker_slots.push(WorkerSlot::new(open.name.to_string(), device));
        }
    }
    executor.check_workers(worker_slots.len())?;
    Ok(worker_slots)
}

/// The workers that the configured devices come to.
pub(crate) fn count_workers(config: &DevicesConfig, executor: &dyn Executor) -> usize {
    config.names.iter().map(|name| if *name == DeviceName::CPU { share_cpu(config.cpu, executor)[0] } else { 1 }).sum()
}

/// The threads of all workers on the CPU.
pub(crate) fn threads_of(config: &DevicesConfig, executor: &dyn Executor) -> usize {
    let [workers, threads] = share_cpu(config.cpu, executor);
    workers * threads
}

/// Workers on the CPU, and the threads of each.
#[cfg(feature = "flex")]
fn share_cpu(config: CpuConfig, executor: &dyn Executor) -> [usize; 2] {
    let cores = rayon::current_num_threads();
    let several = executor.check_workers(2).is_ok();
    match (config.workers, config.threads_per_worker) {
        (Count::Exactly(workers), Count::Exactly(threads)) => [workers.get(), threads.get()],
        (Count::Exactly(workers), Count::Auto) => [workers.get(), (cores / workers).max(1)],
        (Count::Auto, Count::Exactly(threads)) => [if several { (cores / threads).max(1) } else { 1 }, threads.get()],
        (Count::Auto, Count::Auto) if several => [cores, 1],
        (Count::Auto, Count::Auto) => [1, cores],
    }
}

#[cfg(not(feature = "flex"))]
fn share_cpu(_: CpuConfig, _: &dyn Executor) -> [usize; 2] {
    [1, 1]
}

#[cfg(feature = "flex")]
fn cpu_slots(device: usize, config: CpuConfig, executor: &dyn Executor) -> Result<Vec<WorkerSlot>, Error> {
    let [workers, threads] = share_cpu(config, executor);
    // With other executors the calling thread waits for its workers: where it is itself one of rayon's, they could wait for it.
    if (workers, threads) == (1, rayon::current_num_threads()) && executor.check_workers(2).is_err() {
        return Ok(vec![WorkerSlot::new("cpu".to_owned(), device)]);
    }
    let pool = |name: String, threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(move |thread| format!("{name}.{thread}")).build();
        pool.map(Arc::new).map_err(|error| Error::Threads { threads: workers * threads, message: error.to_string() })
    };
    let all_threads = if workers > 1 { Some(pool("cpu".to_owned(), workers * threads)?) } else { None };
    let slot = |worker: usize| {
        let pool = pool(format!("cpu/{worker}"), threads)?;
        let name = if workers == 1 { "cpu".to_owned() } else { format!("cpu/{worker}") };
        Ok(WorkerSlot { all_threads: all_threads.clone().or(Some(pool.clone())), pool: Some(pool), ..WorkerSlot::new(name, device) })
    };
    (0..workers).map(slot).collect()
}

#[cfg(not(feature = "flex"))]
fn cpu_slots(device: usize, _: CpuConfig, _: &dyn Executor) -> Result<Vec<WorkerSlot>, Error> {
    Ok(vec![WorkerSlot::new("cpu".to_owned(), device)])
}

/// An operation whose work is queued in the one place, and computed in its worker's own. Copies do not wait for the threads of a pool.
struct PinnedOp {
    op: Arc<dyn TileOp>,
    #[cfg(feature = "flex")]
    pool: Option<Arc<rayon::ThreadPool>>,
}

impl PinnedOp {
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let work = || on_queue(work);
        #[cfg(feature = "flex")]
        if let Some(pool) = &self.pool {
            return pool.install(work);
        }
        work()
    }
}

impl TileOp for PinnedOp {
    fn geometry(&self) -> Geometry {
        self.op.geometry()
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        self.op.chunks(frames)
    }

    fn upload(&self, piece: HostTensor) -> Result<DevicePiece, BoxError> {
        on_queue(|| self.op.upload(piece))
    }

    fn begin(&self, tiles: &[usize], stop: &Stop) -> TileRun<'_> {
        let mut run = self.run(|| self.op.begin(tiles, stop));
        Box::new(move |piece| self.run(|| run(piece)))
    }

    fn download(&self, answer: DevicePiece) -> Result<HostTensor, BoxError> {
        on_queue(|| self.op.download(answer))
    }

    fn check(&self) -> Result<(), BoxError> {
        on_queue(|| self.op.check())
    }
}

/// Runs zeros in the place of a tile, as large a batch as the whole input has: its first pieces, which are worked on in different ways, and the last, which
/// may have fewer frames.
///
/// # Errors
/// Whatever the operation could not do.
pub(crate) fn run_zeros(
    op: &dyn TileOp,
    stop: &Stop,
    [batch, channels, ..]: [usize; 5],
    [frames, height, width]: [usize; 3],
) -> Result<(), BoxError> {
    let mut run = op.begin(&[0], stop);
    let chunks = op.chunks(frames);
    let (last, head) = chunks.split_last().map_or((None, &[][..]), |(last, others)| (Some(last), &others[..others.len().min(3)]));
    for frames in head.iter().chain(last) {
        let zeros = HostTensor::zeros([batch, channels, frames.len(), height, width]);
        op.download(run(op.upload(zeros)?)?)?;
    }
    Ok(())
}

/// Runs `work` on a thread pool of its own. The calling thread may belong to a pool and hold a lock: it must neither take on other work of the pool, which may
/// need the lock, nor wait for threads of the pool that need it.
pub(crate) fn on_own_threads<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let work = || on_queue(work);
    let alone = || {
        #[cfg(feature = "flex")]
        match rayon::ThreadPoolBuilder::new().build() {
            Ok(pool) => return pool.install(work),
            Err(error) => tracing::debug!("no thread pool for loading: {error}"),
        }
        work()
    };
    std::thread::scope(|scope| scope.spawn(alone).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// An operation that is made when it is first needed.
pub(crate) struct LazyOp<F> {
    pub(crate) geometry: Geometry,
    pub(crate) frames_per_chunk: usize,
    pub(crate) make: F,
    pub(crate) op: OnceLock<Result<Arc<dyn TileOp>, String>>,
}

impl<F: Fn() -> Result<Arc<dyn TileOp>, VaeError> + Send + Sync> LazyOp<F> {
    fn op(&self) -> Result<&dyn TileOp, BoxError> {
        let op = self.op.get_or_init(|| (self.make)().map_err(|error| error.to_string()));
        op.as_ref().map(AsRef::as_ref).map_err(|error| error.clone().into())
    }
}

impl<F: Fn() -> Result<Arc<dyn TileOp>, VaeError> + Send + Sync> TileOp for LazyOp<F> {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        self.geometry.frames.chunks(frames, self.frames_per_chunk)
    }

    fn upload(&self, piece: HostTensor) -> Result<DevicePiece, BoxError> {
        self.op()?.upload(piece)
    }

    fn begin(&self, tiles: &[usize], stop: &Stop) -> TileRun<'_> {
        match self.op() {
            Ok(op) => op.begin(tiles, stop),
            Err(error) => {
                let message = error.to_string();
                Box::new(move |_| Err(message.clone().into()))
            }
        }
    }

    fn download(&self, answer: DevicePiece) -> Result<HostTensor, BoxError> {
        self.op()?.download(answer)
    }

    fn check(&self) -> Result<(), BoxError> {
        self.op()?.check()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tiling::{FrameScale, Scale};

    use super::*;

    /// Notes the shapes of the pieces that it is given.
    #[derive(Default)]
    struct Noting(Mutex<Vec<[usize; 5]>>);

    impl TileOp for Noting {
        fn geometry(&self) -> Geometry {
            Geometry { frames: FrameScale::CausalUp(4), ..Geometry::image(Scale::Up(8)) }
        }

        fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
            self.geometry().frames.chunks(frames, 2)
        }

        fn begin(&self, _: &[usize], _: &Stop) -> TileRun<'_> {
            Box::new(|piece| {
                let piece: HostTensor = piece.take()?;
                self.0.lock().unwrap().push(piece.shape());
                Ok(DevicePiece::new(piece))
            })
        }
    }

    #[test]
    fn zeros_run_in_every_shape_of_a_piece() {
        let shapes = |frames| {
            let op = Noting::default();
            run_zeros(&op, &Stop::default(), [3, 16, frames, 50, 70], [frames, 5, 7]).unwrap();
            op.0.into_inner().unwrap().into_iter().map(|[b, c, t, h, w]| (t, [b, c, h, w] == [3, 16, 5, 7])).collect::<Vec<_>>()
        };
        let of = |frames: &[usize]| frames.iter().map(|&frames| (frames, true)).collect::<Vec<_>>();
        assert_eq!(shapes(1), of(&[1]));
        assert_eq!(shapes(4), of(&[1, 2, 1]));
        assert_eq!(shapes(12), of(&[1, 2, 2, 1]));
    }
}
