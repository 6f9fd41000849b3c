//! The stages of runs over time: as a trace for Perfetto, and as an SVG.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use svg::Document;
use svg::node::element::{Group, Rectangle, Text, Title};
use tilevae::io::{self, IoError};
use tilevae::{RunStats, Span, Stage, Trace};

use crate::args::Traces;

/// The runs of a command on one time axis.
#[derive(Default)]
pub(crate) struct Timeline {
    traces: Vec<(&'static str, Trace)>,
    end: Duration,
}

impl Timeline {
    /// Adds a run that began when the last one had ended.
    pub(crate) fn add(&mut self, verb: &'static str, stats: &RunStats) {
        let mut trace = stats.trace.clone();
        for span in &mut trace.spans {
            span.start += self.end;
            span.end += self.end;
        }
        self.traces.push((verb, trace));
        self.end += stats.elapsed;
    }

    /// Writes the files that were asked for and returns their paths.
    pub(crate) fn write(&self, files: &Traces) -> Result<Vec<PathBuf>, IoError> {
        let mut written = Vec::new();
        if let Some(path) = &files.trace {
            write_text(path, &self.chrome().to_string())?;
            written.push(path.clone());
        }
        if let Some(path) = &files.timeline {
            write_text(path, &self.svg())?;
            written.push(path.clone());
        }
        Ok(written)
    }

    fn rows(&self) -> Vec<String> {
        let mut rows: Vec<String> = Vec::new();
        for name in self.traces.iter().flat_map(|(_, trace)| &trace.workers) {
            if !rows.contains(name) {
                rows.push(name.clone());
            }
        }
        rows.push("blending".to_owned());
        rows
    }

    fn spans(&self) -> impl Iterator<Item = (&'static str, &Trace, &Span)> {
        self.traces.iter().flat_map(|(verb, trace)| trace.spans.iter().map(move |span| (*verb, trace, span)))
    }

    fn row(rows: &[String], trace: &Trace, span: &Span) -> usize {
        let name = span.worker.and_then(|worker| trace.workers.get(worker));
        name.and_then(|name| rows.iter().position(|row| row == name)).unwrap_or(rows.len() - 1)
    }

    /// The JSON array format of Chrome's traces, in microseconds: a process for each worker, a thread for each stage.
    ///
    /// Source: "Trace Event Format", events of type `X` and `M`.
    fn chrome(&self) -> Value {
        let rows = self.rows();
        let mut events = Vec::new();
        for (row, name) in rows.iter().enumerate() {
            events.push(json!({"ph": "M", "name": "process_name", "pid": row + 1, "args": {"name": name}}));
            events.push(json!({"ph": "M", "name": "process_sort_index", "pid": row + 1, "args": {"sort_index": row}}));
            for stage in Stage::ALL {
                events.push(json!({"ph": "M", "name": "thread_name", "pid": row + 1, "tid": stage as usize + 1, "args": {"name": stage.name()}}));
            }
        }
        for (verb, trace, span) in self.spans() {
            let microseconds = |time: Duration| time.as_secs_f64() * 1e6;
            events.push(json!({
                "ph": "X",
                "name": format!("{} #{}", span.stage.name(), span.tile),
                "cat": verb,
                "pid": Self::row(&rows, trace, span) + 1,
                "tid": span.stage as usize + 1,
                "ts": microseconds(span.start),
                "dur": microseconds(span.end.saturating_sub(span.start)),
                "args": {"tile": span.tile, "tiles": span.stacked, "frame": span.frame},
            }));
        }
        json!({"traceEvents": events, "displayTimeUnit": "ms"})
    }

