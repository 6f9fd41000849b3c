use std::path::Path;

use serde_json::json;
use tilevae::io::{self, FileKind, Tensors};
use tilevae::tiling::Scale;
use tilevae::{Config, Direction, FittedFrames, RunPlan, TileSource, VaeSpec};

use crate::args::{Common, Plan};
use crate::commands::files::Files;
use crate::commands::samples::Input;
use crate::failure::UsageError;
use crate::output::{bytes, print};
use crate::plan_picture;

pub(crate) fn plan(common: &Common, args: &Plan) -> anyhow::Result<()> {
    let config = super::configuration(common)?;
    let model = super::open_model(&config)?;
    let mut files = Files::new(common, &config, std::slice::from_ref(&args.input));
    if let Some(path) = &args.svg {
        files.write("--svg", path)?;
        io::check_writable(path, None)?;
    }
    let input = Input::open(&args.input)?;
    let (direction, shape) = input_shape(input.path(), args.direction, &model.spec, &config)?;
    let plan = RunPlan::new(&config, model.entry.name, &model.spec, direction, shape)?;
    if let Some(path) = &args.svg {
        let drawing = plan_picture::svg(&plan.tiles)?;
        io::write_atomically(path, |writer| {
            std::io::Write::write_all(writer, drawing.as_bytes()).map_err(|source| io::IoError::Write { path: path.clone(), source })
        })?;
    }
    print(common, &text(&plan), &json!(plan), files.take_stdout())
}

/// Which way, and the shape of the input, from a file or a size.
pub(super) fn input_shape(path: &Path, asked: Option<Direction>, spec: &VaeSpec, config: &Config) -> anyhow::Result<(Direction, [usize; 5])> {
    let input = path.display();
    if let Some((frames, size)) = clip_size(path)? {
        let direction = asked.unwrap_or(Direction::Decode);
        let frames = fitted_frames(frames, spec, config)?;
        let frames = if direction == Direction::Encode { frames } else { spec.encode_geometry().frames.output(frames) };
        return Ok((direction, picture_shape(frames, size, direction, spec)));
    }
    let kind = FileKind::of(path).map_err(|error| UsageError(format!("{error}; or give a size in px, as 1024x768 (height, width) or 81x480x832")))?;
    if kind.is_clip() && !path.exists() {
        return Err(
            UsageError(format!("there is no file or folder {input}, and it is no size in px, as 1024x768 (height, width) or 81x480x832")).into()
        );
    }
    if kind.is_clip() || kind.is_picture() {
        let info = io::Media::probe(path, spec)?;
        let frames = fitted_frames(info.frames, spec, config)?;
        let direction = asked.unwrap_or(Direction::Encode);
        let frames = if direction == Direction::Encode { frames } else { spec.encode_geometry().frames.output(frames) };
        return Ok((direction, picture_shape(frames, info.size, direction, spec)));
    }
    let tensor_shape = |direction| Ok::<_, io::IoError>(Tensors::read(path)?.input(direction, spec, &config.io)?.shape());
    match asked {
        Some(direction) => Ok((direction, tensor_shape(direction)?)),
        None => match tensor_shape(Direction::Decode) {
            // A file with one tensor says by its channels which it is.
            Ok(shape) if shape[1] != spec.latent_channels && shape[1] == spec.input_channels => Ok((Direction::Encode, shape)),
            Ok(shape) => Ok((Direction::Decode, shape)),
            Err(io::IoError::NoTensor { .. }) => Ok((Direction::Encode, tensor_shape(Direction::Encode)?)),
            // What cannot be latents may be samples.
            Err(error @ io::IoError::Shape { .. }) => {
                tensor_shape(Direction::Encode).map(|shape| (Direction::Encode, shape)).map_err(|_| error.into())
            }
            Err(error) => Err(error.into()),
        },
    }
}

