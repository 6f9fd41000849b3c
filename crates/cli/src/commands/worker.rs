use std::net::TcpListener;

use tilevae::{Config, Count, DeviceName, remote};

use crate::args::{Common, Worker};
use crate::commands::UsageError;
use crate::output::print;

/// Serves devices until the process is interrupted.
pub(crate) fn worker(common: &Common, args: &Worker) -> anyhow::Result<()> {
    let config = super::configuration(common)?;
    let devices = tilevae::open_devices(&config.devices)?;
    let mut served = Vec::new();
    for open in devices {
        let copies = if open.name == DeviceName::Cpu { cpu_copies(&config) } else { 1 };
        served.extend((0..copies).map(|_| (open.name.clone(), open.device.clone())));
    }
    let listener = TcpListener::bind(&args.listen).map_err(|error| UsageError(format!("{} cannot be listened at: {error}", args.listen)))?;
    let address = listener.local_addr()?;
    let names: Vec<String> = (0..served.len()).map(|index| format!("remote://{address}/{index}")).collect();
    let text: String = names.iter().zip(&served).map(|(name, (device, _))| format!("{name}  {device}\n")).collect();
    let server = remote::Server::new(served.iter().map(|(_, device)| device.clone()).collect(), address)?;
    print(common, &text, &serde_json::json!({"address": address, "devices": names}))?;
    Ok(server.serve(listener)?)
}

fn cpu_copies(config: &Config) -> usize {
    match config.devices.cpu.workers {
        Count::Auto => 1,
        Count::Exactly(workers) => workers.get(),
    }
}
