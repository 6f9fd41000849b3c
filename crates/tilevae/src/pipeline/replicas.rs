//! The model's weights on each device, and the dtype that each device computes in.

use std::sync::{Arc, Mutex, TryLockError};
use std::thread;
use std::time::Duration;

use burn::tensor::{DType, Device};
use tiling::Stop;
use vae_core::layers::Run;
use vae_core::{DeviceName, Model, Vae, VaeError, is_in_host_memory};

use crate::workers::on_own_threads;
use crate::{Config, DtypeConfig, Error, OnNonFinite, OpenDevice};

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
    /// One for each device, whatever the number of its workers.
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
            Run::new(stop).during(|| {
                if let Some(replica) = source {
                    return Ok(replica.to_device(device));
                }
                tracing::info!("loading the model in f32, too");
                self.model.load(device, DType::F32)
            })?
        };
        let replica: Arc<dyn Vae> = on_own_threads(load)?.into();
        loaded.push(replica.clone());
        Ok(replica)
    }
}

/// Loads the model on every device.
///
/// # Errors
/// When a device does not compute in its dtype, or the weights cannot be loaded.
pub(crate) fn load_replicas(config: &Config, model: &Model, devices: &[OpenDevice]) -> Result<Vec<Arc<Replica>>, Error> {
    let mut vaes: Vec<Arc<dyn Vae>> = Vec::new();
    for (OpenDevice { name, device }, dtype) in devices.iter().zip(dtypes(config, model, devices)?) {
        if dtype == DType::F32 && config.devices.tf32 && vae_core::adapter(device).is_some_and(|gpu| gpu.has_tf32) {
            tracing::info!("{name} rounds what it multiplies from f32 to TF32; devices.tf32 = false keeps it from that");
        }
        let like = vaes.iter().find(|vae| vae.dtype() == dtype);
        let vae: Arc<dyn Vae> = match like {
            Some(vae) => vae.to_device(device).into(),
            None => model.load(device, dtype)?.into(),
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

/// The dtype that each device computes in. As in diffusers' pipelines for SDXL, f16 becomes f32 where the model's `force_upcast` says that f16 overflows.
/// With `auto`, processors compute in f32, in which they are fastest.
fn dtypes(config: &Config, model: &Model, devices: &[OpenDevice]) -> Result<Vec<DType>, Error> {
    let force_upcast = model.spec.force_upcast;
    let mut overruled = Vec::new();
    let mut dtypes = Vec::new();
    for OpenDevice { name, device } in devices {
        let of_device = config.devices.dtype.get(name).copied();
        let asked = of_device.unwrap_or(config.model.dtype);
        let dtype = match asked {
            DtypeConfig::Auto if matches!(name, DeviceName::Cpu | DeviceName::Ndarray) => DType::F32,
            DtypeConfig::Auto => Some(model.stored_dtype()?).filter(|dtype| matches!(dtype, DType::F16 | DType::BF16)).unwrap_or(DType::F32),
            DtypeConfig::F32 => DType::F32,
            DtypeConfig::F16 => DType::F16,
            DtypeConfig::Bf16 => DType::BF16,
        };
        // Devices of other machines are not asked what they can do.
        let is_able = dtype == DType::F32 || matches!(name, DeviceName::Remote { .. }) || device.supports_dtype(dtype);
        dtypes.push(match asked {
            DtypeConfig::Auto if (dtype == DType::F16 && force_upcast) || !is_able => {
                let why = if is_able { "the model's force_upcast asks for that".to_owned() } else { format!("{name} does not compute in that type") };
                tracing::info!("{name} computes in f32, though the weights are {dtype:?}: {why}");
                DType::F32
            }
            DtypeConfig::F16 if force_upcast => {
                overruled.push(if of_device.is_some() { format!("devices.dtype of {name}") } else { "model.dtype".to_owned() });
                DType::F32
            }
            _ if !is_able => {
                let key = if of_device.is_some() { "devices.dtype" } else { "model.dtype" };
                let message = format!("{name} does not compute in {dtype:?}; f32 is possible");
                return Err(Error::ConfigValue { key: key.to_owned(), message });
            }
            _ => dtype,
        });
    }
    overruled.dedup();
    if !overruled.is_empty() {
        let says = if model.config.get("force_upcast").is_some() { "sets force_upcast" } else { "does not mention force_upcast, which is on then" };
        tracing::warn!(
            "f32 is computed in, though {} is \"f16\": the configuration of the model {says}, since f16 overflows; bf16 does not, and a configuration with \
             \"force_upcast\": false (see model.config) allows f16",
            overruled.join(" and ")
        );
    }
    Ok(dtypes)
}