/// `HEIGHTxWIDTH` or `FRAMESxHEIGHTxWIDTH`.
pub(super) fn clip_size(text: &Path) -> Result<Option<(usize, [usize; 2])>, UsageError> {
    let Some(text) = text.to_str() else { return Ok(None) };
    let sides: Vec<&str> = text.split('x').collect();
    if !matches!(sides.len(), 2 | 3) || !sides.iter().all(|side| !side.is_empty() && side.bytes().all(|byte| byte.is_ascii_digit())) {
        return Ok(None);
    }
    let side = |side: &&str| side.parse().ok().filter(|side| (1..=MOST_PX).contains(side));
    let wrong = || UsageError(format!("{text} is no size that can be planned: frames, height and width are each from 1 to {MOST_PX}"));
    match sides.iter().map(side).collect::<Option<Vec<usize>>>().ok_or_else(wrong)?[..] {
        [height, width] => Ok(Some((1, [height, width]))),
        [frames, height, width] => Ok(Some((frames, [height, width]))),
        _ => Ok(None),
    }
}

/// The longest side that can be given, in px. What can be planned is less.
const MOST_PX: usize = 1 << 40;

/// The number of sample frames that is encoded of a clip of `frames`.
fn fitted_frames(frames: usize, spec: &VaeSpec, config: &Config) -> Result<usize, tilevae::Error> {
    let clip = tilevae::HostTensor::zeros([1, 0, frames, 1, 1]);
    Ok(FittedFrames::new(&clip, spec.frames, config.io.frames)?.shape()[2])
}

/// A picture of any size is padded to whole latent px.
fn picture_shape(frames: usize, size: [usize; 2], direction: Direction, spec: &VaeSpec) -> [usize; 5] {
    let [height, width] = size.map(|side| side.next_multiple_of(spec.spatial_ratio));
    match direction {
        Direction::Encode => [1, spec.input_channels, frames, height, width],
        Direction::Decode => [1, spec.latent_channels, frames, height / spec.spatial_ratio, width / spec.spatial_ratio],
    }
}

fn text(plan: &RunPlan) -> String {
    let tiles = &plan.tiles;
    let (rows, columns) = (tiles.rows.len(), tiles.columns.len());
    let [tall, wide] = tiles.largest_tile();
    let (way, unit) = match tiles.geometry.scale {
        Scale::Up(_) => ("decode", "latent px"),
        Scale::Down(_) => ("encode", "px"),
    };
    let overlap = |axis: usize| tiles.tiles.iter().map(move |tile| tile.overlap[axis]).filter(|&px| px > 0);
    let overlaps = [0, 1].map(|axis| match (overlap(axis).min(), overlap(axis).max()) {
        (Some(least), Some(most)) if least != most => format!("{least}..{most}"),
        (Some(px), _) => px.to_string(),
        _ => "none".to_owned(),
    });
    let shapes = if plan.tile_shapes > 1 { format!("{} shapes, ", plan.tile_shapes) } else { String::new() };
    let held = if plan.held_tiles == 1 { "1 tile".to_owned() } else { format!("{} tiles", plan.held_tiles) };
    let scratch = if plan.chunks > 1 && tiles.is_tiled() { " in a scratch file" } else { "" };
    let shape = |shape: [usize; 5]| shape.map(|side| side.to_string()).join("x");
    let size = &plan.bytes;
    let chunks = if plan.chunks > 1 {
        let [from, to] = [plan.input_shape[2], plan.output_shape[2]];
        format!(
            "frames   {from} to {to} in {} chunks of {} latent frames after the first, {} remembered between them\n",
            plan.chunks,
            plan.frames_per_chunk,
            bytes(size.cache)
        )
    } else {
        String::new()
    };
    format!(
        "{way} with {}: {} to {} (batch, channels, frames, height, width)\n\
         tiles    {} = {rows} rows x {columns} columns, {shapes}the largest {tall}x{wide} {unit}\n\
         overlap  {} px of height, {} px of width, in the output\n\
         work     {:.2} times untiled, {} redundant tiles\n{chunks}\
         host     input {}, output {}, strips to blend with {}{}\n\
         workers  {}, at most {held} begun and not yet blended ({} of answers that wait{})\n\
         device   about {} for the largest tile, without weights (untiled: {})\n\n{}",
        plan.family,
        shape(plan.input_shape),
        shape(plan.output_shape),
        tiles.tiles.len(),
        overlaps[0],
        overlaps[1],
        plan.work_ratio,
        plan.redundant_tiles,
        bytes(size.input),
        bytes(size.output),
        bytes(size.strips),
        scratch,
        plan.workers,
        bytes(size.waiting),
        scratch,
        bytes(size.largest_tile),
        bytes(size.untiled),
        plan_picture::ascii(tiles),
    )
}