    /// An SVG with a row for each worker and a bar for each stage of a tile; overlapping stages of a worker lie in lanes.
    fn svg(&self) -> String {
        const LEFT: f64 = 150.0;
        const WIDTH: f64 = 1000.0;
        const LANE: f64 = 16.0;
        const TOP: f64 = 34.0;
        let rows = self.rows();
        let end = self.end.as_secs_f64().max(1e-9);
        let x = |time: Duration| LEFT + WIDTH * time.as_secs_f64() / end;
        // A row with overlapping spans has a lane for each stage.
        let mut lanes: Vec<Vec<Stage>> = vec![Vec::new(); rows.len()];
        let overlapping = self.overlapping_rows(&rows);
        for (_, trace, span) in self.spans() {
            let row = Self::row(&rows, trace, span);
            let lane = if overlapping[row] { span.stage } else { Stage::Compute };
            if !lanes[row].contains(&lane) {
                lanes[row].push(lane);
            }
        }
        for lanes in &mut lanes {
            lanes.sort();
        }
        let mut top = vec![TOP];
        for lanes in &lanes {
            top.push(top[top.len() - 1] + LANE * lanes.len().max(1) as f64 + 8.0);
        }
        let height = top[rows.len()] + 26.0;
        let text = |content: String, x: f64, y: f64| {
            Text::new(content).set("x", x).set("y", y).set("font-size", 12).set("font-family", "sans-serif").set("fill", "#333")
        };
        let mut drawing = Document::new()
            .set("viewBox", (0, 0, LEFT + WIDTH + 20.0, height))
            .set("width", LEFT + WIDTH + 20.0)
            .add(Rectangle::new().set("width", LEFT + WIDTH + 20.0).set("height", height).set("fill", "white"));
        for (at, stage) in Stage::ALL.into_iter().enumerate() {
            let left = LEFT + 90.0 * at as f64;
            drawing = drawing
                .add(Rectangle::new().set("x", left).set("y", 8).set("width", 12).set("height", 12).set("fill", color(stage)))
                .add(text(stage.name().to_owned(), left + 17.0, 18.5));
        }
        for (row, name) in rows.iter().enumerate() {
            let middle = f64::midpoint(top[row], top[row + 1]);
            drawing = drawing.add(text(name.clone(), LEFT - 10.0, middle).set("text-anchor", "end")).add(
                Rectangle::new()
                    .set("x", LEFT)
                    .set("y", top[row])
                    .set("width", WIDTH)
                    .set("height", top[row + 1] - top[row] - 8.0)
                    .set("fill", "#f2f2f2"),
            );
        }
        for tick in ticks(end) {
            let at = LEFT + WIDTH * tick / end;
            drawing = drawing
                .add(Rectangle::new().set("x", at).set("y", TOP).set("width", 0.5).set("height", height - TOP - 22.0).set("fill", "#999"))
                .add(text(format!("{} s", (tick * 1e6).round() / 1e6), at, height - 8.0).set("text-anchor", "middle"));
        }
        let mut widest: BTreeMap<(usize, usize), (f64, f64, f64)> = BTreeMap::new();
        for (verb, trace, span) in self.spans() {
            let row = Self::row(&rows, trace, span);
            let lane = if overlapping[row] { span.stage } else { Stage::Compute };
            let y = top[row] + LANE * lanes[row].iter().position(|known| *known == lane).unwrap_or(0) as f64;
            let (from, to) = (x(span.start), x(span.end));
            let wide = (to - from).max(0.3);
            if span.stage == Stage::Compute && wide > widest.get(&(row, span.tile)).map_or(14.0, |known| known.1 - known.0) {
                widest.insert((row, span.tile), (from, to, y));
            }
            let tiles = if span.stacked > 1 { format!("{} tiles from #{}", span.stacked, span.tile) } else { format!("tile #{}", span.tile) };
            let length = span.end.saturating_sub(span.start).as_secs_f64() * 1e3;
            let title = format!("{verb}: {} {tiles}, frame {}, {length:.2} ms", span.stage.name(), span.frame);
            let bar = Rectangle::new().set("x", from).set("y", y + 0.5).set("width", wide).set("height", LANE - 1.0).set("fill", color(span.stage));
            let bar = if wide > 3.0 { bar.set("stroke", "white").set("stroke-width", 0.5) } else { bar };
            drawing = drawing.add(Group::new().add(bar).add(Title::new(title)));
        }
        for ((_, tile), (from, to, y)) in widest {
            let label = text(tile.to_string(), f64::midpoint(from, to), y + LANE - 4.0);
            drawing = drawing.add(label.set("text-anchor", "middle").set("font-size", 11).set("fill", "white"));
        }
        drawing.to_string()
    }

    /// Whether the spans of each row overlap.
    fn overlapping_rows(&self, rows: &[String]) -> Vec<bool> {
        let mut spans: Vec<(usize, Duration, Duration)> =
            self.spans().map(|(_, trace, span)| (Self::row(rows, trace, span), span.start, span.end)).collect();
        spans.sort_unstable();
        let mut overlapping = vec![false; rows.len()];
        for pair in spans.windows(2) {
            let [(row, _, end), (next, start, _)] = pair else { continue };
            overlapping[*row] |= row == next && start < end;
        }
        overlapping
    }
}

/// About ten ticks at round times.
fn ticks(end: f64) -> impl Iterator<Item = f64> {
    let rough = end / 10.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough).unwrap_or(end);
    (0..).map(move |tick| f64::from(tick) * step).take_while(move |tick| *tick <= end)
}

fn color(stage: Stage) -> &'static str {
    match stage {
        Stage::Read => "#8da0cb",
        Stage::Upload => "#e6ab02",
        Stage::Compute => "#33658a",
        Stage::Download => "#d95f02",
        Stage::Blend => "#1b9e77",
    }
}

fn write_text(path: &Path, text: &str) -> Result<(), IoError> {
    io::write_atomically(path, |writer| writer.write_all(text.as_bytes()).map_err(|source| IoError::Write { path: path.to_owned(), source }))
}
