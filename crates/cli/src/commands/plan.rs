use std::path::Path;

use serde_json::json;
use tilevae::io::{self, FormatKind, Input};
use tilevae::tiling::Scale;
use tilevae::{Config, Direction, MemoryPlan, RunPlan, VaeSpec};

use crate::args::{Common, Plan};
use crate::failure::UsageError;
use crate::output::{bytes, print};
use crate::plan_image;

pub(crate) fn plan(common: &Common, args: &Plan) -> anyhow::Result<()> {
    let config = super::configuration(common)?;
    let model = super::open_model(&config)?;
    let mut files = super::run::files(common, &config, std::slice::from_ref(&args.input));
    if let Some(path) = &args.svg {
        files.write("--svg", path)?;
        io::check_writable(path, None)?;
    }
    let input = Input::open(&args.input)?;
    let (direction, shape) = input_shape(&input, args.direction, &model.spec, &config)?;
    let plan = RunPlan::new(&config, model.entry.name, &model.spec, direction, shape)?;
    if let Some(path) = &args.svg {
        let drawing = plan_image::svg(&plan.tiles)?;
        io::write_atomically(path, |writer| {
            std::io::Write::write_all(writer, drawing.as_bytes()).map_err(|source| io::IoError::Write { path: path.clone(), source })
        })?;
    }
    let has_no_layers = config.tiling.kind() == "seamless" && plan.memory.is_none();
    print(common, &text(&plan, has_no_layers), &json!(plan), files.take_stdout())
}

/// Which way, and the shape of the input, from a file or a size.
pub(super) fn input_shape(input: &Input, asked: Option<Direction>, spec: &VaeSpec, config: &Config) -> anyhow::Result<(Direction, [usize; 5])> {
    let path = input.path();
    if let Some((frames, size)) = clip_size(path)? {
        let direction = asked.unwrap_or(Direction::Decode);
        return Ok((direction, io::planned_shape(frames, size, direction, spec, &config.io)?));
    }
    let format =
        io::format_of(path).map_err(|error| UsageError(format!("{error}; or give a size in px, as 1024x768 (height, width) or 81x480x832")))?;
    if format.kind() == FormatKind::Clip && !path.exists() {
        let input = path.display();
        return Err(UsageError(format!(
            "{input} is neither a file or folder nor a size in px such as 1024x768 (height, width) or 81x480x832 (frames, height, width)"
        ))
        .into());
    }
    Ok(input.shape(asked, spec, &config.io)?)
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

fn text(plan: &RunPlan, has_no_layers: bool) -> String {
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
            "frames   {from} to {to} in {} chunks of {} latent frames after the first, {} cached between them\n",
            plan.chunks,
            plan.frames_per_chunk,
            bytes(size.cache)
        )
    } else {
        String::new()
    };
    let heading = format!(
        "{way} with {}: {} to {} (batch, channels, frames, height, width)\n\
         tiles    {} = {rows} rows x {columns} columns, {shapes}the largest {tall}x{wide} {unit}\n",
        plan.family,
        shape(plan.input_shape),
        shape(plan.output_shape),
        tiles.tiles.len(),
    );
    if let Some(memory) = &plan.memory {
        return format!("{heading}{}\n{}", seamless(plan, memory), plan_image::ascii(tiles));
    }
    let seams =
        if has_no_layers { format!("seams    tiles overlap: {} does not list the layers of its models\n", plan.family) } else { String::new() };
    format!(
        "{heading}{seams}\
         overlap  {} px of height, {} px of width, in the output\n\
         work     {:.2} times untiled, {} redundant tiles\n{chunks}\
         host     input {}, output {}, strips to blend with {}{}\n\
         workers  {}, at most {held} begun and not yet blended ({} of output waiting to be blended{})\n\
         device   about {} for the largest tile, without weights (untiled: {})\n\n{}",
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
        plan_image::ascii(tiles),
    )
}

/// What is said of a seamless run.
fn seamless(plan: &RunPlan, memory: &MemoryPlan) -> String {
    let size = |bytes_of: u64| bytes(usize::try_from(bytes_of).unwrap_or(usize::MAX));
    let whole = plan.stages.iter().filter(|stage| stage.tiles == 1).count();
    let stages = match plan.stages.len() {
        0 => "seams    none: the whole in one tile\n".to_owned(),
        count => format!("seams    none: {count} stages, {whole} of them on the whole picture, the others tile by tile\n"),
    };
    let budget = memory.budget.map(|budget| format!(" of a budget of {}", size(budget))).unwrap_or_default();
    let kept = if memory.kept > 0 { format!("{} on devices, ", size(memory.kept)) } else { String::new() };
    let scratch = if memory.scratch > 0 { format!(", {} in a scratch file", size(memory.scratch)) } else { String::new() };
    let next = memory.next.map(|next| {
        let [tall, wide] = next.tile;
        let scratch = if next.scratch > 0 { format!(" and {} in a scratch file", size(next.scratch)) } else { String::new() };
        format!("more     with {} MiB: tiles of up to {tall}x{wide} latent px{scratch}\n", next.bytes.div_ceil(1 << 20))
    });
    format!(
        "{stages}\
         work     {:.3} times untiled\n\
         memory   about {} at the peak{budget}; features between stages: {kept}{} in memory{scratch}\n{}\
         workers  {}\n",
        plan.work_ratio,
        size(memory.peak),
        size(memory.stored),
        next.unwrap_or_default(),
        plan.workers,
    )
}
