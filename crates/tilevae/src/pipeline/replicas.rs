//! The model's weights on each device.

use std::sync::{Arc, Mutex, TryLockError};
use std::thread;
use std::time::Duration;

use burn::tensor::{DType, Device};
use tiling::Stop;
use vae_core::{Model, Vae, VaeError, is_in_host_memory};

use crate::dtypes::dtypes;
use crate::workers::{on_own_threads, on_queue};
use crate::{Config, Error, OnNonFinite, OpenDevice};

/// The model on one device.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) vae: Arc<dyn Vae>,
    /// The same model in f32, where this one computes in 16 bits and may be followed by it.
    pub(crate) wide: Option<Arc<WideReplicas>>,
}

/// The model in f32, loaded when the first tile needs it.
#[derive(Debug)]
pub(crate) struct WideReplicas {
    model: Model,
    /// One per device, for all of its workers.
    loaded: Mutex<Vec<Arc<dyn Vae>>>,
}

/// How often a run that waits for another one's loading looks at its stop.
const POLL: Duration = Duration::from_millis(10);

impl WideReplicas {
    /// The model in f32 on a device. Weights that are in host memory already are not read from disk again.
    ///
    /// # Errors
    /// When the weights cannot be loaded, and [`VaeError::Stopped`].
    pub(crate) fn on(&self, device: &Device, stop: &Stop) -> Result<Arc<dyn Vae>, VaeError> {
        let mut loaded = loop {
            match self.loaded.try_lock() {
                Ok(loaded) => break loaded,
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                Err(TryLockError::WouldBlock) if stop.is_stopped() => return Err(VaeError::Stopped),
                Err(TryLockError::WouldBlock) => thread::sleep(POLL),
            }
        };
        if let Some(replica) = loaded.iter().find(|replica| replica.device() == *device) {
            return Ok(replica.clone());
        }
        let source = loaded.iter().find(|replica| is_in_host_memory(&replica.device()));
        let load = || {
            if let Some(replica) = source {
                return Ok(replica.to_device(device));
            }
            tracing::info!("loading the model in f32, too");
            self.model.load_until(device, DType::F32, stop)
        };
        let replica: Arc<dyn Vae> = on_own_threads(load)?.into();
        loaded.push(replica.clone());
        Ok(replica)
    }
}

/// Loads the model on every device.
///
/// # Errors
/// When a device does not compute in its dtype, the weights cannot be loaded, and [`Error::stopped`].
pub(crate) fn load_replicas(config: &Config, model: &Model, devices: &[OpenDevice], stop: &Stop) -> Result<Vec<Arc<Replica>>, Error> {
    let mut vaes: Vec<Arc<dyn Vae>> = Vec::new();
    for (OpenDevice { name, device }, dtype) in devices.iter().zip(dtypes(config, model, devices)?) {
        if dtype == DType::F32 && config.devices.tf32 && vae_core::adapter(device).is_some_and(|gpu| gpu.has_tf32) {
            tracing::info!("{name} rounds what it multiplies from f32 to TF32; devices.tf32 = false keeps it from that");
        }
        let like = vaes.iter().find(|vae| vae.dtype() == dtype);
        let vae: Arc<dyn Vae> = match like {
            Some(vae) => on_queue(|| vae.to_device(device)).into(),
            None => match on_queue(|| model.load_until(device, dtype, stop)) {
                Err(VaeError::Stopped) => return Err(Error::stopped()),
                loaded => loaded?.into(),
            },
        };
        vaes.push(vae);
    }
    let loaded = vaes.iter().filter(|vae| vae.dtype() == DType::F32).cloned().collect();
    let wide = Arc::new(WideReplicas { model: model.clone(), loaded: Mutex::new(loaded) });
    let replica = |vae: Arc<dyn Vae>| {
        let upcasts = vae.dtype() != DType::F32 && config.model.on_non_finite == OnNonFinite::Upcast;
        Arc::new(Replica { vae, wide: upcasts.then(|| wide.clone()) })
    };
    Ok(vaes.into_iter().map(replica).collect())
}
