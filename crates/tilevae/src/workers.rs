use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use parallel::{Executor, Worker};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use tiling::TileOp;
#[cfg(feature = "flex")]
use tiling::{BoxError, Emit, Geometry, TileInput};
use vae_core::DeviceName;

use crate::config::CpuConfig;
use crate::{Config, Error};

/// A number, or as many as fit the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// As many as fit.
    Auto,
    /// This many.
    Exactly(NonZeroUsize),
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Exactly(count) => count.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Clone, Copy)]
        struct CountVisitor;

        impl Visitor<'_> for CountVisitor {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\" or a whole number of at least 1")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Count, E> {
                if text == "auto" { Ok(Count::Auto) } else { Err(E::invalid_value(de::Unexpected::Str(text), &self)) }
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Count, E> {
                let count = usize::try_from(value).ok().and_then(NonZeroUsize::new);
                count.map(Count::Exactly).ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(value), &self))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Count, E> {
                self.visit_u64(u64::try_from(value).map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))?)
            }
        }

        deserializer.deserialize_any(CountVisitor)
    }
}

/// A worker without what it is to do: its name, the device that it runs on, and the threads that are its own.
#[derive(Debug)]
pub(crate) struct Seat {
    name: String,
    /// The device's place among those configured.
    pub(crate) device: usize,
    #[cfg(feature = "flex")]
    pool: Option<Arc<rayon::ThreadPool>>,
}

impl Seat {
    /// The worker that does `op` here.
    pub(crate) fn worker(&self, op: Arc<dyn TileOp>) -> Worker {
        #[cfg(feature = "flex")]
        let op = match &self.pool {
            Some(pool) => Arc::new(InPool { op, pool: pool.clone() }),
            None => op,
        };
        Worker { name: self.name.clone(), op }
    }
}

/// The workers of the configured devices: one for each, but for a CPU as many as the configuration says.
///
/// # Errors
/// When a device is named twice, or the executor cannot use so many.
pub(crate) fn seats(config: &Config, executor: &dyn Executor) -> Result<Vec<Seat>, Error> {
    let names = &config.devices.names;
    executor.check_workers(names.len())?;
    if let Some(twice) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        let message = format!("{} is named twice; `devices.cpu.workers` says how many workers share a CPU", twice.1);
        return Err(Error::ConfigValue { key: "devices.use".to_owned(), message });
    }
    let mut seats = Vec::new();
    for (device, name) in names.iter().enumerate() {
        match name {
            DeviceName::Cpu => seats.extend(cpu_seats(device, config.devices.cpu, executor)?),
            name => seats.push(Seat {
                name: name.to_string(),
                device,
                #[cfg(feature = "flex")]
                pool: None,
            }),
        }
    }
    executor.check_workers(seats.len())?;
    Ok(seats)
}

#[cfg(feature = "flex")]
fn cpu_seats(device: usize, config: CpuConfig, executor: &dyn Executor) -> Result<Vec<Seat>, Error> {
    let cores = rayon::current_num_threads();
    let several = executor.check_workers(2).is_ok();
    let (workers, threads) = match (config.workers, config.threads_per_worker) {
        (Count::Exactly(workers), Count::Exactly(threads)) => (workers.get(), threads.get()),
        (Count::Exactly(workers), Count::Auto) => (workers.get(), (cores / workers).max(1)),
        (Count::Auto, Count::Exactly(threads)) => (if several { (cores / threads).max(1) } else { 1 }, threads.get()),
        (Count::Auto, Count::Auto) if several => (cores, 1),
        (Count::Auto, Count::Auto) => (1, cores),
    };
    if (workers, threads) == (1, cores) {
        return Ok(vec![Seat { name: "cpu".to_owned(), device, pool: None }]);
    }
    let seat = |worker: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(move |thread| format!("cpu/{worker}.{thread}")).build();
        let pool = pool.map_err(|error| Error::Threads { threads: workers * threads, message: error.to_string() })?;
        Ok(Seat { name: if workers == 1 { "cpu".to_owned() } else { format!("cpu/{worker}") }, device, pool: Some(Arc::new(pool)) })
    };
    (0..workers).map(seat).collect()
}

#[cfg(not(feature = "flex"))]
fn cpu_seats(device: usize, _: CpuConfig, _: &dyn Executor) -> Result<Vec<Seat>, Error> {
    Ok(vec![Seat { name: "cpu".to_owned(), device }])
}

/// An operation whose threads are those of a pool.
#[cfg(feature = "flex")]
struct InPool {
    op: Arc<dyn TileOp>,
    pool: Arc<rayon::ThreadPool>,
}

#[cfg(feature = "flex")]
impl TileOp for InPool {
    fn geometry(&self) -> Geometry {
        self.op.geometry()
    }

    fn run(&self, tile: &TileInput<'_>, emit: &mut Emit<'_>) -> Result<(), BoxError> {
        self.pool.install(|| self.op.run(tile, emit))
    }
}
