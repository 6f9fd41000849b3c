//! The ways by which bytes that others made come in, as users reach them. The targets of `fuzz/` are the same ones.

use std::error::Error;
use std::path::{Path, PathBuf};

use tilevae::io::{self, Clip, Fps, Images, Tensors};
use tilevae::tiling::Region;
use tilevae::vae_core::{DeviceName, FrameRule};
use tilevae::{Config, Direction, FittedFrames, FrameRemainder, Pipeline, RunOptions, RunPlan, TileSource, VaeSpec, open_model, parse_override};

pub(crate) type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

/// A way in.
pub(crate) struct Way {
    /// The folder of its seeds.
    pub(crate) name: &'static str,
    /// The name that its bytes lie under.
    pub(crate) file: &'static str,
    /// Other files in the same folder.
    pub(crate) beside: &'static [(&'static str, &'static [u8])],
    read: fn(&Path) -> Outcome,
}

impl Way {
    /// A way without other files.
    #[allow(dead_code, reason = "the targets of cargo-fuzz make none")]
    pub(crate) const fn new(name: &'static str, file: &'static str, read: fn(&Path) -> Outcome) -> Self {
        Self { name, file, beside: &[], read }
    }

    /// Reads what lies at `path` to the end.
    pub(crate) fn read(&self, path: &Path) -> Outcome {
        (self.read)(path)
    }
}

macro_rules! ways {
    ($($name:literal as $file:literal $(beside [$($neighbour:literal = $content:literal),+])?: $read:expr;)+) => {
        pub(crate) const WAYS: &[Way] = &[$(
            Way { name: $name, file: $file, beside: &[$($(($neighbour, include_bytes!($content))),+)?], read: $read },
        )+];
    };
}

ways! {
    "safetensors" as "case.safetensors": tensors;
    "latent" as "case.latent": tensors;
    "npy" as "case.npy": tensors;
    "npz" as "case.npz": tensors;
    "torch" as "case.pt": tensors;
    "png" as "case.png": image;
    "jpeg" as "case.jpg": image;
    "webp" as "case.webp": image;
    "tiff" as "case.tiff": image;
    "apng" as "case.png": clip;
    "webp-clip" as "case.webp": clip;
    "tiff-pages" as "case.tiff": clip;
    "gif" as "case.gif": clip;
    "y4m" as "case.y4m": clip;
    "kl-weights" as "diffusion_pytorch_model.safetensors" beside ["config.json" = "seeds/kl-config/config.json"]: folder;
    "wan-weights" as "diffusion_pytorch_model.safetensors" beside ["config.json" = "seeds/wan-config/config.json"]: folder;
    "wan22-weights" as "diffusion_pytorch_model.safetensors" beside ["config.json" = "seeds/wan22-config/config.json"]: folder;
    "qwen-weights" as "diffusion_pytorch_model.safetensors" beside ["config.json" = "seeds/qwen-config/config.json"]: folder;
    "single" as "case.safetensors": model;
    "pickle" as "diffusion_pytorch_model.bin" beside ["config.json" = "seeds/kl-config/config.json"]: folder;
    "wan-pickle" as "case.pth": model;
    "legacy-pickle" as "diffusion_pytorch_model.bin" beside ["config.json" = "seeds/kl-config/config.json"]: folder;
    "kl-config" as "config.json"
        beside ["diffusion_pytorch_model.safetensors" = "seeds/kl-weights/diffusion_pytorch_model.safetensors"]: folder;
    "wan-config" as "config.json"
        beside ["diffusion_pytorch_model.safetensors" = "seeds/wan-weights/diffusion_pytorch_model.safetensors"]: folder;
    "wan22-config" as "config.json"
        beside ["diffusion_pytorch_model.safetensors" = "seeds/wan22-weights/diffusion_pytorch_model.safetensors"]: folder;
    "qwen-config" as "config.json"
        beside ["diffusion_pytorch_model.safetensors" = "seeds/qwen-weights/diffusion_pytorch_model.safetensors"]: folder;
    "index" as "diffusion_pytorch_model.safetensors.index.json"
        beside [
            "config.json" = "seeds/kl-config/config.json",
            "shard-1.safetensors" = "shard-1.safetensors",
            "shard-2.safetensors" = "shard-2.safetensors"
        ]: folder;
    "toml" as "case.toml": toml;
    "override" as "case.txt": overrides;
    "device" as "case.txt": device;
    "fps" as "case.txt": fps;
    "size" as "case.txt": size;
}

/// Reads a corner, and plans a run.
fn use_of(source: &dyn TileSource, direction: Direction) -> Outcome {
    let shape = source.shape();
    let size = [shape[2].min(2), shape[3].min(16), shape[4].min(16)];
    let last = [shape[2] - size[0], shape[3] - size[1], shape[4] - size[2]];
    for start in [[0; 3], last] {
        source.read(&Region { start, size })?;
    }
    let spec = VaeSpec { frames: FrameRule::Causal { ratio: 1 }, ..VaeSpec::image(3, 4, 8) };
    // The seeds are no larger than a tile, and smaller than a model takes.
    drop(RunPlan::new(&Config::default(), "kl", &spec, direction, shape));
    Ok(())
}

