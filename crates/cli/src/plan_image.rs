//! Plans as images: letters and SVG.

use svg::Document;
use svg::node::element::{Rectangle, Text};
use tilevae::tiling::{Span, TilePlan};

use crate::failure::UsageError;

/// The output as letters, at most 64 wide: how many tiles cover each place.
pub(crate) fn ascii(plan: &TilePlan) -> String {
    let [_, height, width] = plan.output;
    let columns = width.min(64);
    // A letter is about twice as tall as it is wide.
    let rows = (columns as u128 * height as u128).div_ceil(2 * width as u128).clamp(1, 40) as usize;
    // How many tiles lie at the middle of each letter.
    let covers = |spans: &[Span], letters: usize, length: usize| -> Vec<usize> {
        let middle = |letter: usize| ((2 * letter + 1) as u128 * length as u128 / (2 * letters) as u128) as usize;
        (0..letters).map(middle).map(|at| spans.iter().filter(|span| (span.start..span.end()).contains(&at)).count()).collect()
    };
    let across = covers(&plan.columns, columns, width);
    let mut image = String::new();
    for tall in covers(&plan.rows, rows, height) {
        for wide in &across {
            let count = tall * wide;
            image.push(match count {
                0 | 1 => '.',
                2 | 3 => '+',
                _ => '#',
            });
        }
        image.push('\n');
    }
    image
}

/// The most tiles that a drawing shows.
const DRAWN_TILES: usize = 20_000;

/// The output with each tile as a translucent box; redundant ones are red.
pub(crate) fn svg(plan: &TilePlan) -> Result<String, UsageError> {
    if plan.tiles.len() > DRAWN_TILES {
        return Err(UsageError(format!("--svg draws at most {DRAWN_TILES} tiles, the plan has {}", plan.tiles.len())));
    }
    let [_, height, width] = plan.output;
    let line = (width.max(height) as f64 / 400.0).max(0.25);
    let mut drawing = Document::new()
        .set("viewBox", (0, 0, width, height))
        .set("width", width.min(1600))
        .add(Rectangle::new().set("width", width).set("height", height).set("fill", "white"));
    for tile in &plan.tiles {
        let ([_, y, x], [_, tall, wide]) = (tile.output.start, tile.output.size);
        let color = if tile.redundant { "crimson" } else { "steelblue" };
        let frame = Rectangle::new()
            .set("x", x)
            .set("y", y)
            .set("width", wide)
            .set("height", tall)
            .set("fill", color)
            .set("fill-opacity", 0.2)
            .set("stroke", color)
            .set("stroke-width", line);
        let number = Text::new(tile.index.to_string())
            .set("x", x as f64 + wide as f64 / 2.0)
            .set("y", y as f64 + tall as f64 / 2.0)
            .set("font-size", tall.min(wide) as f64 / 5.0)
            .set("text-anchor", "middle")
            .set("dominant-baseline", "middle")
            .set("font-family", "sans-serif");
        drawing = drawing.add(frame).add(number);
    }
    Ok(drawing.to_string())
}
