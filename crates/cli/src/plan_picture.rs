//! Plans as pictures: letters and SVG.

use svg::Document;
use svg::node::element::{Rectangle, Text};
use tilevae::tiling::TilePlan;

/// The output as letters, at most 64 wide: how many tiles cover each place.
pub(crate) fn ascii(plan: &TilePlan) -> String {
    let [_, height, width] = plan.output;
    let columns = width.min(64);
    // A letter is about twice as tall as it is wide.
    let rows = (columns * height).div_ceil(2 * width).clamp(1, 40);
    let covers = |spans: &[tilevae::tiling::Span], at: usize| spans.iter().filter(|span| (span.start..span.end()).contains(&at)).count();
    let mut picture = String::new();
    for row in 0..rows {
        let tall = covers(&plan.rows, (2 * row + 1) * height / (2 * rows));
        for column in 0..columns {
            let count = tall * covers(&plan.columns, (2 * column + 1) * width / (2 * columns));
            picture.push(match count {
                0 | 1 => '.',
                2 | 3 => '+',
                _ => '#',
            });
        }
        picture.push('\n');
    }
    picture
}

/// The output with each tile as a translucent box; redundant ones are red.
pub(crate) fn svg(plan: &TilePlan) -> String {
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
    drawing.to_string()
}