fn tensors(path: &Path) -> Outcome {
    drop(Tensors::read(path)?.samples());
    let spec = VaeSpec::image(3, 4, 8);
    let tensor = Tensors::read(path)?.input(Direction::Decode, &spec, &Config::default().io)?.read()?;
    use_of(&tensor.values, Direction::Decode)
}

fn image(path: &Path) -> Outcome {
    let size = io::image_size(path);
    for channels in [1, 4] {
        drop(Images::read(&[path.to_owned()], channels, 8));
    }
    let images = Images::read(&[path.to_owned()], 3, 8)?;
    assert_eq!(size?, images.size(), "an image is as large as its header says");
    use_of(&images, Direction::Encode)
}

fn clip(path: &Path) -> Outcome {
    let clip = Clip::read(path, 3, 2)?;
    let fitted = FittedFrames::new(&clip, FrameRule::Causal { ratio: 4 }, FrameRemainder::Pad)?;
    use_of(&fitted, Direction::Encode)
}

fn folder(path: &Path) -> Outcome {
    model(path.parent().ok_or("no folder")?)
}

/// Loads a checkpoint, and decodes and encodes a little.
fn model(path: &Path) -> Outcome {
    let mut config = Config::default();
    path.clone_into(&mut config.model.path);
    load(&config)
}

fn load(config: &Config) -> Outcome {
    let model = open_model(config)?;
    let spec = model.spec.clone();
    let ratio = spec.spatial_ratio;
    let plan = |direction, shape| RunPlan::new(config, model.entry.name, &spec, direction, shape);
    for (direction, shape) in [
        (Direction::Decode, [2, spec.latent_channels, 1, 300, 200]),
        (Direction::Encode, [2, spec.input_channels, 1, ratio.saturating_mul(40), ratio.saturating_mul(30)]),
    ] {
        drop(plan(direction, shape));
    }
    model.stored_dtype()?;
    let pipeline = Pipeline::load_model(config, &model)?;
    let latents = [1, spec.latent_channels, 1, 2, 3];
    let planned = plan(Direction::Decode, latents)?;
    if planned.bytes.output < 1 << 20 && planned.bytes.untiled < 1 << 24 {
        let samples = pipeline.decode(&tilevae::HostTensor::zeros(latents), RunOptions::default())?;
        if samples.shape()[1] == spec.input_channels {
            pipeline.encode(&samples, RunOptions::default())?;
        }
    }
    Ok(())
}

fn toml(path: &Path) -> Outcome {
    let config = Config::from_sources(Some(path), &[])?;
    configured(&config)
}

/// What a configuration leads to before a model is loaded.
fn configured(config: &Config) -> Outcome {
    assert_eq!(Config::from_toml(&config.to_toml()?)?, *config, "a configuration that is written is read as it was");
    let spec = VaeSpec { frames: FrameRule::Causal { ratio: 4 }, ..VaeSpec::image(3, 4, 8) };
    for (direction, shape) in [(Direction::Decode, [1, 4, 3, 40, 50]), (Direction::Encode, [1, 3, 9, 320, 400]), (Direction::Decode, [1, 4, 1, 1, 1])]
    {
        drop(RunPlan::new(config, "kl", &spec, direction, shape));
    }
    Ok(())
}

/// The bytes at `path` as an argument of a command line.
fn text(path: &Path) -> Result<String, std::io::Error> {
    Ok(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())
}

fn overrides(path: &Path) -> Outcome {
    let table = parse_override(&text(path)?)?;
    configured(&Config::from_sources(None, &[table])?)
}

fn device(path: &Path) -> Outcome {
    let name: DeviceName = text(path)?.parse()?;
    assert_eq!(name.to_string().parse::<DeviceName>()?, name, "a name that is written is read as it was");
    Ok(())
}

fn fps(path: &Path) -> Outcome {
    let rate: Fps = text(path)?.parse()?;
    assert_eq!(rate.to_string().parse::<Fps>()?, rate, "a rate that is written is read as it was");
    Ok(())
}

fn size(path: &Path) -> Outcome {
    let sides = text(path)?.split('x').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    let [frames, height, width] = match sides[..] {
        [height, width] => [1, height, width],
        [frames, height, width] => [frames, height, width],
        _ => return Err("no size".into()),
    };
    let spec = VaeSpec { frames: FrameRule::Causal { ratio: 4 }, ..VaeSpec::image(3, 4, 8) };
    drop(RunPlan::new(&Config::default(), "wan", &spec, Direction::Encode, [1, 3, frames, height, width]));
    RunPlan::new(&Config::default(), "wan", &spec, Direction::Decode, [1, 4, frames, height, width])?;
    Ok(())
}

/// The place for the bytes of a way: a folder in `parent` with the other files.
pub(crate) fn place(way: &Way, parent: &Path) -> std::io::Result<PathBuf> {
    let folder = parent.join(way.name);
    std::fs::create_dir_all(&folder)?;
    for (name, content) in way.beside {
        std::fs::write(folder.join(name), content)?;
    }
    Ok(folder.join(way.file))
}
