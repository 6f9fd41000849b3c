use clap::CommandFactory;
use serde_json::json;
use tilevae::{Config, Registry, list_devices};

use crate::args::{self, Args, Common};
use crate::output::{self, print};

pub(crate) fn models(common: &Common) -> anyhow::Result<()> {
    let config = super::configuration(common)?;
    let registry = Registry::linked().map_err(tilevae::Error::from)?;
    let mut text = String::from("families\n");
    let mut families = Vec::new();
    for entry in registry.entries() {
        text += &format!("  {:<10} {}\n{:13}aliases: {}; from {}\n", entry.name, entry.summary, "", entry.aliases.join(", "), entry.origin);
        families.push(json!({"name": entry.name, "aliases": entry.aliases, "summary": entry.summary, "crate": entry.origin}));
    }
    let path = config.model.path.display();
    let model = match super::open_model(&config) {
        Ok(model) => {
            let spec = &model.spec;
            text += &format!(
                "configured model: {path}\n  family {}, {} latent channels, {}x{}, tiles of {:?} px, stored as {}\n",
                model.entry.name,
                spec.latent_channels,
                spec.spatial_ratio,
                if spec.frames.ratio() > 1 { format!(", {}x in time", spec.frames.ratio()) } else { String::new() },
                spec.grid.tile_px,
                model.stored_dtype().map_or_else(|_| "(no weights)".to_owned(), |dtype| format!("{dtype:?}").to_lowercase())
            );
            json!({"path": output::path(&config.model.path), "family": model.entry.name, "spec": spec, "config": model.config})
        }
        // A list of families is of use without a model, unless one was asked for.
        Err(error) if common.model.is_some() => return Err(error),
        Err(error) => {
            text += &format!("configured model: none ({error})\n");
            serde_json::Value::Null
        }
    };
    print(common, &text, &json!({"families": families, "model": model}), false)
}

pub(crate) fn devices(common: &Common) -> anyhow::Result<()> {
    let devices = list_devices();
    let memory = |bytes: Option<u64>| bytes.map_or_else(String::new, |bytes| format!(", {}", indicatif::BinaryBytes(bytes)));
    let line = |device: &tilevae::DeviceInfo| format!("{:<10} {}{}\n", device.name.to_string(), device.description, memory(device.memory));
    let text: String = devices.iter().map(line).collect();
    print(common, &text, &json!(devices), false)
}

pub(crate) fn config(common: &Common, args: &args::Config) -> anyhow::Result<()> {
    if args.defaults {
        return print(common, Config::default_toml(), &json!(Config::default()), false);
    }
    let mut config = super::configuration(common)?;
    // What is printed means the same wherever it is read.
    for path in std::iter::once(&mut config.model.path).chain(&mut config.model.config) {
        *path = std::path::absolute(&*path).map_err(|source| tilevae::Error::File { path: path.clone(), verb: "found", source })?;
    }
    print(common, &config.to_toml()?, &json!(config), false)
}

pub(crate) fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "tilevae", &mut script);
    output::print_text(&String::from_utf8(script)?)
}
