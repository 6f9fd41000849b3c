use crate::args::{Common, Worker};
use crate::failure::UsageError;

/// Serves devices until the process is interrupted.
#[cfg(feature = "remote")]
pub(crate) fn worker(common: &Common, args: &Worker) -> anyhow::Result<()> {
    use std::net::TcpListener;

    use tilevae::{Count, DeviceName, remote};

    let config = super::configuration(common)?;
    let copies = match config.devices.cpu.workers {
        Count::Auto => 1,
        Count::Exactly(workers) => workers.get(),
    };
    let mut served = Vec::new();
    for open in tilevae::open_devices(&config.devices)? {
        let copies = if open.name == DeviceName::CPU { copies } else { 1 };
        served.extend((0..copies).map(|_| open.clone()));
    }
    let listener = TcpListener::bind(&args.listen).map_err(|error| UsageError(format!("cannot bind {}: {error}", args.listen)))?;
    let address = listener.local_addr()?;
    let server = remote::Server::new(served.iter().map(|open| open.device.clone()).collect(), address)?;
    let names: Vec<String> = (0..served.len()).map(|index| format!("remote://{address}/{index}")).collect();
    let text: String = names.iter().zip(&served).map(|(name, open)| format!("{name}  {}\n", open.name)).collect();
    crate::output::print(common, &text, &serde_json::json!({"address": address, "devices": names}), false)?;
    Ok(server.serve(listener)?)
}

#[cfg(not(feature = "remote"))]
pub(crate) fn worker(_: &Common, args: &Worker) -> anyhow::Result<()> {
    let message = format!("cannot serve devices at {}: this program was built without the Cargo feature `remote`", args.listen);
    Err(UsageError(message).into())
}
