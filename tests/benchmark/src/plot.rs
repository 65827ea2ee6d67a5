//! The same figures as a picture: a bar for each server's cost, workload by workload, on a logarithmic scale.

use std::fmt::Write as _;

use crate::report::Row;

const WIDTH: f64 = 960.0;
const LABELS: f64 = 400.0;
const BAR: f64 = 14.0;
const GAP: f64 = 10.0;
const COLOURS: [&str; 6] = ["#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860"];

/// An SVG of all rows that have a cost.
pub(crate) fn svg(rows: &[Row]) -> String {
    let rows: Vec<(&Row, f64)> = rows
        .iter()
        .filter_map(|row| Some((row, row.cost.median.filter(|cost| *cost > 0.0)?)))
        .collect();
    let low = rows
        .iter()
        .map(|(_, cost)| *cost)
        .fold(f64::MAX, f64::min)
        .log10()
        .floor();
    let high = rows
        .iter()
        .map(|(_, cost)| *cost)
        .fold(f64::MIN, f64::max)
        .log10()
        .ceil();
    let length = |cost: f64| (cost.log10() - low) / (high - low).max(1.0) * (WIDTH - LABELS - 80.0);
    let mut servers: Vec<&str> = rows.iter().map(|(row, _)| row.server.as_str()).collect();
    servers.sort_unstable();
    servers.dedup();

    let mut bars = String::new();
    let mut y = 30.0;
    let mut last = None;
    for (row, cost) in &rows {
        let workload = (&row.workload, row.stored);
        if last.replace(workload) != Some(workload) {
            y += GAP;
        }
        let server = servers.iter().position(|server| *server == row.server).unwrap_or(0);
        let colour = COLOURS.get(server % COLOURS.len()).copied().unwrap_or("#000000");
        let text = y + BAR - 3.0;
        let label = LABELS - 8.0;
        let end = LABELS + length(*cost);
        // Writing to a string does not fail.
        let _ = writeln!(
            bars,
            "<text x=\"{label}\" y=\"{text}\" text-anchor=\"end\">{} ({}), {}</text>\
             <rect x=\"{LABELS}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{text}\">{cost:.2}</text>",
            escaped(&row.workload),
            row.stored,
            escaped(&row.server),
            length(*cost).max(1.0),
            BAR - 2.0,
            end + 4.0,
        );
        y += BAR;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{:.0}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"20\">Cost: µs of the \
         server's processor per operation, MB of memory, ms to start (logarithmic)</text>\n{bars}</svg>\n",
        y + 20.0
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
