use std::path::{Path, PathBuf};

use serde_json::json;
use tilevae::io::{self, FileKind, Tensors};
use tilevae::tiling::Scale;
use tilevae::{Direction, RunPlan, VaeSpec};

use crate::args::{Common, Plan};
use crate::commands::UsageError;
use crate::output::{bytes, print};
use crate::plan_picture;

pub(crate) fn plan(common: &Common, args: &Plan) -> anyhow::Result<()> {
    let config = super::configuration(common)?;
    let model = super::open_model(&config)?;
    let (direction, shape) = input_shape(&args.input, args.direction, &model.spec)?;
    let plan = RunPlan::new(&config, model.entry.name, &model.spec, direction, shape)?;
    if let Some(path) = &args.svg {
        let drawing = plan_picture::svg(&plan.tiles);
        io::write_atomically(path, |writer| {
            std::io::Write::write_all(writer, drawing.as_bytes()).map_err(|source| io::IoError::Write { path: path.clone(), source })
        })?;
    }
    print(common, &text(&plan), &json!(plan))
}

/// Which way, and the shape of the input, from a file or a size.
fn input_shape(input: &str, asked: Option<Direction>, spec: &VaeSpec) -> anyhow::Result<(Direction, [usize; 5])> {
    if let Some(size) = picture_size(input) {
        let direction = asked.unwrap_or(Direction::Decode);
        return Ok((direction, picture_shape(size, direction, spec)));
    }
    let path = PathBuf::from(input);
    let kind = FileKind::of(&path).map_err(|error| UsageError(format!("{error}; or give a size in px, as 1024x768 (height, width)")))?;
    if kind.is_picture() {
        let direction = asked.unwrap_or(Direction::Encode);
        return Ok((direction, picture_shape(io::picture_size(&path)?, direction, spec)));
    }
    let tensor_shape = |direction| -> Result<[usize; 5], io::IoError> {
        let tensors = Tensors::read(Path::new(&path))?;
        let tensor = if direction == Direction::Decode { tensors.latents() } else { tensors.samples() }?;
        Ok(tensor.block.shape())
    };
    match asked {
        Some(direction) => Ok((direction, tensor_shape(direction)?)),
        None => match tensor_shape(Direction::Decode) {
            // A file with one tensor says by its channels which it is.
            Ok(shape) if shape[1] != spec.latent_channels && shape[1] == spec.input_channels => Ok((Direction::Encode, shape)),
            Ok(shape) => Ok((Direction::Decode, shape)),
            Err(io::IoError::NoTensor { .. }) => Ok((Direction::Encode, tensor_shape(Direction::Encode)?)),
            Err(error) => Err(error.into()),
        },
    }
}

/// `HEIGHTxWIDTH`.
fn picture_size(text: &str) -> Option<[usize; 2]> {
    let (height, width) = text.split_once('x')?;
    Some([height.parse().ok()?, width.parse().ok()?])
}

/// A picture of any size is padded to whole latent px.
fn picture_shape(size: [usize; 2], direction: Direction, spec: &VaeSpec) -> [usize; 5] {
    let [height, width] = size.map(|side| side.next_multiple_of(spec.spatial_ratio));
    match direction {
        Direction::Encode => [1, spec.input_channels, 1, height, width],
        Direction::Decode => [1, spec.latent_channels, 1, height / spec.spatial_ratio, width / spec.spatial_ratio],
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
    let shape = |shape: [usize; 5]| shape.map(|side| side.to_string()).join("x");
    let size = &plan.bytes;
    format!(
        "{way} with {}: {} to {} (batch, channels, frames, height, width)\n\
         tiles    {} = {rows} rows x {columns} columns, the largest {tall}x{wide} {unit}\n\
         overlap  {} px of height, {} px of width, in the output\n\
         work     {:.2} times untiled, {} redundant tiles\n\
         host     input {}, output {}, band {}\n\
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
        bytes(size.band),
        bytes(size.largest_tile),
        bytes(size.untiled),
        plan_picture::ascii(tiles),
    )
}
