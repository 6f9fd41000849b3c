use burn::tensor::{DType, Device};
use vae_core::backends::{computes_in, is_in_host_memory};
use vae_core::{DeviceName, Model};

use crate::{Config, DtypeConfig, Error, OpenDevice};

/// The dtype that each device computes in. `devices.dtype` of a device overrides `model.dtype`.
///
/// | configured | dtype |
/// |---|---|
/// | `f32` | f32 |
/// | `f16` | f16; f32 with a warning, if the model sets `force_upcast`; an error, if the device does not compute in f16 |
/// | `bf16` | bf16; an error, if the device does not compute in bf16 |
/// | `auto`, CPU | f32, the fastest dtype of CPUs |
/// | `auto`, others | f16 or bf16, if the weights are stored in it (bf16 for 8 bits), the device computes in it and, for f16, the model does not set `force_upcast`; else f32 |
///
/// f16 with `force_upcast` becomes f32 as in diffusers' pipelines for SDXL.
///
/// # Errors
/// When a device does not compute in the configured dtype, or the stored dtype cannot be read.
pub(crate) fn dtypes(config: &Config, model: &Model, devices: &[OpenDevice]) -> Result<Vec<DType>, Error> {
    let mut overruled = Vec::new();
    let mut dtypes = Vec::new();
    for OpenDevice { name, device } in devices {
        let of_device = config.devices.dtype.get(name).copied();
        let key = if of_device.is_some() { "devices.dtype" } else { "model.dtype" };
        let dtype = match of_device.unwrap_or(config.model.dtype) {
            DtypeConfig::Auto => automatic(model, name, device)?,
            DtypeConfig::F32 => DType::F32,
            DtypeConfig::F16 if model.spec.force_upcast => {
                overruled.push(if of_device.is_some() { format!("{key} of {name}") } else { key.to_owned() });
                DType::F32
            }
            DtypeConfig::F16 => supported(DType::F16, name, device, key)?,
            DtypeConfig::Bf16 => supported(DType::BF16, name, device, key)?,
        };
        dtypes.push(dtype);
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

/// The dtype of `auto`.
fn automatic(model: &Model, name: &DeviceName, device: &Device) -> Result<DType, Error> {
    if is_in_host_memory(device) {
        return Ok(DType::F32);
    }
    let stored = model.stored_dtype()?;
    if !matches!(stored, DType::F16 | DType::BF16) {
        return Ok(DType::F32);
    }
    let why = if !computes_in(device, stored) {
        format!("{name} does not compute in that type")
    } else if stored == DType::F16 && model.spec.force_upcast {
        "the model's force_upcast asks for that".to_owned()
    } else {
        return Ok(stored);
    };
    tracing::info!("{name} computes in f32, though the weights are {stored:?}: {why}");
    Ok(DType::F32)
}

/// `dtype`, configured by `key`, if the device computes in it.
fn supported(dtype: DType, name: &DeviceName, device: &Device, key: &str) -> Result<DType, Error> {
    if computes_in(device, dtype) {
        return Ok(dtype);
    }
    let message = format!("{name} does not compute in {dtype:?}; f32 is possible");
    Err(Error::ConfigValue { key: key.to_owned(), message })
}
